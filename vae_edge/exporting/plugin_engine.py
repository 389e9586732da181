"""TensorRT engines that run the toolkit's kernels, made from a bundle's own ONNX file.

The network is read as for a network file, and the CPU reference answers the probe images on it: an engine of a network
whose answers are wrong is not added. Then Triton compiles its kernel, and TensorRT builds an engine of a graph that is
that kernel (`plugin_graph`). What the kernel answers in the engine is checked on the device, at the first load.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from vae_edge.bundle import ModelEntry, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.build import BuildResult, BundleEngine, add_engine, build_engine, select_tensorrt
from vae_edge.engine.builder import Notice, Progress
from vae_edge.engine.plugins.kernel_file import SUFFIX
from vae_edge.engine.plugins.quick import check_quick_plugins
from vae_edge.engine.tensorrt import BuildConfig, open_adapter
from vae_edge.errors import EngineError, ExportError, KernelError
from vae_edge.exporting.kernel_graph import Form, kernel_graph
from vae_edge.exporting.network_file import CheckedNetwork, read_checked
from vae_edge.exporting.plugin_graph import with_plugins

TIMED_CALLS = 50
_NO_GPU = (
    "Which kernels are faster is measured, and this machine has no GPU to measure on ({problem}): choose "
    "`--kernels tensorrt` or `--kernels network`, or build on the device."
)


def build_plugin_engine(
    bundle_path: str | os.PathLike[str],
    config: BuildConfig,
    *,
    progress: Progress | None = None,
    notice: Notice | None = None,
    timeout_s: float | None = None,
) -> BundleEngine:
    """Build an engine with the kernels that the configuration names, and add it to the bundle.

    With the kernels "auto", both engines are built and timed on this machine's GPU at the optimum batch, and the faster
    one is added; the other one's time is in its provenance.

    Args:
        bundle_path: the bundle's folder.
        config: with the kernels "network", "operators" or "auto".
        progress, notice, timeout_s: as of `vae_edge.engine.build.build_engine`.

    Raises:
        BundleError: the bundle is damaged or cannot be written.
        EngineError: the bundle has no such ONNX file or no answers to compare with, the answers are wrong, a kernel
            does not compile, or TensorRT does not build or take it.
    """
    bundle = load_bundle(bundle_path)
    if config.kernels == "auto":
        driver = gpus.probe()
        if driver.device(config.device) is None:
            raise EngineError(_NO_GPU.format(problem=driver.problem or driver.sentence()))
        return _build_faster(bundle_path, config, progress, notice, timeout_s)
    checked, result, plugins = _build(bundle_path, config, progress, notice, timeout_s)
    more = {"plugins": list(plugins), "reference_differences": checked.differences}
    return add_engine(bundle, checked.source, result, more, checked.save_probes)


def _build(
    bundle_path: str | os.PathLike[str],
    config: BuildConfig,
    progress: Progress | None,
    notice: Notice | None,
    timeout_s: float | None,
) -> tuple[CheckedNetwork, BuildResult, tuple[str, ...]]:
    """An engine of a bundle's network in one kernel, or in one an operator, and the names of its plugins."""
    bundle = load_bundle(bundle_path)
    kind, targets = select_tensorrt(config, gpus.probe())
    config = dataclasses.replace(config, kind=kind, targets=targets)
    adapter = open_adapter(kind)
    quick = kind == "tensorrt"
    if quick:
        check_quick_plugins(adapter.module, adapter.installation.version)

    def show(phase: str, step: int = 2) -> None:
        if progress is not None:
            progress(phase, step, 3)

    try:
        checked = read_checked(bundle, config.precision, show=show)
        architectures = [int(target.removeprefix("sm_")) for target in targets]
        form: Form = "operators" if config.kernels == "operators" else "network"
        graph = with_plugins(kernel_graph(checked.packed, form), architectures, quick=quick, progress=show)
    except KernelError as error:
        raise EngineError(f"No engine of the toolkit's kernels can be made of {bundle.path}: {error}") from error
    except ExportError as error:
        raise EngineError(f"{bundle.path} holds no network of ours ({error}): export it again.") from error

    with tempfile.TemporaryDirectory(prefix="vae-edge-") as temporary:
        folder = Path(temporary)
        try:
            for name, content in graph.kernels.items():
                (folder / f"{name}{SUFFIX}").write_bytes(content)
            onnx.save(graph.model, str(folder / "network.onnx"))
        except OSError as error:
            raise EngineError(
                f"The kernels cannot be written to {folder} ({error.strerror}): free some space there, or name another "
                "folder in TMPDIR. The bundle is as it was."
            ) from error
        result = build_engine(
            folder / "network.onnx", config, progress=progress, notice=notice, timeout_s=timeout_s, plugins=folder
        )
    return checked, result, tuple(graph.kernels)


# ---- Which one is faster --------------------------------------------------------------------------------------------


def _build_faster(
    bundle_path: str | os.PathLike[str],
    config: BuildConfig,
    progress: Progress | None,
    notice: Notice | None,
    timeout_s: float | None,
) -> BundleEngine:
    """Build both, time them, and add the faster one."""
    own = dataclasses.replace(config, kernels="network")
    checked, network, plugins = _build(bundle_path, own, progress, notice, timeout_s)
    source = next(iter(load_bundle(bundle_path).select(config.role, "onnx", config.precision, "any")), None)
    if source is None:  # fp16 of an fp32 file: there is nothing that TensorRT could build of
        more = {"plugins": list(plugins), "reference_differences": checked.differences}
        return add_engine(checked.bundle, checked.source, network, more, checked.save_probes)

    theirs = dataclasses.replace(config, kernels="tensorrt")
    other = build_engine(checked.bundle.file(source), theirs, progress=progress, notice=notice, timeout_s=timeout_s)
    times = {
        "tensorrt": time_engine(other, checked, ()),
        "network": time_engine(network, checked, plugins),
    }
    measured = {"kernels_us": {name: round(1e6 * seconds, 2) for name, seconds in times.items()}}
    if times["network"] < times["tensorrt"]:
        more = {"plugins": list(plugins), "reference_differences": checked.differences, **measured}
        return add_engine(checked.bundle, checked.source, network, more, checked.save_probes)
    return add_engine(checked.bundle, source, other, measured)


def time_engine(
    result: BuildResult,
    checked: CheckedNetwork,
    plugins: tuple[str, ...],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of a call with the optimum batch of probe images, on this machine's GPU.

    Raises:
        BackendError, BundleError: the engine does not run.
    """
    from vae_edge.runtime.backends import LoadOptions
    from vae_edge.runtime.tensorrt_backend import TensorRTBackend, TensorRTRTXBackend

    backend_class = TensorRTRTXBackend if result.kind == "tensorrt_rtx" else TensorRTBackend
    count = result.config.batch[1]
    images = np.ascontiguousarray(np.resize(checked.probes.images, (count, *checked.probes.images.shape[1:])))
    with tempfile.TemporaryDirectory(prefix="vae-edge-") as folder:
        file = Path(folder) / "engine"
        file.write_bytes(result.engine)
        entry = ModelEntry(
            role=result.config.role,
            precision=result.config.precision,
            format=result.kind,
            target=result.target,
            provenance={**result.provenance(), "plugins": list(plugins)},
        )
        backend = backend_class(file, entry, LoadOptions(device=result.config.device))
        try:
            backend.warm_up(count)
            times = []
            for _ in range(TIMED_CALLS):
                start = clock()
                backend.infer(images)
                times.append(clock() - start)
        finally:
            backend.close()
    return statistics.median(times)
