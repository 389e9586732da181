"""Plots and pictures as data URIs: each plot is drawn twice, for a light and for a dark page.

Curves of a classifier, each drawn into axes that the page of a report or a picture gives.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_edge.metrics import auroc, reliability, roc_curve

LIGHT = {
    "ink": "#1c2330",
    "faint": "#d8dce4",
    "known": "#2563b8",
    "others": ("#c2571a", "#2b8a57", "#8b4fb5", "#a08a12", "#c23a64"),
}
DARK = {
    "ink": "#e6e9ef",
    "faint": "#39414f",
    "known": "#6ea8f5",
    "others": ("#f0985c", "#63c793", "#c597ea", "#d9c24a", "#f08aa8"),
}
Draw = Callable[[Any, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Plot:
    """One plot for both kinds of page, and what it shows in words."""

    light: str
    dark: str
    alt: str


def plot(draw: Draw, alt: str, size: tuple[float, float] = (5.4, 3.1)) -> Plot:
    """Render `draw(axes, colours)` as SVG for a light and a dark page. `size` is in inches."""
    return Plot(_render(draw, LIGHT, size), _render(draw, DARK, size), alt)


def _render(draw: Draw, colours: Mapping[str, Any], size: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(colours)):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes, colours)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def style(colours: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of matplotlib for all our plots."""
    return {
        "svg.hashsalt": "vae-edge",
        "svg.fonttype": "path",
        "font.size": 10,
        "text.color": colours["ink"],
        "axes.edgecolor": colours["faint"],
        "axes.labelcolor": colours["ink"],
        "xtick.color": colours["ink"],
        "ytick.color": colours["ink"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }


def picture(image: NDArray[np.uint8]) -> str:
    """An image uint8 [S, S, C] as a PNG data URI, pixel by pixel."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def strip(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [n, S, S, C] side by side as one [S, n · S, C]."""
    return np.concatenate(list(images), axis=1)


def angle_histogram(errors_deg: NDArray[np.floating]) -> Plot:
    """How often which angle error occurs, on a logarithmic scale."""

    def draw(axes: Any, colours: Mapping[str, Any]) -> None:
        axes.hist(errors_deg, bins=np.arange(0, 185, 5), color=colours["known"])
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xticks(range(0, 181, 30))
        axes.set_xlabel("absolute error of the angle, degrees")
        axes.set_ylabel("images (log)")

    share = float((errors_deg <= 10).mean())
    return plot(draw, f"Histogram of the angle error: {share:.0%} of the images within 10 degrees")


def score_histogram(known: NDArray[np.floating], unknown: Mapping[str, NDArray[np.floating]], threshold: float) -> Plot:
    """Scores of known and unknown images with the threshold between them."""
    everything = np.concatenate([known, *unknown.values()])
    low, high = float(everything.min()), float(np.quantile(everything, 0.99))
    bins = np.linspace(low, max(high, threshold + 1), 60)

    def draw(axes: Any, colours: Mapping[str, Any]) -> None:
        def outline(scores: NDArray[np.floating], **options: Any) -> None:
            clipped = np.clip(scores, bins[0], bins[-1])
            axes.hist(clipped, bins=bins, weights=np.full(len(scores), 100 / len(scores)), **options)

        outline(known, color=colours["known"], alpha=0.55, label="known")
        for (name, scores), colour in zip(unknown.items(), _cycle(colours["others"], len(unknown)), strict=True):
            outline(scores, histtype="step", color=colour, linewidth=1.6, label=name)
        axes.axvline(threshold, color=colours["ink"], linestyle="--", linewidth=1.2)
        axes.set_xlabel("rejection score (dashed: threshold)")
        axes.set_ylabel("% of images")
        axes.legend(fontsize=9)

    return plot(draw, "Histogram of the rejection score of known and unknown images, with the threshold", (5.4, 3.4))


def latency_bars(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Median latency at batch 1 with the 99th percentile as a whisker, by backend and precision. Microseconds."""
    names = [f"{row['backend']} {row['precision']}" for row in rows]
    p50 = np.array([row["p50_us"] for row in rows])
    p99 = np.array([row["p99_us"] for row in rows])

    def draw(axes: Any, colours: Mapping[str, Any]) -> None:
        places = np.arange(len(names))[::-1]
        axes.barh(places, p50, color=colours["known"], height=0.6)
        axes.hlines(places, p50, p99, color=colours["ink"], linewidth=1.2)
        axes.set_yticks(places, names)
        axes.set_xlabel("µs an image, batch 1: bar median, line to p99")
        axes.set_xlim(0, float(np.max(p99)) * 1.05)

    return plot(draw, "Median latency at batch 1 by backend and precision", (5.4, 0.9 + 0.42 * len(names)))


def precision_bars(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Size of each precision's file in KiB, with its accuracy written beside the bar."""
    sizes = np.array([row["bytes"] / 1024 for row in rows])

    def draw(axes: Any, colours: Mapping[str, Any]) -> None:
        places = np.arange(len(rows))[::-1]
        axes.barh(places, sizes, color=colours["known"], height=0.6)
        for place, size, row in zip(places, sizes, rows, strict=True):
            axes.text(size, place, f"  {100 * row['accuracy']:.1f}% right", va="center", color=colours["ink"])
        axes.set_yticks(places, [row["precision"] for row in rows])
        axes.set_xlabel("size of the model file, KiB")
        axes.set_xlim(0, float(sizes.max()) * 1.35)

    return plot(draw, "Size and accuracy by precision", (5.4, 0.9 + 0.42 * len(rows)))


def training_curve(log: Sequence[Mapping[str, float]]) -> Plot:
    """The terms of the loss by epoch, each relative to its first value."""
    terms = [name for name in ("reconstruction", "kl", "classes", "angle") if name in log[0]]

    def draw(axes: Any, colours: Mapping[str, Any]) -> None:
        palette = [colours["known"], *colours["others"]]
        for name, colour in zip(terms, palette, strict=False):
            values = np.array([row[name] for row in log])
            axes.plot([row["epoch"] for row in log], values / values[0], color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel("relative to the first epoch")
        axes.legend(fontsize=9)

    return plot(draw, "The terms of the loss by epoch")


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(count)]


LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
BINS = 15  # of the reliability diagram


def palette(colours: Mapping[str, Any]) -> list[str]:
    """Six colours, those of the unknown first."""
    return [*colours["others"], colours["known"]]


def roc_panel(
    axes: Any,
    colours: Mapping[str, Any],
    known: NDArray[np.floating],
    unknown: Mapping[str, NDArray[np.floating]],
    threshold: float | None = None,
) -> None:
    """A ROC curve for each kind of unknown images, with its AUROC in the legend.

    The share of known images rejected is on a logarithmic axis, from that of half an image on. A dashed line marks the
    share that the threshold rejects.
    """
    least = 0.5 / len(known)
    for k, (name, scores) in enumerate(unknown.items()):
        false, true = roc_curve(known, scores)
        axes.plot(
            np.maximum(false, least),
            true,
            drawstyle="steps-post",
            color=palette(colours)[k % 6],
            linestyle=LINES[k % 6],
            linewidth=1.7,
            label=f"{auroc(known, scores):.4f}  {name}",
        )
    if threshold is not None:
        share = max(least, float((known > threshold).mean()))
        axes.axvline(share, color=colours["ink"], linestyle="--", linewidth=0.9)
        axes.text(
            share, 0.02, " threshold", transform=axes.get_xaxis_transform(), color=colours["ink"], fontsize=8, ha="left"
        )
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("known images rejected (log)")
    axes.set_ylabel("unknown images rejected")
    axes.grid(color=colours["faint"], linewidth=0.6)
    axes.legend(fontsize=8, title="AUROC", title_fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def reliability_panel(
    axes: Any,
    colours: Mapping[str, Any],
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    colour: str,
    marker: str = "o",
    label: str | None = None,
) -> NDArray[np.floating]:
    """Accuracy against confidence in 15 bins, with 95% intervals; how many images each bin has, [15].

    Intervals are those of Wilson (1927), which stay within [0, 1]. Empty bins are left out.
    """
    table = reliability(probabilities, labels, BINS)
    there = table["count"] > 0
    confidence, accuracy, count = (table[name][there] for name in ("confidence", "accuracy", "count"))
    low, high = wilson(accuracy * count, count)
    axes.plot([0, 1], [0, 1], color=colours["ink"], linestyle=":", linewidth=1, zorder=0)
    axes.vlines(confidence, low, high, color=colour, linewidth=1.2, alpha=0.6)
    axes.plot(
        confidence, accuracy, color=colour, marker=marker, markersize=5, linewidth=1.2, label=label, clip_on=False
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability that it gives")
    axes.set_ylabel("share that is right")
    axes.grid(color=colours["faint"], linewidth=0.6)
    return table["count"]


def wilson(
    hits: NDArray[np.floating], count: NDArray[np.floating], z: float = 1.96
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of a share of which `hits` of `count` were seen (Wilson 1927); 95% at z = 1.96."""
    hits, count = np.asarray(hits, np.float64), np.asarray(count, np.float64)
    middle = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * np.sqrt(hits * (count - hits) / count + z * z / 4)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
