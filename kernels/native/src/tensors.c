#include "tensors.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "sha256.h"

#define PREFIX 8 /* bytes that hold the header's length */
#define MOST_HEADER_BYTES (1u << 20)
#define MOST_FILE_BYTES (1l << 30)

/* A place in the header's JSON. `bad` is set at the first thing that is not as it must be, and then nothing moves on. */
typedef struct reader {
    const char *at, *end;
    int bad;
} reader;

static void skip_space(reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t')) r->at++;
}

static int next_is(reader *r, char wanted) {
    skip_space(r);
    return !r->bad && r->at < r->end && *r->at == wanted;
}

static void expect(reader *r, char wanted) {
    if (next_is(r, wanted))
        r->at++;
    else
        r->bad = 1;
}

/* A string into `text`; what does not fit, or is escaped but for \" \\ \/, is refused. */
static void read_string(reader *r, char *text, size_t room) {
    size_t length = 0;
    expect(r, '"');
    while (!r->bad && r->at < r->end && *r->at != '"') {
        char c = *r->at++;
        if (c == '\\') {
            c = r->at < r->end ? *r->at++ : 0;
            if (c != '"' && c != '\\' && c != '/') r->bad = 1;
        }
        if (length + 1 >= room) r->bad = 1;
        if (!r->bad) text[length++] = c;
    }
    text[length] = 0;
    expect(r, '"');
}

static uint64_t read_number(reader *r) {
    skip_space(r);
    uint64_t value = 0;
    const char *first = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9' && value < UINT64_MAX / 16) value = value * 10 + (uint64_t)(*r->at++ - '0');
    if (r->at == first) r->bad = 1;
    return value;
}

static void read_metadata(reader *r, ve_tensors *tensors) {
    expect(r, '{');
    while (!r->bad && !next_is(r, '}')) {
        char key[64], value[256];
        read_string(r, key, sizeof key);
        expect(r, ':');
        read_string(r, value, sizeof value);
        if (strcmp(key, "format") == 0) (void)snprintf(tensors->format, sizeof tensors->format, "%.63s", value);
        if (strcmp(key, "sha256") == 0) (void)snprintf(tensors->sha256, sizeof tensors->sha256, "%.64s", value);
        if (!next_is(r, '}')) expect(r, ',');
    }
    expect(r, '}');
}

/* {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]}; of these the last is what matters here. */
static void read_tensor(reader *r, ve_tensor *tensor, const unsigned char *data, size_t first, size_t data_bytes) {
    uint64_t offsets[2] = {1, 0};
    expect(r, '{');
    while (!r->bad && !next_is(r, '}')) {
        char key[32], value[16];
        read_string(r, key, sizeof key);
        expect(r, ':');
        if (next_is(r, '"')) {
            read_string(r, value, sizeof value);
        } else {
            expect(r, '[');
            for (int i = 0; !r->bad && !next_is(r, ']'); i++) {
                uint64_t number = read_number(r);
                if (strcmp(key, "data_offsets") == 0 && i < 2) offsets[i] = number;
                if (!next_is(r, ']')) expect(r, ',');
            }
            expect(r, ']');
        }
        if (!next_is(r, '}')) expect(r, ',');
    }
    expect(r, '}');
    /* One behind the other and without gaps, as the format asks: then no digit of the header can be another. */
    if (offsets[0] != first || offsets[0] > offsets[1] || offsets[1] > data_bytes) r->bad = 1;
    if (r->bad) return;
    tensor->data = data + offsets[0];
    tensor->bytes = (size_t)(offsets[1] - offsets[0]);
}

static void read_header(reader *r, ve_tensors *tensors, const unsigned char *data, size_t data_bytes) {
    size_t taken = 0;
    expect(r, '{');
    while (!r->bad && !next_is(r, '}')) {
        char name[64];
        read_string(r, name, sizeof name);
        expect(r, ':');
        if (strcmp(name, "__metadata__") == 0) {
            read_metadata(r, tensors);
        } else if (tensors->count == VE_MOST_TENSORS) {
            r->bad = 1;
        } else {
            ve_tensor *tensor = &tensors->tensors[tensors->count++];
            memcpy(tensor->name, name, sizeof name);
            read_tensor(r, tensor, data, taken, data_bytes);
            taken += tensor->bytes;
        }
        if (!next_is(r, '}')) expect(r, ',');
    }
    expect(r, '}');
    skip_space(r);
    if (r->at != r->end || taken != data_bytes) r->bad = 1;
}

static ve_status read_file(const char *path, unsigned char **bytes, size_t *count) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return ve_fail(VE_ERROR_FILE, "ve_open: %s cannot be opened: %s.", path, strerror(errno));
    long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    ve_status status = VE_OK;
    if (size < PREFIX || size > MOST_FILE_BYTES || fseek(file, 0, SEEK_SET) != 0)
        status = ve_fail(VE_ERROR_FILE, "ve_open: %s is no network file: it has %ld bytes.", path, size);
    *bytes = status == VE_OK ? malloc((size_t)size) : NULL;
    if (status == VE_OK && *bytes == NULL)
        status = ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the %ld bytes of %s.", size, path);
    if (status == VE_OK && fread(*bytes, 1, (size_t)size, file) != (size_t)size)
        status = ve_fail(VE_ERROR_FILE, "ve_open: %s cannot be read to its end: %s.", path, strerror(errno));
    (void)fclose(file);
    *count = status == VE_OK ? (size_t)size : 0;
    return status;
}

ve_status ve_tensors_read(const char *path, ve_tensors *tensors) {
    memset(tensors, 0, sizeof *tensors);
    size_t size = 0;
    ve_status status = read_file(path, &tensors->file, &size);
    if (status == VE_OK) {
        uint64_t header = 0;
        for (int i = PREFIX - 1; i >= 0; i--) header = header << 8 | tensors->file[i];
        if (header < 2 || header > MOST_HEADER_BYTES || header > size - PREFIX) {
            status = ve_fail(VE_ERROR_FILE, "ve_open: %s is no network file: its header would have %llu bytes.", path,
                             (unsigned long long)header);
        } else {
            const unsigned char *data = tensors->file + PREFIX + header;
            size_t data_bytes = size - PREFIX - (size_t)header;
            reader r = {(const char *)tensors->file + PREFIX, (const char *)data, 0};
            read_header(&r, tensors, data, data_bytes);
            char digest[65];
            ve_sha256(data, data_bytes, digest);
            if (r.bad)
                status = ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its header is not one of a network file.", path);
            else if (strcmp(digest, tensors->sha256) != 0)
                status = ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its SHA-256 is %s, its header says %s.", path, digest,
                                 tensors->sha256[0] ? tensors->sha256 : "nothing");
        }
    }
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
