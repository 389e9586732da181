/* Machine code and launches: what the entry takes is read from the code, and a launch is recorded. */
#include "internal.h"

#include <elf.h>
#include <string.h>
#include <time.h>

#define MAX_KERNELS 4096
#define STATIC_LIMIT_BYTES 49152

enum { ATTRIBUTE_REQUIRED_THREADS = 0x10, ATTRIBUTE_PARAMETER = 0x17, FORMAT_SIZED = 4, MAX_DYNAMIC_SHARED = 8 };

typedef struct library {
    const unsigned char *image;
    int architecture;
    int loaded;
} library;

typedef struct kernel {
    library *from;
    char entry[64];
    int parameter_count;
    int sizes[DOUBLE_MAX_PARAMETERS];
    unsigned int required_threads;
} kernel;

static library libraries[MAX_KERNELS];
static kernel kernels[MAX_KERNELS];
static int library_count, kernel_count, launch_count;
static double_launch last;
static double_kernel run_kernel;

EXPORT_NEW void double_run_with(double_kernel with) { run_kernel = with; }

EXPORT_NEW void double_spend(void *microseconds) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    const long long end = now.tv_sec * 1000000000LL + now.tv_nsec + 1000LL * (long long)(uintptr_t)microseconds;
    while (microseconds != NULL && now.tv_sec * 1000000000LL + now.tv_nsec < end) (void)clock_gettime(CLOCK_MONOTONIC, &now);
}

EXPORT_NEW int double_launch_count(void) {
    pthread_mutex_lock(&lock);
    return leave(launch_count);
}

EXPORT_NEW void double_last_launch(double_launch *launch) {
    pthread_mutex_lock(&lock);
    *launch = last;
    pthread_mutex_unlock(&lock);
}

int libraries_held(void) {
    int sum = 0;
    for (int i = 0; i < library_count; i++) sum += libraries[i].loaded;
    return sum;
}

void drop_kernels(void) {
    library_count = kernel_count = launch_count = 0;
    run_kernel = NULL;
    last = (double_launch){0};
}

void record_launch(const double_launch *launch) {
    last = *launch;
    launch_count++;
}

void run_launch(const double_launch *launch) {
    if (run_kernel == NULL) return;
    double_launch seen = *launch;
    for (int i = 0; i < seen.parameter_count; i++)
        if (is_marked(seen.values[i])) seen.values[i] &= ~MARK_BITS;
    run_kernel(&seen);
}

/* ---- Machine code ---- */

static const Elf64_Ehdr *header(const unsigned char *image) { return (const Elf64_Ehdr *)(const void *)image; }

static const Elf64_Shdr *section(const unsigned char *image, const char *wanted) {
    const Elf64_Shdr *all = (const Elf64_Shdr *)(const void *)(image + header(image)->e_shoff);
    const char *names = (const char *)image + all[header(image)->e_shstrndx].sh_offset;
    for (int i = 0; i < header(image)->e_shnum; i++)
        if (strcmp(names + all[i].sh_name, wanted) == 0) return &all[i];
    return NULL;
}

EXPORT_NEW int cuLibraryLoadData(library **made, const void *code, int *a, void **b, unsigned int options, int *c, void **d,
                                 unsigned int library_options) {
    context *here;
    int error = enter(ID_cuLibraryLoadData, &here);
    if (error != 0) return error;
    const Elf64_Ehdr *elf = code;
    if (a != NULL || b != NULL || c != NULL || d != NULL || options != 0 || library_options != 0) return leave(INVALID_VALUE);
    if (memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0 || elf->e_machine != EM_CUDA) return leave(INVALID_VALUE);
    /* The architecture is in the lowest byte of the flags up to ABI version 7, in the one above it from 8 on. */
    int architecture = (int)(elf->e_flags >> (elf->e_ident[EI_ABIVERSION] >= 8 ? 8 : 0) & 0xff);
    int capability = (int)device_number("DOUBLE_CC", device_of(here) - DOUBLE_FIRST_DEVICE, 87);
    if (architecture / 10 != capability / 10 || architecture > capability) return leave(NO_BINARY);
    if (architecture >= 90 && architecture != capability) return leave(NO_BINARY);
    int slot = 0;
    while (slot < library_count && libraries[slot].loaded) slot++;
    if (slot == MAX_KERNELS) return leave(OUT_OF_MEMORY);
    *made = &libraries[slot];
    **made = (library){code, architecture, 1};
    if (slot == library_count) library_count++;
    return leave(0);
}

/* A library is of the process, not of a context. */
EXPORT_NEW int cuLibraryUnload(library *which) {
    int code = count_call(ID_cuLibraryUnload);
    if (code != 0) return code;
    pthread_mutex_lock(&lock);
    if (!which->loaded) return leave(INVALID_VALUE);
    which->loaded = 0;
    return leave(0);
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
            if (ordinal >= DOUBLE_MAX_PARAMETERS || made->sizes[ordinal] != 0 || flags >> 18 > sizeof(uint64_t)) return INVALID_VALUE;
            made->sizes[ordinal] = (int)(flags >> 18);
            made->parameter_count++;
        }
        at += 4 + (at[0] == FORMAT_SIZED ? size : 0);
    }
    return made->parameter_count == (int)device_number("DOUBLE_PARAMETERS", 0, made->parameter_count) ? 0 : INVALID_VALUE;
}

EXPORT_NEW int cuLibraryGetKernel(kernel **made, library *from, const char *name) {
    int code = count_call(ID_cuLibraryGetKernel);
    if (code != 0) return code;
    pthread_mutex_lock(&lock);
    int slot = 0; /* one that nobody has, or that was of code unloaded since */
    while (slot < kernel_count && kernels[slot].from->loaded && kernels[slot].from != from) slot++;
    if (slot == MAX_KERNELS) return leave(OUT_OF_MEMORY);
    *made = &kernels[slot];
    **made = (kernel){.from = from};
    if (slot == kernel_count) kernel_count++;
    strncpy((*made)->entry, name, sizeof(*made)->entry - 1);
    return leave(read_kernel(*made));
}

EXPORT_NEW int cuKernelSetAttribute(int attribute, int value, kernel *which, int device) {
    int code = count_call(ID_cuKernelSetAttribute);
    if (code != 0) return code;
    int takes = attribute == MAX_DYNAMIC_SHARED && value > STATIC_LIMIT_BYTES && which->from->loaded && device >= DOUBLE_FIRST_DEVICE;
    return takes ? 0 : INVALID_VALUE;
}

/* ---- Launches ---- */

/* The lock is held; it is given back. */
static int launch_kernel(context *here, const kernel *which, int cooperative, unsigned int gx, unsigned int gy, unsigned int gz,
                         unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared_bytes, void *stream,
                         void **arguments) {
    if (!which->from->loaded || bx * by * bz != which->required_threads) return leave(INVALID_VALUE);
    double_launch launch = {.architecture = which->from->architecture,
                            .image = which->from->image,
                            .device = device_of(here),
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
    return leave(enqueue_launch(stream, &launch, here));
}

EXPORT_NEW int cuLaunchKernel(kernel *which, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by,
                              unsigned int bz, unsigned int shared_bytes, void *stream, void **arguments, void **extra) {
    context *here;
    int code = enter(ID_cuLaunchKernel, &here);
    if (code != 0) return code;
    if (extra != NULL) return leave(INVALID_VALUE);
    return launch_kernel(here, which, 0, gx, gy, gz, bx, by, bz, shared_bytes, stream, arguments);
}

/* There is room for one program on each multiprocessor. */
EXPORT_NEW int cuLaunchCooperativeKernel(kernel *which, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                                         unsigned int by, unsigned int bz, unsigned int shared_bytes, void *stream,
                                         void **arguments) {
    context *here;
    int code = enter(ID_cuLaunchCooperativeKernel, &here);
    if (code != 0) return code;
    int ordinal = device_of(here) - DOUBLE_FIRST_DEVICE;
    long long room = device_number("DOUBLE_ROOM", ordinal, device_number("DOUBLE_MULTIPROCESSORS", ordinal, 16));
    if (gx * gy * gz > (unsigned int)room) return leave(TOO_LARGE);
    return launch_kernel(here, which, 1, gx, gy, gz, bx, by, bz, shared_bytes, stream, arguments);
}
