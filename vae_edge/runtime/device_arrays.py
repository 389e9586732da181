"""Arrays that are on a GPU already, of any library: DLPack and the CUDA array interface, without importing one.

https://dmlc.github.io/dlpack/latest/ and https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass
from math import prod
from typing import Any

from vae_edge.errors import DataError

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType
_UINT = 1  # DLDataTypeCode
_MAX_VERSION = (1, 0)  # of DLPack; later minor versions have the same structures
_LEGACY_STREAM = 1


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned of dlpack.h, since version 1.0."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@dataclass(frozen=True)
class DeviceArray:
    """An array of bytes in a GPU's memory.

    Attributes:
        pointer: device address of the first byte.
        shape: of the array.
        strides: in bytes.
        device: number of the GPU; None if the array does not say.
        stream: handle of the stream on which it is written; None if it is complete, or the producer waits itself.
        owner: keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: int | None
    stream: int | None
    owner: object


def is_on_device(images: Any) -> bool:
    """Whether an object is an array in a GPU's memory."""
    if isinstance(images, DeviceArray):
        return True
    if hasattr(images, "__dlpack_device__"):
        return int(images.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
    return hasattr(images, "__cuda_array_interface__")


def view_on_device(images: Any, stream: int) -> DeviceArray:
    """An array on a GPU as it lies in memory.

    Args:
        images: an object of which `is_on_device` is true.
        stream: handle of the stream that will read it; a producer that speaks DLPack makes it wait for its own work.

    Raises:
        DataError: it holds other values than uint8.
    """
    if isinstance(images, DeviceArray):
        return images
    if hasattr(images, "__dlpack_device__") and hasattr(images, "__dlpack__"):
        return _from_dlpack(images, stream)
    return _from_interface(images)


def hand_over(images: Any) -> DeviceArray:
    """An array on a GPU for another thread, where its library may have another current stream.

    The producer's work is put before the default stream's, for which the reader waits.

    Raises:
        DataError: as `view_on_device`.
    """
    view = view_on_device(images, _LEGACY_STREAM)
    return dataclasses.replace(view, stream=_LEGACY_STREAM) if view.stream is None else view


def length(images: Any) -> int:
    """How many images an array on a GPU has; it need not have a length. 1 if it does not say."""
    shape = getattr(images, "shape", None)
    if shape is None:
        shape = getattr(images, "__cuda_array_interface__", {}).get("shape")
    return int(shape[0]) if shape else 1


def _from_dlpack(images: Any, stream: int) -> DeviceArray:
    try:
        capsule = images.__dlpack__(stream=stream, max_version=_MAX_VERSION)
    except TypeError:  # a producer of before DLPack 1.0 does not know the argument
        capsule = images.__dlpack__(stream=stream)
    tensor = _tensor_of(capsule)
    dtype = tensor.dtype
    if (dtype.code, dtype.bits, dtype.lanes) != (_UINT, 8, 1):
        raise DataError(
            f"The images on the GPU should be uint8, but their values have {dtype.bits} bits of another kind."
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else contiguous_strides(shape)
    # The capsule is not renamed: its destructor gives the memory back once nobody holds it.
    start = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(start, shape, strides, tensor.device.index, None, capsule)


def _tensor_of(capsule: Any) -> _Tensor:
    """What a capsule describes, of DLPack 1 or of a version before it."""
    is_valid, pointer = ctypes.pythonapi.PyCapsule_IsValid, ctypes.pythonapi.PyCapsule_GetPointer
    is_valid.restype, is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    if not is_valid(capsule, b"dltensor_versioned"):
        return ctypes.cast(pointer(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents
    versioned = ctypes.cast(pointer(capsule, b"dltensor_versioned"), ctypes.POINTER(_Versioned)).contents
    if versioned.major != _MAX_VERSION[0]:
        raise DataError(
            f"The images on the GPU come by DLPack {versioned.major}.{versioned.minor}, but version "
            f"{_MAX_VERSION[0]} is understood: update VAE Edge, or the library that made them."
        )
    tensor: _Tensor = versioned.tensor
    return tensor


def _from_interface(images: Any) -> DeviceArray:
    described = images.__cuda_array_interface__
    if described.get("mask") is not None:
        raise DataError("The images on the GPU are a masked array: fill what is masked first.")
    if described["typestr"] not in ("|u1", "u1", "<u1"):
        raise DataError(f"The images on the GPU should be uint8, but their type is {described['typestr']}.")
    shape = tuple(int(n) for n in described["shape"])
    strides = described.get("strides")
    steps = contiguous_strides(shape) if strides is None else tuple(int(n) for n in strides)
    stream = described.get("stream", _LEGACY_STREAM if described.get("version", 0) < 3 else None)
    return DeviceArray(int(described["data"][0] or 0), shape, steps, None, stream, images)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous array of bytes."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def row_pitch(array: DeviceArray, image: tuple[int, int, int]) -> int:
    """How many bytes lie between the starts of two rows of pixels, [N, S, S, C].

    Raises:
        DataError: the array has another shape, or its rows do not lie one after the other.
    """
    expected = ", ".join(map(str, image))
    if len(array.shape) != 4 or array.shape[1:] != image or not array.shape[0]:
        raise DataError(f"The images on the GPU should be uint8 [N, {expected}], but they are {list(array.shape)}.")
    _, rows, columns, channels = array.shape
    n_stride, pitch, *inner = array.strides
    dense = inner == [channels, 1] or (channels == 1 and inner[0] == 1)
    if not dense or pitch < columns * channels or (array.shape[0] > 1 and n_stride != rows * pitch):
        raise DataError(
            f"The images on the GPU have the strides {list(array.strides)} in bytes, but the pixels of a row, and the "
            "rows of a batch, should follow one another (channels last): make them contiguous first."
        )
    return pitch
