/* VAE Edge's kernels, compiled ahead of time, behind a C interface.
 *
 * At run time the library needs an NVIDIA driver of CUDA 12.0 or newer and nothing else. It opens libcuda.so.1 itself when
 * ve_initialize or ve_open is called. Without a driver it loads all the same, and these two return VE_ERROR_NO_DRIVER.
 *
 * No function exits, aborts or prints. Each returns a status; ve_last_error() then has a message for the calling thread.
 * Every function may be called from any thread. A launch is asynchronous on its stream, as cuLaunchKernel is.
 *
 * A launch goes to the device of the calling thread's current CUDA context (the primary context that the runtime interface,
 * PyTorch and TensorRT use is fine); that device must have been initialized. A thread without a context uses the primary context
 * of the device that was initialized first.
 */
#ifndef VAE_EDGE_H
#define VAE_EDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define VE_API __attribute__((visibility("default")))
#define VE_DEPRECATED(instead) __attribute__((deprecated("use " instead)))
#else
#define VE_API
#define VE_DEPRECATED(instead)
#endif

/* Incremented when a function of this header takes other arguments than before; it is the library's SOVERSION.
 * 1: the number of images is a size_t. */
#define VE_ABI_VERSION 1

/* Limits of a network file; ve_open refuses a file beyond them. */
#define VE_MAX_FILE_BYTES (256 << 20)
#define VE_MAX_HEADER_BYTES (64 << 10)
#define VE_MAX_DESCRIPTION_BYTES (8 << 20)
#define VE_MAX_CLASSES 4096
#define VE_MAX_CLASS_NAME_BYTES 1024
#define VE_MAX_SIDE 1024 /* pixels */
#define VE_MAX_CHANNELS 4
#define VE_MAX_SCRATCH_BYTES (16 << 20) /* of the activations of an image, and of its workspace */

typedef enum ve_status {
    VE_OK = 0,
    VE_ERROR_INVALID_ARGUMENT = 1,   /* a pointer, size, dtype or count that the function does not take */
    VE_ERROR_NO_DRIVER = 2,          /* libcuda.so.1 is not there, is too old, or does not start */
    VE_ERROR_NO_DEVICE = 3,          /* the machine has no device of that number */
    VE_ERROR_UNSUPPORTED_DEVICE = 4, /* the library, or the network file, has no machine code for the device */
    VE_ERROR_NOT_INITIALIZED = 5,    /* ve_initialize was not called for the device */
    VE_ERROR_UNKNOWN_KERNEL = 6,     /* no kernel has that name or number */
    VE_ERROR_DRIVER = 7,             /* the driver refused; the message has its own text */
    VE_ERROR_OUT_OF_MEMORY = 8,      /* host memory, or the device's */
    VE_ERROR_FILE = 9                /* a file that is not there, or damaged, or of another kind */
} ve_status;

typedef enum ve_dtype { VE_FLOAT32 = 0, VE_FLOAT16 = 1, VE_BFLOAT16 = 2 } ve_dtype;

/* One kernel. All memory belongs to the library and stays valid while it is loaded.
 * The arrays after argument_count have that many entries; those after architecture_count have that many. */
typedef struct ve_kernel {
    const char *name;
    int argument_count;
    const char *const *argument_names;
    const char *const *argument_types; /* "*fp32", "*fp16", "*bf16", "*i8", "*u8", "*fp8e4nv", "i32", "i64", "fp32": a star is a device pointer */
    const int *argument_alignments;    /* what a pointer (in bytes) or an integer must be a multiple of */
    int architecture_count;
    const int *architectures; /* 87 is sm_87 */
    const int *warps;         /* warps of a program, by architecture */
    const int *shared_bytes;  /* dynamic shared memory of a program, by architecture */
} ve_kernel;

/* The version, "MAJOR.MINOR.PATCH". */
VE_API const char *ve_version(void);

/* VE_ABI_VERSION as the library was built; a program that was built with another header must not call it. */
VE_API int ve_abi_version(void);

/* The message of the calling thread's last failed call, UTF-8; "" before the first. Valid until the thread's next failed call.
 * It is safe to print: control characters of paths and files are escaped as \xNN. */
VE_API const char *ve_last_error(void);

/* How many kernels the library carries, and each of them. The listing needs no driver. */
VE_API int ve_kernel_count(void);
VE_API ve_status ve_kernel_info(int index, ve_kernel *kernel);

/* Open the driver, take the device's primary context and load the kernels for it. Calling it again does nothing. */
VE_API ve_status ve_initialize(int device);

/* Unload all kernels and release the contexts; networks stay open. No launch may be going on; ve_initialize may be called again. */
VE_API ve_status ve_shutdown(void);

/* Launch a kernel by name on a grid. arguments[i] points to argument i as ve_kernel_info lists it (a device pointer as uint64_t
 * or void *). docs/kernels.md has each kernel's grid. stream is a CUstream; NULL is the default. */
VE_API ve_status ve_launch(const char *name, const unsigned int grid[3], void *const *arguments, int argument_count,
                           void *stream);

/* A compile-time constant of a kernel on the device where ve_launch would run it: "ROWS" is how many rows one program takes. */
VE_API ve_status ve_kernel_constant(const char *name, const char *constant, int *value);

/* z = mu + exp(logvar / 2) * eps, [rows, columns], and kl, float32 [rows]. All pointers are device pointers to contiguous
 * row-major memory of the dtype (kl: float32). seed: below 2^63. offset: at most 2^62, in elements; element i takes number
 * offset + i of the seed's noise. A kernel for aligned memory is chosen when every pointer is a multiple of 16 bytes and
 * columns and offset are multiples of 4. rows = 0 does nothing. */
VE_API ve_status ve_launch_reparameterize_forward(const void *mu, const void *logvar, void *z, float *kl, int rows,
                                                  int columns, uint64_t seed, uint64_t offset, ve_dtype dtype,
                                                  void *stream);

/* The gradients of mu and logvar, [rows, columns], from those of z, [rows, columns], and of kl, float32 [rows]. */
VE_API ve_status ve_launch_reparameterize_backward(const void *grad_z, const float *grad_kl, const void *mu,
                                                   const void *logvar, void *grad_mu, void *grad_logvar, int rows,
                                                   int columns, uint64_t seed, uint64_t offset, ve_dtype dtype,
                                                   void *stream);

/* A network file opened on a device. One thread at a time may use a handle; several threads may use several handles.
 * vae_edge.ops.network.fuse(model).save(path) writes such a file. */
typedef struct ve_network ve_network;

/* What a network is. All memory belongs to the handle. */
typedef struct ve_network_info {
    int side, channels, classes;    /* images are uint8 [side, side, channels]; side is 0 where they are not square */
    const char *const *class_names; /* `classes` of them, UTF-8 as the file has it: escape them before printing */
    float threshold;                /* finite; a score up to it is accepted. Higher scores are more anomalous */
    int has_angle;                  /* 0 where the network was trained on upright images: its angles are 0 */
} ve_network_info;

/* Read a network file, verify it, load its machine code and its weights onto a device, and run it once. Needs no ve_initialize.
 *
 * A damaged file is refused (VE_ERROR_FILE) before the driver is opened. Its SHA-256 covers the whole file, header included (in
 * files of format 2, all but the header); every key is known and stands once; every number is within its limits. Time and memory
 * are linear in the file's size. A pipe, a device or another file that is not regular is refused without waiting for it.
 *
 * The file holds code that the GPU executes, and its digest shows damage, not who wrote it. Open only files that you trust. */
VE_API ve_status ve_open(const char *path, int device, ve_network **network);

/* Classify n images and wait for the result.
 *
 *   images             uint8 [n, height, width, channels]
 *   probabilities      float [n, classes]
 *   angles             float [n], radians counter-clockwise as displayed, -pi to pi
 *   scores             float [n], anomaly scores
 *   angle_uncertainty  float [n, 3]: angle confidence (0 to 1), second angle, second angle probability
 *
 * Each pointer may be one to host memory or to memory of the handle's device, on which no other work may be going on then: the
 * network runs on a stream of its own. An output that is NULL is not written. Nothing is allocated. n = 0 does nothing; an n whose
 * images or outputs memory cannot hold is refused (VE_ERROR_INVALID_ARGUMENT). */
VE_API ve_status ve_classify_ex(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles,
                                float *scores, float *angle_uncertainty);

/* ve_classify_ex without the angle uncertainty. */
VE_API ve_status ve_classify(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles,
                             float *scores);

/* What an open network is. */
VE_API ve_status ve_network_get_info(const ve_network *network, ve_network_info *info);

/* Height and width of an open network's images in pixels, whether they are square or not. */
VE_API ve_status ve_network_get_size(const ve_network *network, int *height, int *width);

/* Free all that the handle holds; the handle must not be used again. NULL does nothing. */
VE_API ve_status ve_close(ve_network *network);

/* Names of before. */
VE_API VE_DEPRECATED("ve_classify_ex") ve_status ve_classify_with_doubts(ve_network *network, const uint8_t *images, size_t n,
                                                                         float *probabilities, float *angles, float *scores,
                                                                         float *doubts);
VE_API VE_DEPRECATED("ve_network_get_info") ve_status ve_describe(const ve_network *network, ve_network_info *info);

#ifdef __cplusplus
}
#endif

#endif
