from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_makers import some_images, some_labels, write_idx, write_image_folder
from PIL import Image

from vae_edge.data import Dataset, LabelledImages, load_dataset
from vae_edge.errors import DataError


def picture(path: Path, value: int = 77, size: tuple[int, int] = (40, 40), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 5, 90)).save(path)


def values(dataset: Dataset) -> list[int]:
    assert dataset.unlabelled is not None
    return dataset.unlabelled[:, 7, 7, 0].tolist()


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled", "Unlabelled"])
def test_a_folder_beside_the_classes_holds_images_without_labels_at_any_depth(tmp_path: Path, name: str) -> None:
    write_image_folder(tmp_path)
    for value, place in ((1, "a.png"), (2, "deep/b.JPG"), (3, "deep/er/still/c.webp"), (4, "z.bmp")):
        picture(tmp_path / name / place, value)
    (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / name / ".hidden.png").write_bytes(b"no image")
    (tmp_path / name / "__MACOSX").mkdir()
    (tmp_path / name / "__MACOSX" / "x.png").write_bytes(b"no image")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog") and len(dataset.train) == 6
    assert values(dataset) == [1, 2, 3, 4]


def test_it_may_stand_beside_train_and_test_or_in_train(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_image_folder(tmp_path / place / "train")
        write_image_folder(tmp_path / place / "test")
    picture(tmp_path / "one" / "unlabelled" / "x.png", 9)
    picture(tmp_path / "two" / "train" / "unlabelled" / "x.png", 9)
    for place in ("one", "two"):
        dataset = load_dataset(tmp_path / place)
        assert values(dataset) == [9] and dataset.classes == ("cat", "dog") and len(dataset.test) == 6
    picture(tmp_path / "two" / "unlabelled" / "x.png")
    with pytest.raises(DataError, match=r"two/unlabelled and .*train/unlabelled, which mean the same"):
        load_dataset(tmp_path / "two")
    picture(tmp_path / "one" / "test" / "unlabelled" / "x.png")
    with pytest.raises(DataError, match=r"test/unlabelled: images without labels are for training"):
        load_dataset(tmp_path / "one")


def test_size_and_channels_are_chosen_for_all_images_together(tmp_path: Path) -> None:
    write_image_folder(tmp_path, size=(30, 30))
    assert load_dataset(tmp_path).train.images.shape[1:] == (30, 30, 1)
    picture(tmp_path / "unlabelled" / "large.png", size=(50, 30))
    assert load_dataset(tmp_path).train.images.shape[1:] == (64, 64, 1)
    picture(tmp_path / "unlabelled" / "colour.png", mode="RGB")
    dataset = load_dataset(tmp_path)
    assert dataset.unlabelled.shape == (2, 64, 64, 3) and dataset.train.images.shape == (6, 64, 64, 3)
    assert load_dataset(tmp_path, size=28, channels=1).unlabelled.shape == (2, 28, 28, 1)
    assert load_dataset(tmp_path, size=64, channels=3).fingerprint() == dataset.fingerprint()


def test_beside_idx_files_they_get_the_size_and_channels_of_those(tmp_path: Path) -> None:
    write_idx(tmp_path)
    assert load_dataset(tmp_path).unlabelled is None
    picture(tmp_path / "unlabelled" / "x.png", 50, mode="RGB")
    assert load_dataset(tmp_path).unlabelled.shape == (1, 28, 28, 1)
    assert load_dataset(tmp_path, size=32, channels=3).unlabelled.shape == (1, 32, 32, 3)


def test_an_archive_may_hold_an_array_of_them(tmp_path: Path) -> None:
    images, others = some_images(), some_images(33, seed=1)
    for name in ("unlabelled", "unlabeled", "Unlabelled"):
        np.savez(tmp_path / "set.npz", images=images, labels=some_labels(), **{name: others})
        dataset = load_dataset(tmp_path / "set.npz")
        assert (dataset.unlabelled[..., 0] == others).all() and len(dataset.train) == 20
    assert load_dataset(tmp_path / "set.npz", size=32, channels=3).unlabelled.shape == (33, 32, 32, 3)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"unlabelled": some_images(5, 32)}, r"shape of the others, \[28, 28, 1\].*\[32, 32, 1\].*--size"),
        ({"unlabelled": some_images(5, channels=3)}, r"\[28, 28, 3\]"),
        ({"unlabelled": some_images(5)[:0]}, "array unlabelled: there are no images"),
        ({"unlabelled": some_images(5) / 255}, r"array unlabelled: images are uint8"),
        ({"unlabelled": some_images(5)[0]}, r"array unlabelled: .*\[28, 28\]"),
        ({"unlabelled": some_images(5), "unlabeled": some_images(5)}, "mean the same"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arrays_of_them_are_told_so(tmp_path: Path, arrays: dict, says: str) -> None:
    np.savez(tmp_path / "set.npz", images=some_images(), labels=some_labels(), **arrays)
    with pytest.raises(DataError, match=says):
        load_dataset(tmp_path / "set.npz")


def test_another_size_is_mended_by_asking_for_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=some_images(), labels=some_labels(), unlabelled=some_images(5, 50))
    assert load_dataset(tmp_path / "set.npz", size=28).unlabelled.shape == (5, 28, 28, 1)


def test_an_empty_folder_of_them_is_told_so(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "unlabelled" / "deep").mkdir(parents=True)
    (tmp_path / "unlabelled" / "notes.txt").write_text("none yet")
    with pytest.raises(
        DataError,
        match=r"unlabelled holds no images, but files that are not images: 1 .*expected image files.*Remove the folder",
    ):
        load_dataset(tmp_path)


def test_without_any_label_there_is_nothing_to_learn(tmp_path: Path) -> None:
    picture(tmp_path / "folder" / "unlabelled" / "x.png")
    picture(tmp_path / "halves" / "train" / "unlabelled" / "x.png")
    np.savez(tmp_path / "set.npz", unlabelled=some_images())
    for name in ("folder", "halves", "set.npz"):
        with pytest.raises(DataError, match="images without labels alone"):
            load_dataset(tmp_path / name)
    with pytest.raises(DataError, match="images without labels alone"):
        Dataset("n", "s", None, None, some_images(channels=1))


def test_none_is_lost_in_silence(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "data")
    place = tmp_path / "data" / "unlabelled"
    picture(place / "right.png")
    picture(place / "__also right.png")
    picture(place / "scan.tiff")
    picture(tmp_path / "elsewhere" / "linked.png")
    (place / "link").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset(tmp_path / "data").unlabelled) == 4
    (place / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (place / "broken.png").write_bytes(b"no image")
    (place / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (place / "circle").symlink_to(place)
    dataset = load_dataset(tmp_path / "data")
    assert len(dataset.unlabelled) == 4
    assert {(entry.path, entry.reason) for entry in dataset.left_out} == {
        ("unlabelled/photo.heic", "images of formats that are not read"),
        ("unlabelled/broken.png", "broken images"),
        ("unlabelled/gone.png", "links that lead nowhere"),
        ("unlabelled/circle", "links to folders that are read already"),
    }
    with pytest.raises(
        DataError, match=r"4 files or folders are left out.*broken images: 1 \(unlabelled/broken\.png\)"
    ):
        load_dataset(tmp_path / "data", strict=True)


def test_both_spellings_at_once_are_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    picture(tmp_path / "unlabelled" / "x.png")
    picture(tmp_path / "unlabeled" / "x.png")
    with pytest.raises(DataError, match="both unlabeled and unlabelled"):
        load_dataset(tmp_path)


def test_the_fingerprint_covers_them_and_is_what_it_was_without(tmp_path: Path) -> None:
    images = (np.arange(20 * 28 * 28) * 7 % 256).astype(np.uint8).reshape(20, 28, 28, 1)
    data = LabelledImages(images, some_labels().astype(np.int64), tuple("abcd"))
    without = Dataset("n", "s", data, None)
    # As computed before images without labels were known: runs of that time must find their data again.
    assert without.fingerprint() == "96f34a9d5567d6b0b3c42edb0a1c1f9ca12304ffb37ab964476d4f1456ca1f45"
    others = some_images(6, channels=1, seed=2)
    sums = {
        without.fingerprint(),
        replace(without, unlabelled=others).fingerprint(),
        replace(without, unlabelled=others[:5]).fingerprint(),
        replace(without, unlabelled=others ^ 1).fingerprint(),
    }
    assert len(sums) == 4
