"""Backends: the interface that each one fills, which are installed, how a model file is opened, and its buffers.

A backend gets a model file's bytes and never its path: what was verified is what runs, whatever happens to the file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from vae_edge import files
from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.environment import import_package, int8_saturates, is_installed, shadow
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

_CLASSES = {
    "onnxruntime": ("vae_edge.runtime.onnxruntime_backend", "OnnxRuntimeBackend"),
    "openvino": ("vae_edge.runtime.openvino_backend", "OpenVinoBackend"),
}
BACKENDS = tuple(_CLASSES)
NOT_IMPLEMENTED = ("tensorrt", "tensorrt_rtx", "native")
MAX_BUFFERS_PER_THREAD = 8

_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
_DTYPES = {onnx_type: np.dtype(dtype) for dtype, onnx_type in _ONNX_TYPES.items()}


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
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    version: str

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
    def inner_tensors(file: Path, tensors: Sequence[str], images: np.ndarray, threads: int) -> dict[str, np.ndarray]:
        """Tensors inside a model file by name, for images uint8 [N, S, S, C]; only those that the backend can show."""
        ...


def installed_backends() -> tuple[str, ...]:
    """The names of the backends whose packages are installed.

    Their packages are not imported, unless something else may have their name (`vae_edge.environment.shadow`).
    """
    return tuple(name for name in BACKENDS if is_installed(name))


def backend_version(name: str) -> str:
    """The version of an installed backend's package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # another distribution of it, such as onnxruntime-gpu
        return str(import_package(name).__version__)


def check_installed(name: str) -> None:
    """Refuse a backend that is unknown or not installed.

    Raises:
        BackendError: with the backends that are there and the command that installs one.
    """
    there = ", ".join(installed_backends()) or "none"
    if name in NOT_IMPLEMENTED:
        raise BackendError(
            f"The backend {name!r} is not implemented; engines are build-only in this version (installed: {there})."
        )
    if name not in BACKENDS:
        raise BackendError(f"There is no backend {name!r}; there are auto, {', '.join(BACKENDS)}; installed: {there}.")
    if sentence := shadow(name):
        raise BackendError(f"The backend {name!r} cannot be imported (installed: {there}): {sentence}.")
    if not is_installed(name):
        raise BackendError(
            f'The backend {name!r} is not installed (installed: {there}): run `pip install "vae-edge[{name}]"`.'
        )


@dataclass(frozen=True)
class OpenedModel:
    """A model file of a bundle, opened in a backend.

    Attributes:
        backend: the backend's name.
        entry: the file's entry in the bundle.
        file: its path.
        threshold: the largest anomaly score that is accepted with this file.
        threads: how many threads one call may use.
        session: the loaded model; call its `infer`.
    """

    backend: str
    entry: ModelEntry
    file: Path
    threshold: float
    threads: int
    session: Backend


def open_classifier(bundle: Bundle, backend: str, precision: str, threads: int) -> OpenedModel:
    """Open the classifier of a precision that CPU backends run on this machine.

    Raises:
        BundleError: the bundle has none; or as `open_model`.
        BackendError: as `open_model`.
    """
    return open_model(bundle, backend, find_entry(bundle, precision), threads)


def open_model(bundle: Bundle, backend: str, entry: ModelEntry, threads: int) -> OpenedModel:
    """Open one model file of a bundle, and check that its inputs and outputs are what the manifest says.

    Raises:
        BackendError: the backend is not installed or its package cannot be imported.
        BundleError: the backend refuses the file, or the file is not a model of ours.
    """
    file, threshold = bundle.file(entry), bundle.threshold_of(entry)
    session = _open_file(backend, file, entry, threads)
    try:
        check_tensors(session, bundle, entry, file)
    except BundleError:
        session.close()
        raise
    return OpenedModel(backend, entry, file, threshold, threads, session)


def _open_file(backend: str, file: Path, entry: ModelEntry, threads: int) -> Backend:
    opener = _backend_class(backend)
    try:
        return opener(file, entry, threads)
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
        return dict(opener.inner_tensors(model.file, tensors, images, model.threads))
    except Exception as error:  # the backends' own exceptions share no base class
        raise BackendError(f"{model.backend} cannot show tensors inside {model.file} ({error}).") from error


def _backend_class(name: str) -> Any:
    if name not in _CLASSES:
        check_installed(name)  # says what is there
    module, cls = _CLASSES[name]
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, OSError, AttributeError) as error:
        check_installed(name)  # more precise where it is not installed, or a user's own folder has its name
        raise BackendError(
            f"The backend {name!r} is installed but cannot be imported ({error}): reinstall it with "
            f"`pip install --force-reinstall {name}`."
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


def cpu_entry(bundle: Bundle, precision: str) -> ModelEntry | None:
    """The classifier of a precision that CPU backends run on this machine, if there is one.

    For int8 it is the file for this kind of processor, or TensorRT's, the only one in bundles of earlier versions.
    """
    wanted = ("classifier", "onnx", precision)
    models = {m.target: m for m in bundle.models if (m.role, m.format, m.precision) == wanted}
    targets = ("cpu_reduced_range" if int8_saturates() else "cpu", "any") if precision == "int8" else ("any",)
    return next((models[target] for target in targets if target in models), None)


def cpu_entries(bundle: Bundle) -> dict[str, ModelEntry]:
    """The classifiers that CPU backends run on this machine, by precision."""
    found = {m.precision: cpu_entry(bundle, m.precision) for m in bundle.select("classifier", "onnx")}
    return {precision: entry for precision, entry in found.items() if entry is not None}


def find_entry(bundle: Bundle, precision: str) -> ModelEntry:
    """As `cpu_entry`.

    Raises:
        BundleError: if there is none.
    """
    entry = cpu_entry(bundle, precision)
    if entry is not None:
        return entry
    there = ", ".join(m.precision for m in bundle.select("classifier", "onnx", target="any")) or "none"
    add = (
        f"vae-edge export RUN --out {bundle.path}"
        if precision == "fp32"
        else f"vae-edge quantize {bundle.path} --precision {precision} --data PATH"
    )
    raise BundleError(f"The bundle {bundle.path} has no {precision} classifier (it has: {there}): add it with `{add}`.")


def read_model(file: Path, entry: ModelEntry) -> bytes:
    """The bytes of an ONNX file, once they are known to run in bounded memory and time.

    Args:
        file: where it is.
        entry: its entry in the manifest. An entry without a SHA-256 is in no manifest: the caller made the file
            itself, and nothing of it is checked.

    Raises:
        BundleError: the file cannot be read, has another SHA-256, or is refused by `vae_edge.onnx_shapes`.
    """
    try:
        content = files.read_bytes(file, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again, or copy it again.") from error
    if entry.sha256:
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{file} was changed while it was loaded: load the bundle again.")
        check_model(content, str(file))
    return content


@dataclass(frozen=True)
class BoundBuffers:
    """Arrays bound to a backend: fill `image`, call `run()`, read `outputs` before the next run."""

    image: np.ndarray  # uint8 [N, S, S, C]
    outputs: tuple[np.ndarray, ...]
    run: Callable[[], object]
    keep_alive: object  # the backend's objects that point into the arrays


Bind = Callable[[np.ndarray, tuple[np.ndarray, ...]], tuple[Callable[[], object], object]]
"""Binds an image array and output arrays to a backend; returns `run` and `keep_alive` of `BoundBuffers`."""


def refuse_closed(image: np.ndarray, outputs: tuple[np.ndarray, ...]) -> NoReturn:
    """The `Bind` of a backend that was closed."""
    raise RuntimeError(f"closed before a batch of {len(image)}")


class BufferCache:
    """Bound buffers of each thread by batch size; a thread keeps those that it used last."""

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        bind: Bind,
        limit: int = MAX_BUFFERS_PER_THREAD,
    ) -> None:
        """`bind` is called once for each thread and batch size; a thread keeps at most `limit` of them."""
        self._tensors = (*inputs, *outputs)
        self._bind = bind
        self._limit = limit
        self._local = threading.local()

    def get(self, batch: int) -> BoundBuffers:
        """This thread's buffers for a batch size."""
        found = self.find(batch)
        if found is not None:
            return found

        shapes = [(batch, *(int(n or 0) for n in tensor.shape[1:])) for tensor in self._tensors]
        arrays = [np.zeros(shape, _DTYPES[t.type]) for shape, t in zip(shapes, self._tensors, strict=True)]
        image, outputs = arrays[0], tuple(arrays[1:])

        of_thread = self._of_thread()
        buffers = of_thread[batch] = BoundBuffers(image, outputs, *self._bind(image, outputs))
        if len(of_thread) > self._limit:
            of_thread.popitem(last=False)
        return buffers

    def find(self, batch: int) -> BoundBuffers | None:
        """This thread's buffers for a batch size, if there are any yet."""
        try:
            of_thread = self._local.buffers
        except AttributeError:
            return None
        buffers: BoundBuffers | None = of_thread.get(batch)
        if buffers is not None:
            of_thread.move_to_end(batch)
        return buffers

    def forget(self, batch: int) -> None:
        """Drop this thread's buffers for a batch size: they are bound anew when next asked for."""
        self._of_thread().pop(batch, None)

    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that this thread has buffers for, the one used last at the end."""
        return tuple(self._of_thread())

    def _of_thread(self) -> OrderedDict[int, BoundBuffers]:
        try:
            return self._local.buffers
        except AttributeError:
            self._local.buffers = OrderedDict()
            return self._local.buffers
