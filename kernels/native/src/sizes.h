/* Multiplication of sizes that a file or a caller gave. */
#ifndef VE_SIZES_H
#define VE_SIZES_H

#include <stddef.h>
#include <stdint.h>

/* Whether a * b is a size that memory can have; *product is the product, or 0. */
static inline int ve_product(size_t a, size_t b, size_t *product) {
    int fits = b == 0 || a <= (size_t)PTRDIFF_MAX / b;
    *product = fits ? a * b : 0;
    return fits;
}

#endif
