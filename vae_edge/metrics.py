"""Numbers out of predictions: accuracy, angle errors, calibration, areas under curves. NumPy alone: for every room."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share, of `right` of `n` (Wilson 1927); 0 to 1 where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.959964, right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def roc_curve(
    known: NDArray[np.floating], unknown: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of known and of unknown images whose score is at least each score that occurs, highest score first.

    Both begin with 0 and end with 1; the area between them, by trapezoids, is `auroc`.
    """
    limits = np.unique(np.concatenate([known, unknown]))[::-1]
    shares = (1.0 - np.searchsorted(np.sort(scores), limits) / len(scores) for scores in (known, unknown))
    false, true = (np.concatenate([[0.0], share]) for share in shares)
    return false, true


def reliability(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 15
) -> dict[str, NDArray[np.floating]]:
    """A reliability diagram: images sorted by the probability of their most probable class into equal bins of [0, 1].

    Args:
        probabilities: [N, K]; labels: [N].

    Returns:
        `confidence` (mean probability), `accuracy` and `count`, each [bins]; a bin (low, high] without images has 0s.
    """
    top = np.asarray(probabilities, np.float64).max(1)
    right = np.asarray(probabilities).argmax(1) == labels
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    shared = np.maximum(count, 1.0)
    confidence, accuracy = (np.bincount(place, weights, bins) / shared for weights in (top, right))
    return {"confidence": confidence, "accuracy": accuracy, "count": count}


def expected_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 15) -> float:
    """How far confidence is from accuracy, in [0, 1]: mean over images of their bin's gap (Guo et al. 2017, eq. 5)."""
    table = reliability(probabilities, labels, bins)
    gaps = np.abs(table["confidence"] - table["accuracy"])
    return float((gaps * table["count"]).sum() / max(1, len(labels)))


def negative_log_likelihood(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Mean of minus the logarithm of the true class's probability, in nats; probabilities [N, K], labels [N]."""
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
    ambiguous: Sequence[str] = (),
    second_angles_deg: NDArray[np.floating] | None = None,
    angle_confidences: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """What is said of a set of predictions.

    Args:
        probabilities: [N, K]; labels: [N]; classes: the K names.
        angles_deg, true_angles_deg: [N], counter-clockwise degrees; both or none.
        scores, threshold: [N] and the limit of acceptance; both or none.
        ambiguous: names of classes whose orientation cannot be told; the angle error is also given without them.
        second_angles_deg: [N], the second-best angles; `either_of_two` is the error of the better one of both.
        concentrations: [N], how sure each angle is; the error is also given of the surer half and of the other.

    Returns:
        `n`, `accuracy`, `balanced_accuracy` (the mean over the classes that have images of the share of their images
        that is found), `accuracy_by_class`, `images_by_class`, `expected_calibration_error`, and where given
        `angle_error_deg` and `accepted` (share of images).
    """
    predicted = np.asarray(probabilities).argmax(1)
    right = predicted == labels
    count = np.bincount(labels, minlength=len(classes))
    found = np.bincount(labels, weights=right, minlength=len(classes)) / np.maximum(count, 1)
    present = {name: k for k, name in enumerate(classes) if count[k]}
    result: dict[str, Any] = {
        "n": len(labels),
        "accuracy": round(float(right.mean()), 5),
        "balanced_accuracy": round(float(found[count > 0].mean()), 5),
        "accuracy_by_class": {name: round(float(found[k]), 5) for name, k in present.items()},
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
        if second_angles_deg is not None:
            errors["either_of_two"] = _either_error(angles_deg, second_angles_deg, true_angles_deg)
        if angle_confidences is not None:
            errors["by_concentration"] = _error_by_concentration(angles_deg, true_angles_deg, angle_confidences)
        result["angle_error_deg"] = errors
    if scores is not None and threshold is not None:
        result["accepted"] = round(float((np.asarray(scores) <= threshold).mean()), 5)
    return result


UNEQUAL = 1.5
"""Classes are unequal where the largest has more than this many times the images of the smallest."""
WORSE = 0.1
"""A class is clearly worse where its accuracy is so far below that of all images."""


def hides_classes(figures: Mapping[str, Any]) -> bool:
    """Whether the accuracy of all images, of what `summarize` gives, hides something about single classes.

    That is so where the classes are unequal, or one of them is clearly worse than all together.
    """
    counts = figures["images_by_class"].values()
    worst = min(figures["accuracy_by_class"].values())
    return max(counts) > UNEQUAL * min(counts) or worst <= figures["accuracy"] - WORSE


def _either_error(
    first_deg: NDArray[np.floating], second_deg: NDArray[np.floating], true_deg: NDArray[np.floating]
) -> dict[str, float]:
    """The angle error of whichever of two angles is nearer to the truth."""
    first, second = (
        np.abs(wrap_degrees(np.asarray(angle) - np.asarray(true_deg))) for angle in (first_deg, second_deg)
    )
    return angle_error(np.where(second < first, second_deg, first_deg), true_deg)


def _error_by_concentration(
    angles_deg: NDArray[np.floating], true_deg: NDArray[np.floating], angle_confidences: NDArray[np.floating]
) -> dict[str, float]:
    """Median angle error of the half of the images with the surest angles, and of the other half, in degrees."""
    error = np.abs(wrap_degrees(np.asarray(angles_deg) - np.asarray(true_deg)))
    order = np.argsort(-np.asarray(angle_confidences), kind="stable")
    surer, others = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    halves = {"median_of_the_surer_half": surer, "median_of_the_other_half": others}
    return {name: round(float(np.median(error[half])), 3) for name, half in halves.items() if len(half)}
