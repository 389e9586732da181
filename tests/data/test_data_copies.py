from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_makers import some_images, write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_edge.data import LabelledImages, check_no_leakage, count_duplicates, drop_duplicates_of, holdout, load_dataset
from vae_edge.data.splits import permutation
from vae_edge.errors import DataError


def pictures(kinds: list[int], labels: list[int]) -> LabelledImages:
    """Images of which those of one kind are alike."""
    images = np.zeros((len(kinds), 28, 28, 1), np.uint8)
    images[:, 3, 4, 0] = kinds
    return LabelledImages(images, np.array(labels, np.int64), tuple("abcdefgh"[: max(labels) + 1]))


def kinds(data: LabelledImages) -> list[int]:
    return data.images[:, 3, 4, 0].tolist()


def test_copies_are_counted_pixel_by_pixel() -> None:
    data = LabelledImages(some_images(20, channels=3), np.arange(20) % 2, ("a", "b"))
    assert count_duplicates(data) == 0
    data.images[[7, 12]] = data.images[3]
    data.images[19] = data.images[0]
    assert count_duplicates(data) == 3
    data.images[7, 27, 27, 2] ^= 1
    assert count_duplicates(data) == 2


def test_copies_stay_on_one_side_and_the_share_is_kept() -> None:
    data = pictures([*range(50), *range(50)], ([0] * 30 + [1] * 20) * 2)
    for seed in range(20):
        kept, held = holdout(data, 0.2, seed)
        assert not set(kinds(kept)) & set(kinds(held))
        assert len(kept) + len(held) == 100
        assert np.bincount(held.labels).tolist() == [12, 8]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=2, max_size=40), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_whatever_the_copies_the_sides_are_apart_or_it_is_refused(pairs: list[tuple[int, int]], seed: int) -> None:
    data = pictures([kind for kind, _ in pairs], [label for _, label in pairs])
    try:
        kept, held = holdout(data, 0.1, seed)
    except DataError as error:
        assert "single image" in str(error) or "copies of one another" in str(error)
        return
    assert not set(kinds(kept)) & set(kinds(held))
    assert set(kept.labels) == set(held.labels) == set(data.labels)
    assert sorted(kinds(kept) + kinds(held)) == sorted(kinds(data))


def test_one_picture_in_two_classes_stays_on_one_side_too() -> None:
    data = pictures([*range(20), *range(10, 30)], [0] * 20 + [1] * 20)
    for seed in range(20):
        kept, held = holdout(data, 0.2, seed)
        assert not set(kinds(kept)) & set(kinds(held)) and set(held.labels) == {0, 1}


def test_without_copies_the_split_is_the_plain_draw() -> None:
    data = pictures(list(range(70)), [0] * 40 + [1] * 30)
    held = holdout(data, 0.1, 5)[1]
    assert sorted(kinds(held)) == sorted(
        [*permutation(40, 5, stream=0)[:4].tolist(), *(40 + permutation(30, 5, stream=1)[:3]).tolist()]
    )


def test_a_picture_with_more_copies_than_the_share_trains() -> None:
    data = pictures([0] * 60 + list(range(1, 41)), [0] * 100)
    for seed in range(10):
        kept, held = holdout(data, 0.1, seed)
        assert 0 not in kinds(held) and len(held) == 10 and kinds(kept).count(0) == 60


def test_where_all_have_many_copies_the_picture_with_the_fewest_is_held_out() -> None:
    data = pictures([0] * 30 + [1] * 20 + [2] * 25 + list(range(10, 20)), [0] * 75 + [1] * 10)
    kept, held = holdout(data, 0.1, 0)
    assert kinds(held)[:-1] == [1] * 20 and len(held) == 21 and set(kinds(kept)) >= {0, 2}


def test_a_class_of_copies_of_one_picture_is_refused() -> None:
    with pytest.raises(DataError, match="The 8 images of class b are copies of one another"):
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


def test_unlabelled_copies_of_held_out_images_are_taken_out() -> None:
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
