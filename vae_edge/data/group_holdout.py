"""Hold out whole groups of images, so that figures on them say how good a model is on new makers, fonts or days."""

from __future__ import annotations

import numpy as np

from vae_edge.data.dataset import LabelledImages
from vae_edge.data.random_numbers import permutation
from vae_edge.errors import DataError
from vae_edge.text import printable

_STREAM = 2 << 32
"""First random stream of the orders that groups are tried in."""
MAX_ORDERS = 256
_MAX_STEPS = 20_000
"""Groups looked at in all orders together, beyond the first order."""
TOLERANCE = 0.1
"""A choice counts as even as the best one up to this difference in the root mean square, over the classes, of the held
out fraction's distance to the requested one. Among equals the first one is taken: the seed decides, not the groups'
sizes."""
_MAX_NAMED = 5


def hold_out_groups(data: LabelledImages, fraction: float, seed: int) -> np.ndarray:
    """Choose groups to hold out, so that about this fraction of each class is, and each class is on both sides.

    Groups are tried in random orders. In each, a group is taken where it adds a class that is not held out yet, or
    brings the held-out fractions of the classes nearer to the requested one. Of up to 256 orders the first is taken
    that is as even as the best one, up to `TOLERANCE`.

    Args:
        data: images with groups.
        fraction: requested fraction of each class, above 0 and below 1.
        seed: chooses the orders.

    Returns:
        bool [N]: whether an image is held out.

    Raises:
        DataError: there are fewer than two groups; a class is in one group alone; in no order that was tried is every
            class on both sides.
    """
    assert data.groups is not None
    names, member_of = np.unique(data.groups.astype(str), return_inverse=True)
    present = np.unique(data.labels)
    counts = np.zeros((len(names), len(data.classes)), np.int64)
    np.add.at(counts, (member_of, data.labels), 1)
    counts = counts[:, present]
    _check_groups(data, names, counts, present)

    sizes = counts.sum(0)
    tried: list[tuple[float, np.ndarray]] = []
    for number in range(max(1, min(MAX_ORDERS, _MAX_STEPS // len(names)))):
        chosen = _walk(counts, sizes, fraction, permutation(len(names), seed, stream=_STREAM + number))
        held = counts[chosen].sum(0)
        if (held > 0).all():
            tried.append((float(np.sqrt(np.mean((held / sizes - fraction) ** 2))), chosen))
    if not tried:
        raise DataError(
            f"Of the {len(names)} groups none can be held out so that every class is both trained on and held out: the "
            "classes share too few groups. Add images, drop classes or groups, or hold out single images, without "
            "--group-by."
        )
    best = min(distance for distance, _ in tried)
    chosen = next(chosen for distance, chosen in tried if distance <= best + TOLERANCE)
    held_out: np.ndarray = chosen[member_of]
    return held_out


def _walk(counts: np.ndarray, sizes: np.ndarray, fraction: float, order: np.ndarray) -> np.ndarray:
    """bool [G]: the groups taken in this order. `counts` [G, K] images of each group and class, `sizes` [K] of all."""
    chosen = np.zeros(len(counts), dtype=bool)
    held = np.zeros_like(sizes)
    cost = float("inf")
    for group in order.tolist():
        after = held + counts[group]
        if (after >= sizes).any():
            continue  # nothing of a class would be left to train on
        missing = int((after == 0).sum())
        new_cost = missing * len(sizes) + float(((after / sizes - fraction) ** 2).sum())  # missing classes count most
        if new_cost < cost:
            chosen[group], held, cost = True, after, new_cost
    return chosen


def _check_groups(data: LabelledImages, names: np.ndarray, counts: np.ndarray, present: np.ndarray) -> None:
    if len(names) < 2:
        only = f"all images are of the group {printable(str(names[0]))}" if len(names) else "there are no images"
        raise DataError(
            f"Whole groups can be held out of two groups or more, but {only}; hold out single images, without "
            "--group-by, or add images of other groups."
        )
    alone = np.flatnonzero((counts > 0).sum(0) == 1)
    if len(alone):
        named = [
            f"{data.classes[int(present[column])]} (in {printable(str(names[counts[:, column].argmax()]))})"
            for column in alone[:_MAX_NAMED].tolist()
        ]
        more = ", …" if len(alone) > _MAX_NAMED else ""
        raise DataError(
            f"{len(alone)} of the {len(present)} classes are in one group alone, and can only be trained on or held "
            f"out: {', '.join(named)}{more}; add images of them from other groups, drop them, or hold out single "
            "images, without --group-by."
        )
