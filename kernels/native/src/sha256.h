/* SHA-256 (FIPS 180-4). */
#ifndef VE_SHA256_H
#define VE_SHA256_H

#include <stddef.h>

/* The digest of some bytes as 64 lower-case hexadecimal digits and a 0. */
void ve_sha256(const unsigned char *bytes, size_t count, char digest[65]);

#endif
