"""Which TensorRT builds, and for which architectures: from what was asked, what is installed and which GPU is there.

ONNX to engine: build in a worker process, say what was made, and put it into a bundle.

Full TensorRT builds for the GPU of this machine; TensorRT-RTX builds ahead of time, also without a GPU, for named
architectures. The precision stands in the ONNX file (Q/DQ pairs, casts): every network is strongly typed.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge import __version__, files
from vae_edge.bundle import Bundle, ModelEntry, add_model, load_bundle
from vae_edge.engine import cuda
from vae_edge.engine.inspection import LayerInfo, explain_precision, fraction_at
from vae_edge.engine.targets import RTX_TARGETS, check_rtx_target, check_local_gpu, parse_targets, target_name
from vae_edge.engine.tensorrt import (
    DEFAULT_BATCH,
    DEFAULT_WORKSPACE_BYTES,
    KINDS,
    TensorRTInstallation,
    BuildConfig,
    discover,
    open_adapter,
    install_hint,
)
from vae_edge.engine.worker import WorkerResult, run_worker
from vae_edge.errors import EngineError

_AHEAD = 'ahead of time with TensorRT-RTX (`pip install "vae-edge[rtx]"`)'


def select_tensorrt(kind: str, settings: BuildConfig, driver: cuda.Driver) -> tuple[str, tuple[str, ...]]:
    """The kind of TensorRT to build with, and the targets to build for.

    Full TensorRT where there is a GPU and nothing else was asked; else TensorRT-RTX.

    Raises:
        EngineError: where nothing here can do it; the sentence says what can.
    """
    if kind not in ("auto", *KINDS):
        raise EngineError(f"The kind of TensorRT {kind!r} is unknown: choose auto, {' or '.join(KINDS)}.")
    targets = settings.targets
    device = driver.devices[0].target if driver.devices else ""
    local = bool(device) and targets in ((), (device,))
    if not local and kind != "tensorrt":
        check_rtx_target(targets, settings.precision)
    flavours = discover()
    usable = {installation.kind for installation in flavours if not installation.problem}
    if kind == "tensorrt" or (kind == "auto" and local and "tensorrt" in usable):
        _check_full(targets, device, usable, flavours, driver)
        check_local_gpu(device, settings.precision, settings.dla_core is not None)
        return "tensorrt", (device,)
    if "tensorrt_rtx" not in usable:
        raise EngineError(_nothing_fits(kind, usable, flavours, device))
    wanted = targets or ((device,) if device else ())
    if not wanted:
        raise EngineError(
            f"This machine has no GPU to build for ({driver.problem}), so TensorRT-RTX needs to be told the targets: "
            f"name one or more of {', '.join(RTX_TARGETS)}. For a Jetson, build on the Jetson."
        )
    check_rtx_target(wanted, settings.precision)
    return "tensorrt_rtx", wanted


def _check_full(
    targets: tuple[str, ...],
    device: str,
    usable: Collection[str],
    flavours: Sequence[TensorRTInstallation],
    driver: cuda.Driver,
) -> None:
    if "tensorrt" not in usable:
        raise EngineError(install_hint("tensorrt", [f for f in flavours if f.kind == "tensorrt"]))
    if not device:
        raise EngineError(
            f"Full TensorRT builds only on a machine with a GPU, and there is none here ({driver.problem}): build on "
            f"the device, or {_AHEAD}."
        )
    if targets not in ((), (device,)):
        raise EngineError(
            f"Full TensorRT builds only for the GPU of this machine, {device}, not for {', '.join(targets)}: build "
            f"there, or {_AHEAD}."
        )


def _nothing_fits(kind: str, usable: Collection[str], flavours: Sequence[TensorRTInstallation], device: str) -> str:
    if kind == "auto" and "tensorrt" in usable:
        here = (
            f"only for the GPU of this machine ({device})"
            if device
            else "only where there is a GPU, and there is none here"
        )
        other = install_hint("tensorrt_rtx")
        return f"Full TensorRT is installed, but it builds {here}. To build for other targets: {other}"
    return install_hint(kind, [f for f in flavours if kind in ("auto", f.kind)])


Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


@dataclass(frozen=True)
class BuildResult:
    """An engine and all that is known of how it came about."""

    engine: bytes
    kind: str  # "tensorrt" | "tensorrt_rtx"
    target: str  # one name for all targets, as in a manifest: "sm_87", "sm_80_86"
    precision: str
    layers: tuple[LayerInfo, ...]
    fraction_at: float | None  # of the convolutions and matrix products, those that run in `precision`; None if unknown
    explain_precision: tuple[str, ...]  # where it does not run in `precision`, and why
    seconds: float
    settings: BuildConfig
    steps: tuple[dict[str, Any], ...]  # what was set on the builder configuration
    versions: dict[str, str]
    onnx_sha256: str
    warnings: tuple[str, ...]
    log: tuple[str, ...]

    def summary(self) -> str:
        """What was built, in a sentence or two for people."""
        is_compute = sum(layer.is_compute for layer in self.layers)
        runs = (
            "the log does not tell which precision its layers run in"
            if self.fraction_at is None
            else f"{self.fraction_at:.0%} of its {is_compute} convolutions and matrix products run in {self.precision}"
        )
        product = "TensorRT-RTX" if self.kind == "tensorrt_rtx" else "TensorRT"
        return (
            f"{product} {self.versions['tensorrt']} built an {self.precision} engine for {self.target} in "
            f"{self.seconds:.1f} s ({len(self.engine) / 1024:.0f} KiB); {runs}."
        )

    def report(self) -> dict[str, Any]:
        """What `vae-edge build` prints, fit for JSON."""
        return {
            "summary": self.summary(),
            "kind": self.kind,
            "target": self.target,
            "precision": self.precision,
            "bytes": len(self.engine),
            "seconds": round(self.seconds, 3),
            "share": self.fraction_at,
            "reasons": list(self.explain_precision),
            "layers": [layer.to_json() for layer in self.layers],
            "warnings": list(self.warnings),
            "versions": self.versions,
        }

    def provenance(self) -> dict[str, Any]:
        """What a manifest keeps of the build, fit for JSON."""
        return {
            "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": self.versions,
            "settings": self.settings.to_json(),
            "steps": list(self.steps),
            "seconds": round(self.seconds, 3),
            "onnx_sha256": self.onnx_sha256,
            "share": self.fraction_at,
            "reasons": list(self.explain_precision),
            "layers": [{"name": x.name, "type": x.type, "precision": x.precision} for x in self.layers],
            "warnings": list(self.warnings),
        }


def build_engine(
    onnx_path: str | os.PathLike[str],
    *,
    kind: str = "auto",
    targets: str | Iterable[str] = (),
    precision: str,
    role: str = "classifier",
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    tf32: bool = True,
    version_compatible: bool = False,
    hardware_compatibility: str = "none",
    dla_core: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    timeout_s: float | None = None,
) -> BuildResult:
    """Build an engine from an ONNX file of ours, in a process of its own; nothing is written but the timing cache.

    Args:
        onnx_path: a file that `vae-edge export` or `vae-edge quantize` wrote.
        kind: "auto", "tensorrt" or "tensorrt_rtx".
        targets: architectures such as "sm_86"; none means the GPU of this machine.
        precision: what the file is: "fp32", "fp16", "int8" or "fp8".
        role: "classifier" or "reconstruction".
        batch: the smallest, the one to be fastest at, and the largest.
        workspace_bytes: the most scratch memory that a kernel may take on the device; None for 256 MiB.
        optimization_level: 0 to 5; None leaves it to TensorRT.
        tf32: whether fp32 matrix products may round their inputs to 10 bits of mantissa.
        version_compatible: whether a later TensorRT shall run the engine (full TensorRT alone).
        hardware_compatibility: "none", "ampere_plus" or "same_compute_capability" (full TensorRT alone).
        dla_core: build for this DLA core of a Jetson, falling back to the GPU for what it cannot do.
        timing_cache: a file of measured kernel times, read if it is there, written after the build (only with a GPU).
        progress: called with (phase, steps done, steps in all).
        timeout_s: end the build after so long.

    Raises:
        EngineError: for every reason that an engine cannot be built; the sentence says what to do.
    """
    settings = BuildConfig(
        precision=precision,
        role=role,
        batch=tuple(batch),  # type: ignore[arg-type]  # its length is checked
        targets=parse_targets(targets),
        workspace_bytes=DEFAULT_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes,
        optimization_level=optimization_level,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility,
        dla_core=dla_core,
        timing_cache=timing_cache is not None,
    )
    settings.check()
    path = Path(onnx_path)
    if not path.is_file():
        raise EngineError(f"There is no ONNX file at {path}: make one with `vae-edge export`.")
    driver = cuda.probe()
    kind, device_targets = select_tensorrt(kind, settings, driver)
    if kind == "tensorrt_rtx":
        settings = dataclasses.replace(settings, targets=device_targets)
    open_adapter(kind).plan(settings)  # refuses what this TensorRT cannot do before a process is started
    request = {
        "kind": kind,
        "onnx": str(path.resolve()),
        "settings": settings.to_json(),
        "timing_cache": None if timing_cache is None else os.fspath(timing_cache),
        "progress": progress is not None,
    }
    answer = run_worker(request, progress, timeout_s)
    if timing_cache is not None:
        _save_timing_cache(timing_cache, answer.content[answer.header["engine_bytes"] :])
    return _result(answer, kind, device_targets, settings, driver)


def _result(
    answer: WorkerResult, kind: str, targets: tuple[str, ...], settings: BuildConfig, driver: cuda.Driver
) -> BuildResult:
    header = answer.header
    layers = tuple(LayerInfo.from_json(layer) for layer in header["layers"])
    return BuildResult(
        engine=answer.content[: header["engine_bytes"]],
        kind=kind,
        target=target_name(targets),
        precision=settings.precision,
        layers=layers,
        fraction_at=fraction_at(layers, settings.precision),
        explain_precision=explain_precision(layers, settings.precision, header["asked"]),
        seconds=header["seconds"],
        settings=settings,
        steps=tuple(header["steps"]),
        versions=_versions(header["version"], driver),
        onnx_sha256=header["onnx_sha256"],
        warnings=tuple(dict.fromkeys(line[8:] for line in answer.log if line.startswith("WARNING "))),
        log=answer.log,
    )


def build_bundle_engine(
    bundle_path: str | os.PathLike[str],
    precision: str,
    targets: str | Iterable[str] = (),
    *,
    role: str = "classifier",
    **options: Any,
) -> dict[str, Any]:
    """Build an engine from a bundle's own ONNX model of this precision, and add it to the bundle.

    The bundle changes only after the engine is whole. `options` are those of `build_engine`. The engine's accuracy is
    left empty, as it was not measured on the device; that of the ONNX file it came from stands in the provenance.

    Returns:
        `BuildResult.report()`, with "bundle" and "file", where the engine lies.

    Raises:
        BundleError: if the bundle is damaged or cannot be written.
        EngineError: if the bundle has no such ONNX model, or the engine cannot be built.
    """
    BuildConfig(precision=precision, role=role).check()
    bundle = load_bundle(bundle_path)
    source = _onnx_of(bundle, role, precision)
    result = build_engine(bundle.file(source), targets=targets, precision=precision, role=role, **options)
    if result.onnx_sha256 != source.sha256:
        raise EngineError(
            f"The file {bundle.file(source)} changed while the engine was built: nothing was added; build again."
        )
    from_onnx = {"file": source.file, "sha256": source.sha256, "accuracy": dict(source.accuracy)}
    entry = ModelEntry(
        role=role,
        precision=precision,
        format=result.kind,
        target=result.target,
        provenance={**result.provenance(), "onnx": from_onnx},
        threshold=source.threshold,
    )
    with tempfile.TemporaryDirectory(prefix="vae-edge-") as folder:
        engine_file = Path(folder) / "engine"
        try:
            engine_file.write_bytes(result.engine)
        except OSError as error:
            raise EngineError(
                f"The engine was built but cannot be written to {folder} ({error.strerror}): make room there, or name "
                "another folder in TMPDIR. The bundle is as it was."
            ) from error
        added = add_model(bundle_path, engine_file, entry)
    file = added.find(role, result.kind, precision, result.target).file
    return {"bundle": str(bundle.path), "file": file, **result.report()}


def _onnx_of(bundle: Bundle, role: str, precision: str) -> ModelEntry:
    entries = bundle.select(role=role, format="onnx", precision=precision, target="any")  # the others are for CPUs
    if not entries:
        has = ", ".join(entry.precision for entry in bundle.select(role, "onnx", target="any")) or "none"
        way = "vae-edge export RUN --out" if precision == "fp32" else f"vae-edge quantize --precision {precision}"
        raise EngineError(
            f"The bundle {bundle.path} has no {precision} ONNX {role} to build from (it has: {has}): add it with "
            f"`{way} {bundle.path}`."
        )
    return entries[0]


def _save_timing_cache(path: str | os.PathLike[str], content: bytes) -> None:
    try:
        files.write_bytes(path, content)
    except OSError as error:
        raise EngineError(
            f"The timing cache {path} cannot be written ({error.strerror}): name another file."
        ) from error


def _versions(tensorrt: str, driver: cuda.Driver) -> dict[str, str]:
    return {
        "vae_edge": __version__,
        "tensorrt": tensorrt,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "gpu": driver.sentence(),
    }
