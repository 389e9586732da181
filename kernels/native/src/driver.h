/* The few functions of the NVIDIA driver that the library uses, found in libcuda.so.1 at run time.
 * The types are those of cuda.h, written here so that no CUDA toolkit is needed to build. */
#ifndef VE_DRIVER_H
#define VE_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "vae_edge.h"

typedef int CUresult;
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef struct CUlib_st *CUlibrary;
typedef struct CUkern_st *CUkernel;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef uint64_t CUdeviceptr;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    CU_MEMORYTYPE_DEVICE = 2,
    CU_MEMORYTYPE_UNIFIED = 4,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
};

typedef struct ve_driver {
    CUresult (*init)(unsigned int flags);
    CUresult (*error_string)(CUresult error, const char **text);
    CUresult (*device_get)(CUdevice *device, int ordinal);
    CUresult (*device_attribute)(int *value, int attribute, CUdevice device);
    CUresult (*primary_retain)(CUcontext *context, CUdevice device);
    CUresult (*primary_release)(CUdevice device);
    CUresult (*context_push)(CUcontext context);
    CUresult (*context_pop)(CUcontext *context);
    CUresult (*context_get_device)(CUdevice *device);
    CUresult (*library_load)(CUlibrary *library, const void *code, int *jit_options, void **jit_values,
                             unsigned int jit_count, int *library_options, void **library_values,
                             unsigned int library_count);
    CUresult (*library_unload)(CUlibrary library);
    CUresult (*library_get_kernel)(CUkernel *kernel, CUlibrary library, const char *name);
    CUresult (*kernel_set_attribute)(int attribute, int value, CUkernel kernel, CUdevice device);
    CUresult (*launch)(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                       CUstream stream, void **arguments, void **extra);
    CUresult (*launch_cooperative)(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                                CUstream stream, void **arguments);
    CUresult (*mem_alloc)(CUdeviceptr *pointer, size_t bytes);
    CUresult (*mem_free)(CUdeviceptr pointer);
    CUresult (*host_alloc)(void **pointer, size_t bytes);
    CUresult (*host_free)(void *pointer);
    CUresult (*pointer_attribute)(void *value, int attribute, CUdeviceptr pointer);
    CUresult (*copy)(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
    CUresult (*stream_create)(CUstream *stream, unsigned int flags);
    CUresult (*stream_destroy)(CUstream stream);
    CUresult (*stream_synchronize)(CUstream stream);
    CUresult (*capture_begin)(CUstream stream, int mode);
    CUresult (*capture_end)(CUstream stream, CUgraph *graph);
    CUresult (*graph_instantiate)(CUgraphExec *ready, CUgraph graph, unsigned long long flags);
    CUresult (*graph_launch)(CUgraphExec ready, CUstream stream);
    CUresult (*graph_destroy)(CUgraph graph);
    CUresult (*graph_exec_destroy)(CUgraphExec ready);
} ve_driver;

/* Open and start the driver into *driver. On a failure nothing stays open. The caller holds the library's lock. */
ve_status ve_driver_open(const char *caller, ve_driver *driver);

/* The driver's text for an error. */
const char *ve_driver_error_text(const ve_driver *driver, CUresult error);

#endif
