#include "tensors.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "file.h"
#include "sha256.h"
#include "sizes.h"

#define FORMAT "vae-edge-network-3"
#define FORMAT_BEFORE "vae-edge-network-2" /* its digest is of the tensors' bytes alone */
#define FORMAT_OF_CODE "vae-edge-code-1"
#define PREFIX 8                           /* bytes that hold the header's length */
#define DIGEST 64
#define MAX_DIMENSIONS 8

/* A position in the header's JSON. `why` is set at the first error, and then nothing is read any more. */
typedef struct reader {
    const char *first, *at, *end;
    const char *why;
} reader;

static void fail(reader *r, const char *why) {
    if (r->why == NULL) r->why = why;
}

static void skip_space(reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t')) r->at++;
}

static int next_is(reader *r, char expected) {
    skip_space(r);
    return r->why == NULL && r->at < r->end && *r->at == expected;
}

static void expect(reader *r, char expected) {
    if (next_is(r, expected))
        r->at++;
    else
        fail(r, "it is not the JSON of such a header");
}

/* Whether an object or a list has another item, its `number`-th; the comma or the closing bracket is consumed. */
static int next_item(reader *r, int number, char close) {
    if (r->why != NULL) return 0;
    if (next_is(r, close)) {
        r->at++;
        return 0;
    }
    if (number > 0) expect(r, ',');
    return r->why == NULL;
}

/* Read a string into `text`. No name or value of such a header has an escape or a control character. */
static void read_string(reader *r, char *text, size_t size) {
    size_t length = 0;
    expect(r, '"');
    while (r->why == NULL && r->at < r->end && *r->at != '"') {
        char c = *r->at++;
        if (c == '\\' || (unsigned char)c < 0x20) fail(r, "a text has an escape or a control character");
        if (length + 1 >= size) fail(r, "a text is too long");
        if (r->why == NULL) text[length++] = c;
    }
    text[length] = 0;
    expect(r, '"');
}

static size_t read_number(reader *r) {
    skip_space(r);
    size_t value = 0;
    const char *first = r->at;
    while (r->why == NULL && r->at < r->end && *r->at >= '0' && *r->at <= '9') {
        if (value > VE_MAX_FILE_BYTES) fail(r, "a number is larger than a file may be");
        value = value * 10 + (size_t)(*r->at++ - '0');
    }
    if (r->at == first) fail(r, "a number is missing");
    if (r->at - first > 1 && *first == '0') fail(r, "a number has a zero in front");
    return value;
}

static void read_metadata(reader *r, ve_tensors *tensors) {
    if (tensors->format[0] != 0 || tensors->sha256[0] != 0) fail(r, "the metadata stand twice");
    expect(r, '{');
    for (int i = 0; next_item(r, i, '}'); i++) {
        char key[64], value[65];
        read_string(r, key, sizeof key);
        expect(r, ':');
        skip_space(r);
        size_t at = (size_t)(r->at - r->first) + 1; /* behind the quote */
        read_string(r, value, sizeof value);
        if (r->why != NULL) return;
        if (strcmp(key, "format") == 0 && tensors->format[0] == 0) {
            (void)snprintf(tensors->format, sizeof tensors->format, "%.63s", value);
        } else if (strcmp(key, "sha256") == 0 && tensors->sha256[0] == 0) {
            memcpy(tensors->sha256, value, sizeof value);
            tensors->sha256_at = at + PREFIX;
        } else {
            fail(r, "the metadata have a key that is unknown or stands twice");
        }
    }
}

/* The bytes of a shape, of which `bytes` are an element's. */
static size_t read_shape(reader *r, size_t bytes) {
    expect(r, '[');
    for (int i = 0; next_item(r, i, ']'); i++)
        if (i == MAX_DIMENSIONS || !ve_product(bytes, read_number(r), &bytes)) fail(r, "a shape is too large");
    return bytes;
}

static void read_offsets(reader *r, size_t offsets[2]) {
    expect(r, '[');
    offsets[0] = read_number(r);
    expect(r, ',');
    offsets[1] = read_number(r);
    expect(r, ']');
}

static size_t read_element(reader *r, ve_element *element) {
    static const char *const names[] = {[VE_U8] = "U8", [VE_I8] = "I8", [VE_F16] = "F16", [VE_F32] = "F32"};
    static const size_t sizes[] = {[VE_U8] = 1, [VE_I8] = 1, [VE_F16] = 2, [VE_F32] = 4};
    char name[16];
    read_string(r, name, sizeof name);
    for (int i = VE_U8; i <= VE_F32; i++)
        if (strcmp(name, names[i]) == 0) {
            *element = (ve_element)i;
            return sizes[i];
        }
    fail(r, "a tensor's dtype is none of U8, I8, F16 and F32");
    return 0;
}

/* {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]}, in any order. */
static void read_tensor(reader *r, ve_tensor *tensor, const unsigned char *data, size_t first, size_t data_bytes) {
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    size_t offsets[2] = {1, 0}, width = 0, elements = 0;
    unsigned int seen = 0;
    expect(r, '{');
    for (int i = 0; next_item(r, i, '}'); i++) {
        char key[16];
        unsigned int which = 0;
        read_string(r, key, sizeof key);
        expect(r, ':');
        while (which < 3 && strcmp(key, keys[which]) != 0) which++;
        if (which == 3 || (seen & 1u << which) != 0) fail(r, "a tensor has a key that is unknown or stands twice");
        if (r->why != NULL) return;
        seen |= 1u << which;
        if (which == 0) width = read_element(r, &tensor->element);
        if (which == 1) elements = read_shape(r, 1);
        if (which == 2) read_offsets(r, offsets);
    }
    /* One behind the other and without gaps, as the format requires: then no digit of the header can be another. */
    if (seen != 7 || offsets[0] != first || offsets[0] > offsets[1] || offsets[1] > data_bytes)
        fail(r, "a tensor does not lie right behind the one before it, inside the file");
    size_t bytes = 0;
    if (r->why == NULL && (!ve_product(elements, width, &bytes) || bytes != offsets[1] - offsets[0]))
        fail(r, "a tensor's shape does not fit its bytes");
    if (r->why != NULL) return;
    tensor->data = data + offsets[0];
    tensor->bytes = bytes;
}

int ve_architecture_of(const char *name, const char *kind) {
    size_t length = strlen(kind);
    if (strncmp(name, kind, length) != 0 || name[length] != '.') return 0;
    const char *digits = name + length + 1;
    size_t count = strspn(digits, "0123456789");
    return (count == 2 || count == 3) && digits[count] == 0 && digits[0] != '0' ? atoi(digits) : 0;
}

static int is_known(const char *name) {
    static const char *const names[] = {"weights", "numbers", "whitenings", "about"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return 1;
    return ve_architecture_of(name, "cubin") > 0 || ve_architecture_of(name, "spread") > 0;
}

static void read_header(reader *r, ve_tensors *tensors, const unsigned char *data, size_t data_bytes) {
    size_t taken = 0;
    expect(r, '{');
    for (int i = 0; next_item(r, i, '}'); i++) {
        char name[16];
        read_string(r, name, sizeof name);
        expect(r, ':');
        if (r->why != NULL) return;
        if (strcmp(name, "__metadata__") == 0) {
            read_metadata(r, tensors);
        } else if (!is_known(name)) {
            fail(r, "a tensor has a name that the format does not know");
        } else if (ve_tensors_find(tensors, name) != NULL) {
            fail(r, "a tensor's name stands twice");
        } else if (tensors->count == VE_MAX_TENSORS) {
            fail(r, "there are more tensors than there may be");
        } else {
            ve_tensor *tensor = &tensors->tensors[tensors->count++];
            memcpy(tensor->name, name, sizeof name);
            read_tensor(r, tensor, data, taken, data_bytes);
            taken += tensor->bytes;
        }
    }
    skip_space(r);
    if (r->at != r->end || taken != data_bytes) fail(r, "it does not end where the tensors begin, or they not with the file");
}

/* The digest is of the whole file as it is with 64 zeros in the digest's place; before, of the tensors' bytes alone. */
static ve_status check_digest(const char *path, ve_tensors *tensors, size_t size, size_t data_at) {
    char digest[DIGEST + 1];
    unsigned char *in_file = tensors->file + tensors->sha256_at;
    if (strlen(tensors->sha256) != DIGEST) return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its header has no SHA-256.", path);
    if (strcmp(tensors->format, FORMAT_BEFORE) == 0) {
        ve_sha256(tensors->file + data_at, size - data_at, digest);
    } else {
        memset(in_file, '0', DIGEST);
        ve_sha256(tensors->file, size, digest);
        memcpy(in_file, tensors->sha256, DIGEST);
    }
    if (strcmp(digest, tensors->sha256) == 0) return VE_OK;
    return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its SHA-256 is %s, its header says %s.", path, digest, tensors->sha256);
}

/* Refuse what is of another format than its kind's. Without a format the header is damaged, which is told later. */
static ve_status check_format(const char *path, const ve_tensors *tensors) {
    const char *format = tensors->format;
    if (format[0] == 0) return VE_OK;
    if (tensors->kind == VE_MACHINE_CODE) {
        if (strcmp(format, FORMAT_OF_CODE) == 0) return VE_OK;
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is no machine code of this version: its format is '%s', this library reads '%s'.", path,
                       format, FORMAT_OF_CODE);
    }
    if (strcmp(format, FORMAT) == 0 || strcmp(format, FORMAT_BEFORE) == 0) return VE_OK;
    return ve_fail(VE_ERROR_FILE, "ve_open: %s is no network file of this version: its format is '%s', this library reads '%s' and '%s'.",
                   path, format, FORMAT, FORMAT_BEFORE);
}

/* Read what is in `file`, of `size` bytes. */
static ve_status read_tensors(const char *path, ve_tensors *tensors) {
    size_t size = tensors->size;
    uint64_t header = 0;
    for (int i = PREFIX - 1; i >= 0; i--) header = header << 8 | tensors->file[i];
    if (header < 2 || header > VE_MAX_HEADER_BYTES || header > size - PREFIX)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is no network file: its header would have %llu bytes.", path,
                       (unsigned long long)header);
    size_t data_at = PREFIX + (size_t)header;
    const unsigned char *data = tensors->file + data_at;
    const char *text = (const char *)tensors->file + PREFIX;
    reader r = {text, text, (const char *)data, NULL};
    read_header(&r, tensors, data, size - data_at);
    ve_status status = check_format(path, tensors);
    if (status != VE_OK) return status;
    if (r.why == NULL && tensors->format[0] == 0) r.why = "the metadata do not say a format";
    if (r.why != NULL)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its header is not one of a network file: at byte %zu, %s.", path,
                       (size_t)(r.at - text) + PREFIX, r.why);
    return check_digest(path, tensors, size, data_at);
}

ve_status ve_tensors_read(const char *path, ve_tensors *tensors) {
    memset(tensors, 0, sizeof *tensors);
    tensors->kind = VE_NETWORK_FILE;
    ve_status status = ve_file_read(path, PREFIX, VE_MAX_FILE_BYTES, &tensors->file, &tensors->size);
    if (status == VE_OK) status = read_tensors(path, tensors);
    if (status != VE_OK) ve_tensors_free(tensors);
    return status;
}

ve_status ve_tensors_copy(const char *name, const void *bytes, size_t size, ve_tensors *tensors) {
    memset(tensors, 0, sizeof *tensors);
    tensors->kind = VE_MACHINE_CODE;
    if (bytes == NULL || size < PREFIX || size > VE_MAX_FILE_BYTES)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s has %zu bytes, where %d to %d are possible.", name, size, PREFIX, VE_MAX_FILE_BYTES);
    tensors->file = malloc(size);
    if (tensors->file == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the %zu bytes of %s.", size, name);
    memcpy(tensors->file, bytes, size);
    tensors->size = size;
    ve_status status = read_tensors(name, tensors);
    if (status != VE_OK) ve_tensors_free(tensors);
    return status;
}

void ve_tensors_free(ve_tensors *tensors) {
    free(tensors->file);
    memset(tensors, 0, sizeof *tensors);
}

const ve_tensor *ve_tensors_find(const ve_tensors *tensors, const char *name) {
    for (int i = 0; i < tensors->count; i++)
        if (strcmp(tensors->tensors[i].name, name) == 0) return &tensors->tensors[i];
    return NULL;
}
