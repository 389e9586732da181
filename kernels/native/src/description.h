/* What a network file says about its network: the tensor "about", lines of key=value. */
#ifndef VE_DESCRIPTION_H
#define VE_DESCRIPTION_H

#include <stddef.h>

#include "tensors.h"

#define VE_MAX_PROGRAMS 32u /* that work on one image */
#define VE_MAX_CODES 60

/* A line "kernel.87=ENTRY WARPS SHARED_BYTES PROGRAMS" about tensor cubin.87, or "spread.87=..." about tensor spread.87. */
typedef struct ve_code_line {
    int spread, architecture;
    char entry[64];
    unsigned int warps, shared_bytes, programs;
    const ve_tensor *tensor;
} ve_code_line;

typedef struct ve_description {
    char *text;         /* owned: the lines, in which the names point */
    const char **names; /* owned */
    int side, channels, classes, has_angle, code_count;
    float threshold;
    size_t area_bytes, floats;
    const ve_tensor *weights, *numbers, *whitenings;
    ve_code_line codes[VE_MAX_CODES];
} ve_description;

/* Read the description and compare it with the tensors: every key once and none that is unknown, every number within its limits,
 * every tensor as large as is said, every machine code with its line. On a failure nothing is left to free. */
ve_status ve_description_read(const char *path, const ve_tensors *file, ve_description *description);
void ve_description_free(ve_description *description);

/* The best line for a device, of those that are spread or of those that are not, or NULL. */
const ve_code_line *ve_description_code(const ve_description *description, int spread, int device);

#endif
