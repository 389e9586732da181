#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "registry.h"
#include "vae_edge.h"

namespace vae_edge {

namespace {

std::atomic<nvinfer1::ILoggerFinder *> logger_finder{nullptr};

/* That of the engine whose method is running, if TensorRT told how to find it; else the one that was made last. */
nvinfer1::ILogger *find_logger() {
    if (!is_library_of_headers()) return nullptr;
    nvinfer1::ILoggerFinder *finder = logger_finder.load();
    nvinfer1::ILogger *found = finder != nullptr ? finder->findLogger() : nullptr;
    return found != nullptr ? found : getLogger();
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept { logger_finder.store(finder); }

void log_error(const char *format, ...) noexcept {
    char text[8192] = "VaeEdgeNetwork: ";
    const std::size_t start = std::strlen(text);
    va_list values;
    va_start(values, format);
    (void)std::vsnprintf(text + start, sizeof text - start, format, values);
    va_end(values);
    try {
        nvinfer1::ILogger *logger = find_logger();
        if (logger != nullptr) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, text);
            return;
        }
    } catch (...) { /* of an application's logger; the message goes to stderr */
    }
    (void)std::fprintf(stderr, "%s\n", text);
}

/* The readers name their caller, ve_open, which an engine's user does not know. */
void log_last_error() noexcept {
    static const char caller[] = "ve_open: ";
    const char *text = ve_last_error();
    if (std::strncmp(text, caller, sizeof caller - 1) == 0) text += sizeof caller - 1;
    log_error("%s", text);
}

}  // namespace vae_edge
