"""Predictions, evaluation, temperatures and thresholds.

Nothing of the held-out images gets into what is fitted, and the threshold that they set holds on fresh ones.
Temperatures are compared with SciPy's optimizer, on logits whose temperature is known.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from prepared import prepare
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from vae_edge.data import Dataset, LabelledImages, align_classes, holdout, rotate_dataset
from vae_edge.errors import CheckpointError, DataError
from vae_edge.evaluation.figures import arrays, evaluate
from vae_edge.metrics import expected_calibration_error, wrap_degrees
from vae_edge.model import AngleVAE
from vae_edge.training import evaluate as evaluate_module
from vae_edge.training.checkpoint import (
    MODEL,
    Checkpoint,
    load_checkpoint,
    load_samples,
    read_tensors,
)
from vae_edge.training.config import TrainConfig
from vae_edge.training.evaluate import cross_fitted_ece, fit_score, fit_temperature, predict
from vae_edge.training.trainer import train

SETTINGS = TrainConfig(epochs=3, batch=64)


EARLY_STOPPING = TrainConfig(epochs=2, batch=64, patience=1, rotation="none")


SET_ON_HELD_OUT = {"temperature"}  # and, in the result's metadata, the thresholds


def train_and_read(
    data: Dataset, out: Path, settings: TrainConfig = EARLY_STOPPING
) -> tuple[dict[str, torch.Tensor], dict]:
    train(*prepare(data, settings), out)
    return read_tensors(out / MODEL)


def clear_digits(digits: Dataset) -> LabelledImages:
    """Test digits of the classes that have one way up."""
    return digits.test.take(np.flatnonzero(np.isin(digits.test.labels, [2, 3, 4, 5, 7])))


@pytest.mark.parametrize("rotation", ["full", "none"])
def test_images_that_are_rotated_batch_by_batch_are_those_rotated_at_once(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, rotation: str
) -> None:
    assert digits.train is not None
    images = digits.train.take(np.linspace(0, len(digits.train) - 1, 25).astype(int))
    _, config = prepare(digits, TrainConfig(rotation=rotation))
    monkeypatch.setattr(evaluate_module, "BATCH", 10)
    batches = list(evaluate_module._rotated_batches(images, config, seed=7))
    assert [len(batch) for batch in batches] == [10, 10, 5]
    at_once = evaluate_module.rotate_like_training(images, config, seed=7).images
    np.testing.assert_array_equal(np.concatenate(batches), at_once)
    assert (at_once != images.images).any() == (rotation == "full")


@pytest.mark.parametrize(("quarters", "expected"), [(0, 0), (1, 90), (2, 180), (3, -90)])
def test_digits_rotated_by_quarters_counter_clockwise_as_displayed_have_positive_angles(
    checkpoint: Checkpoint, digits: Dataset, quarters: int, expected: int
):
    """`rot90` turns rows, which go down, and columns, which go right: counter-clockwise as a person sees them."""
    mark = np.zeros((28, 28), np.uint8)
    mark[2, 13] = 255  # at the top; a quarter turn counter-clockwise takes it to the left
    assert np.rot90(mark, 1)[14, 2] == 255
    turned = np.rot90(clear_digits(digits).images, quarters, axes=(1, 2))
    told = predict(checkpoint.model, np.ascontiguousarray(turned))
    apart = np.abs(wrap_degrees(told.angles_deg - expected))
    assert np.median(apart) < 15 and (apart > 90).mean() < 0.1
    assert (told.angles_deg > -180).all() and (told.angles_deg <= 180).all()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(degrees=st.floats(-180, 180, exclude_min=True))
@example(degrees=180.0)
@example(degrees=-179.9)
@example(degrees=179.0)
@example(degrees=-90.0)
def test_rotating_the_input_rotates_the_reported_angle_by_as_much(
    checkpoint: Checkpoint, digits: Dataset, degrees: float
):
    """For classes that have one way up, within the median error that the run states for all."""
    clear = clear_digits(digits).take(np.arange(150))
    upright = predict(checkpoint.model, clear.images)
    pages = [np.asarray(Image.fromarray(i[..., 0]).rotate(degrees, Image.Resampling.BILINEAR)) for i in clear.images]
    turned = predict(checkpoint.model, np.stack(pages)[..., None])
    apart = np.abs(wrap_degrees(turned.angles_deg - upright.angles_deg - degrees))
    stated = checkpoint.result.validation["angle_error_deg"]["median"]
    assert np.median(apart) <= stated
    if stated < abs(degrees) < 180 - stated:
        other_way = np.abs(wrap_degrees(turned.angles_deg - upright.angles_deg + degrees))
        assert np.median(other_way) > stated


def test_the_second_angle_and_the_angle_confidence_say_something(checkpoint: Checkpoint, digits: Dataset):
    turned = rotate_dataset(digits.test, 180.0, seed=4)
    outputs = predict(checkpoint.model, turned.images)
    result = evaluate(lambda images: arrays(predict(checkpoint.model, images)), turned, digits.classes, 0.0, 180.0)
    errors = result["angle_error_deg"]
    assert errors["either_of_two"]["beyond_90"] < 0.6 * errors["beyond_90"]
    halves = errors["by_angle_confidence"]
    assert halves["median_of_the_surer_half"] < 0.8 * halves["median_of_the_other_half"]
    apart = np.abs(wrap_degrees(outputs.second_angles_deg - outputs.angles_deg))
    assert (
        apart.min() > 5
        and ((outputs.second_angle_probabilities >= 0) & (outputs.second_angle_probabilities < 0.5)).all()
    )
    assert ((outputs.angle_confidences >= 0) & (outputs.angle_confidences <= 1 + 1e-6)).all()


@pytest.mark.slow
def test_a_restricted_range_is_read_at_least_as_precisely_as_the_full_circle(
    checkpoint: Checkpoint, digits: Dataset, tmp_path: Path
):
    """The bins span the whole circle either way: those that never occur cost nothing."""
    train(*prepare(digits, TrainConfig(rotation="30", epochs=12, batch=128)), tmp_path / "run")
    narrow = load_checkpoint(tmp_path / "run")
    full = checkpoint.result.validation["angle_error_deg"]
    assert narrow.result.validation["angle_error_deg"]["median"] <= full["median"]
    outputs = predict(narrow.model, rotate_dataset(digits.test, 30.0, seed=1).images)
    assert np.mean(np.abs(outputs.angles_deg) < 45) > 0.98


def test_evaluation_rotates_the_images_and_measures_the_upright_ones_too(checkpoint: Checkpoint, digits: Dataset):
    def run(images):
        return arrays(predict(checkpoint.model, images))

    result = evaluate(run, digits.test, digits.classes, checkpoint.result.threshold, 180.0, seed=4)
    assert result["n"] == result["upright"]["n"] == 1000
    assert np.array(result["confusion"]).sum() == 1000
    turned = rotate_dataset(digits.test, 180.0, seed=4)
    by_hand = (predict(checkpoint.model, turned.images).probabilities.argmax(1) == turned.labels).mean()
    assert result["accuracy"] == pytest.approx(by_hand, abs=1e-5)
    given = evaluate(run, turned, digits.classes, checkpoint.result.threshold, 180.0, seed=99)
    assert given["angle_error_deg"] == result["angle_error_deg"] and "upright" not in given


def test_classes_are_matched_by_name_and_unknown_ones_refused():
    images = np.zeros((3, 28, 28, 1), np.uint8)
    data = LabelledImages(images, np.array([0, 1, 1]), ("dog", "cat"))
    assert align_classes(data, ("cat", "cow", "dog")).labels.tolist() == [2, 0, 0]
    with pytest.raises(DataError, match="dog"):
        align_classes(data, ("cat", "cow"))


def test_a_model_that_came_to_nothing_is_a_sentence(few_digits: Dataset):
    _, config = prepare(few_digits, SETTINGS)
    model = AngleVAE(config.model)
    model.mu.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="came to nothing"):
        fit_score(model, few_digits.train, config)


def test_other_held_out_images_change_the_thresholds_and_no_weight(few_digits: Dataset, tmp_path: Path):
    _, held = holdout(few_digits.train, EARLY_STOPPING.holdout, EARLY_STOPPING.seed)
    known = {image.tobytes() for image in held.images}
    places = [i for i, image in enumerate(few_digits.train.images) if image.tobytes() in known]
    assert len(places) == len(held)
    images = few_digits.train.images.copy()
    images[places] = np.random.default_rng(0).integers(0, 256, images[places].shape, dtype=np.uint8)
    other = Dataset("other", "other", replace(few_digits.train, images=images), None)
    ours, result = train_and_read(few_digits, tmp_path / "a")
    theirs, changed = train_and_read(other, tmp_path / "b")
    for name in ours.keys() - SET_ON_HELD_OUT:
        assert torch.equal(ours[name], theirs[name]), name
    assert changed["threshold"] > result["threshold"] + 1
    for name in ("codes", "code_labels"):
        assert torch.equal(getattr(load_samples(tmp_path / "a"), name), getattr(load_samples(tmp_path / "b"), name))


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_threshold_rejects_its_rate_of_fresh_images(checkpoint: Checkpoint, digits: Dataset, rate: float):
    """Set on the images that training held out, judged on the test half: within three standard errors of both draws."""
    _, held = holdout(digits.train, checkpoint.config.training.holdout, checkpoint.config.training.seed)
    fresh = rotate_dataset(digits.test, 180.0, 7)
    threshold = np.quantile(predict(checkpoint.model, rotate_dataset(held, 180.0, 1).images).scores, 1 - rate)
    rejected = (predict(checkpoint.model, fresh.images).scores > threshold).mean()
    error = np.sqrt(rate * (1 - rate) * (1 / len(held) + 1 / len(fresh)))
    assert abs(rejected - rate) < 3 * error
    assert error < 0.02  # so that the test can fail


def drawn(count: int, temperature: float, seed: int = 0, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (count, classes))
    cumulated = softmax(logits / temperature, axis=1).cumsum(1)
    labels = (rng.uniform(size=(count, 1)) > cumulated[:, :-1]).sum(1)
    return logits.astype(np.float32), labels


def negative_log_posterior(log_temperature: float, logits: np.ndarray, labels: np.ndarray) -> float:
    scaled = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
    return -scaled[np.arange(len(labels)), labels].sum() - norm.logpdf(log_temperature, scale=0.3)


def most_likely_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    given = {"bounds": (-3, 3), "method": "bounded", "options": {"xatol": 1e-9}}
    return np.exp(minimize_scalar(negative_log_posterior, args=(logits, labels), **given).x)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 7.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature: float):
    logits, labels = drawn(20_000, temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    assert fitted == pytest.approx(most_likely_temperature(logits, labels), rel=1e-5)


def test_logits_of_any_size_are_fitted_within_the_bounds():
    logits, labels = drawn(2000, 1.0)
    assert fit_temperature(logits * 1e4, labels) == pytest.approx(20.0, rel=1e-6)
    assert fit_temperature(logits * 1e-3, labels) == pytest.approx(0.05, rel=1e-6)


def test_few_images_move_the_temperature_little():
    logits, labels = drawn(20_000, 2.5)
    few = [fit_temperature(logits[i : i + 50], labels[i : i + 50]) for i in range(0, 10_000, 50)]
    alone = fit_temperature(logits, labels)
    assert alone == pytest.approx(2.5, rel=0.03)
    assert 1.2 < np.median(few) < 2.3  # between the prior's 1 and what all images say


def test_where_nothing_is_wrong_there_is_nothing_to_fit():
    logits, _ = drawn(50, 1.0)
    assert fit_temperature(logits, logits.argmax(1)) == 1.0


def test_few_mistakes_do_not_sharpen_the_probabilities():
    logits, labels = np.tile([1.0, 0.0], (240, 1)), np.zeros(240, np.int64)
    labels[0] = 1  # alone it would ask for T = 0.18
    assert fit_temperature(logits, labels) == 1.0
    labels[:10] = 1
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(most_likely_temperature(logits, labels), rel=1e-5) and fitted < 0.5
    few = 4 * logits[:12], labels[8:20]  # two mistakes
    assert fit_temperature(*few) == pytest.approx(most_likely_temperature(*few), rel=1e-5) and few[1].sum() == 2
    assert 1.0 < fit_temperature(*few) < 4 / np.log(5)


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


def test_calibration_is_mended_and_evaluated_on_the_other_half():
    logits, labels = drawn(6000, 2.5)
    told = cross_fitted_ece(logits, labels, seed=0)
    assert told.before == pytest.approx(expected_calibration_error(softmax(logits, axis=1), labels), abs=1e-5)
    assert told.before > 0.1 and told.after < 0.02
    assert told.temperature == pytest.approx(2.5, rel=0.05)
    assert cross_fitted_ece(logits, labels, seed=0) == told


def test_an_image_does_not_help_to_evaluate_itself():
    # Two images, one of them wrong: each one's temperature is fitted on the other. The wrong one alone raises that of
    # the right one; the right one alone says nothing, so the wrong one is judged at 1.
    logits, labels = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 1])
    raised = fit_temperature(logits[1:], labels[1:])
    assert raised > 1.05
    at_raised, at_1 = softmax([2.0 / raised, 0.0])[0], softmax([2.0, 0.0])[0]
    told = cross_fitted_ece(logits, labels, seed=0)
    assert told.after == pytest.approx(((1 - at_raised) + at_1) / 2, abs=1e-6)
    with pytest.raises(DataError, match="at least two"):
        cross_fitted_ece(logits[:1], labels[:1], seed=0)
