"""A few labels a class, and the other images without theirs: what learning from few labels is tried on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae_edge.data.numbers import permutation
from vae_edge.data.sets import LabelledImages
from vae_edge.errors import ConfigError, DataError

_STREAM = 1 << 32
"""Draws of labels begin at this stream of numbers, so that they have nothing to do with what is held out."""


@dataclass(frozen=True)
class FewLabels:
    """Images that keep their labels, and those that lost them; both in the data's own order."""

    labelled: LabelledImages
    unlabelled: np.ndarray
    """uint8 [M, H, W, C]; M is 0 where every image kept its label."""
    unlabelled_angles_deg: np.ndarray | None
    """float32 [M], how far each of them is turned; None where it is not known."""


def draw_labels(data: LabelledImages, per_class: int, seed: int) -> FewLabels:
    """Keep the labels of `per_class` images of each class: the same ones for the same seed on any machine.

    More labels of the same seed hold the fewer ones. Classes without any image are passed over.

    Raises:
        ConfigError: fewer than one label a class.
        DataError: a class has fewer images than labels are asked.
    """
    if per_class < 1:
        raise ConfigError(f"{per_class} labels a class: expected at least 1.")
    kept = np.zeros(len(data), dtype=bool)
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        if 0 < len(members) < per_class:
            raise DataError(
                f"{per_class} labels a class are asked for, but class {name} has {len(members)} images to train on; "
                "ask for fewer, or add images."
            )
        kept[members[permutation(len(members), seed, stream=_STREAM + label)[:per_class]]] = True
    angles = None if data.angles_deg is None else data.angles_deg[~kept]
    return FewLabels(data.take(np.flatnonzero(kept)), data.images[~kept], angles)
