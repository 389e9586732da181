"""Which classes look the same when they are rotated, found out from the errors that a model makes about their angle.

A shape that looks the same rotated by 180° has two angles, and no model can tell which one is meant: shown at random
angles, half of its errors are near 0° and half near 180°. A shape of order n has n such peaks of equal size. So the
errors of a trained model on held-out images say what comparing pixels cannot, whatever the polarity and the contrast.
A model that does not know a class yet says nothing of its shape: it may take an M for a W that is upside down.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import LabelledImages, rotate_dataset
from vae_edge.metrics import fold_degrees, wrap_degrees

ORDERS = (6, 5, 4, 3, 2)  # tried in this order: a shape of order 4 is also one of order 2
MIN_SHOWN, MIN_ERRORS = 32, 24  # rotated images of a class, and those of them whose class is right
MIN_IMAGES = 5  # different ones, of a class: one image says nothing of the others
MIN_RIGHT = 0.75  # fraction of a class's rotated images whose class the model must tell
ROTATIONS = 3000  # rotated images of all classes together
SIGNIFICANCE = 0.01
PEAK_FRACTION = 1 / 3  # of the distance between two peaks, that counts as near one: a third of uniform errors is near
MIN_NEAR = 0.5  # fraction of the errors that must be near a peak
MIN_PEAK = 0.5  # size of each peak, relative to equal peaks
UNEQUAL = 0.001  # a peak that has its size by chance with less probability is not one of equal peaks
NO_ANGLE = 0  # the order of a class of which no angle can be told
MAX_SPREAD_CLASSES = 0.5  # fraction of the classes that may have no angle; of more, it is the model's fault
MAX_RESULTANT = 0.3  # of the errors, and of their multiples, of such a class


def find_symmetry(
    predict: Callable[[NDArray[np.uint8]], tuple[NDArray[np.int64], NDArray[np.floating]]],
    images: LabelledImages,
    seed: int,
    fill: int = 0,
) -> dict[str, int]:
    """The classes that look the same when rotated, with the order of their symmetry.

    Each image is shown at several random angles, some 3,000 in all, at least 32 a class. Nothing is said of classes
    with fewer than 5 images, nor of those that the model gets right less than three times in four; of the others the
    images count whose class is right.

    Args:
        predict: images uint8 [N, S, S, C] to classes [N] and angles in degrees [N], of a model that was trained on any
            angle.
        images: held-out images, upright.
        seed: of the angles.
        fill: padding value, 0 to 255.

    Returns:
        the order by class: 2 for one that looks the same rotated by 180°, 3 by 120°, ...; 0 if no angle can be told.
    """
    counts = np.bincount(images.labels, minlength=len(images.classes))
    tried = [k for k, count in enumerate(counts) if count >= MIN_IMAGES]
    if not tried:
        return {}
    each = max(MIN_SHOWN, ROTATIONS // len(tried))
    chosen = np.concatenate([np.resize(np.flatnonzero(images.labels == k), each) for k in tried])
    rotated = rotate_dataset(images.take(chosen), 180.0, seed, fill)
    assert rotated.angles_deg is not None
    labels, angles_deg = predict(rotated.images)
    right, own = labels == rotated.labels, {k: rotated.labels == k for k in tried}
    errors = wrap_degrees(np.asarray(angles_deg, np.float64) - rotated.angles_deg)
    found = {
        images.classes[k]: symmetry_order(errors[own[k] & right]) for k in tried if right[own[k]].mean() >= MIN_RIGHT
    }
    spread = sum(order == NO_ANGLE for order in found.values())
    if spread > MAX_SPREAD_CLASSES * len(found):  # a model that tells no angles says nothing of shapes
        found = {name: order for name, order in found.items() if order != NO_ANGLE}
    return {name: order for name, order in found.items() if order != 1}


def symmetry_order(errors_deg: NDArray[np.floating]) -> int:
    """The order of the symmetry that signed angle errors [N] show, of images of one class at random angles.

    For an order n, most errors must be near multiples of 360°/n, and at least half of what equal peaks have there must
    be near those other than 0°, both beyond chance. Chance must explain the sizes of the peaks if all are equal.

    Returns:
        1 if they show none, also where there are too few; 0 if they are spread over the whole circle.
    """
    n = len(errors_deg)
    if n < MIN_ERRORS:
        return 1
    for order in ORDERS:
        step = 360.0 / order
        near = fold_degrees(errors_deg, order) <= PEAK_FRACTION * step / 2
        peaks = np.bincount(np.round(errors_deg[near] / step).astype(np.int64) % order, minlength=order)
        others = int(peaks[1:].sum())
        if (
            binomial_tail(int(near.sum()), n, MIN_NEAR) < SIGNIFICANCE
            and binomial_tail(others, n, MIN_PEAK * (order - 1) / order) < SIGNIFICANCE
            and all(_is_equal_share(count, int(near.sum()), order) for count in peaks.tolist())
        ):
            return order
    return NO_ANGLE if _is_spread(errors_deg) else 1


def _is_equal_share(count: int, n: int, order: int) -> bool:
    """Whether a peak may have `count` of `n` errors by chance if each of `order` peaks has as many."""
    fewer = binomial_tail(n - count, n, 1 - 1 / order)
    return min(binomial_tail(count, n, 1 / order), fewer) >= UNEQUAL


def _is_spread(errors_deg: NDArray[np.floating]) -> bool:
    """Whether errors lie all over the circle, with no peak at any multiple of a fraction of it."""
    angles = np.deg2rad(np.asarray(errors_deg, np.float64))
    return all(abs(np.exp(1j * order * angles).mean()) <= MAX_RESULTANT for order in (1, *ORDERS))


def binomial_tail(hits: int, n: int, probability: float) -> float:
    """The probability of at least `hits` successes in `n` trials."""
    terms = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(probability)
        + (n - k) * math.log1p(-probability)
        for k in range(hits, n + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))
