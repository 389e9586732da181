"""Which classes look the same when turned, read off the training images: there the orientation cannot be told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import LabelledImages

REFERENCES, QUERIES = 4000, 150  # training images compared with; images of each class that are turned
AS_NEAR = 0.9  # share of upright images that count as near to their nearest neighbour
ALL_QUERIES = 2000  # and of all classes together
ALIKE = 0.5  # share of turned images that must be as near, for a class to be ambiguous


def ambiguous_classes(data: LabelledImages, seed: int = 0) -> list[str]:
    """Names of classes most of whose images, turned by half a turn, pass for upright training images of some class.

    A turned image passes when its nearest neighbour (cosine, over shifts of one pixel) is as near as that of 90% of
    the class's own upright images. Images: uint8 [N, S, S, C], upright. Classes with fewer than 5 images are left out.
    """
    counts = np.bincount(data.labels, minlength=len(data.classes))
    order = np.random.default_rng(seed).permutation(len(data))
    queries = {
        name: order[data.labels[order] == k][: min(QUERIES, ALL_QUERIES // len(data.classes), counts[k] // 5)]
        for k, name in enumerate(data.classes)
    }
    used = np.concatenate(list(queries.values()))
    rest = order[~np.isin(order, used)][:REFERENCES]
    if len(rest) == 0:
        return []
    reference = _normalized(data.images[rest]).reshape(len(rest), -1)
    found = []
    for name, chosen in queries.items():
        if len(chosen) == 0:
            continue
        images = _normalized(data.images[chosen])
        upright, turned = _nearest(images, reference), _nearest(images[:, ::-1, ::-1], reference)
        if (turned >= np.quantile(upright, 1 - AS_NEAR)).mean() >= ALIKE:
            found.append(name)
    return found


def _normalized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = images.astype(np.float32)
    return pixels / (np.linalg.norm(pixels.reshape(len(pixels), -1), axis=1)[:, None, None, None] + 1e-6)


def _nearest(images: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of each image to its nearest reference, best over shifts of at most one pixel."""
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    similar = [(np.roll(images, s, (1, 2)).reshape(len(images), -1) @ reference.T).max(1) for s in shifts]
    return np.max(similar, axis=0)
