"""Atomic file writes (temporary file, fsync, rename), and bounded reads of untrusted files: bytes, JSON, `.npz`.

An untrusted path may lead to a pipe that never ends, to a terabyte, or to malformed JSON. `open_regular`, `read_bytes`,
`read_json` and `read_arrays` refuse these; the message of the caller says what the file was meant to be.

NumPy's reader evaluates a header as Python and allocates what it promises. Here the header is matched by a regular
expression, what it promises must be what the archive holds, and only stored and deflated members are read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from vae_edge.errors import ConfigError
from vae_edge.spec import MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_MEMBERS, MAX_RANK
from vae_edge.text import SUBSTITUTE, json_text

_MAX_INTEGER = 2**63 - 1
_MAX_DIGITS = 20
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it and rename it to `path`.

    If the block raises, or the disk is full, the temporary file is removed and `path` stays as it was. Temporary files
    that a killed writer of the same `path` left behind are removed as well.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; it names `path`.
    """
    target = Path(path)
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(target)
        temporary, lock = locked_temporary(target)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


@contextlib.contextmanager
def naming(target: str | os.PathLike[str]) -> Iterator[None]:
    """Make an OSError of a full or failing disk, or about a temporary file, name `target`, which the user knows."""
    target = Path(target)
    prefix = str(target.with_name(f".{target.name}."))
    try:
        yield
    except OSError as error:
        names = (error.filename, error.filename2)  # of a copy, the second is the one written
        about_temporary = any(isinstance(name, (str, Path)) and str(name).startswith(prefix) for name in names)
        if about_temporary or (error.filename is None and error.errno in _DISK_ERRORS):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def remove_left_over(target: Path) -> None:
    """Remove temporary files of killed writers of `target`: those that no process has locked."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.\w{{8}}\.part")
    with os.scandir(target.parent) as entries:
        left = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for path in left:
        remove_if_left(Path(path))


def remove_if_left(path: Path) -> None:
    """Remove a temporary file, unless its writer holds the lock or the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone, a link, or another user's
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except OSError:  # locked by its writer, or no locks
        return
    finally:
        os.close(descriptor)


def locked_temporary(target: Path) -> tuple[Path, int]:
    """A new file beside `target`, and a descriptor that holds its lock while the writer is alive.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        with contextlib.suppress(OSError):  # a file system without locks: left-overs stay
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # no other process removed it before it was locked
            return Path(name), descriptor
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8. A byte of a name that is not UTF-8 is written as `\\xe9`."""
    write_bytes(path, content.encode("utf-8", SUBSTITUTE))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON. NaN and infinity are refused (ValueError)."""
    write_text(path, json_text(value) + "\n")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, or a link to one. Never blocks on a pipe.

    Raises:
        OSError: it does not exist or cannot be opened.
        ValueError: it is a folder, pipe, device or socket.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it is no regular file, or larger.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            size = max(os.fstat(file.fileno()).st_size, len(content))
            raise ValueError(f"it has {size} bytes, where {max_bytes} are the most that such a file may have")
    return content


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file; see `parse_json`.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it is no regular file, larger, or not JSON as `parse_json` takes it.
    """
    return parse_json(read_bytes(path, max_bytes))


def parse_json(content: bytes | str) -> Any:
    """Parse JSON strictly (bytes are UTF-8): every value can be printed, compared and written again.

    Raises:
        ValueError: what is not JSON or not UTF-8, a key that stands twice, NaN, an infinite number, an integer
            beyond 64 bits, a lone surrogate, or nesting deeper than 32.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH}") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        for one in level:
            _check_plain(one)
        level = [inner for one in level if isinstance(one, (dict, list)) for inner in _inside(one)]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH}")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else value


def _check_plain(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"the text {ascii(value)[:80]} holds a lone surrogate") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number in it is beyond what a 64-bit float holds")
    elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise ValueError("an integer in it is beyond 64 bits")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:  # parsing takes quadratic time
        raise ValueError("an integer in it is beyond 64 bits")
    return int(digits)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, inner in pairs:
        if key in value:
            raise ValueError(f"the key {key!a} stands twice")
        value[key] = inner
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that it may hold")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Refuse a folder that can neither be made nor written to.

    Raises:
        ConfigError: with the file or folder that is in the way.
    """
    folder = Path(path)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: give a folder")
    _check_writable(folder, folder)
    return folder


def check_file(path: str | os.PathLike[str]) -> Path:
    """Refuse a file that cannot be written; one that is there may be replaced.

    Raises:
        ConfigError: as `check_folder`.
    """
    file = Path(path)
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: give the name of a file")
    _check_writable(file, file.absolute().parent)
    return file


def _check_writable(path: Path, folder: Path) -> None:
    """Refuse where the nearest existing parent is no folder, or cannot be written to."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigError(f"{path} cannot be written, since {nearest} is a file: give another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written, since {nearest} does not allow it: give another path")


_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096
_HEADER = re.compile(
    r"\s*\{\s*'descr'\s*:\s*'([<>=|]?[a-zA-Z][0-9]*)'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    r"\s*'shape'\s*:\s*\(([0-9,\sL]*)\)\s*,?\s*\}\s*"
)
_DEFLATE_LIMIT = 1032
"""Deflate compresses by at most this factor (zlib's technical details)."""
_ARRAY_KINDS = "biufU"
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
    if dtype.kind not in _ARRAY_KINDS:
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
