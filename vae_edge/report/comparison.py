"""The comparison with baselines as tables, from its JSON (`compare.json`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_edge.files import write_text
from vae_edge.report.plots import write_accuracy_plot

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
