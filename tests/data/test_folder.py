from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_makers import write_image_folder
from PIL import Image

from vae_edge.data import load_dataset
from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec, prepare_image


def test_one_sub_folder_is_one_class_and_files_stand_in_order(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "pets")
    dataset = load_dataset(tmp_path / "pets")
    assert dataset.name == "pets" and dataset.classes == ("cat", "dog") and dataset.test is None
    assert dataset.train.images[:, 7, 7, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_every_format_counts_and_hidden_or_other_files_do_not(tmp_path: Path) -> None:
    for index, name in enumerate(["a.png", "b.JPG", "c.jpeg", "d.bmp", "e.WebP"]):
        place = tmp_path / str(index % 2)
        place.mkdir(exist_ok=True)
        Image.new("L", (28, 28), 10 * index).save(place / name)
    (tmp_path / "0" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "0" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("0", "1") and len(dataset.train) == 5


def test_class_folders_that_are_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    write_image_folder(tmp_path, tuple(str(number) for number in range(12)), each=1)
    assert load_dataset(tmp_path).classes == tuple(str(number) for number in range(12))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(40, 40)], 40),
        ([(28, 28)], 28),
        ([(64, 64)], 64),
        ([(20, 20)], 28),
        ([(30, 32), (28, 20)], 28),
        ([(28, 28), (33, 33)], 64),
        ([(65, 65)], 65),
        ([(96, 96)], 96),
        ([(97, 97)], 96),
        ([(80, 90)], 64),
        ([(200, 300), (20, 20)], 96),
        ([(200, 300), (20, 20), (20, 20)], 64),
    ],
)
def test_the_size_follows_the_rule_and_is_overruled_by_size(
    tmp_path: Path, sizes: list[tuple[int, int]], expected: int
) -> None:
    for index, size in enumerate(sizes):
        write_image_folder(tmp_path, (f"a{index}", f"b{index}"), each=1, size=size)
    assert load_dataset(tmp_path).train.images.shape[1:] == (expected, expected, 1)
    assert load_dataset(tmp_path, size=48).train.images.shape[1:] == (48, 48, 1)
    assert load_dataset(tmp_path, size=(224, 28)).train.images.shape[1:] == (224, 28, 1)


def test_all_grey_is_one_channel_and_any_colour_makes_three(tmp_path: Path) -> None:
    write_image_folder(tmp_path, ("a", "b"))
    Image.new("RGB", (40, 40), (77, 77, 77)).save(tmp_path / "a" / "grey stored as colour.png")
    assert load_dataset(tmp_path).train.images.shape[-1] == 1
    write_image_folder(tmp_path, ("c",), mode="RGB")
    images = load_dataset(tmp_path).train.images
    assert (
        images.shape[-1] == 3 and images[0, 0, 0].tolist() == [0, 0, 0] and images[-1, 0, 0].tolist() == [2, 200, 100]
    )
    assert load_dataset(tmp_path, channels=1).train.images.shape[-1] == 1
    assert (load_dataset(tmp_path, channels=3).train.images == images).all()


def test_training_images_are_prepared_as_those_to_predict(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(generator.integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(tmp_path / name / "x.png")
    expected, _ = prepare_image(tmp_path / "b" / "x.png", InputSpec(64, 3))
    assert (load_dataset(tmp_path).train.images[1] == expected).all()


@pytest.mark.parametrize(("name", "split"), [("test", "test"), ("val", "validation"), ("Validation", "validation")])
def test_nested_splits_are_understood(tmp_path: Path, name: str, split: str) -> None:
    write_image_folder(tmp_path / "train")
    write_image_folder(tmp_path / name, each=2)
    dataset = load_dataset(tmp_path)
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 6, split: 4}
    assert dataset.classes == ("cat", "dog")


def test_a_validation_folder_joins_neither_training_nor_testing_and_is_said(tmp_path: Path) -> None:
    for name, each in (("train", 5), ("val", 2), ("test", 1)):
        write_image_folder(tmp_path / name, each=each)
    dataset = load_dataset(tmp_path)
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 10, "test": 2, "validation": 4}
    assert dataset.validation.files.tolist() == [f"val/{name}/{index}.png" for name in ("cat", "dog") for index in "01"]
    assert any("the 4 images of the validation folder are the validation split" in note for note in dataset.notes)


def test_a_test_half_alone_is_a_data_set(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "test")
    dataset = load_dataset(tmp_path)
    assert dataset.train is None and len(dataset.test) == 6


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    write_image_folder(tmp_path, ("bus", "train"))
    assert load_dataset(tmp_path).classes == ("bus", "train")


def test_what_is_no_data_set_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one sub-folder a class"):
        load_dataset(tmp_path)
    write_image_folder(tmp_path / "train")
    write_image_folder(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(DataError, match=r"differ in their classes \(cow\): test has them"):
        load_dataset(tmp_path)
    write_image_folder(tmp_path / "spare")
    with pytest.raises(DataError, match="but also spare"):
        load_dataset(tmp_path)


def test_two_names_for_one_half_are_refused(tmp_path: Path) -> None:
    for name in ("train", "training"):
        write_image_folder(tmp_path / name)
    with pytest.raises(DataError, match="mean the same"):
        load_dataset(tmp_path)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataError, match="cow holds no images"):
        load_dataset(tmp_path)
    (tmp_path / "cow" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=r"cow holds no images, but files that are not images: 1 \(cow/notes.txt\)"):
        load_dataset(tmp_path)


def test_asking_for_what_was_chosen_gives_the_same_data_set(tmp_path: Path) -> None:
    """A model is evaluated on data loaded at its own size and channels: the split must recognize the images."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        grey = Image.fromarray(generator.integers(0, 256, (50, 90), dtype=np.uint8))
        grey.save(tmp_path / name / "grey.png")
        grey.convert("RGB").save(tmp_path / name / "colour.png")
        grey.save(tmp_path / name / "grey.jpg")
    chosen = load_dataset(tmp_path)
    assert chosen.train.images.shape[1:] == (64, 64, 1)
    assert load_dataset(tmp_path, size=64, channels=1).fingerprint() == chosen.fingerprint()
