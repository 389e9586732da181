/* The table of kernels that vae_edge_kernels.aot generates from the ahead-of-time compiler's manifest. */
#ifndef VE_TABLE_H
#define VE_TABLE_H

#include <stddef.h>

#include "vae_edge.h"

typedef struct ve_constant {
    const char *name;
    int value;
} ve_constant;

/* The machine code of one kernel for one architecture; `constants` has constant_count entries. */
typedef struct ve_code {
    const unsigned char *data;
    size_t bytes;
    int constant_count;
    const ve_constant *constants;
} ve_code;

/* One kernel: what the interface tells, the entry's name in the machine code, and one code for each architecture.
 * The machine code takes two more pointers after the listed arguments (Triton's scratch memory): they are NULL. */
typedef struct ve_table_entry {
    ve_kernel kernel;
    const char *entry;
    const ve_code *codes;
} ve_table_entry;

extern const ve_table_entry ve_table[];
extern const int ve_table_count;

#define VE_MAX_ARGUMENTS 32

#endif
