"""Plots and pictures as data URIs: each plot is drawn twice, for a light and for a dark page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
