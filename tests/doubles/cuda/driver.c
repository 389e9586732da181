/* The driver itself, devices, contexts, and what tests ask for: counts, failures on demand, reset. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FAULTS 256
#define MAX_FAILURES 8
#define DEFAULT_MEMORY (8LL << 30)

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
context contexts[MAX_CONTEXTS];
int abandoned_count;

#define FUNCTION_NAME(name) #name,
static const char *const function_names[FUNCTION_COUNT] = {DRIVER_FUNCTIONS(FUNCTION_NAME)};
static long long call_counts[FUNCTION_COUNT];

/* The call of a function that is to fail: `call` counts from the first, 0 is every one. */
typedef struct failure {
    long long call;
    int code;
} failure;

static failure failures[FUNCTION_COUNT][MAX_FAILURES];
static char faults[MAX_FAULTS][512];
static int fault_count, initialized, lost;
static int epoch; /* raised by double_reset, which cannot reach the stacks of other threads */
static _Thread_local context *stack[MAX_CONTEXTS];
static _Thread_local int depth, stack_epoch;

/* ---- Counts and failures ---- */

/* The lock is held. */
static int counted(int function) {
    long long call = ++call_counts[function];
    for (int i = 0; i < MAX_FAILURES; i++) {
        failure *planned = &failures[function][i];
        if (planned->code == 0 || (planned->call != 0 && planned->call != call)) continue;
        int code = planned->code;
        if (planned->call != 0) planned->code = 0;
        return code;
    }
    return 0;
}

int count_call(int function) {
    pthread_mutex_lock(&lock);
    int code = counted(function);
    pthread_mutex_unlock(&lock);
    return code;
}

int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

int enter_to_give_back(int function, context **here) {
    pthread_mutex_lock(&lock);
    int code = counted(function);
    if (code == 0 && !initialized) code = NOT_INITIALIZED;
    if (code == 0) {
        *here = current_context();
        if (*here == NULL) code = INVALID_CONTEXT;
    }
    return code == 0 ? 0 : leave(code);
}

int enter(int function, context **here) {
    int code = enter_to_give_back(function, here);
    return code == 0 && (*here)->error != 0 ? leave((*here)->error) : code;
}

void add_fault(const char *format, ...) {
    va_list values;
    if (fault_count == MAX_FAULTS) return;
    va_start(values, format);
    (void)vsnprintf(faults[fault_count++], sizeof faults[0], format, values);
    va_end(values);
}

EXPORT_NEW void double_add_fault(const char *sentence) {
    pthread_mutex_lock(&lock);
    add_fault("%s", sentence);
    pthread_mutex_unlock(&lock);
}

EXPORT_NEW const char *double_fault(int n) { return n >= 0 && n < fault_count ? faults[n] : NULL; }

static int function_id(const char *name, size_t length) {
    for (int i = 0; i < FUNCTION_COUNT; i++)
        if (strlen(function_names[i]) == length && memcmp(function_names[i], name, length) == 0) return i;
    return -1;
}

static int plan_failure(int id, long long nth, int code) {
    if (id < 0) return 1;
    pthread_mutex_lock(&lock);
    failure *slot = NULL;
    for (int i = MAX_FAILURES - 1; i >= 0; i--) {
        if (code == 0) failures[id][i].code = 0;
        if (failures[id][i].code == 0) slot = &failures[id][i];
    }
    if (slot != NULL && code != 0) *slot = (failure){nth == 0 ? 0 : call_counts[id] + nth, code};
    pthread_mutex_unlock(&lock);
    return slot == NULL;
}

EXPORT_NEW int double_fail(const char *function, int nth_call, int code) {
    return plan_failure(function_id(function, strlen(function)), nth_call, code);
}

static void read_failures(void) {
    for (const char *at = getenv("DOUBLE_FAIL"); at != NULL && *at != '\0';) {
        size_t length = strcspn(at, ":");
        int id = function_id(at, length), nth = 0, code = 0, read = 0;
        if (sscanf(at + length, ":%d:%d%n", &nth, &code, &read) != 2 || plan_failure(id, nth, code) != 0) {
            fprintf(stderr, "DOUBLE_FAIL: '%s' is not FUNCTION:CALL:CODE of a function that the double has\n", at);
            abort();
        }
        at += length + (size_t)read;
        at += *at == ',';
    }
}

__attribute__((constructor)) static void loaded(void) { read_failures(); }

EXPORT_NEW long long double_count(const char *name) {
    static const char *const kinds[KINDS] = {"streams", "events", "graphs", "execs"};
    int id = function_id(name, strlen(name));
    long long count = -1;
    pthread_mutex_lock(&lock);
    if (id >= 0) count = call_counts[id];
    for (int kind = 0; kind < KINDS; kind++)
        if (strcmp(name, kinds[kind]) == 0) count = objects_held(kind);
    if (strcmp(name, "device_allocations") == 0) count = memory_held(0);
    if (strcmp(name, "host_allocations") == 0) count = memory_held(1);
    if (strcmp(name, "device_bytes") == 0) count = memory_bytes(0);
    if (strcmp(name, "host_bytes") == 0) count = memory_bytes(1);
    if (strcmp(name, "pageable_copies") == 0) count = pageable_copies;
    if (strcmp(name, "default_synchronizations") == 0) count = default_synchronizations;
    if (strcmp(name, "libraries") == 0) count = libraries_held();
    if (strcmp(name, "faults") == 0) count = fault_count;
    if (strcmp(name, "contexts") == 0) {
        count = 0;
        for (int i = 0; i < MAX_CONTEXTS; i++) count += contexts[i].holders;
    }
    pthread_mutex_unlock(&lock);
    return count;
}

EXPORT_NEW int double_held(void) {
    pthread_mutex_lock(&lock);
    int held = memory_held(0) + memory_held(1) + abandoned_count;
    for (int kind = 0; kind < KINDS; kind++) held += objects_held(kind);
    pthread_mutex_unlock(&lock);
    return held;
}

EXPORT_NEW void double_lose_device(int code) {
    pthread_mutex_lock(&lock);
    lost = code;
    for (int i = 0; i < MAX_CONTEXTS; i++)
        if (contexts[i].error == 0) contexts[i].error = code;
    pthread_mutex_unlock(&lock);
}

EXPORT_NEW void double_reset(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_CONTEXTS; i++) {
        drop_streams(&contexts[i], 0);
        drop_memory(&contexts[i], 0);
    }
    drop_kernels();
    memset(contexts, 0, sizeof contexts);
    memset(call_counts, 0, sizeof call_counts);
    memset(failures, 0, sizeof failures);
    pageable_copies = default_synchronizations = 0;
    fault_count = initialized = lost = abandoned_count = 0;
    epoch++;
    pthread_mutex_unlock(&lock);
    read_failures();
}

/* ---- The environment ---- */

void device_text(const char *name, int ordinal, const char *otherwise, char *text, size_t size) {
    const char *at = getenv(name);
    if (at == NULL || *at == '\0') at = otherwise;
    for (const char *next = strchr(at, ','); ordinal > 0 && next != NULL; ordinal--, next = strchr(at, ',')) at = next + 1;
    size_t length = strcspn(at, ",");
    if (length >= size) length = size - 1;
    memcpy(text, at, length);
    text[length] = '\0';
}

long long device_number(const char *name, int ordinal, long long otherwise) {
    char text[32];
    device_text(name, ordinal, "", text, sizeof text);
    return text[0] == '\0' ? otherwise : atoll(text);
}

long long memory_limit(int ordinal) { return device_number("DOUBLE_MEMORY_BYTES", ordinal, DEFAULT_MEMORY); }

/* ---- The driver ---- */

EXPORT int cuInit(unsigned int flags) {
    int code = count_call(ID_cuInit);
    if (code != 0) return code;
    if (flags != 0) return INVALID_VALUE;
    if (device_number("DOUBLE_DEVICES", 0, 1) == 0) return NO_DEVICE;
    pthread_mutex_lock(&lock);
    initialized = 1;
    return leave(0);
}

EXPORT int cuDriverGetVersion(int *version) {
    int code = count_call(ID_cuDriverGetVersion);
    if (code == 0) *version = (int)device_number("DOUBLE_DRIVER_VERSION", 0, 13020);
    return code;
}

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

EXPORT_NEW int cuGetErrorName(int error, const char **text) {
    int code = count_call(ID_cuGetErrorName);
    if (code != 0) return code;
    *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].code == error) *text = errors[i].name;
    return *text == NULL ? INVALID_VALUE : 0;
}

EXPORT int cuGetErrorString(int error, const char **text) {
    int code = count_call(ID_cuGetErrorString);
    if (code != 0) return code;
    *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].code == error) *text = errors[i].text;
    return *text == NULL ? INVALID_VALUE : 0;
}

/* ---- Devices ---- */

static int device_count(void) {
    long long count = device_number("DOUBLE_DEVICES", 0, 1);
    return count > MAX_CONTEXTS ? MAX_CONTEXTS : (int)count;
}

/* Count a call about a device: 0 or the code to return. */
static int about_device(int function, int device) {
    int code = count_call(function);
    if (code != 0) return code;
    if (!initialized) return NOT_INITIALIZED;
    return device >= DOUBLE_FIRST_DEVICE && device < DOUBLE_FIRST_DEVICE + device_count() ? 0 : INVALID_DEVICE;
}

EXPORT_NEW int cuDeviceGetCount(int *count) {
    int code = count_call(ID_cuDeviceGetCount);
    if (code == 0 && !initialized) code = NOT_INITIALIZED;
    if (code == 0) *count = device_count();
    return code;
}

EXPORT_NEW int cuDeviceGet(int *device, int ordinal) {
    int code = about_device(ID_cuDeviceGet, ordinal + DOUBLE_FIRST_DEVICE);
    if (code == 0) *device = ordinal + DOUBLE_FIRST_DEVICE;
    return code;
}

EXPORT_NEW int cuDeviceGetName(char *name, int length, int device) {
    int code = about_device(ID_cuDeviceGetName, device);
    if (code == 0 && length <= 0) code = INVALID_VALUE;
    if (code == 0) device_text("DOUBLE_NAME", device - DOUBLE_FIRST_DEVICE, "Orin", name, (size_t)length);
    return code;
}

EXPORT_NEW int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    int code = about_device(ID_cuDeviceTotalMem_v2, device);
    if (code == 0) *bytes = (size_t)memory_limit(device - DOUBLE_FIRST_DEVICE);
    return code;
}

EXPORT_NEW int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int code = about_device(ID_cuDeviceGetAttribute, device);
    if (code != 0) return code;
    int ordinal = device - DOUBLE_FIRST_DEVICE;
    int capability = (int)device_number("DOUBLE_CC", ordinal, 87), jetson = capability == 87 || capability == 110;
    switch (attribute) {
        case 13: *value = 1300000; return 0; /* clock, kHz */
        case 16: *value = (int)device_number("DOUBLE_MULTIPROCESSORS", ordinal, 16); return 0;
        case 18: *value = (int)device_number("DOUBLE_INTEGRATED", ordinal, jetson); return 0;
        case 19: *value = 1; return 0;       /* can map host memory */
        case 36: *value = 3199000; return 0; /* memory clock, kHz */
        case 37: *value = 256; return 0;     /* bus width, bits */
        case 38: *value = 4 << 20; return 0; /* L2 cache, bytes */
        case 41: *value = 1; return 0;       /* unified addressing */
        case 75: *value = capability / 10; return 0;
        case 76: *value = capability % 10; return 0;
        case 83: *value = 1; return 0;       /* managed memory */
        case 88: *value = capability == 110; return 0; /* pageable memory access */
        case 89: *value = 1; return 0;       /* concurrent managed access */
        case 91: *value = 1; return 0;       /* host pointers of registered memory are the device's */
        case 95: *value = 1; return 0;       /* cooperative launch */
        default: return INVALID_VALUE;
    }
}

/* ---- Contexts ---- */

int device_of(const context *of) { return (int)(of - contexts) + DOUBLE_FIRST_DEVICE; }

static context **top(void) {
    if (stack_epoch != epoch) {
        depth = 0;
        stack_epoch = epoch;
    }
    return depth > 0 ? &stack[depth - 1] : NULL;
}

context *current_context(void) {
    context **here = top();
    return here != NULL && *here != NULL && (*here)->holders > 0 ? *here : NULL;
}

static int is_context(const context *of) {
    return (uintptr_t)of >= (uintptr_t)contexts && (uintptr_t)of < (uintptr_t)(contexts + MAX_CONTEXTS) && of->holders > 0;
}

EXPORT_NEW int double_current(void) {
    context *here = current_context();
    return here == NULL ? -1 : device_of(here);
}

EXPORT_NEW int double_error(const void *of) {
    pthread_mutex_lock(&lock);
    return leave(is_context(of) ? ((const context *)of)->error : 0);
}

EXPORT_NEW void double_set_current(int handle) {
    (void)top();
    depth = 0;
    if (handle >= 0) stack[depth++] = &contexts[handle - DOUBLE_FIRST_DEVICE];
}

EXPORT_NEW int cuDevicePrimaryCtxRetain(context **made, int device) {
    int code = about_device(ID_cuDevicePrimaryCtxRetain, device);
    if (code != 0) return code;
    if (lost != 0) return lost;
    pthread_mutex_lock(&lock);
    *made = &contexts[device - DOUBLE_FIRST_DEVICE];
    (*made)->holders++;
    return leave(0);
}

EXPORT_NEW int cuDevicePrimaryCtxRelease_v2(int device) {
    int code = about_device(ID_cuDevicePrimaryCtxRelease_v2, device);
    if (code != 0) return code;
    context *of = &contexts[device - DOUBLE_FIRST_DEVICE];
    pthread_mutex_lock(&lock);
    if (of->holders == 0) return leave(INVALID_CONTEXT);
    if (--of->holders == 0) { /* the last one takes everything along */
        drop_streams(of, of->error == 0);
        drop_memory(of, of->error == 0);
        of->error = lost;
    }
    return leave(0);
}

EXPORT_NEW int cuCtxPushCurrent_v2(context *pushed) {
    int code = count_call(ID_cuCtxPushCurrent_v2);
    if (code != 0) return code;
    (void)top();
    if (depth == MAX_CONTEXTS || !is_context(pushed)) return INVALID_CONTEXT;
    stack[depth++] = pushed;
    return 0;
}

EXPORT_NEW int cuCtxPopCurrent_v2(context **popped) {
    int code = count_call(ID_cuCtxPopCurrent_v2);
    if (code != 0) return code;
    if (top() == NULL) return INVALID_CONTEXT;
    depth--;
    if (popped != NULL) *popped = stack[depth];
    return 0;
}

EXPORT_NEW int cuCtxSetCurrent(context *set) {
    int code = count_call(ID_cuCtxSetCurrent);
    if (code != 0) return code;
    if (set != NULL && !is_context(set)) return INVALID_CONTEXT;
    context **here = top();
    if (set == NULL) {
        if (here != NULL) depth--;
    } else if (here != NULL) {
        *here = set;
    } else {
        stack[depth++] = set;
    }
    return 0;
}

EXPORT_NEW int cuCtxGetCurrent(context **here) {
    int code = count_call(ID_cuCtxGetCurrent);
    if (code == 0) *here = top() == NULL ? NULL : *top();
    return code;
}

EXPORT_NEW int cuCtxGetDevice(int *device) {
    int code = count_call(ID_cuCtxGetDevice);
    if (code != 0) return code;
    if (!initialized) return NOT_INITIALIZED;
    context *here = current_context();
    if (here == NULL) return INVALID_CONTEXT;
    *device = device_of(here);
    return 0;
}
