/* A library that registers the plugin as soon as it is loaded, as REGISTER_TENSORRT_PLUGIN does: for programs that only load libraries
 * (LD_PRELOAD, trtexec --staticPlugins, Triton, DeepStream). It is one of its own, since IPluginRegistry::loadLibrary fails for a
 * library whose plugins are registered already. */
#include <cstdio>

#include "creator.h"
#include "registry.h"

extern "C" nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) noexcept;

namespace {

struct Registration {
    Registration() noexcept {
        if (!vae_edge::has_library()) {
            (void)std::fprintf(stderr, "VaeEdgeNetwork: not registered: TensorRT's library is not loaded, or not for all.\n");
            return;
        }
        if (!vae_edge::is_library_of_headers()) {
            (void)std::fprintf(stderr, "VaeEdgeNetwork: not registered: built with the headers of TensorRT %d, and the library is %d.\n",
                               static_cast<int>(NV_TENSORRT_VERSION), static_cast<int>(getInferLibVersion()));
            return;
        }
        int32_t count = 0;
        nvinfer1::IPluginCreatorInterface *const *creators = getCreators(count);
        for (int32_t i = 0; i < count; i++) (void)getPluginRegistry()->registerCreator(*creators[i], vae_edge::PLUGIN_NAMESPACE);
    }
} const registration;

}  // namespace
