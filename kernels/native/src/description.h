/* The description in a network file, or in a container of machine code: the tensor "about", lines of key=value. Keys and tensors keep
 * the names of the first version. A container has no buffers, class names, threshold and has_angle; it has int8 and layout_sha256. */
#ifndef VE_DESCRIPTION_H
#define VE_DESCRIPTION_H

#include <stddef.h>

#include "tensors.h"

#define VE_MAX_CTAS_PER_IMAGE 32u
#define VE_MAX_CODES 60

/* A line "kernel.87=ENTRY WARPS SHARED_BYTES CTAS_PER_IMAGE" about tensor cubin.87, or "spread.87=..." about tensor spread.87, which
 * has machine code with several CTAs an image. */
typedef struct ve_code_line {
    int multi_cta, architecture;
    char entry[64];
    unsigned int warps, shared_bytes, ctas_per_image;
    const ve_tensor *tensor;
} ve_code_line;

typedef struct ve_description {
    char *text;         /* owned: the lines, in which the names point */
    const char **names; /* owned */
    int height, width, channels, classes, has_angle, code_count; /* keys side and, where it differs, width */
    float threshold;
    size_t activation_bytes; /* of a slot: key area_bytes */
    size_t workspace_size;   /* floats of a slot: key floats */
    size_t weights_bytes, params_bytes, whitening_bytes;
    const ve_tensor *weights, *params, *whitening; /* tensors weights, numbers, whitenings; NULL in a container */
    int int8;                                      /* of a container: whether the weights are int8, else float16 */
    const char *layout_sha256;                     /* of a container: digest of the layout that the code was compiled for */
    ve_code_line codes[VE_MAX_CODES];
} ve_description;

/* Read the description and compare it with the tensors: every key once and none that is unknown, every number within its limits,
 * every tensor as large as is said, every machine code with its line. On a failure nothing is left to free. */
ve_status ve_description_read(const char *path, const ve_tensors *file, ve_description *description);
void ve_description_free(ve_description *description);

/* The best machine code for a device, with several CTAs an image or with one; NULL where there is none. */
const ve_code_line *ve_description_code(const ve_description *description, int multi_cta, int device);

#endif
