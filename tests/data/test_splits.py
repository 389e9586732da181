from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_makers import some_images, write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_edge.data import (
    Dataset,
    LabelledImages,
    check_no_leakage,
    check_trainable,
    count_duplicates,
    drop_duplicates_of,
    holdout,
    load_dataset,
    select_split,
    subsample_labels,
)
from vae_edge.data.random_numbers import permutation, random_bits, uniform
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


def test_holdout_takes_the_same_fraction_of_each_class_and_splits_everything() -> None:
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
    with pytest.raises(DataError, match="no test split"):
        select_split(alone, "test", 0.2, 1)
    for split in ("train", "validation"):
        with pytest.raises(DataError, match="no train split"):
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


def test_random_numbers_are_splitmix64s_published_ones_and_distributed_evenly() -> None:
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


def pictures(kinds: list[int], labels: list[int]) -> LabelledImages:
    """Images of which those of one kind are alike."""
    images = np.zeros((len(kinds), 28, 28, 1), np.uint8)
    images[:, 3, 4, 0] = kinds
    return LabelledImages(images, np.array(labels, np.int64), tuple("abcdefgh"[: max(labels) + 1]))


def kinds(data: LabelledImages) -> list[int]:
    return data.images[:, 3, 4, 0].tolist()


def test_duplicates_are_counted_pixel_by_pixel() -> None:
    data = LabelledImages(some_images(20, channels=3), np.arange(20) % 2, ("a", "b"))
    assert count_duplicates(data) == 0
    data.images[[7, 12]] = data.images[3]
    data.images[19] = data.images[0]
    assert count_duplicates(data) == 3
    data.images[7, 27, 27, 2] ^= 1
    assert count_duplicates(data) == 2


def test_duplicates_stay_on_one_side_and_the_quota_is_kept() -> None:
    data = pictures([*range(50), *range(50)], ([0] * 30 + [1] * 20) * 2)
    for seed in range(20):
        kept, held = holdout(data, 0.2, seed)
        assert not set(kinds(kept)) & set(kinds(held))
        assert len(kept) + len(held) == 100
        assert np.bincount(held.labels).tolist() == [12, 8]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=2, max_size=40), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_whatever_the_duplicates_the_sides_are_apart_or_it_is_refused(pairs: list[tuple[int, int]], seed: int) -> None:
    data = pictures([kind for kind, _ in pairs], [label for _, label in pairs])
    try:
        kept, held = holdout(data, 0.1, seed)
    except DataError as error:
        assert "single image" in str(error) or "duplicates of one another" in str(error)
        return
    assert not set(kinds(kept)) & set(kinds(held))
    assert set(kept.labels) == set(held.labels) == set(data.labels)
    assert sorted(kinds(kept) + kinds(held)) == sorted(kinds(data))


def test_one_picture_in_two_classes_stays_on_one_side_too() -> None:
    data = pictures([*range(20), *range(10, 30)], [0] * 20 + [1] * 20)
    for seed in range(20):
        kept, held = holdout(data, 0.2, seed)
        assert not set(kinds(kept)) & set(kinds(held)) and set(held.labels) == {0, 1}


def test_without_duplicates_the_split_is_the_plain_permutation() -> None:
    data = pictures(list(range(70)), [0] * 40 + [1] * 30)
    held = holdout(data, 0.1, 5)[1]
    assert sorted(kinds(held)) == sorted(
        [*permutation(40, 5, stream=0)[:4].tolist(), *(40 + permutation(30, 5, stream=1)[:3]).tolist()]
    )


def test_a_picture_with_more_duplicates_than_the_quota_trains() -> None:
    data = pictures([0] * 60 + list(range(1, 41)), [0] * 100)
    for seed in range(10):
        kept, held = holdout(data, 0.1, seed)
        assert 0 not in kinds(held) and len(held) == 10 and kinds(kept).count(0) == 60


def test_where_all_have_many_duplicates_the_picture_with_the_fewest_is_held_out() -> None:
    data = pictures([0] * 30 + [1] * 20 + [2] * 25 + list(range(10, 20)), [0] * 75 + [1] * 10)
    kept, held = holdout(data, 0.1, 0)
    assert kinds(held)[:-1] == [1] * 20 and len(held) == 21 and set(kinds(kept)) >= {0, 2}


def test_a_class_of_duplicates_of_one_picture_is_refused() -> None:
    with pytest.raises(DataError, match="The 8 images of class b are duplicates of one another"):
        holdout(pictures([*range(10), *[50] * 8], [0] * 10 + [1] * 8), 0.1, 0)


def test_a_planted_leak_is_found_and_named() -> None:
    data = pictures(list(range(40)), [0] * 20 + [1] * 20)
    kept, held = holdout(data, 0.2, 0)
    check_no_leakage(kept, held)
    check_no_leakage(kept, held, unlabelled=some_images(5, channels=1))
    planted = kept.images.copy()
    planted[7] = held.images[5]
    leaky = LabelledImages(planted, kept.labels, kept.classes)
    with pytest.raises(DataError, match=r"1 of the 8 held-out images .* images to train on.*number 5 \(class b\)"):
        check_no_leakage(leaky, held)
    with pytest.raises(DataError, match=r"2 of the 8 held-out images .* unlabelled images to train on"):
        check_no_leakage(kept, held, unlabelled=np.concatenate([some_images(5, channels=1), held.images[[1, 3]]]))


def test_unlabelled_duplicates_of_held_out_images_are_taken_out() -> None:
    held = pictures([1, 2, 3, 4], [0, 0, 1, 1])
    others = some_images(6, channels=1)
    assert drop_duplicates_of(others, held.images) is others
    mixed = np.concatenate([others[:3], held.images[[2, 0]], others[3:]])
    np.testing.assert_array_equal(drop_duplicates_of(mixed, held.images), others)


def test_a_folder_in_which_every_file_was_copied_is_split_without_a_leak(tmp_path: Path) -> None:
    write_image_folder(tmp_path, each=8)
    for file in list(tmp_path.glob("*/*.png")):
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    data = load_dataset(tmp_path).train
    assert count_duplicates(data) == 16
    kept, held = holdout(data, 0.25, 0)
    check_no_leakage(kept, held)
    assert np.bincount(held.labels).tolist() == [4, 4]


def numbered(counts: tuple[int, ...], angles: bool = False) -> LabelledImages:
    """Images whose first pixels hold their own number."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.zeros((len(labels), 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return LabelledImages(
        images, labels, tuple("abcdefgh"[: len(counts)]), np.arange(len(labels), dtype=np.float32) if angles else None
    )


def pixel_numbers(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_so_many_of_each_class_keep_their_labels_and_the_others_lose_them() -> None:
    few = subsample_labels(numbered((50, 30, 20), angles=True), 7, seed=3)
    assert np.bincount(few.labelled.labels).tolist() == [7, 7, 7] and few.labelled.classes == ("a", "b", "c")
    assert sorted(pixel_numbers(few.labelled.images) + pixel_numbers(few.unlabelled)) == list(range(100))
    assert pixel_numbers(few.unlabelled) == sorted(pixel_numbers(few.unlabelled))
    assert few.labelled.angles_deg.tolist() == pixel_numbers(few.labelled.images)
    assert few.unlabelled_angles_deg.tolist() == pixel_numbers(few.unlabelled)
    assert subsample_labels(numbered((5, 5)), 1, 0).unlabelled_angles_deg is None


FIVE_OF_SEED_1 = [9, 34, 36, 39, 42, 68, 79, 83, 116, 117]


"""Of two classes of 60, by SplitMix64 in plain Python; they must be these with every version of NumPy."""


def test_a_seed_always_samples_the_same_and_more_labels_hold_the_fewer() -> None:
    data = numbered((60, 60))
    first, again, other = (pixel_numbers(subsample_labels(data, 5, seed).labelled.images) for seed in (1, 1, 2))
    assert first == again != other
    assert first == FIVE_OF_SEED_1
    assert set(first) < set(pixel_numbers(subsample_labels(data, 20, 1).labelled.images))


def test_the_subset_has_nothing_to_do_with_what_is_held_out() -> None:
    """Were it the same order of pixel_numbers, it would take exactly what a holdout of that share takes."""
    data = numbered((100, 100))
    held = set(pixel_numbers(holdout(data, 0.5, 4)[1].images))
    drawn = pixel_numbers(subsample_labels(data, 50, 4).labelled.images)
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
