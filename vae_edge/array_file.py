"""Read untrusted NumPy archives (`.npz`) within bounds: nothing is unpickled, evaluated, or larger than it says.

NumPy's reader evaluates a header as Python and allocates what it promises. Here the header is matched by a regular
expression, what it promises must be what the archive holds, and only stored and deflated members are read.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from vae_edge.limits import MAX_MEMBERS, MAX_RANK

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096
_HEADER = re.compile(
    r"\s*\{\s*'descr'\s*:\s*'([<>=|]?[a-zA-Z][0-9]*)'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    r"\s*'shape'\s*:\s*\(([0-9,\sL]*)\)\s*,?\s*\}\s*"
)
_DEFLATE_LIMIT = 1032
"""Deflate compresses by at most this factor (zlib's technical details)."""
_KINDS = "biufU"
_SURROGATES = (0xD800, 0xDFFF)
_MAX_CODE_POINT = 0x10FFFF


def read_arrays(
    file: BinaryIO, max_bytes: int, wanted: Callable[[str], bool] | None = None
) -> dict[str, np.ndarray | None]:
    """The arrays of an archive by name, without the suffix `.npy`; None for those that are not `wanted`.

    Args:
        file: opened for reading, at its beginning.
        max_bytes: of all arrays read, unpacked.
        wanted: whether to read the array of this name. None: all.

    Raises:
        ValueError: what is wrong, as a clause about "it".
        OSError: the disk fails. Nothing else is raised.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_all(archive, max_bytes, wanted)
    except (ValueError, OSError):
        raise
    except Exception as error:  # damaged bytes make zipfile raise struct.error, KeyError, OverflowError and others
        raise ValueError(f"it is no readable archive ({str(error) or type(error).__name__})") from error


def _read_all(
    archive: zipfile.ZipFile, max_bytes: int, wanted: Callable[[str], bool] | None
) -> dict[str, np.ndarray | None]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"it holds {len(members)} members; at most {MAX_MEMBERS} may be")
    arrays: dict[str, np.ndarray | None] = {}
    left = max_bytes
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in arrays:
            raise ValueError(f"it holds two arrays named {name[:80]!a}")
        arrays[name] = None
        if wanted is None or wanted(name):
            arrays[name] = _read_member(archive, member, left)
            left -= member.file_size
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, left: int) -> np.ndarray:
    where = f"its array {member.filename[:80]!a}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{where} is compressed by method {member.compress_type}; only stored and deflated are read")
    if member.flag_bits & 1:
        raise ValueError(f"{where} is encrypted")
    max_size = max(member.compress_size, 1) * _DEFLATE_LIMIT
    if member.file_size > left or member.file_size > max_size:
        raise ValueError(f"{where} promises {member.file_size} bytes, which is more than is read, or than it can hold")
    with archive.open(member) as file:
        dtype, shape, fortran, start = _read_header(file, where)
        count = math.prod(shape)
        if start + count * dtype.itemsize != member.file_size:
            raise ValueError(
                f"{where} promises {list(shape)} of {dtype}, but holds {member.file_size - start} bytes; it is damaged"
            )
        values = np.empty(count, dtype)
        _fill(file, values.view(np.uint8).data if count and dtype.itemsize else memoryview(b""), where)
        file.read(1)  # at its end zipfile verifies the checksum
    if dtype.kind == "U":
        _check_text(values, where)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)


def _read_header(file: Any, where: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """dtype, shape, whether the order is Fortran's, and the offset of the values (numpy.lib.format, 1.0 to 3.0)."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError(f"{where} is no NumPy array of format 1 to 3")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    text = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    found = _HEADER.fullmatch(text.decode("latin-1")) if len(text) == length else None
    if found is None:
        if b"'O'" in text or b"|O" in text:
            raise ValueError(
                f"{where} holds pickled Python objects, which are never read; save plain numbers or strings"
            )
        raise ValueError(f"{where} is not a plain array of numbers or strings, or its header is damaged")
    kind, fortran, sides = found.groups()
    dtype = _dtype(kind, where)
    words = [side.strip().removesuffix("L") for side in sides.split(",")]
    if words and not words[-1]:
        words.pop()
    if len(words) > MAX_RANK or not all(word.isdigit() and len(word) < 16 for word in words):
        raise ValueError(f"{where} has a shape ({sides[:80]}) that no array here has")
    return dtype, tuple(int(word) for word in words), fortran == "True", 8 + width + length


def _dtype(kind: str, where: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is of the type {kind!r}, which NumPy does not know") from error
    if dtype.kind == "O":
        raise ValueError(f"{where} holds pickled Python objects, which are never read; save plain numbers or strings")
    if dtype.kind not in _KINDS:
        raise ValueError(f"{where} is of the type {dtype}; expected numbers or strings")
    return dtype


def _fill(file: Any, view: memoryview, where: str) -> None:
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled : filled + (1 << 20)])
        if not count:
            raise ValueError(f"{where} is cut short")
        filled += count


def _check_text(values: np.ndarray, where: str) -> None:
    """Refuse invalid Unicode, which Python would accept unchecked in strings."""
    if not values.size or not values.dtype.itemsize:
        return
    points = values.view(np.dtype(np.uint32).newbyteorder(values.dtype.byteorder))
    if (points > _MAX_CODE_POINT).any() or ((points >= _SURROGATES[0]) & (points <= _SURROGATES[1])).any():
        raise ValueError(f"{where} holds text that is no Unicode")
