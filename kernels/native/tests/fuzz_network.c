/* Mutated network files: each is refused with a sentence, or opens as a network within the limits of vae_edge.h.
 * Built with address and undefined-behaviour sanitizers from the library's own sources, and run with the double of the driver.
 * Arguments: a network file, a folder to write in, how many files, and a seed. Files whose digest was not mended must be refused;
 * those of the last kinds carry a right digest, as a file by hand would, so that what is behind the digest is reached. */
#include <math.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "sha256.h"
#include "table.h"
#include "tensors.h"
#include "utf8.h"

#define DIGEST 64
#define MAX_LINES 64

const ve_table_entry ve_table[1]; /* the library's own kernels are not needed here */
const int ve_table_count = 0;

typedef struct bytes {
    unsigned char *data;
    size_t size;
} bytes;

static uint64_t state;

static size_t below(size_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit == 0 ? 0 : (size_t)(state % limit);
}

/* Put `text` in the place of `count` bytes at `at`. */
static void splice(bytes *b, size_t at, size_t count, const void *text, size_t length) {
    unsigned char *made = malloc(b->size - count + length + 1);
    CHECK(made != NULL && at + count <= b->size);
    memcpy(made, b->data, at);
    memcpy(made + at, text, length);
    memcpy(made + at + length, b->data + at + count, b->size - at - count);
    free(b->data);
    b->data = made;
    b->size += length - count;
}

static bytes copy_of(const unsigned char *data, size_t size) {
    bytes b = {malloc(size + 1), size};
    CHECK(b.data != NULL);
    memcpy(b.data, data, size);
    return b;
}

static size_t header_of(const bytes *b) {
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | b->data[i];
    return (size_t)header;
}

static void set_header(bytes *b, uint64_t header) {
    for (int i = 0; i < 8; i++) b->data[i] = (unsigned char)(header >> 8 * i);
}

/* What breaks readers of such texts. */
static const char *const pieces[] = {
    "\"", "{", "}", "[", "]", ",", ":", "\\", "\\\"", "\\u0000", "0", "-1", "1e9", "00", "18446744073709551615", "99999999999999999999",
    "268435457", "2147483648", "4294967296", "null", "\"cubin.87\":", "\"weights\":", "\"about\":", "\"__metadata__\":{", "\"sha256\":\"",
    "\"dtype\":\"F32\",", "\"shape\":[0,", "\"data_offsets\":[0,", "{\"\":", "[[[[[[[[", "U8", "I8", "F16", "F32", "BF16", "\x1b[31m",
    "\xff", "\xc0\x80", "\xed\xa0\x80", "\n", "=", "side=28\n", "side=40\n", "width=28\n", "width=0\n", "width=1025\n", "classes=4096\n", "classes=3\n", "class.0=x\n", "class.4095=y\n", "class.4096=\n",
    "class.00=z\n", "threshold_bits=2143289344\n", "threshold_bits=2139095040\n", "area_bytes=16777216\n", "floats=1\n", "nan", "inf", " ",
    "kernel.87=network 4 0 1\n", "spread.87=network 4 0 3\n", "spread.87=network 4 0 32\n", "spread.99=x 1 1 2\n", "kernel.87=", "  ", "\t"};

static void mutate_text(bytes *b, size_t first, size_t end, size_t *grown) {
    for (size_t rounds = 1 + below(3); rounds > 0 && end > first; rounds--) {
        size_t at = first + below(end - first), before = b->size, cut = below(2) * below(12);
        const char *piece = pieces[below(sizeof pieces / sizeof *pieces)];
        if (cut > end - at) cut = end - at;
        if (below(4) == 0) {
            b->data[at] ^= (unsigned char)(1u << below(8));
        } else {
            splice(b, at, cut, piece, below(5) == 0 ? 0 : strlen(piece));
        }
        *grown += b->size - before; /* modulo 2^64 */
        end += b->size - before;
    }
}

/* A file from tensors, as the format has it; the digest's place is zeros. */
static bytes build(const ve_tensor *tensors, int count, const char *format) {
    static const char *const dtypes[] = {"U8", "I8", "F16", "F32"};
    static const size_t widths[] = {1, 1, 2, 4};
    char header[16384];
    size_t used = 0, size = 0;
    used += (size_t)snprintf(header, sizeof header, "{\"__metadata__\":{\"format\":\"%s\",\"sha256\":\"%064d\"}", format, 0);
    for (int i = 0; i < count; i++) {
        const ve_tensor *t = &tensors[i];
        used += (size_t)snprintf(header + used, sizeof header - used, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                                 t->name, dtypes[t->element], t->bytes / widths[t->element], size, size + t->bytes);
        size += t->bytes;
    }
    header[used++] = '}';
    bytes b = {malloc(8 + used + size + 1), 8 + used + size};
    CHECK(b.data != NULL);
    set_header(&b, used);
    memcpy(b.data + 8, header, used);
    size_t at = 8 + used;
    for (int i = 0; i < count; at += tensors[i++].bytes) memcpy(b.data + at, tensors[i].data, tensors[i].bytes);
    return b;
}

/* Mend the digest, where the header still has a place for one. */
static void sign(bytes *b, const char *format) {
    static const char key[] = "\"sha256\":\"";
    size_t header = header_of(b);
    char digest[DIGEST + 1];
    if (header > b->size - 8) return;
    for (size_t at = 8; at + sizeof key - 1 + DIGEST <= 8 + header; at++) {
        if (memcmp(b->data + at, key, sizeof key - 1) != 0) continue;
        unsigned char *place = b->data + at + sizeof key - 1;
        memset(place, '0', DIGEST);
        size_t from = format[strlen(format) - 1] == '2' ? 8 + header : 0;
        ve_sha256(b->data + from, b->size - from, digest);
        memcpy(place, digest, DIGEST);
        return;
    }
}

/* One tensor's data changed, the rest as it was. */
static bytes with_tensor(const ve_tensors *file, int which, const bytes *data, const char *format) {
    ve_tensor tensors[VE_MAX_TENSORS];
    memcpy(tensors, file->tensors, sizeof tensors);
    tensors[which].data = data->data;
    tensors[which].bytes = data->size;
    return build(tensors, file->count, format);
}

static int index_of(const ve_tensors *file, const char *kind) {
    for (int i = 0; i < file->count; i++)
        if (strncmp(file->tensors[i].name, kind, strlen(kind)) == 0) return i;
    CHECK(!"the file has such a tensor");
    return -1;
}

/* Machine code whose header or tables are changed: numbers that point out of it. */
static void mutate_code(bytes *b) {
    uint64_t sections = 0;
    CHECK(b->size > 64);
    memcpy(&sections, b->data + 40, sizeof sections);
    for (size_t rounds = 1 + below(4); rounds > 0; rounds--) {
        size_t at = below(2) == 0 ? below(64) : (size_t)sections + below(b->size - (size_t)sections);
        uint64_t value = below(3) == 0 ? UINT64_MAX - below(64) : below(1u << 20);
        size_t width = (size_t)1 << below(4);
        if (at + width <= b->size) memcpy(b->data + at, &value, width);
    }
    if (below(8) == 0) b->size = below(b->size);
}

/* A mutated file of one of ten kinds; whether its digest was mended. */
static int mutate(int kind, const bytes *original, const ve_tensors *file, bytes *made) {
    static const char *const formats[] = {"vae-edge-network-3", "vae-edge-network-3", "vae-edge-network-2"};
    const char *format = formats[below(3)];
    size_t grown = 0;
    *made = copy_of(original->data, original->size);
    if (kind == 0) made->data[below(made->size)] ^= (unsigned char)(1u << below(8)); /* a bit, anywhere */
    if (kind == 1) { /* a bit of the header, of either format */
        free(made->data);
        *made = build(file->tensors, file->count, format);
        sign(made, format);
        made->data[8 + below(header_of(made))] ^= (unsigned char)(1u << below(8));
    }
    if (kind == 2) made->size = below(made->size);
    if (kind == 3) splice(made, made->size, 0, "and more", 1 + below(8));
    if (kind == 4) set_header(made, below(2) == 0 ? UINT64_MAX >> below(64) : below(made->size + 16));
    if (kind < 5) return 0;
    int which = index_of(file, kind < 7 ? "about" : kind == 7 ? "numbers" : "cubin");
    bytes data = copy_of(file->tensors[which].data, file->tensors[which].bytes);
    if (kind == 5 || kind == 6) mutate_text(&data, 0, data.size, &grown);
    if (kind == 7) { /* numbers, of which one may be NaN or infinite */
        for (int i = 0; i < 8; i++) data.data[below(data.size)] ^= (unsigned char)(1u << below(8));
        memset(data.data + below(data.size - 4), 0xff, 1 + below(4));
    }
    if (kind == 8) mutate_code(&data);
    free(made->data);
    *made = with_tensor(file, which, &data, format);
    free(data.data);
    if (kind == 9) { /* the header's text */
        size_t header = header_of(made);
        mutate_text(made, 8, 8 + header, &grown);
        if (below(8) != 0) set_header(made, header + grown);
    }
    sign(made, format);
    return 1;
}

static void check_sentence(void) {
    const char *text = ve_last_error();
    CHECK(strlen(text) > 0 && ve_is_utf8(text, strlen(text)));
    for (const char *c = text; *c != 0; c++) CHECK((unsigned char)*c >= 0x20 && *c != 0x7f);
}

static void check_network(ve_network *network) {
    ve_network_info info;
    CHECK(ve_network_get_info(network, &info) == VE_OK);
    int height = 0, width = 0;
    CHECK(ve_network_get_size(network, &height, &width) == VE_OK);
    CHECK(height >= 1 && height <= VE_MAX_SIDE && width >= 1 && width <= VE_MAX_SIDE && info.side == (height == width ? height : 0));
    CHECK(info.channels >= 1 && info.channels <= VE_MAX_CHANNELS);
    CHECK(info.classes >= 2 && info.classes <= VE_MAX_CLASSES && isfinite(info.threshold));
    CHECK(info.has_angle == 0 || info.has_angle == 1);
    for (int i = 0; i < info.classes; i++) {
        size_t length = strlen(info.class_names[i]);
        CHECK(length >= 1 && length <= VE_MAX_CLASS_NAME_BYTES && ve_is_utf8(info.class_names[i], length));
    }
    uint8_t *image = calloc((size_t)height * (size_t)width, (size_t)info.channels);
    float *probabilities = calloc((size_t)info.classes, sizeof *probabilities), angle = 0, score = 0;
    CHECK(image != NULL && probabilities != NULL);
    CHECK(ve_classify(network, image, 1, probabilities, &angle, &score) == VE_OK);
    free(image);
    free(probabilities);
}

static bytes read_whole(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    bytes b = {malloc((size_t)ftell(file) + 1), (size_t)ftell(file)};
    rewind(file);
    CHECK(b.data != NULL && fread(b.data, 1, b.size, file) == b.size && fclose(file) == 0);
    return b;
}

static void write_whole(const char *path, const bytes *b) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(b->data, 1, b->size, file) == b->size && fclose(file) == 0);
}

int main(int count, char **values) {
    CHECK(count == 5);
    char path[512];
    (void)snprintf(path, sizeof path, "%s/fuzzed-%ld.ve", values[2], (long)getpid());
    long files = atol(values[3]);
    int opened = 0, kinds[10] = {0};
    clock_t start = clock();
    bytes original = read_whole(values[1]);
    ve_tensors file;
    ve_network *network = NULL;
    CHECK(ve_open(values[1], 0, &network) == VE_OK);
    check_network(network);
    CHECK(ve_close(network) == VE_OK && ve_tensors_read(values[1], &file) == VE_OK);
    for (long i = 0; i < files; i++) {
        bytes made;
        state = (uint64_t)strtoull(values[4], NULL, 10) * 1000003u + (uint64_t)i * 0x9e3779b97f4a7c15u + 1;
        for (int j = 0; j < 8; j++) (void)below(2);
        int signed_again = mutate((int)(i % 10), &original, &file, &made);
        int same = made.size == original.size && memcmp(made.data, original.data, made.size) == 0;
        write_whole(path, &made);
        ve_status status = ve_open(path, 0, &network);
        if (status == VE_OK) {
            if (!signed_again && !same) (void)fprintf(stderr, "file %ld was changed and opened: %s\n", i, path);
            CHECK(signed_again || same);
            check_network(network);
            CHECK(ve_close(network) == VE_OK);
            opened++;
            kinds[i % 10]++;
        } else {
            int ours = status == VE_ERROR_FILE || status == VE_ERROR_DRIVER || status == VE_ERROR_OUT_OF_MEMORY;
            CHECK(network == NULL && (ours || status == VE_ERROR_UNSUPPORTED_DEVICE));
            check_sentence();
        }
        free(made.data);
    }
    (void)remove(path);
    ve_tensors_free(&file);
    free(original.data);
    printf("%ld files, %d opened, %ld refused, %.1f s of processor time; opened by kind:", files, opened, files - opened,
           (double)(clock() - start) / CLOCKS_PER_SEC);
    for (int i = 0; i < 10; i++) printf(" %d", kinds[i]);
    printf("\n");
    return 0;
}
