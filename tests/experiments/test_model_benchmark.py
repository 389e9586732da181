"""The rows of the model's benchmark: their images, and the files of their results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vae_edge.data import Dataset, LabelledImages
from vae_edge.errors import CheckpointError, DataError
from vae_edge.experiments.model_benchmark import read_results, rotate_by_fixed_angles
from vae_edge.metrics import wrap_degrees


def upright(count: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    split = LabelledImages(images, np.arange(count, dtype=np.int64) % 2, ("a", "b"))
    return Dataset("noise", "noise", split, None)


def test_a_damaged_file_of_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model-upright.json"
    assert read_results(path) == {}
    for text, sentence in (("{", "damaged"), ('{"schema": 1}', "damaged"), ('{"schema": 7}', "schema 7")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=sentence):
            read_results(path)


def test_images_with_fixed_angles_train_or_test_and_their_angles_are_known() -> None:
    dataset = upright(300)
    split = dataset.train
    split.images[..., 0] = 0
    split.images[:, 2:14, 13:15, 0] = 200  # a hand that points upwards
    split.images[np.arange(300), 14, 14, 0] = np.arange(300) % 250  # by which each is known
    split.images[250:, 15, 14, 0] = 1
    first, test = rotate_by_fixed_angles(dataset, (100, 150), seed=3)
    again, _ = rotate_by_fixed_angles(dataset, (100, 150), seed=3)
    other, _ = rotate_by_fixed_angles(dataset, (100, 150), seed=4)
    assert (len(first.train), len(test)) == (100, 150) and first.test is None
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.images, other.train.images)
    for images in (first.train, test):
        rows, columns = np.mgrid[:28, :28] - 13.5
        weights = images.images[..., 0].astype(float)
        hand = np.rad2deg(np.arctan2(-(weights * columns).sum((1, 2)), -(weights * rows).sum((1, 2))))
        assert np.abs(wrap_degrees(hand - images.angles_deg)).max() < 4  # counter-clockwise from upwards
        assert images.angles_deg.std() > 80
    with pytest.raises(DataError, match="301 training images are needed, but there are 300"):
        rotate_by_fixed_angles(dataset, (100, 201), seed=3)


def test_a_copy_among_the_test_images_is_refused() -> None:
    dataset = upright(40)
    rotate_by_fixed_angles(dataset, (20, 20), seed=0)
    dataset.train.images[:] = dataset.train.images[0]
    with pytest.raises(DataError, match="also among the images to train on"):
        rotate_by_fixed_angles(dataset, (20, 20), seed=0)
