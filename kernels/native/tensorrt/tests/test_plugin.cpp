/* The plugin over the double of the driver: what it builds, launches, keeps and refuses.
 * Arguments: the plugin's library, a file with a container of machine code for sm_87, and one with the layout that it was made for. */
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "host.h"

extern "C" {
#include "double.h"
int cuInit(unsigned int flags);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuMemAlloc_v2(uint64_t *pointer, std::size_t bytes);
int cuMemFree_v2(uint64_t pointer);
int cuStreamCreate(void **stream, unsigned int flags);
int cuStreamDestroy_v2(void *stream);
int cuStreamSynchronize(void *stream);
int cuStreamBeginCapture_v2(void *stream, int mode);
int cuStreamEndCapture(void *stream, void **graph);
int cuGraphDestroy(void *graph);
}

using nvinfer1::TensorRTPhase;

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            std::cerr << __FILE__ << ":" << __LINE__ << ": does not hold: " #condition "\n  log: " << take_log() << "\n"; \
            std::exit(1);                                                                                             \
        }                                                                                                             \
    } while (0)

namespace {

constexpr int MULTIPROCESSORS = 16;
constexpr int32_t SLOTS = 2 * MULTIPROCESSORS;

/* The network of make_code.py. */
const Shapes SHAPES = [] {
    Shapes shapes;
    shapes.height = shapes.width = 28;
    shapes.channels = 1;
    shapes.whitening = {3, 4, 16};
    return shapes;
}();

Bytes read(const char *path) {
    std::ifstream file(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

/* A number of the container's description. */
int64_t described(const Bytes &code, const std::string &key) {
    const std::string text(code.begin(), code.end());
    const std::size_t at = text.find("\n" + key + "=");
    CHECK(at != std::string::npos);
    return std::atoll(text.c_str() + at + key.size() + 2);
}

bool logged(const char *words) { return take_log().find(words) != std::string::npos; }

struct Node {
    Shapes shapes = SHAPES;
    Bytes code, layout;
    Fields attributes() const {
        Fields fields;
        fields.add("layout", layout);
        fields.add("machine_code", code);
        return fields;
    }
};

/* Device memory of a batch, and a stream. */
class Batch {
  public:
    Batch(const Node &node, std::size_t workspace, int64_t n) : descs(input_descs(node.shapes, n)) {
        const auto count = static_cast<std::size_t>(n);
        const std::size_t sizes[] = {784 * count, static_cast<std::size_t>(node.shapes.weights) * 2,
                                     static_cast<std::size_t>(node.shapes.params) * 4, 3 * 4 * 16 * 2, 12 * count, 4 * count,
                                     4 * count, 12 * count, workspace};
        for (std::size_t size : sizes) {
            uint64_t pointer = 0;
            CHECK(cuMemAlloc_v2(&pointer, size > 0 ? size : 1) == 0);
            memory_.push_back(reinterpret_cast<void *>(pointer));
        }
        CHECK(cuStreamCreate(&stream, 1) == 0);
    }
    ~Batch() {
        for (void *pointer : memory_) CHECK(cuMemFree_v2(reinterpret_cast<uint64_t>(pointer)) == 0);
        CHECK(cuStreamDestroy_v2(stream) == 0);
    }
    int32_t enqueue(nvinfer1::IPluginV3 &plugin) {
        return runtime_of(plugin).enqueue(descs.data(), nullptr, memory_.data(), memory_.data() + INPUTS, memory_[INPUTS + OUTPUTS],
                                          static_cast<cudaStream_t>(stream));
    }
    uint64_t address(std::size_t i) const { return reinterpret_cast<uint64_t>(memory_[i]); }
    void shift(std::size_t i, std::ptrdiff_t bytes) { memory_[i] = static_cast<char *>(memory_[i]) + bytes; }

    std::array<nvinfer1::PluginTensorDesc, INPUTS> descs;
    void *stream = nullptr;

  private:
    std::vector<void *> memory_;
};

/* A context that is current, and all that is given back at its end. */
class Context {
  public:
    Context() {
        double_reset();
        CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context_, DOUBLE_FIRST_DEVICE) == 0);
        double_set_current(DOUBLE_FIRST_DEVICE);
    }
    ~Context() {
        CHECK(double_count("libraries") == 0 && double_fault(0) == nullptr);
        double_set_current(-1);
        CHECK(cuDevicePrimaryCtxRelease_v2(DOUBLE_FIRST_DEVICE) == 0 && double_held() == 0);
    }

  private:
    void *context_ = nullptr;
};

void check_what_is_built(const Library &library, const Node &node) {
    const Context context;
    auto plugin = create(library, node.attributes(), TensorRTPhase::kBUILD);
    CHECK(plugin != nullptr);
    const std::vector<std::vector<int64_t>> expected = {{-1, 3}, {-1}, {-1}, {-1, 3}};
    CHECK(output_shapes(*plugin, node.shapes) == expected);

    const auto slot = static_cast<std::size_t>(described(node.code, "area_bytes") + 4 * described(node.code, "floats"));
    for (int64_t batch : {1, 5, SLOTS}) {
        const std::size_t size = configure(*plugin, node.shapes, batch), least = static_cast<std::size_t>(batch) * slot;
        CHECK(size >= least && size < least + 512);
    }
    CHECK(configure(*plugin, node.shapes, 1000) == configure(*plugin, node.shapes, SLOTS));
    CHECK(configure(*plugin, node.shapes, -1) == configure(*plugin, node.shapes, SLOTS));

    Node other = node;
    other.shapes.width = 29;
    CHECK(configure(*plugin, other.shapes, 1) == 0 && logged("image must be [N, 28, 28, 1]"));
    other = node;
    other.shapes.weights--;
    CHECK(configure(*plugin, other.shapes, 1) == 0 && logged("weights must have"));
    other = node;
    other.shapes.int8 = true;
    CHECK(configure(*plugin, other.shapes, 1) == 0);
}

void check_building_without_a_context(const Library &library, const Node &node) {
    auto plugin = create(library, node.attributes(), TensorRTPhase::kBUILD);
    CHECK(plugin != nullptr && configure(*plugin, node.shapes, 100) > configure(*plugin, node.shapes, SLOTS));
    CHECK(configure(*plugin, node.shapes, 1000) == configure(*plugin, node.shapes, 512));
    const auto descs = input_descs(node.shapes, 1);
    CHECK(runtime_of(*plugin).onShapeChange(descs.data(), INPUTS, nullptr, OUTPUTS) == 0);
}

void check_refused_attributes(const Library &library, const Node &node) {
    Fields none;
    none.add("layout", node.layout);
    CHECK(create(library, none, TensorRTPhase::kBUILD) == nullptr && logged("has no attribute 'machine_code'"));
    for (std::size_t at : {std::size_t{0}, std::size_t{12}, node.code.size() / 2, node.code.size() - 3}) {
        Node damaged = node;
        damaged.code[at] ^= 1;
        CHECK(create(library, damaged.attributes(), TensorRTPhase::kRUNTIME) == nullptr && logged("the attribute machine_code"));
    }
    /* Nothing of the header can be another, and no length: under a sanitizer, nothing beyond the end is read. */
    const auto header = static_cast<std::size_t>(node.code[0] | node.code[1] << 8) + 8;
    for (std::size_t at = 0; at < node.code.size(); at += at < header + 64 ? 1 : 997) {
        Node damaged = node, cut = node;
        damaged.code[at] ^= static_cast<unsigned char>(1u << at % 8);
        cut.code.resize(at);
        for (const Node &wrong : {damaged, cut}) CHECK(create(library, wrong.attributes(), TensorRTPhase::kRUNTIME) == nullptr);
    }
    (void)take_log();
    Node other = node;
    other.code.resize(node.code.size() - 1);
    CHECK(create(library, other.attributes(), TensorRTPhase::kBUILD) == nullptr && logged("is damaged"));
    other = node;
    other.code.push_back(0); /* as the ONNX parser of TensorRT-RTX gives it */
    CHECK(create(library, other.attributes(), TensorRTPhase::kBUILD) != nullptr);
    other.code.push_back(0);
    CHECK(create(library, other.attributes(), TensorRTPhase::kBUILD) == nullptr && logged("is damaged"));
    other = node;
    other.layout.push_back(' ');
    CHECK(create(library, other.attributes(), TensorRTPhase::kBUILD) == nullptr && logged("another layout than the node has"));
    Fields negative = node.attributes();
    negative.add("max_slots", Bytes(4, 0xff), nvinfer1::PluginFieldType::kINT32);
    CHECK(create(library, negative, TensorRTPhase::kRUNTIME) == nullptr && logged("max_slots"));
}

void check_launches(const Library &library, const Node &node) {
    const Context context;
    auto built = create(library, node.attributes(), TensorRTPhase::kBUILD);
    const std::size_t workspace = configure(*built, node.shapes, 64);
    const Fields kept = serialized(*built);
    CHECK(kept.names == std::vector<std::string>({"machine_code", "max_slots"}) && kept.values[0] == node.code);
    built.reset();

    auto plugin = create(library, kept, TensorRTPhase::kRUNTIME);
    const std::unique_ptr<nvinfer1::IPluginV3> one(runtime_of(*plugin).attachToContext(nullptr)), other(plugin->clone());
    plugin.reset();
    for (int64_t n : {1, 5, 64}) {
        Batch batch(node, workspace, n);
        CHECK(runtime_of(*one).onShapeChange(batch.descs.data(), INPUTS, nullptr, OUTPUTS) == 0 && batch.enqueue(*one) == 0);
        double_launch launch;
        double_last_launch(&launch);
        const auto slots = static_cast<unsigned int>(n < SLOTS ? n : SLOTS);
        CHECK(std::strcmp(launch.entry, "network") == 0 && launch.architecture == 87 && launch.cooperative == 0);
        CHECK(launch.grid[0] == slots && launch.grid[1] == 1 && launch.grid[2] == 1 && launch.stream == batch.stream);
        CHECK(launch.parameter_count == 14 && launch.sizes[11] == 4 && launch.values[11] == static_cast<uint64_t>(n));
        for (std::size_t i = 0; i < INPUTS; i++) CHECK(launch.values[i] == batch.address(i));
        for (std::size_t i = 0; i < OUTPUTS; i++) CHECK(launch.values[7 + i] == batch.address(INPUTS + i));
        const uint64_t first = batch.address(INPUTS + OUTPUTS), second = launch.values[5];
        const uint64_t end = second + slots * 4u * static_cast<uint64_t>(described(node.code, "floats"));
        CHECK(launch.values[4] == first && second % 16 == 0 && end <= first + workspace);
        CHECK(second >= first + slots * static_cast<uint64_t>(described(node.code, "area_bytes")));
        CHECK(cuStreamSynchronize(batch.stream) == 0 && batch.enqueue(*other) == 0);
        CHECK(cuStreamSynchronize(batch.stream) == 0 && double_count("libraries") == 1);
    }
    const int before = double_launch_count();
    Batch batch(node, workspace, 0);
    CHECK(batch.enqueue(*one) == 0 && double_launch_count() == before);
    CHECK(take_log().empty());
}

/* The slots that an engine was built with, and those that this device can use: the fewer count. */
void check_slots(const Library &library, const Node &node) {
    const Context context;
    for (int limit : {3, 1000}) {
        Fields kept = node.attributes();
        Bytes number(4);
        std::memcpy(number.data(), &limit, 4);
        kept.add("max_slots", number, nvinfer1::PluginFieldType::kINT32);
        auto plugin = create(library, kept, TensorRTPhase::kRUNTIME);
        Batch batch(node, configure(*plugin, node.shapes, 64), 64);
        double_launch launch;
        CHECK(batch.enqueue(*plugin) == 0 && cuStreamSynchronize(batch.stream) == 0);
        double_last_launch(&launch);
        CHECK(launch.grid[0] == (limit == 3 ? 3 : SLOTS) && launch.values[11] == 64);
    }
}

/* A graph is recorded after a context is made and its shapes are set, and then nothing may be loaded. */
void check_a_recorded_launch(const Library &library, const Node &node) {
    const Context context;
    auto plugin = create(library, node.attributes(), TensorRTPhase::kBUILD);
    Batch batch(node, configure(*plugin, node.shapes, 2), 2);
    void *graph = nullptr;
    CHECK(double_count("libraries") == 0);
    CHECK(runtime_of(*plugin).onShapeChange(batch.descs.data(), INPUTS, nullptr, OUTPUTS) == 0 && double_count("libraries") == 1);
    CHECK(cuStreamBeginCapture_v2(batch.stream, 0) == 0 && batch.enqueue(*plugin) == 0);
    CHECK(cuStreamEndCapture(batch.stream, &graph) == 0 && cuGraphDestroy(graph) == 0);

    plugin = create(library, node.attributes(), TensorRTPhase::kBUILD);
    const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime_of(*plugin).attachToContext(nullptr));
    CHECK(double_count("libraries") == 1);
}

void check_refused_launches(const Library &library, const Node &node) {
    const Context context;
    auto plugin = create(library, node.attributes(), TensorRTPhase::kBUILD);
    const std::size_t workspace = configure(*plugin, node.shapes, 2);
    Batch batch(node, workspace, 2);

    Node other = node;
    other.shapes.channels = 3;
    const auto wrong = input_descs(other.shapes, 2);
    CHECK(runtime_of(*plugin).onShapeChange(wrong.data(), INPUTS, nullptr, OUTPUTS) != 0 && logged("image must be"));

    (void)setenv("DOUBLE_CC", "75", 1);
    CHECK(batch.enqueue(*plugin) != 0 && logged("has machine code for sm_87; the device is sm_75"));
    (void)setenv("DOUBLE_CC", "87", 1);
    for (const char *function : {"cuCtxGetDevice", "cuDeviceGetAttribute", "cuLibraryLoadData", "cuLibraryGetKernel"}) {
        CHECK(double_fail(function, 1, 719) == 0);
        CHECK(batch.enqueue(*plugin) != 0 && logged("error 719") && double_count("libraries") == 0);
    }
    CHECK(batch.enqueue(*plugin) == 0 && cuStreamSynchronize(batch.stream) == 0);
    CHECK(double_fail("cuLaunchKernel", 1, 701) == 0);
    CHECK(batch.enqueue(*plugin) != 0 && logged("does not launch the network: error 701"));
    batch.shift(1, 2);
    CHECK(batch.enqueue(*plugin) != 0 && logged("multiples of 16 bytes"));
    batch.shift(1, -2);
    batch.shift(0, 1); /* images need no alignment */
    CHECK(batch.enqueue(*plugin) == 0 && cuStreamSynchronize(batch.stream) == 0);
    batch.shift(0, -1);
    CHECK(take_log().empty());
}

}  // namespace

int main(int count, char **values) {
    CHECK(count == 4);
    (void)setenv("DOUBLE_CC", "87", 1);
    const Library library(values[1]);
    Node node;
    node.code = read(values[2]);
    node.layout = read(values[3]);
    CHECK(!node.code.empty() && !node.layout.empty());
    node.shapes.weights = described(node.code, "weights_bytes") / 2;
    node.shapes.params = described(node.code, "numbers_bytes") / 4;
    CHECK(described(node.code, "whitenings_bytes") == 3 * 4 * 16 * 2);

    check_building_without_a_context(library, node);
    check_what_is_built(library, node);
    check_refused_attributes(library, node);
    check_launches(library, node);
    check_slots(library, node);
    check_a_recorded_launch(library, node);
    check_refused_launches(library, node);
    std::cout << "ok\n";
    return 0;
}
