/* Messages to TensorRT's logger. */
#ifndef VAE_EDGE_TENSORRT_LOG_H
#define VAE_EDGE_TENSORRT_LOG_H

#include <NvInferRuntime.h>

namespace vae_edge {

/* As setLoggerFinder of the library's interface. */
void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept;

/* Tell an error as printf does. Where there is no logger of TensorRT, or one of another version, it goes to stderr. */
void log_error(const char *format, ...) noexcept __attribute__((format(printf, 1, 2)));

/* The same of what the native code reported last. */
void log_last_error() noexcept;

}  // namespace vae_edge

#endif
