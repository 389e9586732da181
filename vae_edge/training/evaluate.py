"""Predictions of a trained PyTorch model, and its calibration after the last step.

`predict` is the reference that every exported form is compared with. `calibrate_and_save` fits the anomaly score on
training images, sets temperature and thresholds on held-out ones, and measures the model on these.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.data import LabelledImages, rotate_dataset, rotation_range
from vae_edge.data.transforms import draw_angles, rotate_by
from vae_edge.errors import CheckpointError, DataError
from vae_edge.evaluation.rejection import choose_threshold, clear_of_ties
from vae_edge.evaluation.similarity import near_copies
from vae_edge.evaluation.symmetry import find_symmetry
from vae_edge.metrics import confusion, expected_calibration_error, frequent_confusions, summarize
from vae_edge.model import AngleVAE
from vae_edge.model.score import reconstruction_error
from vae_edge.training.checkpoint import MODEL, Calibration, RunSamples, TrainResult, write_result, write_samples
from vae_edge.training.config import RunConfig
from vae_edge.training.data import DataSplits, to_float

BATCH = 500


@dataclass(frozen=True)
class Outputs:
    """What a model predicts for N images.

    Attributes:
        probabilities: [N, K].
        angles_deg: [N], counter-clockwise.
        scores: full anomaly scores [N].
        fast_scores: anomaly scores without the reconstruction [N].
        codes: [N, Z].
        features: of the anomaly score [N, F].
        errors: reconstruction errors [N, 1].
        logits: [N, K], without temperature.
        angle_confidences: [N], 0 to 1.
        second_angles_deg: [N], the second-best angles.
        second_angle_probabilities: [N], their probabilities.

    The last three are None without an orientation encoder.
    """

    probabilities: NDArray[np.float32]
    angles_deg: NDArray[np.float32]
    scores: NDArray[np.float32]
    fast_scores: NDArray[np.float32]
    codes: Tensor
    features: Tensor
    errors: Tensor
    logits: NDArray[np.float32]
    angle_confidences: NDArray[np.float32] | None = None
    second_angles_deg: NDArray[np.float32] | None = None
    second_angle_probabilities: NDArray[np.float32] | None = None


def predict(model: AngleVAE, images: NDArray[np.uint8]) -> Outputs:
    """Run the deterministic pass on uint8 images [N, H, W, C], on the model's device. It sets evaluation mode."""
    return predict_batches(model, (images[start : start + BATCH] for start in range(0, len(images), BATCH)))


@torch.no_grad()
def predict_batches(model: AngleVAE, batches: Iterable[NDArray[np.uint8]]) -> Outputs:
    """As `predict`, of images that need not be in memory together."""
    model.eval()
    device = model.temperature.device
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for images in batches:
        output = model(to_float(images).to(device))
        orientation, uncertainty = output.orientation, output.orientation.uncertainty
        errors = reconstruction_error(output.target, output.reconstruction)
        terms = model.score.raw_terms(errors, output.features, output.logits)

        columns["probabilities"].append(model.probabilities(output.logits))
        columns["angles_deg"].append(torch.atan2(orientation.sin, orientation.cos).rad2deg())
        columns["scores"].append(model.score.combine(terms))
        columns["fast_scores"].append(model.score.combine(terms[:, 1:]))
        columns["codes"].append(output.mu)
        columns["features"].append(output.features)
        columns["errors"].append(errors)
        columns["logits"].append(output.logits)
        if uncertainty is not None:
            columns["angle_confidences"].append(uncertainty.confidence)
            second = torch.atan2(uncertainty.second_sin, uncertainty.second_cos)
            columns["second_angles_deg"].append(second.rad2deg())
            columns["second_angle_probabilities"].append(uncertainty.second_prob)

    joined: dict[str, Any] = {name: torch.cat(parts).cpu() for name, parts in columns.items()}
    tensors = {name: joined.pop(name) for name in ("codes", "features", "errors")}
    return Outputs(**tensors, **{name: value.numpy() for name, value in joined.items()})


N_SAMPLES = 256  # held-out images stored with the run, for later checks
CODES_PER_CLASS = 200  # codes of training images stored with the run, from which new images are generated
SYMMETRY_ROTATION_SEED = 5  # added to the run's seed, for the angles that symmetric classes are found at
MAX_SCORE_FIT_IMAGES = 60_000  # training images that the anomaly score is fitted on


def calibrate_and_save(model: AngleVAE, splits: DataSplits, config: RunConfig, step: int, folder: Path) -> Path:
    """Fit the score, set temperature and thresholds, measure the held-out images, and write the model.

    Raises:
        CheckpointError: if the predictions for the held-out images are not finite.
    """
    settings, held_out = config.training, splits.held_out
    score_fit_images = fit_score(model, splits.train, config)

    rotated_images = rotate_like_training(held_out, config, settings.seed + 1)
    outputs = predict(model, rotated_images.images)
    if not (np.isfinite(outputs.scores).all() and np.isfinite(outputs.logits).all()):
        raise CheckpointError(f"the scores of the held-out images are not finite: training in {folder} came to nothing")
    model.temperature.fill_(fit_temperature(outputs.logits, rotated_images.labels))
    probabilities = model.probabilities(torch.from_numpy(outputs.logits).to(model.temperature.device)).cpu().numpy()
    threshold, threshold_fast = (
        clear_of_ties(scores, choose_threshold(scores, settings.reject_rate, force=True).threshold)
        for scores in (outputs.scores, outputs.fast_scores)
    )

    upright = predict(model, held_out.images)
    symmetry = held_out_symmetry(model, held_out, config)
    figures = summarize(
        probabilities,
        rotated_images.labels,
        config.classes,
        outputs.angles_deg if config.model.orientation else None,
        rotated_images.angles_deg,
        outputs.scores,
        threshold,
        symmetry,
        outputs.second_angles_deg,
        outputs.angle_confidences,
    )
    table = confusion(rotated_images.labels, probabilities.argmax(1), len(config.classes))
    figures["confusions"] = frequent_confusions(table, config.classes)
    figures["near_copies"] = near_copies(held_out.images, splits.train.images, settings.seed).to_json()
    result = TrainResult(
        step=step,
        threshold=threshold,
        threshold_fast=threshold_fast,
        reject_rate=settings.reject_rate,
        score_fit_images=score_fit_images,
        calibration=cross_fitted_ece(outputs.logits, rotated_images.labels, settings.seed),
        validation={**figures, "rotation": settings.rotation},
        validation_upright=summarize(upright.probabilities, held_out.labels, config.classes),
        symmetry=symmetry,
    )
    chosen = np.random.default_rng(settings.seed).permutation(len(held_out))[:N_SAMPLES]
    codes, code_labels = encode_training_images(model, splits.train, settings.seed)
    samples = RunSamples(
        images=torch.from_numpy(rotated_images.images[chosen]),
        upright=torch.from_numpy(held_out.images[chosen]),
        labels=torch.from_numpy(held_out.labels[chosen]),
        codes=codes,
        code_labels=code_labels,
    )
    write_samples(folder, samples)
    write_result(folder, model, result)
    return folder / MODEL


def held_out_symmetry(model: AngleVAE, held_out: LabelledImages, config: RunConfig) -> dict[str, int]:
    """The classes that look the same when rotated, with the order of their symmetry; none unless training rotated
    upright images by any angle: within a smaller range, and from known angles, the model learns which way is up."""
    by_any_angle = config.model.orientation and rotation_range(config.training.rotation) == 180
    if not by_any_angle or held_out.angles_deg is not None:
        return {}

    def labels_and_angles(images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        outputs = predict(model, images)
        return outputs.logits.argmax(1), outputs.angles_deg

    return find_symmetry(
        labels_and_angles,
        held_out,
        config.training.seed + SYMMETRY_ROTATION_SEED,
        config.input.fill,
    )


def fit_score(model: AngleVAE, train: LabelledImages, config: RunConfig, limit: int = MAX_SCORE_FIT_IMAGES) -> int:
    """Fit the anomaly score on up to `limit` training images, rotated as in training. Returns their number.

    Raises:
        CheckpointError: if the model's outputs are not finite.
    """
    seed = config.training.seed
    sample = stratified_subset(train, limit, seed)
    outputs = predict_batches(model, _rotated_batches(sample, config, seed + 2))
    labels = torch.from_numpy(sample.labels)
    logits = torch.from_numpy(outputs.logits)
    for what, values in (("features", outputs.features), ("reconstruction errors", outputs.errors), ("logits", logits)):
        if not torch.isfinite(values).all():
            raise CheckpointError(
                f"the {what} of the training images are not finite: training came to nothing; "
                "train anew with a lower --learning-rate"
            )
    model.score.fit(outputs.codes, outputs.features, outputs.errors, logits, labels)
    return len(sample)


def encode_training_images(
    model: AngleVAE, train: LabelledImages, seed: int, limit: int = CODES_PER_CLASS
) -> tuple[Tensor, Tensor]:
    """Codes float32 [M, Z] of up to `limit` training images of each class, and their labels int64 [M]."""
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = np.concatenate([order[train.labels[order] == k][:limit] for k in range(len(train.classes))])
    return predict(model, train.images[chosen]).codes, torch.from_numpy(train.labels[chosen])


def _rotated_batches(images: LabelledImages, config: RunConfig, seed: int) -> Iterator[NDArray[np.uint8]]:
    """The images of `rotate_like_training`, a batch at a time: large ones need not fit into memory."""
    angles = None
    if config.model.orientation:
        angles = draw_angles(len(images), rotation_range(config.training.rotation), seed)
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        batch = images.take(rows)
        yield batch.images[:] if angles is None else rotate_by(batch, angles[rows], config.input.fill).images[:]


def rotate_like_training(images: LabelledImages, config: RunConfig, seed: int) -> LabelledImages:
    """Rotate images by random angles within the range of training."""
    if not config.model.orientation:
        return images
    return rotate_dataset(images, rotation_range(config.training.rotation), seed, config.input.fill)


def stratified_subset(images: LabelledImages, limit: int, seed: int) -> LabelledImages:
    """Up to `limit` images drawn at random, and at least one of each class that has any."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:limit]
    missing = set(range(len(images.classes))) - set(images.labels[chosen].tolist())
    firsts = [int(np.flatnonzero(images.labels == k)[0]) for k in missing if (images.labels == k).any()]
    return images.take(np.concatenate([chosen, np.array(firsts, dtype=np.int64)]))


T_MIN, T_MAX = 0.05, 20.0
LOG_T_STD = 0.3  # of the prior on log T
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
MIN_WRONG = 10  # images that a temperature below 1 asks for
SEARCH_STEPS = 60  # each shrinks the interval to 0.618 of it: from ln 400 to 2e-12


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Fit the temperature, 0.05 to 20, that makes the labels most likely (Guo et al. 2017, section 4.2).

    The estimate is the maximum a posteriori under a normal prior on log T, of mean 0 and standard deviation 0.3. Among
    thousands of images it changes nothing to speak of; a few dozen, of which seven are wrong, say little, and without
    it had asked for a T of 2.6. The negative log-likelihood is convex in 1/T and so has one minimum over log T, and a
    golden-section search finds the sum's.

    Where no image is wrong there is nothing to learn, and 1 comes back. Fewer than 10 wrong images may raise T, and
    never lower it below 1: where the images resemble those trained on, one mistake among hundreds asks for a T near
    0.2, and images unlike them are then wrong with probabilities near 1. The search is our own: SciPy is no
    dependency, and its optimizer would change the last digits of stored values.

    Args:
        logits: [N, K], raw, of images that were not trained on.
        labels: [N].

    Raises:
        DataError: if there are no images, their numbers differ, or a logit is not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or len(logits) == 0 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
        raise DataError(
            f"A temperature is fitted on finite logits [N, K] and labels [N] of at least one image, but logits "
            f"{list(logits.shape)} and labels {list(labels.shape)} came, or some logits are not finite."
        )
    true_logits = logits[np.arange(len(labels)), labels]
    wrong = int((true_logits < logits.max(1)).sum())
    if not wrong:
        return 1.0

    def negative_log_posterior(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        scaled = logits * scale
        largest = scaled.max(1)
        likelihood = largest + np.log(np.exp(scaled - largest[:, None]).sum(1)) - true_logits * scale
        return float(likelihood.sum() + 0.5 * (log_temperature / LOG_T_STD) ** 2)

    low, high = math.log(T_MIN), math.log(T_MAX)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = negative_log_posterior(left), negative_log_posterior(right)
    for _ in range(SEARCH_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = negative_log_posterior(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = negative_log_posterior(right)
    temperature = math.exp((low + high) / 2.0)
    return temperature if wrong >= MIN_WRONG else max(1.0, temperature)


def cross_fitted_ece(logits: NDArray[np.floating], labels: NDArray[np.int64], seed: int) -> Calibration:
    """Expected calibration error without and with a temperature, cross-fitted.

    The images are split into two random parts. Each is evaluated with the temperature that was fitted on the other.

    Args:
        logits: [N, K], raw, of images that were not trained on.
        labels: [N], at least two.
        seed: of the split.

    Returns:
        the errors over all images, and the temperature fitted on all of them.

    Raises:
        DataError: as `fit_temperature`, or if there are fewer than two images.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    temperature = fit_temperature(logits, labels)
    if len(labels) < 2:
        raise DataError("Calibration is evaluated on other images than it is fitted on: at least two are needed.")
    parts = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    calibrated = np.empty_like(logits)
    for test, fit in (parts, parts[::-1]):
        calibrated[test] = _softmax(logits[test] / fit_temperature(logits[fit], labels[fit]))
    return Calibration(
        before=expected_calibration_error(_softmax(logits), labels),
        after=expected_calibration_error(calibrated, labels),
        temperature=temperature,
    )


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
