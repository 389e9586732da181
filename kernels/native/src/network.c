/* Network files: a whole network's weights and machine code, and classification with one call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "description.h"
#include "device.h"
#include "error.h"
#include "network_code.h"
#include "sizes.h"

#define MAX_BATCH 64           /* images in one launch; a larger batch is split */
#define MAX_GRAPHS 16          /* batches of up to this size have a CUDA graph each */
#define UNCERTAINTY_VALUES 3   /* angle confidence, second angle, second angle probability */
#define OUTPUTS 4

struct ve_network {
    const ve_driver *driver;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    int multiprocessors;
    ve_network_code single_cta, multi_cta;
    ve_network_info info;
    ve_description description; /* in which class_names point; its tensors are there until ve_open returns */
    size_t image_bytes;
    CUdeviceptr weights, params, whitening;             /* constants of the network */
    CUdeviceptr images, activations, workspace, barrier; /* of MAX_BATCH slots */
    CUdeviceptr outputs;                                /* probabilities, angles, scores, uncertainty, one array behind the other */
    unsigned char *host_images;                         /* pinned */
    float *host_outputs;                                /* pinned */
    CUgraphExec graphs[MAX_GRAPHS + 1];                 /* by batch size; NULL until it is captured */
};

static ve_status driver_error(const ve_network *network, const char *caller, const char *what, CUresult result) {
    return ve_fail(result == CUDA_ERROR_OUT_OF_MEMORY ? VE_ERROR_OUT_OF_MEMORY : VE_ERROR_DRIVER,
                   "%s: the driver does not %s: error %d, %s.", caller, what, result, ve_driver_error_text(network->driver, result));
}

static ve_status push_context(const ve_network *network, const char *caller) {
    CUresult result = network->driver->context_push(network->context);
    return result == CUDA_SUCCESS ? VE_OK : driver_error(network, caller, "enter the device", result);
}

static void pop_context(const ve_network *network) { (void)network->driver->context_pop(&(CUcontext){NULL}); }

static size_t outputs_per_image(const ve_network *network) { return (size_t)network->info.classes + 2 + UNCERTAINTY_VALUES; }

/* ---- Machine code ---- */

/* Load what suits the device: code with one CTA an image, and where the file has it, code with several. */
static ve_status load_codes(ve_network *network, const char *path) {
    const ve_driver *driver = network->driver;
    ve_device_info device = {0};
    CUresult result = ve_device_query(driver, network->device, &device);
    if (result != CUDA_SUCCESS) return driver_error(network, "ve_open", "tell what the device is", result);
    network->multiprocessors = device.multiprocessors;

    const ve_code_line *single_cta = NULL, *multi_cta = ve_description_code(&network->description, 1, device.architecture);
    ve_status status = ve_network_code_find("ve_open", path, &network->description, device.architecture, &single_cta);
    if (status == VE_OK) status = ve_network_code_load("ve_open", driver, network->device, single_cta, path, &network->single_cta);
    if (status == VE_OK && multi_cta != NULL)
        status = ve_network_code_load("ve_open", driver, network->device, multi_cta, path, &network->multi_cta);
    return status;
}

/* ---- Launching ---- */

/* The machine code for n images: several CTAs an image where each of them has a multiprocessor of its own. */
static const ve_network_code *code_for(const ve_network *network, int n) {
    const ve_network_code *multi = &network->multi_cta;
    int fits = multi->kernel != NULL && (unsigned int)n * multi->ctas_per_image <= (unsigned int)network->multiprocessors;
    return fits ? multi : &network->single_cta;
}

/* Launch the kernel on n images in device memory. */
static CUresult launch_network(const ve_network *network, CUdeviceptr images, int n) {
    size_t classes = (size_t)network->info.classes, count = (size_t)n;
    CUdeviceptr probabilities = network->outputs;
    CUdeviceptr angles = probabilities + count * classes * sizeof(float);
    CUdeviceptr scores = angles + count * sizeof(float);
    CUdeviceptr uncertainty = scores + count * sizeof(float);
    const ve_network_buffers buffers = {
        images,         network->weights, network->params, network->whitening, network->activations, network->workspace,
        network->barrier, probabilities,  angles,          scores,             uncertainty,
    };
    return ve_network_code_launch(network->driver, code_for(network, n), &buffers, n, (unsigned int)n, network->stream);
}

/* Copy n images from pinned memory to the device, launch, copy the outputs back: all on the stream. */
static CUresult enqueue(const ve_network *network, int n) {
    const ve_driver *driver = network->driver;
    size_t output_bytes = (size_t)n * outputs_per_image(network) * sizeof(float);
    CUresult result = driver->copy(network->images, (CUdeviceptr)(uintptr_t)network->host_images,
                                   (size_t)n * network->image_bytes, network->stream);
    if (result == CUDA_SUCCESS) result = launch_network(network, network->images, n);
    if (result == CUDA_SUCCESS)
        result = driver->copy((CUdeviceptr)(uintptr_t)network->host_outputs, network->outputs, output_bytes, network->stream);
    return result;
}

/* The graph of `enqueue` for n images; captured if it is not yet. */
static CUresult capture_graph(ve_network *network, int n, CUgraphExec *graph) {
    const ve_driver *driver = network->driver;
    if (network->graphs[n] == NULL) {
        CUgraph captured = NULL;
        CUresult result = driver->capture_begin(network->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        if (result != CUDA_SUCCESS) return result;
        result = enqueue(network, n);
        CUresult ended = driver->capture_end(network->stream, &captured);
        if (result == CUDA_SUCCESS) result = ended;
        if (result == CUDA_SUCCESS) result = driver->graph_instantiate(&network->graphs[n], captured, 0);
        if (captured != NULL) (void)driver->graph_destroy(captured);
        if (result != CUDA_SUCCESS) return result;
    }
    *graph = network->graphs[n];
    return CUDA_SUCCESS;
}

static void destroy_graphs(ve_network *network) {
    for (int i = 0; i <= MAX_GRAPHS; i++) {
        if (network->graphs[i] != NULL) (void)network->driver->graph_exec_destroy(network->graphs[i]);
        network->graphs[i] = NULL;
    }
}

/* Run the largest batch, and the largest with several CTAs an image, since the driver may load code only at its first launch. Then
 * capture and run every graph once, so that no call has to; what the device cannot do shows here. */
static CUresult run_everything_once(ve_network *network) {
    const ve_driver *driver = network->driver;
    CUresult result = enqueue(network, MAX_BATCH);
    if (result == CUDA_SUCCESS && network->multi_cta.kernel != NULL) {
        int n = network->multiprocessors / (int)network->multi_cta.ctas_per_image;
        if (n > MAX_BATCH) n = MAX_BATCH;
        if (n > 0) result = enqueue(network, n);
    }
    CUresult synchronized = driver->stream_synchronize(network->stream);
    if (result == CUDA_SUCCESS) result = synchronized;

    for (int n = 1; n <= MAX_GRAPHS && result == CUDA_SUCCESS; n++) {
        CUgraphExec graph = NULL;
        result = capture_graph(network, n, &graph);
        if (result == CUDA_SUCCESS) result = driver->graph_launch(graph, network->stream);
        synchronized = driver->stream_synchronize(network->stream);
        if (result == CUDA_SUCCESS) result = synchronized;
    }
    return result;
}

/* A device that does not run several CTAs together, for whatever reason, runs one an image. */
static ve_status warm_up(ve_network *network) {
    memset(network->host_images, 0, MAX_BATCH * network->image_bytes);
    CUresult result = run_everything_once(network);
    if (result != CUDA_SUCCESS && network->multi_cta.kernel != NULL) {
        network->multi_cta.kernel = NULL;
        destroy_graphs(network);
        result = run_everything_once(network);
    }
    return result == CUDA_SUCCESS ? VE_OK : driver_error(network, "ve_open", "run the network", result);
}

/* ---- Opening and closing ---- */

/* A tensor of the file to device memory. */
static ve_status upload(ve_network *network, const ve_tensor *tensor, CUdeviceptr *to) {
    const ve_driver *driver = network->driver;
    CUresult result = driver->mem_alloc(to, tensor->bytes);
    if (result == CUDA_SUCCESS)
        result = driver->copy(*to, (CUdeviceptr)(uintptr_t)tensor->data, tensor->bytes, network->stream);
    if (result == CUDA_SUCCESS) result = driver->stream_synchronize(network->stream);
    return result == CUDA_SUCCESS ? VE_OK : driver_error(network, "ve_open", "upload the network's weights", result);
}

static const int32_t zero_counters[MAX_BATCH]; /* of the barriers: CTAs that have arrived, by slot */

/* All memory that classifying needs. */
static ve_status alloc_buffers(ve_network *network) {
    const ve_driver *driver = network->driver;
    const ve_description *description = &network->description;
    size_t image_bytes = MAX_BATCH * network->image_bytes;
    size_t output_bytes = MAX_BATCH * outputs_per_image(network) * sizeof(float);
    void *host[2] = {NULL, NULL};
    CUresult result = driver->mem_alloc(&network->images, image_bytes);
    if (result == CUDA_SUCCESS) result = driver->mem_alloc(&network->activations, MAX_BATCH * description->activation_bytes);
    if (result == CUDA_SUCCESS)
        result = driver->mem_alloc(&network->workspace, MAX_BATCH * description->workspace_size * sizeof(float));
    if (result == CUDA_SUCCESS) result = driver->mem_alloc(&network->outputs, output_bytes);
    if (result == CUDA_SUCCESS) result = driver->mem_alloc(&network->barrier, sizeof zero_counters);
    if (result == CUDA_SUCCESS)
        result = driver->copy(network->barrier, (CUdeviceptr)(uintptr_t)zero_counters, sizeof zero_counters, network->stream);
    if (result == CUDA_SUCCESS) result = driver->stream_synchronize(network->stream);
    if (result == CUDA_SUCCESS) result = driver->host_alloc(&host[0], image_bytes);
    network->host_images = host[0];
    if (result == CUDA_SUCCESS) result = driver->host_alloc(&host[1], output_bytes);
    network->host_outputs = host[1];
    return result == CUDA_SUCCESS ? VE_OK : driver_error(network, "ve_open", "give memory", result);
}

/* Everything that needs the device's context. The file's tensors are still in memory. */
static ve_status load_network(ve_network *network, const char *path) {
    const ve_description *description = &network->description;
    ve_status status = load_codes(network, path);
    if (status != VE_OK) return status;
    CUresult result = network->driver->stream_create(&network->stream, CU_STREAM_NON_BLOCKING);
    if (result != CUDA_SUCCESS) return driver_error(network, "ve_open", "make a stream", result);
    status = upload(network, description->weights, &network->weights);
    if (status == VE_OK) status = upload(network, description->params, &network->params);
    if (status == VE_OK) status = upload(network, description->whitening, &network->whitening);
    if (status == VE_OK) status = alloc_buffers(network);
    return status == VE_OK ? warm_up(network) : status;
}

/* Read and verify the file's description; its tensors stay the file's. */
static ve_status read_description(ve_network *network, const char *path, const ve_tensors *file) {
    ve_description *description = &network->description;
    ve_status status = ve_description_read(path, file, description);
    if (status != VE_OK) return status;
    network->info = (ve_network_info){.side = description->height == description->width ? description->height : 0,
                                      .channels = description->channels,
                                      .classes = description->classes,
                                      .class_names = description->names,
                                      .threshold = description->threshold,
                                      .has_angle = description->has_angle};
    network->image_bytes = (size_t)description->height * (size_t)description->width * (size_t)description->channels;
    return VE_OK;
}

static ve_status retain_device(ve_network *network, int device) {
    CUresult result = network->driver->device_get(&network->device, device);
    if (result == CUDA_ERROR_INVALID_DEVICE)
        return ve_fail(VE_ERROR_NO_DEVICE, "ve_open: this machine has no CUDA device number %d.", device);
    if (result == CUDA_SUCCESS) result = network->driver->primary_retain(&network->context, network->device);
    return result == CUDA_SUCCESS ? VE_OK : driver_error(network, "ve_open", "open the device", result);
}

ve_status ve_open(const char *path, int device, ve_network **opened) {
    if (path == NULL || opened == NULL || device < 0)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_open: path and network must not be NULL, device not below 0; device is %d.",
                       device);
    *opened = NULL;
    ve_tensors file;
    ve_status status = ve_tensors_read(path, &file);
    if (status != VE_OK) return status;
    ve_network *network = calloc(1, sizeof *network);
    if (network == NULL) {
        ve_tensors_free(&file);
        return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for a handle.");
    }

    status = read_description(network, path, &file);
    if (status == VE_OK) status = ve_shared_driver("ve_open", &network->driver);
    if (status == VE_OK) status = retain_device(network, device);
    if (status == VE_OK) status = push_context(network, "ve_open");
    if (status == VE_OK) {
        status = load_network(network, path);
        pop_context(network);
    }
    ve_tensors_free(&file);
    if (status == VE_OK)
        *opened = network;
    else
        (void)ve_close(network);
    return status;
}

ve_status ve_close(ve_network *network) {
    if (network == NULL) return VE_OK;
    const ve_driver *driver = network->driver;
    if (network->context != NULL) {
        int pushed = driver->context_push(network->context) == CUDA_SUCCESS;
        destroy_graphs(network);
        const CUdeviceptr memory[] = {network->weights,     network->params,    network->whitening, network->images,
                                      network->activations, network->workspace, network->outputs,   network->barrier};
        for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
            if (memory[i] != 0) (void)driver->mem_free(memory[i]);
        if (network->host_images != NULL) (void)driver->host_free(network->host_images);
        if (network->host_outputs != NULL) (void)driver->host_free(network->host_outputs);
        if (network->stream != NULL) (void)driver->stream_destroy(network->stream);
        ve_network_code_unload(driver, &network->single_cta);
        ve_network_code_unload(driver, &network->multi_cta);
        if (pushed) pop_context(network);
        (void)driver->primary_release(network->device);
    }
    ve_description_free(&network->description);
    free(network);
    return VE_OK;
}

ve_status ve_network_get_info(const ve_network *network, ve_network_info *info) {
    if (network == NULL || info == NULL)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_network_get_info: network and info must not be NULL.");
    *info = network->info;
    return VE_OK;
}

ve_status ve_network_get_size(const ve_network *network, int *height, int *width) {
    if (network == NULL || height == NULL || width == NULL)
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_network_get_size: network, height and width must not be NULL.");
    *height = network->description.height;
    *width = network->description.width;
    return VE_OK;
}

/* ---- Classifying ---- */

/* Whether memory is the host's. What the driver does not know is. */
static int is_host(const ve_network *network, const void *pointer) {
    unsigned int kind = 0;
    CUresult result = network->driver->pointer_attribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)pointer);
    return result != CUDA_SUCCESS || (kind != CU_MEMORYTYPE_DEVICE && kind != CU_MEMORYTYPE_UNIFIED);
}

/* Where a batch comes from and goes to: host or device memory, by pointer. An output that is not requested is NULL. */
typedef struct batch {
    const uint8_t *images;
    int images_on_host;
    float *outputs[OUTPUTS];
    int output_on_host[OUTPUTS];
    size_t widths[OUTPUTS]; /* floats an image */
} batch;

/* Run at most MAX_BATCH images; the outputs are in `outputs` and `host_outputs` once the stream is done. */
static CUresult run_images(ve_network *network, const batch *b, int n) {
    const ve_driver *driver = network->driver;
    if (b->images_on_host) {
        memcpy(network->host_images, b->images, (size_t)n * network->image_bytes);
        if (n > MAX_GRAPHS) return enqueue(network, n);
        CUgraphExec graph = NULL;
        CUresult result = capture_graph(network, n, &graph);
        return result == CUDA_SUCCESS ? driver->graph_launch(graph, network->stream) : result;
    }
    CUresult result = launch_network(network, (CUdeviceptr)(uintptr_t)b->images, n);
    if (result != CUDA_SUCCESS) return result;
    size_t output_bytes = (size_t)n * outputs_per_image(network) * sizeof(float);
    return driver->copy((CUdeviceptr)(uintptr_t)network->host_outputs, network->outputs, output_bytes, network->stream);
}

static ve_status classify_batch(ve_network *network, const batch *b, int n) {
    const ve_driver *driver = network->driver;
    CUresult result = run_images(network, b, n);
    CUdeviceptr from = network->outputs;
    for (int i = 0; i < OUTPUTS && result == CUDA_SUCCESS; i++) {
        size_t bytes = (size_t)n * b->widths[i] * sizeof(float);
        if (b->outputs[i] != NULL && !b->output_on_host[i])
            result = driver->copy((CUdeviceptr)(uintptr_t)b->outputs[i], from, bytes, network->stream);
        from += bytes;
    }
    CUresult synchronized = driver->stream_synchronize(network->stream);
    if (result == CUDA_SUCCESS) result = synchronized;
    if (result != CUDA_SUCCESS) return driver_error(network, "ve_classify", "run the network", result);

    const float *host = network->host_outputs;
    for (int i = 0; i < OUTPUTS; i++) {
        size_t count = (size_t)n * b->widths[i];
        if (b->outputs[i] != NULL && b->output_on_host[i]) memcpy(b->outputs[i], host, count * sizeof(float));
        host += count;
    }
    return VE_OK;
}

/* Whether n images, and each of their outputs, are sizes that memory can have. */
static int fits(const ve_network *network, size_t n) {
    size_t bytes = 0, widest = network->info.classes > UNCERTAINTY_VALUES ? (size_t)network->info.classes : UNCERTAINTY_VALUES;
    return ve_product(n, network->image_bytes, &bytes) && ve_product(n, widest * sizeof(float), &bytes);
}

ve_status ve_classify_ex(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles, float *scores,
                         float *angle_uncertainty) {
    if (network == NULL || (n > 0 && images == NULL))
        return ve_fail(VE_ERROR_INVALID_ARGUMENT, "ve_classify: network and images must not be NULL; n is %zu.", n);
    if (!fits(network, n))
        return ve_fail(VE_ERROR_INVALID_ARGUMENT,
                       "ve_classify: n is %zu, and so many images of %zu bytes are more than memory can hold; "
                       "a number below 0 becomes such a one.",
                       n, network->image_bytes);
    if (n == 0) return VE_OK;
    ve_status status = push_context(network, "ve_classify");
    if (status != VE_OK) return status;

    batch b = {.images = images,
               .images_on_host = is_host(network, images),
               .outputs = {probabilities, angles, scores, angle_uncertainty},
               .widths = {(size_t)network->info.classes, 1, 1, UNCERTAINTY_VALUES}};
    for (int i = 0; i < OUTPUTS; i++) b.output_on_host[i] = b.outputs[i] == NULL || is_host(network, b.outputs[i]);
    for (size_t done = 0; done < n && status == VE_OK;) {
        size_t count = n - done < MAX_BATCH ? n - done : MAX_BATCH;
        status = classify_batch(network, &b, (int)count);
        b.images += count * network->image_bytes;
        for (int i = 0; i < OUTPUTS; i++)
            if (b.outputs[i] != NULL) b.outputs[i] += count * b.widths[i];
        done += count;
    }
    pop_context(network);
    return status;
}

ve_status ve_classify(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles, float *scores) {
    return ve_classify_ex(network, images, n, probabilities, angles, scores, NULL);
}

/* ---- Names of before, deprecated ---- */

ve_status ve_classify_with_doubts(ve_network *network, const uint8_t *images, size_t n, float *probabilities, float *angles,
                                  float *scores, float *doubts) {
    return ve_classify_ex(network, images, n, probabilities, angles, scores, doubts);
}

ve_status ve_describe(const ve_network *network, ve_network_info *info) { return ve_network_get_info(network, info); }
