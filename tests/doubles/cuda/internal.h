/* What the files of the double share: the table of functions, contexts, allocations, and the lock. */
#ifndef VAE_EDGE_CUDA_DOUBLE_INTERNAL_H
#define VAE_EDGE_CUDA_DOUBLE_INTERNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "double.h"

#define EXPORT __attribute__((visibility("default")))
#ifdef DOUBLE_OLD_DRIVER /* a driver before CUDA 12, which has few functions */
#define EXPORT_NEW __attribute__((visibility("hidden")))
#else
#define EXPORT_NEW EXPORT
#endif

enum {
    INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    NO_BINARY = 209, INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    TOO_LARGE = 720, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, WRONG_THREAD = 908
};

#define DRIVER_FUNCTIONS(F) \
    F(cuInit) F(cuDriverGetVersion) F(cuGetErrorName) F(cuGetErrorString) F(cuDeviceGetCount) F(cuDeviceGet) \
    F(cuDeviceGetName) F(cuDeviceTotalMem_v2) F(cuDeviceGetAttribute) F(cuDevicePrimaryCtxRetain) \
    F(cuDevicePrimaryCtxRelease_v2) F(cuCtxPushCurrent_v2) F(cuCtxPopCurrent_v2) F(cuCtxSetCurrent) F(cuCtxGetCurrent) \
    F(cuCtxGetDevice) F(cuCtxSynchronize) F(cuMemAlloc_v2) F(cuMemFree_v2) F(cuMemHostAlloc) F(cuMemAllocHost_v2) \
    F(cuMemFreeHost) F(cuMemHostGetDevicePointer_v2) F(cuMemGetInfo_v2) F(cuPointerGetAttribute) F(cuMemcpyAsync) \
    F(cuMemcpyHtoDAsync_v2) F(cuMemcpyDtoHAsync_v2) F(cuMemcpyDtoDAsync_v2) F(cuMemcpy2DAsync_v2) F(cuMemcpy) \
    F(cuMemcpyHtoD_v2) F(cuMemcpyDtoH_v2) F(cuStreamCreate) F(cuStreamDestroy_v2) F(cuStreamSynchronize) F(cuStreamQuery) \
    F(cuStreamWaitEvent) F(cuStreamBeginCapture_v2) F(cuStreamEndCapture) F(cuStreamIsCapturing) F(cuEventCreate) \
    F(cuEventRecord) F(cuEventQuery) F(cuEventSynchronize) F(cuEventElapsedTime) F(cuEventDestroy_v2) \
    F(cuGraphInstantiateWithFlags) F(cuGraphUpload) F(cuGraphLaunch) F(cuGraphExecDestroy) F(cuGraphDestroy) \
    F(cuLibraryLoadData) F(cuLibraryUnload) F(cuLibraryGetKernel) F(cuKernelSetAttribute) F(cuLaunchKernel) \
    F(cuLaunchCooperativeKernel) F(double_launch_host)

#define FUNCTION_ID(name) ID_##name,
enum { DRIVER_FUNCTIONS(FUNCTION_ID) FUNCTION_COUNT };

#define MAX_CONTEXTS 16

/* The primary context of a device. Its handle is its address. */
typedef struct context {
    int holders; /* retains that were not released; 0: there is none */
    int error;   /* what every call returns since the device failed; 0: it works */
} context;

extern context contexts[MAX_CONTEXTS];
extern pthread_mutex_t lock; /* of everything; never held while a host function runs */

/* Count a call of a function, and its failure on demand: 0, or the code to return. */
int count_call(int function);

/* The context that is current in this thread: NULL if there is none, or none any more. */
context *current_context(void);
int device_of(const context *of);

/* Count a call that works with the current context: 0, and *here is it; or the code to return. Takes the lock if it gives 0. A
 * device that failed refuses it; but takes what is given back all the same, whose functions then return `(*here)->error`. */
int enter(int function, context **here);
int enter_to_give_back(int function, context **here);
int leave(int code); /* gives the lock back, and the code */

/* Keep a sentence about misuse. The lock is held. */
void add_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Value n of an environment variable with values for devices, as a number; and as text. */
long long device_number(const char *name, int ordinal, long long otherwise);
void device_text(const char *name, int ordinal, const char *otherwise, char *text, size_t size);
long long memory_limit(int ordinal);

/* memory.c. The lock is held. */
#define DEVICE_MARK (UINT64_C(0x7d) << 56)
#define MARK_BITS (UINT64_C(0xff) << 56)
int is_known(uint64_t address);                         /* whether it lies in an allocation, live in any context */
int is_marked(uint64_t address);                        /* whether it has the mark of device addresses */
void *reachable(uint64_t address, size_t bytes, int by_device); /* host pointer, NULL if not wholly in one live allocation */
void drop_memory(const context *of, int abandoned);
int memory_held(int kind); /* 0: of the device, 1: of the host */
long long memory_bytes(int kind);

/* streams.c. The lock is held. */
typedef struct operation operation;
int enqueue_launch(void *stream, const double_launch *launch, context *here);
int check_unsafe(context *here); /* CAPTURE_UNSUPPORTED where a capture forbids a call that allocates or waits */
int drain_default(context *here); /* wait for the default stream */
/* Rows of bytes from one place to another; a copy without rows has one of them. */
typedef struct transfer {
    uint64_t to, from;
    size_t bytes, rows, to_pitch, from_pitch; /* bytes of a row, and from one to the next */
} transfer;
int enqueue_copy(void *stream, context *here, transfer what);
int copy_now(const transfer *what);
void drop_streams(const context *of, int abandoned);
int objects_held(int kind);
enum { STREAM, EVENT, GRAPH, EXEC, KINDS };
extern long long pageable_copies, default_synchronizations;
extern int abandoned_count;

/* kernels.c */
void run_launch(const double_launch *launch);
void record_launch(const double_launch *launch);
int libraries_held(void);
void drop_kernels(void);

#endif
