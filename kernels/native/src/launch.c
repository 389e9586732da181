#include <stdio.h>
#include <string.h>

#include "device.h"
#include "error.h"

#define MAX_OFFSET (UINT64_C(1) << 62)

/* Kernels' names and constants of before, {before, now}: programs that use them still find them. */
static const char *const renamed_kernels[][2] = {
    {"convolution_int8_first_", "stem_conv_int8_"},
    {"convolution_first_", "stem_conv_"},
    {"convolution_", "conv_"},
    {"means_", "avg_pool_"},
    {"turn_", "rotate_"},
};
static const char *const renamed_constants[][2] = {
    {"ELEMENTS", "BLOCK_SIZE"}, {"ROWS", "BLOCK_M"}, {"COLUMNS", "BLOCK_N"}, {"DEPTH", "BLOCK_K"}};

/* A kernel's name of before as it is now: its beginning, and "_window", which is "_masked". "" where it has not changed, or is no name. */
static void rename_kernel(const char *name, char *renamed, size_t size) {
    renamed[0] = 0;
    for (size_t i = 0; i < sizeof renamed_kernels / sizeof *renamed_kernels; i++) {
        const char *before = renamed_kernels[i][0], *now = renamed_kernels[i][1];
        if (strncmp(name, before, strlen(before)) != 0) continue;
        const char *rest = name + strlen(before), *window = strstr(rest, "_window");
        int length = window == NULL ? -1 : (int)(window - rest);
        int written = length < 0 || length > 64 ? snprintf(renamed, size, "%s%s", now, rest)
                                                : snprintf(renamed, size, "%s%.*s_masked%s", now, length, rest, window + strlen("_window"));
        if (written < 0 || (size_t)written >= size) renamed[0] = 0;
        return;
    }
}

static int find(const char *name) {
    for (int i = 0; i < ve_table_count; i++)
        if (strcmp(ve_table[i].kernel.name, name) == 0) return i;
    return -1;
}

int ve_find_kernel(const char *caller, const char *name) {
    if (name == NULL) {
        (void)ve_fail(VE_ERROR_INVALID_ARGUMENT, "%s: the kernel's name is NULL.", caller);
        return -1;
    }
    char renamed[128] = "";
    int index = find(name);
    if (index < 0) {
        rename_kernel(name, renamed, sizeof renamed);
        index = find(renamed);
    }
    if (index >= 0) return index;
    (void)ve_fail(VE_ERROR_UNKNOWN_KERNEL, "%s: no kernel is named '%s'; ve_kernel_info lists the %d there are.", caller,
                  name, ve_table_count);
    return -1;
}

static int find_constant(const ve_code *code, const char *name, int *value) {
    for (size_t i = 0; i < sizeof renamed_constants / sizeof *renamed_constants; i++)
        if (strcmp(renamed_constants[i][0], name) == 0 && find_constant(code, renamed_constants[i][1], value)) return 1;
    for (int i = 0; i < code->constant_count; i++)
        if (strcmp(code->constants[i].name, name) == 0) {
            *value = code->constants[i].value;
            return 1;
        }
    return 0;
}

static ve_status check_arguments(const ve_kernel *kernel, void *const *arguments, int argument_count) {
    if (arguments == NULL || argument_count != kernel->argument_count)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_launch: %s takes %d arguments; got %d%s.", kernel->name,
                       kernel->argument_count, argument_count, arguments == NULL ? " and a NULL array" : "");
    for (int i = 0; i < argument_count; i++) {
        if (arguments[i] == NULL)
            return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_launch: argument %d (%s) of %s is NULL; give its address.", i,
                           kernel->argument_names[i], kernel->name);
        if (strcmp(kernel->argument_types[i], "i32") == 0) {
            int32_t number;
            memcpy(&number, arguments[i], sizeof number);
            if (number % kernel->argument_alignments[i] != 0)
                return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_launch: argument %d (%s) of %s must be a multiple of %d; got %d.", i,
                               kernel->argument_names[i], kernel->name, kernel->argument_alignments[i], (int)number);
        }
        if (kernel->argument_types[i][0] != '*') continue;
        uint64_t address;
        memcpy(&address, arguments[i], sizeof address);
        if (address == 0 || address % (uint64_t)kernel->argument_alignments[i] != 0)
            return ve_fail(VE_ERROR_INVALID_ARGUMENT,
                           "ve_launch: argument %d (%s) of %s must be a device pointer and a multiple of %d bytes; got %#llx.",
                           i, kernel->argument_names[i], kernel->name, kernel->argument_alignments[i],
                           (unsigned long long)address);
    }
    return VE_OK;
}

/* Launch under the lock. The machine code takes two scratch pointers after the listed arguments; both are NULL. */
static ve_status launch_locked(int index, const unsigned int grid[3], void *const *arguments, void *stream,
                             const ve_driver *driver, const ve_device *device, int push) {
    const ve_kernel *kernel = &ve_table[index].kernel;
    const ve_loaded *loaded = &device->loaded[index];
    if (loaded->library == NULL)
        return ve_fail(VE_ERROR_UNSUPPORTED_DEVICE, "ve_launch: the library has no machine code of %s for this device.", kernel->name);
    void *scratch[2] = {NULL, NULL};
    void *all[VE_MAX_ARGUMENTS + 2];
    for (int i = 0; i < kernel->argument_count; i++) all[i] = arguments[i];
    all[kernel->argument_count] = &scratch[0];
    all[kernel->argument_count + 1] = &scratch[1];
    CUresult result = push ? driver->context_push(device->context) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS) {
        result = driver->launch((CUfunction)loaded->kernel, grid[0], grid[1], grid[2], 32 * loaded->warps, 1, 1,
                                loaded->shared_bytes, (CUstream)stream, all, NULL);
        if (push) (void)driver->context_pop(&(CUcontext){NULL});
    }
    if (result == CUDA_SUCCESS) return VE_OK;
    return ve_fail(VE_ERROR_DRIVER, "ve_launch: the driver does not launch %s: error %d, %s.", kernel->name, result,
                   ve_driver_error_text(driver, result));
}

ve_status ve_launch(const char *name, const unsigned int grid[3], void *const *arguments, int argument_count,
                    void *stream) {
    int index = ve_find_kernel("ve_launch", name);
    if (index < 0) return name == NULL ? VE_ERROR_INVALID_ARGUMENT : VE_ERROR_UNKNOWN_KERNEL;
    if (grid == NULL || grid[0] == 0 || grid[1] == 0 || grid[2] == 0)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_launch: the grid of %s must be three numbers of at least 1.", name);
    ve_status status = check_arguments(&ve_table[index].kernel, arguments, argument_count);
    if (status != VE_OK) return status;
    const ve_driver *driver = NULL;
    const ve_device *device = NULL;
    int push = 0;
    ve_devices_rdlock();
    status = ve_current_device("ve_launch", &driver, &device, &push);
    if (status == VE_OK) status = launch_locked(index, grid, arguments, stream, driver, device, push);
    ve_devices_unlock();
    return status;
}

ve_status ve_kernel_constant(const char *name, const char *constant, int *value) {
    int index = ve_find_kernel("ve_kernel_constant", name);
    if (index < 0) return name == NULL ? VE_ERROR_INVALID_ARGUMENT : VE_ERROR_UNKNOWN_KERNEL;
    if (constant == NULL || value == NULL)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_kernel_constant: the constant's name and the value must not be NULL.");
    const ve_driver *driver = NULL;
    const ve_device *device = NULL;
    int push = 0;
    ve_devices_rdlock();
    ve_status status = ve_current_device("ve_kernel_constant", &driver, &device, &push);
    if (status == VE_OK && device->loaded[index].library == NULL)
        status = ve_fail(VE_ERROR_UNSUPPORTED_DEVICE, "ve_kernel_constant: the library has no machine code of %s for this device.", name);
    else if (status == VE_OK && !find_constant(device->loaded[index].code, constant, value))
        status = ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_kernel_constant: %s has no constant '%s'.", name, constant);
    ve_devices_unlock();
    return status;
}

static ve_status check_sizes(const char *caller, int rows, int columns, uint64_t seed, uint64_t offset) {
    if (rows < 0 || columns < 1)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "%s: rows must be at least 0 and columns at least 1; got %d and %d.",
                       caller, rows, columns);
    if (seed > (uint64_t)INT64_MAX || offset > MAX_OFFSET)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT,
                       "%s: seed must be below 2^63 and offset at most 2^62; got %llu and %llu.", caller,
                       (unsigned long long)seed, (unsigned long long)offset);
    return VE_OK;
}

/* Choose the kernel of one direction for these pointers, and launch it: the pointers, then rows, columns, seed, offset. */
static ve_status launch_reparameterize(const char *direction, const void *const *pointers, int pointer_count, int rows,
                                int columns, uint64_t seed, uint64_t offset, ve_dtype dtype, void *stream) {
    static const char *const dtypes[] = {"fp32", "fp16", "bf16"};
    char caller[64], name[64];
    (void)snprintf(caller, sizeof caller, "ve_launch_reparameterize_%s", direction);
    ve_status status = check_sizes(caller, rows, columns, seed, offset);
    if (status != VE_OK) return status;
    if ((int)dtype < 0 || (int)dtype > (int)VE_BFLOAT16)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "%s: dtype must be VE_FLOAT32, VE_FLOAT16 or VE_BFLOAT16; got %d.", caller,
                       (int)dtype);
    if (rows == 0) return VE_OK;
    uint64_t bits = 0;
    void *arguments[VE_MAX_ARGUMENTS];
    const void *copies[VE_MAX_ARGUMENTS];
    for (int i = 0; i < pointer_count; i++) {
        if (pointers[i] == NULL)
            return ve_fail(VE_ERROR_INVALID_ARGUMENT, "%s: pointer number %d is NULL; give a device pointer.", caller, i);
        bits |= (uint64_t)(uintptr_t)pointers[i];
        copies[i] = pointers[i];
        arguments[i] = &copies[i];
    }
    int quads = bits % 16 == 0 && columns % 4 == 0 && offset % 4 == 0;
    (void)snprintf(name, sizeof name, "reparameterize_%s_%s%s", direction, dtypes[dtype], quads ? "_quads" : "");
    int rows_per_program = 0;
    status = ve_kernel_constant(name, "ROWS", &rows_per_program);
    if (status != VE_OK) return status;
    arguments[pointer_count] = &rows;
    arguments[pointer_count + 1] = &columns;
    arguments[pointer_count + 2] = &seed;
    arguments[pointer_count + 3] = &offset;
    unsigned int grid = (unsigned int)((rows - 1) / rows_per_program + 1);
    return ve_launch(name, (const unsigned int[3]){grid, 1, 1}, arguments, pointer_count + 4, stream);
}

ve_status ve_launch_reparameterize_forward(const void *mu, const void *logvar, void *z, float *kl, int rows, int columns,
                                           uint64_t seed, uint64_t offset, ve_dtype dtype, void *stream) {
    const void *pointers[] = {mu, logvar, z, kl};
    return launch_reparameterize("forward", pointers, 4, rows, columns, seed, offset, dtype, stream);
}

ve_status ve_launch_reparameterize_backward(const void *grad_z, const float *grad_kl, const void *mu, const void *logvar,
                                            void *grad_mu, void *grad_logvar, int rows, int columns, uint64_t seed,
                                            uint64_t offset, ve_dtype dtype, void *stream) {
    const void *pointers[] = {grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar};
    return launch_reparameterize("backward", pointers, 6, rows, columns, seed, offset, dtype, stream);
}
