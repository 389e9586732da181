"""Which classes look the same when turned, read off the training images: there the orientation cannot be told."""

from __future__ import annotations

import numpy as np

from vae_edge.data import LabelledImages

ALIKE = 0.75  # correlation from which two mean images count as the same


def ambiguous_classes(data: LabelledImages, alike: float = ALIKE) -> list[str]:
    """Names of classes whose mean image, turned by half a turn, resembles a class's mean image (its own or another's).

    Images: uint8 [N, S, S, C], upright. Resemblance is the correlation of the pixels.
    """
    count = len(data.classes)
    present = [k for k in range(count) if (data.labels == k).any()]
    means = np.stack([data.images[data.labels == k].mean(0).ravel() for k in present])
    centred = means - means.mean(1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12
    turned = centred.reshape(len(present), *data.images.shape[1:])[:, ::-1, ::-1].reshape(len(present), -1)
    correlation = centred @ turned.T
    return [data.classes[k] for row, k in enumerate(present) if correlation[row].max() >= alike]
