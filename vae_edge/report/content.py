"""What a report is made of: arrays and figures that other rooms measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SampleSet:
    """Images that were predicted, each with its reconstruction.

    images, reconstructions: uint8 [M, S, S, C]; truth, names: M class names; probabilities [M] of the named class;
    true_deg, angles_deg [M], counter-clockwise; scores [M]; accepted bool [M]. Of a model with an angle encoder also
    the images turned back by the angle found, uint8 [M, S, S, C], and the second-best angles with their probabilities.
    """

    images: NDArray[np.uint8]
    reconstructions: NDArray[np.uint8]
    truth: Sequence[str]
    names: Sequence[str]
    probabilities: NDArray[np.floating]
    true_deg: NDArray[np.floating]
    angles_deg: NDArray[np.floating]
    scores: NDArray[np.floating]
    accepted: NDArray[np.bool_]
    turned_back: NDArray[np.uint8] | None = None
    second_deg: NDArray[np.floating] | None = None
    second_shares: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Calibration:
    """Probabilities [N, K] as given, and without the temperature, of images with labels [N]."""

    probabilities: NDArray[np.floating]
    without_temperature: NDArray[np.floating]
    labels: NDArray[np.int64]
    temperature: float


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    - `evaluation`: as `vae-edge evaluate --json` gives it (with `confusion` and, where turned, `upright`);
    - `samples`: predictions to look at; `mistakes`: wrong ones among all that were measured;
    - `generated`: uint8 [n, S, S, C] of each class that has any; `not_generated`: of the others, a sentence why;
    - `angle_errors_deg`: absolute errors [N], or None without an angle encoder;
    - `calibration`: how sure the answers are, and how often they are right;
    - `known_scores` [N] and `unknown_scores` by kind [M], with the AUROC of each kind;
    - `precisions`: rows with `precision`, `bytes`, `accuracy`, `upright_accuracy`, `accepted`;
    - `benchmark`: as `vae-edge bench --json` gives it;
    - `training`: lines of the log (`epoch`, `seconds`, `total`, …); `facts`: what else stands in the header.
    """

    title: str
    classes: Sequence[str]
    evaluation: Mapping[str, Any]
    samples: SampleSet
    mistakes: SampleSet
    generated: Mapping[str, NDArray[np.uint8]]
    not_generated: Mapping[str, str]
    calibration: Calibration
    angle_errors_deg: NDArray[np.floating] | None
    known_scores: NDArray[np.floating]
    unknown_scores: Mapping[str, NDArray[np.floating]]
    auroc: Mapping[str, float]
    threshold: float
    precisions: Sequence[Mapping[str, Any]]
    benchmark: Mapping[str, Any]
    training: Sequence[Mapping[str, float]]
    facts: Mapping[str, Any]
