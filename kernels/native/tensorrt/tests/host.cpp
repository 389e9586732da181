#include "host.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

using namespace nvinfer1;

namespace {

std::string logged;

class Logger final : public ILogger {
    void log(Severity, const char *message) noexcept override { logged += std::string(message) + "\n"; }
} logger;

class Finder final : public ILoggerFinder {
    ILogger *findLogger() override { return &logger; }
} finder;

/* Dimensions as expressions: constants, of which -1 is the batch. */
class Expression final : public IDimensionExpr {
    struct Value final : apiv::VDimensionExpr {
        explicit Value(int64_t of) : value(of) {}
        bool isConstant() const override { return value >= 0; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
        int64_t value;
    } value_;

  public:
    explicit Expression(int64_t value) : value_(value) { mImpl = &value_; }
};

class Builder final : public IExprBuilder {
    struct Values final : apiv::VExprBuilder {
        const IDimensionExpr *constant(int64_t value) override {
            made.push_back(std::make_unique<Expression>(value));
            return made.back().get();
        }
        const IDimensionExpr *operation(DimensionOperation, const IDimensionExpr &, const IDimensionExpr &) override { return nullptr; }
        const IDimensionExpr *declareSizeTensor(int32_t, const IDimensionExpr &, const IDimensionExpr &) override { return nullptr; }
        std::vector<std::unique_ptr<Expression>> made;
    } values_;

  public:
    Builder() { mImpl = &values_; }
};

PluginTensorDesc desc(std::initializer_list<int64_t> dims, DataType type) {
    PluginTensorDesc made{};
    made.dims.nbDims = static_cast<int32_t>(dims.size());
    int32_t i = 0;
    for (int64_t dim : dims) made.dims.d[i++] = dim;
    made.type = type;
    made.format = TensorFormat::kLINEAR;
    return made;
}

template <typename T>
T &capability(IPluginV3 &plugin, PluginCapabilityType type) {
    return *static_cast<T *>(plugin.getCapabilityInterface(type));
}

}  // namespace

/* TensorRT's library, as far as the plugin asks for it; the plugin finds these when nothing else defines them. */
extern "C" {
IPluginRegistry *getPluginRegistry() noexcept { return nullptr; }
ILogger *getLogger() noexcept { return &logger; }
int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }
}

std::string take_log() {
    std::string text;
    text.swap(logged);
    return text;
}

Library::Library(const std::string &path) {
    void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    using GetCreators = IPluginCreatorInterface *const *(*)(int32_t &);
    using SetLoggerFinder = void (*)(ILoggerFinder *);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
    const auto set_logger_finder = reinterpret_cast<SetLoggerFinder>(dlsym(handle, "setLoggerFinder"));
    if (get_creators == nullptr || set_logger_finder == nullptr) throw std::runtime_error("the library lacks a function");
    set_logger_finder(&finder);
    int32_t count = 0;
    IPluginCreatorInterface *const *creators = get_creators(count);
    if (count != 1 || std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0)
        throw std::runtime_error("the library has not the one creator");
    creator_ = static_cast<IPluginCreatorV3One *>(creators[0]);
}

void Fields::add(const std::string &name, const Bytes &value, PluginFieldType type) {
    names.push_back(name);
    values.push_back(value);
    types.push_back(type);
}

std::array<PluginTensorDesc, INPUTS> input_descs(const Shapes &shapes, int64_t batch) {
    return {desc({batch, shapes.height, shapes.width, shapes.channels}, DataType::kINT8),
            desc({shapes.weights}, shapes.int8 ? DataType::kINT8 : DataType::kHALF), desc({shapes.params}, DataType::kFLOAT),
            desc({shapes.whitening[0], shapes.whitening[1], shapes.whitening[2]}, DataType::kHALF)};
}

std::unique_ptr<IPluginV3> create(const Library &library, const Fields &fields, TensorRTPhase phase) {
    std::vector<PluginField> list;
    for (std::size_t i = 0; i < fields.names.size(); i++) {
        const std::size_t length = fields.types[i] == PluginFieldType::kINT32 ? fields.values[i].size() / 4 : fields.values[i].size();
        list.emplace_back(fields.names[i].c_str(), fields.values[i].data(), fields.types[i], static_cast<int32_t>(length));
    }
    PluginFieldCollection collection;
    collection.nbFields = static_cast<int32_t>(list.size());
    collection.fields = list.data();
    return std::unique_ptr<IPluginV3>(library.creator().createPlugin("network", &collection, phase));
}

IPluginV3OneBuild &build_of(IPluginV3 &plugin) { return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime &runtime_of(IPluginV3 &plugin) { return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }

Fields serialized(IPluginV3 &plugin) {
    Fields kept;
    const PluginFieldCollection *fields = runtime_of(plugin).getFieldsToSerialize();
    for (int32_t i = 0; i < fields->nbFields; i++) {
        const PluginField &field = fields->fields[i];
        const auto *data = static_cast<const unsigned char *>(field.data);
        const int32_t size = field.type == PluginFieldType::kINT32 ? 4 * field.length : field.length;
        kept.add(field.name, Bytes(data, data + size), field.type);
    }
    return kept;
}

std::vector<std::vector<int64_t>> output_shapes(IPluginV3 &plugin, const Shapes &shapes) {
    IPluginV3OneBuild &build = build_of(plugin);
    const auto descs = input_descs(shapes, -1);
    std::vector<std::unique_ptr<Expression>> kept;
    std::array<DimsExprs, INPUTS> inputs{};
    std::array<DataType, INPUTS> types{};
    for (std::size_t i = 0; i < INPUTS; i++) {
        inputs[i].nbDims = descs[i].dims.nbDims;
        types[i] = descs[i].type;
        for (int32_t k = 0; k < inputs[i].nbDims; k++) {
            kept.push_back(std::make_unique<Expression>(descs[i].dims.d[k]));
            inputs[i].d[k] = kept.back().get();
        }
    }
    Builder builder;
    std::array<DimsExprs, OUTPUTS> outputs{};
    std::array<DataType, OUTPUTS> output_types{};
    std::vector<std::vector<int64_t>> found;
    if (build.getNbOutputs() != OUTPUTS || build.getOutputDataTypes(output_types.data(), OUTPUTS, types.data(), INPUTS) != 0 ||
        build.getOutputShapes(inputs.data(), INPUTS, nullptr, 0, outputs.data(), OUTPUTS, builder) != 0)
        return found;
    for (std::size_t i = 0; i < OUTPUTS; i++) {
        if (output_types[i] != DataType::kFLOAT) return {};
        found.emplace_back();
        for (int32_t k = 0; k < outputs[i].nbDims; k++) found.back().push_back(outputs[i].d[k]->getConstantValue());
    }
    return found;
}

std::size_t configure(IPluginV3 &plugin, const Shapes &shapes, int64_t max_batch) {
    IPluginV3OneBuild &build = build_of(plugin);
    const auto descs = input_descs(shapes, -1);
    std::array<DynamicPluginTensorDesc, INPUTS + OUTPUTS> tensors{};
    for (std::size_t i = 0; i < INPUTS + OUTPUTS; i++) {
        tensors[i].desc = i < INPUTS ? descs[i] : desc({-1}, DataType::kFLOAT);
        tensors[i].min = tensors[i].max = tensors[i].opt = tensors[i].desc.dims;
        if (i == 0) tensors[i].max.d[0] = max_batch;
        if (i == 0) tensors[i].min.d[0] = tensors[i].opt.d[0] = 1;
        if (!build.supportsFormatCombination(static_cast<int32_t>(i), tensors.data(), INPUTS, OUTPUTS)) return 0;
    }
    if (build.configurePlugin(tensors.data(), INPUTS, tensors.data() + INPUTS, OUTPUTS) != 0) return 0;
    return build.getWorkspaceSize(tensors.data(), INPUTS, tensors.data() + INPUTS, OUTPUTS);
}

/* ---- For Python: all of it at once ---- */

namespace {

Bytes bytes_of(const void *data, int64_t size) {
    const auto *first = static_cast<const unsigned char *>(data);
    return Bytes(first, first + size);
}

}  // namespace

/* Build with a node's attributes, then run from the fields that were kept. sizes: height, width, channels, elements of weights and
 * params, the three dimensions of whitening, whether int8. `allocate` gives device memory for the workspace; `wait` waits for the
 * stream, before the code is unloaded. 0, or the step that failed; what was logged is in `text`. */
extern "C" int host_run(const char *path, const void *layout, int64_t layout_size, const void *code, int64_t code_size,
                        const int64_t *sizes, int64_t max_batch, int64_t batch, const void *const *inputs, void *const *outputs,
                        void *(*allocate)(std::size_t), int (*wait)(void *), void *stream, char *text, std::size_t text_size) {
    int step = 0;
    try {
        const Library library(path);
        const Shapes shapes{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], {sizes[5], sizes[6], sizes[7]}, sizes[8] != 0};
        Fields attributes;
        attributes.add("layout", bytes_of(layout, layout_size));
        attributes.add("machine_code", bytes_of(code, code_size));
        auto made = create(library, attributes, TensorRTPhase::kBUILD);
        const std::size_t workspace = made == nullptr ? 0 : configure(*made, shapes, max_batch);
        auto again = workspace == 0 ? nullptr : create(library, serialized(*made), TensorRTPhase::kRUNTIME);
        made.reset();
        const auto descs = input_descs(shapes, batch);
        std::unique_ptr<IPluginV3> attached(again == nullptr ? nullptr : runtime_of(*again).attachToContext(nullptr));
        if (attached == nullptr) {
            step = 1;
        } else if (runtime_of(*attached).onShapeChange(descs.data(), INPUTS, nullptr, OUTPUTS) != 0) {
            step = 2;
        } else if (runtime_of(*attached).enqueue(descs.data(), nullptr, inputs, outputs, allocate(workspace),
                                                 static_cast<cudaStream_t>(stream)) != 0) {
            step = 3;
        } else if (wait(stream) != 0) {
            step = 4;
        }
    } catch (const std::exception &error) {
        logged += error.what();
        step = 5;
    }
    const std::string log = take_log();
    std::strncpy(text, log.c_str(), text_size - 1);
    return step;
}
