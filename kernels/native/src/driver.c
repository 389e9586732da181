#include "driver.h"

#include <dlfcn.h>
#include <string.h>

#include "error.h"

#define VE_DRIVER_FILE "libcuda.so.1"

const char *ve_driver_error_text(const ve_driver *driver, CUresult error) {
    const char *text = NULL;
    if (driver->error_string(error, &text) != CUDA_SUCCESS || text == NULL) return "an error it has no words for";
    return text;
}

static ve_status start(const char *caller, const ve_driver *driver) {
    CUresult result = driver->init(0);
    if (result == CUDA_SUCCESS) return VE_OK;
    if (result == CUDA_ERROR_NO_DEVICE)
        return ve_fail(VE_ERROR_NO_DEVICE, "%s: the NVIDIA driver finds no GPU on this machine (%s).", caller,
                       ve_driver_error_text(driver, result));
    return ve_fail(VE_ERROR_NO_DRIVER, "%s: the NVIDIA driver does not start: error %d, %s.", caller, result,
                   ve_driver_error_text(driver, result));
}

ve_status ve_driver_open(const char *caller, ve_driver *driver) {
    const struct {
        void *function;
        const char *name;
    } symbols[] = {
        {&driver->init, "cuInit"},
        {&driver->error_string, "cuGetErrorString"},
        {&driver->device_get, "cuDeviceGet"},
        {&driver->device_attribute, "cuDeviceGetAttribute"},
        {&driver->primary_retain, "cuDevicePrimaryCtxRetain"},
        {&driver->primary_release, "cuDevicePrimaryCtxRelease_v2"},
        {&driver->context_push, "cuCtxPushCurrent_v2"},
        {&driver->context_pop, "cuCtxPopCurrent_v2"},
        {&driver->context_get_device, "cuCtxGetDevice"},
        {&driver->library_load, "cuLibraryLoadData"},
        {&driver->library_unload, "cuLibraryUnload"},
        {&driver->library_get_kernel, "cuLibraryGetKernel"},
        {&driver->kernel_set_attribute, "cuKernelSetAttribute"},
        {&driver->launch, "cuLaunchKernel"},
        {&driver->launch_cooperative, "cuLaunchCooperativeKernel"},
        {&driver->mem_alloc, "cuMemAlloc_v2"},
        {&driver->mem_free, "cuMemFree_v2"},
        {&driver->host_alloc, "cuMemAllocHost_v2"},
        {&driver->host_free, "cuMemFreeHost"},
        {&driver->pointer_attribute, "cuPointerGetAttribute"},
        {&driver->copy, "cuMemcpyAsync"},
        {&driver->stream_create, "cuStreamCreate"},
        {&driver->stream_destroy, "cuStreamDestroy_v2"},
        {&driver->stream_synchronize, "cuStreamSynchronize"},
        {&driver->capture_begin, "cuStreamBeginCapture_v2"},
        {&driver->capture_end, "cuStreamEndCapture"},
        {&driver->graph_instantiate, "cuGraphInstantiateWithFlags"},
        {&driver->graph_launch, "cuGraphLaunch"},
        {&driver->graph_destroy, "cuGraphDestroy"},
        {&driver->graph_exec_destroy, "cuGraphExecDestroy"},
    };
    void *library = dlopen(VE_DRIVER_FILE, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return ve_fail(VE_ERROR_NO_DRIVER,
                       "%s: no NVIDIA driver on this machine (%s); install one, or use another backend.", caller,
                       dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (symbol == NULL) {
            (void)dlclose(library);
            return ve_fail(VE_ERROR_NO_DRIVER,
                           "%s: the NVIDIA driver is too old: it lacks %s; CUDA 12.0 or newer is needed.", caller,
                           symbols[i].name);
        }
        memcpy(symbols[i].function, &symbol, sizeof symbol);
    }
    /* A driver that once started stays open: it owns threads, and cannot be dlclosed safely. */
    ve_status status = start(caller, driver);
    if (status != VE_OK) (void)dlclose(library); /* the loader keeps it while the driver itself holds on to it */
    return status;
}
