/* Machine code for a GPU is an ELF file. The driver gets its address and no length, so its tables are verified before. */
#ifndef VE_MACHINE_CODE_H
#define VE_MACHINE_CODE_H

#include <stddef.h>

/* NULL if all that an ELF file for CUDA points to lies inside it, else what is wrong. */
const char *ve_machine_code_fault(const unsigned char *bytes, size_t count);

#endif
