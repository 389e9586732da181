"""Numbers out of predictions: accuracy, angle errors, areas under curves. NumPy alone: every room can use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def wrap_degrees(angle_deg: NDArray[np.floating]) -> NDArray[np.float64]:
    """Angles brought into (-180, 180], degrees."""
    wrapped = np.mod(np.asarray(angle_deg, np.float64) + 180.0, 360.0) - 180.0
    return np.where(wrapped == -180.0, 180.0, wrapped)


def angle_error(predicted_deg: NDArray[np.floating], true_deg: NDArray[np.floating]) -> dict[str, float]:
    """Absolute errors on the circle: median, mean and 90th percentile in degrees, share beyond 90° in [0, 1]."""
    error = np.abs(wrap_degrees(np.asarray(predicted_deg, np.float64) - np.asarray(true_deg, np.float64)))
    return {
        "median": round(float(np.median(error)), 3),
        "mean": round(float(error.mean()), 3),
        "p90": round(float(np.quantile(error, 0.9)), 3),
        "beyond_90": round(float((error > 90).mean()), 5),
    }


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts [K, K]: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def auroc(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """Probability that an unknown image scores higher than a known one, ties counted half (Mann-Whitney U)."""
    both = np.concatenate([known, unknown])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = ranks[inverse][len(known) :].sum()
    return float((rank_sum - len(unknown) * (len(unknown) + 1) / 2.0) / (len(known) * len(unknown)))


def summarize(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    angles_deg: NDArray[np.floating] | None = None,
    true_angles_deg: NDArray[np.floating] | None = None,
    scores: NDArray[np.floating] | None = None,
    threshold: float | None = None,
    ambiguous: Sequence[str] = (),
) -> dict[str, Any]:
    """What is said of a set of predictions.

    Args:
        probabilities: [N, K]; labels: [N]; classes: the K names.
        angles_deg, true_angles_deg: [N], counter-clockwise degrees; both or none.
        scores, threshold: [N] and the limit of acceptance; both or none.
        ambiguous: names of classes whose orientation cannot be told; the angle error is also given without them.

    Returns:
        `n`, `accuracy`, `accuracy_by_class`, and where given `angle_error_deg` and `accepted` (share of images).
    """
    predicted = np.asarray(probabilities).argmax(1)
    right = predicted == labels
    result: dict[str, Any] = {
        "n": len(labels),
        "accuracy": round(float(right.mean()), 5),
        "accuracy_by_class": {
            name: round(float(right[labels == k].mean()), 5) for k, name in enumerate(classes) if (labels == k).any()
        },
    }
    if angles_deg is not None and true_angles_deg is not None:
        errors: dict[str, Any] = dict(angle_error(angles_deg, true_angles_deg))
        clear = ~np.isin(labels, [k for k, name in enumerate(classes) if name in ambiguous])
        if len(ambiguous) and clear.any():
            errors["without_ambiguous"] = {
                **angle_error(np.asarray(angles_deg)[clear], np.asarray(true_angles_deg)[clear]),
                "ambiguous_classes": list(ambiguous),
            }
        result["angle_error_deg"] = errors
    if scores is not None and threshold is not None:
        result["accepted"] = round(float((np.asarray(scores) <= threshold).mean()), 5)
    return result
