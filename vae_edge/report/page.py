"""What a report is made of: arrays and figures that other rooms measured.

The page itself: figures and tables put into the template; every text from outside is escaped there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.files import write_text
from vae_edge.metrics import expected_calibration_error, hides_classes
from vae_edge.report import plots


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
    second_angle_probs: NDArray[np.floating] | None = None


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


SECOND = 0.1  # probability from which on the second-best angle is told


def write_report(content: Content, path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file that loads nothing; the path."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share, digits=2: f"{100 * share:.{digits}f}\u00a0%"
    environment.filters["kib"] = lambda count: f"{count / 1024:,.0f} KiB"
    environment.filters["micro"] = lambda value: f"{value:,.0f}"
    source = resources.files("vae_edge.report").joinpath("template.html").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(_view(content)))
    return Path(path)


def _view(content: Content) -> dict[str, Any]:
    """What the template shows."""
    rows = [
        {"name": name, "picture": plots.picture(plots.strip(content.generated[name]))}
        for name in content.classes
        if name in content.generated
    ]
    first = [row for row in content.benchmark["results"] if row["batch"] == 1]
    errors = content.angle_errors_deg
    return {
        "title": content.title,
        "classes": list(content.classes),
        "evaluation": content.evaluation,
        "cards": _cards(content, first),
        "three": content.samples.turned_back is not None,
        "samples": _samples(content.samples),
        "mistakes": _samples(content.mistakes),
        "generated": rows,
        "not_generated": dict(content.not_generated),
        "calibration": _calibration(content.calibration),
        "confusion": _confusion(content),
        "angle_plot": None if errors is None else plots.angle_histogram(errors),
        "score_plot": plots.score_histogram(content.known_scores, content.unknown_scores, content.threshold),
        "roc_plot": _roc(content),
        "auroc": dict(content.auroc),
        "rejected": {
            name: float((scores > content.threshold).mean()) for name, scores in content.unknown_scores.items()
        },
        "known_rejected": float((content.known_scores > content.threshold).mean()),
        "precisions": list(content.precisions),
        "precision_plot": plots.precision_bars(content.precisions),
        "latency_plot": plots.latency_bars(first) if first else None,
        "latency": content.benchmark["results"],
        "machine": content.benchmark["machine"],
        "training_plot": plots.training_curve(content.training) if len(content.training) > 1 else None,
        "facts": dict(content.facts),
    }


def _cards(content: Content, first: list[Any]) -> list[dict[str, str]]:
    evaluation = content.evaluation
    turned = {"full": "right, turned by any angle", "none": "right"}
    words = turned.get(evaluation["rotation"], f"right, turned by up to {evaluation['rotation']}°")
    cards = [{"figure": f"{100 * evaluation['accuracy']:.1f} %", "text": words}]
    if "images_by_class" in evaluation and hides_classes(evaluation):
        worst = min(evaluation["accuracy_by_class"].items(), key=lambda item: item[1])
        text = f"right, mean over the classes (worst: {worst[0]}, {100 * worst[1]:.1f} %)"
        cards.append({"figure": f"{100 * evaluation['balanced_accuracy']:.1f} %", "text": text})
    if "upright" in evaluation:
        cards.append({"figure": f"{100 * evaluation['upright']['accuracy']:.1f} %", "text": "right, upright"})
    if "angle_error_deg" in evaluation:
        cards.append({"figure": f"{evaluation['angle_error_deg']['median']:.1f}°", "text": "median error of the angle"})
    if content.auroc:
        worst = min(content.auroc, key=lambda name: content.auroc[name])
        cards.append({"figure": f"{content.auroc[worst]:.3f}", "text": f"AUROC of the score, worst kind ({worst})"})
    by_precision = {row["precision"]: row for row in content.precisions}
    if {"fp32", "int8"} <= by_precision.keys():
        change = 100 * (by_precision["int8"]["accuracy"] - by_precision["fp32"]["accuracy"])
        cards.append({"figure": f"{change:+.1f}", "text": "points, int8 against fp32"})
    if first:
        best = min(first, key=lambda row: row["p50_us"])
        text = f"a decision here, {best['backend']} {best['precision']}, one thread"
        cards.append({"figure": f"{best['p50_us']:,.0f} µs", "text": text})
    return cards


def _samples(samples: SampleSet) -> list[dict[str, Any]]:
    return [
        {
            "image": plots.picture(samples.images[k]),
            "reconstruction": plots.picture(samples.reconstructions[k]),
            "truth": samples.truth[k],
            "name": samples.names[k],
            "right": samples.truth[k] == samples.names[k],
            "probability": float(samples.probabilities[k]),
            "angle": float(samples.angles_deg[k]),
            "true_angle": float(samples.true_deg[k]),
            "score": float(samples.scores[k]),
            "accepted": bool(samples.accepted[k]),
            "turned_back": None if samples.turned_back is None else plots.picture(samples.turned_back[k]),
            "second": _second(samples, k),
        }
        for k in range(len(samples.images))
    ]


def _second(samples: SampleSet, k: int) -> dict[str, float] | None:
    """The second-best angle, where there is something to it."""
    if samples.second_deg is None or samples.second_angle_probs is None or samples.second_angle_probs[k] < SECOND:
        return None
    return {"angle": float(samples.second_deg[k]), "share": float(samples.second_angle_probs[k])}


def _calibration(given: Calibration) -> dict[str, Any]:
    kinds = {"with temperature": given.probabilities, "without": given.without_temperature}
    errors = {name: expected_calibration_error(found, given.labels, plots.BINS) for name, found in kinds.items()}

    def draw(axes: Any, colours: Any) -> None:
        looks = ((colours["known"], "s"), (colours["others"][0], "o"))
        for (name, found), (colour, marker) in zip(kinds.items(), looks, strict=True):
            label = f"{name}: error {100 * errors[name]:.2f}%"
            plots.reliability_panel(axes, colours, found, given.labels, colour, marker, label)
        axes.legend(fontsize=9, loc="lower right")

    alt = "Reliability diagram: the share that is right against the probability given, with and without temperature"
    return {
        "error": errors["with temperature"],
        "without": errors["without"],
        "temperature": given.temperature,
        "plot": plots.plot(draw, alt, (5.4, 3.6)),
    }


def _roc(content: Content) -> plots.Plot | None:
    if not content.unknown_scores:
        return None

    def draw(axes: Any, colours: Any) -> None:
        plots.roc_panel(axes, colours, content.known_scores, content.unknown_scores, content.threshold)

    return plots.plot(draw, "ROC curves of the rejection score for each kind of unknown images", (5.4, 4.4))


def _confusion(content: Content) -> list[dict[str, Any]]:
    """Rows of the table; the shade of a cell is its share of the row, mistakes by the root so that few are seen."""
    table = np.array(content.evaluation["confusion"], dtype=np.int64)
    rows = []
    for k, name in enumerate(content.classes):
        total = max(1, int(table[k].sum()))
        shares = table[k] / total
        cells = [
            {"count": int(count), "shade": round(float(share if j == k else min(1.0, share**0.5)), 3), "hit": j == k}
            for j, (count, share) in enumerate(zip(table[k], shares, strict=True))
        ]
        rows.append({"name": name, "cells": cells})
    return rows
