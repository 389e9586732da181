/* A double of cuda_runtime_api.h for compiling the TensorRT plugin where there is no CUDA toolkit: the one type that it needs. */
#ifndef VAE_EDGE_CUDA_RUNTIME_DOUBLE_H
#define VAE_EDGE_CUDA_RUNTIME_DOUBLE_H

typedef struct CUstream_st *cudaStream_t;

#endif
