/* The calling thread's last error. */
#ifndef VE_ERROR_H
#define VE_ERROR_H

#include "vae_edge.h"

/* Set the message of ve_last_error, and return the status. Text from a file, a path or the driver is made printable: control
 * characters, format characters and bytes that are not UTF-8 become \xNN. */
ve_status ve_fail(ve_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
