#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char sentence[1024];

ve_status ve_fail(ve_status status, const char *format, ...) {
    va_list values;
    va_start(values, format);
    (void)vsnprintf(sentence, sizeof sentence, format, values);
    va_end(values);
    return status;
}

const char *ve_last_error(void) { return sentence; }
