"""Evaluating anything that predicts on any labelled images, upright and turned. NumPy alone: for devices too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import LabelledImages, align_classes, rotated
from vae_edge.metrics import confusion, summarize

Arrays = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]
Predict = Callable[[NDArray[np.uint8]], Arrays]  # images to probabilities, angles in degrees, scores


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
        `n`, `accuracy`, `accuracy_by_class`, `angle_error_deg`, `accepted`, `confusion` (rows are true classes); and,
        where the images were turned, `upright` with the figures of the images as they came.

    Raises:
        DataError: if the data does not fit the model's classes.
    """
    data = align_classes(data, classes)

    def figures(images: LabelledImages) -> dict[str, Any]:
        probabilities, angles_deg, scores = predict(images.images)
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
        )
        table = confusion(images.labels, np.asarray(probabilities).argmax(1), len(classes))
        return {**result, "confusion": table.tolist()}

    if data.angles_deg is not None or range_deg == 0:
        return figures(data)
    return {**figures(rotated(data, range_deg, seed, fill)), "upright": figures(data)}
