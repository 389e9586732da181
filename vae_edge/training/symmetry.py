"""Which classes look the same when turned or mirrored, read off the training images.

Where a class looks the same when turned, the orientation cannot be told; where it looks the same when mirrored,
mirrored images are images of that class as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import LabelledImages

REFERENCES, QUERIES = 4000, 150  # training images compared with; images of each class that are turned
AS_NEAR = 0.9  # share of upright images that count as near to their nearest neighbour
ALL_QUERIES = 2000  # and of all classes together
OWN, LEAST_OWN = 800, 10  # images of one class that its mirrored ones are compared with
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


def mirrored_alike(data: LabelledImages, seed: int = 0) -> dict[str, float]:
    """For each class the share of its images that pass for training images of that class when mirrored left to right.

    A mirrored image passes when its nearest neighbour among the other images of its class (cosine, over shifts of one
    pixel) is as near as that of 90% of the class's images as they are: 0.9 is what a mirror that changes nothing
    gives, less chance. Images: uint8 [N, S, S, C]. Classes with fewer than 10 images are left out.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    found = {}
    for label, name in enumerate(data.classes):
        own = order[data.labels[order] == label][:OWN]
        if len(own) < LEAST_OWN:
            continue
        reference = _normalized(data.images[own])
        images, rows = reference[:QUERIES], reference.reshape(len(own), -1)
        as_they_are = _nearest(images, rows, but_themselves=True)
        mirrored = _nearest(images[:, :, ::-1], rows, but_themselves=True)
        found[name] = round(float((mirrored >= np.quantile(as_they_are, 1 - AS_NEAR)).mean()), 3)
    return found


def _normalized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = images.astype(np.float32)
    return pixels / (np.linalg.norm(pixels.reshape(len(pixels), -1), axis=1)[:, None, None, None] + 1e-6)


def _nearest(
    images: NDArray[np.float32], reference: NDArray[np.float32], but_themselves: bool = False
) -> NDArray[np.float32]:
    """Cosine similarity of each image to its nearest reference, best over shifts of at most one pixel.

    `but_themselves`: the images are the first references, and none is compared with itself.
    """
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    best = np.full(len(images), -1, np.float32)
    for shift in shifts:
        similar = np.roll(images, shift, (1, 2)).reshape(len(images), -1) @ reference.T
        if but_themselves:
            np.fill_diagonal(similar, -1)
        best = np.maximum(best, similar.max(1))
    return best
