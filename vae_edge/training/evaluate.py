"""A trained PyTorch model over many images: the reference that every exported form is compared with.

Probabilities that mean what they say: one temperature for all logits, fitted on images that were held out.

Evaluating anything that predicts on any labelled images, upright and turned. NumPy alone: for devices too.

After the last step: the rejection score, the temperature, the thresholds, and the figures of the held-out images.

The score is fitted on training images alone; temperature and thresholds are set on held-out ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.data import LabelledImages, align_classes, rotate_dataset, rotation_range
from vae_edge.errors import CheckpointError, DataError
from vae_edge.metrics import confusion, expected_calibration_error, summarize
from vae_edge.model import AngleVAE
from vae_edge.model.score import reconstruction_error
from vae_edge.training.checkpoint import MODEL, SAMPLE_FILE, RunConfig, write_tensors
from vae_edge.training.data import Material, to_floats

BATCH = 500


@dataclass(frozen=True)
class Outputs:
    """Probabilities [N, K], angles [N] in counter-clockwise degrees, scores [N], whole and light.

    Also codes [N, Z], and what the score is made of: features [N, F] and reconstruction errors [N, 1].

    `logits` [N, K] are raw, without temperature. Of a model with a pose trunk also, [N]: how sure the angle is (0 to
    1), the second-best angle in degrees, and its probability.
    """

    probabilities: NDArray[np.float32]
    angles_deg: NDArray[np.float32]
    scores: NDArray[np.float32]
    light_scores: NDArray[np.float32]
    codes: torch.Tensor
    features: torch.Tensor
    errors: torch.Tensor
    logits: NDArray[np.float32]
    angle_confidences: NDArray[np.float32] | None = None
    second_angles_deg: NDArray[np.float32] | None = None
    second_shares: NDArray[np.float32] | None = None


@torch.no_grad()
def predict(model: AngleVAE, images: NDArray[np.uint8]) -> Outputs:
    """Run the deterministic pass over uint8 images [N, S, S, C] on the model's device; its mode becomes evaluation."""
    model.eval()
    device = model.temperature.device
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for start in range(0, len(images), BATCH):
        output = model(to_floats(images[start : start + BATCH]).to(device))
        errors = reconstruction_error(output.upright, output.reconstruction)
        parts = model.score.parts(errors, output.features, output.logits)
        found["probabilities"].append(model.probabilities(output.logits))
        found["angles_deg"].append(torch.atan2(output.pose.sin, output.pose.cos).rad2deg())
        found["scores"].append(model.score.total(parts))
        found["light_scores"].append(model.score.total(parts[:, 1:]))
        found["codes"].append(output.mu)
        found["features"].append(output.features)
        found["errors"].append(errors)
        found["logits"].append(output.logits)
        doubt = output.pose.doubt
        if doubt is not None:
            found["angle_confidences"].append(doubt.concentration)
            found["second_angles_deg"].append(torch.atan2(doubt.sin, doubt.cos).rad2deg())
            found["second_shares"].append(doubt.share)
    joined: dict[str, Any] = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    tensors = {name: joined.pop(name) for name in ("codes", "features", "errors")}
    return Outputs(**tensors, **{name: value.numpy() for name, value in joined.items()})


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


Arrays = tuple[NDArray[np.floating], ...]
Predict = Callable[[NDArray[np.uint8]], Arrays]
"""Images to probabilities [N, K], angles [N] in degrees, scores [N]; with a pose trunk also second-best angles [N] in
degrees and concentrations [N]."""


def arrays(predicted: Any) -> Arrays:
    """What `evaluate` wants, of the runtime's predictions or of PyTorch's outputs."""
    first = (predicted.probabilities, predicted.angles_deg, predicted.scores)
    if predicted.second_angles_deg is None:
        return first
    return (*first, predicted.second_angles_deg, predicted.angle_confidences)


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
    return {**figures(rotate_dataset(data, range_deg, seed, fill)), "upright": figures(data)}


SAMPLES = 256  # held-out images kept with the run, on which later steps check themselves
CODES = 200  # codes of training images of each class kept with the run, between which new images are drawn
FITTED_ON = 60_000  # training images, at most, that the score is fitted on


def as_trained(images: LabelledImages, config: RunConfig, seed: int) -> LabelledImages:
    """Images turned as far as training turned them."""
    if not config.model.pose:
        return images
    return rotate_dataset(images, rotation_range(config.training.rotation), seed, config.input.fill)


def sample_of(kept: LabelledImages, limit: int, seed: int) -> LabelledImages:
    """Up to `limit` images drawn at random, and one at least of each class that has any."""
    chosen = np.random.default_rng(seed).permutation(len(kept))[:limit]
    missing = set(range(len(kept.classes))) - set(kept.labels[chosen].tolist())
    firsts = [int(np.flatnonzero(kept.labels == k)[0]) for k in missing if (kept.labels == k).any()]
    return kept.take(np.concatenate([chosen, np.array(firsts, dtype=np.int64)]))


def fit_score(model: AngleVAE, kept: LabelledImages, config: RunConfig, limit: int = FITTED_ON) -> int:
    """Fit the rejection score on (up to `limit`) training images, turned as in training; their number.

    Raises:
        CheckpointError: if what the model says of them is not finite.
    """
    sample = as_trained(sample_of(kept, limit, config.training.seed), config, config.training.seed + 2)
    outputs, labels = predict(model, sample.images), torch.from_numpy(sample.labels)
    logits = torch.from_numpy(outputs.logits)
    for what, values in (("features", outputs.features), ("reconstruction errors", outputs.errors), ("logits", logits)):
        if not torch.isfinite(values).all():
            raise CheckpointError(
                f"the {what} of the training images are not finite: training came to nothing; "
                "train anew with a lower --learning-rate"
            )
    model.score.fit(outputs.codes, outputs.features, outputs.errors, logits, labels)
    return len(sample)


def training_codes(model: AngleVAE, kept: LabelledImages, seed: int, limit: int = CODES) -> dict[str, torch.Tensor]:
    """Codes float32 [M, Z] of up to `limit` training images of each class, and their labels int64 [M]."""
    order = np.random.default_rng(seed).permutation(len(kept))
    chosen = np.concatenate([order[kept.labels[order] == k][:limit] for k in range(len(kept.classes))])
    return {
        "codes": predict(model, kept.images[chosen]).codes,
        "code_labels": torch.from_numpy(kept.labels[chosen]),
    }


def finish(model: AngleVAE, material: Material, config: RunConfig, step: int, folder: Path) -> Path:
    """Fit the score, set temperature and thresholds, measure the held-out images, and write the model.

    Raises:
        CheckpointError: if what the model says of the held-out images is not finite.
    """
    settings, kept, held = config.training, material.labelled, material.held
    fitted = fit_score(model, kept, config)
    turned = as_trained(held, config, settings.seed + 1)
    outputs = predict(model, turned.images)
    if not (np.isfinite(outputs.scores).all() and np.isfinite(outputs.logits).all()):
        raise CheckpointError(f"the scores of the held-out images are not finite: training in {folder} came to nothing")
    model.temperature.fill_(fit_temperature(outputs.logits, turned.labels))
    probabilities = model.probabilities(torch.from_numpy(outputs.logits).to(model.temperature.device)).cpu().numpy()
    threshold = float(np.quantile(outputs.scores, 1.0 - settings.reject_rate))
    upright = predict(model, held.images)
    figures = summarize(
        probabilities,
        turned.labels,
        config.classes,
        outputs.angles_deg if config.model.pose else None,
        turned.angles_deg,
        outputs.scores,
        threshold,
        config.data["ambiguous"],
        second_angles_deg=outputs.second_angles_deg,
        angle_confidences=outputs.angle_confidences,
    )
    result: dict[str, Any] = {
        "step": step,
        "threshold": threshold,
        "threshold_light": float(np.quantile(outputs.light_scores, 1.0 - settings.reject_rate)),
        "reject_rate": settings.reject_rate,
        "score_fitted_on": fitted,
        "calibration": cross_fitted_ece(outputs.logits, turned.labels, settings.seed),
        "validation": {**figures, "rotation": settings.rotation},
        "validation_upright": summarize(upright.probabilities, held.labels, config.classes),
    }
    chosen = np.random.default_rng(settings.seed).permutation(len(held))[:SAMPLES]
    samples = {
        "images": torch.from_numpy(turned.images[chosen]),
        "upright": torch.from_numpy(held.images[chosen]),
        "labels": torch.from_numpy(held.labels[chosen]),
        **training_codes(model, kept, settings.seed),
    }
    write_tensors(folder / SAMPLE_FILE, samples, {})
    write_tensors(folder / MODEL, model.state_dict(), result)
    return folder / MODEL
