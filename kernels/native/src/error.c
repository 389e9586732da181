#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

#define MAX_RAW 6144 /* a path of 4095 bytes, and the message around it */

static _Thread_local char message[8192];

/* Whether a terminal shows the character, and nothing but it: no control, no mark that changes the order of others. */
static int is_printable(uint32_t c) {
    if (c < 0x20 || (c >= 0x7f && c < 0xa0)) return 0;
    if (c == 0x61c || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e)) return 0;
    return !(c >= 0x2060 && c <= 0x206f) && c != 0xfeff && !(c >= 0xfff0 && c <= 0xfffb) && !(c >= 0xe0000 && c <= 0xe0fff);
}

/* Copy a text, its unprintable bytes as \xNN; what does not fit ends with "...". */
static void copy_printable(char *to, size_t size, const char *text) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char *at = (const unsigned char *)text, *end = at + strlen(text);
    size_t used = 0;
    while (at < end) {
        uint32_t c = 0;
        size_t length = ve_utf8_next(at, (size_t)(end - at), &c);
        int plain = length > 0 && is_printable(c);
        if (length == 0) length = 1;
        if (used + 4 * length + 4 > size) {
            memcpy(to + used, "...", 3);
            used += 3;
            break;
        }
        for (size_t i = 0; i < length; i++, at++) {
            if (plain) {
                to[used++] = (char)*at;
                continue;
            }
            const char escape[4] = {'\\', 'x', digits[*at >> 4], digits[*at & 15]};
            memcpy(to + used, escape, sizeof escape);
            used += sizeof escape;
        }
    }
    to[used] = 0;
}

ve_status ve_fail(ve_status status, const char *format, ...) {
    char raw[MAX_RAW];
    va_list values;
    va_start(values, format);
    if (vsnprintf(raw, sizeof raw, format, values) < 0) raw[0] = 0;
    va_end(values);
    copy_printable(message, sizeof message, raw);
    return status;
}

const char *ve_last_error(void) { return message; }
