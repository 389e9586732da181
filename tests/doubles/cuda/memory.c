/* Memory of the device and pinned memory of the host: blocks of host memory with a canary behind them. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 512
#define CANARY_BYTES 64
#define CANARY 0x5c
#define FRESH 0xa5

enum { PORTABLE = 1, DEVICE_MAP = 2, WRITE_COMBINED = 4 };
enum { OF_DEVICE, OF_HOST };

/* `address` is the host's pointer, without the mark; `written` has a byte for each byte, as double_memory has it. */
typedef struct block {
    uint64_t address;
    size_t bytes;
    int kind;
    unsigned int flags;
    context *of;
    unsigned char *written;
} block;

static block *blocks;
static int block_count, block_room;

static block *block_at(uint64_t address) {
    address &= ~MARK_BITS;
    for (int i = 0; i < block_count; i++)
        if (address >= blocks[i].address && address - blocks[i].address < blocks[i].bytes) return &blocks[i];
    return NULL;
}

int is_marked(uint64_t address) { return (address & MARK_BITS) == DEVICE_MARK; }
int is_known(uint64_t address) { return block_at(address) != NULL; }

void *reachable(uint64_t address, size_t bytes, int by_device) {
    block *in = block_at(address);
    if (in == NULL || bytes > in->bytes - ((address & ~MARK_BITS) - in->address)) return NULL;
    if (in->kind == OF_DEVICE && !is_marked(address)) return NULL;
    if (by_device && in->kind == OF_HOST && !(in->flags & DEVICE_MAP)) return NULL;
    return (void *)(uintptr_t)(address & ~MARK_BITS);
}

/* Note that bytes of an allocation of the device's were written, with what was copied from another one, if it was. */
static void note_written(const void *target, const void *source, size_t bytes) {
    const block *to = block_at((uint64_t)(uintptr_t)target), *from = block_at((uint64_t)(uintptr_t)source);
    if (to == NULL || to->kind != OF_DEVICE) return;
    unsigned char *first = to->written + ((uint64_t)(uintptr_t)target - to->address);
    if (from != NULL)
        memmove(first, from->written + ((uint64_t)(uintptr_t)source - from->address), bytes);
    else
        memset(first, 1, bytes);
}

int memory_held(int kind) {
    int count = 0;
    for (int i = 0; i < block_count; i++) count += blocks[i].kind == kind;
    return count;
}

long long memory_bytes(int kind) {
    long long sum = 0;
    for (int i = 0; i < block_count; i++) sum += blocks[i].kind == kind ? (long long)blocks[i].bytes : 0;
    return sum;
}

static long long bytes_of_device(const context *of) {
    int ordinal = device_of(of) - DOUBLE_FIRST_DEVICE, capability = (int)device_number("DOUBLE_CC", ordinal, 87);
    int shared = (int)device_number("DOUBLE_INTEGRATED", ordinal, capability == 87 || capability == 110);
    long long sum = 0;
    for (int i = 0; i < block_count; i++)
        if (blocks[i].of == of && (shared || blocks[i].kind == OF_DEVICE)) sum += (long long)blocks[i].bytes;
    return sum;
}

static int allocate(int kind, size_t bytes, unsigned int flags, context *here, uint64_t *address) {
    if (bytes == 0) return INVALID_VALUE;
    long long limit = memory_limit(device_of(here) - DOUBLE_FIRST_DEVICE);
    if ((long long)bytes < 0 || (long long)bytes > limit || bytes_of_device(here) > limit - (long long)bytes) return OUT_OF_MEMORY;
    if (block_count == block_room) {
        block *more = realloc(blocks, (size_t)(block_room + 64) * sizeof *blocks);
        if (more == NULL) return OUT_OF_MEMORY;
        blocks = more;
        block_room += 64;
    }
    size_t whole = (bytes + CANARY_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    unsigned char *memory = aligned_alloc(ALIGNMENT, whole), *written = calloc(bytes, 1);
    if (memory == NULL || written == NULL) {
        free(memory);
        free(written);
        return OUT_OF_MEMORY;
    }
    if (kind == OF_HOST) memset(written, 1, bytes); /* the host writes it, and nobody sees that */
    memset(memory, FRESH, bytes);
    memset(memory + bytes, CANARY, whole - bytes);
    *address = (uint64_t)(uintptr_t)memory;
    blocks[block_count++] = (block){*address, bytes, kind, flags, here, written};
    return 0;
}

static void release(block *which) {
    unsigned char *memory = (void *)(uintptr_t)which->address;
    size_t whole = (which->bytes + CANARY_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    for (size_t i = which->bytes; i < whole; i++)
        if (memory[i] != CANARY) {
            add_fault("A block of %zu bytes was written beyond its end (byte %zu).", which->bytes, i);
            break;
        }
    free(memory);
    free(which->written);
    *which = blocks[--block_count];
    if (block_count == 0) {
        free(blocks);
        blocks = NULL;
        block_room = 0;
    }
}

void drop_memory(const context *of, int abandoned) {
    for (int i = block_count - 1; i >= 0; i--)
        if (blocks[i].of == of) {
            release(&blocks[i]);
            abandoned_count += abandoned;
        }
}

EXPORT_NEW int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    context *here;
    int code = enter(ID_cuMemAlloc_v2, &here);
    if (code != 0) return code;
    code = check_unsafe(here);
    if (code == 0) code = allocate(OF_DEVICE, bytes, 0, here, pointer);
    if (code == 0) *pointer |= DEVICE_MARK;
    return leave(code);
}

static int give_back(int function, uint64_t address, int kind) {
    context *here;
    int code = enter_to_give_back(function, &here);
    if (code != 0) return code;
    if (here->error == 0) code = check_unsafe(here);
    if (code != 0) return leave(code);
    block *in = block_at(address);
    if (in == NULL || in->kind != kind || in->address != (address & ~MARK_BITS) || is_marked(address) != (kind == OF_DEVICE)) {
        if (here->error == 0) add_fault("Memory was given back that is not held (0x%llx).", (unsigned long long)address);
        return leave(here->error != 0 ? here->error : INVALID_VALUE);
    }
    if (in->of != here && !(in->flags & PORTABLE)) return leave(INVALID_VALUE);
    release(in);
    return leave(here->error);
}

EXPORT_NEW int cuMemFree_v2(uint64_t pointer) { return give_back(ID_cuMemFree_v2, pointer, OF_DEVICE); }

static int allocate_host(int function, void **pointer, size_t bytes, unsigned int flags) {
    context *here;
    uint64_t address = 0;
    int code = enter(function, &here);
    if (code != 0) return code;
    code = flags > (PORTABLE | DEVICE_MAP | WRITE_COMBINED) ? INVALID_VALUE : check_unsafe(here);
    if (code == 0) code = allocate(OF_HOST, bytes, flags, here, &address);
    if (code == 0) *pointer = (void *)(uintptr_t)address;
    return leave(code);
}

EXPORT_NEW int cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags) {
    return allocate_host(ID_cuMemHostAlloc, pointer, bytes, flags);
}

EXPORT_NEW int cuMemAllocHost_v2(void **pointer, size_t bytes) { return allocate_host(ID_cuMemAllocHost_v2, pointer, bytes, 0); }

EXPORT_NEW int cuMemFreeHost(void *pointer) { return give_back(ID_cuMemFreeHost, (uint64_t)(uintptr_t)pointer, OF_HOST); }

EXPORT_NEW int cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *host, unsigned int flags) {
    context *here;
    int code = enter(ID_cuMemHostGetDevicePointer_v2, &here);
    if (code != 0) return code;
    block *in = block_at((uint64_t)(uintptr_t)host);
    if (flags != 0 || in == NULL || in->kind != OF_HOST || !(in->flags & DEVICE_MAP)) return leave(INVALID_VALUE);
    *pointer = (uint64_t)(uintptr_t)host | DEVICE_MARK;
    return leave(0);
}

EXPORT_NEW int cuMemGetInfo_v2(size_t *free_bytes, size_t *all_bytes) {
    context *here;
    int code = enter(ID_cuMemGetInfo_v2, &here);
    if (code != 0) return code;
    long long limit = memory_limit(device_of(here) - DOUBLE_FIRST_DEVICE);
    *all_bytes = (size_t)limit;
    *free_bytes = (size_t)(limit - bytes_of_device(here));
    return leave(0);
}

EXPORT_NEW int cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
    int code = count_call(ID_cuPointerGetAttribute);
    if (code != 0) return code;
    pthread_mutex_lock(&lock);
    block *in = block_at(pointer);
    if (in == NULL || (in->kind == OF_DEVICE && !is_marked(pointer))) return leave(INVALID_VALUE); /* ordinary memory is unknown */
    int has_device = in->kind == OF_DEVICE || (in->flags & DEVICE_MAP);
    uint64_t host = pointer & ~MARK_BITS;
    switch (attribute) {
        case 1: *(void **)value = in->of; break;
        case 2: *(unsigned int *)value = in->kind == OF_DEVICE ? 2 : 1; break;
        case 3: *(uint64_t *)value = host | DEVICE_MARK; code = has_device ? 0 : INVALID_VALUE; break;
        case 4: *(uint64_t *)value = host; code = in->kind == OF_HOST ? 0 : INVALID_VALUE; break;
        case 8: *(int *)value = 0; break; /* managed */
        case 9: *(int *)value = device_of(in->of) - DOUBLE_FIRST_DEVICE; break;
        case 11: *(uint64_t *)value = in->address | (is_marked(pointer) ? DEVICE_MARK : 0); break;
        case 12: *(size_t *)value = in->bytes; break;
        default: code = INVALID_VALUE;
    }
    return leave(code);
}

EXPORT_NEW void *double_host_address(uint64_t address, size_t bytes) {
    pthread_mutex_lock(&lock);
    void *found = reachable(address, bytes, 1);
    if (found != NULL) note_written(found, NULL, bytes);
    pthread_mutex_unlock(&lock);
    return found;
}

EXPORT_NEW int double_memory_at(int n, double_memory *found) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count; i++) {
        if (blocks[i].kind == OF_HOST && !(blocks[i].flags & DEVICE_MAP)) continue;
        if (n-- > 0) continue;
        *found = (double_memory){blocks[i].address, blocks[i].bytes, blocks[i].written};
        return leave(1);
    }
    return leave(0);
}

/* ---- Copies ---- */

/* A side of a copy: pinned or device memory wholly inside one allocation, or memory that the driver does not know, which is trusted. */
static void *side(uint64_t address, size_t bytes) {
    if (is_marked(address) || is_known(address)) return reachable(address, bytes, 0);
    return (void *)(uintptr_t)address;
}

int copy_now(const transfer *what) {
    unsigned char *target = side(what->to, (what->rows - 1) * what->to_pitch + what->bytes);
    const unsigned char *source = side(what->from, (what->rows - 1) * what->from_pitch + what->bytes);
    if (target == NULL || source == NULL) return ILLEGAL_ADDRESS;
    for (size_t row = 0; row < what->rows; row++) {
        memmove(target + row * what->to_pitch, source + row * what->from_pitch, what->bytes);
        note_written(target + row * what->to_pitch, source + row * what->from_pitch, what->bytes);
    }
    return 0;
}

enum { ANY, DEVICE_SIDE, HOST_SIDE };

static int fits(uint64_t address, int kind) {
    return kind == ANY || (kind == DEVICE_SIDE) == is_marked(address) || (kind == DEVICE_SIDE && is_known(address));
}

static int copy(int function, transfer what, int to_kind, int from_kind, int blocking, void *stream) {
    context *here;
    int code = enter(function, &here);
    if (code != 0) return code;
    if (what.bytes == 0 || what.rows == 0) return leave(0);
    if (what.to == 0 || what.from == 0 || !fits(what.to, to_kind) || !fits(what.from, from_kind)) return leave(INVALID_VALUE);
    if (!blocking) return leave(enqueue_copy(stream, here, what));
    code = check_unsafe(here);
    if (code == 0) code = drain_default(here);
    if (code == 0) code = here->error = copy_now(&what);
    return leave(code);
}

static transfer one_row(uint64_t to, uint64_t from, size_t bytes) { return (transfer){to, from, bytes, 1, bytes, bytes}; }

static uint64_t address(const void *host) { return (uint64_t)(uintptr_t)host; }

EXPORT_NEW int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    return copy(ID_cuMemcpyAsync, one_row(to, from, bytes), ANY, ANY, 0, stream);
}

EXPORT_NEW int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    return copy(ID_cuMemcpyHtoDAsync_v2, one_row(to, address(from), bytes), DEVICE_SIDE, HOST_SIDE, 0, stream);
}

EXPORT_NEW int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    return copy(ID_cuMemcpyDtoHAsync_v2, one_row(address(to), from, bytes), HOST_SIDE, DEVICE_SIDE, 0, stream);
}

EXPORT_NEW int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    return copy(ID_cuMemcpyDtoDAsync_v2, one_row(to, from, bytes), DEVICE_SIDE, DEVICE_SIDE, 0, stream);
}

EXPORT_NEW int cuMemcpy(uint64_t to, uint64_t from, size_t bytes) {
    return copy(ID_cuMemcpy, one_row(to, from, bytes), ANY, ANY, 1, NULL);
}

EXPORT_NEW int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    return copy(ID_cuMemcpyHtoD_v2, one_row(to, address(from), bytes), DEVICE_SIDE, HOST_SIDE, 1, NULL);
}

EXPORT_NEW int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    return copy(ID_cuMemcpyDtoH_v2, one_row(address(to), from, bytes), HOST_SIDE, DEVICE_SIDE, 1, NULL);
}

/* One side of CUDA_MEMCPY2D_v2 of cuda.h. */
typedef struct side_2d {
    size_t x, y;
    unsigned int type; /* CUmemorytype: 1 host, 2 device, 3 array, 4 unified */
    const void *host;
    uint64_t device;
    void *array;
    size_t pitch; /* 0: rows without gaps */
} side_2d;

typedef struct copy_2d {
    side_2d from, to;
    size_t width, height;
} copy_2d;

static uint64_t start_of(const side_2d *side, size_t pitch) {
    return (side->type == 1 ? address(side->host) : side->device) + side->y * pitch + side->x;
}

EXPORT_NEW int cuMemcpy2DAsync_v2(const copy_2d *what, void *stream) {
    size_t to_pitch = what->to.pitch != 0 ? what->to.pitch : what->width;
    size_t from_pitch = what->from.pitch != 0 ? what->from.pitch : what->width;
    int knows_types = what->to.type >= 1 && what->to.type <= 2 && what->from.type >= 1 && what->from.type <= 2;
    transfer rows = {start_of(&what->to, to_pitch), start_of(&what->from, from_pitch), what->width, what->height, to_pitch, from_pitch};
    if (!knows_types || to_pitch < what->to.x + what->width || from_pitch < what->from.x + what->width)
        rows.to = 0; /* which is refused */
    return copy(ID_cuMemcpy2DAsync_v2, rows, what->to.type == 1 ? HOST_SIDE : DEVICE_SIDE,
                what->from.type == 1 ? HOST_SIDE : DEVICE_SIDE, 0, stream);
}
