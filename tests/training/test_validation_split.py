"""A validation split of the data set's own: never trained on, never joined; and which images `evaluate` measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_edge.data import Dataset, LabelledImages, load_dataset, select_split
from vae_edge.data.splits import describe_split, select_trained_split
from vae_edge.errors import DataError
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import make_splits

TRAINED = {"holdout_fraction": 0.1, "seed": 0}


def write(folder: Path, each: int, classes: tuple[str, ...] = ("cat", "dog"), first: int = 0) -> None:
    """Images that all differ, numbered from `first`."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = np.full((28, 28), 90, np.uint8)
            pixels[0, :3] = (label, (first + index) % 256, (first + index) // 256)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")


def ids(data: LabelledImages) -> set[bytes]:
    return {image.tobytes() for image in data.images}


def counts(dataset: Dataset) -> dict[str, int]:
    return {name: len(split) for name, split in dataset.splits.items()}


def test_training_holds_out_the_validation_split_and_trains_on_all_of_the_train_split(tmp_path: Path) -> None:
    write(tmp_path / "train", 20)
    write(tmp_path / "val", 5, first=100)
    write(tmp_path / "test", 5, first=200)
    dataset = load_dataset(tmp_path)
    splits = make_splits(dataset, TrainConfig(epochs=1))
    assert ids(splits.train) == ids(dataset.train) and ids(splits.held_out) == ids(dataset.validation)
    assert splits.val is None
    stopped = make_splits(dataset, TrainConfig(epochs=1, patience=2))
    assert stopped.val is stopped.held_out and len(stopped.train) == 40


def test_another_data_set_is_the_validation_split_prepared_as_the_first(tmp_path: Path) -> None:
    write(tmp_path / "data", 20)
    write(tmp_path / "more", 5, ("dog", "cat"), first=100)
    (tmp_path / "more" / "dog" / "notes.txt").write_text("x")
    dataset = load_dataset(tmp_path / "data", size=32, channels=3, val=tmp_path / "more")
    assert counts(dataset) == {"train": 40, "validation": 10}
    assert dataset.validation.images.shape[1:] == (32, 32, 3) and dataset.classes == ("cat", "dog")
    assert all(Path(name).is_file() for name in dataset.validation.files)
    assert [Path(entry.path) for entry in dataset.left_out] == [tmp_path / "more" / "dog" / "notes.txt"]
    assert any(f"the 10 images of {tmp_path / 'more'} are the validation split" in note for note in dataset.notes)
    plain = load_dataset(tmp_path / "data", size=32, channels=3)
    assert plain.fingerprint() != dataset.fingerprint()
    with pytest.raises(DataError, match="1 files or folders are left out"):
        load_dataset(tmp_path / "data", val=tmp_path / "more", strict=True)


def test_arrays_can_be_validated_on_files_and_files_on_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array(["cat", "dog"] * 10))
    write(tmp_path / "data", 20)
    assert counts(load_dataset(tmp_path / "x.npz", val=tmp_path / "data")) == {"train": 20, "validation": 40}
    mixed = load_dataset(tmp_path / "data", size=32, val=tmp_path / "x.npz")
    assert mixed.validation.images.shape == (20, 32, 32, 1)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", 3)
    write(tmp_path / "more", 2, ("cat", "cow"))
    with pytest.raises(DataError, match=r"more, the validation split, has classes that .*data lacks: cow"):
        load_dataset(tmp_path / "data", val=tmp_path / "more")
    write(tmp_path / "both" / "train", 3)
    write(tmp_path / "both" / "val", 3)
    with pytest.raises(DataError, match="has a validation split of its own"):
        load_dataset(tmp_path / "both", val=tmp_path / "data")
    with pytest.raises(DataError, match="There is no data set"):
        load_dataset(tmp_path / "data", val=tmp_path / "nothing")


def test_validation_images_that_are_trained_on_are_left_out_of_what_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "train", 20)
    write(tmp_path / "val", 5, first=17)  # three of five are training images
    splits = make_splits(load_dataset(tmp_path), TrainConfig(epochs=1))
    assert len(splits.train) == 40 and len(splits.held_out) == 4 and not ids(splits.train) & ids(splits.held_out)
    dataset = load_dataset(tmp_path)
    assert ids(select_split(dataset, "validation", 0.1, 0)) == ids(splits.held_out)
    with pytest.raises(DataError, match="All held-out images of cat, dog are exact duplicates of the images to train"):
        make_splits(replace(dataset, validation=dataset.train), TrainConfig(epochs=1))


def test_which_images_a_split_is_with_a_validation_split_and_without(tmp_path: Path) -> None:
    write(tmp_path / "train", 20)
    write(tmp_path / "val", 5, first=100)
    dataset = load_dataset(tmp_path)
    expected = {"auto": dataset.validation, "validation": dataset.validation, "train": dataset.train}
    for split, images in expected.items():
        assert ids(select_split(dataset, split, 0.1, 0)) == ids(images)
    every = select_split(dataset, "all", 0.1, 0)
    assert len(every) == 50
    assert describe_split(dataset, "all", every) == "the 50 images of all splits (train, validation)"
    assert describe_split(dataset, "auto", dataset.validation) == "the 10 images of the validation split"
    alone = replace(dataset, validation=None)
    held = select_split(alone, "auto", 0.1, 0)
    assert describe_split(alone, "auto", held) == "the 4 images of the train split that training held out"
    said = describe_split(alone, "auto", held, dataset.fingerprint())
    assert said == "the 4 images of the train split that training would hold out"  # it was another data set
    with pytest.raises(DataError, match="has no test split, which --split test needs; take train or validation"):
        select_split(dataset, "test", 0.1, 0)


def test_a_model_that_was_validated_on_images_of_their_own_asks_for_them(tmp_path: Path) -> None:
    write(tmp_path / "data", 20)
    dataset = load_dataset(tmp_path / "data")
    with pytest.raises(DataError, match="name its folder with --val"):
        select_trained_split(dataset, "auto", {**TRAINED, "own_validation": True})
    assert len(select_trained_split(dataset, "train", {**TRAINED, "own_validation": True})) == 40


def test_a_model_that_held_out_groups_finds_the_same_ones_again(tmp_path: Path) -> None:
    for number, maker in enumerate(("apple", "google", "twitter")):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / name / maker).mkdir(parents=True)
            for index in range(8):
                value = np.full((28, 28), 100 * label + 10 * number + index, np.uint8)
                Image.fromarray(value).save(tmp_path / name / maker / f"{index}.png")
    settings = TrainConfig(epochs=1, group_by="folder", seed=5)
    splits = make_splits(load_dataset(tmp_path, group_by="folder"), settings)
    trained = {"holdout_fraction": settings.holdout, "seed": 5, "group_by": "folder"}
    plain = load_dataset(tmp_path)
    again = select_trained_split(plain, "validation", trained)
    assert ids(again) == ids(splits.held_out) and len(set(again.groups.tolist())) == 1
    assert ids(select_trained_split(plain, "train", trained)) == ids(splits.train)
    name = next(iter(set(again.groups.tolist())))
    assert describe_split(plain, "auto", again).endswith(f"that training held out, of the groups {name}")
    with pytest.raises(DataError, match=r"whole groups by day-{group}, which cannot be told here: .* --group-by"):
        select_trained_split(plain, "auto", {**trained, "group_by": "day-{group}"})
    assert len(select_trained_split(plain, "all", {**trained, "group_by": "day-{group}"})) == 48

    stopped = make_splits(load_dataset(tmp_path, group_by="folder"), replace(settings, patience=1))
    parts = [set(part.groups.tolist()) for part in (stopped.train, stopped.held_out, stopped.val)]
    assert all(len(part) == 1 for part in parts) and len(set.union(*parts)) == 3
