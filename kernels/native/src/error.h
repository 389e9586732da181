/* The calling thread's last error. */
#ifndef VE_ERROR_H
#define VE_ERROR_H

#include "vae_edge.h"

/* Keep a sentence for ve_last_error and give the status back. */
ve_status ve_fail(ve_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
