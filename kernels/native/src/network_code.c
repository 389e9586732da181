#include "network_code.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

#define KERNEL_ARGUMENTS 14 /* eleven pointers, the number of images, and two of Triton's scratch memory */
#define STATIC_LIMIT_BYTES 49152

CUresult ve_device_query(const ve_driver *driver, CUdevice device, ve_device_info *info) {
    int major = 0, minor = 0;
    CUresult result = driver->device_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (result == CUDA_SUCCESS) result = driver->device_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    if (result == CUDA_SUCCESS)
        result = driver->device_attribute(&info->multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    info->architecture = major * 10 + minor;
    return result;
}

/* The architectures that there is machine code for, as "sm_80, sm_87". */
static void list_architectures(const ve_description *description, char *text, size_t size) {
    size_t used = 0;
    for (int i = 0; i < description->code_count; i++) {
        if (description->codes[i].multi_cta || used + 16 > size) continue;
        int more = snprintf(text + used, size - used, "%ssm_%d", used > 0 ? ", " : "", description->codes[i].architecture);
        used += more > 0 ? (size_t)more : 0;
    }
}

ve_status ve_network_code_find(const char *caller, const char *path, const ve_description *description, int architecture,
                               const ve_code_line **found) {
    *found = ve_description_code(description, 0, architecture);
    if (*found != NULL) return VE_OK;
    char have[1024] = "no architecture";
    list_architectures(description, have, sizeof have);
    return ve_fail(VE_ERROR_UNSUPPORTED_DEVICE, "%s: %s has machine code for %s; the device is sm_%d: save it for that too.", caller,
                   path, have, architecture);
}

ve_status ve_network_code_load(const char *caller, const ve_driver *driver, CUdevice device, const ve_code_line *line, const char *path,
                               ve_network_code *code) {
    size_t bytes = line->tensor->bytes, size = (bytes / 64 + 2) * 64;
    code->threads = 32 * line->warps;
    code->shared_bytes = line->shared_bytes;
    code->ctas_per_image = line->ctas_per_image;
    /* The driver gets no length, and wants the code aligned: it gets a copy with zeros behind it. */
    unsigned char *copy = aligned_alloc(64, size);
    if (copy == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "%s: no memory for the machine code of %s.", caller, path);
    memset(copy + bytes, 0, size - bytes);
    memcpy(copy, line->tensor->data, bytes);
    code->memory = copy;

    CUresult result = driver->library_load(&code->library, copy, NULL, NULL, 0, NULL, NULL, 0);
    if (result == CUDA_SUCCESS) result = driver->library_get_kernel(&code->kernel, code->library, line->entry);
    if (result == CUDA_SUCCESS && code->shared_bytes > STATIC_LIMIT_BYTES)
        result = driver->kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)code->shared_bytes, code->kernel,
                                              device);
    if (result == CUDA_SUCCESS) return VE_OK;
    return ve_fail(result == CUDA_ERROR_OUT_OF_MEMORY ? VE_ERROR_OUT_OF_MEMORY : VE_ERROR_DRIVER,
                   "%s: the driver does not load the network's machine code: error %d, %s.", caller, result,
                   ve_driver_error_text(driver, result));
}

void ve_network_code_unload(const ve_driver *driver, ve_network_code *code) {
    if (code->library != NULL) (void)driver->library_unload(code->library);
    free(code->memory);
    memset(code, 0, sizeof *code);
}

CUresult ve_network_code_launch(const ve_driver *driver, const ve_network_code *code, const ve_network_buffers *buffers, int32_t n,
                                unsigned int slots, CUstream stream) {
    ve_network_buffers b = *buffers;
    CUdeviceptr no_scratch = 0;
    void *arguments[KERNEL_ARGUMENTS] = {
        &b.images,        &b.weights, &b.params, &b.whitening,   &b.activations, &b.workspace, &b.barrier,
        &b.probabilities, &b.angles,  &b.scores, &b.uncertainty, &n,             &no_scratch,  &no_scratch,
    };
    CUfunction function = (CUfunction)code->kernel;
    if (code->ctas_per_image > 1)
        return driver->launch_cooperative(function, slots, code->ctas_per_image, 1, code->threads, 1, 1, code->shared_bytes, stream,
                                          arguments);
    return driver->launch(function, slots, 1, 1, code->threads, 1, 1, code->shared_bytes, stream, arguments, NULL);
}
