/* UTF-8 (RFC 3629), strictly: no longer forms than needed, no surrogates, nothing beyond U+10FFFF. */
#ifndef VE_UTF8_H
#define VE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The length of the character at `bytes`, of which there are `count` (at least 1), and the character; 0 if it is none. */
static inline size_t ve_utf8_next(const unsigned char *bytes, size_t count, uint32_t *character) {
    static const uint32_t min[5] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = bytes[0];
    size_t length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || length > count) return 0;
    uint32_t c = length == 1 ? first : first & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (bytes[i] & 0x3fu);
    }
    if (c < min[length] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) return 0;
    *character = c;
    return length;
}

/* Whether all of it is UTF-8. */
static inline int ve_is_utf8(const char *text, size_t count) {
    const unsigned char *at = (const unsigned char *)text, *end = at + count;
    uint32_t c = 0;
    while (at < end) {
        size_t length = ve_utf8_next(at, (size_t)(end - at), &c);
        if (length == 0) return 0;
        at += length;
    }
    return 1;
}

#endif
