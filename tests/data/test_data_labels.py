from __future__ import annotations

import numpy as np
import pytest

from vae_edge.data import LabelledImages, holdout, subsample_labels
from vae_edge.errors import ConfigError, DataError


def numbered(counts: tuple[int, ...], angles: bool = False) -> LabelledImages:
    """Images whose first pixels hold their own number."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.zeros((len(labels), 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return LabelledImages(
        images, labels, tuple("abcdefgh"[: len(counts)]), np.arange(len(labels), dtype=np.float32) if angles else None
    )


def numbers(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_so_many_of_each_class_keep_their_labels_and_the_others_lose_them() -> None:
    few = subsample_labels(numbered((50, 30, 20), angles=True), 7, seed=3)
    assert np.bincount(few.labelled.labels).tolist() == [7, 7, 7] and few.labelled.classes == ("a", "b", "c")
    assert sorted(numbers(few.labelled.images) + numbers(few.unlabelled)) == list(range(100))
    assert numbers(few.unlabelled) == sorted(numbers(few.unlabelled))
    assert few.labelled.angles_deg.tolist() == numbers(few.labelled.images)
    assert few.unlabelled_angles_deg.tolist() == numbers(few.unlabelled)
    assert subsample_labels(numbered((5, 5)), 1, 0).unlabelled_angles_deg is None


FIVE_OF_SEED_1 = [9, 34, 36, 39, 42, 68, 79, 83, 116, 117]
"""Of two classes of 60, by SplitMix64 in plain Python; they must be these with every version of NumPy."""


def test_a_seed_always_draws_the_same_and_more_labels_hold_the_fewer() -> None:
    data = numbered((60, 60))
    first, again, other = (numbers(subsample_labels(data, 5, seed).labelled.images) for seed in (1, 1, 2))
    assert first == again != other
    assert first == FIVE_OF_SEED_1
    assert set(first) < set(numbers(subsample_labels(data, 20, 1).labelled.images))


def test_the_draw_has_nothing_to_do_with_what_is_held_out() -> None:
    """Were it the same order of numbers, it would take exactly what a holdout of that share takes."""
    data = numbered((100, 100))
    held = set(numbers(holdout(data, 0.5, 4)[1].images))
    drawn = numbers(subsample_labels(data, 50, 4).labelled.images)
    assert 30 < len(held & set(drawn)) < 70


def test_all_labels_may_be_kept_and_classes_without_images_are_passed_over() -> None:
    few = subsample_labels(numbered((4, 0, 4)), 4, 0)
    assert len(few.labelled) == 8 and few.unlabelled.shape == (0, 28, 28, 1)


def test_more_labels_than_images_and_fewer_than_one_are_refused() -> None:
    with pytest.raises(DataError, match="6 labels a class are asked for, but class b has 5 images"):
        subsample_labels(numbered((10, 5)), 6, 0)
    for wrong in (0, -3):
        with pytest.raises(ConfigError, match="at least 1"):
            subsample_labels(numbered((10, 5)), wrong, 0)
