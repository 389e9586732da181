from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vae_edge.data import Dataset, LabelledImages
from vae_edge.data.dataset import join
from vae_edge.errors import DataError


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


def test_splits_must_be_of_one_data_set() -> None:
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


def test_joining_keeps_angles_only_where_all_have_them() -> None:
    with_angles, without = made(angles=True), made()
    assert join([with_angles, with_angles]).angles_deg.shape == (140,)
    assert join([with_angles, without]).angles_deg is None
