"""Images in a file stand for an array: the same values by whatever index, and selections that read nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_edge import framing
from vae_edge.data import Dataset, LabelledImages, count_duplicates, holdout, rotate_dataset, subsample_labels
from vae_edge.data import images as module
from vae_edge.data.images import ImageStore, ImageView, as_images, as_view, chunks, concatenate, digests, select
from vae_edge.data.splits import duplicates_of
from vae_edge.data.transforms import contact_sheet
from vae_edge.preprocess import measure_background, measure_input

COUNT = 60


@pytest.fixture
def array() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 30, 3), dtype=np.uint8)
    pixels[7] = pixels[3]
    return pixels


@pytest.fixture
def view(array: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The same in a file, in another order, looked at through a view, in chunks of four images."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 28 * 30 * 3 + 5)
    order = np.random.default_rng(1).permutation(COUNT)
    path = tmp_path / "x.bin"
    path.write_bytes(array[order].tobytes() + b"more")
    found = np.frombuffer(b"".join(digests(array[order])), np.uint8).reshape(COUNT, 16)
    store = ImageStore(path, array.shape, found)
    path.unlink()  # a mapped file may be removed
    return as_images(ImageView(store, np.argsort(order)))


KEYS: tuple[Any, ...] = (
    0, -1, np.int64(5), slice(None), slice(3, 20), slice(None, None, 7), slice(0), slice(5, 1, -1), [4, 4, 1],
    np.array([9, 2, 59]), np.arange(COUNT) % 3 == 0, np.zeros(0, np.int64), Ellipsis,
    (5,), (5, 0), (5, slice(2, 9), 1), (5, ..., 0), (np.array([1, 2]), slice(3)), (slice(None), 0),
    (slice(None), slice(1, -1), -1), (slice(2, 40), 3, 4), (slice(0), 0), (..., 0), (slice(None), ..., 1),
    (slice(None, None, -1), slice(None, None, -1)), ([3, 1], ..., None), (None, 3),
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_index_reads_what_it_reads_of_an_array(array: np.ndarray, view: np.ndarray, key: Any) -> None:
    found = view[key]
    assert type(found) is np.ndarray and found.dtype == np.uint8
    assert found.shape == array[key].shape and (found == array[key]).all()


def test_it_has_the_form_of_an_array_and_becomes_one(array: np.ndarray, view: np.ndarray) -> None:
    assert (view.shape, view.dtype, view.ndim, len(view), view.nbytes) == (
        array.shape,
        np.uint8,
        4,
        COUNT,
        array.nbytes,
    )
    assert (np.asarray(view) == array).all() and (np.asarray(view, np.float32) == array).all()
    assert (np.stack(list(view)) == array).all()
    with pytest.raises(IndexError):
        view[COUNT]
    with pytest.raises(ValueError, match="without a copy"):
        np.array(view, copy=False) if np.__version__ >= "2" else as_view(view).__array__(copy=False)  # type: ignore[union-attr]


def test_selections_and_joins_stay_in_the_file(array: np.ndarray, view: np.ndarray) -> None:
    odd = select(view, np.arange(COUNT) % 2 == 1)
    assert as_view(odd) is not None and (np.asarray(odd) == array[1::2]).all()
    joined = concatenate([select(odd, slice(3)), select(view, np.array([0])), array[:0]])
    assert as_view(joined) is not None and (np.asarray(joined) == array[[1, 3, 5, 0]]).all()
    mixed = concatenate([odd, array[:2]])
    assert as_view(mixed) is None and len(mixed) == 32
    assert select(array, slice(2)).base is array and concatenate([array[:0], array]) is array
    assert concatenate([array[:0], array[:0]]).shape == (0, 28, 30, 3)


def test_chunks_are_bounded_and_all(array: np.ndarray, view: np.ndarray) -> None:
    for images in (array, view):
        parts = list(chunks(images))
        assert max(len(part) for _, part in parts) == 4 and all(part.flags.c_contiguous for _, part in parts)
        assert (np.concatenate([part for _, part in parts]) == array).all()
        assert [start for start, _ in parts] == list(range(0, COUNT, 4))


def test_whatever_is_measured_is_that_of_the_array(
    array: np.ndarray, view: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "_MAX_CHUNK_BYTES", 5 * 28 * 30 * 3)
    array[:40, 4:-4, 4:-4] //= 8
    assert digests(view) != digests(array)  # those of the file, which was written before
    labels = (np.arange(COUNT) % 2).astype(np.int64)
    in_file = LabelledImages(view, labels, ("a", "b"))
    known = LabelledImages(np.asarray(view), labels, ("a", "b"))
    assert (
        Dataset("x", "x", in_file, None, view).fingerprint()
        == Dataset("x", "x", known, None, known.images).fingerprint()
    )
    assert measure_input(known.images) == measure_input(view) and measure_background(view) == "none"
    assert count_duplicates(in_file) == count_duplicates(known) == 1
    assert (duplicates_of(view, known.images[:5]) == duplicates_of(known.images, known.images[:5])).all()
    for one, other in zip(holdout(in_file, 0.2, 3), holdout(known, 0.2, 3), strict=True):
        assert as_view(one.images) is not None
        assert (np.asarray(one.images) == other.images).all() and (one.labels == other.labels).all()
    few, same = subsample_labels(in_file, 4, 0), subsample_labels(known, 4, 0)
    assert as_view(few.unlabelled) is not None and (np.asarray(few.unlabelled) == same.unlabelled).all()
    square = LabelledImages(select(view, slice(None)), labels, ("a", "b"))
    assert (rotate_dataset(square, seed=1).images == rotate_dataset(known, seed=1).images).all()
    assert contact_sheet(in_file).tobytes() == contact_sheet(known).tobytes()
    assert type(in_file.in_memory().images) is np.ndarray
