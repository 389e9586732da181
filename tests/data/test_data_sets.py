from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vae_edge.data import Dataset, LabelledImages, check_trainable, holdout, select_split
from vae_edge.data.dataset import join
from vae_edge.data.splits import permutation, random_bits, uniform
from vae_edge.errors import ConfigError, DataError


def made(counts: tuple[int, ...] = (40, 20, 10), angles: bool = False) -> LabelledImages:
    """Images whose first pixels hold their own number."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.zeros((len(labels), 28, 28, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    names = tuple("abcdefgh"[: len(counts)])
    return LabelledImages(images, labels, names, np.arange(len(labels), dtype=np.float32) if angles else None)


def numbers(data: LabelledImages) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": np.zeros((3, 28, 28), np.uint8)}, r"\[3, 28, 28\] came"),
        ({"images": np.zeros((3, 28, 28, 1), np.float32)}, "float32"),
        ({"images": np.zeros((3, 28, 28, 2), np.uint8)}, "1 or 3 channels"),
        ({"labels": np.zeros(2, np.int64)}, "one for each of the 3 images"),
        ({"labels": np.zeros(3, np.int32)}, "int32"),
        ({"labels": np.array([0, 1, 2])}, "Label 2 is outside the 2 classes"),
        ({"labels": np.array([0, -1, 1])}, "Label -1 is outside"),
        ({"angles_deg": np.zeros(2, np.float32)}, "Angles"),
        ({"angles_deg": np.array([0, np.nan, 0], np.float32)}, "NaN"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(change: dict, says: str) -> None:
    right = {
        "images": np.zeros((3, 28, 28, 1), np.uint8),
        "labels": np.array([0, 1, 1]),
        "classes": ("a", "b"),
        "angles_deg": np.zeros(3, np.float32),
    }
    assert len(LabelledImages(**right)) == 3
    with pytest.raises(DataError, match=says):
        LabelledImages(**{**right, **change})


def test_take_keeps_images_labels_and_angles_together() -> None:
    taken = made(angles=True).take(np.array([50, 3]))
    assert numbers(taken) == [50, 3] and taken.labels.tolist() == [1, 0] and taken.angles_deg.tolist() == [50, 3]


def test_halves_must_be_of_one_data_set() -> None:
    data = made()
    other_names = LabelledImages(data.images, data.labels, ("a", "b", "x"))
    other_size = LabelledImages(np.zeros((70, 32, 32, 1), np.uint8), data.labels, data.classes)
    assert Dataset("n", "s", data, data).classes == ("a", "b", "c")
    assert Dataset("n", "s", None, data).classes == ("a", "b", "c")
    for train, test, says in (
        (data, other_names, r"classes \(c, x\)"),
        (data, other_size, "shape"),
        (None, None, "no images"),
        (data.take(np.array([], dtype=int)), None, "no images"),
    ):
        with pytest.raises(DataError, match=says):
            Dataset("n", "s", train, test)


def test_fingerprint_tells_any_change_and_only_that() -> None:
    data = made()
    whole = Dataset("n", "s", data, None)
    assert whole.fingerprint() == Dataset("other name", "elsewhere", made(), None).fingerprint()
    brighter = LabelledImages(data.images.copy(), data.labels, data.classes)
    brighter.images[5, 5, 5] += 1
    relabelled = LabelledImages(data.images, data.labels[::-1].copy(), data.classes)
    renamed = LabelledImages(data.images, data.labels, ("a", "b", "d"))
    others = [Dataset("n", "s", half, None) for half in (brighter, relabelled, renamed)] + [
        Dataset("n", "s", None, data)
    ]
    assert len({each.fingerprint() for each in [whole, *others]}) == 5
    assert len(whole.fingerprint()) == hashlib.sha256().digest_size * 2


def test_holdout_takes_the_same_share_of_each_class_and_splits_the_whole() -> None:
    kept, held = holdout(made(), 0.1, seed=0)
    assert np.bincount(held.labels).tolist() == [4, 2, 1] and np.bincount(kept.labels).tolist() == [36, 18, 9]
    assert sorted(numbers(kept) + numbers(held)) == list(range(70))
    assert numbers(kept) == sorted(numbers(kept))


def test_holdout_repeats_for_a_seed_and_differs_for_another() -> None:
    first, again, other = (numbers(holdout(made(), 0.2, seed)[1]) for seed in (3, 3, 4))
    assert first == again != other


def test_holdout_of_small_classes_leaves_something_on_both_sides() -> None:
    for fraction in (0.01, 0.99):
        kept, held = holdout(made((2, 3)), fraction, 0)
        assert set(kept.labels) == set(held.labels) == {0, 1}
    with pytest.raises(DataError, match="Class b has a single image"):
        holdout(made((5, 1)), 0.5, 0)
    for wrong in (0, 1, -0.5, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            holdout(made(), wrong, 0)


def test_splits_are_what_their_names_say() -> None:
    train, test = made(), made((6, 6, 6))
    both, alone, only_test = (Dataset("n", "s", *halves) for halves in ((train, test), (train, None), (None, test)))
    kept, held = holdout(train, 0.2, 1)
    assert numbers(select_split(both, "train", 0.2, 1)) == numbers(kept)
    assert numbers(select_split(both, "validation", 0.2, 1)) == numbers(held)
    assert select_split(both, "test", 0.2, 1) is test and select_split(both, "auto", 0.2, 1) is test
    assert numbers(select_split(both, "all", 0.2, 1)) == numbers(train) + numbers(test)
    assert numbers(select_split(alone, "auto", 0.2, 1)) == numbers(held)
    assert select_split(only_test, "all", 0.2, 1) is test
    with pytest.raises(DataError, match="no test half"):
        select_split(alone, "test", 0.2, 1)
    for split in ("train", "validation"):
        with pytest.raises(DataError, match="no training half"):
            select_split(only_test, split, 0.2, 1)
    with pytest.raises(ConfigError, match="'dev'"):
        select_split(both, "dev", 0.2, 1)


def test_one_class_or_nothing_is_not_trainable() -> None:
    check_trainable(made((2, 2)))
    check_trainable(made((2, 0, 2)))
    with pytest.raises(DataError, match=r"one class \(b\)"):
        check_trainable(made((0, 5)))
    with pytest.raises(DataError, match="no images"):
        check_trainable(made((0, 0)))


def test_joining_keeps_angles_only_where_all_have_them() -> None:
    with_angles, without = made(angles=True), made()
    assert join([with_angles, with_angles]).angles_deg.shape == (140,)
    assert join([with_angles, without]).angles_deg is None


def test_random_numbers_are_splitmix64s_published_ones_and_spread_evenly() -> None:
    # The first outputs of the reference code for the state 1234567 are published.
    def reference(state: int, count: int) -> list[int]:
        found = []
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
            found.append(z ^ (z >> 31))
        return found

    assert reference(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    def finish(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    for seed, stream in ((0, 0), (7, 3)):
        state = finish(finish(seed) ^ finish(~stream % 2**64))
        assert random_bits(3, seed, stream).tolist() == reference(state, 3)
    values = uniform(100_000, seed=5)
    assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.005
    assert np.abs(np.histogram(values, 10)[0] / 10_000 - 1).max() < 0.05
    assert sorted(permutation(100, 1).tolist()) == list(range(100)) != permutation(100, 1).tolist()
