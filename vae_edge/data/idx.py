"""Read IDX files, the format of MNIST: one file of images and one of labels beside it, plain or gzip-compressed.

The format: two zero bytes, the type (8 is uint8), the rank, each dimension as a big-endian uint32, then the values.
A header is believed only as far as the file can hold what it promises.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge import files
from vae_edge.data.dataset import (
    Dataset,
    LabelledImages,
    labelled_images,
    max_read_bytes,
    numbered_classes,
    validate_and_resize,
)
from vae_edge.errors import DataError
from vae_edge.limits import MAX_INPUT_SIZE, MAX_TEXT_BYTES

CLASSES_FILE = "classes.txt"
"""A text file beside IDX files with the class names, one a line."""
KNOWN_CLASSES = {
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )
}  # fmt: skip
"""Class names of public data sets, by the folder's name."""

_IMAGES_NAME = re.compile(r"(train|t10k|test)-images[-.]idx[34]-ubyte(\.gz)?", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_DEFLATE_LIMIT = 1032
"""Deflate compresses by at most this factor (zlib's technical details)."""


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds an images or a labels file with one of the usual names."""
    return any(
        _IMAGES_NAME.fullmatch(path.name.replace("labels", "images").replace("idx1", "idx3")) for path in _files(folder)
    )


def load_idx_folder(folder: Path, size: int | None = None, channels: int | None = None) -> Dataset:
    """Load `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte` with their labels, each plain or .gz.

    Either split may be missing. `train-images.idx3-ubyte` is understood too. Class names come from `classes.txt` in the
    folder, else they are the numbers of the labels.

    Raises:
        DataError: images without labels or the reverse; a damaged file.
    """
    found: dict[str, Path] = {}
    for path in _files(folder):  # sorted, so that the plain file comes before the .gz
        match = _IMAGES_NAME.fullmatch(path.name)
        if match:
            found.setdefault("train" if match[1].lower() == "train" else "test", path)
    if not found:
        raise DataError(f"{folder} holds labels but no images file such as train-images-idx3-ubyte.gz.")
    return _load(folder.name, str(folder), found, size, channels)


def load_idx_file(path: Path, size: int | None = None, channels: int | None = None) -> Dataset:
    """Load one images file and the labels file beside it: the test split if its name says so, else the train split.

    Raises:
        DataError: there is no labels file; a damaged file.
    """
    if "images" not in path.name:
        raise DataError(f"{path}: name the images file, whose name has 'images' in it; the labels are found beside it.")
    role = "test" if re.match(r"t10k|test", path.name, re.IGNORECASE) or "-test-" in path.name else "train"
    return _load(path.name.split(".")[0], str(path), {role: path}, size, channels)


def read_idx(path: Path, ranks: tuple[int, ...]) -> np.ndarray:
    """Read one IDX file of unsigned bytes, with its header checked against the file's size.

    Returns:
        uint8, of one of these ranks.

    Raises:
        DataError: missing, empty, truncated, damaged, too long, of another type or rank, or absurdly large.
    """
    try:
        with files.open_regular(path) as raw:
            length = os.fstat(raw.fileno()).st_size
            if not length:
                raise DataError(f"{path} is empty; expected an IDX file.")
            compressed = raw.read(2) == _GZIP
            raw.seek(0)
            if not compressed:
                return _parse(path, raw, ranks, length)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(path, stream, ranks, length * _DEFLATE_LIMIT)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. If it was downloaded, download it again.") from error


def _parse(path: Path, stream: Any, ranks: tuple[int, ...], max_bytes: int) -> np.ndarray:
    """Read header and values. `max_bytes` is what the file can hold at most, unpacked."""
    magic = stream.read(4)
    expected = " or ".join(f"00 00 08 {rank:02x}" for rank in ranks)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] not in ranks:
        raise DataError(f"{path} is no such IDX file: expected it to start with {expected}, but {magic.hex(' ')} came.")
    if magic[2] != 8:
        raise DataError(f"{path} holds values of IDX type 0x{magic[2]:02x}; expected unsigned bytes (0x08).")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{path} is truncated in its header.")
    dims = struct.unpack(f">{magic[3]}I", header)
    total, limit = math.prod(dims), max_read_bytes()
    promise = f"{path} promises {'×'.join(map(str, dims))} bytes in its header"
    if not total and max(dims) > MAX_INPUT_SIZE:
        raise DataError(f"{promise}: it holds nothing, and is likely damaged.")
    if total > limit:
        raise DataError(f"{promise}, more than the {limit >> 20} MiB that are read at once here; it is likely damaged.")
    if total > max_bytes:
        raise DataError(f"{promise}, but is truncated: it cannot hold more than {max_bytes}.")
    values = np.empty(total, dtype=np.uint8)
    view, filled = values.data, 0
    while filled < total:
        count = stream.readinto(view[filled : filled + (1 << 24)])
        if not count:
            raise DataError(f"{promise}, but is truncated: it holds {filled}.")
        filled += count
    if stream.read(1):
        raise DataError(f"{promise}, but goes on after them; it is damaged or no IDX file.")
    return values.reshape(dims)


def _load(name: str, source: str, paths: dict[str, Path], size: int | None, channels: int | None) -> Dataset:
    read = {role: _read_pair(path) for role, path in paths.items()}
    highest = max(int(labels.max(initial=0)) for _, labels, _ in read.values())
    classes = _class_names(next(iter(paths.values())).parent, source, highest)
    splits: dict[str, LabelledImages] = {}
    for role, (images, labels, labels_path) in read.items():
        pixels = validate_and_resize(images, size, channels, str(paths[role]))
        splits[role] = labelled_images(str(labels_path), pixels, labels.astype(np.int64), classes)
    return Dataset(name, source, splits.get("train"), splits.get("test"))


def _read_pair(path: Path) -> tuple[np.ndarray, np.ndarray, Path]:
    labels_path = _labels_beside(path)
    images, labels = read_idx(path, ranks=(3, 4)), read_idx(labels_path, ranks=(1,))
    if len(images) != len(labels):
        raise DataError(f"{labels_path} holds {len(labels)} labels, but {path} holds {len(images)} images.")
    return images, labels, labels_path


def _labels_beside(path: Path) -> Path:
    plain = re.sub(r"idx[34]", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
    names = [plain, plain.replace("-idx1", ".idx1"), plain.replace(".idx1", "-idx1")]
    for candidate in [path.with_name(name + suffix) for name in names for suffix in ("", ".gz")]:
        if candidate.is_file():
            return candidate
    raise DataError(f"{path} has no labels beside it: expected {plain} or {plain}.gz in the same folder.")


def _class_names(folder: Path, source: str, highest: int) -> tuple[str, ...]:
    path = folder / CLASSES_FILE
    if path.is_file():
        try:
            text = files.read_bytes(path, MAX_TEXT_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if len(set(names)) != len(names):
            raise DataError(f"{path} names a class twice; expected one class a line.")
        return names
    known = KNOWN_CLASSES.get(folder.name, ())
    return known if highest < len(known) else numbered_classes(source, highest)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
