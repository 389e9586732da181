"""Network files on an NVIDIA GPU through the native library: a driver and one shared library of C, nothing else.

`vae-edge build BUNDLE --kind native --target orin` adds such a file to a bundle, on any machine. The library is in the
wheels that `make wheels` writes, and `make native` builds it. Not verified on hardware.

A handle of the library serves one thread at a time, and holds the network's weights and the memory of 64 images on the
GPU. The threads share a few handles, so that memory goes by how many calls run at once, not by how many threads there
are: a call takes a free handle, opens another one where all are taken, and from `MAX_HANDLES` on waits for one. A lock
around one handle would take the least memory; but an image keeps one multiprocessor busy, and calls in other streams
fill the rest.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.engine import cuda, gpus
from vae_edge.errors import BackendError, BundleError, DataError
from vae_edge.runtime.backends import LoadOptions, OpenedModel, TensorInfo, read_file
from vae_edge.runtime.buffers import MAX_BUFFERS_PER_THREAD
from vae_edge.runtime.device_arrays import row_pitch, view_on_device
from vae_edge.runtime.native_library import NetworkInfo, load_library
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS
from vae_edge.text import printable

log = logging.getLogger(__name__)

OUT_OF_MEMORY, STATUS_FILE = 8, 9  # ve_status: no memory; a file that cannot be used
MAX_HANDLES = 4
MAX_DEVICES = 1 << 16
LEGACY_STREAM = 1  # of DLPack and of the driver: the default stream


# ---- The backend ----------------------------------------------------------------------------------------------------


class NativeBackend:
    """A network file of a bundle, opened on a GPU.

    Attributes:
        classes, threshold: as the network file has them.
        inputs, outputs, version, device: see `vae_edge.runtime.backends.Backend`.
    """

    def __init__(self, file: Path, entry: ModelEntry, options: LoadOptions) -> None:
        """Open `file` on the GPU that the options name. The library reads a copy of the verified bytes, not the path.

        Raises:
            BackendError: there is no library, driver or GPU, or the file has no machine code for the GPU, or the GPU no
                memory.
            BundleError: as `read_file`; or the file is damaged, or larger than `vae_edge.h` allows, or of another
                version.
        """
        self._library = load_library()
        self._file, self._device = file, _device_number(options.device)
        copy = _Copy(read_file(file, entry))
        self._handles = _Handles(self._library, copy, self._device, printable(str(file)))
        self._release = weakref.finalize(self, _Handles.close, self._handles)
        handle = self._handles.take()
        try:
            info = NetworkInfo()
            _check(self._library, self._library.ve_network_get_info(handle, ctypes.byref(info)))
            height = width = ctypes.c_int(info.side)
            if not info.side:
                height, width = ctypes.c_int(), ctypes.c_int()
                found = self._library.ve_network_get_size(handle, ctypes.byref(height), ctypes.byref(width))
                _check(self._library, found)
            self.classes = tuple(info.class_names[k].decode() for k in range(info.classes))  # verified to be UTF-8
        finally:
            self._handles.give_back(handle)

        self.version = str(self._library.ve_version().decode())
        self.threshold = float(info.threshold)
        self._image = (height.value, width.value, info.channels)
        self._has_angle = bool(info.has_angle)
        self.inputs = (TensorInfo("image", ["batch", *self._image], "tensor(uint8)"),)
        names = (*CLASSIFIER_OUTPUTS, *(UNCERTAINTY_OUTPUTS if self._has_angle else ()))
        self.outputs = tuple(
            TensorInfo(name, ["batch", *([info.classes] if name == "probabilities" else [])], "tensor(float)")
            for name in names
        )
        gpu = gpus.probe().device(self._device)
        self.device = "" if gpu is None else f"{self._device}: {gpu.name} ({gpu.target})"
        self._local = threading.local()

    def check_bundle(self, bundle: Bundle, entry: ModelEntry) -> None:
        """Check that the file's class names and threshold are those of the bundle that it is in.

        Raises:
            BundleError: they are not.
        """
        name = printable(str(self._file))
        if self.classes != bundle.classes:
            raise BundleError(
                f"{name} is a network file of another bundle: its classes are {_listed(self.classes)}, and those of "
                f"the bundle are {_listed(bundle.classes)}; build it again, with `vae-edge build --kind native`."
            )
        threshold = float(np.float32(bundle.threshold_of(entry)))
        if self.threshold != threshold:
            raise BundleError(
                f"{name} has the threshold {self.threshold:.9g}, and the bundle says {threshold:.9g} for it: build it "
                "again, with `vae-edge build --kind native`."
            )

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, H, W, C]. The arrays, in the order of `outputs`, are valid until this thread's next call."""
        if image.dtype != np.uint8 or image.shape[1:] != self._image:  # the library would read beyond its end
            raise ValueError(f"images should be uint8 [N, {self._image}], and are {image.dtype} {list(image.shape)}")
        contiguous: NDArray[Any] = image if image.flags.c_contiguous else np.ascontiguousarray(image)
        return self._classify(contiguous.ctypes.data, len(contiguous))

    def infer_on_device(self, images: Any) -> tuple[np.ndarray, ...]:
        """As `infer`, of images that are in the GPU's memory already; nothing of them is copied.

        Work that writes them is waited for.

        Raises:
            DataError: they have another shape or type, there are gaps between their rows, or they are on another GPU.
            BackendError: the work that writes them fails.
        """
        array = view_on_device(images, LEGACY_STREAM)
        pitch = row_pitch(array, self._image)
        if pitch != self._image[1] * self._image[2]:
            raise DataError(
                f"The images on the GPU have rows of {pitch} bytes, of which {self._image[1] * self._image[2]} are "
                "pixels, and a network file reads them without gaps: make them contiguous first."
            )
        if array.device not in (None, self._device):
            raise DataError(
                f"The images are on GPU number {array.device}, and the network is on number {self._device}: copy them "
                f"there, or load the bundle with device={array.device}."
            )
        # The library's stream waits for no other: what still writes the images must be through.
        context = cuda.open_context(self._device)
        with context.current():
            context.call("cuStreamSynchronize", LEGACY_STREAM if array.stream is None else array.stream)
        outputs = self._classify(array.pointer, array.shape[0])
        del array  # the producer may have its memory back
        return outputs

    def warm_up(self, batch: int) -> None:
        """Make this thread's output arrays. Opening has run every graph, and the machine code for large batches."""
        self._answers(batch)

    def close(self) -> None:
        """Release the network; a call that runs keeps its handle until it ends. May be called again."""
        self._release()

    @staticmethod
    def inner_tensors(model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        """Refused: the whole network is one launch, whose feature maps stay on the GPU.

        Raises:
            BackendError: always.
        """
        raise BackendError("a network file is one launch, and shows no tensors inside it")

    def _classify(self, images: int, count: int) -> tuple[np.ndarray, ...]:
        answers = self._answers(count)
        handle = self._handles.take()
        try:
            status = self._library.ve_classify_ex(handle, images, count, *answers.pointers)
            if status != 0:
                _check(self._library, status)
        finally:
            self._handles.give_back(handle)
        return answers.outputs

    def _answers(self, count: int) -> _Answers:
        """This thread's arrays for a batch size; it keeps those that it used last."""
        local = self._local
        try:
            if local.last.count == count:
                return cast("_Answers", local.last)
        except AttributeError:
            local.kept = OrderedDict()
        kept: OrderedDict[int, _Answers] = local.kept
        if count not in kept:
            kept[count] = _Answers(count, len(self.classes), self._has_angle)
            if len(kept) > MAX_BUFFERS_PER_THREAD:
                kept.popitem(last=False)
        kept.move_to_end(count)
        local.last = kept[count]
        return kept[count]


def _check(library: ctypes.CDLL, status: int, copy: str = "", file: str = "") -> None:
    """Raise what a status says; the sentence names the file, not its copy that the library saw."""
    if status == 0:
        return
    sentence = library.ve_last_error().decode(errors="backslashreplace")
    if copy:
        sentence = sentence.replace(copy, file)
    if status == OUT_OF_MEMORY:
        raise _OutOfMemory(sentence)
    raise (BundleError if status == STATUS_FILE else BackendError)(sentence)


class _OutOfMemory(BackendError):
    """The GPU, or the host, has no memory left."""


class _Answers:
    """The arrays for the answers to a batch, and their addresses as `ve_classify_ex` takes them."""

    __slots__ = ("count", "outputs", "pointers")

    def __init__(self, count: int, classes: int, has_angle: bool) -> None:
        self.count = count
        probabilities = np.zeros((count, classes), np.float32)
        angles, scores = np.zeros(count, np.float32), np.zeros(count, np.float32)
        uncertainty = np.zeros((count, len(UNCERTAINTY_OUTPUTS)), np.float32)
        self.outputs = (probabilities, angles, scores, *(uncertainty.T if has_angle else ()))
        self.pointers = tuple(array.ctypes.data for array in (probabilities, angles, scores, uncertainty))


class _Handles:
    """Open handles of one network, each lent to one call at a time.

    The usual loan takes no lock: appending to a list and popping from it are atomic. A handle is in `_free` or with one
    thread, and whoever takes it out after `close` closes it.
    """

    def __init__(self, library: ctypes.CDLL, copy: _Copy, device: int, name: str) -> None:
        """Handles of the file in `copy`, which messages call `name`, on a GPU; none is opened yet."""
        self._library, self._copy, self._device, self._name = library, copy, device, name
        self._changed = threading.Condition()
        self._free: list[ctypes.c_void_p] = []
        self._count = 0  # of handles that are open, or being opened
        self._waiting = 0  # threads that need one
        self._limit = MAX_HANDLES
        self._closed = False

    def take(self) -> ctypes.c_void_p:
        """A free handle; one more is opened where all are taken, up to the limit.

        Raises:
            BackendError, BundleError: the first handle cannot be opened.
            RuntimeError: the network was closed.
        """
        try:
            handle = self._free.pop()
        except IndexError:
            found = self._wait()
            handle = self._open_another() if found is None else found
        if self._closed:
            self._library.ve_close(handle)
            raise RuntimeError("it was closed")
        return handle

    def give_back(self, handle: ctypes.c_void_p) -> None:
        """End a loan."""
        self._free.append(handle)
        if self._closed:
            self._close_free()
        elif self._waiting:
            with self._changed:
                self._changed.notify()

    def close(self) -> None:
        """Close the free handles; those that are lent are closed when they are given back."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        self._close_free()
        self._copy.close()

    def _close_free(self) -> None:
        while self._free:
            try:
                handle = self._free.pop()
            except IndexError:  # another thread was faster
                return
            self._library.ve_close(handle)

    def _wait(self) -> ctypes.c_void_p | None:
        """A handle once one is free; None as soon as one more may be opened."""
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._closed:
                        raise RuntimeError("it was closed")
                    if self._free:
                        try:
                            return self._free.pop()
                        except IndexError:  # another thread was faster
                            continue
                    if self._count < self._limit:
                        self._count += 1
                        return None
                    self._changed.wait()
            finally:
                self._waiting -= 1

    def _open_another(self) -> ctypes.c_void_p:
        try:
            return self._open()
        except BaseException as error:
            with self._changed:
                self._count -= 1
                alone = self._count == 0
                if isinstance(error, _OutOfMemory) and not alone:
                    self._limit = self._count
                self._changed.notify()
            if not isinstance(error, _OutOfMemory):
                raise
            if alone:
                raise BackendError(str(error)) from error
            log.info("the GPU has no memory for one more handle: calls share %d (%s)", self._limit, error)
        return self.take()

    def _open(self) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        with self._copy.path() as path:
            status = self._library.ve_open(os.fsencode(path), self._device, ctypes.byref(handle))
            _check(self._library, status, path, self._name)
        return handle


class _Copy:
    """The verified bytes of a file, at a path that nobody else can write to.

    In memory (memfd), sealed; or, where there is no /proc, in a folder of this user's own while a handle is opened.
    """

    def __init__(self, content: bytes) -> None:
        """Keep the bytes."""
        self._lock = threading.RLock()
        self._descriptor = _sealed(content)
        self._content = content if self._descriptor is None else b""
        self._closed = False

    @contextmanager
    def path(self) -> Iterator[str]:
        """A path at which the bytes are, until the end of the block; `close` waits for that."""
        with self._lock:
            if self._closed:
                raise RuntimeError("it was closed")
            if self._descriptor is not None:
                yield _path_of(self._descriptor)
                return
            with self._written() as path:
                yield path

    @contextmanager
    def _written(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="vae-edge-") as folder:  # of mode 0700
            file = Path(folder) / "network.ve"
            try:
                file.write_bytes(self._content)
            except OSError as error:
                raise BackendError(
                    f"The network file cannot be copied to {folder} ({error.strerror}): free some space there, or name "
                    "another folder in TMPDIR."
                ) from error
            yield str(file)

    def close(self) -> None:
        """Give the memory back. May be called again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._closed, self._descriptor, self._content = True, None, b""


def _sealed(content: bytes) -> int | None:
    """The descriptor of a sealed memory file with these bytes; None where the system has none, or no /proc."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("vae-edge-network", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            raise BackendError(f"There is no memory for a copy of the network file ({error.strerror}).") from error
        return None
    try:
        if Path(_path_of(descriptor)).exists():
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return descriptor
    except OSError as error:
        os.close(descriptor)
        raise BackendError(f"There is no memory for a copy of the network file ({error.strerror}).") from error
    os.close(descriptor)
    return None


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _device_number(device: int) -> int:
    """The GPU's number. One that C's int does not hold would become another GPU's."""
    if not 0 <= device < MAX_DEVICES:
        raise BackendError(f"The number of a GPU is from 0 to {MAX_DEVICES - 1}, but {device} came.")
    return device


def _listed(classes: Sequence[str]) -> str:
    shown = ", ".join(printable(name)[:40] for name in classes[:10])
    return shown + (f", … ({len(classes)} in all)" if len(classes) > 10 else "")
