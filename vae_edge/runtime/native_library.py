"""The native library: where it is, and the functions of `vae_edge.h` that the runtime calls, declared for ctypes."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

from vae_edge.errors import BackendError

LIBRARY = "libvae_edge_kernels.so"
VARIABLE = "VAE_EDGE_NATIVE"
PACKAGED = Path(__file__).parents[1] / "_native" / LIBRARY
"""Where a wheel with the library has it."""
ABI_VERSION = 1
"""VE_ABI_VERSION of vae_edge.h, whose functions are declared here."""


class NetworkInfo(ctypes.Structure):
    """ve_network_info of vae_edge.h. `side` is 0 where images are not square."""

    _fields_ = (
        ("side", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("class_names", ctypes.POINTER(ctypes.c_char_p)),
        ("threshold", ctypes.c_float),
        ("has_angle", ctypes.c_int),
    )


def find_library() -> Path | str:
    """Where the native library is: what $VAE_EDGE_NATIVE names, the one in the wheel, or where the loader finds it."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    return PACKAGED if PACKAGED.is_file() else LIBRARY


def has_library() -> bool:
    """Whether there is a native library; one that $VAE_EDGE_NATIVE names counts even if it cannot be loaded."""
    found = find_library()
    return found != LIBRARY or _loads(LIBRARY)


@lru_cache(maxsize=1)
def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def load_library() -> ctypes.CDLL:
    """The native library, its functions declared.

    Raises:
        BackendError: it is not there, or has another interface.
    """
    found = find_library()
    try:
        library = ctypes.CDLL(str(found))
    except OSError as error:
        raise BackendError(
            f"The native library cannot be loaded ({error}): install the wheel for this machine, which has it, or "
            f"build it with `make native` and name it in ${VARIABLE}."
        ) from error
    handle, status = ctypes.c_void_p, ctypes.c_int
    try:
        if (version := int(library.ve_abi_version())) != ABI_VERSION:
            raise AttributeError(f"its interface is version {version}, where {ABI_VERSION} is needed")
        library.ve_version.restype = library.ve_last_error.restype = ctypes.c_char_p
        library.ve_open.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(handle))
        library.ve_network_get_info.argtypes = (handle, ctypes.POINTER(NetworkInfo))
        library.ve_classify_ex.argtypes = (handle, handle, ctypes.c_size_t, *4 * (handle,))
        library.ve_close.argtypes = (handle,)
        if hasattr(
            library, "ve_network_get_size"
        ):  # not in libraries of before, which refuse images that are no square
            library.ve_network_get_size.argtypes = (handle, *2 * (ctypes.POINTER(ctypes.c_int),))
            library.ve_network_get_size.restype = status
        for name in ("ve_open", "ve_network_get_info", "ve_classify_ex", "ve_close"):
            getattr(library, name).restype = status
    except AttributeError as error:
        raise BackendError(f"{found} is not a native library of this version ({error}): build it again.") from error
    return library


def library_version() -> str:
    """The version of the native library."""
    return str(load_library().ve_version().decode())
