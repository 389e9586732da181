/* A network file, or a container of machine code, as a safetensors file: its header read strictly, its digest compared. */
#ifndef VE_TENSORS_H
#define VE_TENSORS_H

#include <stddef.h>

#include "vae_edge.h"

#define VE_MAX_TENSORS 64

/* Of a network file's tensors. */
typedef enum ve_element { VE_U8, VE_I8, VE_F16, VE_F32 } ve_element;

typedef struct ve_tensor {
    char name[16];
    ve_element element;
    const unsigned char *data;
    size_t bytes;
} ve_tensor;

/* What such bytes are: a network file, or the machine code of a network whose weights lie elsewhere, in an engine. */
typedef enum ve_kind { VE_NETWORK_FILE, VE_MACHINE_CODE } ve_kind;

typedef struct ve_tensors {
    unsigned char *file; /* owned */
    size_t size;         /* bytes of it */
    ve_kind kind;
    int count;
    ve_tensor tensors[VE_MAX_TENSORS];
    char format[64], sha256[65]; /* of the metadata */
    size_t sha256_at;            /* where the file has the digest */
} ve_tensors;

/* Read a network file and its header, and compare its digest. Names that stand twice or that the format does not know are refused, and
 * so is a tensor whose shape does not fit its bytes. */
ve_status ve_tensors_read(const char *path, ve_tensors *tensors);

/* The same of a container of machine code in memory, of which a copy is made. Messages call it `name`. */
ve_status ve_tensors_copy(const char *name, const void *bytes, size_t size, ve_tensors *tensors);
void ve_tensors_free(ve_tensors *tensors);

/* The tensor of that name, or NULL. */
const ve_tensor *ve_tensors_find(const ve_tensors *tensors, const char *name);

/* 87 of "cubin.87" if the name is KIND and such a number, else 0. */
int ve_architecture_of(const char *name, const char *kind);

#endif
