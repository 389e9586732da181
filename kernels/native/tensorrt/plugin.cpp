#include "plugin.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>

#include "log.h"

namespace vae_edge {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

namespace {

enum Input { IMAGE, WEIGHTS, PARAMS, WHITENING, INPUTS };
enum Output { PROBABILITIES, ANGLE, SCORE, UNCERTAINTY, OUTPUTS };
constexpr const char *INPUT_NAMES[INPUTS] = {"image", "weights", "params", "whitening"};
constexpr int32_t UNCERTAINTY_VALUES = 3;
constexpr std::size_t ALIGNMENT = 256;     /* of the two parts of the workspace */
constexpr std::uintptr_t CODE_ALIGNMENT = 16; /* that the machine code assumes of constants and workspace */
constexpr int32_t FAILED = 1;

std::size_t aligned(std::size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* Elements of a tensor, or -1 where a dimension is not known yet. */
int64_t volume(const Dims &dims) {
    int64_t count = 1;
    for (int32_t i = 0; i < dims.nbDims; i++) {
        if (dims.d[i] < 0) return -1;
        count *= dims.d[i];
    }
    return dims.nbDims < 0 ? -1 : count;
}

std::size_t activation_bytes(const ve_description &network, int64_t slots) {
    return aligned(static_cast<std::size_t>(slots) * network.activation_bytes);
}

std::size_t workspace_bytes(const ve_description &network, int64_t slots) {
    return activation_bytes(network, slots) + aligned(static_cast<std::size_t>(slots) * network.workspace_size * sizeof(float));
}

CUdeviceptr address(const void *pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

}  // namespace

Plugin::Plugin(std::shared_ptr<Code> code, int32_t max_slots) noexcept : code_(std::move(code)), max_slots_(max_slots) {
    fields_[0] = {MACHINE_CODE, code_->bytes(), nvinfer1::PluginFieldType::kCHAR, static_cast<int32_t>(code_->size())};
    fields_[1] = {MAX_SLOTS, &max_slots_, nvinfer1::PluginFieldType::kINT32, 1};
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
}

nvinfer1::IPluginCapability *Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3 *Plugin::clone() noexcept {
    Plugin *copy = new (std::nothrow) Plugin(code_, max_slots_);
    if (copy == nullptr) log_error("there is no memory for a clone of the plugin.");
    return copy;
}

/* ---- Building ---- */

DataType Plugin::type_of(int32_t position) const {
    switch (position) {
        case IMAGE: return DataType::kINT8;
        case WEIGHTS: return code_->description().int8 != 0 ? DataType::kINT8 : DataType::kHALF;
        case WHITENING: return DataType::kHALF;
        default: return DataType::kFLOAT;
    }
}

/* Whether a tensor can be that input; the batch size may be unknown. What it should be is in the log if not. */
bool Plugin::is_input(int32_t position, const PluginTensorDesc &tensor) const {
    const ve_description &network = code_->description();
    const char *name = INPUT_NAMES[position];
    if (tensor.type != type_of(position)) {
        log_error("%s is of another data type than the machine code takes: %d instead of %d.", name, static_cast<int>(tensor.type),
                  static_cast<int>(type_of(position)));
        return false;
    }
    const Dims &dims = tensor.dims;
    if (position == IMAGE) {
        if (dims.nbDims == 4 && dims.d[1] == network.height && dims.d[2] == network.width && dims.d[3] == network.channels) return true;
        log_error("image must be [N, %d, %d, %d], for which the machine code was compiled; it has %d dimensions, [%lld, %lld, %lld, %lld].",
                  network.height, network.width, network.channels, dims.nbDims, static_cast<long long>(dims.d[0]),
                  static_cast<long long>(dims.d[1]), static_cast<long long>(dims.d[2]), static_cast<long long>(dims.d[3]));
        return false;
    }
    const std::size_t expected = position == WEIGHTS  ? network.weights_bytes
                                 : position == PARAMS ? network.params_bytes
                                                      : network.whitening_bytes;
    const std::size_t element = tensor.type == DataType::kFLOAT ? 4 : tensor.type == DataType::kHALF ? 2 : 1;
    const int64_t count = volume(dims);
    if (count >= 0 && static_cast<std::size_t>(count) * element == expected) return true;
    log_error("%s must have %zu elements, for which the machine code was compiled; it has %lld.", name, expected / element,
              static_cast<long long>(count));
    return false;
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc *inputs, int32_t input_count, const DynamicPluginTensorDesc *,
                                int32_t output_count) noexcept {
    if (input_count != INPUTS || output_count != OUTPUTS) {
        log_error("the node must have %d inputs and %d outputs; it has %d and %d.", INPUTS, OUTPUTS, input_count, output_count);
        return FAILED;
    }
    for (int32_t i = 0; i < INPUTS; i++)
        if (!is_input(i, inputs[i].desc)) return FAILED;
    return 0;
}

int32_t Plugin::getOutputDataTypes(DataType *output_types, int32_t output_count, const DataType *input_types,
                                   int32_t input_count) const noexcept {
    if (input_count != INPUTS || output_count != OUTPUTS) {
        log_error("the node must have %d inputs and %d outputs; it has %d and %d.", INPUTS, OUTPUTS, input_count, output_count);
        return FAILED;
    }
    if (input_types[IMAGE] == DataType::kUINT8) {
        log_error("image is uint8, of which TensorRT gives no tensor to a plugin: declare the same bytes int8 "
                  "(vae_edge.exporting.plugin_code.make_plugin_model).");
        return FAILED;
    }
    std::fill_n(output_types, output_count, DataType::kFLOAT);
    return 0;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs *inputs, int32_t input_count, const nvinfer1::DimsExprs *, int32_t,
                                nvinfer1::DimsExprs *outputs, int32_t output_count, nvinfer1::IExprBuilder &builder) noexcept {
    if (input_count != INPUTS || output_count != OUTPUTS || inputs[IMAGE].nbDims != 4) {
        log_error("the node must have %d inputs, image [N, H, W, C] first, and %d outputs.", INPUTS, OUTPUTS);
        return FAILED;
    }
    for (int32_t i = 0; i < OUTPUTS; i++) {
        outputs[i].nbDims = i == PROBABILITIES || i == UNCERTAINTY ? 2 : 1;
        outputs[i].d[0] = inputs[IMAGE].d[0];
    }
    outputs[PROBABILITIES].d[1] = builder.constant(code_->description().classes);
    outputs[UNCERTAINTY].d[1] = builder.constant(UNCERTAINTY_VALUES);
    return 0;
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc *tensors, int32_t, int32_t) noexcept {
    const PluginTensorDesc &tensor = tensors[position].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == type_of(position);
}

int32_t Plugin::getNbOutputs() const noexcept { return OUTPUTS; }

/* For the largest batch of the profile, as far as its images run at a time; for any batch where the profile does not say. */
std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc *inputs, int32_t input_count, const DynamicPluginTensorDesc *,
                                     int32_t) const noexcept {
    if (input_count != INPUTS) return 0;
    const int64_t batch = std::max(inputs[IMAGE].max.d[0], inputs[IMAGE].desc.dims.d[0]);
    return workspace_bytes(code_->description(), batch < 0 ? max_slots_ : std::clamp<int64_t>(batch, 1, max_slots_));
}

/* ---- Running ---- */

/* Engines are also built where there is no GPU, or for another one: whether there is code for this one only enqueue must know. */
int32_t Plugin::onShapeChange(const PluginTensorDesc *inputs, int32_t input_count, const PluginTensorDesc *, int32_t) noexcept {
    if (input_count != INPUTS) return FAILED;
    for (int32_t i = 0; i < INPUTS; i++)
        if (!is_input(i, inputs[i])) return FAILED;
    (void)code_->on_current_device();
    return 0;
}

/* Load the code before the first enqueue, which may be recorded in a CUDA graph: no code can be loaded then. */
nvinfer1::IPluginV3 *Plugin::attachToContext(nvinfer1::IPluginResourceContext *) noexcept {
    (void)code_->on_current_device();
    return clone();
}

int32_t Plugin::enqueue(const PluginTensorDesc *input_descs, const PluginTensorDesc *, const void *const *inputs, void *const *outputs,
                        void *workspace, cudaStream_t stream) noexcept {
    const int64_t n = input_descs[IMAGE].dims.d[0];
    if (n == 0) return 0;
    if (n < 0 || n > std::numeric_limits<int32_t>::max()) {
        log_error("enqueue: a batch has 0 to %d images; this one has %lld.", std::numeric_limits<int32_t>::max(),
                  static_cast<long long>(n));
        return FAILED;
    }
    const void *const fixed[] = {inputs[WEIGHTS], inputs[PARAMS], inputs[WHITENING], workspace};
    for (const void *pointer : fixed) {
        if (pointer != nullptr && address(pointer) % CODE_ALIGNMENT == 0) continue;
        log_error("enqueue: constants and workspace must lie at multiples of %d bytes; one lies at %p.", static_cast<int>(CODE_ALIGNMENT),
                  pointer);
        return FAILED;
    }
    const Loaded *loaded = code_->on_current_device();
    if (loaded == nullptr) {
        log_last_error();
        return FAILED;
    }

    const int64_t at_a_time = std::min<int64_t>(max_slots_, int64_t{SLOTS_PER_MULTIPROCESSOR} * loaded->multiprocessors);
    const int64_t slots = std::clamp<int64_t>(n, 1, at_a_time);
    ve_network_buffers buffers{};
    buffers.images = address(inputs[IMAGE]);
    buffers.weights = address(inputs[WEIGHTS]);
    buffers.params = address(inputs[PARAMS]);
    buffers.whitening = address(inputs[WHITENING]);
    buffers.activations = address(workspace);
    buffers.workspace = buffers.activations + activation_bytes(code_->description(), slots);
    buffers.barrier = buffers.workspace; /* not read: there is one CTA an image */
    buffers.probabilities = address(outputs[PROBABILITIES]);
    buffers.angles = address(outputs[ANGLE]);
    buffers.scores = address(outputs[SCORE]);
    buffers.uncertainty = address(outputs[UNCERTAINTY]);
    const CUresult result = ve_network_code_launch(loaded->driver, &loaded->code, &buffers, static_cast<int32_t>(n),
                                                   static_cast<unsigned int>(slots), stream);
    if (result == CUDA_SUCCESS) return 0;
    log_error("enqueue: the driver does not launch the network: error %d, %s.", result, ve_driver_error_text(loaded->driver, result));
    return FAILED;
}

const nvinfer1::PluginFieldCollection *Plugin::getFieldsToSerialize() noexcept { return &collection_; }

}  // namespace vae_edge
