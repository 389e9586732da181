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
    true_deg, angles_deg [M], counter-clockwise; scores [M]; accepted bool [M].
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


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    - `evaluation`: as `vae-edge evaluate --json` gives it (with `confusion` and, where turned, `upright`);
    - `samples`: predictions to look at; `mistakes`: wrong ones among all that were measured;
    - `generated`: uint8 [K · n, S, S, C], n of each class, class by class;
    - `angle_errors_deg`: absolute errors [N], or None without an angle encoder;
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
    generated: NDArray[np.uint8]
    angle_errors_deg: NDArray[np.floating] | None
    known_scores: NDArray[np.floating]
    unknown_scores: Mapping[str, NDArray[np.floating]]
    auroc: Mapping[str, float]
    threshold: float
    precisions: Sequence[Mapping[str, Any]]
    benchmark: Mapping[str, Any]
    training: Sequence[Mapping[str, float]]
    facts: Mapping[str, Any]
