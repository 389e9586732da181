/* What TensorRT does with a plugin, for tests: make it from a node's attributes, build, keep its fields, make it again, run. */
#ifndef VAE_EDGE_TENSORRT_HOST_H
#define VAE_EDGE_TENSORRT_HOST_H

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

using Bytes = std::vector<unsigned char>;
constexpr int32_t INPUTS = 4, OUTPUTS = 4;

/* The plugin's library, opened as IPluginRegistry::loadLibrary does. */
class Library {
  public:
    explicit Library(const std::string &path); /* throws std::runtime_error */
    nvinfer1::IPluginCreatorV3One &creator() const { return *creator_; }

  private:
    nvinfer1::IPluginCreatorV3One *creator_ = nullptr;
};

/* What was logged since the last call. */
std::string take_log();

struct Fields {
    std::vector<Bytes> values;
    std::vector<std::string> names;
    std::vector<nvinfer1::PluginFieldType> types;
    void add(const std::string &name, const Bytes &value, nvinfer1::PluginFieldType type = nvinfer1::PluginFieldType::kCHAR);
};

/* A node's tensors, of which only the batch size changes. */
struct Shapes {
    int64_t height = 0, width = 0, channels = 0, weights = 0, params = 0;
    std::array<int64_t, 3> whitening{};
    bool int8 = false;
};
std::array<nvinfer1::PluginTensorDesc, INPUTS> input_descs(const Shapes &shapes, int64_t batch);

/* nullptr where the creator refuses. */
std::unique_ptr<nvinfer1::IPluginV3> create(const Library &library, const Fields &fields, nvinfer1::TensorRTPhase phase);
nvinfer1::IPluginV3OneBuild &build_of(nvinfer1::IPluginV3 &plugin);
nvinfer1::IPluginV3OneRuntime &runtime_of(nvinfer1::IPluginV3 &plugin);

/* What an engine keeps of the plugin. */
Fields serialized(nvinfer1::IPluginV3 &plugin);

/* Dimensions and types of the outputs, -1 for the batch; an empty list where the plugin refuses. */
std::vector<std::vector<int64_t>> output_shapes(nvinfer1::IPluginV3 &plugin, const Shapes &shapes);

/* Workspace for batches up to this size; checks the types on the way. */
std::size_t configure(nvinfer1::IPluginV3 &plugin, const Shapes &shapes, int64_t max_batch);

#endif
