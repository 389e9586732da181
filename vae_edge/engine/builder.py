"""Whether a parsed ONNX file is one of ours: its input, its outputs, and the precision that its graph asks for.

How images are sampled: what the ONNX file asks of each GridSample, and what the parser made of it.

ONNX calls bilinear interpolation `bilinear` up to opset 19 and `linear` from 20 on. Parsers that know only the old
name (TensorRT-RTX 1.5, TensorRT 10.1) take `linear` for `nearest` and say nothing. AffineGrid is new in opset 20, so
that no file of ours can use the old name. After parsing, each layer is held against its node and set right.

One build, start to end, in the calling process: parse the ONNX file, check that it is ours, configure, build, check.

TensorRT may abort its process, so users call `vae_edge.engine.build`, which runs this in a worker.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.engine.inspection import HEADER_BYTES, LayerInfo, requested_precisions, parse_header, parse_layers
from vae_edge.engine.tensorrt import Adapter, Log, BuildConfig, ConfigCall, describe_errors, parser_errors
from vae_edge.errors import EngineError
from vae_edge.files import read_bytes
from vae_edge.limits import MAX_MODEL_BYTES

# name: (type, rank); -1 in a shape is a size that is free
_OUTPUTS = {
    "classifier": {"probabilities": ("FLOAT", 2), "angle": ("FLOAT", 1), "score": ("FLOAT", 1)},
    "reconstruction": {"reconstruction": ("UINT8", 4)},
}
# beside them, in a classifier that was trained turned: all of these or none
_DOUBTS = {"concentration": ("FLOAT", 1), "second_angle": ("FLOAT", 1), "second_share": ("FLOAT", 1)}
_EXPORT = "Give a file that `vae-edge export` or `vae-edge quantize` wrote."


def check_io(network: Any, role: str, path: Path) -> None:
    """Check the input `image` uint8 [N, H, W, C] and the role's outputs of a parsed network.

    Raises:
        EngineError: that says what was expected and what the file has.
    """
    inputs = _describe(network.get_input(i) for i in range(network.num_inputs))
    outputs = _describe(network.get_output(i) for i in range(network.num_outputs))
    if not outputs:
        raise EngineError(f"{path} holds no graph: it is no ONNX model, or it is empty or cut short. {_EXPORT}")
    kind, shape = inputs.get("image", ("", ()))
    fits = kind == "UINT8" and len(shape) == 4 and shape[3] in (1, 3) and shape[1] > 0 and shape[2] > 0
    if len(inputs) != 1 or not fits:
        raise EngineError(
            f"{path} is not a model of ours: its one input should be image, uint8 [N, H, W, 1 or 3], but it has "
            f"{_describe_tensors(inputs)}. {_EXPORT}"
        )
    if shape[0] != -1:
        raise EngineError(
            f"{path} has the fixed batch {shape[0]}, but a free one was expected: {_EXPORT[0].lower()}{_EXPORT[1:]}"
        )
    expected = _OUTPUTS[role]
    if role == "classifier" and set(_DOUBTS) & set(outputs):
        expected = {**expected, **_DOUBTS}
    wrong = [
        name for name, (kind, rank) in expected.items() if name not in outputs or not _is(outputs[name], kind, rank)
    ]
    if wrong or set(outputs) != set(expected):
        should = ", ".join(f"{name} ({kind.lower()}, rank {rank})" for name, (kind, rank) in expected.items())
        raise EngineError(
            f"{path} is no {role} of ours: its outputs should be {should}, but it has "
            f"{_describe_tensors(outputs)}. {_EXPORT}"
        )


def check_requested_precision(requested: Mapping[str, str], precision: str, path: Path) -> None:
    """Check that the graph asks for `precision` at all: in one convolution or matrix product at least, in all for fp32.

    Raises:
        EngineError: that says which precisions the file has.
    """
    if not requested:
        raise EngineError(f"{path} has no convolution and no matrix product: it is not a model of ours. {_EXPORT}")
    kinds = Counter(requested.values())
    fits = set(kinds) == {"fp32"} if precision == "fp32" else precision in kinds
    if not fits:
        has = ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
        way = (
            "`vae-edge export` writes fp32"
            if precision == "fp32"
            else f"`vae-edge quantize BUNDLE --precision {precision}` writes it"
        )
        raise EngineError(
            f"{path} is no {precision} file: of its {len(requested)} convolutions and matrix products there are {has}. The "
            f"precision stands in the graph, so it cannot be chosen here; {way}."
        )


def _describe(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


def _is(tensor: tuple[str, tuple[int, ...]], kind: str, rank: int) -> bool:
    return tensor[0] == kind and len(tensor[1]) == rank


def _describe_tensors(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    parts = [
        f"{name}, {kind.lower()} {['N' if n == -1 else n for n in shape]}" for name, (kind, shape) in tensors.items()
    ]
    return "; ".join(parts).replace("'", "") or "none"


_MODES = {"linear": "LINEAR", "bilinear": "LINEAR", "nearest": "NEAREST", "cubic": "CUBIC", "bicubic": "CUBIC"}
_PADDINGS = {"zeros": "FILL", "border": "CLAMP", "reflection": "REFLECT"}
_GRAPH, _NODE = 7, 1  # fields of ModelProto and GraphProto
_NODE_NAME, _OP_TYPE, _ATTRIBUTE = 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _INTEGER, _STRING = 1, 3, 4  # of AttributeProto


@dataclass(frozen=True)
class GridSample:
    """One GridSample node: its name, and members of TensorRT's InterpolationMode and SampleMode."""

    name: str
    mode: str
    padding: str
    align_corners: bool


def requested_grid_samples(model: bytes) -> list[GridSample]:
    """The GridSample nodes of a serialized ONNX model's graph, in order; the package onnx is not needed.

    Raises:
        EngineError: for a mode that ONNX does not know, or a model that is cut short.
    """
    nodes = (node for graph in _fields(model, _GRAPH) for node in _fields(graph, _NODE))
    return [_sampling(node) for node in nodes if _text(node, _OP_TYPE) == "GridSample"]


def fix_grid_samples(module: Any, network: Any, requested: list[GridSample], path: Path, product: str) -> list[str]:
    """Hold the grid-sample layers of a parsed network against the nodes, and set what differs.

    Args:
        module: the TensorRT module.
        asked: what `asked_samplings` found in the file.
        product: TensorRT's name and version, for sentences.

    Returns:
        a sentence for each layer that was set.

    Raises:
        EngineError: if the layers are not those of the nodes, or one cannot be set.
    """
    layers = [layer for k in range(network.num_layers) if (layer := network.get_layer(k)).type.name == "GRID_SAMPLE"]
    if len(layers) != len(requested):
        raise EngineError(
            f"{product} made {len(layers)} grid-sample layers of the {len(requested)} GridSample nodes of {path.name}, so "
            "how they interpolate cannot be told: use another TensorRT."
        )
    return [
        sentence for layer, node in zip(layers, requested, strict=True) for sentence in _set(module, layer, node, product)
    ]


def _set(module: Any, layer: Any, node: GridSample, product: str) -> Iterator[str]:
    if not hasattr(layer, "interpolation_mode"):
        layer.__class__ = module.IGridSampleLayer  # a network gives its layers as plain ones
    wanted = {
        "interpolation_mode": getattr(module.InterpolationMode, node.mode),
        "sample_mode": getattr(module.SampleMode, node.padding),
        "align_corners": node.align_corners,
    }
    for name, value in wanted.items():
        discover = getattr(layer, name)
        if discover == value:
            continue
        setattr(layer, name, value)
        if getattr(layer, name) != value:
            raise EngineError(
                f"{product} reads the GridSample '{node.name}' with {name} {_word(discover)} where the file asks for "
                f"{_word(value)}, and it cannot be set: use another TensorRT."
            )
        yield (
            f"{product} read the GridSample '{node.name}' with {name} {_word(discover)}; it was set to {_word(value)}, "
            "which the file asks for."
        )


def _word(value: Any) -> str:
    return str(getattr(value, "name", value))


def _sampling(node: memoryview) -> GridSample:
    given = {_text(attribute, _ATTRIBUTE_NAME): attribute for attribute in _fields(node, _ATTRIBUTE)}
    name = _text(node, _NODE_NAME)
    mode = _text(given["mode"], _STRING) if "mode" in given else "linear"
    padding = _text(given["padding_mode"], _STRING) if "padding_mode" in given else "zeros"
    if mode not in _MODES or padding not in _PADDINGS:
        raise EngineError(
            f"The GridSample '{name}' has the mode {mode!r} and the padding {padding!r}; known are "
            f"{', '.join(_MODES)}, and {', '.join(_PADDINGS)}. Give a file that `vae-edge export` wrote."
        )
    corners = "align_corners" in given and next(iter(_numbers(given["align_corners"], _INTEGER)), 0) != 0
    return GridSample(name, _MODES[mode], _PADDINGS[padding], corners)


def _text(message: memoryview, number: int) -> str:
    return next((bytes(value).decode("utf-8", "replace") for value in _fields(message, number)), "")


def _fields(message: bytes | memoryview, number: int) -> Iterator[memoryview]:
    """The values of a field of texts, bytes or messages."""
    return (value for field, value in _parse(memoryview(message)) if field == number and not isinstance(value, int))


def _numbers(message: memoryview, number: int) -> Iterator[int]:
    """The values of a field of whole numbers."""
    return (value for field, value in _parse(message) if field == number and isinstance(value, int))


def _parse(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a Protocol Buffers message: number, and whole number or bytes (of fixed width or counted)."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            size, place = _varint(message, place)
        if not 0 <= size <= len(message) - place:
            raise EngineError("The ONNX file is damaged or cut short: export it again.")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise EngineError("The ONNX file is damaged or cut short: export it again.")


Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


@dataclass(frozen=True)
class BuiltEngine:
    """What one build made. `asked` is the precision that the ONNX file asks for, by node."""

    engine: bytes
    layers: tuple[LayerInfo, ...]
    requested: dict[str, str]
    steps: tuple[ConfigCall, ...]
    seconds: float
    onnx_sha256: str
    timing_cache: bytes = b""


def build_in_process(
    adapter: Adapter,
    onnx_path: Path,
    settings: BuildConfig,
    log: Log,
    *,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
) -> BuiltEngine:
    """Build an engine with this adapter.

    Raises:
        EngineError: if the file is not ours, or TensorRT cannot do what is asked.
    """
    try:
        model = read_bytes(onnx_path, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EngineError(f"The ONNX file {onnx_path} cannot be read ({reason}): check the path.") from error
    steps = adapter.plan(settings)
    builder, logger = adapter.builder(log)
    network = builder.create_network(adapter.network_flags())
    parser = adapter.module.OnnxParser(network, logger)
    if not parser.parse(model, str(onnx_path)):
        raise EngineError(_parse_sentence(adapter, builder, logger, parser, (model, onnx_path)))
    check_io(network, settings.role, onnx_path)
    for sentence in fix_grid_samples(adapter.module, network, requested_grid_samples(model), onnx_path, adapter.name):
        log.add("WARNING", sentence)
    requested = requested_precisions(network)
    check_requested_precision(requested, settings.precision, onnx_path)
    config = builder.create_builder_config()
    _apply(adapter, config, steps)
    _add_profile(builder, config, network, settings.batch, onnx_path)
    if settings.dla_core is not None and settings.dla_core >= builder.num_DLA_cores:
        raise EngineError(
            f"The DLA core {settings.dla_core} was asked for, but this device has {builder.num_DLA_cores}."
        )
    cache = _attach_timing_cache(adapter, config, timing_cache) if settings.timing_cache else None
    monitor = (
        _progress_monitor(adapter, progress) if progress is not None and adapter.has("IBuilderConfig.progress_monitor") else None
    )
    if monitor is not None:
        config.progress_monitor = monitor
    start = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if serialized is None:
        raise EngineError(f"{adapter.name} could not build {onnx_path.name}: {describe_errors(log.errors())}.")
    engine = bytes(serialized)
    _check_claims(adapter, engine, settings)
    layers = parse_layers(text for severity, text in log.messages if severity == "VERBOSE")
    digest = hashlib.sha256(model).hexdigest()
    saved = bytes(cache.serialize()) if cache is not None else b""
    return BuiltEngine(engine, layers, requested, tuple(steps), seconds, digest, saved)


def _parse_sentence(adapter: Adapter, builder: Any, logger: Any, parser: Any, file: tuple[bytes, Path]) -> str:
    model, path = file
    errors = parser_errors(parser)
    sentence = f"{adapter.name} does not take {path.name}: {describe_errors(errors)}."
    if any("MODEL_DESERIALIZE_FAILED" in text or "Failed to parse" in text for text in errors):
        return sentence
    network = builder.create_network(adapter.network_flags())  # held by name: a parser does not keep its network alive
    nodes = adapter.unsupported_nodes(adapter.module.OnnxParser(network, logger), model, str(path))
    return sentence + (f" Nodes that it does not take: {', '.join(nodes)}." if nodes else "")


def _apply(adapter: Adapter, config: Any, steps: list[ConfigCall]) -> None:
    for step in steps:
        value = adapter.get(step.value) if isinstance(step.value, str) else step.value
        if step.action == "set":
            setattr(config, step.name, value)
        elif step.action == "flag":
            config.set_flag(adapter.get(f"BuilderFlag.{step.name}"))
        elif step.action == "clear_flag":
            config.clear_flag(adapter.get(f"BuilderFlag.{step.name}"))
        elif step.action == "memory":
            config.set_memory_pool_limit(adapter.get(f"MemoryPoolType.{step.name}"), value)
        else:
            config.num_compute_capabilities = len(value)
            for index, member in enumerate(value):
                if not config.set_compute_capability(adapter.get(member), index):
                    raise EngineError(f"{adapter.name} refuses the target {member.rpartition('.')[2]}.")


def _add_profile(builder: Any, config: Any, network: Any, batch: tuple[int, int, int], path: Path) -> None:
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    rest = tuple(image.shape)[1:]
    profile.set_shape(image.name, *((size, *rest) for size in batch))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT does not take the batch {batch} for the input of {path.name}, whose shape is "
            f"{tuple(image.shape)}."
        )


def _attach_timing_cache(adapter: Adapter, config: Any, content: bytes) -> Any:
    """Only with a GPU: without one a timing cache makes the builder ask for it, and the build fails."""
    if not adapter.installation.gpu:
        raise EngineError("A timing cache holds what a GPU measured, and there is no GPU here: leave it out.")
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            "The timing cache belongs to another GPU or another TensorRT: delete that file, or name another."
        )
    return cache


def _check_claims(adapter: Adapter, engine: bytes, settings: BuildConfig) -> None:
    """An engine of TensorRT-RTX must claim exactly the targets that were asked, and be whole."""
    if adapter.installation.kind != "tensorrt_rtx":
        return
    header = parse_header(engine[:HEADER_BYTES], len(engine), "the engine just built")
    if header.targets != settings.targets or header.forward_compatible:
        raise EngineError(
            f"{adapter.name} was asked for {', '.join(settings.targets)} but its engine claims "
            f"{', '.join(header.targets)}: it is not kept. Build for each target alone."
        )


def _progress_monitor(adapter: Adapter, progress: Progress) -> Any:
    """An `IProgressMonitor` that reports the outermost phase that counts more than a few steps."""
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
