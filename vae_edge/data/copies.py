"""Images with exactly the same pixels: folders from the field are full of them, and none may both train and judge."""

from __future__ import annotations

import hashlib

import numpy as np

from vae_edge.data.sets import LabelledImages
from vae_edge.errors import DataError


def digests(images: np.ndarray) -> list[bytes]:
    """BLAKE2b (RFC 7693) of each image's pixels, 128 bits; images of one shape, uint8 [N, H, W, C]."""
    rows = np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def first_alike(images: np.ndarray) -> np.ndarray:
    """For each image, the index of the first one with the same pixels: int64 [N], `arange(N)` where all differ."""
    seen: dict[bytes, int] = {}
    found = (seen.setdefault(digest, index) for index, digest in enumerate(digests(images)))
    return np.fromiter(found, np.int64, len(images))


def count_copies(data: LabelledImages) -> int:
    """How many images repeat an earlier one pixel by pixel, of whichever class."""
    return int((first_alike(data.images) != np.arange(len(data))).sum())


def leaked(held: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Which of the images `held` [N, H, W, C] are, pixel by pixel, among those to be trained on: bool [N]."""
    known = set(digests(trained_on))
    return np.array([digest in known for digest in digests(held)], dtype=bool)


def check_apart(kept: LabelledImages, held: LabelledImages, unlabelled: np.ndarray | None = None) -> None:
    """Check that no held-out image is trained on as well, under a label or (`unlabelled`, [M, H, W, C]) without one.

    Raises:
        DataError: some are; it says how many, and names the first.
    """
    for what, images in (("images to train on", kept.images), ("unlabelled images to train on", unlabelled)):
        if images is None:
            continue
        found = np.flatnonzero(leaked(held.images, images))
        if len(found):
            raise DataError(
                f"{len(found)} of the {len(held)} held-out images are also among the {what}, the first of them number "
                f"{found[0]} (class {held.classes[int(held.labels[found[0]])]}): what is measured on them would say "
                "nothing of images that are new. Take the copies out of one side."
            )


def apart_from(images: np.ndarray, judges: np.ndarray) -> np.ndarray:
    """Images [M, H, W, C] less those that are copies of ones that judge, [N, H, W, C]; itself where none are."""
    copies = leaked(images, judges)
    return images[~copies] if copies.any() else images
