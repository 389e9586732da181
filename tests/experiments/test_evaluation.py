"""What is measured of a trained model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from vae_edge.data import Dataset, LabelledImages
from vae_edge.experiments.evaluation import false_rejection, int8_loss, ood_images


def upright(count: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    split = LabelledImages(images, np.arange(count, dtype=np.int64) % 2, ("a", "b"))
    return Dataset("noise", "noise", split, None)


def test_the_rate_of_false_rejections_is_that_of_images_which_set_no_threshold() -> None:
    rng = np.random.default_rng(1)
    scores, fast = rng.normal(size=20_000), rng.exponential(size=20_000)
    rates = false_rejection(SimpleNamespace(scores=scores, fast_scores=fast), 0.05, seed=0)
    deviation = math.sqrt(2 * 0.05 * 0.95 / 20_000)  # the thresholds vary as the measured fractions do
    assert abs(rates["full"] - 0.05) < 4 * deviation and abs(rates["fast"] - 0.05) < 4 * deviation
    few = np.arange(4.0)  # one fold's threshold, near its largest, is passed by what is larger in the other alone
    rates = false_rejection(SimpleNamespace(scores=few, fast_scores=few), 0.01, seed=0)
    assert rates["full"] in (0.25, 0.5)


def test_what_int8_loses_is_counted_by_the_worst_kind() -> None:
    fp32 = {"accuracy": 0.99, "expected_calibration_error": 0.01, "auroc": {"a": 0.9, "b": 0.99}}
    int8 = {"accuracy": 0.985, "expected_calibration_error": 0.03, "auroc": {"a": 0.91, "b": 0.95}}
    loss = int8_loss(fp32, int8)
    assert (loss["accuracy"], loss["expected_calibration_error"]) == (pytest.approx(0.005), pytest.approx(0.02))
    assert loss["auroc"] == pytest.approx(0.04)


def test_letters_and_clothes_are_rotated_as_far_as_the_known_images() -> None:
    known, clothes = upright(30).train, upright(50).train
    straight = ood_images(known, 0.0, clothes, seed=0)
    assert {image.tobytes() for image in straight["clothes"]} <= {image.tobytes() for image in clothes.images}
    rotate_dataset = ood_images(known, 180.0, clothes, seed=0)
    assert set(rotate_dataset) == set(straight) and all(len(images) == 30 for images in rotate_dataset.values())
    assert not {image.tobytes() for image in rotate_dataset["clothes"]} & {image.tobytes() for image in clothes.images}
    assert not np.array_equal(rotate_dataset["drawn letters"], straight["drawn letters"])
    assert "clothes" not in ood_images(known, 0.0, None, seed=0)
