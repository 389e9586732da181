#include "error.h"
#include "table.h"

#ifndef VE_VERSION
#error "VE_VERSION must be defined by the build"
#endif

const char *ve_version(void) { return VE_VERSION; }

int ve_abi_version(void) { return VE_ABI_VERSION; }

int ve_kernel_count(void) { return ve_table_count; }

ve_status ve_kernel_info(int index, ve_kernel *kernel) {
    if (kernel == NULL) return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_kernel_info: the kernel to fill in is NULL.");
    if (index < 0 || index >= ve_table_count)
        return ve_fail(VE_ERROR_UNKNOWN_KERNEL, "ve_kernel_info: index must be from 0 to %d; got %d.", ve_table_count - 1,
                       index);
    *kernel = ve_table[index].kernel;
    return VE_OK;
}
