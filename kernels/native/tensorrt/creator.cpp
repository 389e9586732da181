#include "creator.h"

#include <cstring>
#include <new>

#include "log.h"

extern "C" {
#include "sha256.h"
}

namespace vae_edge {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace {

/* The field of that name, NULL where there is none or it is empty. */
const PluginField *find(const PluginFieldCollection &fields, const char *name) {
    for (int32_t i = 0; i < fields.nbFields; i++) {
        const PluginField &field = fields.fields[i];
        if (std::strcmp(field.name, name) == 0) return field.data != nullptr && field.length > 0 ? &field : nullptr;
    }
    return nullptr;
}

/* Whether the code was compiled for the layout of the node. */
bool is_of_layout(const Code &code, const PluginField *layout) {
    if (layout == nullptr) {
        log_error("the node has no attribute '%s'.", LAYOUT);
        return false;
    }
    char digest[65];
    const auto *text = static_cast<const char *>(layout->data);
    ve_sha256(static_cast<const unsigned char *>(layout->data), strnlen(text, static_cast<std::size_t>(layout->length)), digest);
    if (std::strcmp(digest, code.description().layout_sha256) == 0) return true;
    log_error("the attribute '%s' was compiled for another layout than the node has: make the model again "
              "(vae_edge.exporting.plugin_code.make_plugin_model).",
              MACHINE_CODE);
    return false;
}

/* Images at a time: what an engine kept, else as many as this machine's GPU can run, else more than any can. */
int32_t slot_limit(const PluginField *field) {
    if (field == nullptr) {
        const int32_t here = SLOTS_PER_MULTIPROCESSOR * current_multiprocessors();
        return here > 0 ? here : MOST_SLOTS;
    }
    int32_t limit = 0;
    if (field->type == PluginFieldType::kINT32 && field->length == 1) std::memcpy(&limit, field->data, sizeof limit);
    if (limit < 1) log_error("'%s' must be an int32 from 1 up.", MAX_SLOTS);
    return limit;
}

}  // namespace

Creator::Creator() noexcept {
    fields_[0] = {LAYOUT, nullptr, PluginFieldType::kCHAR, 0};
    fields_[1] = {MACHINE_CODE, nullptr, PluginFieldType::kCHAR, 0};
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
}

nvinfer1::IPluginV3 *Creator::createPlugin(const char *, const PluginFieldCollection *fields, nvinfer1::TensorRTPhase phase) noexcept {
    const PluginField *bytes = fields != nullptr ? find(*fields, MACHINE_CODE) : nullptr;
    if (bytes == nullptr) {
        log_error("the node has no attribute '%s'; vae_edge.exporting.plugin_code.make_plugin_model adds it.", MACHINE_CODE);
        return nullptr;
    }
    std::shared_ptr<Code> code = Code::read(bytes->data, static_cast<std::size_t>(bytes->length));
    if (code == nullptr) return nullptr;
    if (phase == nvinfer1::TensorRTPhase::kBUILD && !is_of_layout(*code, find(*fields, LAYOUT))) return nullptr;
    const int32_t max_slots = slot_limit(find(*fields, MAX_SLOTS));
    if (max_slots < 1) return nullptr;
    auto *plugin = new (std::nothrow) Plugin(std::move(code), max_slots);
    if (plugin == nullptr) log_error("there is no memory for the plugin.");
    return plugin;
}

/* ---- The library's interface: IPluginRegistry::loadLibrary calls these two ---- */

namespace {

Creator creator;

}  // namespace

}  // namespace vae_edge

#define VAE_EDGE_EXPORT extern "C" __attribute__((visibility("default")))

VAE_EDGE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder *finder) noexcept { vae_edge::set_logger_finder(finder); }

VAE_EDGE_EXPORT nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) noexcept {
    static nvinfer1::IPluginCreatorInterface *const creators[] = {&vae_edge::creator};
    count = 1;
    return creators;
}
