from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import some_images, some_labels

from vae_edge.data import load_dataset
from vae_edge.errors import DataError

IMAGES, LABELS = some_images(), some_labels()


def load(tmp_path: Path, size: int | None = None, **arrays: Any) -> Any:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **arrays)
    return load_dataset(path, size=size)


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "Y"), ("x_train", "y_train")])
def test_images_and_labels_under_any_usual_name(tmp_path: Path, names: tuple[str, str]) -> None:
    dataset = load(tmp_path, **{names[0]: IMAGES, names[1]: LABELS})
    assert (dataset.train.images[..., 0] == IMAGES).all() and (dataset.train.labels == LABELS).all()
    assert dataset.name == "set" and dataset.classes == ("0", "1", "2", "3") and dataset.test is None


def test_keras_names_are_two_splits_and_a_test_split_may_stand_alone(tmp_path: Path) -> None:
    both = load(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:8], y_test=LABELS[:8, None])
    assert len(both.train) == 20 and len(both.test) == 8
    alone = load(tmp_path, x_test=IMAGES, y_test=LABELS)
    assert alone.train is None and len(alone.test) == 20
    three = load(
        tmp_path,
        train_images=IMAGES, train_labels=LABELS, val_images=IMAGES[:4], val_labels=LABELS[:4],
        test_images=IMAGES[:8], test_labels=LABELS[:8],
    )  # fmt: skip
    assert {name: len(images) for name, images in three.splits.items()} == {"train": 20, "test": 8, "validation": 4}


def test_colour_classes_names_and_angles_travel_along(tmp_path: Path) -> None:
    angles = np.linspace(-90, 90, 20)
    dataset = load(
        tmp_path, images=some_images(20, 32, 3), labels=LABELS, classes=np.array(list("wxyz")), angles_deg=angles
    )
    assert dataset.train.images.shape == (20, 32, 32, 3) and dataset.classes == ("w", "x", "y", "z")
    assert np.allclose(dataset.train.angles_deg, angles)
    names = np.array(["dog", "cat"] * 10)
    dataset = load(tmp_path, images=IMAGES, labels=names)
    assert dataset.classes == ("cat", "dog") and dataset.train.labels.tolist() == [1, 0] * 10


def test_other_sizes_need_a_size(tmp_path: Path) -> None:
    arrays = {"images": some_images(20, 8), "labels": LABELS}
    assert load(tmp_path, size=28, **arrays).train.images.shape == (20, 28, 28, 1)
    with pytest.raises(DataError, match=r"have 8.*--size"):
        load(tmp_path, **arrays)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": IMAGES}, "lacks labels"),
        ({"labels": LABELS}, "lacks images"),
        ({"pictures": IMAGES}, "expected arrays named images and labels.*it holds pictures"),
        ({}, "holds nothing"),
        ({"images": IMAGES, "x": IMAGES, "labels": LABELS}, "mean the same"),
        ({"images": IMAGES[0], "labels": LABELS}, r"\[28, 28\]"),
        ({"images": IMAGES[:, :, :20], "labels": LABELS}, r"28×20 \(height × width\)"),
        ({"images": IMAGES[:, None], "labels": LABELS}, "transpose"),
        ({"images": some_images(20, 28, 3)[..., :2], "labels": LABELS}, "1 or 3 channels"),
        ({"images": IMAGES / 255, "labels": LABELS}, r"\(x \* 255\)"),
        ({"images": np.where(IMAGES > 250, np.nan, 0.5), "labels": LABELS}, "NaN"),
        ({"images": IMAGES.astype(int), "labels": LABELS}, r"x\.astype\(np\.uint8\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images"),
        ({"images": IMAGES[:, :0, :0], "labels": LABELS}, "have 0"),
        ({"images": IMAGES, "labels": LABELS[:19]}, "one for each of the 20 images"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, r"y\.astype\(np\.int64\)"),
        ({"images": IMAGES, "labels": np.eye(20)}, "argmax"),
        ({"images": IMAGES, "labels": LABELS.astype(int) - 1}, "Label -1"),
        ({"images": IMAGES, "labels": LABELS.astype(int) + 10**12}, "too high"),
        ({"images": IMAGES, "labels": LABELS.astype(np.uint64) + np.uint64(2**63)}, "no class's number"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b"])}, "Label 3 is outside"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "a", "b", "c"])}, "one class twice"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.arange(4)}, "list of strings"),
        ({"images": IMAGES, "labels": np.array(["a"] * 20), "classes": np.array(["b"])}, "'a' is not among"),
        ({"images": IMAGES, "labels": LABELS, "angles_deg": np.full(20, np.nan)}, "NaN"),
        ({"images": IMAGES, "labels": LABELS, "angles_deg": np.array(["a"] * 20)}, "numbers"),
        ({"images": np.array([None] * 20), "labels": LABELS}, "pickled"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": some_images(4, 32), "y_test": LABELS[:4]}, "differ"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_arrays_get_a_sentence_that_names_the_file(tmp_path: Path, arrays: dict, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path, **arrays)
    assert str(tmp_path / "set.npz") in str(caught.value)


def npy(header: str, body: bytes = b"") -> bytes:
    padded = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + body


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 28, 28), }"), "promises"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 28, 28), }"), "promises"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 28, 28), }", bytes(1567)), "damaged"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 28, 28), }", bytes(1569)), "damaged"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", b"cposix\nsystem\n"), "pickled"),
        (npy("__import__('os').abort()"), "cannot be read"),
        (b"no array", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_false_headers_are_refused_before_anything_is_allocated(tmp_path: Path, member: bytes, says: str) -> None:
    path = tmp_path / "false.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(DataError, match=says):
        load_dataset(path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=IMAGES, labels=LABELS)
    whole = bytearray(buffer.getvalue())
    flipped = whole.copy()
    flipped[400] ^= 0xFF
    for name, content in {
        "cut": whole[:-30],
        "half": whole[: len(whole) // 2],
        "flipped": flipped,
        "empty": b"",
    }.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            load_dataset(path)
