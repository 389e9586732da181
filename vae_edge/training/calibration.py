"""Probabilities that mean what they say: one temperature for all logits, fitted on images that were held out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import DataError
from vae_edge.metrics import expected_calibration_error

COLDEST, HOTTEST = 0.05, 20.0
STEPS = 60  # of golden sections, each to 0.618 of the one before: from a range of ln 400 to 2e-12
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature, 0.05 to 20, that makes the labels most likely (Guo et al. 2017, section 4.2).

    The negative log-likelihood is convex in 1/T, so it has one minimum over log T, which golden sections find. Where no
    image is wrong it has none (it falls for as long as T does): there is nothing to learn from, and 1 comes back.

    Args:
        logits: [N, K], raw, of images that were not trained on; labels: [N].

    Raises:
        DataError: if there are no images, their numbers differ, or a logit is not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or len(logits) == 0 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
        raise DataError(
            f"A temperature is fitted on finite logits [N, K] and labels [N] of at least one image, but logits "
            f"{list(logits.shape)} and labels {list(labels.shape)} came, or some logits are not finite."
        )
    truth = logits[np.arange(len(labels)), labels]
    if (truth >= logits.max(1)).all():
        return 1.0

    def cost(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        scaled = logits * scale
        largest = scaled.max(1)
        return float((largest + np.log(np.exp(scaled - largest[:, None]).sum(1)) - truth * scale).mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = cost(right)
    return math.exp((low + high) / 2.0)


def cross_fitted_ece(logits: NDArray[np.floating], labels: NDArray[np.int64], seed: int) -> dict[str, float]:
    """Expected calibration error without and with a temperature, where no image judges the one that it helped to fit.

    The images are dealt into two halves at random; each half gets the temperature that was fitted on the other.

    Args:
        logits: [N, K], raw, of images that were not trained on; labels: [N], at least two.

    Returns:
        `before` and `after`, the errors in [0, 1] over all images, and `temperature`, fitted on all of them.

    Raises:
        DataError: as `fit_temperature`, or if there are fewer than two images.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    temperature = fit_temperature(logits, labels)
    if len(labels) < 2:
        raise DataError("Calibration is judged on other images than it is fitted on: at least two are needed.")
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    calibrated = np.empty_like(logits)
    for judged, fitted in (halves, halves[::-1]):
        calibrated[judged] = _softmax(logits[judged] / fit_temperature(logits[fitted], labels[fitted]))
    return {
        "before": expected_calibration_error(_softmax(logits), labels),
        "after": expected_calibration_error(calibrated, labels),
        "temperature": temperature,
    }


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
