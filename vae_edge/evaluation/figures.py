"""Figures of anything that predicts: on labelled images, rotated and upright, and on images that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import LabelledImages, align_classes, rotate_dataset
from vae_edge.metrics import auroc, confusion, frequent_confusions, summarize, wilson_interval

Arrays = tuple[NDArray[np.floating], ...]
Predict = Callable[[NDArray[np.uint8]], Arrays]
"""Images to probabilities [N, K], angles [N] in degrees and scores [N]; with an orientation encoder also second angles
[N] in degrees and angle confidences [N]."""

EVALUATION_BATCH = 500  # images between two calls of `progress`
UNKNOWN_ROTATION_SEED = 7  # added to the seed, for the angles of unknown images


def arrays(predicted: Any) -> Arrays:
    """What `evaluate` takes, of the runtime's predictions or of PyTorch's outputs."""
    first = (predicted.probabilities, predicted.angles_deg, predicted.scores)
    if predicted.second_angles_deg is None:
        return first
    return (*first, predicted.second_angles_deg, predicted.angle_confidences)


def in_batches(predict: Predict, progress: Callable[[int, int], None] | None) -> Predict:
    """The same predictions, some hundred images at a time, so that progress can be shown."""

    def run(images: NDArray[np.uint8]) -> Arrays:
        parts = []
        for start in range(0, len(images), EVALUATION_BATCH):
            parts.append(predict(images[start : start + EVALUATION_BATCH]))
            if progress is not None:
                progress(min(start + EVALUATION_BATCH, len(images)), len(images))
        return tuple(np.concatenate(values) for values in zip(*parts, strict=True))

    return run


@dataclass(frozen=True)
class Measured:
    """Images as they were shown to a model, and what it predicted for them.

    Attributes:
        images: with labels in the order of the model's classes.
        predicted: as `Predict` gives it.
        upright: the same images as they came, if `images` were rotated.
    """

    images: LabelledImages
    predicted: Arrays
    upright: Measured | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """Predicted classes [N]."""
        labels: NDArray[np.int64] = np.asarray(self.predicted[0]).argmax(1)
        return labels

    @property
    def scores(self) -> NDArray[np.floating]:
        """Anomaly scores [N]."""
        return np.asarray(self.predicted[2])


def measure(
    predict: Predict, data: LabelledImages, classes: Sequence[str], range_deg: float, seed: int = 0, fill: int = 0
) -> Measured:
    """Predict labelled images, rotated by fixed angles within ±`range_deg`, and upright.

    Args:
        data: images. Those that come with their angles (`angles_deg`) are taken as they are.
        classes: of the model.
        range_deg: largest rotation; 0: upright only.
        seed: of the angles.
        fill: padding value, 0 to 255.

    Raises:
        DataError: if the data does not fit the model's classes.
    """
    data = align_classes(data, classes)
    upright = Measured(data, predict(data.images))
    if data.angles_deg is not None or range_deg == 0:
        return upright
    rotated = rotate_dataset(data, range_deg, seed, fill)
    return Measured(rotated, predict(rotated.images), upright)


def figures(
    measured: Measured,
    classes: Sequence[str],
    threshold: float,
    ambiguous: Collection[str] = (),
    has_angle: bool = True,
) -> dict[str, Any]:
    """The figures of `summarize`, of the confusion matrix, and in `upright` those of the images as they came.

    Args:
        threshold: the largest accepted score.
        ambiguous: as in `summarize`.
        has_angle: whether the model has an orientation encoder. Without one there is no angle error.

    Returns:
        also `accuracy_interval` (95%), `classes` (the names of the rows and columns of `confusion`, rows are true
        classes) and `confusions` (the most frequent ones).
    """
    probabilities, angles_deg, scores, *uncertainty = measured.predicted
    images = measured.images
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
        *(uncertainty if has_angle else ()),
    )
    table = confusion(images.labels, measured.labels, len(classes))
    right = int((measured.labels == images.labels).sum())
    result |= {
        "accuracy_interval": [round(end, 5) for end in wilson_interval(right, len(images))],
        "classes": list(classes),
        "confusion": table.tolist(),
        "confusions": frequent_confusions(table, classes),
    }
    if measured.upright is not None:
        result["upright"] = figures(measured.upright, classes, threshold, ambiguous, has_angle)
    return result


def evaluate(
    predict: Predict,
    data: LabelledImages,
    classes: Sequence[str],
    threshold: float,
    range_deg: float,
    seed: int = 0,
    fill: int = 0,
    ambiguous: Collection[str] = (),
    has_angle: bool = True,
) -> dict[str, Any]:
    """Measure a model on labelled images, rotated by fixed angles within ±`range_deg`, and upright.

    Arguments and result are those of `measure` and `figures`.

    Raises:
        DataError: if the data does not fit the model's classes.
    """
    return figures(measure(predict, data, classes, range_deg, seed, fill), classes, threshold, ambiguous, has_angle)


def group_figures(measured: Measured, threshold: float, trained_on: set[str] | None = None) -> dict[str, Any]:
    """How figures differ between the groups of the images (makers, fonts, cameras, days), as JSON.

    Args:
        measured: images with groups.
        threshold: the largest accepted score.
        trained_on: the groups that were trained on; None: they are not known.

    Returns:
        `groups` (number), `unseen` (number of those that were not trained on, or None), and of the worst group by
        accuracy and of the one that is rejected most often `name`, `n` and the fraction.
    """
    groups = measured.images.groups
    assert groups is not None
    right, rejected = measured.labels == measured.images.labels, measured.scores > np.float32(threshold)
    names = np.unique(groups).tolist()
    rows = [(name, groups == name) for name in names]
    accuracies = [(float(right[own].mean()), name, int(own.sum())) for name, own in rows]
    rejections = [(float(rejected[own].mean()), name, int(own.sum())) for name, own in rows]
    low, high = min(accuracies), max(rejections)
    return {
        "groups": len(names),
        "unseen": None if trained_on is None else sum(name not in trained_on for name in names),
        "worst_accuracy": {"name": low[1], "n": low[2], "accuracy": round(low[0], 5)},
        "most_rejected": {"name": high[1], "n": high[2], "rejected": round(high[0], 5)},
    }


def rotate_unknown(images: NDArray[np.uint8], range_deg: float, seed: int = 0, fill: int = 0) -> NDArray[np.uint8]:
    """Unknown images uint8 [M, S, S, C], rotated as far as the known ones, from which their corners would tell them."""
    if range_deg == 0:
        return images
    labelled = LabelledImages(images, np.zeros(len(images), np.int64), ("unknown",))
    return rotate_dataset(labelled, range_deg, seed + UNKNOWN_ROTATION_SEED, fill).images


def rejection(
    known: NDArray[np.floating], unknown: Mapping[str, NDArray[np.floating]], threshold: float
) -> dict[str, Any]:
    """How the anomaly score tells unknown images from known ones, as JSON.

    Args:
        known: scores [N] of known images; unknown: scores [M] of unknown images, by name.
        threshold: the largest accepted score, compared in float32 as at prediction.

    Returns:
        `threshold`, `known_rejected` (fraction), `known_rejected_interval` (95%), and in `unknown` by name `n`, `auroc`
        and `accepted` (fraction).
    """
    limit = np.float32(threshold)
    rejected = int((known > limit).sum())
    return {
        "threshold": threshold,
        "known_rejected": round(rejected / len(known), 5),
        "known_rejected_interval": [round(end, 5) for end in wilson_interval(rejected, len(known))],
        "unknown": {
            name: {
                "n": len(scores),
                "auroc": round(auroc(known, scores), 5),
                "accepted": round(float((scores <= limit).mean()), 5),
            }
            for name, scores in unknown.items()
        },
    }
