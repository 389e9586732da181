"""Read data sets in NumPy archives: `images` and `labels`, or Keras's `x_train`, `y_train`, `x_test`, `y_test`.

Arrays are read by `vae_edge.array_file`, within bounds and without unpickling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vae_edge import files
from vae_edge.array_file import read_arrays
from vae_edge.data.dataset import (
    UNLABELLED,
    Dataset,
    LabelledImages,
    labelled_images,
    make_dataset,
    max_read_bytes,
    numbered_classes,
    validate_and_resize,
)
from vae_edge.errors import DataError
from vae_edge.limits import MAX_CLASSES, MAX_NAME

_NAMES = {
    "train": (("images", "x", "x_train", "train_images"), ("labels", "y", "y_train", "train_labels"), "angles_deg"),
    "validation": (("x_val", "val_images"), ("y_val", "val_labels"), "angles_deg_val"),
    "test": (("x_test", "test_images"), ("y_test", "test_labels"), "angles_deg_test"),
}
"""For each split: the names of its images, of its labels, and of its angles."""


def load_npz(path: Path, size: int | None = None, channels: int | None = None) -> Dataset:
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
    return make_dataset(path.stem, str(path), splits.get("train"), splits.get("validation"), splits.get("test"), others)


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
