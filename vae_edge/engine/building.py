"""One build, start to end, in the calling process: parse the ONNX file, check that it is ours, configure, build, check.

TensorRT may abort its process, so users call `vae_edge.engine.build`, which runs this in a worker.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.engine.adapter import Adapter, Step
from vae_edge.engine.header import HEADER_BYTES, parse_header
from vae_edge.engine.interface import check_asked_precision, check_interface
from vae_edge.engine.layers import LayerInfo, network_precisions, parse_layers
from vae_edge.engine.messages import Log, explain, parser_errors
from vae_edge.engine.sampling import asked_samplings, set_sampling
from vae_edge.engine.settings import Settings
from vae_edge.errors import EngineError
from vae_edge.files import read_bytes
from vae_edge.limits import MAX_MODEL_BYTES

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


@dataclass(frozen=True)
class Built:
    """What one build made. `asked` is the precision that the ONNX file asks for, by node."""

    engine: bytes
    layers: tuple[LayerInfo, ...]
    asked: dict[str, str]
    steps: tuple[Step, ...]
    seconds: float
    onnx_sha256: str
    timing_cache: bytes = b""


def build_here(
    adapter: Adapter,
    onnx_path: Path,
    settings: Settings,
    log: Log,
    *,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
) -> Built:
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
    check_interface(network, settings.role, onnx_path)
    for sentence in set_sampling(adapter.module, network, asked_samplings(model), onnx_path, adapter.name):
        log.add("WARNING", sentence)
    asked = network_precisions(network)
    check_asked_precision(asked, settings.precision, onnx_path)
    config = builder.create_builder_config()
    _apply(adapter, config, steps)
    _add_profile(builder, config, network, settings.batch, onnx_path)
    if settings.dla_core is not None and settings.dla_core >= builder.num_DLA_cores:
        raise EngineError(
            f"The DLA core {settings.dla_core} was asked for, but this device has {builder.num_DLA_cores}."
        )
    cache = _attach_timing_cache(adapter, config, timing_cache) if settings.timing_cache else None
    monitor = (
        _monitor(adapter, progress) if progress is not None and adapter.has("IBuilderConfig.progress_monitor") else None
    )
    if monitor is not None:
        config.progress_monitor = monitor
    start = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if serialized is None:
        raise EngineError(f"{adapter.name} could not build {onnx_path.name}: {explain(log.errors())}.")
    engine = bytes(serialized)
    _check_claims(adapter, engine, settings)
    layers = parse_layers(text for severity, text in log.messages if severity == "VERBOSE")
    digest = hashlib.sha256(model).hexdigest()
    saved = bytes(cache.serialize()) if cache is not None else b""
    return Built(engine, layers, asked, tuple(steps), seconds, digest, saved)


def _parse_sentence(adapter: Adapter, builder: Any, logger: Any, parser: Any, file: tuple[bytes, Path]) -> str:
    model, path = file
    errors = parser_errors(parser)
    sentence = f"{adapter.name} does not take {path.name}: {explain(errors)}."
    if any("MODEL_DESERIALIZE_FAILED" in text or "Failed to parse" in text for text in errors):
        return sentence
    network = builder.create_network(adapter.network_flags())  # held by name: a parser does not keep its network alive
    nodes = adapter.unsupported_nodes(adapter.module.OnnxParser(network, logger), model, str(path))
    return sentence + (f" Nodes that it does not take: {', '.join(nodes)}." if nodes else "")


def _apply(adapter: Adapter, config: Any, steps: list[Step]) -> None:
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
    if not adapter.flavour.gpu:
        raise EngineError("A timing cache holds what a GPU measured, and there is no GPU here: leave it out.")
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            "The timing cache belongs to another GPU or another TensorRT: delete that file, or name another."
        )
    return cache


def _check_claims(adapter: Adapter, engine: bytes, settings: Settings) -> None:
    """An engine of TensorRT-RTX must claim exactly the targets that were asked, and be whole."""
    if adapter.flavour.kind != "tensorrt_rtx":
        return
    header = parse_header(engine[:HEADER_BYTES], len(engine), "the engine just built")
    if header.targets != settings.targets or header.later:
        raise EngineError(
            f"{adapter.name} was asked for {', '.join(settings.targets)} but its engine claims "
            f"{', '.join(header.targets)}: it is not kept. Build for each target alone."
        )


def _monitor(adapter: Adapter, progress: Progress) -> Any:
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
