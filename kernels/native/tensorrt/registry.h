/* The functions of TensorRT's library that the plugin needs. A plugin that was built without that library refers to them weakly, and
 * works in programs that make them visible; TensorRT's header declares them. */
#ifndef VAE_EDGE_TENSORRT_REGISTRY_H
#define VAE_EDGE_TENSORRT_REGISTRY_H

#include <NvInferRuntime.h>

#ifdef VAE_EDGE_WEAK_TENSORRT
extern "C" nvinfer1::IPluginRegistry *getPluginRegistry() noexcept __attribute__((weak));
extern "C" nvinfer1::ILogger *getLogger() noexcept __attribute__((weak));
extern "C" int32_t getInferLibVersion() noexcept __attribute__((weak));
#endif

namespace vae_edge {

/* Whether TensorRT's library is visible. */
inline bool has_library() {
#ifdef VAE_EDGE_WEAK_TENSORRT
    return getPluginRegistry != nullptr && getLogger != nullptr && getInferLibVersion != nullptr;
#else
    return true;
#endif
}

/* Whether registry and logger of the visible library have the virtual functions of the headers that this was compiled with, and so may
 * be called. TensorRT 11 changed those of TensorRT 10, and TensorRT-RTX did so between 1.3 and 1.7: its minor versions are compared,
 * too. The interfaces of plugins and creators are the same in all of them. */
inline bool is_library_of_headers() {
    if (!has_library()) return false;
    const int32_t library = getInferLibVersion(), headers = NV_TENSORRT_VERSION;
    if (library / 10000 != headers / 10000) return false;
    return NV_TENSORRT_MAJOR >= 8 || library / 100 == headers / 100;
}

}  // namespace vae_edge

#endif
