#include "code.h"

#include <new>

#include "log.h"

extern "C" {
#include "error.h"
}

namespace vae_edge {

namespace {

constexpr const char *CALLER = "enqueue";
constexpr const char *NAME = "the attribute machine_code";

ve_status current_device(const ve_driver **driver, CUdevice *device) {
    ve_status status = ve_shared_driver(CALLER, driver);
    if (status != VE_OK) return status;
    CUresult result = (*driver)->context_get_device(device);
    if (result == CUDA_SUCCESS) return VE_OK;
    return ve_fail(VE_ERROR_DRIVER, "%s: this thread has no CUDA context: error %d, %s.", CALLER, result,
                   ve_driver_error_text(*driver, result));
}

}  // namespace

int current_multiprocessors() noexcept {
    const ve_driver *driver = nullptr;
    CUdevice device = 0;
    ve_device_info info{};
    if (current_device(&driver, &device) != VE_OK) return 0;
    return ve_device_query(driver, device, &info) == CUDA_SUCCESS ? info.multiprocessors : 0;
}

std::shared_ptr<Code> Code::read(const void *bytes, std::size_t size) noexcept {
    try {
        std::shared_ptr<Code> code(new Code());
        ve_status status = ve_tensors_copy(NAME, bytes, size, &code->tensors_);
        /* The ONNX parser gives strings with a 0 at the end, or without, by its version. */
        if (status == VE_ERROR_FILE && size > 0 && static_cast<const unsigned char *>(bytes)[size - 1] == 0)
            status = ve_tensors_copy(NAME, bytes, size - 1, &code->tensors_);
        if (status == VE_OK) status = ve_description_read(NAME, &code->tensors_, &code->description_);
        if (status == VE_OK) return code;
        log_last_error();
    } catch (const std::bad_alloc &) {
        log_error("there is no memory for the machine code.");
    }
    return nullptr;
}

Code::~Code() {
    for (auto &entry : devices_) ve_network_code_unload(entry.second.driver, &entry.second.code);
    ve_description_free(&description_);
    ve_tensors_free(&tensors_);
}

const Loaded *Code::load(const ve_driver *driver, CUdevice device) {
    ve_device_info info{};
    CUresult result = ve_device_query(driver, device, &info);
    if (result != CUDA_SUCCESS) {
        (void)ve_fail(VE_ERROR_DRIVER, "%s: the driver does not tell what the device is: error %d, %s.", CALLER, result,
                      ve_driver_error_text(driver, result));
        return nullptr;
    }
    const ve_code_line *line = nullptr;
    if (ve_network_code_find(CALLER, NAME, &description_, info.architecture, &line) != VE_OK) return nullptr;

    Loaded loaded;
    loaded.driver = driver;
    loaded.multiprocessors = info.multiprocessors;
    Loaded *kept = &devices_.emplace(device, loaded).first->second;
    if (ve_network_code_load(CALLER, driver, device, line, NAME, &kept->code) == VE_OK) return kept;
    ve_network_code_unload(driver, &kept->code);
    devices_.erase(device);
    return nullptr;
}

const Loaded *Code::on_current_device() noexcept {
    const ve_driver *driver = nullptr;
    CUdevice device = 0;
    if (current_device(&driver, &device) != VE_OK) return nullptr;
    try {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = devices_.find(device);
        return found != devices_.end() ? &found->second : load(driver, device);
    } catch (const std::exception &error) { /* no memory, or no mutex */
        (void)ve_fail(VE_ERROR_OUT_OF_MEMORY, "%s: the machine code cannot be loaded: %s.", CALLER, error.what());
        return nullptr;
    }
}

}  // namespace vae_edge
