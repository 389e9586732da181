/* The operator VaeEdgeNetwork as a plugin of TensorRT 10 and TensorRT-RTX: one launch of the network's kernel.
 *
 *   image         int8 [N, H, W, C]         probabilities  float32 [N, K]
 *   weights       float16 or int8 [...]     angle          float32 [N], radians
 *   params        float32 [...]             score          float32 [N]
 *   whitening     float16 [M, D, padded D]  uncertainty    float32 [N, 3]
 *
 * The image's bytes are those of uint8 pixels. Its type is int8, since TensorRT gives no uint8 tensor to a plugin ("UInt8 datatype
 * formats are not supported"), and one of its own conversions would be a launch more.
 *
 * The sizes, K and the machine code come from the attribute machine_code, which an engine keeps. */
#ifndef VAE_EDGE_TENSORRT_PLUGIN_H
#define VAE_EDGE_TENSORRT_PLUGIN_H

#include <NvInferRuntime.h>

#include <array>
#include <memory>

#include "code.h"

namespace vae_edge {

constexpr const char *PLUGIN_NAME = "VaeEdgeNetwork";
constexpr const char *PLUGIN_VERSION = "1";
constexpr const char *PLUGIN_NAMESPACE = "";
constexpr const char *LAYOUT = "layout";             /* of a node: JSON of the network's layout */
constexpr const char *MACHINE_CODE = "machine_code"; /* of a node and in an engine: bytes, see vae_edge_kernels/aot/network_file.py */
constexpr const char *MAX_SLOTS = "max_slots";       /* in an engine: images that run at a time, at most; int32 */

constexpr int SLOTS_PER_MULTIPROCESSOR = 2; /* CTAs that a multiprocessor runs at a time; each has a slot of its own */
constexpr int32_t MOST_SLOTS = 512;         /* where an engine is built without a GPU: more than any that the code runs on can use */

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    Plugin(std::shared_ptr<Code> code, int32_t max_slots) noexcept;
    Plugin(const Plugin &) = delete;
    Plugin &operator=(const Plugin &) = delete;

    /* IPluginV3 */
    nvinfer1::IPluginCapability *getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3 *clone() noexcept override;

    /* IPluginV3OneCore */
    const char *getPluginName() const noexcept override { return PLUGIN_NAME; }
    const char *getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    const char *getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

    /* IPluginV3OneBuild */
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc *inputs, int32_t input_count,
                            const nvinfer1::DynamicPluginTensorDesc *outputs, int32_t output_count) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType *output_types, int32_t output_count, const nvinfer1::DataType *input_types,
                               int32_t input_count) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs *inputs, int32_t input_count, const nvinfer1::DimsExprs *shape_inputs,
                            int32_t shape_input_count, nvinfer1::DimsExprs *outputs, int32_t output_count,
                            nvinfer1::IExprBuilder &builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc *tensors, int32_t input_count,
                                   int32_t output_count) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc *inputs, int32_t input_count,
                                 const nvinfer1::DynamicPluginTensorDesc *outputs, int32_t output_count) const noexcept override;

    /* IPluginV3OneRuntime */
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc *inputs, int32_t input_count, const nvinfer1::PluginTensorDesc *outputs,
                          int32_t output_count) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc *input_descs, const nvinfer1::PluginTensorDesc *output_descs,
                    const void *const *inputs, void *const *outputs, void *workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *context) noexcept override;
    const nvinfer1::PluginFieldCollection *getFieldsToSerialize() noexcept override;

  private:
    bool is_input(int32_t position, const nvinfer1::PluginTensorDesc &tensor) const;
    nvinfer1::DataType type_of(int32_t position) const;

    std::shared_ptr<Code> code_;
    int32_t max_slots_;
    std::array<nvinfer1::PluginField, 2> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vae_edge

#endif
