"""Which model files of a bundle a backend runs on this machine, and opening one of them.

CPU backends run the ONNX files for this processor; ONNX Runtime on a GPU runs those for any; the others run engines and
network files that were built for this machine's GPU.
"""

from __future__ import annotations

from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.engine import gpus
from vae_edge.environment import int8_saturates
from vae_edge.errors import BackendError, BundleError
from vae_edge.runtime.backends import SPECS, LoadOptions, OpenedModel, check_installed, open_model

_PRODUCTS = {"tensorrt": "TensorRT engine", "tensorrt_rtx": "TensorRT-RTX engine", "native": "network file"}
_AMPERE = (8, 0)


def open_classifier(bundle: Bundle, backend: str, precision: str, options: LoadOptions) -> OpenedModel:
    """Open the classifier of a precision that a backend runs on this machine.

    Raises:
        BundleError: the bundle has none; or as `vae_edge.runtime.backends.open_model`.
        BackendError: as `open_model`, or there is no GPU for a backend that needs one.
    """
    check_installed(backend)
    return open_model(bundle, backend, find_entry(bundle, precision, backend, options.device), options)


def find_entries(
    bundle: Bundle, backend: str, role: str = "classifier", driver: gpus.Driver | None = None, device: int = 0
) -> dict[str, ModelEntry]:
    """The model files of a role that a backend runs on this machine, by precision.

    Args:
        driver: as `gpus.probe` gives it; None asks it, for a backend that runs on a GPU.
        device: number of the GPU.
    """
    spec = SPECS[backend]
    if not spec.gpu:
        return cpu_entries(bundle, role)
    gpu = (gpus.probe() if driver is None else driver).device(device)
    if gpu is None:
        return {}
    found = bundle.select(role, spec.format)
    return {m.precision: m for m in found if (m.target == "any" if spec.format == "onnx" else runs_on(m, gpu))}


def runs_on(entry: ModelEntry, gpu: gpus.Device) -> bool:
    """Whether an engine or network file was built for a GPU of this architecture."""
    if gpus.covers(entry.target, gpu.target):
        return True
    settings = entry.provenance.get("settings")
    compatible = isinstance(settings, dict) and settings.get("hardware_compatibility") == "ampere_plus"
    return compatible and gpu.capability >= _AMPERE and not gpu.integrated


def find_entry(bundle: Bundle, precision: str, backend: str = "onnxruntime", device: int = 0) -> ModelEntry:
    """The classifier of a precision that a backend runs on this machine.

    Raises:
        BundleError: the bundle has none; the sentence says what it has and how to add it.
        BackendError: there is no GPU for a backend that needs one.
    """
    spec = SPECS[backend]
    gpu = None
    if spec.gpu:
        driver = gpus.probe()
        gpu = driver.device(device)
        if gpu is None:
            raise BackendError(_no_gpu(backend, driver, device))
    found = find_entries(bundle, backend, driver=driver if spec.gpu else None, device=device)
    if precision in found:
        return found[precision]
    if gpu is not None and spec.format != "onnx":
        raise BundleError(_no_engine(bundle, precision, backend, gpu))
    raise BundleError(_no_onnx(bundle, precision))


def _no_gpu(backend: str, driver: gpus.Driver, device: int) -> str:
    if driver.devices:
        return (
            f"There is no GPU number {device} for the backend {backend!r}; there are {driver.sentence()}: choose "
            f"device=0{f' to {driver.device_count - 1}' if driver.device_count > 1 else ''}."
        )
    return (
        f"The backend {backend!r} needs an NVIDIA GPU, and there is none here: {driver.problem}. "
        'Use backend="auto" or a CPU backend, or install the driver; `vae-edge doctor` says what is there.'
    )


def _no_engine(bundle: Bundle, precision: str, backend: str, gpu: gpus.Device) -> str:
    product = _PRODUCTS[SPECS[backend].format]
    there = [f"{m.precision} for {m.target}" for m in bundle.select("classifier", SPECS[backend].format)]
    build = f"vae-edge build {bundle.path} --kind {backend} --precision {precision}"
    if backend == "native":  # which any machine can build
        build += f" --target {gpu.target}"
    return (
        f"The bundle {bundle.path} has no {precision} {product} for this GPU, {gpu.name} ({gpu.target}); it has: "
        f"{', '.join(there) or 'none'}. Build one with `{build}`."
    )


def _no_onnx(bundle: Bundle, precision: str) -> str:
    there = ", ".join(m.precision for m in bundle.select("classifier", "onnx", target="any")) or "none"
    add = (
        f"vae-edge export RUN --out {bundle.path}"
        if precision == "fp32"
        else f"vae-edge quantize {bundle.path} --precision {precision} --data PATH"
    )
    return f"The bundle {bundle.path} has no {precision} classifier (it has: {there}): add it with `{add}`."


def cpu_entries(bundle: Bundle, role: str = "classifier") -> dict[str, ModelEntry]:
    """The model files of a role that CPU backends run on this machine, by precision."""
    found = {m.precision: _cpu_entry(bundle, role, m.precision) for m in bundle.select(role, "onnx")}
    return {precision: entry for precision, entry in found.items() if entry is not None}


def _cpu_entry(bundle: Bundle, role: str, precision: str) -> ModelEntry | None:
    """For int8 it is the file for this kind of processor, or TensorRT's: bundles of early versions have no other."""
    models = {m.target: m for m in bundle.select(role, "onnx", precision)}
    targets = ("cpu_reduced_range" if int8_saturates() else "cpu", "any") if precision == "int8" else ("any",)
    return next((models[target] for target in targets if target in models), None)
