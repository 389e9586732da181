"""Held-out images that are nearly training images: the same picture, resized, brighter, mirrored or compressed anew."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16  # pixels, of the reduced images that are compared
MIN_CORRELATION = 0.99
MAX_HELD_OUT = 500  # held-out images that are compared
CHUNK = 4096  # training images at a time
MIN_CONTRAST = 1.0  # grey levels: the standard deviation below which an image is even, and like any other


@dataclass(frozen=True)
class NearCopies:
    """How many of the held-out images that were compared are near copies of a training image."""

    compared: int
    found: int

    @property
    def fraction(self) -> float:
        """Of the images compared."""
        return self.found / max(1, self.compared)

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)


def near_copies(held_out: NDArray[np.uint8], train: NDArray[np.uint8], seed: int = 0) -> NearCopies:
    """Compare held-out images [N, S, S, C] with all training images [M, S, S, C], as they are and mirrored.

    Both are reduced to 16×16 pixels, without their mean brightness and contrast. A near copy correlates with a training
    image by more than 0.99. Even images are left out. Of more than 500 held-out images some are chosen at random.
    """
    chosen = np.random.default_rng(seed).permutation(len(held_out))[:MAX_HELD_OUT]
    queries = _reduced(held_out[chosen])
    queries = queries[np.abs(queries).sum((1, 2, 3)) > 0]
    if not len(queries):
        return NearCopies(0, 0)
    rows = np.concatenate([queries, queries[:, :, ::-1]]).reshape(2 * len(queries), -1)
    best = np.full(len(rows), -1.0, np.float32)
    for start in range(0, len(train), CHUNK):
        part = _reduced(train[start : start + CHUNK])
        best = np.maximum(best, (rows @ part.reshape(len(part), -1).T).max(1))
    return NearCopies(len(queries), int((best.reshape(2, -1).max(0) > MIN_CORRELATION).sum()))


def _reduced(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [N, 16, 16, C] of mean 0 and norm 1; even images are all 0."""
    reduced = np.empty((len(images), SIDE, SIDE, images.shape[3]), np.float32)
    for row, image in zip(reduced, images, strict=True):
        whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        small = whole.resize((SIDE, SIDE), Image.Resampling.BOX)
        row[:] = np.asarray(small, np.float32).reshape(SIDE, SIDE, -1)
    reduced -= reduced.mean((1, 2, 3), keepdims=True)
    norm = np.sqrt(np.square(reduced).sum((1, 2, 3), keepdims=True))
    even = norm <= MIN_CONTRAST * np.sqrt(SIDE * SIDE * images.shape[3])
    result: NDArray[np.float32] = np.where(even, np.float32(0), reduced / np.maximum(norm, 1e-6))
    return result
