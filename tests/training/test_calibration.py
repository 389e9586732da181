"""Temperatures: against SciPy's optimizer, on logits whose temperature is known, and on what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from vae_edge.errors import DataError
from vae_edge.metrics import expected_calibration_error
from vae_edge.training.evaluate import cross_fitted_ece, fit_temperature


def drawn(count: int, temperature: float, seed: int = 0, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (count, classes))
    cumulated = softmax(logits / temperature, axis=1).cumsum(1)
    labels = (rng.uniform(size=(count, 1)) > cumulated[:, :-1]).sum(1)
    return logits.astype(np.float32), labels


def likelihood(log_temperature: float, logits: np.ndarray, labels: np.ndarray) -> float:
    scaled = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
    return -scaled[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 7.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature: float):
    logits, labels = drawn(20_000, temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    best = minimize_scalar(likelihood, bounds=(-3, 3), args=(logits, labels), method="bounded", options={"xatol": 1e-9})
    assert fitted == pytest.approx(np.exp(best.x), rel=1e-5)


def test_logits_of_any_size_are_fitted_within_the_bounds():
    logits, labels = drawn(2000, 1.0)
    assert fit_temperature(logits * 1e4, labels) == pytest.approx(20.0, rel=1e-6)
    assert fit_temperature(logits * 1e-4, labels) == pytest.approx(0.05, rel=1e-6)


def test_where_nothing_is_wrong_there_is_nothing_to_fit():
    logits, _ = drawn(50, 1.0)
    assert fit_temperature(logits, logits.argmax(1)) == 1.0


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64)),
        (np.zeros((4, 3)), np.zeros(3, np.int64)),
        (np.full((2, 3), np.nan), np.zeros(2, np.int64)),
        (np.zeros(3), np.zeros(3, np.int64)),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits: np.ndarray, labels: np.ndarray):
    with pytest.raises(DataError, match="finite logits"):
        fit_temperature(logits, labels)


def test_calibration_is_mended_and_judged_on_the_other_half():
    logits, labels = drawn(6000, 2.5)
    told = cross_fitted_ece(logits, labels, seed=0)
    assert told["before"] == pytest.approx(expected_calibration_error(softmax(logits, axis=1), labels), abs=1e-5)
    assert told["before"] > 0.1 and told["after"] < 0.02
    assert told["temperature"] == pytest.approx(2.5, rel=0.05)
    assert cross_fitted_ece(logits, labels, seed=0) == told


def test_an_image_does_not_help_to_judge_itself():
    # Two images, one of them wrong: each one's temperature is fitted on the other. The wrong one alone asks for the
    # hottest, so the right one is judged at 20; the right one alone says nothing, so the wrong one is judged at 1.
    logits, labels = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 1])
    at_20, at_1 = softmax([0.1, 0.0])[0], softmax([2.0, 0.0])[0]
    told = cross_fitted_ece(logits, labels, seed=0)
    assert told["after"] == pytest.approx(((1 - at_20) + at_1) / 2, abs=1e-6)
    with pytest.raises(DataError, match="at least two"):
        cross_fitted_ece(logits[:1], labels[:1], seed=0)
