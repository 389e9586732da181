/* Network files: a whole network's numbers and machine code, and classification with one call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "description.h"
#include "device.h"
#include "error.h"
#include "sizes.h"

#define MOST_AT_ONCE 64  /* images in one launch; more are taken piece by piece */
#define MOST_GRAPHS 16   /* batches of up to so many images each have a graph of their own */
#define DOUBTS 3
#define ARGUMENTS 14     /* of the kernel: eleven pointers, the number of images, and two of Triton's scratch memory */
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
    ve_description description; /* in which class_names point; its tensors are there until ve_open returns */
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

/* Load the machine code of a line. */
static ve_status load(ve_network *network, const char *path, const ve_code_line *line, code *to) {
    size_t bytes = line->tensor->bytes, room = (bytes / 64 + 2) * 64;
    to->threads = 32 * line->warps;
    to->shared_bytes = line->shared_bytes;
    to->programs = line->programs;
    /* The driver is not told how long the code is, and wants it aligned: it gets a copy with zeros behind it. */
    unsigned char *copy = aligned_alloc(64, room);
    if (copy == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the machine code of %s.", path);
    memset(copy + bytes, 0, room - bytes);
    memcpy(copy, line->tensor->data, bytes);
    to->memory = copy;
    CUresult result = network->driver->library_load(&to->library, copy, NULL, NULL, 0, NULL, NULL, 0);
    if (result == CUDA_SUCCESS) result = network->driver->library_kernel(&to->kernel, to->library, line->entry);
    if (result == CUDA_SUCCESS && to->shared_bytes > STATIC_LIMIT_BYTES)
        result = network->driver->kernel_set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)to->shared_bytes, to->kernel,
                                             network->device);
    return result == CUDA_SUCCESS ? VE_OK : driver_fails(network, "ve_open", "load the network's machine code", result);
}

/* The architectures that a file has machine code for, as "sm_80, sm_87". */
static void list_architectures(const ve_description *description, char *have, size_t room) {
    size_t used = 0;
    for (int i = 0; i < description->code_count; i++) {
        if (description->codes[i].spread || used + 16 > room) continue;
        int more = snprintf(have + used, room - used, "%ssm_%d", used > 0 ? ", " : "", description->codes[i].architecture);
        used += more > 0 ? (size_t)more : 0;
    }
}

static ve_status load_codes(ve_network *network, const char *path) {
    int major = 0, minor = 0;
    CUresult result = network->driver->device_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, network->device);
    if (result == CUDA_SUCCESS)
        result = network->driver->device_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, network->device);
    if (result == CUDA_SUCCESS)
        result = network->driver->device_attribute(&network->multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                                                   network->device);
    if (result != CUDA_SUCCESS) return driver_fails(network, "ve_open", "tell what the device is", result);
    int device = major * 10 + minor;
    const ve_code_line *alone = ve_description_code(&network->description, 0, device);
    const ve_code_line *spread = ve_description_code(&network->description, 1, device);
    if (alone == NULL) {
        char have[1024] = "no architecture";
        list_architectures(&network->description, have, sizeof have);
        return ve_fail(VE_ERROR_UNSUPPORTED_DEVICE, "ve_open: %s has machine code for %s; the device is sm_%d: save it for that too.",
                       path, have, device);
    }
    ve_status status = load(network, path, alone, &network->alone);
    return status == VE_OK && spread != NULL ? load(network, path, spread, &network->spread) : status;
}

/* A tensor of the file in device memory. */
static ve_status upload(ve_network *network, const ve_tensor *tensor, CUdeviceptr *to) {
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

/* Everything that needs the device's context. The tensors are still in memory. */
static ve_status fill(ve_network *network, const char *path) {
    const ve_description *description = &network->description;
    ve_status status = load_codes(network, path);
    if (status != VE_OK) return status;
    CUresult result = network->driver->stream_make(&network->stream, CU_STREAM_NON_BLOCKING);
    if (result != CUDA_SUCCESS) return driver_fails(network, "ve_open", "make a stream", result);
    status = upload(network, description->weights, &network->weights);
    if (status == VE_OK) status = upload(network, description->numbers, &network->numbers);
    if (status == VE_OK) status = upload(network, description->whitenings, &network->whitenings);
    if (status == VE_OK) status = take_memory(network, description->area_bytes, description->floats);
    return status == VE_OK ? warm_up(network) : status;
}

/* What the file says of the network, verified; its tensors stay the file's. */
static ve_status describe(ve_network *network, const char *path, const ve_tensors *file) {
    ve_description *description = &network->description;
    ve_status status = ve_description_read(path, file, description);
    if (status != VE_OK) return status;
    network->info = (ve_network_info){.side = description->side,
                                      .channels = description->channels,
                                      .classes = description->classes,
                                      .class_names = description->names,
                                      .threshold = description->threshold,
                                      .has_angle = description->has_angle};
    network->image_bytes = (size_t)description->side * (size_t)description->side * (size_t)description->channels;
    return VE_OK;
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
    status = describe(network, path, &file);
    if (status == VE_OK) status = ve_driver_of_library("ve_open", &network->driver);
    if (status == VE_OK) {
        CUresult result = network->driver->device_get(&network->device, device);
        if (result == CUDA_ERROR_INVALID_DEVICE)
            status = ve_fail(VE_ERROR_NO_DEVICE, "ve_open: this machine has no CUDA device number %d.", device);
        else if (result != CUDA_SUCCESS || (result = network->driver->primary_retain(&network->context, network->device)) != 0)
            status = driver_fails(network, "ve_open", "open the device", result);
    }
    if (status == VE_OK) status = enter(network, "ve_open");
    if (status == VE_OK) {
        status = fill(network, path);
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
    ve_description_free(&network->description);
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

/* Whether so many images, and each of their answers, are sizes that memory can have. */
static int fits(const ve_network *network, size_t n) {
    size_t bytes = 0, widest = network->info.classes > DOUBTS ? (size_t)network->info.classes : DOUBTS;
    return ve_product(n, network->image_bytes, &bytes) && ve_product(n, widest * sizeof(float), &bytes);
}

ve_status ve_classify_with_doubts(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles,
                                  float *scores, float *doubts) {
    if (network == NULL || (n > 0 && images == NULL))
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_classify: network and images must not be NULL; n is %zu.", n);
    if (!fits(network, n))
        return ve_fail(VE_ERROR_INVALID_ARGUMENT,
                       "ve_classify: n is %zu, and so many images of %zu bytes are more than memory can hold; "
                       "a number below 0 becomes such a one.",
                       n, network->image_bytes);
    if (n == 0) return VE_OK;
    ve_status status = enter(network, "ve_classify");
    if (status != VE_OK) return status;
    float *fields[4] = {probabilities, angles, scores, doubts};
    const size_t widths[4] = {(size_t)network->info.classes, 1, 1, DOUBTS};
    int on_host[5];
    for (int i = 0; i < 4; i++) on_host[i] = fields[i] == NULL || is_host(network, fields[i]);
    on_host[4] = is_host(network, images);
    for (size_t done = 0; done < n && status == VE_OK;) {
        size_t piece = n - done < MOST_AT_ONCE ? n - done : MOST_AT_ONCE;
        status = classify_piece(network, images + done * network->image_bytes, (int)piece, fields, on_host);
        for (int i = 0; i < 4; i++)
            if (fields[i] != NULL) fields[i] += piece * widths[i];
        done += piece;
    }
    leave(network);
    return status;
}

ve_status ve_classify(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles, float *scores) {
    return ve_classify_with_doubts(network, images, n, probabilities, angles, scores, NULL);
}
