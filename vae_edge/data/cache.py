"""A cache of prepared images on disk, keyed by the content of their files, so that no file is decoded twice.

The folder is that of the environment variable `VAE_EDGE_CACHE`, else `$XDG_CACHE_HOME/vae-edge`, else
`~/.cache/vae-edge`. It holds three kinds of files, each written beside and renamed:

- `images-KEY.bin`: prepared images, which are mapped into memory to be read. The key is of the content of all files in
  their order, of the settings of preparation, and of the code that prepares. Behind the images stand their digests,
  which are compared at each load: a damaged file is found and made anew.
- `choice-KEY.json`: the settings that were chosen for files, and what was said of it. The key is of their content, of
  what was asked for, and of the code.
- `files-KEY.bin`: for files of one folder their size and times, and the digest of their content. A file is read again
  for its digest if these differ, or were only seconds old when they were noted.

Processes may use the cache at the same time: they write the same, and the last one wins. If the folder cannot be
written, or the disk is full, everything goes on without it. `MAX_CACHE_BYTES` bounds it: what was used least recently
is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

import vae_edge
from vae_edge import decoding, files, framing, preprocess, transparency
from vae_edge.bundle_schema import check_input
from vae_edge.data.image_writer import MAX_IN_MEMORY_BYTES, ImageWriter
from vae_edge.data.images import CHUNK_BYTES, DIGEST_BYTES, ImageStore, ImageView, as_images, digest
from vae_edge.errors import ConfigError, VaeEdgeError
from vae_edge.preprocess import InputSpec
from vae_edge.spec import MAX_IMAGE_BYTES, MAX_JSON_BYTES

log = logging.getLogger(__name__)

CACHE_VARIABLE = "VAE_EDGE_CACHE"
"""The environment variable that names the cache's folder."""
LIMIT_VARIABLE = "VAE_EDGE_CACHE_BYTES"
"""The environment variable that holds another limit than `MAX_CACHE_BYTES`."""
MAX_CACHE_BYTES = 20 << 30
"""Bytes that the cache keeps. The file that was written last stays, however large."""
MIN_FILES, MIN_BYTES = 100, 8 << 20
"""A set of fewer files, with fewer bytes, is not cached: it is decoded about as fast as it is looked up."""

_MAGIC = b"VAEIMGS1"
_RACY_NS = 3_000_000_000
"""A file that changed so shortly before it was noted may have changed again within the same times."""
_NOTE = np.dtype([("path", "<u8"), ("size", "<i8"), ("mtime", "<i8"), ("ctime", "<i8"), ("digest", "u1", DIGEST_BYTES)])
_PATTERNS = ("images-*.bin", "choice-*.json", "files-*.bin")
_MAX_NOTES_BYTES = 1 << 30


@dataclass(frozen=True)
class CachedImages:
    """Prepared images of some files."""

    images: np.ndarray
    """uint8 [M, H, W, C] of the files that decode, in the files' order: an array, or a view of a file."""
    broken: tuple[int, ...]
    """Indices of the files that do not."""
    animated: frozenset[int]
    """Indices of the files with further frames."""


def cache_folder() -> Path:
    """The cache's folder, which need not be there."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "vae-edge"


def max_cache_bytes() -> int:
    """The limit on the cache's size.

    Raises:
        ConfigError: the environment variable holds no number of bytes.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text and not text.isdecimal():
        raise ConfigError(f"{LIMIT_VARIABLE} is a number of bytes, such as {MAX_CACHE_BYTES}, but {text!r} came.")
    return int(text) if text else MAX_CACHE_BYTES


Map = Callable[[Callable[[Path], Any], Sequence[Path], str], list[Any]]
"""Applies a function to files, by threads and with a progress bar that has a title."""


class FileCache:
    """What the cache knows of some files."""

    def __init__(self, paths: Sequence[Path], folder: Path | None, map_files: Map) -> None:
        """Look up, or compute, the content's digest of each file.

        Args:
            paths: the files.
            folder: of the cache; None: nothing is looked up or kept.
            map_files: computes digests of many files.
        """
        self.folder: Path | None = None
        self._warned = False
        self._limit = max_cache_bytes()
        if folder is None:
            return
        try:
            status = [path.stat() for path in paths]
            if len(paths) < MIN_FILES and sum(each.st_size for each in status) < MIN_BYTES:
                return
            digests = _Notes(folder, paths).digests(status, map_files, self.warn)
        except (OSError, ValueError):  # a file is gone, or cannot be read: preparing the files will say so
            return
        self.folder = folder
        self._content = hashlib.blake2b(digests.tobytes() + _code(), digest_size=20)

    def warn(self, error: OSError) -> None:
        """Say once why nothing is kept."""
        if not self._warned:
            log.warning(
                "warning: the cache of decoded images cannot be written (%s): images are decoded anew each time; "
                "%s names another folder, --no-cache does without",
                error,
                CACHE_VARIABLE,
            )
        self._warned = True

    def _path(self, kind: str, about: Any, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        key = self._content.copy()
        key.update(json.dumps(about, sort_keys=True).encode())
        return self.folder / f"{kind}-{key.hexdigest()}{suffix}"

    def find_choice(self, asked: Any) -> tuple[InputSpec, list[str]] | None:
        """The settings that were chosen for these files, and the sentences about it; None if that is not known."""
        path = self._path("choice", asked, ".json")
        if path is None:
            return None
        try:
            found = files.read_json(path, MAX_JSON_BYTES)
            check_input(found["input"], str(path))
            spec, notes = InputSpec.from_json(found["input"]), [str(note) for note in found["notes"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, VaeEdgeError):
            _remove(path)
            return None
        _touch(path)
        return spec, notes

    def keep_choice(self, asked: Any, spec: InputSpec, notes: Sequence[str]) -> None:
        """Keep what was chosen."""
        path = self._path("choice", asked, ".json")
        if path is not None:
            self._write(lambda: files.write_json(path, {"input": spec.to_json(), "notes": list(notes)}))

    def find_images(self, spec: InputSpec) -> CachedImages | None:
        """The images that these files become by these settings; None if they are not known."""
        path = self._path("images", _pixel_settings(spec), ".bin")
        if path is None:
            return None
        try:
            found = _read_images(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("%s is damaged (%s): the images are decoded anew", path, error)
            _remove(path)
            return None
        _touch(path)
        return found

    def keep_images(self, spec: InputSpec, writer: ImageWriter, broken: Sequence[int], animated: Sequence[int]) -> None:
        """Keep the images of a writer, and which files are broken or animated."""
        path = self._path("images", _pixel_settings(spec), ".bin")
        if path is None:
            return
        about = {"shape": list(writer.images().shape), "broken": list(broken), "animated": list(animated)}

        def end(digests: np.ndarray) -> bytes:
            text = json.dumps(about).encode()
            return digests.tobytes() + text + struct.pack("<Q", len(text)) + _MAGIC

        self._write(lambda: writer.keep(path, end))
        _tidy(path, self._limit)

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.warn(error)


class _Notes:
    """The digests of files' contents, noted with their sizes and times."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self._paths = paths
        absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (links stay what they are)
        root = os.path.commonpath(absolute) if absolute else ""
        self._path = folder / f"files-{hashlib.blake2b(os.fsencode(root), digest_size=20).hexdigest()}.bin"
        names = (hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in absolute)
        self._names = np.frombuffer(b"".join(names), "<u8")

    def digests(
        self, status: Sequence[os.stat_result], map_files: Map, on_error: Callable[[OSError], None]
    ) -> np.ndarray:
        """uint8 [N, 16]. Files that are not noted, or have changed, are read.

        Raises:
            OSError, ValueError: one cannot be read.
        """
        now = np.zeros(len(self._paths), _NOTE)
        now["path"] = self._names
        for name in ("size", "mtime", "ctime"):
            now[name] = [getattr(each, f"st_{name}" if name == "size" else f"st_{name}_ns") for each in status]
        noted = self._read()
        known = np.zeros(len(now), bool)
        if len(noted):
            order = np.argsort(noted["path"], kind="stable")
            at = np.minimum(np.searchsorted(noted["path"], now["path"], sorter=order), len(noted) - 1)
            rows = noted[order[at]]
            known = np.logical_and.reduce([rows[name] == now[name] for name in ("path", "size", "mtime", "ctime")])
            now["digest"][known] = rows["digest"][known]
        missing = np.flatnonzero(~known).tolist()
        if not missing:
            _touch(self._path)
            return now["digest"]
        began = time.time_ns()
        read = map_files(_content_digest, [self._paths[index] for index in missing], "looking for known images")
        for index, found in zip(missing, read, strict=True):
            now["digest"][index] = np.frombuffer(found, np.uint8)
        settled = np.maximum(now["mtime"], now["ctime"]) < began - _RACY_NS
        try:
            content = now[settled].tobytes()
            files.write_bytes(self._path, content + _checksum(content))
        except OSError as error:
            on_error(error)
        return now["digest"]

    def _read(self) -> np.ndarray:
        try:
            content = files.read_bytes(self._path, _MAX_NOTES_BYTES)
        except (OSError, ValueError):
            return np.zeros(0, _NOTE)
        body = content[:-DIGEST_BYTES]
        if content[-DIGEST_BYTES:] != _checksum(body) or len(body) % _NOTE.itemsize:
            return np.zeros(0, _NOTE)  # damaged: all files are read again, and noted anew
        return np.frombuffer(body, _NOTE)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _content_digest(path: Path) -> bytes:
    """BLAKE2b with 128 bits of a file's content; what is too large to be decoded here is not read."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with files.open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_IMAGE_BYTES:
            raise ValueError(f"{path} is too large")
        while part := file.read(1 << 20):
            found.update(part)
    return found.digest()


def _pixel_settings(spec: InputSpec) -> dict[str, Any]:
    """The settings that pixels depend on."""
    settings = spec.to_json()
    del settings["background"]  # of hints and of inversion, which training images never have
    if spec.fit != "foreground":
        del settings["foreground_ratio"]
    return settings


@cache
def _code() -> bytes:
    """A digest of the code that prepares images, ours and Pillow's: whatever changes it makes new keys."""
    found = hashlib.blake2b(digest_size=20)
    modules = [Path(str(module.__file__)) for module in (decoding, framing, preprocess, transparency)]
    try:
        for path in (*modules, Path(__file__).with_name("prepare.py")):
            found.update(path.read_bytes())
    except OSError:  # in an archive: a version has one code
        found.update(vae_edge.__version__.encode())
    codecs = [features.version(name) for name in ("jpg", "jpg_2000", "webp", "avif", "libtiff") if name in _codecs()]
    found.update(repr((PIL.__version__, codecs)).encode())
    return found.digest()


def _codecs() -> set[str]:
    return {*features.modules, *features.codecs}


def _read_images(path: Path) -> CachedImages:
    """Read a file that `FileCache.keep_images` wrote, and compare each image with its digest.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, or is damaged.
    """
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 16))
        length, magic = struct.unpack("<Q8s", file.read(16).rjust(16))
        if magic != _MAGIC or not 0 < length < min(size, MAX_JSON_BYTES):
            raise ValueError("its end is not that of such a file")
        file.seek(size - 16 - length)
        about = files.parse_json(file.read(length))
        shape = tuple(int(side) for side in about["shape"])
        count, one = shape[0], math.prod(shape[1:])
        if len(shape) != 4 or min(shape) < 0 or size != count * (one + DIGEST_BYTES) + length + 16:
            raise ValueError(f"its size {size} is not that of {shape}")
        file.seek(count * one)
        digests = np.frombuffer(file.read(count * DIGEST_BYTES), np.uint8).reshape(count, DIGEST_BYTES)
        pixels = np.empty(shape, np.uint8) if count * one <= MAX_IN_MEMORY_BYTES else None
        file.seek(0)
        step = max(1, CHUNK_BYTES // max(1, one))
        for start in range(0, count, step):
            part = np.frombuffer(file.read(min(step, count - start) * one), np.uint8).reshape(-1, *shape[1:])
            found = np.frombuffer(b"".join(map(digest, part)), np.uint8).reshape(-1, DIGEST_BYTES)
            if not np.array_equal(found, digests[start : start + step]):
                raise ValueError("an image is not as it was written")
            if pixels is not None:
                pixels[start : start + step] = part
        broken, animated = (tuple(int(index) for index in about[name]) for name in ("broken", "animated"))
    if pixels is None:
        pixels = as_images(ImageView(ImageStore(path, shape, digests), np.arange(count)))
    return CachedImages(pixels, broken, frozenset(animated))


def _touch(path: Path) -> None:
    """Note that a file was used."""
    with suppress(OSError):  # a folder that may only be read
        os.utime(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _tidy(newest: Path, limit: int) -> None:
    """Remove what was used least recently, until the cache is within its limit, and takes no more than it leaves free.

    The newest file stays.
    """
    found: list[tuple[float, int, Path]] = []
    for pattern in _PATTERNS:
        for path in newest.parent.glob(pattern):
            with suppress(OSError):  # another process removed it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    with suppress(OSError):
        limit = min(limit, (total + shutil.disk_usage(newest.parent).free) // 2)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path != newest:
            _remove(path)
            total -= size
