"""The plots of the report and of the comparison. They show the arrays that they are given.

A page has each plot twice, as SVG for a light and for a dark background. `plot_roc` and `plot_reliability` take
matplotlib's axes, so that a page and a picture of `vae_edge.report.galleries` share them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_edge.files import atomic_path
from vae_edge.metrics import auroc, reliability, roc_curve

Colors = Mapping[str, Any]
LIGHT: Colors = {
    "text": "#1c2330",
    "grid": "#d8dce4",
    "known": "#2563b8",
    "others": ("#c2571a", "#2b8a57", "#8b4fb5", "#a08a12", "#c23a64"),
}
DARK: Colors = {
    "text": "#e6e9ef",
    "grid": "#39414f",
    "known": "#6ea8f5",
    "others": ("#f0985c", "#63c793", "#c597ea", "#d9c24a", "#f08aa8"),
}
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
BINS = 15  # of the reliability diagram
ACCURACY_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
MIXTURES = {False: "real images alone", True: "with generated images"}
PlotFunction = Callable[[Any, Colors], None]
"""Draws a plot into matplotlib's axes, in the colours given."""


@dataclass(frozen=True)
class Plot:
    """A plot as data URIs for a light and a dark page, and its description in words."""

    light: str
    dark: str
    alt: str


def render(draw: PlotFunction, alt: str, size: tuple[float, float] = (5.4, 3.1)) -> Plot:
    """Render a plot as SVG for a light and a dark page. `size` is in inches."""
    return Plot(_svg_data_uri(draw, LIGHT, size), _svg_data_uri(draw, DARK, size), alt)


def _svg_data_uri(draw: PlotFunction, colors: Colors, size: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(colors)):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes, colors)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def style(colors: Colors) -> dict[str, Any]:
    """Settings of matplotlib for all plots. The fixed salt makes the same data the same SVG."""
    return {
        "svg.hashsalt": "vae-edge",
        "svg.fonttype": "path",
        "font.size": 10,
        "text.color": colors["text"],
        "axes.edgecolor": colors["grid"],
        "axes.labelcolor": colors["text"],
        "xtick.color": colors["text"],
        "ytick.color": colors["text"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }


def palette(colors: Colors) -> list[str]:
    """Six colours, those of unknown images first."""
    return [*colors["others"], colors["known"]]


def png_data_uri(image: NDArray[np.uint8]) -> str:
    """An image uint8 [S, S, C] as a PNG data URI, pixel by pixel."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


MAX_PNG_SIDE, MAX_SHOWN_SIDE = 48, 128  # pixels: larger images are shown as JPEG, and reduced


def image_data_uri(image: NDArray[np.uint8]) -> str:
    """An image uint8 [H, W, C] as a data URI: small ones pixel by pixel, large ones as JPEG of at most 128 pixels."""
    if max(image.shape[:2]) <= MAX_PNG_SIDE:
        return png_data_uri(image)
    shown = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    shown.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def side_by_side(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [N, S, S, C] as one image [S, N · S, C]."""
    return np.concatenate(list(images), axis=1)


# ------------------------------------------------------------------------------------------- plots of the report


def angle_histogram(errors_deg: NDArray[np.floating]) -> Plot:
    """How often which error of the angle occurs, on a logarithmic axis."""

    def draw(axes: Any, colors: Colors) -> None:
        axes.hist(errors_deg, bins=np.arange(0, 185, 5), color=colors["known"])
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xticks(range(0, 181, 30))
        axes.set_xlabel("absolute error of the angle, degrees")
        axes.set_ylabel("images (log)")

    fraction = float((errors_deg <= 10).mean())
    return render(draw, f"Histogram of the angle error: {fraction:.0%} of the images within 10 degrees")


def score_histogram(known: NDArray[np.floating], unknown: Mapping[str, NDArray[np.floating]], threshold: float) -> Plot:
    """Anomaly scores of known images and of unknown ones by kind, with the threshold."""
    everything = np.concatenate([known, *unknown.values()])
    low, high = float(everything.min()), float(np.quantile(everything, 0.99))
    bins = np.linspace(low, max(high, threshold + 1), 60)

    def draw(axes: Any, colors: Colors) -> None:
        def histogram(scores: NDArray[np.floating], **options: Any) -> None:
            clipped = np.clip(scores, bins[0], bins[-1])
            axes.hist(clipped, bins=bins, weights=np.full(len(scores), 100 / len(scores)), **options)

        histogram(known, color=colors["known"], alpha=0.55, label="known")
        for k, (name, scores) in enumerate(unknown.items()):
            color = colors["others"][k % len(colors["others"])]
            histogram(scores, histtype="step", color=color, linewidth=1.6, label=name)
        axes.axvline(threshold, color=colors["text"], linestyle="--", linewidth=1.2)
        axes.set_xlabel("anomaly score (dashed: threshold)")
        axes.set_ylabel("% of images")
        axes.legend(fontsize=9)

    return render(draw, "Histogram of the anomaly score of known and unknown images, with the threshold", (5.4, 3.4))


def latency_bars(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Latency at batch 1 by backend and precision, in µs: a bar to the median, a line to the 99th percentile."""
    names = [f"{row['backend']} {row['precision']}" for row in rows]
    p50 = np.array([row["p50_us"] for row in rows])
    p99 = np.array([row["p99_us"] for row in rows])

    def draw(axes: Any, colors: Colors) -> None:
        y = np.arange(len(names))[::-1]
        axes.barh(y, p50, color=colors["known"], height=0.6)
        axes.hlines(y, p50, p99, color=colors["text"], linewidth=1.2)
        axes.set_yticks(y, names)
        axes.set_xlabel("µs an image, batch 1: bar median, line to p99")
        axes.set_xlim(0, float(np.max(p99)) * 1.05)

    return render(draw, "Median latency at batch 1 by backend and precision", (5.4, 0.9 + 0.42 * len(names)))


def precision_bars(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """The size of each precision's file in KiB, with its accuracy beside the bar."""
    sizes = np.array([row["bytes"] / 1024 for row in rows])

    def draw(axes: Any, colors: Colors) -> None:
        y = np.arange(len(rows))[::-1]
        axes.barh(y, sizes, color=colors["known"], height=0.6)
        for position, size, row in zip(y, sizes, rows, strict=True):
            axes.text(size, position, f"  {100 * row['accuracy']:.1f}% right", va="center", color=colors["text"])
        axes.set_yticks(y, [row["precision"] for row in rows])
        axes.set_xlabel("size of the model file, KiB")
        axes.set_xlim(0, float(sizes.max()) * 1.35)

    return render(draw, "Size and accuracy by precision", (5.4, 0.9 + 0.42 * len(rows)))


LOSS_TERMS = ("reconstruction", "kl", "classes", "angle", "val_classes")
"""The terms of the training log that are drawn."""


def training_curve(log: Sequence[Mapping[str, float]]) -> Plot:
    """The terms of the loss by epoch, each relative to its value after the first epoch."""
    return render(lambda axes, colors: plot_losses(axes, colors, log), "The terms of the loss by epoch")


# --------------------------------------------------------------------------------------- plots into given axes


def plot_losses(axes: Any, colors: Colors, log: Sequence[Mapping[str, float]]) -> None:
    """The terms of the loss by epoch, each relative to its value after the first epoch; those that are positive."""
    terms = [name for name in LOSS_TERMS if log and all(row.get(name, 0.0) > 0 for row in log)]
    marker = "o" if len(log) < 3 else None
    for k, name in enumerate(terms):
        values = np.array([row[name] for row in log])
        color = [colors["known"], *colors["others"]][k % 6]
        axes.plot([row["epoch"] for row in log], values / values[0], color=color, marker=marker, label=name)
    axes.set_yscale("log")
    label_epochs(axes)
    axes.set_ylabel("relative to the first epoch")
    if terms:
        axes.legend(fontsize=9)


def label_epochs(axes: Any) -> None:
    """Whole numbers of epochs on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")


def plot_accuracies(axes: Any, colors: Colors, log: Sequence[Mapping[str, float]]) -> None:
    """Every accuracy that the training log has, by epoch, in percent."""
    names = [name for name in log[0] if name.endswith("accuracy")] if log else []
    for k, name in enumerate(names):
        known = [row for row in log if row.get(name) is not None]
        color = [colors["known"], *colors["others"]][k % 6]
        axes.plot([row["epoch"] for row in known], [100 * row[name] for row in known], color=color, label=name)
    label_epochs(axes)
    axes.set_ylabel("right, %")
    if names:
        axes.legend(fontsize=9, loc="lower right")


def plot_roc(
    axes: Any,
    colors: Colors,
    known: NDArray[np.floating],
    unknown: Mapping[str, NDArray[np.floating]],
    threshold: float | None = None,
) -> None:
    """A ROC curve for each kind of unknown images, with its AUROC in the legend.

    The axis of false rejections is logarithmic and begins at half an image. A dashed line marks the fraction of known
    images that the threshold rejects.
    """
    low = 0.5 / len(known)
    for k, (name, scores) in enumerate(unknown.items()):
        false, true = roc_curve(known, scores)
        axes.plot(
            np.maximum(false, low),
            true,
            drawstyle="steps-post",
            color=palette(colors)[k % 6],
            linestyle=LINE_STYLES[k % 6],
            linewidth=1.7,
            label=f"{auroc(known, scores):.4f}  {name}",
        )

    if threshold is not None:
        rejected = max(low, float((known > threshold).mean()))
        axes.axvline(rejected, color=colors["text"], linestyle="--", linewidth=0.9)
        axes.text(
            rejected,
            0.02,
            " threshold",
            transform=axes.get_xaxis_transform(),
            color=colors["text"],
            fontsize=8,
            ha="left",
        )
    axes.set_xscale("log")
    axes.set_xlim(low, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("known images rejected (log)")
    axes.set_ylabel("unknown images rejected")
    axes.grid(color=colors["grid"], linewidth=0.6)
    axes.legend(fontsize=8, title="AUROC", title_fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def plot_reliability(
    axes: Any,
    colors: Colors,
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    color: str,
    marker: str = "o",
    label: str | None = None,
) -> NDArray[np.floating]:
    """Accuracy against confidence in 15 bins, with 95% intervals; empty bins are left out.

    Args:
        probabilities: [N, K]; labels: [N].

    Returns:
        the number of images in each bin, [15].
    """
    table = reliability(probabilities, labels, BINS)
    filled = table["count"] > 0
    confidence, accuracy, count = (table[name][filled] for name in ("confidence", "accuracy", "count"))
    low, high = wilson_interval(accuracy * count, count)

    axes.plot([0, 1], [0, 1], color=colors["text"], linestyle=":", linewidth=1, zorder=0)
    axes.vlines(confidence, low, high, color=color, linewidth=1.2, alpha=0.6)
    axes.plot(confidence, accuracy, color=color, marker=marker, markersize=5, linewidth=1.2, label=label, clip_on=False)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability given")
    axes.set_ylabel("accuracy")
    axes.grid(color=colors["grid"], linewidth=0.6)
    return table["count"]


def wilson_interval(
    hits: NDArray[np.floating], count: NDArray[np.floating], z: float = 1.96
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The confidence interval of a proportion, `hits` of `count` (Wilson 1927); 95% at z = 1.96. It stays in [0, 1]."""
    hits, count = np.asarray(hits, np.float64), np.asarray(count, np.float64)
    centre = (hits + z * z / 2) / (count + z * z)
    half_width = z / (count + z * z) * np.sqrt(hits * (count - hits) / count + z * z / 4)
    return np.clip(centre - half_width, 0, 1), np.clip(centre + half_width, 0, 1)


# ---------------------------------------------------------------------------------------- plot of the comparison


def write_accuracy_plot(rows: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """Accuracy with its standard deviation by model, rotated and upright images side by side, as PNG and SVG.

    The axis is the logarithm of the error rate, so that 99% and 99.5% stand apart; its ticks name the accuracy.

    Args:
        rows: of a comparison (`vae_edge.experiments.trials`).
        stem: of the two files, without a suffix.

    Returns:
        the files' paths.
    """
    import matplotlib
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("rotated", "upright") if any(row["images"] == kind for row in rows)]
    models = list(dict.fromkeys(row["model"] for row in rows))[::-1]
    with matplotlib.rc_context(style(LIGHT)):
        figure = Figure(figsize=(4.6 * len(kinds) + 1.0, 1.3 + 0.42 * len(models)), layout="constrained")
        all_axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(all_axes, kinds, strict=True):
            _plot_accuracy(axes, [row for row in rows if row["images"] == kind], models)
            axes.set_title(f"{kind} images", fontsize=10)
        all_axes[0].set_yticks(range(len(models)), models)
        if any(row["generated"] for row in rows):
            figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)

        paths = []
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            paths.append(stem.with_suffix(f".{suffix}"))
            with atomic_path(paths[-1]) as temporary:
                figure.savefig(temporary, format=suffix, dpi=150, metadata=metadata)
    return paths


def _plot_accuracy(axes: Any, rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> None:
    smallest = min(1.0 / row["tested_on"] for row in rows) / 2  # the error that an accuracy of 100% is drawn at
    named: set[bool] = set()
    for row in rows:
        error = max(1.0 - row["accuracy"]["mean"], smallest)
        lower, upper = _error_range(row, smallest)
        y = models.index(row["model"]) + (-0.14 if row["generated"] else 0.14)
        axes.errorbar(
            error,
            y,
            xerr=[[error - lower], [upper - error]],
            fmt="o",
            markersize=5,
            capsize=3,
            color=LIGHT["others"][0] if row["generated"] else LIGHT["known"],
            markerfacecolor="white" if row["generated"] else None,
            label=None if row["generated"] in named else MIXTURES[row["generated"]],
        )
        named.add(row["generated"])

    errors = [end for row in rows for end in _error_range(row, smallest)]
    low, high = min(errors) / 1.6, max(errors) * 1.6
    axes.set_ylim(-0.5, len(models) - 0.5)
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, high), low)
    shown = [tick for tick in ACCURACY_TICKS if low <= 1 - tick <= high]
    axes.set_xticks([1 - tick for tick in shown], [f"{100 * tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_xlabel("accuracy, %")
    axes.grid(axis="x", color=LIGHT["grid"], linewidth=0.6)


def _error_range(row: Mapping[str, Any], smallest: float) -> tuple[float, float]:
    """The error rate less and plus its standard deviation, at least `smallest`."""
    error, deviation = max(1.0 - row["accuracy"]["mean"], smallest), row["accuracy"]["std"] or 0.0
    return max(error - deviation, smallest), min(error + deviation, 1.0)
