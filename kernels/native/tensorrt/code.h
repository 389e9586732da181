/* The machine code of a plugin and its clones: read once, loaded once on each device that runs it. */
#ifndef VAE_EDGE_TENSORRT_CODE_H
#define VAE_EDGE_TENSORRT_CODE_H

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

extern "C" {
#include "description.h"
#include "device.h"
#include "network_code.h"
}

namespace vae_edge {

/* A device that the code is loaded on. */
struct Loaded {
    const ve_driver *driver = nullptr;
    ve_network_code code{};
    int multiprocessors = 0;
};

class Code {
  public:
    /* Read a container of machine code, of which a copy is made. nullptr, and an error in the log, where it is damaged. */
    static std::shared_ptr<Code> read(const void *bytes, std::size_t size) noexcept;
    ~Code();
    Code(const Code &) = delete;
    Code &operator=(const Code &) = delete;

    const ve_description &description() const { return description_; }
    const void *bytes() const { return tensors_.file; }
    std::size_t size() const { return tensors_.size; }

    /* The code on the device of the calling thread's context; it is loaded there if it is not yet, and stays. nullptr, and the error
     * in ve_last_error, where that fails. Any thread may call it. */
    const Loaded *on_current_device() noexcept;

  private:
    Code() = default;
    const Loaded *load(const ve_driver *driver, CUdevice device);

    ve_tensors tensors_{};
    ve_description description_{};
    std::mutex mutex_;
    std::map<CUdevice, Loaded> devices_; /* its elements keep their addresses */
};

/* Multiprocessors of the calling thread's device, or 0 where there is no driver or no context. */
int current_multiprocessors() noexcept;

}  // namespace vae_edge

#endif
