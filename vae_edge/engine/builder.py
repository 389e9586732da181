"""One engine build, start to end, in the calling process: parse the ONNX file, check it, configure, build, verify.

TensorRT may abort its process. Users therefore call `vae_edge.engine.build`, which runs this in a worker process.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.engine.dla import DlaLayers, ask_dla
from vae_edge.engine.inspection import HEADER_BYTES, LayerInfo, parse_header, parse_layers, requested_precisions
from vae_edge.engine.plugins import layered, quick
from vae_edge.engine.plugins.kernel_file import read_folder
from vae_edge.engine.tensorrt import Adapter, BuildConfig, ConfigCall, Log, describe_errors, parser_errors
from vae_edge.errors import EngineError
from vae_edge.files import read_bytes
from vae_edge.onnx_graph import ModelRefused, Node, read_graph
from vae_edge.spec import (
    CLASSIFIER_OUTPUTS,
    MAX_MODEL_BYTES,
    RECONSTRUCTION_OUTPUTS,
    UNCERTAINTY_OUTPUTS,
    TensorSpec,
    output_name,
)

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all
Notice = Callable[[str], None]  # a sentence for the user, before the build is over


@dataclass(frozen=True)
class BuiltEngine:
    """What one build made.

    Attributes:
        engine: the serialized engine.
        layers: of the engine, from the builder's log.
        requested: the precision that the ONNX file asks for, by node.
        config_calls: what was set on the builder configuration.
        timing_cache: serialized; empty if none was asked for.
        dla: which layers a DLA takes; None without one.
    """

    engine: bytes
    layers: tuple[LayerInfo, ...]
    requested: dict[str, str]
    config_calls: tuple[ConfigCall, ...]
    seconds: float
    onnx_sha256: str
    timing_cache: bytes = b""
    dla: DlaLayers | None = None


def build_in_process(
    adapter: Adapter,
    onnx_path: Path,
    config: BuildConfig,
    log: Log,
    *,
    progress: Progress | None = None,
    notice: Notice | None = None,
    timing_cache: bytes = b"",
    plugins: Path | None = None,
) -> BuiltEngine:
    """Build an engine with this adapter; `timing_cache` is the content of an earlier cache.

    `plugins` is the folder of the kernels that the nodes of the ONNX file name.

    `notice` is called, before TensorRT builds for a DLA, with the lines of a table of what the DLA can run.

    Raises:
        EngineError: the file is not ours, or TensorRT cannot do what the configuration asks for.
    """
    model = _read_model(onnx_path)
    calls = adapter.config_calls(config)
    if plugins is not None:
        register_plugins(adapter, plugins)

    builder, logger = adapter.builder(log)
    network = builder.create_network(adapter.network_flags())
    parser = adapter.module.OnnxParser(network, logger)
    if not parser.parse(model, str(onnx_path)):
        raise EngineError(_parse_error(adapter, builder, logger, parser, model, onnx_path))

    check_io(network, config.role, onnx_path)
    samples = [] if plugins is not None else requested_grid_samples(model)  # kernels of ours rotate themselves
    for sentence in fix_grid_samples(adapter.module, network, samples, onnx_path, adapter.name):
        log.add("WARNING", sentence)
    requested = requested_precisions(network)
    if plugins is None:  # with kernels of ours, the precision is the kernel's
        check_requested_precision(requested, config.precision, onnx_path)
    mark_outputs(adapter, network, config.mark_outputs, onnx_path)

    builder_config = builder.create_builder_config()
    _apply_config(adapter, builder_config, calls)
    _add_profile(builder, builder_config, network, config.batch, onnx_path)
    if config.dla_core is not None and config.dla_core >= builder.num_DLA_cores:
        raise EngineError(f"The DLA core {config.dla_core} was asked for, but this device has {builder.num_DLA_cores}.")
    dla = None
    if config.dla_core is not None:
        dla = ask_dla(network, builder_config)
        for line in dla.table():
            log.add("INFO", line)
            if notice is not None:
                notice(line)
    cache = _attach_timing_cache(adapter, builder_config, timing_cache) if config.timing_cache is not None else None
    monitor = None  # a name keeps it alive until the build is over
    if progress is not None and adapter.has("IBuilderConfig.progress_monitor"):
        monitor = _progress_monitor(adapter, progress)
        builder_config.progress_monitor = monitor

    start = time.perf_counter()
    serialized = builder.build_serialized_network(network, builder_config)
    seconds = time.perf_counter() - start
    if serialized is None:
        raise EngineError(f"{adapter.name} could not build {onnx_path.name}: {describe_errors(log.errors())}.")

    engine = bytes(serialized)
    _verify_engine(adapter, engine, config)
    return BuiltEngine(
        engine=engine,
        layers=parse_layers(text for severity, text in log.messages if severity == "VERBOSE"),
        requested=requested,
        config_calls=tuple(calls),
        seconds=seconds,
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        timing_cache=bytes(cache.serialize()) if cache is not None else b"",
        dla=None if dla is None else dla.after(text for _, text in log.messages),
    )


def register_plugins(adapter: Adapter, folder: Path) -> None:
    """Register the toolkit's kernels with this TensorRT, before the file is parsed whose nodes name them.

    Raises:
        EngineError: this TensorRT does not take them, or a kernel file cannot be read.
    """
    kernels = read_folder(folder)
    if adapter.installation.kind == "tensorrt_rtx":
        layered.register(adapter.module, kernels, kernels)
    else:
        quick.register(adapter.module, kernels, adapter.installation.version)


def _read_model(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EngineError(f"The ONNX file {path} cannot be read ({reason}): check the path.") from error


def _parse_error(adapter: Adapter, builder: Any, logger: Any, parser: Any, model: bytes, path: Path) -> str:
    errors = parser_errors(parser)
    sentence = f"{adapter.name} does not take {path.name}: {describe_errors(errors)}."
    if any("MODEL_DESERIALIZE_FAILED" in text or "Failed to parse" in text for text in errors):
        return sentence
    # A parser does not keep its network alive: the name does.
    network = builder.create_network(adapter.network_flags())
    nodes = adapter.unsupported_nodes(adapter.module.OnnxParser(network, logger), model, str(path))
    return sentence + (f" Nodes that it does not take: {', '.join(nodes)}." if nodes else "")


# Whether the parsed file is one of ours

_DTYPES = {"uint8": "UINT8", "float32": "FLOAT"}  # of a TensorSpec, as TensorRT's DataType
_EXPORT_HINT = "Give a file that `vae-edge export` or `vae-edge quantize` wrote."

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name: TensorRT's DataType and shape, -1 for a free dimension


def check_io(network: Any, role: str, path: Path) -> None:
    """Check the input `image` uint8 [N, H, W, C] and the role's outputs of a parsed network.

    Raises:
        EngineError: the sentence says what was expected and what the file has.
    """
    inputs = _tensors(network.get_input(i) for i in range(network.num_inputs))
    outputs = _tensors(network.get_output(i) for i in range(network.num_outputs))
    if not outputs:
        raise EngineError(f"{path} holds no graph: it is no ONNX model, or it is empty or cut short. {_EXPORT_HINT}")

    dtype, shape = inputs.get("image", ("", ()))
    fits = dtype == "UINT8" and len(shape) == 4 and shape[3] in (1, 3) and shape[1] > 0 and shape[2] > 0
    if len(inputs) != 1 or not fits:
        raise EngineError(
            f"{path} is not a model of ours: its one input should be image, uint8 [N, H, W, 1 or 3], but it has "
            f"{_describe(inputs)}. {_EXPORT_HINT}"
        )
    if shape[0] != -1:
        raise EngineError(
            f"{path} has the fixed batch {shape[0]}, but a free one was expected: "
            f"{_EXPORT_HINT[0].lower()}{_EXPORT_HINT[1:]}"
        )

    found = {output_name(name): tensor for name, tensor in outputs.items()}
    expected = {**(CLASSIFIER_OUTPUTS if role == "classifier" else RECONSTRUCTION_OUTPUTS)}
    if role == "classifier" and UNCERTAINTY_OUTPUTS.keys() & found.keys():
        expected.update(UNCERTAINTY_OUTPUTS)
    if found.keys() != expected.keys() or not all(_fits(found[name], spec) for name, spec in expected.items()):
        should = ", ".join(
            f"{name} ({_DTYPES[spec.dtype].lower()}, rank {1 + len(spec.dims)})" for name, spec in expected.items()
        )
        raise EngineError(
            f"{path} is no {role} of ours: its outputs should be {should}, but it has {_describe(outputs)}. "
            f"{_EXPORT_HINT}"
        )


def _tensors(tensors: Iterable[Any]) -> Tensors:
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


def _fits(tensor: tuple[str, tuple[int, ...]], spec: TensorSpec) -> bool:
    dtype, shape = tensor
    return dtype == _DTYPES[spec.dtype] and len(shape) == 1 + len(spec.dims)


def _describe(tensors: Tensors) -> str:
    parts = []
    for name, (dtype, shape) in tensors.items():
        sides = ", ".join("N" if side == -1 else str(side) for side in shape)
        parts.append(f"{name}, {dtype.lower()} [{sides}]")
    return "; ".join(parts) or "none"


def check_requested_precision(requested: Mapping[str, str], precision: str, path: Path) -> None:
    """Check that the graph asks for `precision`: fp32 in all convolutions and matrix products, another in some.

    Raises:
        EngineError: the sentence says which precisions the file has.
    """
    if not requested:
        raise EngineError(f"{path} has no convolution and no matrix product: it is not a model of ours. {_EXPORT_HINT}")
    counts = Counter(requested.values())
    fits = set(counts) == {"fp32"} if precision == "fp32" else precision in counts
    if fits:
        return
    has = ", ".join(f"{count} in {name}" for name, count in counts.most_common())
    way = (
        "`vae-edge export` writes fp32"
        if precision == "fp32"
        else f"`vae-edge quantize BUNDLE --precision {precision}` writes it"
    )
    raise EngineError(
        f"{path} is no {precision} file: of its {len(requested)} convolutions and matrix products there are {has}. The "
        f"precision stands in the graph, so it cannot be chosen here; {way}."
    )


# Tensors inside, to be compared with the probes


def mark_outputs(adapter: Adapter, network: Any, names: Sequence[str], path: Path) -> None:
    """Make tensors inside a parsed network outputs too, as fp32: a half-precision tensor is cast, and its cast takes
    the name.

    Raises:
        EngineError: the network has no tensor of that name.
    """
    tensors = {}
    for k in range(network.num_layers if names else 0):
        layer = network.get_layer(k)
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            tensors[tensor.name] = tensor
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:
            raise EngineError(
                f"{path.name} as {adapter.name} read it has no tensor {name!r} to mark as an output: build without "
                "mark_outputs."
            )
        if tensor.dtype.name not in ("FLOAT", "UINT8"):
            tensor.name = f"{name} ({tensor.dtype.name.lower()})"
            tensor = network.add_cast(tensor, adapter.get("DataType.FLOAT")).get_output(0)
            tensor.name = name
        network.mark_output(tensor)


# GridSample: TensorRT-RTX 1.5 and TensorRT 10.1 misread its mode

# ONNX calls bilinear interpolation `bilinear` up to opset 19 and `linear` from 20 on. Those parsers know only the old
# name: they read `linear` as nearest and say nothing. AffineGrid is new in opset 20, so our files cannot use the old
# name. After parsing, each layer is therefore compared with its node, and what differs is set.

_MODES = {"linear": "LINEAR", "bilinear": "LINEAR", "nearest": "NEAREST", "cubic": "CUBIC", "bicubic": "CUBIC"}
_PADDINGS = {"zeros": "FILL", "border": "CLAMP", "reflection": "REFLECT"}


@dataclass(frozen=True)
class GridSample:
    """One GridSample node: its name, and members of TensorRT's InterpolationMode and SampleMode."""

    name: str
    mode: str
    padding: str
    align_corners: bool


def requested_grid_samples(model: bytes) -> list[GridSample]:
    """The GridSample nodes of a serialized ONNX model, in order.

    Raises:
        EngineError: a mode that ONNX does not know, or a model that cannot be read.
    """
    try:
        graph = read_graph(model, "the ONNX file")
    except ModelRefused as error:
        raise EngineError(f"The ONNX file is damaged or cut short ({error.reason}): export it again.") from error
    return [_grid_sample(node) for node in graph.nodes if node.operator == "GridSample"]


def _grid_sample(node: Node) -> GridSample:
    mode = node.attributes.get("mode", "linear")
    padding = node.attributes.get("padding_mode", "zeros")
    if mode not in _MODES or padding not in _PADDINGS:
        raise EngineError(
            f"The GridSample '{node.name}' has the mode {mode!r} and the padding {padding!r}; known are "
            f"{', '.join(_MODES)}, and {', '.join(_PADDINGS)}. {_EXPORT_HINT}"
        )
    return GridSample(node.name, _MODES[mode], _PADDINGS[padding], node.attributes.get("align_corners", 0) != 0)


def fix_grid_samples(module: Any, network: Any, requested: list[GridSample], path: Path, product: str) -> list[str]:
    """Compare the grid-sample layers of a parsed network with the file's nodes, and set what differs.

    Args:
        module: the TensorRT module.
        requested: what `requested_grid_samples` found in the file.
        product: TensorRT's name and version, for messages.

    Returns:
        a sentence for each setting that was wrong.

    Raises:
        EngineError: the layers are not those of the nodes, or one cannot be set.
    """
    layers = [layer for k in range(network.num_layers) if (layer := network.get_layer(k)).type.name == "GRID_SAMPLE"]
    if len(layers) != len(requested):
        raise EngineError(
            f"{product} made {len(layers)} grid-sample layers of the {len(requested)} GridSample nodes of {path.name}, "
            "so it is unknown how they interpolate: use another TensorRT."
        )
    return [
        sentence
        for layer, node in zip(layers, requested, strict=True)
        for sentence in _fix_grid_sample(module, layer, node, product)
    ]


def _fix_grid_sample(module: Any, layer: Any, node: GridSample, product: str) -> Iterator[str]:
    if not hasattr(layer, "interpolation_mode"):
        layer.__class__ = module.IGridSampleLayer  # a network hands out its layers as plain ILayer
    requested = {
        "interpolation_mode": getattr(module.InterpolationMode, node.mode),
        "sample_mode": getattr(module.SampleMode, node.padding),
        "align_corners": node.align_corners,
    }
    for name, value in requested.items():
        found = getattr(layer, name)
        if found == value:
            continue
        setattr(layer, name, value)
        if getattr(layer, name) != value:
            raise EngineError(
                f"{product} reads the GridSample '{node.name}' with {name} {_member(found)} where the file asks for "
                f"{_member(value)}, and it cannot be set: use another TensorRT."
            )
        yield (
            f"{product} read the GridSample '{node.name}' with {name} {_member(found)}; it was set to "
            f"{_member(value)}, which the file asks for."
        )


def _member(value: Any) -> str:
    return str(getattr(value, "name", value))


# TensorRT's builder configuration


def _apply_config(adapter: Adapter, builder_config: Any, calls: list[ConfigCall]) -> None:
    for call in calls:
        value = adapter.get(call.value) if isinstance(call.value, str) else call.value
        if call.action == "set":
            setattr(builder_config, call.name, value)
        elif call.action == "flag":
            builder_config.set_flag(adapter.get(f"BuilderFlag.{call.name}"))
        elif call.action == "clear_flag":
            builder_config.clear_flag(adapter.get(f"BuilderFlag.{call.name}"))
        elif call.action == "memory":
            builder_config.set_memory_pool_limit(adapter.get(f"MemoryPoolType.{call.name}"), value)
        else:
            builder_config.num_compute_capabilities = len(value)
            for index, member in enumerate(value):
                if not builder_config.set_compute_capability(adapter.get(member), index):
                    raise EngineError(f"{adapter.name} refuses the target {member.rpartition('.')[2]}.")


def _add_profile(builder: Any, builder_config: Any, network: Any, batch: tuple[int, int, int], path: Path) -> None:
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    rest = tuple(image.shape)[1:]
    minimum, optimum, maximum = batch
    profile.set_shape(image.name, (minimum, *rest), (optimum, *rest), (maximum, *rest))
    if builder_config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT does not take the batch {batch} for the input of {path.name}, whose shape is "
            f"{tuple(image.shape)}."
        )


def _attach_timing_cache(adapter: Adapter, builder_config: Any, content: bytes) -> Any:
    """Only with a GPU: without one a timing cache makes the builder ask for it, and the build fails."""
    if not adapter.installation.gpu:
        raise EngineError("A timing cache holds what a GPU measured, and there is no GPU here: leave it out.")
    cache = builder_config.create_timing_cache(content)
    if cache is None or not builder_config.set_timing_cache(cache, False):
        raise EngineError(
            "The timing cache belongs to another GPU or another TensorRT: delete that file, or name another."
        )
    return cache


def _progress_monitor(adapter: Adapter, progress: Progress) -> Any:
    """An `IProgressMonitor` that reports every phase."""
    base = adapter.module.IProgressMonitor
    sizes: dict[str, int] = {}

    class Monitor(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants this very call

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            sizes[name] = steps
            progress(name, 0, steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, sizes.get(name, step + 1))
            return True

        def phase_finish(self, name: str) -> None:
            steps = sizes.pop(name, 0)
            progress(name, steps, steps)

    return Monitor()


def _verify_engine(adapter: Adapter, engine: bytes, config: BuildConfig) -> None:
    """An engine of TensorRT-RTX must claim exactly the targets it was built for, and be complete."""
    if adapter.installation.kind != "tensorrt_rtx":
        return
    header = parse_header(engine[:HEADER_BYTES], len(engine), "the engine just built")
    if header.targets != config.targets or header.forward_compatible:
        raise EngineError(
            f"{adapter.name} was asked for {', '.join(config.targets)} but its engine claims "
            f"{', '.join(header.targets)}: it is not kept. Build for one target at a time."
        )
