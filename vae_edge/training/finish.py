"""After the last step: the rejection score, the temperature, the thresholds, and the figures of the held-out images.

The score is fitted on training images alone; temperature and thresholds are set on held-out ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_edge.data import LabelledImages, rotated, rotation_range
from vae_edge.errors import CheckpointError
from vae_edge.metrics import summarize
from vae_edge.model import AngleVAE
from vae_edge.training.calibration import cross_fitted_ece, fit_temperature
from vae_edge.training.checkpoint import MODEL, SAMPLE_FILE, RunConfig, write_tensors
from vae_edge.training.planning import Material
from vae_edge.training.predict import predict

SAMPLES = 256  # held-out images kept with the run, on which later steps check themselves
CODES = 200  # codes of training images of each class kept with the run, between which new images are drawn
FITTED_ON = 60_000  # training images, at most, that the score is fitted on


def as_trained(images: LabelledImages, config: RunConfig, seed: int) -> LabelledImages:
    """Images turned as far as training turned them."""
    if not config.model.pose:
        return images
    return rotated(images, rotation_range(config.training.rotation), seed, config.input.fill)


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
        concentrations=outputs.concentrations,
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
