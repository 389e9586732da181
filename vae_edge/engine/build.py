"""ONNX to engine: choose the TensorRT, build in a worker process, and add the engine to a bundle.

Full TensorRT builds for the GPU of this machine; TensorRT-RTX builds ahead of time, also without a GPU, for named
architectures. The precision is that of the ONNX file (Q/DQ pairs, casts): every network is strongly typed.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge import __version__, files
from vae_edge.bundle import Bundle, ModelEntry, add_models, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.builder import Notice, Progress
from vae_edge.engine.dla import DlaLayers
from vae_edge.engine.gpus import RTX_TARGETS, check_local_gpu, check_rtx_targets, target_name
from vae_edge.engine.inspection import LayerInfo, explain_precision, fraction_at
from vae_edge.engine.tensorrt import (
    BuildConfig,
    ConfigCall,
    TensorRTInstallation,
    discover,
    install_hint,
    open_adapter,
)
from vae_edge.engine.worker import BuildRequest, WorkerResult, run_worker
from vae_edge.errors import BundleError, EngineError
from vae_edge.probes import load as load_probes

__all__ = [
    "BuildConfig",
    "BuildResult",
    "BundleEngine",
    "add_engine",
    "build_bundle_engine",
    "build_engine",
    "inner_tensor_names",
    "select_tensorrt",
]


_OWN_KERNELS = {
    "network": "its network is one kernel of the toolkit",
    "operators": "its operators are kernels of the toolkit",
}


@dataclass(frozen=True)
class BuildResult:
    """An engine, and how it was built.

    Attributes:
        engine: the serialized engine.
        kind: "tensorrt" or "tensorrt_rtx".
        target: its architectures as one name, as in a manifest: "sm_87", "sm_80_86".
        layers: of the engine, as the builder's log lists them.
        fraction: 0..1 of the convolutions and matrix products that run in the precision of the file; None if unknown.
        reasons: sentences: which of them run in another precision, and why.
        config_calls: what was set on TensorRT's builder configuration.
        log: of TensorRT, one line each ("SEVERITY text"); `warnings` are those of its lines.
        dla: which layers a DLA takes; None if it was not built for one.
    """

    engine: bytes
    kind: str
    target: str
    config: BuildConfig
    layers: tuple[LayerInfo, ...]
    fraction: float | None
    reasons: tuple[str, ...]
    seconds: float
    config_calls: tuple[ConfigCall, ...]
    versions: dict[str, str]
    onnx_sha256: str
    warnings: tuple[str, ...]
    log: tuple[str, ...]
    dla: DlaLayers | None = None

    @property
    def precision(self) -> str:
        """The precision of the ONNX file."""
        return self.config.precision

    def summary(self) -> str:
        """What was built, in a sentence or two."""
        compute = sum(layer.is_compute for layer in self.layers)
        runs = _OWN_KERNELS.get(self.config.kernels) or (
            "the log does not tell which precision its layers run in"
            if self.fraction is None
            else f"{self.fraction:.0%} of its {compute} convolutions and matrix products run in {self.precision}"
        )
        product = "TensorRT-RTX" if self.kind == "tensorrt_rtx" else "TensorRT"
        return (
            f"{product} {self.versions['tensorrt']} built an {self.precision} engine for {self.target} in "
            f"{self.seconds:.1f} s ({len(self.engine) / 1024:.0f} KiB); {runs}."
        )

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge build` prints it."""
        return {
            "summary": self.summary(),
            "kind": self.kind,
            "target": self.target,
            "precision": self.precision,
            "bytes": len(self.engine),
            "seconds": round(self.seconds, 3),
            "share": self.fraction,
            "reasons": list(self.reasons),
            "layers": [layer.to_json() for layer in self.layers],
            "warnings": list(self.warnings),
            "versions": self.versions,
            **({} if self.dla is None else {"dla": self.dla.to_json()}),
        }

    def provenance(self) -> dict[str, Any]:
        """What a manifest keeps of the build."""
        return {
            "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": self.versions,
            "settings": self.config.for_manifest(),
            "steps": [dataclasses.asdict(call) for call in self.config_calls],
            "seconds": round(self.seconds, 3),
            "onnx_sha256": self.onnx_sha256,
            "share": self.fraction,
            "reasons": list(self.reasons),
            "layers": [{"name": x.name, "type": x.type, "precision": x.precision} for x in self.layers],
            "warnings": list(self.warnings),
            **({} if self.dla is None else {"dla": self.dla.to_json()}),
        }


@dataclass(frozen=True)
class BundleEngine:
    """An engine that was added to a bundle: the bundle's folder, the engine's file in it, and the build."""

    bundle: Path
    file: str
    build: BuildResult

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge build` prints it."""
        return {"bundle": str(self.bundle), "file": self.file, **self.build.to_json()}


def build_engine(
    onnx_path: str | os.PathLike[str],
    config: BuildConfig,
    *,
    progress: Progress | None = None,
    notice: Notice | None = None,
    timeout_s: float | None = None,
    plugins: Path | None = None,
) -> BuildResult:
    """Build an engine in a process of its own. Nothing is written but the timing cache.

    Args:
        onnx_path: a file that `vae-edge export` or `vae-edge quantize` wrote, or with `plugins` one of kernels.
        progress: called with (phase, steps done, steps in all).
        notice: called with lines for the user before the build is over: which layers a DLA would take.
        timeout_s: how long the build may take.
        plugins: folder of the kernels that the file's nodes name; `vae_edge.exporting.plugin_engine` makes both.

    Raises:
        EngineError: the engine cannot be built; the sentence says what to do.
    """
    if (config.kernels == "tensorrt") != (plugins is None):
        raise EngineError(
            f"An engine with the kernels {config.kernels!r} is built from a bundle: "
            f"`vae-edge build BUNDLE --kernels {config.kernels}`."
        )
    path = Path(onnx_path)
    if not path.is_file():
        raise EngineError(f"There is no ONNX file at {path}: make one with `vae-edge export`.")

    if config.kind == "native":
        raise EngineError("A network file is made from a bundle: `vae-edge build BUNDLE --kind native --target orin`.")
    driver = gpus.probe()
    kind, targets = select_tensorrt(config, driver)
    config = dataclasses.replace(config, kind=kind, targets=targets if kind == "tensorrt_rtx" else config.targets)
    open_adapter(kind).config_calls(config)  # refuses what this TensorRT cannot do before a process is started

    folder = None if plugins is None else str(plugins.resolve())
    request = BuildRequest(str(path.resolve()), config, progress is not None, folder)
    answer = run_worker(request, progress, timeout_s, notice=notice)
    if config.timing_cache is not None:
        _save_timing_cache(config.timing_cache, answer.built.timing_cache)
    return _result(answer, config, target_name(targets), driver)


def _result(answer: WorkerResult, config: BuildConfig, target: str, driver: gpus.Driver) -> BuildResult:
    built = answer.built
    prefix = "WARNING "
    warnings = [line.removeprefix(prefix) for line in answer.log if line.startswith(prefix)]
    return BuildResult(
        engine=built.engine,
        kind=config.kind,
        target=target,
        config=config,
        layers=built.layers,
        fraction=fraction_at(built.layers, config.precision),
        reasons=explain_precision(built.layers, config.precision, built.requested),
        seconds=built.seconds,
        config_calls=built.config_calls,
        versions=_versions(answer.version, driver),
        onnx_sha256=built.onnx_sha256,
        warnings=tuple(dict.fromkeys(warnings)),
        log=answer.log,
        dla=built.dla,
    )


def _versions(tensorrt: str, driver: gpus.Driver) -> dict[str, str]:
    return {
        "vae_edge": __version__,
        "tensorrt": tensorrt,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "gpu": driver.sentence(),
    }


def _save_timing_cache(path: str, content: bytes) -> None:
    try:
        files.write_bytes(path, content)
    except OSError as error:
        raise EngineError(
            f"The timing cache {path} cannot be written ({error.strerror}): name another file."
        ) from error


# An engine of a bundle's own ONNX file


def build_bundle_engine(
    bundle_path: str | os.PathLike[str],
    config: BuildConfig,
    *,
    progress: Progress | None = None,
    notice: Notice | None = None,
    timeout_s: float | None = None,
) -> BundleEngine:
    """Build an engine from a bundle's own ONNX model of this role and precision, and add it to the bundle.

    The bundle changes only once the engine is complete. The engine's accuracy stays empty, since it was not measured
    on the device; that of the ONNX file is in the provenance.

    Args:
        progress, notice, timeout_s: as in `build_engine`.

    Raises:
        BundleError: the bundle is damaged or cannot be written.
        EngineError: the bundle has no such ONNX model, or the engine cannot be built.
    """
    bundle = load_bundle(bundle_path)
    source = _onnx_source(bundle, config.role, config.precision)
    result = build_engine(bundle.file(source), config, progress=progress, notice=notice, timeout_s=timeout_s)
    if result.onnx_sha256 != source.sha256:
        raise EngineError(
            f"The file {bundle.file(source)} changed while the engine was built: nothing was added; build again."
        )

    return add_engine(bundle, source, result)


def add_engine(
    bundle: Bundle,
    source: ModelEntry,
    result: BuildResult,
    more: Mapping[str, Any] | None = None,
    probes: Callable[[Path, Path], Path | None] = lambda folder, engine: None,
) -> BundleEngine:
    """Add an engine to the bundle from whose ONNX model `source` it was built.

    Args:
        more: of its provenance, for the manifest.
        probes: called with a folder and the engine's file, writes a new file of probe images there, if there is one.

    Raises:
        BundleError: the bundle is damaged or cannot be written.
        EngineError: there is no place for the engine.
    """
    config = result.config
    from_onnx = {"file": source.file, "sha256": source.sha256, "accuracy": dict(source.accuracy)}
    entry = ModelEntry(
        role=config.role,
        precision=config.precision,
        format=result.kind,
        target=result.target,
        provenance={**result.provenance(), "onnx": from_onnx, **(more or {})},
        threshold=source.threshold,
    )
    with tempfile.TemporaryDirectory(prefix="vae-edge-") as folder:
        engine_file = Path(folder) / "engine"
        try:
            engine_file.write_bytes(result.engine)
        except OSError as error:
            raise EngineError(
                f"The engine was built but cannot be written to {folder} ({error.strerror}): free some space there, or "
                "name another folder in TMPDIR. The bundle is as it was."
            ) from error
        added = add_models(bundle.path, [(engine_file, entry)], probes(Path(folder), engine_file))
    file = added.find(config.role, result.kind, config.precision, result.target).file
    return BundleEngine(bundle.path, file, result)


def inner_tensor_names(bundle: Bundle, role: str, precision: str) -> tuple[str, ...]:
    """The tensors inside the ONNX model of this role and precision that the probes know, in the graph's order.

    Raises:
        BundleError: the bundle has no probes, or they know no tensor of this model.
        EngineError: as `build_bundle_engine`.
    """
    source = _onnx_source(bundle, role, precision)
    if bundle.probes is None:
        raise BundleError(
            f"The bundle {bundle.path} has no probes, which name the tensors to mark: export it with probes."
        )
    known = load_probes(bundle.file(bundle.probes)).models.get(source.sha256)
    if known is None or not known.inner:
        raise BundleError(f"The probes of {bundle.path} know no tensor inside {source.file}: quantize or export again.")
    return tuple(known.inner)


def _onnx_source(bundle: Bundle, role: str, precision: str) -> ModelEntry:
    entries = bundle.select(role=role, format="onnx", precision=precision, target="any")  # other targets are CPUs
    if not entries:
        has = ", ".join(entry.precision for entry in bundle.select(role, "onnx", target="any")) or "none"
        exported = f"vae-edge export RUN --out {bundle.path}"
        quantized = f"vae-edge quantize {bundle.path} --precision {precision} --data PATH"
        raise EngineError(
            f"The bundle {bundle.path} has no {precision} ONNX {role} to build from (it has: {has}): add it with "
            f"`{exported if precision == 'fp32' else quantized}`."
        )
    return entries[0]


# Which TensorRT builds

_AHEAD_HINT = 'ahead of time with TensorRT-RTX (`pip install "vae-edge[rtx]"`)'


def select_tensorrt(config: BuildConfig, driver: gpus.Driver) -> tuple[str, tuple[str, ...]]:
    """The kind of TensorRT to build with, and the architectures to build for.

    Full TensorRT where there is a GPU and nothing else was asked for; else TensorRT-RTX.

    Raises:
        EngineError: nothing here can do it; the sentence says what can.
    """
    kind, targets = config.kind, config.targets
    gpu = driver.device(config.device)
    if driver.devices and gpu is None:
        raise EngineError(f"There is no GPU number {config.device} to build on; there are {driver.sentence()}.")
    device = "" if gpu is None else gpu.target
    local = bool(device) and targets in ((), (device,))
    if not local and kind != "tensorrt":
        check_rtx_targets(targets, config.precision)

    installations = discover()
    usable = {installation.kind for installation in installations if not installation.problem}
    if kind == "tensorrt" or (kind == "auto" and local and "tensorrt" in usable):
        _check_full_tensorrt(targets, device, usable, installations, driver)
        check_local_gpu(device, config.precision, config.dla_core is not None)
        return "tensorrt", (device,)

    if "tensorrt_rtx" not in usable:
        raise EngineError(_no_tensorrt(kind, usable, installations, device))
    targets = targets or ((device,) if device else ())
    if not targets:
        raise EngineError(
            f"This machine has no GPU to build for ({driver.problem}): name one or more of "
            f"{', '.join(each for each in RTX_TARGETS if each != 'sm_75' or config.precision == 'fp16')}, or a device "
            "that `vae-edge devices` lists, with --target. Where TensorRT builds only on the device itself, --target "
            "makes a kit that does it there."
        )
    check_rtx_targets(targets, config.precision)
    return "tensorrt_rtx", targets


def _check_full_tensorrt(
    targets: tuple[str, ...],
    device: str,
    usable: Collection[str],
    installations: Sequence[TensorRTInstallation],
    driver: gpus.Driver,
) -> None:
    if "tensorrt" not in usable:
        raise EngineError(install_hint("tensorrt", [each for each in installations if each.kind == "tensorrt"]))
    if not device:
        raise EngineError(
            f"Full TensorRT builds only on a machine with a GPU, and there is none here ({driver.problem}): build on "
            f"the device, or {_AHEAD_HINT}."
        )
    if targets not in ((), (device,)):
        raise EngineError(
            f"Full TensorRT builds only for the GPU of this machine, {device}, not for {', '.join(targets)}: build "
            f"there, or {_AHEAD_HINT}."
        )


def _no_tensorrt(kind: str, usable: Collection[str], installations: Sequence[TensorRTInstallation], device: str) -> str:
    if kind == "auto" and "tensorrt" in usable:
        here = (
            f"only for the GPU of this machine ({device})"
            if device
            else "only where there is a GPU, and there is none here"
        )
        hint = install_hint("tensorrt_rtx")
        return f"Full TensorRT is installed, but it builds {here}. To build for other targets: {hint}"
    return install_hint(kind, [each for each in installations if kind in ("auto", each.kind)])
