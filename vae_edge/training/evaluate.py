"""Evaluating anything that predicts on any labelled images, upright and turned. NumPy alone: for devices too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import LabelledImages, align_classes, rotated
from vae_edge.metrics import confusion, summarize

Arrays = tuple[NDArray[np.floating], ...]
Predict = Callable[[NDArray[np.uint8]], Arrays]
"""Images to probabilities [N, K], angles [N] in degrees, scores [N]; with a pose trunk also second-best angles [N] in
degrees and concentrations [N]."""


def arrays(predicted: Any) -> Arrays:
    """What `evaluate` wants, of the runtime's predictions or of PyTorch's outputs."""
    first = (predicted.probabilities, predicted.angles_deg, predicted.scores)
    if predicted.second_angles_deg is None:
        return first
    return (*first, predicted.second_angles_deg, predicted.concentrations)


def evaluate(
    predict: Predict,
    data: LabelledImages,
    classes: Sequence[str],
    threshold: float,
    range_deg: float,
    seed: int = 0,
    fill: int = 0,
    ambiguous: Sequence[str] = (),
    has_angle: bool = True,
) -> dict[str, Any]:
    """Measure a model on labelled images, turned by fixed angles within ±`range_deg`, and upright as well.

    `fill` comes in from outside the frame. Images that come with their angles (`angles_deg`) are taken as they are.
    A model without an angle encoder (`has_angle` false) gets no angle error.

    Returns:
        what `summarize` gives, `confusion` (rows are true classes); and, where the images were turned, `upright` with
        the figures of the images as they came.

    Raises:
        DataError: if the data does not fit the model's classes.
    """
    data = align_classes(data, classes)

    def figures(images: LabelledImages) -> dict[str, Any]:
        probabilities, angles_deg, scores, *doubts = predict(images.images)
        true_deg = images.angles_deg if images.angles_deg is not None else np.zeros(len(images), np.float32)
        result = summarize(
            probabilities,
            images.labels,
            classes,
            angles_deg if has_angle else None,
            true_deg if has_angle else None,
            scores,
            threshold,
            ambiguous,
            *(doubts if has_angle else ()),
        )
        table = confusion(images.labels, np.asarray(probabilities).argmax(1), len(classes))
        return {**result, "confusion": table.tolist()}

    if data.angles_deg is not None or range_deg == 0:
        return figures(data)
    return {**figures(rotated(data, range_deg, seed, fill)), "upright": figures(data)}
