"""Images of a data set that lie in a file: read where they are needed, in the form of an array.

`ImageView` has what the code that takes images uses of NumPy's arrays: `shape`, `dtype`, `len`, and reading by index.
What is read is an ordinary array, as large as the selection. Selecting images without reading them is `select`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

CHUNK_BYTES = 16 << 20
"""Images are read in chunks of about this size where all of them are looked at."""
DIGEST_BYTES = 16


class ImageStore:
    """Images in a file, one after the other, mapped into memory to be read."""

    def __init__(self, path: Path, shape: tuple[int, ...], digests: np.ndarray) -> None:
        """Map a file, which may be removed then.

        Args:
            path: holds uint8 of `shape` from its first byte on.
            shape: [N, H, W, C].
            digests: uint8 [N, 16]: of each image, as `digest` gives it.

        Raises:
            OSError, ValueError: the file cannot be mapped, or is too short.
        """
        self.pixels = np.asarray(np.memmap(path, np.uint8, "r", 0, shape))
        self.digests = digests


class ImageView:
    """Some images of a store, in an order: uint8 [N, H, W, C] to whoever reads."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, store: ImageStore, rows: np.ndarray) -> None:
        """`rows`: int64 [N], the images' positions in the store."""
        self.store, self.rows = store, rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        _, height, width, channels = self.store.pixels.shape
        return len(self.rows), height, width, channels

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all images, if they were read."""
        return self.size

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each image, uint8 [H, W, C]."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> np.ndarray:
        """The selected images, or parts of them, as an array: by whatever NumPy takes.

        Parts of all images are read chunk by chunk.
        """
        if not isinstance(key, tuple):
            return np.ascontiguousarray(self.store.pixels[self.rows[key]])
        first, *rest = key
        if first is Ellipsis or first is None or any(part is None for part in rest):
            return np.asarray(self)[key]
        if not isinstance(first, slice):
            found = self.store.pixels[self.rows[first]]
            return found[tuple(rest)] if found.ndim == 3 else found[(slice(None), *rest)]
        rows = self.rows[first]
        step = _images_in_chunk(self.shape)
        parts = [self.store.pixels[rows[at : at + step]][(slice(None), *rest)] for at in range(0, len(rows), step)]
        return np.concatenate(parts) if parts else self.store.pixels[:0][(slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images in memory, for NumPy."""
        if copy is False:
            raise ValueError("images in a file cannot become an array without a copy")
        images = np.empty(self.shape, np.uint8)
        for start, chunk in chunks(cast(np.ndarray, self)):
            images[start : start + len(chunk)] = chunk
        return images if dtype is None else images.astype(dtype)


def as_images(view: ImageView) -> np.ndarray:
    """A view where an array of images is expected, which it stands for."""
    return cast(np.ndarray, view)


def as_view(images: Any) -> ImageView | None:
    """The view that stands for an array of images; None for an array."""
    return images if isinstance(images, ImageView) else None


def select(images: np.ndarray, indices: Any) -> np.ndarray:
    """Some of the images, by integers [M], a mask [N] or a slice: a view of a view, else an array."""
    view = as_view(images)
    return images[indices] if view is None else as_images(ImageView(view.store, view.rows[indices]))


def in_memory(images: np.ndarray) -> np.ndarray:
    """The images as an array; an array itself is not copied."""
    return np.asarray(images)


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Images one after the other: a view if all that are any are views of one store, else an array."""
    some = [part for part in parts if len(part)]
    if len(some) == 1:
        return some[0]
    views = [view for part in some if (view := as_view(part)) is not None]
    if some and len(views) == len(some) and len({id(view.store) for view in views}) == 1:
        return as_images(ImageView(views[0].store, np.concatenate([view.rows for view in views])))
    return np.concatenate([np.asarray(part) for part in parts])


def chunks(images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """All images in pieces of bounded size: the index of the first image of each, and the piece, contiguous."""
    for start, chunk in _slices(images):
        yield start, np.ascontiguousarray(chunk)


def digests(images: np.ndarray) -> list[bytes]:
    """BLAKE2b with 128 bits of each image of uint8 [N, H, W, C]."""
    view = as_view(images)
    if view is not None:
        return [row.tobytes() for row in view.store.digests[view.rows]]
    return [digest(image) for _, chunk in chunks(images) for image in chunk]


def digest(image: np.ndarray) -> bytes:
    """BLAKE2b (RFC 7693) with 128 bits of an array's bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST_BYTES).digest()


def _slices(images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = _images_in_chunk(images.shape)
    return ((start, images[start : start + step]) for start in range(0, len(images), step))


def _images_in_chunk(shape: Sequence[int]) -> int:
    return max(1, CHUNK_BYTES // max(1, int(np.prod(shape[1:]))))
