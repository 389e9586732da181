/* A double of TensorRT 10's NvInferRuntime.h for tests: what a plugin of the third version declares and calls, and no more.
 *
 * Written after the documented C++ API of TensorRT 10: names, values and the order of virtual functions are the library's, so that a
 * plugin that was compiled with this header has the same binary interface. tests/runtime/test_tensorrt_plugin.py holds it against the
 * real library of TensorRT-RTX. For a plugin that is to be used, take NVIDIA's headers. */
#ifndef VAE_EDGE_NVINFER_DOUBLE_H
#define VAE_EDGE_NVINFER_DOUBLE_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3
#define NV_TENSORRT_PATCH 0
#define NV_TENSORRT_VERSION (NV_TENSORRT_MAJOR * 10000L + NV_TENSORRT_MINOR * 100L + NV_TENSORRT_PATCH)

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64, kINT4 };
enum class TensorFormat : int32_t { kLINEAR = 0 };
enum class APILanguage : int32_t { kCPP, kPYTHON };
enum class TensorRTPhase : int32_t { kBUILD, kRUNTIME };
enum class PluginCapabilityType : int32_t { kCORE, kBUILD, kRUNTIME };
enum class PluginFieldType : int32_t { kFLOAT16, kFLOAT32, kFLOAT64, kINT8, kINT16, kINT32, kCHAR, kDIMS, kUNKNOWN };
enum class DimensionOperation : int32_t;

class Dims64 {
  public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class InterfaceInfo {
  public:
    const char *kind;
    int32_t major, minor;
};

class IVersionedInterface {
  public:
    virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;

  protected:
    IVersionedInterface() = default;
};

class ILogger {
  public:
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity severity, const char *message) noexcept = 0;
    virtual ~ILogger() = default;
};

class ILoggerFinder {
  public:
    virtual ILogger *findLogger() = 0;

  protected:
    virtual ~ILoggerFinder() = default;
};

/* ---- Shapes ---- */

class IDimensionExpr;

namespace apiv {
class VRoot {
  public:
    virtual ~VRoot() noexcept = default;
};
class VDimensionExpr : public VRoot {
  public:
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
    virtual bool isSizeTensor() const = 0;
};
class VExprBuilder : public VRoot {
  public:
    virtual const IDimensionExpr *constant(int64_t value) = 0;
    virtual const IDimensionExpr *operation(DimensionOperation op, const IDimensionExpr &first, const IDimensionExpr &second) = 0;
    virtual const IDimensionExpr *declareSizeTensor(int32_t output, const IDimensionExpr &opt, const IDimensionExpr &upper) = 0;
};
}  // namespace apiv

class INoCopy {
  protected:
    INoCopy() = default;
    virtual ~INoCopy() = default;
    INoCopy(const INoCopy &) = delete;
    INoCopy &operator=(const INoCopy &) = delete;
};

class IDimensionExpr : public INoCopy {
  public:
    bool isConstant() const noexcept { return mImpl->isConstant(); }
    int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

  protected:
    apiv::VDimensionExpr *mImpl;
    virtual ~IDimensionExpr() noexcept = default;
};

class IExprBuilder : public INoCopy {
  public:
    const IDimensionExpr *constant(int64_t value) noexcept { return mImpl->constant(value); }

  protected:
    apiv::VExprBuilder *mImpl;
    virtual ~IExprBuilder() noexcept = default;
};

class DimsExprs {
  public:
    int32_t nbDims;
    const IDimensionExpr *d[Dims::MAX_DIMS];
};

struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max, opt;
};

/* ---- Fields ---- */

class PluginField {
  public:
    const AsciiChar *name;
    const void *data;
    PluginFieldType type;
    int32_t length;
    PluginField(const AsciiChar *name_ = nullptr, const void *data_ = nullptr, PluginFieldType type_ = PluginFieldType::kUNKNOWN,
                int32_t length_ = 0) noexcept
        : name(name_), data(data_), type(type_), length(length_) {}
};

struct PluginFieldCollection {
    int32_t nbFields{};
    const PluginField *fields{};
};

/* ---- Plugins ---- */

class IPluginCapability : public IVersionedInterface {};
class IPluginCreatorInterface : public IVersionedInterface {};
class IPluginResource;
class IPluginResourceContext;
class IErrorRecorder;

class IPluginV3 : public IVersionedInterface {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return InterfaceInfo{"PLUGIN", 1, 0}; }
    virtual IPluginCapability *getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
    virtual IPluginV3 *clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return InterfaceInfo{"PLUGIN_V3ONE_CORE", 1, 0}; }
    virtual const AsciiChar *getPluginName() const noexcept = 0;
    virtual const AsciiChar *getPluginVersion() const noexcept = 0;
    virtual const AsciiChar *getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
  public:
    static constexpr int32_t kDEFAULT_FORMAT_COMBINATION_LIMIT = 100;
    InterfaceInfo getInterfaceInfo() const noexcept override { return InterfaceInfo{"PLUGIN_V3ONE_BUILD", 1, 0}; }
    virtual int32_t configurePlugin(const DynamicPluginTensorDesc *in, int32_t inputs, const DynamicPluginTensorDesc *out,
                                    int32_t outputs) noexcept = 0;
    virtual int32_t getOutputDataTypes(DataType *output_types, int32_t outputs, const DataType *input_types,
                                       int32_t inputs) const noexcept = 0;
    virtual int32_t getOutputShapes(const DimsExprs *in, int32_t inputs, const DimsExprs *shape_inputs, int32_t shape_input_count,
                                    DimsExprs *out, int32_t outputs, IExprBuilder &builder) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc *tensors, int32_t inputs,
                                           int32_t outputs) noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual std::size_t getWorkspaceSize(const DynamicPluginTensorDesc *, int32_t, const DynamicPluginTensorDesc *,
                                         int32_t) const noexcept {
        return 0;
    }
    virtual int32_t getValidTactics(int32_t *, int32_t) noexcept { return 0; }
    virtual int32_t getNbTactics() noexcept { return 0; }
    virtual const char *getTimingCacheID() noexcept { return nullptr; }
    virtual int32_t getFormatCombinationLimit() noexcept { return kDEFAULT_FORMAT_COMBINATION_LIMIT; }
    virtual const char *getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return InterfaceInfo{"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
    virtual int32_t setTactic(int32_t) noexcept { return 0; }
    virtual int32_t onShapeChange(const PluginTensorDesc *in, int32_t inputs, const PluginTensorDesc *out, int32_t outputs) noexcept = 0;
    virtual int32_t enqueue(const PluginTensorDesc *input_descs, const PluginTensorDesc *output_descs, const void *const *inputs,
                            void *const *outputs, void *workspace, cudaStream_t stream) noexcept = 0;
    virtual IPluginV3 *attachToContext(IPluginResourceContext *context) noexcept = 0;
    virtual const PluginFieldCollection *getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorV3One : public IPluginCreatorInterface {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return InterfaceInfo{"PLUGIN CREATOR_V3ONE", 1, 0}; }
    virtual IPluginV3 *createPlugin(const AsciiChar *name, const PluginFieldCollection *fields, TensorRTPhase phase) noexcept = 0;
    virtual const PluginFieldCollection *getFieldNames() noexcept = 0;
    virtual const AsciiChar *getPluginName() const noexcept = 0;
    virtual const AsciiChar *getPluginVersion() const noexcept = 0;
    virtual const AsciiChar *getPluginNamespace() const noexcept = 0;
};

/* ---- The registry ---- */

class IPluginV2Creator; /* the second version's creator, whose functions TensorRT 11 dropped */

class IPluginRegistry {
  public:
    virtual bool registerCreator(IPluginV2Creator &creator, const AsciiChar *name_space) noexcept = 0;
    virtual IPluginV2Creator *const *getPluginCreatorList(int32_t *count) const noexcept = 0;
    virtual IPluginV2Creator *getPluginCreator(const AsciiChar *name, const AsciiChar *version, const AsciiChar *name_space) noexcept = 0;

  protected:
    virtual ~IPluginRegistry() noexcept = default;

  public:
    virtual void setErrorRecorder(IErrorRecorder *recorder) noexcept = 0;
    virtual IErrorRecorder *getErrorRecorder() const noexcept = 0;
    virtual bool deregisterCreator(const IPluginV2Creator &creator) noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void *loadLibrary(const AsciiChar *path) noexcept = 0;
    virtual void deregisterLibrary(void *handle) noexcept = 0;
    virtual bool registerCreator(IPluginCreatorInterface &creator, const AsciiChar *name_space) noexcept = 0;
};

}  // namespace nvinfer1

extern "C" nvinfer1::IPluginRegistry *getPluginRegistry() noexcept;
extern "C" nvinfer1::ILogger *getLogger() noexcept;
extern "C" int32_t getInferLibVersion() noexcept;

#endif
