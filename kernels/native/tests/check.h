/* One macro: a check that names itself, the line, and the library's last error when it does not hold. */
#ifndef VE_CHECK_H
#define VE_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vae_edge.h"

#define SKIPPED 77

#define CHECK(condition)                                                                                        \
    do {                                                                                                        \
        if (!(condition)) {                                                                                     \
            fprintf(stderr, "%s:%d: does not hold: %s\n  last error: %s\n", __FILE__, __LINE__, #condition,      \
                    ve_last_error());                                                                           \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

/* The call fails with this status, and its sentence contains the words. */
#define CHECK_FAILS(call, expected, words)                     \
    do {                                                       \
        CHECK((call) == (expected));                           \
        CHECK(strstr(ve_last_error(), (words)) != NULL);       \
    } while (0)

/* How many kernels have machine code made for just this architecture. */
static inline int kernels_for(int architecture) {
    int count = 0;
    for (int i = 0; i < ve_kernel_count(); i++) {
        ve_kernel kernel;
        CHECK(ve_kernel_info(i, &kernel) == VE_OK);
        for (int j = 0; j < kernel.architecture_count; j++) count += kernel.architectures[j] == architecture;
    }
    return count;
}

#endif
