#include "device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

#define MAX_DEVICES 64
#define STATIC_LIMIT_BYTES 49152 /* more dynamic shared memory than this must be requested */

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static ve_driver driver;
static int driver_open;
static ve_device devices[MAX_DEVICES];
static int first_ready = -1;

void ve_devices_rdlock(void) { (void)pthread_rwlock_rdlock(&lock); }
void ve_devices_unlock(void) { (void)pthread_rwlock_unlock(&lock); }

/* Machine code of Ampere and Ada runs on desktop GPUs of its own major version from its minor version up. That of Orin (8.7) runs on
 * Orin alone, and from 9.0 on the compiler writes architecture-specific code, which runs on exactly its own. */
int ve_runs_on(int code, int device) {
    if (code == device) return 1;
    return code / 10 == 8 && device / 10 == 8 && code != 87 && device != 87 && code < device;
}

/* The index of the newest machine code that runs on the architecture, or -1. */
static int best_code(const ve_kernel *kernel, int architecture) {
    int best = -1;
    for (int i = 0; i < kernel->architecture_count; i++)
        if (ve_runs_on(kernel->architectures[i], architecture) &&
            (best < 0 || kernel->architectures[i] > kernel->architectures[best]))
            best = i;
    return best;
}

static void unload_device(ve_device *device) {
    for (int i = 0; i < ve_table_count; i++)
        if (device->loaded[i].library != NULL) (void)driver.library_unload(device->loaded[i].library);
    free(device->loaded);
    (void)driver.primary_release(device->handle);
    memset(device, 0, sizeof *device);
}

static ve_status load_kernel(const ve_table_entry *entry, CUdevice handle, int architecture, ve_loaded *loaded) {
    int chosen = best_code(&entry->kernel, architecture);
    if (chosen < 0) return VE_OK; /* one that this device cannot run, such as fp8 on an older one */
    loaded->code = &entry->codes[chosen];
    loaded->warps = (unsigned int)entry->kernel.warps[chosen];
    loaded->shared_bytes = (unsigned int)entry->kernel.shared_bytes[chosen];
    CUresult result = driver.library_load(&loaded->library, loaded->code->data, NULL, NULL, 0, NULL, NULL, 0);
    if (result == CUDA_SUCCESS) result = driver.library_get_kernel(&loaded->kernel, loaded->library, entry->entry);
    if (result == CUDA_SUCCESS && loaded->shared_bytes > STATIC_LIMIT_BYTES)
        result = driver.kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)loaded->shared_bytes,
                                   loaded->kernel, handle);
    if (result == CUDA_SUCCESS) return VE_OK;
    return ve_fail(VE_ERROR_DRIVER, "ve_initialize: the driver does not load %s for sm_%d: error %d, %s.",
                   entry->kernel.name, architecture, result, ve_driver_error_text(&driver, result));
}

static ve_status open_device(int ordinal, ve_device *device) {
    int major = 0, minor = 0;
    CUresult result = driver.device_get(&device->handle, ordinal);
    if (result == CUDA_ERROR_INVALID_DEVICE)
        return ve_fail(VE_ERROR_NO_DEVICE, "ve_initialize: this machine has no CUDA device number %d.", ordinal);
    if (result == CUDA_SUCCESS)
        result = driver.device_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device->handle);
    if (result == CUDA_SUCCESS)
        result = driver.device_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device->handle);
    if (result == CUDA_SUCCESS) result = driver.primary_retain(&device->context, device->handle);
    if (result != CUDA_SUCCESS)
        return ve_fail(VE_ERROR_DRIVER, "ve_initialize: the driver does not open device %d: error %d, %s.", ordinal,
                       result, ve_driver_error_text(&driver, result));
    device->loaded = calloc((size_t)ve_table_count, sizeof *device->loaded);
    if (device->loaded == NULL) {
        (void)driver.primary_release(device->handle);
        return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_initialize: no memory for the list of %d kernels.", ve_table_count);
    }
    ve_status status = VE_OK;
    result = driver.context_push(device->context);
    if (result != CUDA_SUCCESS)
        status = ve_fail(VE_ERROR_DRIVER, "ve_initialize: the driver does not enter device %d: error %d, %s.", ordinal,
                         result, ve_driver_error_text(&driver, result));
    int loaded = 0;
    for (int i = 0; i < ve_table_count && status == VE_OK; i++) {
        status = load_kernel(&ve_table[i], device->handle, major * 10 + minor, &device->loaded[i]);
        loaded += device->loaded[i].library != NULL;
    }
    if (status == VE_OK && loaded == 0)
        status = ve_fail(VE_ERROR_UNSUPPORTED_DEVICE,
                         "ve_initialize: the library carries no machine code for sm_%d; build it with "
                         "-DVAE_EDGE_ARCHITECTURES=%d.",
                         major * 10 + minor, major * 10 + minor);
    if (result == CUDA_SUCCESS) (void)driver.context_pop(&(CUcontext){NULL});
    if (status != VE_OK) unload_device(device);
    return status;
}

/* The lock is held for writing. */
static ve_status open_driver(const char *caller) {
    if (driver_open) return VE_OK;
    ve_status status = ve_driver_open(caller, &driver);
    driver_open = status == VE_OK;
    return status;
}

ve_status ve_shared_driver(const char *caller, const ve_driver **used) {
    (void)pthread_rwlock_wrlock(&lock);
    ve_status status = open_driver(caller);
    (void)pthread_rwlock_unlock(&lock);
    *used = &driver;
    return status;
}

ve_status ve_initialize(int device) {
    if (device < 0 || device >= MAX_DEVICES)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_initialize: device must be from 0 to %d; got %d.",
                       MAX_DEVICES - 1, device);
    (void)pthread_rwlock_wrlock(&lock);
    ve_status status = open_driver("ve_initialize");
    if (status == VE_OK && !devices[device].ready) {
        ve_device opened = {0};
        status = open_device(device, &opened);
        if (status == VE_OK) {
            opened.ready = 1;
            devices[device] = opened;
            if (first_ready < 0) first_ready = device;
        }
    }
    (void)pthread_rwlock_unlock(&lock);
    return status;
}

ve_status ve_shutdown(void) {
    (void)pthread_rwlock_wrlock(&lock);
    for (int i = 0; i < MAX_DEVICES; i++)
        if (devices[i].ready) unload_device(&devices[i]);
    first_ready = -1;
    (void)pthread_rwlock_unlock(&lock);
    return VE_OK;
}

ve_status ve_current_device(const char *caller, const ve_driver **used, const ve_device **device, int *push) {
    if (first_ready < 0)
        return ve_fail(VE_ERROR_NOT_INITIALIZED, "%s: no device is initialized; call ve_initialize first.", caller);
    *used = &driver;
    CUdevice current = 0;
    CUresult result = driver.context_get_device(&current);
    *push = result == CUDA_ERROR_INVALID_CONTEXT || result == CUDA_ERROR_NOT_INITIALIZED;
    if (*push) {
        *device = &devices[first_ready];
        return VE_OK;
    }
    if (result != CUDA_SUCCESS)
        return ve_fail(VE_ERROR_DRIVER, "%s: the driver does not tell the current device: error %d, %s.", caller, result,
                       ve_driver_error_text(&driver, result));
    for (int i = 0; i < MAX_DEVICES; i++)
        if (devices[i].ready && devices[i].handle == current) {
            *device = &devices[i];
            return VE_OK;
        }
    return ve_fail(VE_ERROR_NOT_INITIALIZED,
                   "%s: this thread's CUDA context is on device %d, which is not initialized; call ve_initialize(%d).",
                   caller, current, current);
}
