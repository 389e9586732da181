"""The comparison with other models as a Markdown table and as a plot. It shows what it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_edge.files import atomic_path, write_text
from vae_edge.report.plots import LIGHT, style

TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
NAMES = {False: "real images alone", True: "with generated images"}
HEADINGS = (
    *("model", "accuracy", "with generated images", "training, s", "processor, s", "images seen"),
    *("training MACs", "parameters", "MACs", "ONNX, KiB", "latency, µs"),
)
NOTES = (
    "Accuracy: mean ± sample standard deviation over the seeds, on images of the training half that were held out from "
    "all training; each seed holds out others, and turns them by angles of its own where they are turned.",
    "svm and logistic see each image once, without augmentation (turned images: turned by one angle each). All "
    "networks are trained alike: AdamW on one cycle, an average of the weights, augmentation. That recipe, and its "
    "numbers, were chosen for angle-vae, on the training half of MNIST; no other model's were tuned.",
    "cnn-equal is as large as the part of angle-vae that decides the class, and is trained on as many images as make "
    "its multiply-accumulates equal to angle-vae's.",
    "Parameters, MACs (of one image), ONNX size and latency (one image, one thread, ONNX Runtime, median, all timed in "
    "turns) are those of the graph from bytes to one number for each class, of the first seed, trained on real images. "
    "What angle-vae and vae give beside the class is left out of it. svm's numbers are no probabilities.",
    "Training seconds of vae and angle-vae hold the fitting of the rejection score and its threshold.",
)


def write_comparison(result: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write `compare.md`, `compare.png` and `compare.svg` into a folder; their paths.

    `result` is what `vae-edge compare --json` prints.
    """
    table = Path(folder) / "compare.md"
    write_text(table, markdown(result))
    return [table, *write_plot(result["rows"], Path(folder) / "compare")]


def markdown(result: Mapping[str, Any]) -> str:
    """The tables, one for each kind of image, and what has to be said with them."""
    settings, machine, data = result["settings"], result["machine"], result["data"]
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        "# Comparison with other models",
        "",
        f"{data['name']}, preset `{settings['preset']}`, seeds {seeds}. {machine['cpu']}, "
        f"{machine['threads']} thread(s) in training, {machine['date']}.",
        "",
    ]
    for kind in ("turned", "upright"):
        rows = [row for row in result["rows"] if row["images"] == kind]
        if rows:
            lines += [f"## {kind.capitalize()} images", "", *_table(rows), ""]
    lines += [f"**{result['sentence']}**", "", *_generated(result["generated_helps"])]
    notes = [*NOTES, *_places(result["cells"]), *_wholes(result["rows"]), *_generators(result["generators"])]
    lines += [f"- {note}" for note in notes]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


def _places(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note where cells were trained in different places, or by different versions of the code."""
    wheres = {tuple(sorted(cell["where"].items())) for cell in cells}
    if len(wheres) == 1:
        return []
    told = "; ".join(", ".join(f"{name} {value}" for name, value in where) for where in sorted(wheres))
    return [f"The cells were trained in {len(wheres)} different circumstances, so their seconds differ: {told}."]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each model: the figures of training without generated images, and the accuracy with them."""
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


def _generated(helps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What generated images changed, in points, by model."""
    lines = []
    for kind in ("turned", "upright"):
        found = [entry for entry in helps if entry["images"] == kind]
        if found:
            each = ", ".join(f"{entry['model']} {_points(entry['points'])}" for entry in found)
            lines += [f"What generated images change on {kind} images, in points: {each}.", ""]
    return lines


def _wholes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ours costs with all that it gives."""
    lines = []
    for row in rows:
        if "whole" in row and not row["generated"]:
            whole = row["whole"]
            size = "" if whole["bytes"] is None else f", {whole['bytes'] / 1024:,.0f} KiB"
            timed = "" if whole["latency_us"] is None else f", {whole['latency_us']:,.0f} µs"
            lines.append(
                f"{row['model']} ({row['images']} images) with the rejection score and all else that is exported: "
                f"{whole['parameters']:,} parameters, {whole['macs']:,} MACs{size}{timed}."
            )
    return lines


def _generators(generators: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the generated images come from, and what that took."""
    if not generators:
        return []
    training, drawing = (
        sum(entry[part]["wall_seconds"] for entry in generators) / len(generators) for part in ("training", "drawing")
    )
    return [
        "Generated images come from one generator for each seed and kind of image, trained on the same real images: "
        f"vae for upright ones, angle-vae for turned ones; {training:,.1f} s of training and {drawing:,.1f} s of "
        "drawing on average, which are not among the training seconds of the models that used them."
    ]


def _points(points: Mapping[str, Any]) -> str:
    return f"{points['mean']:+.2f}" + ("" if points["std"] is None else f" ± {points['std']:.2f}")


def write_plot(rows: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """Accuracy with its spread by model, turned and upright side by side, as PNG and SVG; their paths.

    The axis is the logarithm of the errors' share, so that 99% and 99.5% stand apart; its ticks say the accuracy.
    """
    import matplotlib
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("turned", "upright") if any(row["images"] == kind for row in rows)]
    models = list(dict.fromkeys(row["model"] for row in rows))[::-1]
    with matplotlib.rc_context(style(LIGHT)):
        figure = Figure(figsize=(4.6 * len(kinds) + 1.0, 1.3 + 0.42 * len(models)), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _panel(axes, [row for row in rows if row["images"] == kind], models)
            axes.set_title(f"{kind} images", fontsize=10)
        panels[0].set_yticks(range(len(models)), models)
        if any(row["generated"] for row in rows):
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
        paths = []
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            paths.append(stem.with_suffix(f".{kind}"))
            with atomic_path(paths[-1]) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
    return paths


def _whisker(row: Mapping[str, Any], least: float) -> tuple[float, float]:
    """Both ends of the spread of an error, drawn no lower than `least`."""
    error, deviation = max(1.0 - row["accuracy"]["mean"], least), row["accuracy"]["std"] or 0.0
    return max(error - deviation, least), min(error + deviation, 1.0)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> None:
    least = min(1.0 / row["judged_on"] for row in rows) / 2  # where an accuracy of 100% is drawn
    named: set[bool] = set()
    for row in rows:
        error = max(1.0 - row["accuracy"]["mean"], least)
        lower, upper = _whisker(row, least)
        place = models.index(row["model"]) + (-0.14 if row["generated"] else 0.14)
        axes.errorbar(
            error,
            place,
            xerr=[[error - lower], [upper - error]],
            fmt="o",
            markersize=5,
            capsize=3,
            color=LIGHT["others"][0] if row["generated"] else LIGHT["known"],
            markerfacecolor="white" if row["generated"] else None,
            label=None if row["generated"] in named else NAMES[row["generated"]],
        )
        named.add(row["generated"])
    errors = [end for row in rows for end in _whisker(row, least)]
    axes.set_ylim(-0.5, len(models) - 0.5)
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, max(errors) * 1.6), min(errors) / 1.6)
    shown = [tick for tick in TICKS if min(errors) / 1.6 <= 1 - tick <= max(errors) * 1.6]
    axes.set_xticks([1 - tick for tick in shown], [f"{100 * tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_xlabel("accuracy, %")
    axes.grid(axis="x", color=LIGHT["faint"], linewidth=0.6)
