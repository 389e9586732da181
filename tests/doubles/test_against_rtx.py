"""The double behaves as the real TensorRT-RTX does, where that can be asked without a GPU: the same calls to both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest

from doubles.loading import load_tensorrt
from doubles.running import make_logger
from doubles.small_graph import small_graph
from vae_edge.engine.inspection import parse_header, requested_precisions

real = pytest.importorskip(
    "tensorrt_rtx_bindings", reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"', exc_type=ImportError
)
Calls = list[Callable[[], Any]]


@pytest.fixture
def double() -> Iterator[Any]:
    """The double, without a driver."""
    loaded = load_tensorrt("rtx")
    loaded.reset()
    before, loaded.state.cuda_library = loaded.state.cuda_library, "libcuda-that-is-not-there.so.1"
    yield loaded.module
    loaded.state.cuda_library = before


def outcome(call: Callable[[], Any]) -> str:
    """What a call gives, or the kind of its exception."""
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__


def dims(trt: Any) -> Calls:
    shape = trt.Dims((1, 2, 3))

    def changed() -> Any:
        other = trt.Dims((1, 2))
        other[0] = 5
        return other

    return [
        lambda: (len(shape), tuple(shape), shape[0], shape[-1], shape[1:], str(shape), repr(trt.Dims((1,)))),
        lambda: (len(trt.Dims()), tuple(trt.Dims()), trt.Dims.MAX_DIMS, shape.MAX_DIMS),
        lambda: (shape == (1, 2, 3), shape == [1, 2, 3], shape == (1, 2), shape != (1, 2, 3), shape == (1, 2, 3)),
        lambda: shape == trt.Dims((1, 2, 3)),
        lambda: shape == None,  # noqa: E711
        lambda: shape[3],
        lambda: hash(shape),
        lambda: trt.Dims(tuple(range(9))),
        lambda: trt.Dims((1.5,)),
        changed,
    ]


def enums(trt: Any) -> Calls:
    half = trt.DataType.HALF
    return [
        lambda: (half, str(half), half.name, half.value, int(half), hash(half), half == trt.float16, half == 1),
        lambda: (trt.DataType(1), trt.DataType(77), trt.EngineInvalidityDiagnostics.CUDA_ERROR),
        lambda: [getattr(trt.DataType, name).itemsize for name in trt.DataType.__members__],
        lambda: trt.nptype(trt.bfloat16),
        lambda: trt.nptype(trt.uint8),
        lambda: trt.EngineInvalidityDiagnostics.CUDA_ERROR | trt.EngineInvalidityDiagnostics.OLD_CUDA_DRIVER,
    ]


def constructors(trt: Any) -> Calls:
    class Unmade(trt.ILogger):
        def __init__(self) -> None:
            pass

    builder = trt.Builder(make_logger(trt, []))
    return [
        lambda: trt.Runtime(None),
        lambda: trt.Logger(3),
        lambda: trt.Builder(Unmade()),
        trt.ICudaEngine,
        trt.IExecutionContext,
        trt.IHostMemory,
        lambda: setattr(builder, "verbosity", 1),
        lambda: builder.num_DLA_cores,
    ]


def parsing(trt: Any) -> Calls:
    builder = trt.Builder(make_logger(trt, []))

    def parsed(model: Any) -> Any:
        network = builder.create_network(1)
        parser = trt.OnnxParser(network, builder.logger)
        taken = parser.parse(model)
        errors = [parser.get_error(k) for k in range(parser.num_errors)]
        return taken, [(e.code(), e.desc(), e.node(), e.node_name(), e.node_operator()) for e in errors]

    def with_operator(name: str) -> bytes:
        proto = onnx.load_model_from_string(small_graph())
        proto.graph.node[0].op_type = name
        return bytes(proto.SerializeToString())

    def described(model: bytes) -> Any:
        network = builder.create_network(1)
        parser = trt.OnnxParser(network, builder.logger)
        assert parser.parse(model)
        inputs = [network.get_input(k) for k in range(network.num_inputs)]
        outputs = [network.get_output(k) for k in range(network.num_outputs)]
        layers = [network.get_layer(k) for k in range(network.num_layers)]
        (sample,) = [layer for layer in layers if layer.type.name == "GRID_SAMPLE"]
        plain = type(sample).__name__, hasattr(sample, "interpolation_mode")
        sample.__class__ = trt.IGridSampleLayer
        return (
            [(t.name, t.dtype, tuple(t.shape), t.is_network_input, t.is_network_output) for t in (*inputs, *outputs)],
            requested_precisions(network),
            plain,
            (sample.interpolation_mode, sample.sample_mode, sample.align_corners, sample.metadata),
            (network.get_layer(9999), network.get_layer(-1), network.get_input(9), network.get_output(9)),
            parser.parse(model),  # once more, into a network that has layers
        )

    return [
        lambda: parsed(b"no model at all"),
        lambda: parsed(b""),
        lambda: parsed("a text"),
        lambda: parsed(with_operator("Bernoulli")),
        lambda: parsed(with_operator("AffineGrid")),
        lambda: parsed(with_operator("OursAlone")),
        lambda: described(small_graph()),
        lambda: described(small_graph(quantized=True)),
        lambda: described(small_graph(channels=3, batch=2)),
    ]


def building(trt: Any) -> Calls:
    log: list[str] = []
    builder = trt.Builder(make_logger(trt, log))
    network = builder.create_network(1)
    trt.OnnxParser(network, builder.logger).parse(small_graph())

    def profile(*batches: int) -> Any:
        made = builder.create_optimization_profile()
        if batches:
            made.set_shape("image", *((n, 8, 8, 1) for n in batches))
        return made

    def build(config: Any, *targets: str) -> tuple[list[bool], Any]:
        config.num_compute_capabilities = len(targets)
        taken = [config.set_compute_capability(getattr(trt.ComputeCapability, n), k) for k, n in enumerate(targets)]
        del log[:]
        return taken, builder.build_serialized_network(network, config)

    def built(*profiles: Any, targets: tuple[str, ...] = ("SM86",)) -> Any:
        config = builder.create_builder_config()
        added = [config.add_optimization_profile(each) for each in profiles]
        taken, made = build(config, *targets)
        if made is None:
            return taken, added, log[0].partition(" In validate")[0].rstrip(".)")
        header = parse_header(bytes(made)[:64], made.nbytes)
        return taken, added, made.dtype, header.version, header.mask, memoryview(made).nbytes == made.nbytes

    def memory() -> Any:
        config = builder.create_builder_config()
        config.add_optimization_profile(profile(1, 2, 4))
        return build(config, "SM89")[1]

    def defaults() -> Any:
        config = builder.create_builder_config()
        flags = [name for name in trt.BuilderFlag.__members__ if config.get_flag(getattr(trt.BuilderFlag, name))]
        level, verbosity = config.builder_optimization_level, config.profiling_verbosity
        device = config.default_device_type, config.DLA_core, config.hardware_compatibility_level
        return flags, level, verbosity, device, config.progress_monitor, config.num_compute_capabilities

    def twice() -> Any:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        return [config.set_compute_capability(trt.ComputeCapability.SM86, index) for index in (0, 0, 1)]

    return [
        defaults,
        twice,
        built,
        lambda: built(profile()),
        lambda: built(profile(4, 1, 2)),
        lambda: built(profile(1, 2, 4)),
        lambda: built(profile(1, 2, 4), targets=("SM86", "SM89")),
        lambda: (bool(profile()), bool(profile(1, 1, 1)), bool(profile(2, 1, 3)), profile(1, 2, 3).get_shape("image")),
        lambda: profile(1, 2, 3).get_shape("picture"),
        lambda: len(memory()),
        lambda: memory()[0],
        lambda: list(memory()),
        lambda: setattr(builder.create_builder_config(), "progress_monitor", 3),
        lambda: setattr(builder.create_builder_config(), "profiling_verbosity", 2),
        lambda: builder.create_builder_config().set_flag("TF32"),
        lambda: builder.create_network(0).get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    ]


def without_a_driver(trt: Any) -> Calls:
    log: list[str] = []
    runtime = trt.Runtime(make_logger(trt, log))
    whole = load_tensorrt("rtx").make_engine(small_graph(), capabilities=(86,))

    def refused(plan: Any) -> Any:
        del log[:]
        found = runtime.deserialize_cuda_engine(plan)
        return found, log[0].partition(" In ")[0].rstrip(".)")

    def validity(plan: Any) -> Any:
        del log[:]
        found = runtime.get_engine_validity(plan)
        return found, [line.partition(":")[0] for line in log]

    return [
        lambda: (runtime.engine_header_size, runtime.DLA_core, runtime.num_DLA_cores, runtime.engine_host_code_allowed),
        lambda: refused(b""),
        lambda: refused(b"x" * 1000),
        lambda: refused(whole[:100]),
        lambda: refused(whole[:-1]),
        lambda: refused("a text"),
        lambda: validity(whole),
        lambda: validity(whole[:64]),
        lambda: validity(b"x" * 64),
        lambda: validity(b"x"),
        lambda: validity("a text"),
        lambda: runtime.deserialize_cuda_engine(buffer=whole),
    ]


@pytest.mark.parametrize("calls", [dims, enums, constructors, parsing, building, without_a_driver])
def test_each_call_ends_as_with_the_real_one(double: Any, calls: Callable[[Any], Calls]) -> None:
    expected = [outcome(call) for call in calls(real)]
    found = [outcome(call) for call in calls(double)]
    different = [(k, mine, true) for k, (mine, true) in enumerate(zip(found, expected, strict=True)) if mine != true]
    assert different == []
