"""Network files through the native library: a driver and one shared library, no TensorRT, PyTorch, Triton or compiler.

`vae_edge.ops.network(model).save(path)` writes such a file; `make native` builds the library. Not verified on hardware.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import BackendError, BundleError, DataError
from vae_edge.preprocess import InputSpec, PreprocessInfo, to_batch
from vae_edge.runtime.predictions import Predictions

LIBRARY = "libvae_edge_kernels.so"
VARIABLE = "VAE_EDGE_NATIVE"
ABI_VERSION = 1
"""VE_ABI_VERSION of vae_edge.h, whose functions are declared here."""
STATUS_FILE = 9  # VE_ERROR_FILE: a file that cannot be used
UNCERTAINTY_VALUES = 3  # angle confidence, second angle, second angle probability
MAX_DEVICES = 1 << 16


class _Info(ctypes.Structure):
    """ve_network_info of vae_edge.h."""

    _fields_ = (
        ("side", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("class_names", ctypes.POINTER(ctypes.c_char_p)),
        ("threshold", ctypes.c_float),
        ("has_angle", ctypes.c_int),
    )


def find_library(path: str | os.PathLike[str] | None = None) -> Path | str:
    """Where the native library is: as given, as $VAE_EDGE_NATIVE says, or wherever the loader finds it."""
    return Path(path) if path is not None else os.environ.get(VARIABLE) or LIBRARY


def load_library(path: str | os.PathLike[str] | None = None) -> ctypes.CDLL:
    """The native library, its functions declared.

    Raises:
        BackendError: it is not there, or has another interface.
    """
    found = find_library(path)
    try:
        library = ctypes.CDLL(str(found))
    except OSError as error:
        raise BackendError(
            f"the native library cannot be loaded ({error}); build it with `make native`, and name it in ${VARIABLE}"
        ) from error
    handle, status = ctypes.c_void_p, ctypes.c_int
    try:
        if (version := int(library.ve_abi_version())) != ABI_VERSION:
            raise AttributeError(f"its interface is version {version}, where {ABI_VERSION} is needed")
        library.ve_last_error.restype = ctypes.c_char_p
        library.ve_open.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(handle))
        library.ve_network_get_info.argtypes = (handle, ctypes.POINTER(_Info))
        library.ve_classify_ex.argtypes = (handle, handle, ctypes.c_size_t, *4 * (handle,))
        library.ve_close.argtypes = (handle,)
        for name in ("ve_open", "ve_network_get_info", "ve_classify_ex", "ve_close"):
            getattr(library, name).restype = status
    except AttributeError as error:
        raise BackendError(f"{found} is not a native library of this version ({error}); build it again") from error
    return library


class NativeNetwork:
    """A network file opened on a GPU. One thread at a time may use it; open one for each thread.

    Args:
        path: the network file.
        device: number of the GPU.
        library: the native library; see `find_library`.

    Attributes:
        classes: names of the classes.
        size, channels: of the images.
        threshold: a score up to it is accepted.
        has_angle: whether the network estimates the orientation.

    Raises:
        BackendError: there is no library, driver or GPU, or the file has no machine code for the GPU.
        BundleError: the file is not there, no regular file, damaged, larger than `vae_edge.h` allows, or of another
            version.
    """

    def __init__(
        self, path: str | os.PathLike[str], device: int = 0, library: str | os.PathLike[str] | None = None
    ) -> None:
        self._handle = ctypes.c_void_p()
        self._library = load_library(library)
        self._check(self._library.ve_open(_path_bytes(path), _device_number(device), ctypes.byref(self._handle)))
        self._finalizer = weakref.finalize(self, self._library.ve_close, self._handle)

        info = _Info()
        self._check(self._library.ve_network_get_info(self._handle, ctypes.byref(info)))
        self.size = info.side
        self.channels = info.channels
        self.threshold = float(info.threshold)
        self.has_angle = bool(info.has_angle)
        names = (info.class_names[index] for index in range(info.classes))
        self.classes = tuple(name.decode() for name in names)  # the library has verified that it is UTF-8

    def classify(self, images: NDArray[np.uint8]) -> Predictions:
        """Classify uint8 [N, S, S, C].

        Raises:
            DataError: images of another shape or type, or the network is closed.
            BackendError: the GPU fails.
        """
        shape = (self.size, self.size, self.channels)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise DataError(f"images must be uint8 [N, {expected}]; got {images.dtype} {list(images.shape)}")
        if not self._finalizer.alive:
            raise DataError("the network is closed; open it again")

        n = len(images)
        image: NDArray[Any] = np.ascontiguousarray(images)
        probabilities: NDArray[Any] = np.empty((n, len(self.classes)), np.float32)
        angles: NDArray[Any] = np.empty(n, np.float32)
        scores: NDArray[Any] = np.empty(n, np.float32)
        uncertainty: NDArray[Any] = np.empty((n, UNCERTAINTY_VALUES), np.float32)
        pointers = [array.ctypes.data for array in (probabilities, angles, scores, uncertainty)]
        self._check(self._library.ve_classify_ex(self._handle, image.ctypes.data, n, *pointers))
        return Predictions(
            probabilities,
            angles,
            scores,
            *(uncertainty.T if self.has_angle else ()),
            classes=self.classes,
            threshold=self.threshold,
            preprocess_info=partial(_array_info, InputSpec(self.size, self.channels)),
        )

    def close(self) -> None:
        """Free everything on the GPU. May be called again."""
        self._finalizer()

    def __enter__(self) -> NativeNetwork:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status != 0:
            sentence = self._library.ve_last_error().decode(errors="backslashreplace")
            raise (BundleError if status == STATUS_FILE else BackendError)(sentence)


def _array_info(spec: InputSpec, count: int) -> list[PreprocessInfo]:
    """What preprocessing did to each image of an array: nothing."""
    return to_batch(np.zeros((1, spec.size, spec.size, spec.channels), np.uint8), spec)[1] * count


def _path_bytes(path: str | os.PathLike[str]) -> bytes:
    """The path as C takes it. A zero byte would end it there, and another file would be opened."""
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise BundleError(f"{os.fspath(path)!a} is no path of this system: {error}") from error
    if b"\0" in name:
        raise BundleError(f"{os.fspath(path)!a} is no path: it holds a zero byte")
    return name


def _device_number(device: int) -> int:
    """The GPU's number. One that C's int does not hold would become another GPU's."""
    if not 0 <= device < MAX_DEVICES:
        raise BackendError(f"the number of a GPU is from 0 to {MAX_DEVICES - 1}; got {device}")
    return device


def has_library() -> bool:
    """Whether there is a native library to load."""
    return bool(os.environ.get(VARIABLE))


def library_version() -> str:
    """The version of the native library."""
    library = load_library()
    library.ve_version.restype = ctypes.c_char_p
    return str(library.ve_version().decode())
