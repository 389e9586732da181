"""Whole groups are held out: each class on both sides, evenly, by the seed; or a sentence says why not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_edge.data import LabelledImages, holdout
from vae_edge.errors import DataError


def made(counts: dict[str, tuple[int, ...]], unique: bool = True) -> LabelledImages:
    """Images of groups: for each group the number of images of each class. All pixels differ if `unique`."""
    labels, groups = [], []
    for name, numbers in counts.items():
        for label, count in enumerate(numbers):
            labels += [label] * count
            groups += [name] * count
    images = np.zeros((len(labels), 28, 28, 1), np.uint8)
    if unique:
        images[:, 0, :3, 0] = np.stack([np.arange(len(labels)) // 256**k % 256 for k in range(3)], 1)
    texts = np.empty(len(groups), dtype=object)
    texts[:] = groups
    classes = tuple(f"c{index}" for index in range(len(next(iter(counts.values())))))
    return LabelledImages(images, np.array(labels, dtype=np.int64), classes, groups=texts)


def held_groups(data: LabelledImages, fraction: float = 0.1, seed: int = 0) -> set[str]:
    kept, held = holdout(data, fraction, seed)
    assert kept.groups is not None and held.groups is not None
    assert not set(kept.groups) & set(held.groups), "a group is on both sides"
    assert len(kept) + len(held) == len(data)
    for side in (kept, held):
        assert (np.bincount(side.labels, minlength=len(data.classes)) > 0).all(), "a class is missing on one side"
    return set(held.groups)


def test_of_a_few_makers_one_is_held_out_and_the_seed_says_which() -> None:
    makers = made(dict.fromkeys(("apple", "google", "twitter", "facebook"), (5, 5, 5)))
    found = [held_groups(makers, seed=seed) for seed in range(20)]
    assert all(len(groups) == 1 for groups in found) and len(set().union(*found)) == 4
    assert held_groups(makers, seed=3) == found[3]


def test_of_many_fonts_the_requested_fraction_of_each_class_is_held_out() -> None:
    fonts = made({f"font {index}": (2, 2, 1) for index in range(100)})
    for fraction in (0.1, 0.3):
        _, held = holdout(fonts, fraction, seed=1)
        assert np.abs(np.bincount(held.labels) / np.array([200, 200, 100]) - fraction).max() <= 0.011


def test_an_uneven_choice_is_not_taken_where_an_even_one_is_there() -> None:
    uneven = made({"huge": (60, 60), "large": (30, 30), **{f"day {index}": (1, 1) for index in range(10)}})
    for seed in range(20):
        assert held_groups(uneven, seed=seed) <= {f"day {index}" for index in range(10)}


def test_classes_in_different_groups_are_all_covered() -> None:
    scattered = made({"a": (9, 0, 0), "b": (0, 9, 0), "c": (0, 0, 9), "d": (9, 0, 0), "e": (0, 9, 9), "f": (1, 1, 1)})
    for seed in range(10):
        held_groups(scattered, seed=seed)


def test_what_cannot_be_held_out_is_told_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"two groups or more, but all images are of the group apple; hold out single"):
        holdout(made({"apple": (5, 5)}), 0.1, 0)
    with pytest.raises(DataError, match=r"1 of the 3 classes are in one group alone.*c2 \(in b\); add images of them"):
        holdout(made({"a": (5, 5, 0), "b": (5, 5, 5), "c": (1, 1, 0)}), 0.1, 0)
    with pytest.raises(DataError, match="the classes share too few groups"):  # each in two, but no choice covers all
        holdout(made({"1": (3, 0, 3), "2": (3, 3, 0), "3": (0, 3, 3)}), 0.1, 0)


def test_held_out_images_that_repeat_kept_ones_of_other_groups_are_in_neither_part() -> None:
    data = made(dict.fromkeys(("apple", "google"), (4, 4)))
    data.images[[0, 8]] = 7  # a picture that both makers have
    kept, held = holdout(data, 0.4, 0)
    assert len(kept) == 8 and len(held) == 7
    assert not {image.tobytes() for image in kept.images} & {image.tobytes() for image in held.images}
    with pytest.raises(DataError, match="All held-out images of c0, c1 are exact duplicates of the images of other"):
        holdout(made({"apple": (4, 4), "google": (4, 4)}, unique=False), 0.4, 0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    table=st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=9),
    fraction=st.sampled_from((0.05, 0.1, 0.3, 0.6)),
    seed=st.integers(0, 2**31 - 1),
)
def test_whatever_the_groups_are_no_group_and_no_class_is_torn_apart(
    table: list[tuple[int, int, int]], fraction: float, seed: int
) -> None:
    data = made({f"g{index}": row for index, row in enumerate(table)})
    if not len(data):
        return
    counts = np.array(table)
    present = counts.sum(0) > 0
    subsets = (np.arange(1, 2 ** len(table) - 1)[:, None] >> np.arange(len(table))) & 1  # every choice there is
    sums = subsets @ counts
    possible = ((sums > 0) & (sums < counts.sum(0)))[:, present].all(1) if len(subsets) else np.zeros(0, bool)
    try:
        kept, held = holdout(data, fraction, seed)
    except DataError:
        assert not possible.any(), "a choice was there"
        return
    assert not set(kept.groups) & set(held.groups)  # type: ignore[arg-type]
    for side in (kept, held):
        assert (np.bincount(side.labels, minlength=3)[present] > 0).all()
    if possible.any():
        distance = np.sqrt(np.mean((sums[possible][:, present] / counts.sum(0)[present] - fraction) ** 2, axis=1))
        found = np.bincount(held.labels, minlength=3)[present] / counts.sum(0)[present]
        assert np.sqrt(np.mean((found - fraction) ** 2)) <= distance.min() + 0.2, "much more even choices are there"


@pytest.mark.alone
def test_ten_thousand_groups_take_seconds_at_most() -> None:
    rng = np.random.default_rng(0)
    data = made({f"g{index}": tuple(rng.integers(0, 3, 10).tolist()) for index in range(10_000)})
    began = time.process_time()
    _, held = holdout(data, 0.1, 0)
    assert time.process_time() - began < 20
    assert abs(len(held) / len(data) - 0.1) < 0.01
