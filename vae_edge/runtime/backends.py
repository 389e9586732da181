"""Buffers bound to an engine: made once for each thread and batch size, used again by every later call.

A model file's bytes for a backend: those whose sum the manifest has, checked before an engine sees them.

Engines are given these bytes and not the path: what was verified is what is run, whatever happens to the file.

The one interface that every backend fills, which of them are installed, and the check that a model file is ours.
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
from typing import Any, Protocol

import numpy as np

from vae_edge import files
from vae_edge.bundle import ModelEntry
from vae_edge.environment import import_package, is_installed, shadow
from vae_edge.errors import BackendError, BundleError, VaeEdgeError
from vae_edge.limits import MAX_MODEL_BYTES
from vae_edge.onnx_graph import ModelRefused
from vae_edge.onnx_shapes import check_model
from vae_edge.preprocess import InputSpec

SLOTS_PER_THREAD = 8


@dataclass(frozen=True)
class Slot:
    """One bound call: fill `image`, call `run()`, read `outputs` before the next run."""

    image: np.ndarray  # uint8 [N, S, S, C]
    outputs: tuple[np.ndarray, ...]
    run: Callable[[], object]
    held: Any  # engine objects that point into the arrays above


class Slots:
    """The slots of each thread by batch size; a thread keeps the ones it used last."""

    def __init__(self, make: Callable[[int], Slot], limit: int = SLOTS_PER_THREAD) -> None:
        """`make` builds the slot of a batch size; a thread holds at most `limit` of them."""
        self._make = make
        self._limit = limit
        self._local = threading.local()

    def get(self, batch: int) -> Slot:
        """This thread's slot for a batch size."""
        slot = self.known(batch)
        if slot is not None:
            return slot
        slots = self._of_thread()
        slot = slots[batch] = self._make(batch)
        if len(slots) > self._limit:
            slots.popitem(last=False)
        return slot

    def known(self, batch: int) -> Slot | None:
        """This thread's slot for a batch size, if there is one already."""
        try:
            slots = self._local.slots
        except AttributeError:
            return None
        slot: Slot | None = slots.get(batch)
        if slot is not None:
            slots.move_to_end(batch)
        return slot

    def forget(self, batch: int) -> None:
        """Let this thread make its slot for a batch size anew."""
        self._of_thread().pop(batch, None)

    def held(self) -> tuple[int, ...]:
        """The batch sizes that this thread holds slots for, the one used last at the end."""
        return tuple(self._of_thread())

    def _of_thread(self) -> OrderedDict[int, Slot]:
        try:
            return self._local.slots
        except AttributeError:
            self._local.slots = OrderedDict()
            return self._local.slots


def read_model(file: Path, entry: ModelEntry) -> bytes:
    """The bytes of an ONNX file that can be run in bounded memory and time.

    Args:
        file: where it lies.
        entry: what the manifest says of it. One without a SHA-256 is of no manifest: the caller made the file itself,
            and nothing of it is checked.

    Raises:
        BundleError: the file cannot be read, has another sum, or is refused by `vae_edge.onnx_shapes`.
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


DTYPES = {"tensor(uint8)": np.dtype(np.uint8), "tensor(float)": np.dtype(np.float32)}
PLANNED = ("tensorrt", "tensorrt_rtx", "native")
_HOME = {
    "onnxruntime": ("vae_edge.runtime.onnxruntime_backend", "OnnxRuntimeBackend"),
    "openvino": ("vae_edge.runtime.openvino_backend", "OpenVinoBackend"),
}
BACKENDS = tuple(_HOME)

Interface = dict[str, tuple[str, tuple[int, ...]]]  # of each tensor by name: type, and shape behind the batch


@dataclass(frozen=True)
class TensorInfo:
    """An input or output in ONNX Runtime's words: a dynamic dimension is a name, the type is like "tensor(uint8)"."""

    name: str
    shape: list[int | str | None]
    type: str


class Backend(Protocol):
    """A loaded model. Safe to call from several threads."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, S, S, C]; the arrays, in the order of `outputs`, hold until this thread's next call."""
        ...

    def prepare(self, batch: int) -> None:
        """Make ready for this batch size whatever would otherwise be made by the first call."""
        ...

    def close(self) -> None:
        """Let the engine go. May be called again."""
        ...

    @staticmethod
    def inner_tensors(file: Path, tensors: Sequence[str], images: np.ndarray, threads: int) -> dict[str, np.ndarray]:
        """Tensors inside a model file by name, for images uint8 [N, S, S, C]; those that the backend can show."""
        ...


def installed_backends() -> tuple[str, ...]:
    """The names of the backends whose packages are installed.

    They are imported only where something else may have their name (`vae_edge.environment.shadow`).
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
    if name in PLANNED:
        raise BackendError(f"The backend {name!r} cannot predict yet; installed here: {there}.")
    if name not in BACKENDS:
        raise BackendError(f"There is no backend {name!r}; there are auto, {', '.join(BACKENDS)}; installed: {there}.")
    if sentence := shadow(name):
        raise BackendError(f"The backend {name!r} cannot be imported (installed: {there}): {sentence}.")
    if not is_installed(name):
        raise BackendError(
            f'The backend {name!r} is not installed (installed: {there}): run `pip install "vae-edge[{name}]"`.'
        )


def open_backend(name: str, file: Path, entry: ModelEntry, threads: int) -> Backend:
    """Load a model file, which the entry describes, in a backend.

    Raises:
        BackendError: if the backend is not installed or its package cannot be imported.
        BundleError: if the backend refuses the file.
    """
    opener = _backend_class(name)
    try:
        return opener(file, entry, threads)
    except ModelRefused as error:
        raise BundleError(
            f"{file} is not a model that {name} {backend_version(name)} can load here ({error.reason}): "
            "export it again, or see docs/limits.md."
        ) from error
    except VaeEdgeError:
        raise
    except Exception as error:  # the engines' own exceptions share no base class
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(
            f"{file} is not a model that {name} {backend_version(name)} can load ({first[0]}): "
            "export it again, or choose another backend."
        ) from error


def inner_tensors(
    name: str, file: Path, tensors: Sequence[str], images: np.ndarray, threads: int
) -> dict[str, np.ndarray]:
    """Tensors inside a model for images uint8 [N, S, S, C], by name; those that the backend can give.

    Raises:
        BackendError: if the backend is not installed, cannot be imported, or fails.
    """
    backend = _backend_class(name)
    try:
        return dict(backend.inner_tensors(file, tensors, images, threads))
    except Exception as error:  # the engines' own exceptions share no base class
        raise BackendError(f"{name} cannot show tensors inside {file} ({error}).") from error


def _backend_class(name: str) -> Any:
    check_installed(name)
    module, cls = _HOME[name]
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, OSError, AttributeError) as error:
        raise BackendError(
            f"The backend {name!r} is installed but cannot be imported ({error}): reinstall it with "
            f"`pip install --force-reinstall {name}`."
        ) from error


def check_interface(
    backend: Backend, file: Path, spec: InputSpec, outputs: Interface, further: Interface | None = None
) -> None:
    """Check that a model takes our `image` and gives `outputs` (type and shape behind the batch, by name).

    `further` outputs are there all together or not at all.

    Raises:
        BundleError: with what was expected and what the file has.
    """
    expected: Interface = {"image": ("tensor(uint8)", (spec.size, spec.size, spec.channels))}
    if further and any(info.name in further for info in backend.outputs):
        outputs = {**outputs, **further}
    for what, found, wanted in (("inputs", backend.inputs, expected), ("outputs", backend.outputs, outputs)):
        have = {info.name: (info.type, tuple(info.shape[1:])) for info in found}
        if have != wanted or any(isinstance(info.shape[0], int) for info in found):
            raise BundleError(
                f"{file} is not a model of ours: its {what} should be {_words(wanted)}, "
                f"but they are {_as_found(found)}; export it with `vae-edge export`."
            )


def allocate(info: Sequence[TensorInfo], batch: int) -> tuple[np.ndarray, ...]:
    """Arrays for the tensors of one batch."""
    return tuple(np.zeros((batch, *(int(n or 0) for n in t.shape[1:])), DTYPES[t.type]) for t in info)


def _words(wanted: Interface) -> str:
    return ", ".join(f"{name} {kind} [{', '.join(['N', *map(str, tail)])}]" for name, (kind, tail) in wanted.items())


def _as_found(found: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{t.name} {t.type} [{', '.join(map(str, t.shape))}]" for t in found) or "none"
