"""The report, one HTML page that shows what a classifier can do; and the comparison with baselines, as tables.

The page is made from arrays and figures that others measured. Its template escapes every text from outside, and it
loads nothing: its images are data URIs. The comparison is made from its JSON (`compare.json`).
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
from vae_edge.report.plots import write_accuracy_plot


@dataclass(frozen=True)
class SampleSet:
    """Predicted images, each with its reconstruction.

    Attributes:
        images, reconstructions: uint8 [M, S, S, C].
        truth, names: the true and the predicted class [M].
        probabilities: of the predicted class [M].
        true_deg, angles_deg: the true and the predicted angle [M], degrees counter-clockwise.
        scores: anomaly scores [M]; accepted: bool [M].
        derotated: the images rotated back by the predicted angle, uint8 [M, S, S, C]; None without an angle encoder.
        second_angles_deg, second_probabilities: the second angle and its probability [M]; None likewise.
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
    derotated: NDArray[np.uint8] | None = None
    second_angles_deg: NDArray[np.floating] | None = None
    second_probabilities: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Calibration:
    """Probabilities [N, K] with and without the temperature, of images with labels [N]."""

    probabilities: NDArray[np.floating]
    without_temperature: NDArray[np.floating]
    labels: NDArray[np.int64]
    temperature: float


@dataclass(frozen=True)
class ReportData:
    """Everything on the page.

    Attributes:
        evaluation: the JSON of `vae-edge evaluate`, with `confusion` and, where images were rotated, `upright`.
        samples: predictions to look at; mistakes: wrong ones among all that were measured.
        generated: uint8 [n, S, S, C] of each class that has any; not_generated: of the others, a sentence why.
        calibration: how sure the predictions are, and how often they are right.
        angle_errors_deg: absolute errors [N]; None without an angle encoder.
        known_scores: anomaly scores [N] of known images; unknown_scores: [M] of unknown images by kind; auroc: by kind.
        precisions: rows with `precision`, `bytes`, `accuracy`, `upright_accuracy`, `accepted`.
        benchmark: the JSON of `vae-edge bench`.
        training: lines of the training log (`epoch`, `seconds`, `total`, …).
        facts: more lines at the end of the page.
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


MIN_SECOND_PROBABILITY = 0.1  # of a second angle that is shown


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file; its path."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda fraction, digits=2: f"{100 * fraction:.{digits}f}\u00a0%"
    environment.filters["kib"] = lambda count: f"{count / 1024:,.0f} KiB"
    environment.filters["micro"] = lambda value: f"{value:,.0f}"
    source = resources.files("vae_edge.report").joinpath("template.html").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(_view(data)))
    return Path(path)


def _view(data: ReportData) -> dict[str, Any]:
    """What the template shows."""
    rows = [
        {"name": name, "image": plots.png_data_uri(plots.side_by_side(data.generated[name]))}
        for name in data.classes
        if name in data.generated
    ]
    first = [row for row in data.benchmark["results"] if row["batch"] == 1]
    errors = data.angle_errors_deg
    return {
        "title": data.title,
        "classes": list(data.classes),
        "evaluation": data.evaluation,
        "cards": _cards(data, first),
        "has_angle": data.samples.derotated is not None,
        "samples": _samples(data.samples),
        "mistakes": _samples(data.mistakes),
        "generated": rows,
        "not_generated": dict(data.not_generated),
        "calibration": _calibration(data.calibration),
        "confusion": _confusion(data),
        "angle_plot": None if errors is None else plots.angle_histogram(errors),
        "score_plot": plots.score_histogram(data.known_scores, data.unknown_scores, data.threshold),
        "roc_plot": _roc(data),
        "auroc": dict(data.auroc),
        "rejected": {name: float((scores > data.threshold).mean()) for name, scores in data.unknown_scores.items()},
        "known_rejected": float((data.known_scores > data.threshold).mean()),
        "precisions": list(data.precisions),
        "precision_plot": plots.precision_bars(data.precisions),
        "latency_plot": plots.latency_bars(first) if first else None,
        "latency": data.benchmark["results"],
        "machine": data.benchmark["machine"],
        "training_plot": plots.training_curve(data.training) if len(data.training) > 1 else None,
        "facts": dict(data.facts),
    }


def _cards(data: ReportData, first: list[Any]) -> list[dict[str, str]]:
    evaluation = data.evaluation
    by_rotation = {"full": "right, rotated by any angle", "none": "right"}
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
    return [
        {
            "image": plots.png_data_uri(samples.images[k]),
            "reconstruction": plots.png_data_uri(samples.reconstructions[k]),
            "truth": samples.truth[k],
            "name": samples.names[k],
            "right": samples.truth[k] == samples.names[k],
            "probability": float(samples.probabilities[k]),
            "angle": float(samples.angles_deg[k]),
            "true_angle": float(samples.true_deg[k]),
            "score": float(samples.scores[k]),
            "accepted": bool(samples.accepted[k]),
            "derotated": None if samples.derotated is None else plots.png_data_uri(samples.derotated[k]),
            "second": _second(samples, k),
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
    kinds = {"with temperature": given.probabilities, "without": given.without_temperature}
    errors = {name: expected_calibration_error(found, given.labels, plots.BINS) for name, found in kinds.items()}

    def draw(axes: Any, colors: plots.Colors) -> None:
        looks = ((colors["known"], "s"), (colors["others"][0], "o"))
        for (name, found), (color, marker) in zip(kinds.items(), looks, strict=True):
            label = f"{name}: error {100 * errors[name]:.2f}%"
            plots.plot_reliability(axes, colors, found, given.labels, color, marker, label)
        axes.legend(fontsize=9, loc="lower right")

    alt = "Reliability diagram: accuracy against the probability given, with and without temperature"
    return {
        "error": errors["with temperature"],
        "without": errors["without"],
        "temperature": given.temperature,
        "plot": plots.render(draw, alt, (5.4, 3.6)),
    }


def _roc(data: ReportData) -> plots.Plot | None:
    if not data.unknown_scores:
        return None

    def draw(axes: Any, colors: plots.Colors) -> None:
        plots.plot_roc(axes, colors, data.known_scores, data.unknown_scores, data.threshold)

    return plots.render(draw, "ROC curves of the anomaly score for each kind of unknown images", (5.4, 4.4))


def _confusion(data: ReportData) -> list[dict[str, Any]]:
    """Rows of the table. The shade of a cell is its fraction of the row; of mistakes the root, so that few are seen."""
    table = np.array(data.evaluation["confusion"], dtype=np.int64)
    rows = []
    for k, name in enumerate(data.classes):
        total = max(1, int(table[k].sum()))
        fractions = table[k] / total
        cells = [
            {"count": int(count), "shade": round(float(part if j == k else min(1.0, part**0.5)), 3), "hit": j == k}
            for j, (count, part) in enumerate(zip(table[k], fractions, strict=True))
        ]
        rows.append({"name": name, "cells": cells})
    return rows


HEADINGS = (
    *("model", "accuracy", "with generated images", "training, s", "processor, s", "images seen"),
    *("training MACs", "parameters", "MACs", "ONNX, KiB", "latency, µs"),
)
NOTES = (
    "Accuracy: mean ± sample standard deviation over the seeds, on images of the training split that were held out "
    "from all training. Each seed holds out other images, and rotates them by other angles.",
    "svm and logistic see each image once, without augmentation (rotated images: rotated by one angle each). All "
    "networks are trained alike: AdamW, a one-cycle learning rate, an average of the weights, augmentation. This "
    "recipe and its numbers were chosen for angle-vae, on the training split of MNIST; no other model was tuned.",
    "cnn-equal has as many parameters as the part of angle-vae that decides the class. It is trained on as many images "
    "as make its multiply-accumulates equal to angle-vae's.",
    "Parameters, MACs (of one image), ONNX size and latency (one image, one thread, ONNX Runtime, median, all "
    "interleaved) are those of the graph from bytes to one number for each class, of the first seed, trained on real "
    "images. The other outputs of angle-vae and vae are not in it. svm's numbers are no probabilities.",
    "Training seconds of vae and angle-vae include fitting the anomaly score and its threshold.",
)


def write_comparison(result: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write `compare.md`, `compare.png` and `compare.svg` into a folder; their paths.

    Args:
        result: what `vae-edge compare --json` prints.
    """
    table = Path(folder) / "compare.md"
    write_text(table, markdown(result))
    return [table, *write_accuracy_plot(result["rows"], Path(folder) / "compare")]


def markdown(result: Mapping[str, Any]) -> str:
    """A table for each kind of images, and the notes that go with them."""
    settings, machine, data = result["settings"], result["machine"], result["data"]
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        "# Comparison with other models",
        "",
        f"{data['name']}, preset `{settings['preset']}`, seeds {seeds}. {machine['cpu']}, "
        f"{machine['threads']} thread(s) in training, {machine['date']}.",
        "",
    ]
    for kind in ("rotated", "upright"):
        rows = [row for row in result["rows"] if row["images"] == kind]
        if rows:
            lines += [f"## {kind.capitalize()} images", "", *_table(rows), ""]
    lines += [f"**{result['sentence']}**", "", *_generated_helps(result["generated_helps"])]
    notes = [*NOTES, *_machines(result["trials"]), *_full_costs(result["rows"]), *_generators(result["generators"])]
    lines += [f"- {note}" for note in notes]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


def _machines(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note where trials were trained on different machines, or by different versions of the code."""
    machines = {tuple(sorted(trial["where"].items())) for trial in trials}
    if len(machines) == 1:
        return []
    each = "; ".join(", ".join(f"{name} {value}" for name, value in machine) for machine in sorted(machines))
    return [f"The trials were trained in {len(machines)} different circumstances, so their seconds differ: {each}."]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each model: its figures without generated images, and its accuracy with them."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" + "|---:" * (len(HEADINGS) - 1) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        real = next((row for row in rows if row["model"] == model and not row["generated"]), None)
        mixed = next((row for row in rows if row["model"] == model and row["generated"]), None)
        row = real if real is not None else mixed
        assert row is not None
        decision = row["decision"]
        size, latency = decision["bytes"], decision["latency_us"]
        cells = [
            model,
            _accuracy(real),
            _accuracy(mixed),
            f"{row['wall_seconds']:,.1f}",
            f"{row['processor_seconds']:,.1f}",
            f"{row['images_seen']:,.0f}",
            "" if row["training_macs"] is None else f"{row['training_macs']:.3g}",
            f"{decision['parameters']:,}",
            f"{decision['macs']:,}",
            "" if size is None else f"{size / 1024:,.0f}",
            "" if latency is None else f"{latency:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _accuracy(row: Mapping[str, Any] | None) -> str:
    """Mean ± sample standard deviation, in percent; the mean alone of one seed."""
    if row is None:
        return ""
    accuracy = row["accuracy"]
    deviation = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{deviation}%"


def _generated_helps(helps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What generated images change, in percentage points, by model."""
    lines = []
    for kind in ("rotated", "upright"):
        found = [entry for entry in helps if entry["images"] == kind]
        if found:
            each = ", ".join(f"{entry['model']} {_points(entry['points'])}" for entry in found)
            lines += [f"What generated images change on {kind} images, in points: {each}.", ""]
    return lines


def _full_costs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What our models cost with all their outputs."""
    lines = []
    for row in rows:
        if "full" in row and not row["generated"]:
            full = row["full"]
            size = "" if full["bytes"] is None else f", {full['bytes'] / 1024:,.0f} KiB"
            latency = "" if full["latency_us"] is None else f", {full['latency_us']:,.0f} µs"
            lines.append(
                f"{row['model']} ({row['images']} images) with the anomaly score and all other outputs: "
                f"{full['parameters']:,} parameters, {full['macs']:,} MACs{size}{latency}."
            )
    return lines


def _generators(generators: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the generated images come from, and what that took."""
    if not generators:
        return []
    training, sampling = (
        sum(entry[part]["wall_seconds"] for entry in generators) / len(generators) for part in ("training", "sampling")
    )
    return [
        "Generated images come from one generator for each seed and kind of images, trained on the same real images: "
        f"vae for upright ones, angle-vae for rotated ones. It took {training:,.1f} s of training and {sampling:,.1f} "
        "s of sampling on average, which are not in the training seconds of the models that used them."
    ]


def _points(points: Mapping[str, Any]) -> str:
    return f"{points['mean']:+.2f}" + ("" if points["std"] is None else f" ± {points['std']:.2f}")
