/* Reading a regular file. */
#ifndef VE_FILE_H
#define VE_FILE_H

#include <stddef.h>

#include "vae_edge.h"

/* Read a file of min_size to max_size bytes into memory that the caller frees. A pipe, a device or a folder is refused
 * without waiting for it. */
ve_status ve_file_read(const char *path, size_t min_size, size_t max_size, unsigned char **bytes, size_t *count);

#endif
