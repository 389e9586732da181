#include "description.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "machine_code.h"
#include "error.h"
#include "utf8.h"

#define MAX_SHARED_BYTES (1u << 20)
#define MAX_WARPS 32u
#define SHOWN 64 /* bytes of a value in a message */

/* The numbers, each of which stands once; WIDTH only where images are not square, and SIDE is their height then. `kinds` has a bit for
 * each ve_kind in which the number stands. */
enum {
    SIDE,
    WIDTH,
    CHANNELS,
    CLASSES,
    HAS_ANGLE,
    THRESHOLD_BITS,
    ACTIVATION_BYTES,
    WORKSPACE_SIZE,
    WEIGHTS_BYTES,
    PARAMS_BYTES,
    WHITENING_BYTES,
    INT8,
    FIELDS
};
#define NETWORK (1u << VE_NETWORK_FILE)
#define BOTH (NETWORK | 1u << VE_MACHINE_CODE)
#define DIGEST 64
static const struct {
    const char *key;
    uint32_t min, max;
    unsigned int kinds;
} fields[FIELDS] = {
    [SIDE] = {"side", 1, VE_MAX_SIDE, BOTH},
    [WIDTH] = {"width", 1, VE_MAX_SIDE, BOTH},
    [CHANNELS] = {"channels", 1, VE_MAX_CHANNELS, BOTH},
    [CLASSES] = {"classes", 2, VE_MAX_CLASSES, BOTH},
    [HAS_ANGLE] = {"has_angle", 0, 1, NETWORK},
    [THRESHOLD_BITS] = {"threshold_bits", 0, UINT32_MAX, NETWORK}, /* of a float, so that no locale matters */
    [ACTIVATION_BYTES] = {"area_bytes", 1, VE_MAX_SCRATCH_BYTES, BOTH},
    [WORKSPACE_SIZE] = {"floats", 1, VE_MAX_SCRATCH_BYTES / 4, BOTH},
    [WEIGHTS_BYTES] = {"weights_bytes", 1, VE_MAX_FILE_BYTES, BOTH},
    [PARAMS_BYTES] = {"numbers_bytes", 1, VE_MAX_FILE_BYTES, BOTH},
    [WHITENING_BYTES] = {"whitenings_bytes", 1, VE_MAX_FILE_BYTES, BOTH},
    [INT8] = {"int8", 0, 1, 1u << VE_MACHINE_CODE},
};

/* The lines while they are parsed. `values` of fields that have not been read yet are UNSET. */
typedef struct lines {
    const char *path;
    unsigned int kind; /* bit of the ve_kind */
    ve_description *to;
    uint64_t values[FIELDS];
    int names; /* how many have been read */
} lines;

#define UNSET UINT64_MAX

static ve_status damaged(const lines *l, const char *what, const char *key) {
    return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: %s: '%.*s'.", l->path, what, SHOWN, key);
}

/* Parse decimal digits alone, at most 10 of them; -1 where it is no number. */
static int64_t parse_uint(const char *text, size_t length) {
    int64_t value = 0;
    if (length < 1 || length > 10) return -1;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        value = value * 10 + (text[i] - '0');
    }
    return value;
}

static ve_status out_of_range(const char *path, int field, const char *value) {
    return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' must be a number from %lu to %lu; it is '%.*s'.", path, fields[field].key,
                   (unsigned long)fields[field].min, (unsigned long)fields[field].max, SHOWN, value);
}

static ve_status parse_number(lines *l, int field, const char *value) {
    if (l->values[field] != UNSET) return damaged(l, "a key of its description stands twice", fields[field].key);
    int64_t number = parse_uint(value, strlen(value));
    if (number < (int64_t)fields[field].min || number > (int64_t)fields[field].max) return out_of_range(l->path, field, value);
    l->values[field] = (uint64_t)number;
    return VE_OK;
}

static ve_status parse_class_name(lines *l, const char *key, const char *number, const char *value) {
    int64_t index = parse_uint(number, strlen(number));
    size_t length = strlen(value);
    if (index < 0 || index >= VE_MAX_CLASSES || (number[0] == '0' && number[1] != 0))
        return damaged(l, "a class has no number that there may be", key);
    if (l->to->names[index] != NULL) return damaged(l, "a key of its description stands twice", key);
    if (length < 1 || length > VE_MAX_CLASS_NAME_BYTES || !ve_is_utf8(value, length))
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: the name of class %d must be 1 to %d bytes of UTF-8; it is '%.*s'.", l->path,
                       (int)index, VE_MAX_CLASS_NAME_BYTES, SHOWN, value);
    l->to->names[index] = value;
    l->names++;
    return VE_OK;
}

static ve_status parse_layout_digest(lines *l, const char *value) {
    if (l->to->layout_sha256 != NULL) return damaged(l, "a key of its description stands twice", "layout_sha256");
    if (strlen(value) != DIGEST || strspn(value, "0123456789abcdef") != DIGEST)
        return damaged(l, "the digest of its layout is no SHA-256", value);
    l->to->layout_sha256 = value;
    return VE_OK;
}

/* Split a line at single spaces into an entry and three numbers; 0 where it has anything else. */
static int split_code_line(const char *value, ve_code_line *code) {
    unsigned int *const numbers[] = {&code->warps, &code->shared_bytes, &code->ctas_per_image};
    size_t length = strcspn(value, " ");
    if (length < 1 || length >= sizeof code->entry || value[length] == 0) return 0;
    for (size_t i = 0; i < length; i++)
        if (value[i] <= ' ' || value[i] > '~') return 0;
    memcpy(code->entry, value, length);
    code->entry[length] = 0;
    for (int i = 0; i < 3; i++) {
        value += length + 1;
        length = strcspn(value, " ");
        int64_t number = parse_uint(value, length);
        if (number < 0 || number > INT_MAX || (value[length] == 0) != (i == 2)) return 0;
        *numbers[i] = (unsigned int)number;
    }
    return 1;
}

/* CTAs an image must be a power of two, or they would wait for one another forever: see image_barrier in network_steps.py. */
static ve_status parse_code_line(lines *l, int multi_cta, const char *key, int architecture, const char *value) {
    ve_description *to = l->to;
    for (int i = 0; i < to->code_count; i++)
        if (to->codes[i].multi_cta == multi_cta && to->codes[i].architecture == architecture)
            return damaged(l, "a key of its description stands twice", key);
    if (to->code_count == VE_MAX_CODES) return damaged(l, "there is more machine code than there may be", key);
    ve_code_line code = {.multi_cta = multi_cta, .architecture = architecture};
    unsigned int min = multi_cta ? 2 : 1, max = multi_cta ? VE_MAX_CTAS_PER_IMAGE : 1;
    if (!split_code_line(value, &code) || code.warps < 1 || code.warps > MAX_WARPS || code.shared_bytes > MAX_SHARED_BYTES ||
        code.ctas_per_image < min || code.ctas_per_image > max || (code.ctas_per_image & (code.ctas_per_image - 1)) != 0)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' must be an entry, warps, bytes and programs; it is '%.*s'.", l->path,
                       key, SHOWN, value);
    to->codes[to->code_count++] = code;
    return VE_OK;
}

/* Parse one line, which ends with 0. */
static ve_status parse_line(lines *l, char *line) {
    char *value = strchr(line, '=');
    if (value == NULL) return damaged(l, "a line of its description is not key=value", line);
    *value++ = 0;
    for (int i = 0; i < FIELDS; i++)
        if ((fields[i].kinds & l->kind) != 0 && strcmp(line, fields[i].key) == 0) return parse_number(l, i, value);
    if (l->kind != NETWORK && strcmp(line, "layout_sha256") == 0) return parse_layout_digest(l, value);
    if (l->kind == NETWORK && strncmp(line, "class.", 6) == 0) return parse_class_name(l, line, line + 6, value);
    for (int multi_cta = 0; multi_cta < 2; multi_cta++) {
        int architecture = ve_architecture_of(line, multi_cta ? "spread" : "kernel");
        if (architecture > 0) return parse_code_line(l, multi_cta, line, architecture, value);
    }
    return damaged(l, "its description has a key that the format does not know", line);
}

/* Parse every line, from the first to the last. */
static ve_status parse_lines(lines *l, const ve_tensor *about) {
    char *at = l->to->text, *end = at + about->bytes;
    if (memchr(at, 0, about->bytes) != NULL) return damaged(l, "its description has a byte that is 0", "about");
    while (at < end) {
        char *stop = memchr(at, '\n', (size_t)(end - at));
        if (stop == NULL) return damaged(l, "its description does not end with a line break", "about");
        *stop = 0;
        ve_status status = parse_line(l, at);
        if (status != VE_OK) return status;
        at = stop + 1;
    }
    return VE_OK;
}

static ve_status check_fields(const lines *l) {
    for (int i = 0; i < FIELDS; i++)
        if (l->values[i] == UNSET && i != WIDTH && (fields[i].kinds & l->kind) != 0) return out_of_range(l->path, i, "missing");
    if (l->kind != NETWORK)
        return l->to->layout_sha256 != NULL ? VE_OK : damaged(l, "its description lacks a key", "layout_sha256");
    int classes = (int)l->values[CLASSES];
    for (int i = 0; i < classes; i++)
        if (l->to->names[i] == NULL) return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: class %d has no name.", l->path, i);
    if (l->names != classes)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: it names %d classes, where it says it has %d.", l->path, l->names, classes);
    if ((l->values[THRESHOLD_BITS] >> 23 & 0xff) == 0xff)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its threshold is not a finite number.", l->path);
    return VE_OK;
}

/* Whether a tensor's numbers are usable: none is NaN, and only a float32 is infinite (a limit that does not bind). */
static int is_sound(const ve_tensor *tensor) {
    size_t width = tensor->element == VE_F16 ? 2 : 4;
    if (tensor->element == VE_U8 || tensor->element == VE_I8) return 1;
    for (size_t at = 0; at < tensor->bytes; at += width) {
        uint32_t bits = 0;
        uint16_t half = 0;
        if (width == 2) {
            memcpy(&half, tensor->data + at, sizeof half);
            if ((half & 0x7c00) == 0x7c00) return 0;
        } else {
            memcpy(&bits, tensor->data + at, sizeof bits);
            if ((bits & 0x7fffffff) > 0x7f800000) return 0;
        }
    }
    return 1;
}

static ve_status find_buffer(const lines *l, const ve_tensors *file, const char *name, int field, int elements, const ve_tensor **found) {
    const ve_tensor *tensor = ve_tensors_find(file, name);
    size_t bytes = tensor == NULL ? 0 : tensor->bytes;
    if (tensor == NULL || bytes != l->values[field])
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' must be of %llu bytes; it is of %zu.", l->path, name,
                       (unsigned long long)l->values[field], bytes);
    if ((elements & 1 << tensor->element) == 0) return damaged(l, "a tensor is of another dtype than the format's", name);
    if (!is_sound(tensor)) return damaged(l, "a tensor has numbers that are not finite", name);
    *found = tensor;
    return VE_OK;
}

/* Each line about machine code finds its tensor, and each tensor of machine code its line. */
static ve_status find_codes(const lines *l, const ve_tensors *file) {
    int codes = 0;
    for (int i = 0; i < file->count; i++)
        codes += strncmp(file->tensors[i].name, "cubin.", 6) == 0 || strncmp(file->tensors[i].name, "spread.", 7) == 0;
    for (int i = 0; i < l->to->code_count; i++) {
        ve_code_line *code = &l->to->codes[i];
        char name[16];
        (void)snprintf(name, sizeof name, "%s.%d", code->multi_cta ? "spread" : "cubin", code->architecture);
        code->tensor = ve_tensors_find(file, name);
        if (code->tensor == NULL || code->tensor->element != VE_U8) return damaged(l, "the machine code of a line is missing", name);
        const char *why = ve_machine_code_fault(code->tensor->data, code->tensor->bytes);
        if (why != NULL)
            return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' is not machine code for a GPU: %s.", l->path, name, why);
    }
    if (codes == l->to->code_count) return VE_OK;
    return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: it has machine code %d times, and %d lines ('kernel.NN', 'spread.NN') about it.",
                   l->path, codes, l->to->code_count);
}

static ve_status find_buffers(const lines *l, const ve_tensors *file) {
    ve_description *to = l->to;
    ve_status status = find_buffer(l, file, "weights", WEIGHTS_BYTES, 1 << VE_F16 | 1 << VE_I8, &to->weights);
    if (status == VE_OK) status = find_buffer(l, file, "numbers", PARAMS_BYTES, 1 << VE_F32, &to->params);
    if (status == VE_OK) status = find_buffer(l, file, "whitenings", WHITENING_BYTES, 1 << VE_F16, &to->whitening);
    return status;
}

static ve_status read_fields(lines *l, const ve_tensors *file, const ve_tensor *about) {
    ve_description *to = l->to;
    ve_status status = parse_lines(l, about);
    if (status == VE_OK) status = check_fields(l);
    if (status == VE_OK && l->kind == NETWORK) status = find_buffers(l, file);
    if (status == VE_OK) status = find_codes(l, file);
    if (status == VE_OK && l->kind != NETWORK && file->count != to->code_count + 1)
        status = damaged(l, "it has a tensor that is no machine code", file->tensors[0].name);
    if (status != VE_OK) return status;
    if (l->kind == NETWORK) {
        uint32_t threshold = (uint32_t)l->values[THRESHOLD_BITS];
        memcpy(&to->threshold, &threshold, sizeof threshold);
        to->has_angle = (int)l->values[HAS_ANGLE];
    } else {
        to->int8 = (int)l->values[INT8];
    }
    to->height = (int)l->values[SIDE];
    to->width = l->values[WIDTH] == UNSET ? to->height : (int)l->values[WIDTH];
    to->channels = (int)l->values[CHANNELS];
    to->classes = (int)l->values[CLASSES];
    to->activation_bytes = (size_t)l->values[ACTIVATION_BYTES];
    to->workspace_size = (size_t)l->values[WORKSPACE_SIZE];
    to->weights_bytes = (size_t)l->values[WEIGHTS_BYTES];
    to->params_bytes = (size_t)l->values[PARAMS_BYTES];
    to->whitening_bytes = (size_t)l->values[WHITENING_BYTES];
    return VE_OK;
}

ve_status ve_description_read(const char *path, const ve_tensors *file, ve_description *description) {
    memset(description, 0, sizeof *description);
    lines l = {.path = path, .kind = 1u << file->kind, .to = description};
    for (int i = 0; i < FIELDS; i++) l.values[i] = UNSET;
    const ve_tensor *about = ve_tensors_find(file, "about");
    if (about == NULL || about->element != VE_U8 || about->bytes > VE_MAX_DESCRIPTION_BYTES)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: its description, 'about', must be of at most %d bytes; %s.", path,
                       VE_MAX_DESCRIPTION_BYTES, about == NULL ? "it is missing" : "it is not");
    description->text = malloc(about->bytes + 1);
    description->names = calloc(VE_MAX_CLASSES, sizeof *description->names);
    ve_status status = VE_OK;
    if (description->text == NULL || description->names == NULL) {
        status = ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the description of %s.", path);
    } else {
        memcpy(description->text, about->data, about->bytes);
        description->text[about->bytes] = 0;
        status = read_fields(&l, file, about);
    }
    if (status != VE_OK) ve_description_free(description);
    return status;
}

void ve_description_free(ve_description *description) {
    free(description->text);
    free(description->names);
    memset(description, 0, sizeof *description);
}

const ve_code_line *ve_description_code(const ve_description *description, int multi_cta, int device) {
    const ve_code_line *best = NULL;
    for (int i = 0; i < description->code_count; i++) {
        const ve_code_line *code = &description->codes[i];
        if (code->multi_cta == multi_cta && ve_runs_on(code->architecture, device) && (best == NULL || code->architecture > best->architecture))
            best = code;
    }
    return best;
}
