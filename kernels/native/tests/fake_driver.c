#include "fake_driver.h"

#include <elf.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_CONTEXTS 16
#define MAX_KERNELS 4096
#define MAX_OPERATIONS 16
#define MAX_STREAMS 64
#define MAX_MEMORY_BYTES (64u << 20)  /* that one call gives */

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500, TOO_LARGE = 720 };
enum { ATTRIBUTE_REQUIRED_THREADS = 0x10, ATTRIBUTE_PARAMETER = 0x17, FORMAT_SIZED = 4 };

typedef struct library {
    const unsigned char *image;
    int architecture;
    int loaded;
} library;

/* Something that a stream does: a copy where `bytes` is above 0, else a launch. */
typedef struct operation {
    uint64_t to, from;
    size_t bytes;
    fake_launch launch;
} operation;

/* A stream, and what it is to do: at its synchronization, or when it is captured, never. A graph is the same. */
typedef struct stream {
    int capturing, count;
    operation operations[MAX_OPERATIONS];
} stream;

typedef struct kernel {
    library *from;
    char entry[64];
    int parameter_count;
    int sizes[FAKE_MAX_PARAMETERS];
    unsigned int required_threads;
} kernel;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int contexts[MAX_CONTEXTS]; /* the address of entry n is the context of device n; the value counts its holders */
static library libraries[MAX_KERNELS];
static kernel kernels[MAX_KERNELS];
static int library_count, kernel_count, launch_count, initialized;
static fake_launch last;
static fake_kernel run_kernel;
static int memory_count, host_count, stream_count, graph_count, graph_launch_count;
static _Thread_local int *stack[MAX_CONTEXTS];
static _Thread_local int depth;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text == NULL ? otherwise : atoi(text);
}

static int *current(void) { return depth > 0 ? stack[depth - 1] : NULL; }

EXPORT int fake_launch_count(void) { return launch_count; }
EXPORT void fake_last_launch(fake_launch *launch) { *launch = last; }
EXPORT int fake_current(void) { return current() == NULL ? -1 : (int)(current() - contexts) + FAKE_FIRST_HANDLE; }
EXPORT void fake_set_current(int handle) {
    depth = 0;
    if (handle >= 0) stack[depth++] = &contexts[handle - FAKE_FIRST_HANDLE];
}
EXPORT void fake_run_with(fake_kernel kernel) { run_kernel = kernel; }
EXPORT int fake_graph_launch_count(void) { return graph_launch_count; }
EXPORT int fake_resources_held(void) { return memory_count + host_count + stream_count + graph_count; }
EXPORT int fake_contexts_retained(void) {
    int sum = 0;
    for (int i = 0; i < MAX_CONTEXTS; i++) sum += contexts[i];
    return sum;
}
EXPORT int fake_libraries_loaded(void) {
    int sum = 0;
    for (int i = 0; i < library_count; i++) sum += libraries[i].loaded;
    return sum;
}

EXPORT int cuInit(unsigned int flags) {
    if (flags != 0) return INVALID_VALUE;
    int error = number("FAKE_INIT_ERROR", 0);
    initialized = error == 0;
    return error;
}

EXPORT int cuGetErrorString(int error, const char **text) {
    *text = error == NO_BINARY ? "no kernel image is available for the device" : "made up by the test double";
    return 0;
}

#ifndef FAKE_OLD_DRIVER

EXPORT int cuDeviceGet(int *device, int ordinal) {
    if (!initialized) return 3;
    if (ordinal < 0 || ordinal >= number("FAKE_DEVICES", 1)) return INVALID_DEVICE;
    *device = ordinal + FAKE_FIRST_HANDLE;
    return 0;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device < FAKE_FIRST_HANDLE || (attribute != 16 && attribute != 75 && attribute != 76)) return INVALID_VALUE;
    if (attribute == 16) {
        *value = number("FAKE_MULTIPROCESSORS", 16);
        return 0;
    }
    int capability = number("FAKE_CC", 87);
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRetain(int **context, int device) {
    *context = &contexts[device - FAKE_FIRST_HANDLE];
    **context += 1;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    if (contexts[device - FAKE_FIRST_HANDLE] == 0) return INVALID_CONTEXT;
    contexts[device - FAKE_FIRST_HANDLE] -= 1;
    return 0;
}

EXPORT int cuCtxPushCurrent_v2(int *context) {
    if (depth == MAX_CONTEXTS || *context == 0) return INVALID_CONTEXT;
    stack[depth++] = context;
    return 0;
}

EXPORT int cuCtxPopCurrent_v2(int **context) {
    if (depth == 0) return INVALID_CONTEXT;
    *context = stack[--depth];
    return 0;
}

EXPORT int cuCtxGetDevice(int *device) {
    if (current() == NULL) return INVALID_CONTEXT;
    *device = fake_current();
    return 0;
}

static const Elf64_Ehdr *header(const unsigned char *image) { return (const Elf64_Ehdr *)(const void *)image; }

static const Elf64_Shdr *section(const unsigned char *image, const char *wanted) {
    const Elf64_Shdr *all = (const Elf64_Shdr *)(const void *)(image + header(image)->e_shoff);
    const char *names = (const char *)image + all[header(image)->e_shstrndx].sh_offset;
    for (int i = 0; i < header(image)->e_shnum; i++)
        if (strcmp(names + all[i].sh_name, wanted) == 0) return &all[i];
    return NULL;
}

EXPORT int cuLibraryLoadData(library **made, const void *code, int *a, void **b, unsigned int options, int *c, void **d,
                             unsigned int library_options) {
    const Elf64_Ehdr *elf = code;
    if (a != NULL || b != NULL || c != NULL || d != NULL || options != 0 || library_options != 0) return INVALID_VALUE;
    if (memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0 || elf->e_machine != EM_CUDA) return INVALID_VALUE;
    /* The architecture is in the lowest byte of the flags up to ABI version 7, in the one above it from 8 on. */
    int architecture = (int)(elf->e_flags >> (elf->e_ident[EI_ABIVERSION] >= 8 ? 8 : 0) & 0xff);
    int capability = number("FAKE_CC", 87);
    if (architecture / 10 != capability / 10 || architecture > capability) return NO_BINARY;
    if (architecture >= 90 && architecture != capability) return NO_BINARY;
    pthread_mutex_lock(&lock);
    int slot = 0;
    while (slot < library_count && libraries[slot].loaded) slot++;
    if (slot < MAX_KERNELS) {
        *made = &libraries[slot];
        **made = (library){code, architecture, 1};
        if (slot == library_count) library_count++;
    }
    pthread_mutex_unlock(&lock);
    return slot < MAX_KERNELS ? 0 : OUT_OF_MEMORY;
}

EXPORT int cuLibraryUnload(library *which) {
    if (!which->loaded) return INVALID_VALUE;
    which->loaded = 0;
    return 0;
}

/* Read the entry's parameters and required threads from its information section: records of format, attribute and 16 bits of
 * size or value, followed by that many bytes where the format says so. */
static int read_kernel(kernel *made) {
    char name[96] = ".nv.info.";
    strcat(name, made->entry);
    const Elf64_Shdr *info = section(made->from->image, name);
    if (info == NULL || info->sh_type == SHT_NOBITS) return NOT_FOUND;
    const unsigned char *at = made->from->image + info->sh_offset, *end = at + info->sh_size;
    while (at < end) {
        uint16_t size;
        memcpy(&size, at + 2, sizeof size);
        if (at[0] == FORMAT_SIZED && at[1] == ATTRIBUTE_REQUIRED_THREADS) memcpy(&made->required_threads, at + 4, 4);
        if (at[0] == FORMAT_SIZED && at[1] == ATTRIBUTE_PARAMETER) {
            uint16_t ordinal;
            uint32_t flags;
            memcpy(&ordinal, at + 8, sizeof ordinal);
            memcpy(&flags, at + 12, sizeof flags);
            if (ordinal >= FAKE_MAX_PARAMETERS || made->sizes[ordinal] != 0 || flags >> 18 > sizeof(uint64_t)) return INVALID_VALUE;
            made->sizes[ordinal] = (int)(flags >> 18);
            made->parameter_count++;
        }
        at += 4 + (at[0] == FORMAT_SIZED ? size : 0);
    }
    return made->parameter_count == number("FAKE_PARAMETERS", made->parameter_count) ? 0 : INVALID_VALUE;
}

EXPORT int cuLibraryGetKernel(kernel **made, library *from, const char *name) {
    pthread_mutex_lock(&lock);
    int slot = 0; /* one that nobody has, or that was of code unloaded since */
    while (slot < kernel_count && kernels[slot].from->loaded && kernels[slot].from != from) slot++;
    *made = slot < MAX_KERNELS ? &kernels[slot] : NULL;
    if (*made != NULL) **made = (kernel){.from = from};
    if (slot == kernel_count && slot < MAX_KERNELS) kernel_count++;
    pthread_mutex_unlock(&lock);
    if (*made == NULL) return OUT_OF_MEMORY;
    strncpy((*made)->entry, name, sizeof(*made)->entry - 1);
    return read_kernel(*made);
}

EXPORT int cuKernelSetAttribute(int attribute, int value, kernel *which, int device) {
    return attribute == 8 && value > 49152 && which->from->loaded && device >= FAKE_FIRST_HANDLE ? 0 : INVALID_VALUE;
}

static stream *streams[MAX_STREAMS];
static int do_or_record(operation what, void *where);

static int launch_kernel(kernel *which, int cooperative, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                         unsigned int by, unsigned int bz, unsigned int shared_bytes, void *stream, void **arguments);

EXPORT int cuLaunchKernel(kernel *which, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                          unsigned int by, unsigned int bz, unsigned int shared_bytes, void *stream, void **arguments,
                          void **extra) {
    if (extra != NULL) return INVALID_VALUE;
    return launch_kernel(which, 0, gx, gy, gz, bx, by, bz, shared_bytes, stream, arguments);
}

/* There is room for one program on each multiprocessor. */
EXPORT int cuLaunchCooperativeKernel(kernel *which, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                                     unsigned int by, unsigned int bz, unsigned int shared_bytes, void *stream,
                                     void **arguments) {
    if (gx * gy * gz > (unsigned int)number("FAKE_ROOM", number("FAKE_MULTIPROCESSORS", 16))) return TOO_LARGE;
    return launch_kernel(which, 1, gx, gy, gz, bx, by, bz, shared_bytes, stream, arguments);
}

static int launch_kernel(kernel *which, int cooperative, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                         unsigned int by, unsigned int bz, unsigned int shared_bytes, void *stream, void **arguments) {
    int error = number("FAKE_LAUNCH_ERROR", 0);
    if (error != 0) return error;
    if (current() == NULL || *current() == 0) return INVALID_CONTEXT;
    if (!which->from->loaded || bx * by * bz != which->required_threads) return INVALID_VALUE;
    fake_launch launch = {.architecture = which->from->architecture,
                          .image = which->from->image,
                          .device = fake_current(),
                          .cooperative = cooperative,
                          .grid = {gx, gy, gz},
                          .block = {bx, by, bz},
                          .shared_bytes = shared_bytes,
                          .stream = stream,
                          .parameter_count = which->parameter_count};
    memcpy(launch.entry, which->entry, sizeof launch.entry);
    for (int i = 0; i < which->parameter_count; i++) {
        launch.sizes[i] = which->sizes[i];
        memcpy(&launch.values[i], arguments[i], (size_t)which->sizes[i]);
    }
    return do_or_record((operation){.launch = launch}, stream);
}

/* Device memory is host memory with a mark in its highest bits, so that neither passes for the other. */
#define DEVICE_MARK (UINT64_C(0x7d) << 56)
#define MARK_BITS (UINT64_C(0xff) << 56)

static int is_device(uint64_t pointer) { return (pointer & MARK_BITS) == DEVICE_MARK; }

static void perform(const operation *what) {
    if (what->bytes > 0) {
        memcpy((void *)(uintptr_t)(what->to & ~MARK_BITS), (const void *)(uintptr_t)(what->from & ~MARK_BITS), what->bytes);
        return;
    }
    pthread_mutex_lock(&lock);
    last = what->launch;
    launch_count++;
    pthread_mutex_unlock(&lock);
    if (run_kernel != NULL) {
        fake_launch seen = what->launch;
        for (int i = 0; i < seen.parameter_count; i++)
            if (is_device(seen.values[i])) seen.values[i] &= ~MARK_BITS;
        run_kernel(&seen);
    }
}

/* Streams of the double put off what they do until they are synchronized; a handle that it does not know does it at once. */
static int do_or_record(operation what, void *where) {
    stream *on = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_STREAMS; i++)
        if (where != NULL && streams[i] == where) on = where;
    pthread_mutex_unlock(&lock);
    if (on == NULL) {
        perform(&what);
        return 0;
    }
    if (on->count == MAX_OPERATIONS) return INVALID_VALUE;
    on->operations[on->count++] = what;
    return 0;
}

static int no_context(void) { return current() == NULL || *current() == 0; }

EXPORT int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    if (current() == NULL || bytes == 0) return INVALID_VALUE;
    if (number("FAKE_MEMORY", 1 << 30) <= memory_count || bytes > MAX_MEMORY_BYTES) return OUT_OF_MEMORY;
    void *memory = malloc(bytes);
    memset(memory, 0xa5, bytes);
    *pointer = (uint64_t)(uintptr_t)memory | DEVICE_MARK;
    memory_count++;
    return 0;
}

EXPORT int cuMemFree_v2(uint64_t pointer) {
    if (no_context() || !is_device(pointer)) return INVALID_VALUE;
    free((void *)(uintptr_t)(pointer & ~MARK_BITS));
    memory_count--;
    return 0;
}

EXPORT int cuMemAllocHost_v2(void **pointer, size_t bytes) {
    if (no_context()) return INVALID_CONTEXT;
    *pointer = malloc(bytes);
    host_count++;
    return 0;
}

EXPORT int cuMemFreeHost(void *pointer) {
    if (no_context()) return INVALID_CONTEXT;
    free(pointer);
    host_count--;
    return 0;
}

EXPORT int cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
    if (attribute != 2) return INVALID_VALUE;
    if (!is_device(pointer)) return INVALID_VALUE; /* the driver does not know ordinary memory */
    *(unsigned int *)value = 2;
    return 0;
}

EXPORT int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void *where) {
    if (current() == NULL || bytes == 0) return INVALID_VALUE;
    return do_or_record((operation){.to = to, .from = from, .bytes = bytes}, where);
}

EXPORT int cuStreamCreate(stream **made, unsigned int flags) {
    if (current() == NULL || flags != 1) return INVALID_VALUE;
    *made = calloc(1, sizeof **made);
    pthread_mutex_lock(&lock);
    int slot = 0;
    while (slot < MAX_STREAMS - 1 && streams[slot] != NULL) slot++;
    streams[slot] = *made;
    stream_count++;
    pthread_mutex_unlock(&lock);
    return 0;
}

EXPORT int cuStreamDestroy_v2(stream *which) {
    if (no_context()) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_STREAMS; i++)
        if (streams[i] == which) streams[i] = NULL;
    stream_count--;
    pthread_mutex_unlock(&lock);
    free(which);
    return 0;
}

EXPORT int cuStreamSynchronize(stream *which) {
    if (which == NULL || which->capturing || no_context()) return INVALID_VALUE;
    for (int i = 0; i < which->count; i++) perform(&which->operations[i]);
    which->count = 0;
    return 0;
}

EXPORT int cuStreamBeginCapture_v2(stream *which, int mode) {
    if (which->capturing || mode != 1 || which->count != 0 || no_context()) return INVALID_VALUE;
    which->capturing = 1;
    return 0;
}

EXPORT int cuStreamEndCapture(stream *which, stream **graph) {
    if (!which->capturing) return INVALID_VALUE;
    which->capturing = 0;
    *graph = malloc(sizeof **graph);
    **graph = *which;
    which->count = 0;
    graph_count++;
    return 0;
}

EXPORT int cuGraphInstantiateWithFlags(stream **ready, const stream *graph, unsigned long long flags) {
    if (flags != 0) return INVALID_VALUE;
    *ready = malloc(sizeof **ready);
    **ready = *graph;
    graph_count++;
    return 0;
}

EXPORT int cuGraphLaunch(const stream *ready, stream *on) {
    if (no_context() || on->capturing || on->count + ready->count > MAX_OPERATIONS) return INVALID_VALUE;
    for (int i = 0; i < ready->count; i++) on->operations[on->count++] = ready->operations[i];
    graph_launch_count++;
    return 0;
}

EXPORT int cuGraphDestroy(stream *graph) {
    if (no_context()) return INVALID_CONTEXT;
    free(graph);
    graph_count--;
    return 0;
}

EXPORT int cuGraphExecDestroy(stream *ready) { return cuGraphDestroy(ready); }

#endif
