from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_edge.data import Dataset, LabelledImages
from vae_edge.data.unknown import load_unknown
from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec

SPEC = InputSpec(28, 1, "dark")


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 40), value).save(path)


def test_images_of_a_folder_count_in_sub_folders_or_not(tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "cat/b.png", "Deep/deeper/c.png")):
        write(tmp_path / "others" / name, 40 * index + 40)
    write(tmp_path / "others" / "contact_sheet.png", 200)  # as `generate` writes it
    found = load_unknown(tmp_path / "others", SPEC, ("cat", "dog"))
    assert found.name == "others" and found.images.shape == (3, 28, 28, 1) and found.images.dtype == np.uint8
    assert sorted(found.images[:, 14, 14, 0].tolist()) == [40, 80, 120]
    assert found.known_names == ("cat",)


def test_all_splits_of_a_data_set_count(tmp_path: Path) -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 28, 28, 1), np.uint8)
    labels = np.array([0, 1, 0, 1])
    path = tmp_path / "others.npz"
    splits = {"x_train": images[:4], "y_train": labels, "x_test": images[4:], "y_test": labels[:2]}
    np.savez(path, **splits, classes=np.array(["a", "b"]))
    found = load_unknown(path, SPEC, ("b",))
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5] and found.known_names == ("b",)
    data = LabelledImages(images, np.zeros(6, np.int64), ("x",))
    assert len(load_unknown(Dataset("given", "given", data, None, images[:2]), SPEC).images) == 8


def test_folders_without_images_and_images_of_another_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images: expected some in it"):
        load_unknown(tmp_path / "empty", SPEC)
    write(tmp_path / "empty" / "contact_sheet.png", 200)
    with pytest.raises(DataError, match="no images but a contact sheet"):
        load_unknown(tmp_path / "empty", SPEC)
    with pytest.raises(DataError, match="There is no data set"):
        load_unknown(tmp_path / "nowhere", SPEC)
    wide = LabelledImages(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64), ("x",))
    with pytest.raises(DataError, match=r"\[32, 32, 3\], but the model takes \[28, 28, 1\]"):
        load_unknown(Dataset("wide", "wide", wide, None), SPEC)


def test_a_folder_of_mostly_broken_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 90)
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(DataError, match="2 of 3 images cannot be read"):
        load_unknown(tmp_path, SPEC)
