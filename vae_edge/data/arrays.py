"""Data sets in files of arrays: IDX, as MNIST comes in, and NumPy archives (`.npz`)."""

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
    UNLABELLED,
    Dataset,
    LabelledImages,
    labelled_images,
    max_read_bytes,
    numbered_classes,
    validate_and_resize,
)
from vae_edge.errors import DataError
from vae_edge.files import read_arrays
from vae_edge.spec import MAX_CLASSES, MAX_INPUT_SIZE, MAX_NAME, MAX_TEXT_BYTES, Size

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


def load_idx_folder(folder: Path, size: Size | None = None, channels: int | None = None) -> Dataset:
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


def load_idx_file(path: Path, size: Size | None = None, channels: int | None = None) -> Dataset:
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


def _load(name: str, source: str, paths: dict[str, Path], size: Size | None, channels: int | None) -> Dataset:
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


_NAMES = {
    "train": (("images", "x", "x_train", "train_images"), ("labels", "y", "y_train", "train_labels"), "angles_deg"),
    "validation": (("x_val", "val_images"), ("y_val", "val_labels"), "angles_deg_val"),
    "test": (("x_test", "test_images"), ("y_test", "test_labels"), "angles_deg_test"),
}
"""For each split: the names of its images, of its labels, and of its angles."""


def load_npz(path: Path, size: Size | None = None, channels: int | None = None) -> Dataset:
    """Load an archive of arrays. Their names are compared without case.

    Images are uint8 [N, S, S] or [N, S, S, C]; labels are whole numbers or names, [N] or [N, 1]. Optional arrays are
    `classes` (the class names), `angles_deg` (the rotation of each image), and `unlabelled` (images without labels, of
    the same size and channels).

    Raises:
        DataError: no archive, damaged, pickled or too large; an array is missing or of the wrong form.
    """
    arrays = _read(path)
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {}
    for role, (image_names, label_names, angle_name) in _NAMES.items():
        images, labels = _find_array(path, arrays, image_names), _find_array(path, arrays, label_names)
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            missing = image_names if images is None else label_names
            raise DataError(f"{path} lacks {' or '.join(missing)}; it holds {_array_names(arrays)}.")
        found[role] = images, labels, arrays.get(angle_name)
    others = _find_array(path, arrays, UNLABELLED)

    if not found:
        if others is not None:
            raise DataError(f"{path} has images without labels alone; expected images and labels beside them.")
        raise DataError(
            f"{path}: expected arrays named images and labels (or x_train, y_train, x_test, y_test), "
            f"but it holds {_array_names(arrays)}."
        )

    labels_of = {role: _labels(f"{path}, {role} labels", labels) for role, (_, labels, _) in found.items()}
    classes = _classes(path, arrays.get("classes"), list(labels_of.values()))
    splits: dict[str, LabelledImages] = {}
    for role, (images, _, angles) in found.items():
        source = f"{path}, {role} split" if len(found) > 1 else str(path)
        numbers = _label_indices(source, labels_of[role], classes)
        pixels = validate_and_resize(images, size, channels, source)
        splits[role] = labelled_images(source, pixels, numbers, classes, _angles(source, angles))
    if others is not None:
        others = validate_and_resize(others, size, channels, f"{path}, array unlabelled")
    train, validation, test = (splits.get(role) for role in ("train", "validation", "test"))
    return Dataset(path.stem, str(path), train, test, others, validation=validation)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that have a meaning here, by lower-case name."""
    known = {"classes", *UNLABELLED} | {
        name for *pairs, angles in _NAMES.values() for name in (*pairs[0], *pairs[1], angles)
    }
    try:
        with files.open_regular(path) as file:
            found = read_arrays(file, max_read_bytes(), lambda name: name.lower() in known)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a NumPy archive (.npz): {error}.") from error
    arrays: dict[str, np.ndarray] = {}
    for name, array in found.items():
        if name.lower() in arrays:
            raise DataError(f"{path} holds two arrays named {name.lower()}.")
        arrays[name.lower()] = np.empty(0) if array is None else array
    return arrays


def _array_names(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(name[:40] for name in sorted(arrays)[:20]) or "nothing"


def _find_array(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise DataError(f"{path} holds both {' and '.join(found)}, which mean the same; keep one.")
    return arrays[found[0]] if found else None


def _labels(source: str, labels: np.ndarray) -> np.ndarray:
    """Labels [N] as whole numbers (int64) or names (strings)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = " From one-hot rows, take y.argmax(axis=1)." if labels.ndim == 2 else ""
        raise DataError(f"{source}: expected one number an image, but their shape is {list(labels.shape)}.{hint}")
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{source}: expected whole numbers or names, but their dtype is {labels.dtype}; "
            "convert them with y.astype(np.int64)."
        )
    if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{source}: {labels.max()} is no class's number.")
    return labels.astype(np.int64)


def _classes(path: Path, names: np.ndarray | None, labels: list[np.ndarray]) -> tuple[str, ...]:
    if names is not None:
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"{path}: classes are a list of strings, but {names.dtype} {list(names.shape)} came.")
        if len(names) > MAX_CLASSES or names.dtype.itemsize > 4 * MAX_NAME:
            raise DataError(f"{path}: at most {MAX_CLASSES} classes of at most {MAX_NAME} characters may be.")
        if len(set(names.tolist())) != len(names):
            raise DataError(f"{path}: classes name one class twice.")
        return tuple(str(name) for name in names)
    if labels[0].dtype.kind == "U":
        return tuple(sorted({str(name) for split in labels for name in split}))
    return numbered_classes(str(path), max(int(split.max(initial=0)) for split in labels if split.dtype.kind != "U"))


def _label_indices(source: str, labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Labels [N] as indices into the classes, int64."""
    if labels.dtype.kind != "U":
        return labels
    index = {name: number for number, name in enumerate(classes)}
    unknown = sorted({str(name) for name in labels} - set(index))
    if unknown:
        raise DataError(f"{source}: label {unknown[0]!r} is not among the classes ({', '.join(classes[:20])}).")
    return np.array([index[str(name)] for name in labels], dtype=np.int64)


def _angles(source: str, angles: np.ndarray | None) -> np.ndarray | None:
    if angles is None:
        return None
    if angles.dtype.kind not in "iuf":
        raise DataError(f"{source}: angles_deg are numbers, but their dtype is {angles.dtype}.")
    return angles.astype(np.float32)
