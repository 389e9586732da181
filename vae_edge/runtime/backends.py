"""Backends: the interface that each one fills, which are installed, and how a model file is opened.

A backend gets a model file's bytes and never its path: what was verified is what runs, whatever happens to the file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vae_edge import files
from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.engine.tensorrt import install_hint
from vae_edge.environment import import_package, is_installed, package_folder, shadow
from vae_edge.errors import BackendError, BundleError, VaeEdgeError
from vae_edge.onnx_graph import ModelRefused
from vae_edge.onnx_shapes import check_model
from vae_edge.spec import (
    CLASSIFIER_OUTPUTS,
    INPUTS,
    MAX_MODEL_BYTES,
    RECONSTRUCTION_OUTPUTS,
    UNCERTAINTY_OUTPUTS,
)

VERIFY_MODES = ("error", "warn", "off")


@dataclass(frozen=True)
class BackendSpec:
    """Where a backend's class is, what it needs, and which model files it runs.

    Attributes:
        module, cls: of its class, which is imported when a model is opened.
        packages: modules of which it needs one; none for the native library.
        install: the command that installs it.
        format: of the model files that it runs (`vae_edge.spec.FORMATS`).
        gpu: whether it runs on an NVIDIA GPU.
        provider: the library that the package must have beside its own, as ONNX Runtime's for CUDA.
    """

    module: str
    cls: str
    packages: tuple[str, ...]
    install: str
    format: str = "onnx"
    gpu: bool = False
    provider: str = ""


_ORT, _ENGINE = "vae_edge.runtime.onnxruntime_backend", "vae_edge.runtime.tensorrt_backend"
SPECS = {
    "onnxruntime": BackendSpec(_ORT, "OnnxRuntimeBackend", ("onnxruntime",), 'pip install "vae-edge[onnxruntime]"'),
    "openvino": BackendSpec(
        "vae_edge.runtime.openvino_backend", "OpenVinoBackend", ("openvino",), 'pip install "vae-edge[openvino]"'
    ),
    "tensorrt": BackendSpec(
        _ENGINE,
        "TensorRTBackend",
        ("tensorrt", "tensorrt_bindings", "tensorrt_lean"),
        "pip install tensorrt",
        "tensorrt",
        True,
    ),
    "tensorrt_rtx": BackendSpec(
        _ENGINE,
        "TensorRTRTXBackend",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        'pip install "vae-edge[rtx]"',
        "tensorrt_rtx",
        True,
    ),
    "native": BackendSpec("vae_edge.runtime.native", "NativeBackend", (), "make native", "native", True),
    "onnxruntime-cuda": BackendSpec(
        _ORT,
        "OnnxRuntimeCudaBackend",
        ("onnxruntime",),
        "pip install onnxruntime-gpu",
        gpu=True,
        provider="libonnxruntime_providers_cuda.so",
    ),
    "onnxruntime-tensorrt": BackendSpec(
        _ORT,
        "OnnxRuntimeTensorRTBackend",
        ("onnxruntime",),
        "pip install onnxruntime-gpu",
        gpu=True,
        provider="libonnxruntime_providers_tensorrt.so",
    ),
}
BACKENDS = tuple(SPECS)
CPU_BACKENDS = tuple(name for name, spec in SPECS.items() if not spec.gpu)

_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
DTYPES = {onnx_type: np.dtype(dtype) for dtype, onnx_type in _ONNX_TYPES.items()}


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; checked by `vae_edge.load`.

    Attributes:
        threads: how many CPU threads one call may use.
        verify: what happens to wrong answers: `error`, `warn` or `off`.
        device: number of the GPU, for backends that run on one.
        trusted: whether the bundle comes from a trusted place, so that an engine may bring code for the host.
    """

    threads: int = 1
    verify: str = "error"
    device: int = 0
    trusted: bool = False


@dataclass(frozen=True)
class TensorInfo:
    """An input or output in ONNX Runtime's words: a dynamic dimension is a name, the type is like "tensor(uint8)".

    An output has its name of today (`vae_edge.spec`), whatever the file calls it.
    """

    name: str
    shape: list[int | str | None]
    type: str


class Backend(Protocol):
    """A loaded model. Safe to call from several threads.

    Attributes:
        inputs, outputs: of the model, in the file's order.
        version: of the backend's package.
        device: what it runs on, as far as answers and times depend on it; empty for the processor.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    version: str
    device: str

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, S, S, C]. The arrays, in the order of `outputs`, are valid until this thread's next call."""
        ...

    def warm_up(self, batch: int) -> None:
        """Do now what the first call with this batch size would do: compile, allocate, bind."""
        ...

    def close(self) -> None:
        """Release the model. May be called again."""
        ...

    @staticmethod
    def inner_tensors(model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        """Tensors inside a model by name, for images uint8 [N, S, S, C]; only those that the backend can show."""
        ...


def installed_backends(gpu: bool | None = None) -> tuple[str, ...]:
    """The names of the backends whose packages are installed; with `gpu`, of those that run on a GPU, or do not.

    Their packages are not imported, unless something else may have their name (`vae_edge.environment.shadow`).
    """
    return tuple(name for name, spec in SPECS.items() if gpu in (None, spec.gpu) and _is_there(spec))


def _is_there(spec: BackendSpec) -> bool:
    if not spec.packages:
        from vae_edge.runtime.native_library import has_library

        return has_library()
    package = next((name for name in spec.packages if is_installed(name)), None)
    if package is None or not spec.provider:
        return package is not None
    folder = package_folder(package)
    return folder is not None and (folder / "capi" / spec.provider).is_file()


def backend_version(name: str) -> str:
    """The version of an installed backend's package; "unknown" if it cannot be imported, which opening it will say."""
    spec = SPECS[name]
    if not spec.packages:
        from vae_edge.runtime.native_library import library_version

        return library_version()
    package = next((package for package in spec.packages if is_installed(package)), spec.packages[0])
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # another distribution of it, such as onnxruntime-gpu
        try:
            return str(import_package(package).__version__)
        except Exception:  # a broken installation raises anything
            return "unknown"


def check_installed(name: str) -> None:
    """Refuse a backend that is unknown or not installed.

    Raises:
        BackendError: with the backends that are there and the command that installs one.
    """
    there = ", ".join(installed_backends()) or "none"
    if name not in BACKENDS:
        raise BackendError(f"There is no backend {name!r}; there are auto, {', '.join(BACKENDS)}; installed: {there}.")
    spec = SPECS[name]
    for package in spec.packages:
        if sentence := shadow(package):
            raise BackendError(f"The backend {name!r} cannot be imported (installed: {there}): {sentence}.")
    if _is_there(spec):
        return
    if name == "tensorrt":
        raise BackendError(f"The backend {name!r} is not installed (installed: {there}). {install_hint('tensorrt')}")
    if name == "native":
        raise BackendError(
            f"The backend {name!r} has no library here (installed: {there}): install the wheel for this machine, which "
            "has it (`make wheels` writes it), or build it with `make native` and name it in $VAE_EDGE_NATIVE."
        )
    raise BackendError(f"The backend {name!r} is not installed (installed: {there}): run `{spec.install}`.")


@dataclass(frozen=True)
class OpenedModel:
    """A model file of a bundle, opened in a backend.

    Attributes:
        backend: the backend's name.
        entry: the file's entry in the bundle.
        file: its path.
        threshold: the largest anomaly score that is accepted with this file.
        options: how it was opened.
        session: the loaded model; call its `infer`.
    """

    backend: str
    entry: ModelEntry
    file: Path
    threshold: float
    options: LoadOptions
    session: Backend


def open_model(bundle: Bundle, backend: str, entry: ModelEntry, options: LoadOptions) -> OpenedModel:
    """Open one model file of a bundle, and check that its inputs and outputs are what the manifest says.

    Raises:
        BackendError: the backend is not installed or its package cannot be imported.
        BundleError: the backend refuses the file, or the file is not a model of ours.
    """
    file, threshold = bundle.file(entry), bundle.threshold_of(entry)
    session = _open_file(backend, file, entry, options)
    try:
        check_tensors(session, bundle, entry, file)
        if hasattr(session, "check_bundle"):  # a file that says more of its bundle than its tensors do
            session.check_bundle(bundle, entry)
    except BundleError:
        session.close()
        raise
    return OpenedModel(backend, entry, file, threshold, options, session)


def _open_file(backend: str, file: Path, entry: ModelEntry, options: LoadOptions) -> Backend:
    opener = _backend_class(backend)
    try:
        return opener(file, entry, options)
    except ModelRefused as error:
        raise BundleError(
            f"{file} is not a model that {backend} {backend_version(backend)} can load here ({error.reason}): "
            "export it again, or see docs/limits.md."
        ) from error
    except VaeEdgeError:
        raise
    except Exception as error:  # the backends' own exceptions share no base class
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(
            f"{file} is not a model that {backend} {backend_version(backend)} can load ({first[0]}): "
            "export it again, or choose another backend."
        ) from error


def inner_tensors(model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors inside a model for images uint8 [N, S, S, C], by name; only those that the backend can show.

    Raises:
        BackendError: if the backend fails.
    """
    opener = _backend_class(model.backend)
    try:
        return dict(opener.inner_tensors(model, tensors, images))
    except Exception as error:  # the backends' own exceptions share no base class
        raise BackendError(f"{model.backend} cannot show tensors inside {model.file} ({error}).") from error


def _backend_class(name: str) -> Any:
    if name not in SPECS:
        check_installed(name)  # says what is there
    spec = SPECS[name]
    try:
        return getattr(importlib.import_module(spec.module), spec.cls)
    except (ImportError, OSError, AttributeError) as error:
        check_installed(name)  # more precise where it is not installed, or a user's own folder has its name
        raise BackendError(
            f"The backend {name!r} is installed but cannot be imported ({error}): reinstall it with "
            f"`pip install --force-reinstall {spec.packages[0]}`."
        ) from error


def check_tensors(session: Backend, bundle: Bundle, entry: ModelEntry, file: Path) -> None:
    """Check that an opened model takes the bundle's `image` and gives the outputs of its role (`vae_edge.spec`).

    Raises:
        BundleError: with what was expected and what the file has.
    """
    if entry.role == "reconstruction":
        outputs = RECONSTRUCTION_OUTPUTS
    elif any(info.name in UNCERTAINTY_OUTPUTS for info in session.outputs):
        outputs = {**CLASSIFIER_OUTPUTS, **UNCERTAINTY_OUTPUTS}
    else:
        outputs = CLASSIFIER_OUTPUTS
    size, channels, classes = bundle.input.size, bundle.input.channels, len(bundle.classes)

    for what, found, specs in (("inputs", session.inputs, INPUTS), ("outputs", session.outputs, outputs)):
        expected = {
            name: (_ONNX_TYPES[spec.dtype], spec.shape(size, channels, classes)) for name, spec in specs.items()
        }
        have = {info.name: (info.type, tuple(info.shape[1:])) for info in found}
        if have != expected or any(isinstance(info.shape[0], int) for info in found):
            shown = ", ".join(
                f"{name} {kind} [{', '.join(['N', *map(str, dims)])}]" for name, (kind, dims) in expected.items()
            )
            there = ", ".join(f"{t.name} {t.type} [{', '.join(map(str, t.shape))}]" for t in found) or "none"
            raise BundleError(
                f"{file} is not a model of ours: its {what} should be {shown}, "
                f"but they are {there}; export it with `vae-edge export`."
            )


def read_file(file: Path, entry: ModelEntry) -> bytes:
    """The bytes of a model file.

    Args:
        file: where it is.
        entry: its entry in the manifest. An entry without a SHA-256 is in no manifest: the caller made the file
            itself, and nothing of it is checked.

    Raises:
        BundleError: the file cannot be read, or has another SHA-256.
    """
    try:
        content = files.read_bytes(file, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again, or copy it again.") from error
    if entry.sha256 and hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BundleError(f"{file} was changed while it was loaded: load the bundle again.")
    return content


def read_model(file: Path, entry: ModelEntry) -> bytes:
    """The bytes of an ONNX file, once they are known to run in bounded memory and time; arguments as `read_file`.

    Raises:
        BundleError: as `read_file`, or the model is refused by `vae_edge.onnx_shapes`.
    """
    content = read_file(file, entry)
    if entry.sha256:
        check_model(content, str(file))
    return content
