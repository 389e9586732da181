"""The report, one HTML page that shows what a classifier can do.

The page is made from arrays and figures that others measured. Its template escapes every text from outside, and it
loads nothing: its images are data URIs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.files import write_text
from vae_edge.metrics import expected_calibration_error, hides_classes
from vae_edge.report import plots

MIN_SECOND_PROBABILITY = 0.1  # of a second angle that is shown
MAX_COUNTED_CLASSES = 20  # classes whose confusion table shows its counts; that of more is a map of small cells
MAX_HEADING_LETTERS = 75  # of all names together, that fit side by side above the table
MAP_WIDTH_REM = 54.0  # of the cells of a map
MAX_CLASS_ROWS = 30  # classes listed with their accuracy, the worst ones


@dataclass(frozen=True)
class SampleSet:
    """Predicted images, each with its reconstruction where there is one.

    Attributes:
        images: uint8 [M, S, S, C].
        reconstructions: of the same shape; None: there are none.
        truth, names: the true and the predicted class [M].
        probabilities: of the predicted class [M].
        true_deg, angles_deg: the true and the predicted angle [M], degrees counter-clockwise.
        scores: anomaly scores [M]; accepted: bool [M].
        derotated: the images rotated back by the predicted angle, uint8 [M, S, S, C]; None without an angle encoder.
        second_angles_deg, second_probabilities: the second angle and its probability [M]; None likewise.
        files: names of the images' files [M]; None where they have none.
    """

    images: NDArray[np.uint8]
    reconstructions: NDArray[np.uint8] | None
    truth: Sequence[str]
    names: Sequence[str]
    probabilities: NDArray[np.floating]
    true_deg: NDArray[np.floating]
    angles_deg: NDArray[np.floating]
    scores: NDArray[np.floating]
    accepted: NDArray[np.bool_]
    derotated: NDArray[np.uint8] | None = None
    second_angles_deg: NDArray[np.floating] | None = None
    second_probabilities: NDArray[np.floating] | None = None
    files: Sequence[str] | None = None


@dataclass(frozen=True)
class Calibration:
    """Probabilities [N, K] of images with labels [N]; where it is known also without the temperature."""

    probabilities: NDArray[np.floating]
    without_temperature: NDArray[np.floating] | None
    labels: NDArray[np.int64]
    temperature: float | None


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. What is empty or None has no section.

    Attributes:
        evaluation: the JSON of `vae-edge evaluate`, with `confusion` and, where images were rotated, `upright`.
        samples: predictions to look at; mistakes: wrong ones among all that were measured.
        calibration: how sure the predictions are, and how often they are right.
        angle_errors_deg: absolute errors [N]; None without an angle encoder.
        known_scores: anomaly scores [N] of known images; unknown_scores: [M] of unknown images by kind; auroc: by kind.
        threshold: the largest accepted score.
        generated: uint8 [n, S, S, C] of each class that has any; not_generated: of the others, a sentence why.
        precisions: rows with `precision`, `bytes`, `accuracy`, `upright_accuracy`, `accepted`.
        benchmark: the JSON of `vae-edge bench`.
        training: lines of the training log (`epoch`, `seconds`, `total`, …).
        facts: more lines at the end of the page.
        sentences, warnings: what the figures mean, on top of the page.
        tried: what was tried, and what was not.
        unseen: whether none of the images was trained on.
    """

    title: str
    classes: Sequence[str]
    evaluation: Mapping[str, Any]
    samples: SampleSet
    mistakes: SampleSet
    calibration: Calibration
    angle_errors_deg: NDArray[np.floating] | None
    known_scores: NDArray[np.floating]
    unknown_scores: Mapping[str, NDArray[np.floating]]
    auroc: Mapping[str, float]
    threshold: float
    generated: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    not_generated: Mapping[str, str] = field(default_factory=dict)
    precisions: Sequence[Mapping[str, Any]] = ()
    benchmark: Mapping[str, Any] | None = None
    training: Sequence[Mapping[str, float]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tried: str = ""
    unseen: bool = True


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file; its path."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda fraction, digits=2: f"{100 * fraction:.{digits}f}\u00a0%"
    environment.filters["kib"] = lambda count: f"{count / 1024:,.0f} KiB"
    environment.filters["words"] = _words
    environment.filters["micro"] = lambda value: f"{value:,.0f}"
    source = resources.files("vae_edge.report").joinpath("template.html").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(_view(data)))
    return Path(path)


def _words(sentence: str) -> Any:
    """A sentence as HTML, what stands between backticks as code."""
    from markupsafe import Markup, escape

    code = Markup("<code>{}</code>")
    parts = enumerate(sentence.split("`"))
    return Markup("").join(code.format(part) if k % 2 else escape(part) for k, part in parts)


def _view(data: ReportData) -> dict[str, Any]:
    """What the template shows."""
    rows = [
        {"name": name, "image": plots.png_data_uri(plots.side_by_side(data.generated[name]))}
        for name in data.classes
        if name in data.generated
    ]
    benchmark = data.benchmark or {"results": [], "machine": {}}
    first = [row for row in benchmark["results"] if row["batch"] == 1]
    errors = data.angle_errors_deg
    return {
        "title": data.title,
        "classes": list(data.classes),
        "evaluation": data.evaluation,
        "sentences": list(data.sentences),
        "warnings": list(data.warnings),
        "tried": data.tried,
        "unseen": data.unseen,
        "wrong_count": round(data.evaluation["n"] * (1 - data.evaluation["accuracy"])),
        "cards": _cards(data, first),
        "has_angle": data.samples.derotated is not None,
        "samples": _samples(data.samples),
        "mistakes": _samples(data.mistakes),
        "generated": rows,
        "not_generated": dict(data.not_generated),
        "calibration": _calibration(data.calibration),
        "class_rows": _class_rows(data.evaluation),
        "confusion": _confusion(data),
        "counted": len(data.classes) <= MAX_COUNTED_CLASSES,
        "upright_names": sum(max(3, len(name)) for name in data.classes) > MAX_HEADING_LETTERS,
        "cell": round(min(1.2, max(0.5, MAP_WIDTH_REM / len(data.classes) - 0.06)), 3),
        "angle_plot": None if errors is None else plots.angle_histogram(errors),
        "score_plot": plots.score_histogram(data.known_scores, data.unknown_scores, data.threshold),
        "roc_plot": _roc(data),
        "auroc": dict(data.auroc),
        "rejected": {name: float((scores > data.threshold).mean()) for name, scores in data.unknown_scores.items()},
        "known_rejected": float((data.known_scores > data.threshold).mean()),
        "precisions": list(data.precisions),
        "precision_plot": plots.precision_bars(data.precisions) if data.precisions else None,
        "latency_plot": plots.latency_bars(first) if first else None,
        "latency": benchmark["results"],
        "machine": benchmark["machine"],
        "training_plot": plots.training_curve(data.training) if len(data.training) > 1 else None,
        "facts": dict(data.facts),
    }


def _cards(data: ReportData, first: list[Any]) -> list[dict[str, str]]:
    evaluation = data.evaluation
    by_rotation = {"full": "right, rotated by any angle", "none": "right", "as given": "right"}
    words = by_rotation.get(evaluation["rotation"], f"right, rotated by up to {evaluation['rotation']}°")
    cards = [{"figure": f"{100 * evaluation['accuracy']:.1f} %", "text": words}]
    if "images_by_class" in evaluation and hides_classes(evaluation):
        worst = min(evaluation["accuracy_by_class"].items(), key=lambda item: item[1])
        text = f"right, mean over the classes (worst: {worst[0]}, {100 * worst[1]:.1f} %)"
        cards.append({"figure": f"{100 * evaluation['balanced_accuracy']:.1f} %", "text": text})
    if "upright" in evaluation:
        cards.append({"figure": f"{100 * evaluation['upright']['accuracy']:.1f} %", "text": "right, upright"})
    if "angle_error_deg" in evaluation:
        cards.append({"figure": f"{evaluation['angle_error_deg']['median']:.1f}°", "text": "median error of the angle"})
    if data.auroc:
        worst = min(data.auroc, key=lambda name: data.auroc[name])
        cards.append(
            {"figure": f"{data.auroc[worst]:.3f}", "text": f"AUROC of the anomaly score, worst kind ({worst})"}
        )
    by_precision = {row["precision"]: row for row in data.precisions}
    if {"fp32", "int8"} <= by_precision.keys():
        change = 100 * (by_precision["int8"]["accuracy"] - by_precision["fp32"]["accuracy"])
        cards.append({"figure": f"{change:+.1f}", "text": "points, int8 against fp32"})
    if first:
        best = min(first, key=lambda row: row["p50_us"])
        text = f"a decision here, {best['backend']} {best['precision']}, one thread"
        cards.append({"figure": f"{best['p50_us']:,.0f} µs", "text": text})
    return cards


def _samples(samples: SampleSet) -> list[dict[str, Any]]:
    def shown(images: NDArray[np.uint8] | None, k: int) -> str | None:
        return None if images is None else plots.image_data_uri(images[k])

    return [
        {
            "image": shown(samples.images, k),
            "reconstruction": shown(samples.reconstructions, k),
            "truth": samples.truth[k],
            "name": samples.names[k],
            "right": samples.truth[k] == samples.names[k],
            "probability": float(samples.probabilities[k]),
            "angle": float(samples.angles_deg[k]),
            "true_angle": float(samples.true_deg[k]),
            "score": float(samples.scores[k]),
            "accepted": bool(samples.accepted[k]),
            "derotated": shown(samples.derotated, k),
            "second": _second(samples, k),
            "file": None if samples.files is None else samples.files[k],
        }
        for k in range(len(samples.images))
    ]


def _second(samples: SampleSet, k: int) -> dict[str, float] | None:
    """The second angle, where it is probable enough to be shown."""
    if (
        samples.second_angles_deg is None
        or samples.second_probabilities is None
        or samples.second_probabilities[k] < MIN_SECOND_PROBABILITY
    ):
        return None
    return {"angle": float(samples.second_angles_deg[k]), "probability": float(samples.second_probabilities[k])}


def _calibration(given: Calibration) -> dict[str, Any]:
    kinds = {"with temperature": given.probabilities}
    if given.without_temperature is not None:
        kinds["without"] = given.without_temperature
    errors = {name: expected_calibration_error(found, given.labels, plots.BINS) for name, found in kinds.items()}

    def draw(axes: Any, colors: plots.Colors) -> None:
        looks = ((colors["known"], "s"), (colors["others"][0], "o"))
        for (name, found), (color, marker) in zip(kinds.items(), looks, strict=False):
            label = f"{name}: error {100 * errors[name]:.2f}%" if len(kinds) > 1 else f"error {100 * errors[name]:.2f}%"
            plots.plot_reliability(axes, colors, found, given.labels, color, marker, label)
        axes.legend(fontsize=9, loc="lower right")

    alt = "Reliability diagram: accuracy against the probability given"
    alt += ", with and without temperature" if len(kinds) > 1 else ""
    return {
        "error": errors["with temperature"],
        "without": errors.get("without"),
        "temperature": given.temperature,
        "plot": plots.render(draw, alt, (5.4, 3.6)),
    }


def _roc(data: ReportData) -> plots.Plot | None:
    if not data.unknown_scores:
        return None

    def draw(axes: Any, colors: plots.Colors) -> None:
        plots.plot_roc(axes, colors, data.known_scores, data.unknown_scores, data.threshold)

    return plots.render(draw, "ROC curves of the anomaly score for each kind of unknown images", (5.4, 4.4))


def _class_rows(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The classes with their accuracy and what they are taken for most often, the worst first."""
    if "images_by_class" not in evaluation:
        return {"rows": [], "more": 0}
    classes, table = evaluation.get("classes", ()), np.array(evaluation["confusion"], dtype=np.int64)
    counts = evaluation["images_by_class"]
    fractions = sorted(evaluation["accuracy_by_class"].items(), key=lambda item: (item[1], -counts[item[0]]))
    position = {name: k for k, name in enumerate(classes)}
    rows = []
    for name, fraction in fractions[:MAX_CLASS_ROWS]:
        row = {"name": name, "accuracy": fraction, "images": counts[name], "taken_for": ""}
        if name in position:
            others = table[position[name]].copy()
            others[position[name]] = 0
            best = int(others.argmax())
            row["taken_for"] = f"{classes[best]}, {others[best]} of {row['images']}" if others[best] else ""
        rows.append(row)
    return {"rows": rows, "more": len(fractions) - len(rows)}


def _confusion(data: ReportData) -> list[dict[str, Any]]:
    """Rows of the table. The shade of a cell is its fraction of the row; of mistakes the root, so that few are seen."""
    table = np.array(data.evaluation["confusion"], dtype=np.int64)
    rows = []
    for k, name in enumerate(data.classes):
        total = max(1, int(table[k].sum()))
        fractions = table[k] / total
        cells = [
            {
                "count": int(count),
                "shade": round(float(part if j == k else min(1.0, part**0.5)), 3),
                "hit": j == k,
                "words": f"{name} taken for {other}: {count} of {total}" if count else "",
            }
            for j, (count, part, other) in enumerate(zip(table[k], fractions, data.classes, strict=True))
        ]
        rows.append({"name": name, "cells": cells})
    return rows
