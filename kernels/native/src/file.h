/* A regular file, read whole. */
#ifndef VE_FILE_H
#define VE_FILE_H

#include <stddef.h>

#include "vae_edge.h"

/* Read a file of `least` to `most` bytes into memory that the caller frees. What is no regular file (a pipe, a device, a folder) is
 * refused without waiting for it. */
ve_status ve_file_read(const char *path, size_t least, size_t most, unsigned char **bytes, size_t *count);

#endif
