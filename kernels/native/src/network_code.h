/* A network's machine code on a device, and its launch: of network files, and of the TensorRT plugin. */
#ifndef VE_NETWORK_CODE_H
#define VE_NETWORK_CODE_H

#include "description.h"
#include "driver.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Loaded machine code with which ctas_per_image CTAs work on an image; `kernel` is NULL where there is none. */
typedef struct ve_network_code {
    CUlibrary library;
    CUkernel kernel;
    unsigned int threads, shared_bytes, ctas_per_image;
    void *memory; /* owned: a copy of the machine code */
} ve_network_code;

/* What the kernel reads and writes, all in device memory. Activations and workspace have as many slots as a launch. */
typedef struct ve_network_buffers {
    CUdeviceptr images, weights, params, whitening;
    CUdeviceptr activations, workspace;
    CUdeviceptr barrier; /* int32 [slots], zeros before the first launch; not read with one CTA an image */
    CUdeviceptr probabilities, angles, scores, uncertainty;
} ve_network_buffers;

typedef struct ve_device_info {
    int architecture, multiprocessors; /* 87 is sm_87 */
} ve_device_info;

CUresult ve_device_query(const ve_driver *driver, CUdevice device, ve_device_info *info);

/* The code with one CTA an image that runs on the architecture. Where there is none, the error names those that `path` has. */
ve_status ve_network_code_find(const char *caller, const char *path, const ve_description *description, int architecture,
                               const ve_code_line **found);

/* Load the machine code of a line of the description. Its tensor is not needed any more then. What was loaded before a failure is
 * unloaded with the rest. */
ve_status ve_network_code_load(const char *caller, const ve_driver *driver, CUdevice device, const ve_code_line *line, const char *path,
                               ve_network_code *code);
void ve_network_code_unload(const ve_driver *driver, ve_network_code *code);

/* Launch the kernel on n images, `slots` of them at a time; cooperatively if several CTAs work on an image. */
CUresult ve_network_code_launch(const ve_driver *driver, const ve_network_code *code, const ve_network_buffers *buffers, int32_t n,
                                unsigned int slots, CUstream stream);

#ifdef __cplusplus
}
#endif

#endif
