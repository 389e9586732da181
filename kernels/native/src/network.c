/* Network files: a whole network's numbers and machine code, and classification with one call. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "error.h"
#include "tensors.h"

#define FORMAT "vae-edge-network-2"
#define MOST_AT_ONCE 64  /* images in one launch; more are taken piece by piece */
#define MOST_GRAPHS 16   /* batches of up to so many images each have a graph of their own */
#define MOST_CLASSES 4096
#define DOUBTS 3
#define ARGUMENTS 14     /* of the kernel: eleven pointers, the number of images, and two of Triton's scratch memory */
#define MOST_PROGRAMS 32u /* that work on one image */
#define MOST_SHARED_BYTES (1u << 20)
#define STATIC_LIMIT_BYTES 49152

/* Machine code of the network, by which `programs` programs work on an image; `kernel` is NULL where the file has none. */
typedef struct code {
    CUlibrary library;
    CUkernel kernel;
    unsigned int threads, shared_bytes, programs;
    void *memory;
} code;

struct ve_network {
    const ve_driver *driver;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    int multiprocessors;
    code alone, spread;
    ve_network_info info;
    char *about; /* the file's description, in which class_names point */
    const char **names;
    size_t image_bytes;
    CUdeviceptr weights, numbers, whitenings, images, areas, floats, meetings, answers;
    unsigned char *host_images;
    float *host_answers;
    CUgraphExec graphs[MOST_GRAPHS + 1];
};

static ve_status driver_fails(const ve_network *network, const char *caller, const char *what, CUresult result) {
    return ve_fail(result == CUDA_ERROR_OUT_OF_MEMORY ? VE_ERROR_OUT_OF_MEMORY : VE_ERROR_DRIVER,
                   "%s: the driver does not %s: error %d, %s.", caller, what, result, ve_driver_words(network->driver, result));
}

/* The value of `key` in lines of key=value, or NULL. The lines end with 0 instead of a line break. */
static const char *value_of(const char *about, const char *key) {
    size_t length = strlen(key);
    for (const char *line = about; *line != 0; line += strlen(line) + 1)
        if (strncmp(line, key, length) == 0 && line[length] == '=') return line + length + 1;
    return NULL;
}

static ve_status number_of(const ve_network *network, const char *path, const char *key, long least, long most, long *number) {
    const char *text = value_of(network->about, key);
    char *end = NULL;
    *number = text == NULL ? -1 : strtol(text, &end, 10);
    if (text != NULL && end != text && *end == 0 && *number >= least && *number <= most) return VE_OK;
    return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' must be a number from %ld to %ld; it is '%s'.", path, key, least, most,
                   text == NULL ? "missing" : text);
}

/* Copy the description and cut it into lines. */
static ve_status read_about(ve_network *network, const char *path, const ve_tensors *file) {
    const ve_tensor *about = ve_tensors_find(file, "about");
    if (strcmp(file->format, FORMAT) != 0 || about == NULL)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is no network file of this version: its format is '%s', this library reads '%s'.",
                       path, file->format, FORMAT);
    network->about = malloc(about->bytes + 2);
    if (network->about == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the description of %s.", path);
    memcpy(network->about, about->data, about->bytes);
    memset(network->about + about->bytes, 0, 2);
    for (char *c = network->about; c < network->about + about->bytes; c++)
        if (*c == '\n') *c = 0;
    return VE_OK;
}

static ve_status read_info(ve_network *network, const char *path, long *area_bytes, long *floats) {
    long side = 0, channels = 0, classes = 0, angle = 0;
    ve_status status = number_of(network, path, "side", 1, 1 << 12, &side);
    if (status == VE_OK) status = number_of(network, path, "channels", 1, 16, &channels);
    if (status == VE_OK) status = number_of(network, path, "classes", 2, MOST_CLASSES, &classes);
    if (status == VE_OK) status = number_of(network, path, "has_angle", 0, 1, &angle);
    if (status == VE_OK) status = number_of(network, path, "area_bytes", 1, 1l << 28, area_bytes);
    if (status == VE_OK) status = number_of(network, path, "floats", 1, 1l << 28, floats);
    if (status != VE_OK) return status;
    long bits = 0; /* of a float, so that no locale matters */
    status = number_of(network, path, "threshold_bits", 0, UINT32_MAX, &bits);
    if (status != VE_OK) return status;
    uint32_t threshold = (uint32_t)bits;
    memcpy(&network->info.threshold, &threshold, sizeof threshold);
    network->names = calloc((size_t)classes, sizeof *network->names);
    if (network->names == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for %ld class names.", classes);
    for (int i = 0; i < classes; i++) {
        char key[32];
        (void)snprintf(key, sizeof key, "class.%d", i);
        network->names[i] = value_of(network->about, key);
        if (network->names[i] == NULL) return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: class %d has no name.", path, i);
    }
    network->info.side = (int)side;
    network->info.channels = (int)channels;
    network->info.classes = (int)classes;
    network->info.has_angle = (int)angle;
    network->info.class_names = network->names;
    network->image_bytes = (size_t)(side * side * channels);
    return VE_OK;
}

/* The place of the tensor "KIND.NN" whose NN is the best for the device, or NULL; `have` takes the names of all of them. */
static const ve_tensor *best_code(const ve_tensors *file, const char *kind, int device, int *architecture, char *have, size_t room) {
    const ve_tensor *best = NULL;
    size_t length = strlen(kind);
    *architecture = 0;
    for (int i = 0; i < file->count; i++) {
        int number = 0;
        const char *name = file->tensors[i].name;
        if (strncmp(name, kind, length) != 0 || sscanf(name + length, ".%3d", &number) != 1) continue;
        size_t used = strlen(have);
        (void)snprintf(have + used, room - used, "%ssm_%d", used > 0 ? ", " : "", number);
        if (ve_runs_on(number, device) && number > *architecture) {
            *architecture = number;
            best = &file->tensors[i];
        }
    }
    return best;
}

/* Load machine code: tensor "cubin.87" or "spread.87", and line "KEY.87=ENTRY WARPS SHARED_BYTES PROGRAMS". */
static ve_status load(ve_network *network, const char *path, const ve_tensor *tensor, const char *name, int architecture, code *to) {
    char key[32], entry[128];
    unsigned int warps = 0;
    (void)snprintf(key, sizeof key, "%s.%d", name, architecture);
    const char *line = value_of(network->about, key);
    int several = to == &network->spread; /* a power of two, or they would wait for one another forever */
    if (line == NULL || sscanf(line, "%127s %u %u %u", entry, &warps, &to->shared_bytes, &to->programs) != 4 || warps < 1 ||
        warps > 32 || to->shared_bytes > MOST_SHARED_BYTES || to->programs < (several ? 2u : 1u) ||
        to->programs > (several ? MOST_PROGRAMS : 1u) || (to->programs & (to->programs - 1)) != 0)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' must be an entry, warps, bytes and programs; it is '%s'.", path,
                       key, line == NULL ? "missing" : line);
    to->threads = 32 * warps;
    /* The driver is not told how long the code is, and wants it aligned: it gets a copy with zeros behind it. */
    unsigned char *copy = aligned_alloc(64, (tensor->bytes / 64 + 2) * 64);
    if (copy == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the machine code of %s.", path);
    memset(copy, 0, (tensor->bytes / 64 + 2) * 64);
    memcpy(copy, tensor->data, tensor->bytes);
    to->memory = copy;
    CUresult result = network->driver->library_load(&to->library, copy, NULL, NULL, 0, NULL, NULL, 0);
    if (result == CUDA_SUCCESS) result = network->driver->library_kernel(&to->kernel, to->library, entry);
    if (result == CUDA_SUCCESS && to->shared_bytes > STATIC_LIMIT_BYTES)
        result = network->driver->kernel_set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)to->shared_bytes, to->kernel,
                                             network->device);
    return result == CUDA_SUCCESS ? VE_OK : driver_fails(network, "ve_open", "load the network's machine code", result);
}

static ve_status load_codes(ve_network *network, const char *path, const ve_tensors *file) {
    int major = 0, minor = 0, architecture = 0;
    char have[256] = "", unused[256] = "";
    CUresult result = network->driver->device_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, network->device);
    if (result == CUDA_SUCCESS)
        result = network->driver->device_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, network->device);
    if (result == CUDA_SUCCESS)
        result = network->driver->device_attribute(&network->multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                                                   network->device);
    if (result != CUDA_SUCCESS) return driver_fails(network, "ve_open", "tell what the device is", result);
    int device = major * 10 + minor;
    const ve_tensor *found = best_code(file, "cubin", device, &architecture, have, sizeof have);
    if (found == NULL)
        return ve_fail(VE_ERROR_UNSUPPORTED_DEVICE, "ve_open: %s has machine code for %s; the device is sm_%d: save it for that too.",
                       path, have[0] ? have : "no architecture", device);
    ve_status status = load(network, path, found, "kernel", architecture, &network->alone);
    if (status == VE_OK && (found = best_code(file, "spread", device, &architecture, unused, sizeof unused)) != NULL)
        status = load(network, path, found, "spread", architecture, &network->spread);
    return status;
}

/* A tensor of the file in device memory. */
static ve_status upload(ve_network *network, const char *path, const ve_tensors *file, const char *name, CUdeviceptr *to) {
    const ve_tensor *tensor = ve_tensors_find(file, name);
    char key[32];
    long bytes = 0;
    (void)snprintf(key, sizeof key, "%s_bytes", name);
    ve_status status = number_of(network, path, key, 1, 1l << 30, &bytes);
    if (status != VE_OK) return status;
    if (tensor == NULL || tensor->bytes != (size_t)bytes)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is damaged: '%s' must be of %ld bytes; it is of %zu.", path, name, bytes,
                       tensor == NULL ? (size_t)0 : tensor->bytes);
    CUresult result = network->driver->memory_take(to, tensor->bytes);
    if (result == CUDA_SUCCESS)
        result = network->driver->copy(*to, (CUdeviceptr)(uintptr_t)tensor->data, tensor->bytes, network->stream);
    if (result == CUDA_SUCCESS) result = network->driver->stream_wait(network->stream);
    return result == CUDA_SUCCESS ? VE_OK : driver_fails(network, "ve_open", "take the network's numbers", result);
}

static ve_status warm_up(ve_network *network);

static size_t answer_count(const ve_network *network) { return (size_t)network->info.classes + 2 + DOUBTS; }

static const int32_t nobody_yet[MOST_AT_ONCE]; /* how many programs have come together, for each image worked on */

/* All memory that classifying needs. */
static ve_status take_memory(ve_network *network, size_t area_bytes, size_t floats) {
    const ve_driver *driver = network->driver;
    size_t answers = MOST_AT_ONCE * answer_count(network) * sizeof(float);
    void *host[2] = {NULL, NULL};
    CUresult result = driver->memory_take(&network->images, MOST_AT_ONCE * network->image_bytes);
    if (result == CUDA_SUCCESS) result = driver->memory_take(&network->areas, MOST_AT_ONCE * area_bytes);
    if (result == CUDA_SUCCESS) result = driver->memory_take(&network->floats, MOST_AT_ONCE * floats * sizeof(float));
    if (result == CUDA_SUCCESS) result = driver->memory_take(&network->answers, answers);
    if (result == CUDA_SUCCESS) result = driver->memory_take(&network->meetings, sizeof nobody_yet);
    if (result == CUDA_SUCCESS)
        result = driver->copy(network->meetings, (CUdeviceptr)(uintptr_t)nobody_yet, sizeof nobody_yet, network->stream);
    if (result == CUDA_SUCCESS) result = driver->stream_wait(network->stream);
    if (result == CUDA_SUCCESS) result = driver->host_take(&host[0], MOST_AT_ONCE * network->image_bytes);
    network->host_images = host[0];
    if (result == CUDA_SUCCESS) result = driver->host_take(&host[1], answers);
    network->host_answers = host[1];
    return result == CUDA_SUCCESS ? VE_OK : driver_fails(network, "ve_open", "give memory", result);
}

/* Everything that needs the device's context. */
static ve_status fill(ve_network *network, const char *path, const ve_tensors *file) {
    long area_bytes = 0, floats = 0;
    ve_status status = read_about(network, path, file);
    if (status == VE_OK) status = read_info(network, path, &area_bytes, &floats);
    if (status == VE_OK) status = load_codes(network, path, file);
    if (status != VE_OK) return status;
    CUresult result = network->driver->stream_make(&network->stream, CU_STREAM_NON_BLOCKING);
    if (result != CUDA_SUCCESS) return driver_fails(network, "ve_open", "make a stream", result);
    status = upload(network, path, file, "weights", &network->weights);
    if (status == VE_OK) status = upload(network, path, file, "numbers", &network->numbers);
    if (status == VE_OK) status = upload(network, path, file, "whitenings", &network->whitenings);
    if (status == VE_OK) status = take_memory(network, (size_t)area_bytes, (size_t)floats);
    return status == VE_OK ? warm_up(network) : status;
}

static ve_status enter(const ve_network *network, const char *caller) {
    CUresult result = network->driver->context_push(network->context);
    return result == CUDA_SUCCESS ? VE_OK : driver_fails(network, caller, "enter the device", result);
}

static void leave(const ve_network *network) { (void)network->driver->context_pop(&(CUcontext){NULL}); }

ve_status ve_open(const char *path, int device, ve_network **made) {
    if (path == NULL || made == NULL || device < 0)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_open: path and network must not be NULL, device not below 0; device is %d.",
                       device);
    *made = NULL;
    ve_tensors file;
    ve_status status = ve_tensors_read(path, &file);
    if (status != VE_OK) return status;
    ve_network *network = calloc(1, sizeof *network);
    if (network == NULL) {
        ve_tensors_free(&file);
        return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for a handle.");
    }
    status = ve_driver_of_library("ve_open", &network->driver);
    if (status == VE_OK) {
        CUresult result = network->driver->device_get(&network->device, device);
        if (result == CUDA_ERROR_INVALID_DEVICE)
            status = ve_fail(VE_ERROR_NO_DEVICE, "ve_open: this machine has no CUDA device number %d.", device);
        else if (result != CUDA_SUCCESS || (result = network->driver->primary_retain(&network->context, network->device)) != 0)
            status = driver_fails(network, "ve_open", "open the device", result);
    }
    if (status == VE_OK) status = enter(network, "ve_open");
    if (status == VE_OK) {
        status = fill(network, path, &file);
        leave(network);
    }
    ve_tensors_free(&file);
    if (status == VE_OK)
        *made = network;
    else
        (void)ve_close(network);
    return status;
}

static void end_graphs(ve_network *network) {
    for (int i = 0; i <= MOST_GRAPHS; i++) {
        if (network->graphs[i] != NULL) (void)network->driver->graph_ready_end(network->graphs[i]);
        network->graphs[i] = NULL;
    }
}

ve_status ve_close(ve_network *network) {
    if (network == NULL) return VE_OK;
    const ve_driver *driver = network->driver;
    if (network->context != NULL) {
        int inside = driver->context_push(network->context) == CUDA_SUCCESS;
        end_graphs(network);
        const CUdeviceptr memory[] = {network->weights, network->numbers, network->whitenings, network->images,
                                      network->areas,   network->floats,  network->answers,    network->meetings};
        for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
            if (memory[i] != 0) (void)driver->memory_give(memory[i]);
        if (network->host_images != NULL) (void)driver->host_give(network->host_images);
        if (network->host_answers != NULL) (void)driver->host_give(network->host_answers);
        if (network->stream != NULL) (void)driver->stream_end(network->stream);
        if (network->alone.library != NULL) (void)driver->library_unload(network->alone.library);
        if (network->spread.library != NULL) (void)driver->library_unload(network->spread.library);
        if (inside) leave(network);
        (void)driver->primary_release(network->device);
    }
    free(network->alone.memory);
    free(network->spread.memory);
    free(network->about);
    free(network->names);
    free(network);
    return VE_OK;
}

ve_status ve_describe(const ve_network *network, ve_network_info *info) {
    if (network == NULL || info == NULL) return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_describe: network and info must not be NULL.");
    *info = network->info;
    return VE_OK;
}

/* The machine code for so many images: spread where all its programs have a multiprocessor of their own. */
static const code *code_for(const ve_network *network, int n) {
    int fits = network->spread.kernel != NULL && (unsigned int)n * network->spread.programs <= (unsigned int)network->multiprocessors;
    return fits ? &network->spread : &network->alone;
}

/* Start the kernel on n images at `images`; the answers lie one field behind the other. */
static CUresult start(const ve_network *network, CUdeviceptr images, int n) {
    size_t k = (size_t)network->info.classes, count = (size_t)n;
    CUdeviceptr angles = network->answers + count * k * sizeof(float), scores = angles + count * sizeof(float);
    CUdeviceptr doubts = scores + count * sizeof(float), nothing = 0;
    CUdeviceptr meetings = network->meetings;
    CUdeviceptr from = images, weights = network->weights, numbers = network->numbers, whitenings = network->whitenings;
    CUdeviceptr areas = network->areas, floats = network->floats, probabilities = network->answers;
    int32_t number = n;
    void *arguments[ARGUMENTS] = {&from,          &weights, &numbers, &whitenings, &areas,  &floats,  &meetings,
                                  &probabilities, &angles,  &scores,  &doubts,     &number, &nothing, &nothing};
    const code *with = code_for(network, n);
    CUfunction function = (CUfunction)with->kernel;
    if (with->programs > 1)
        return network->driver->launch_together(function, (unsigned int)n, with->programs, 1, with->threads, 1, 1,
                                                with->shared_bytes, network->stream, arguments);
    return network->driver->launch(function, (unsigned int)n, 1, 1, with->threads, 1, 1, with->shared_bytes, network->stream,
                                   arguments, NULL);
}

static CUresult record(const ve_network *network, int n) {
    const ve_driver *driver = network->driver;
    size_t answers = (size_t)n * answer_count(network) * sizeof(float);
    CUresult result = driver->copy(network->images, (CUdeviceptr)(uintptr_t)network->host_images,
                                   (size_t)n * network->image_bytes, network->stream);
    if (result == CUDA_SUCCESS) result = start(network, network->images, n);
    if (result == CUDA_SUCCESS)
        result = driver->copy((CUdeviceptr)(uintptr_t)network->host_answers, network->answers, answers, network->stream);
    return result;
}

/* The graph of n images from pinned memory to pinned memory. */
static CUresult graph_of(ve_network *network, int n, CUgraphExec *graph) {
    const ve_driver *driver = network->driver;
    if (network->graphs[n] == NULL) {
        CUgraph recorded = NULL;
        CUresult result = driver->capture_begin(network->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        if (result != CUDA_SUCCESS) return result;
        result = record(network, n);
        CUresult ended = driver->capture_end(network->stream, &recorded);
        if (result == CUDA_SUCCESS) result = ended;
        if (result == CUDA_SUCCESS) result = driver->graph_ready(&network->graphs[n], recorded, 0);
        if (recorded != NULL) (void)driver->graph_end(recorded);
        if (result != CUDA_SUCCESS) return result;
    }
    *graph = network->graphs[n];
    return CUDA_SUCCESS;
}

/* A run of the largest batch, and of the largest that is spread, since the driver may load code only when it is first launched;
 * then every graph is made and run once, so that no call has to, and what the device cannot do shows here. */
static CUresult run_all(ve_network *network) {
    const ve_driver *driver = network->driver;
    CUresult result = record(network, MOST_AT_ONCE);
    if (result == CUDA_SUCCESS && network->spread.kernel != NULL) {
        int most = network->multiprocessors / (int)network->spread.programs;
        if (most > MOST_AT_ONCE) most = MOST_AT_ONCE;
        if (most > 0) result = record(network, most);
    }
    CUresult waited = driver->stream_wait(network->stream);
    if (result == CUDA_SUCCESS) result = waited;
    for (int n = 1; n <= MOST_GRAPHS && result == CUDA_SUCCESS; n++) {
        CUgraphExec graph = NULL;
        result = graph_of(network, n, &graph);
        if (result == CUDA_SUCCESS) result = driver->graph_launch(graph, network->stream);
        waited = driver->stream_wait(network->stream);
        if (result == CUDA_SUCCESS) result = waited;
    }
    return result;
}

/* Where the device does not run several programs for an image together, for whatever reason, each image has one. */
static ve_status warm_up(ve_network *network) {
    memset(network->host_images, 0, MOST_AT_ONCE * network->image_bytes);
    CUresult result = run_all(network);
    if (result != CUDA_SUCCESS && network->spread.kernel != NULL) {
        network->spread.kernel = NULL;
        end_graphs(network);
        result = run_all(network);
    }
    return result == CUDA_SUCCESS ? VE_OK : driver_fails(network, "ve_open", "run the network", result);
}

/* Whether memory is the host's: what the driver does not know is. */
static int is_host(const ve_network *network, const void *pointer) {
    unsigned int kind = 0;
    CUresult result = network->driver->pointer_attribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)pointer);
    return result != CUDA_SUCCESS || (kind != CU_MEMORYTYPE_DEVICE && kind != CU_MEMORYTYPE_UNIFIED);
}

/* One piece, at most MOST_AT_ONCE images; the answers' fields are given where they are wanted. */
static ve_status classify_piece(ve_network *network, const uint8_t *images, int n, float *const fields[4], const int on_host[5]) {
    const ve_driver *driver = network->driver;
    const size_t widths[4] = {(size_t)network->info.classes, 1, 1, DOUBTS};
    CUresult result = CUDA_SUCCESS;
    if (on_host[4]) {
        memcpy(network->host_images, images, (size_t)n * network->image_bytes);
        CUgraphExec graph = NULL;
        if (n <= MOST_GRAPHS) {
            result = graph_of(network, n, &graph);
            if (result == CUDA_SUCCESS) result = driver->graph_launch(graph, network->stream);
        } else {
            result = record(network, n);
        }
    } else {
        result = start(network, (CUdeviceptr)(uintptr_t)images, n);
        size_t answers = (size_t)n * answer_count(network) * sizeof(float);
        if (result == CUDA_SUCCESS)
            result = driver->copy((CUdeviceptr)(uintptr_t)network->host_answers, network->answers, answers, network->stream);
    }
    CUdeviceptr from = network->answers;
    for (int i = 0; i < 4 && result == CUDA_SUCCESS; from += (size_t)n * widths[i++] * sizeof(float))
        if (fields[i] != NULL && !on_host[i])
            result = driver->copy((CUdeviceptr)(uintptr_t)fields[i], from, (size_t)n * widths[i] * sizeof(float), network->stream);
    CUresult waited = driver->stream_wait(network->stream);
    if (result == CUDA_SUCCESS) result = waited;
    if (result != CUDA_SUCCESS) return driver_fails(network, "ve_classify", "run the network", result);
    const float *answers = network->host_answers;
    for (int i = 0; i < 4; answers += (size_t)n * widths[i++])
        if (fields[i] != NULL && on_host[i]) memcpy(fields[i], answers, (size_t)n * widths[i] * sizeof(float));
    return VE_OK;
}

ve_status ve_classify_with_doubts(ve_network *network, const uint8_t *images, int n, float *probabilities, float *angles,
                                  float *scores, float *doubts) {
    if (network == NULL || n < 0 || (n > 0 && images == NULL))
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_classify: network and images must not be NULL, n not below 0; n is %d.", n);
    if (n == 0) return VE_OK;
    ve_status status = enter(network, "ve_classify");
    if (status != VE_OK) return status;
    float *fields[4] = {probabilities, angles, scores, doubts};
    const size_t widths[4] = {(size_t)network->info.classes, 1, 1, DOUBTS};
    int on_host[5];
    for (int i = 0; i < 4; i++) on_host[i] = fields[i] == NULL || is_host(network, fields[i]);
    on_host[4] = is_host(network, images);
    for (int done = 0; done < n && status == VE_OK; done += MOST_AT_ONCE) {
        int piece = n - done < MOST_AT_ONCE ? n - done : MOST_AT_ONCE;
        status = classify_piece(network, images + (size_t)done * network->image_bytes, piece, fields, on_host);
        for (int i = 0; i < 4; i++)
            if (fields[i] != NULL) fields[i] += (size_t)piece * widths[i];
    }
    leave(network);
    return status;
}

ve_status ve_classify(ve_network *network, const uint8_t *images, int n, float *probabilities, float *angles, float *scores) {
    return ve_classify_with_doubts(network, images, n, probabilities, angles, scores, NULL);
}
