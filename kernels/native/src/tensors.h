/* A safetensors file: named stretches of bytes, read from a path and verified. */
#ifndef VE_TENSORS_H
#define VE_TENSORS_H

#include <stddef.h>

#include "vae_edge.h"

#define VE_MOST_TENSORS 64

typedef struct ve_tensor {
    char name[64];
    const unsigned char *data;
    size_t bytes;
} ve_tensor;

typedef struct ve_tensors {
    unsigned char *file; /* owned */
    int count;
    ve_tensor tensors[VE_MOST_TENSORS];
    char format[64], sha256[65]; /* of the metadata */
} ve_tensors;

/* Read a file and its header, and compare the digest of its data with the one that its metadata has. */
ve_status ve_tensors_read(const char *path, ve_tensors *tensors);
void ve_tensors_free(ve_tensors *tensors);

/* The tensor of that name, or NULL. */
const ve_tensor *ve_tensors_find(const ve_tensors *tensors, const char *name);

#endif
