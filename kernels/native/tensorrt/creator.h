/* Makes plugins from the attributes of an ONNX node, or from the fields that an engine kept. */
#ifndef VAE_EDGE_TENSORRT_CREATOR_H
#define VAE_EDGE_TENSORRT_CREATOR_H

#include <NvInferRuntime.h>

#include <array>

#include "plugin.h"

namespace vae_edge {

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    Creator() noexcept;
    nvinfer1::IPluginV3 *createPlugin(const char *name, const nvinfer1::PluginFieldCollection *fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection *getFieldNames() noexcept override { return &collection_; }
    const char *getPluginName() const noexcept override { return PLUGIN_NAME; }
    const char *getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    const char *getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

  private:
    std::array<nvinfer1::PluginField, 2> fields_; /* attributes of a node; an engine keeps others, see Plugin */
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vae_edge

#endif
