"""Metrics of predictions: accuracy, angle errors, calibration, areas under curves. NumPy alone: for every package."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIZE_RATIO = 1.5
"""Classes are unbalanced if the largest has more than this many times the images of the smallest."""
MIN_ACCURACY_GAP = 0.1
"""A class is clearly worse if its accuracy is at least this far below that of all images."""


def wrap_degrees(angle_deg: NDArray[np.floating]) -> NDArray[np.float64]:
    """The same directions in (-180, 180] degrees."""
    wrapped: NDArray[np.float64] = 180.0 - np.mod(180.0 - np.asarray(angle_deg, np.float64), 360.0)
    return wrapped


def angle_error(predicted_deg: NDArray[np.floating], true_deg: NDArray[np.floating]) -> dict[str, float]:
    """Absolute errors on the circle: median, mean and 90th percentile in degrees, fraction beyond 90°."""
    error = np.abs(wrap_degrees(np.asarray(predicted_deg, np.float64) - np.asarray(true_deg, np.float64)))
    return {
        "median": round(float(np.median(error)), 3),
        "mean": round(float(error.mean()), 3),
        "p90": round(float(np.quantile(error, 0.9)), 3),
        "beyond_90": round(float((error > 90).mean()), 5),
    }


def fold_degrees(angle_deg: NDArray[np.floating], order: int) -> NDArray[np.float64]:
    """The distance in [0, 180 / order] degrees to the nearest multiple of 360° / order: the error of an angle of which
    `order` are the same, as with a shape that looks the same rotated by 360° / order."""
    folded: NDArray[np.float64] = np.abs(wrap_degrees(np.asarray(angle_deg, np.float64) * order)) / order
    return folded


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Confusion matrix [K, K]: rows are true classes, columns predicted ones."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def frequent_confusions(table: NDArray[np.int64], classes: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """The most frequent mistakes of a confusion matrix [K, K], as JSON.

    Returns:
        up to `most` objects, the most frequent first: `class`, `predicted` (names), `count`, and `of`, the images of
        the class.
    """
    counts = np.array(table, np.int64)
    of = counts.sum(1)
    np.fill_diagonal(counts, 0)
    rows, columns = np.unravel_index(np.argsort(-counts, axis=None, kind="stable")[:most], counts.shape)
    return [
        {"class": classes[i], "predicted": classes[j], "count": int(counts[i, j]), "of": int(of[i])}
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        if counts[i, j]
    ]


def auroc(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """Probability that an OOD image scores higher than an in-distribution one; ties count half (Mann-Whitney U)."""
    both = np.concatenate([known, unknown])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = ranks[inverse][len(known) :].sum()
    return float((rank_sum - len(unknown) * (len(unknown) + 1) / 2.0) / (len(known) * len(unknown)))


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a fraction, `right` of `n` (Wilson 1927); 0 to 1 if n is 0."""
    if n == 0:
        return 0.0, 1.0
    z, fraction = 1.959964, right / n
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    return max(0.0, centre - margin), min(1.0, centre + margin)


def roc_curve(
    known: NDArray[np.floating], unknown: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ROC curve: false and true positive rates, with each score that occurs as the threshold, highest first.

    An OOD (unknown) image with at least that score is a true positive. Both rates go from 0 to 1. The area under the
    curve, by trapezoids, is `auroc`.
    """
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    rates = (1.0 - np.searchsorted(np.sort(scores), thresholds) / len(scores) for scores in (known, unknown))
    false_positive, true_positive = (np.concatenate([[0.0], rate]) for rate in rates)
    return false_positive, true_positive


def reliability(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 15
) -> dict[str, NDArray[np.floating]]:
    """Reliability diagram: images in equal bins of [0, 1] by the probability of their most probable class.

    Args:
        probabilities: [N, K]; labels: [N].

    Returns:
        `confidence` (mean probability), `accuracy` and `count`, each [bins]. A bin (low, high] without images has 0s.
    """
    top = np.asarray(probabilities, np.float64).max(1)
    right = np.asarray(probabilities).argmax(1) == labels
    bin_of = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins).astype(np.float64)
    divisor = np.maximum(count, 1.0)
    confidence, accuracy = (np.bincount(bin_of, weights, bins) / divisor for weights in (top, right))
    return {"confidence": confidence, "accuracy": accuracy, "count": count}


def expected_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 15) -> float:
    """ECE in [0, 1]: mean over images of |confidence - accuracy| of their bin (Guo et al. 2017, eq. 5)."""
    table = reliability(probabilities, labels, bins)
    gaps = np.abs(table["confidence"] - table["accuracy"])
    return float((gaps * table["count"]).sum() / max(1, len(labels)))


def negative_log_likelihood(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the true class, in nats; probabilities [N, K], labels [N]."""
    of_truth = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean())


def summarize(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    angles_deg: NDArray[np.floating] | None = None,
    true_angles_deg: NDArray[np.floating] | None = None,
    scores: NDArray[np.floating] | None = None,
    threshold: float | None = None,
    ambiguous: Collection[str] = (),
    second_angles_deg: NDArray[np.floating] | None = None,
    angle_confidences: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """The figures of a set of predictions, as a JSON object.

    Args:
        probabilities: [N, K]; labels: [N]; classes: the K names.
        angles_deg, true_angles_deg: [N], counter-clockwise degrees; both or none.
        scores, threshold: [N] anomaly scores, and the highest score that is accepted; both or none.
        ambiguous: names of classes without a definite orientation; the angle error is also given without them. A
            mapping gives the order of each one's symmetry as well: 2 if it looks the same rotated by 180°, 0 if no
            angle can be told. Then the error is also given up to symmetry, without classes of order 0.
        second_angles_deg: [N], the second angles; `either_of_two` is the error of the better one of both.
        angle_confidences: [N]; the error is also given of the half with higher confidences, and of the other half.

    Returns:
        `n`, `accuracy`, `balanced_accuracy` (mean accuracy of the classes that have images), `accuracy_by_class`,
        `images_by_class`, `expected_calibration_error`, and where given `angle_error_deg` and `accepted` (fraction of
        images).
    """
    predicted = np.asarray(probabilities).argmax(1)
    right = predicted == labels
    count = np.bincount(labels, minlength=len(classes))
    class_accuracy = np.bincount(labels, weights=right, minlength=len(classes)) / np.maximum(count, 1)
    present = {name: k for k, name in enumerate(classes) if count[k]}
    result: dict[str, Any] = {
        "n": len(labels),
        "accuracy": round(float(right.mean()), 5),
        "balanced_accuracy": round(float(class_accuracy[count > 0].mean()), 5),
        "accuracy_by_class": {name: round(float(class_accuracy[k]), 5) for name, k in present.items()},
        "images_by_class": {name: int(count[k]) for name, k in present.items()},
        "expected_calibration_error": round(expected_calibration_error(probabilities, labels), 5),
    }
    if angles_deg is not None and true_angles_deg is not None:
        errors: dict[str, Any] = dict(angle_error(angles_deg, true_angles_deg))
        clear = ~np.isin(labels, [k for k, name in enumerate(classes) if name in ambiguous])
        if len(ambiguous) and clear.any():
            errors["without_ambiguous"] = {
                **angle_error(np.asarray(angles_deg)[clear], np.asarray(true_angles_deg)[clear]),
                "ambiguous_classes": list(ambiguous),
            }
        if isinstance(ambiguous, Mapping) and len(ambiguous):
            folded = _error_up_to_symmetry(angles_deg, true_angles_deg, labels, classes, ambiguous)
            if folded is not None:
                errors["up_to_symmetry"] = folded
        if second_angles_deg is not None:
            errors["either_of_two"] = _either_error(angles_deg, second_angles_deg, true_angles_deg)
        if angle_confidences is not None:
            errors["by_angle_confidence"] = _error_by_confidence(angles_deg, true_angles_deg, angle_confidences)
        result["angle_error_deg"] = errors
    if scores is not None and threshold is not None:
        result["accepted"] = round(float((np.asarray(scores) <= threshold).mean()), 5)
    return result


def hides_classes(figures: Mapping[str, Any]) -> bool:
    """Whether the overall accuracy of `summarize` hides something about single classes.

    It does if the classes are unbalanced, or if one of them is clearly worse than all together.
    """
    counts = figures["images_by_class"].values()
    worst = min(figures["accuracy_by_class"].values())
    return max(counts) > MAX_SIZE_RATIO * min(counts) or worst <= figures["accuracy"] - MIN_ACCURACY_GAP


def _error_up_to_symmetry(
    angles_deg: NDArray[np.floating],
    true_deg: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    orders: Mapping[str, int],
) -> dict[str, float] | None:
    """The angle error where all angles at which a class looks the same are right; None if no class has an angle."""
    order = np.array([orders.get(name, 1) for name in classes])[labels]
    told = order > 0
    if not told.any():
        return None
    error = np.asarray(angles_deg, np.float64) - np.asarray(true_deg, np.float64)
    folded = np.zeros(len(error))
    for k in np.unique(order[told]).tolist():
        folded[order == k] = fold_degrees(error[order == k], k)
    return angle_error(folded[told], np.zeros(int(told.sum())))


def _either_error(
    first_deg: NDArray[np.floating], second_deg: NDArray[np.floating], true_deg: NDArray[np.floating]
) -> dict[str, float]:
    """The angle error of the better of two angles."""
    first, second = (
        np.abs(wrap_degrees(np.asarray(angle) - np.asarray(true_deg))) for angle in (first_deg, second_deg)
    )
    return angle_error(np.where(second < first, second_deg, first_deg), true_deg)


def _error_by_confidence(
    angles_deg: NDArray[np.floating], true_deg: NDArray[np.floating], confidences: NDArray[np.floating]
) -> dict[str, float]:
    """Median angle error in degrees of the half of the images with the highest angle confidences, and of the other."""
    error = np.abs(wrap_degrees(np.asarray(angles_deg) - np.asarray(true_deg)))
    order = np.argsort(-np.asarray(confidences), kind="stable")
    surer, others = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    halves = {"median_of_the_surer_half": surer, "median_of_the_other_half": others}
    return {name: round(float(np.median(error[half])), 3) for name, half in halves.items() if len(half)}
