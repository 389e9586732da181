"""Curves and histograms of what a trained model does, drawn from arrays, on a light page as wide as a README.

Each function gives a matplotlib figure; `write_png` writes it, the same bytes for the same arrays and versions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_edge.files import write_bytes
from vae_edge.metrics import expected_calibration_error
from vae_edge.report.figures import LIGHT, style
from vae_edge.report.panels import BINS, palette, reliability_panel, roc_panel

WIDTH, DPI = 9.0, 150  # inches; 1350 pixels: as many as 900 on a screen of one and a half times the density
PAGE = "white"


def light_page(height: float, draw: Callable[[Any], None], by_hand: bool = False) -> Any:
    """A figure of our width and style, `height` inches high; `by_hand`: what is in it stays where it is put."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(LIGHT)):
        figure = Figure(figsize=(WIDTH, height), layout=None if by_hand else "constrained", facecolor=PAGE)
        FigureCanvasAgg(figure)
        draw(figure)
    return figure


def write_png(figure: Any, path: str | Path) -> Path:
    """Write a figure as a small PNG: the nearest 256 colours, no metadata; the path."""
    import matplotlib

    with matplotlib.rc_context(style(LIGHT)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAGE, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    packed = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    write_bytes(path, packed.getvalue())
    return Path(path)


def roc(
    scores: Mapping[str, tuple[NDArray[np.floating], Mapping[str, NDArray[np.floating]], float]],
) -> Any:
    """ROC curves side by side: for each score by name those of known images, of each kind of unknown, the threshold."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for axes, (name, (known, unknown, threshold)) in zip(panels, scores.items(), strict=True):
            roc_panel(axes, LIGHT, known, unknown, threshold)
            axes.set_title(name, fontsize=10)
        for axes in panels[1:]:
            axes.set_ylabel("")

    return light_page(4.6, draw)


def reliability_diagram(
    before: NDArray[np.floating], after: NDArray[np.floating], labels: NDArray[np.int64], temperature: float
) -> Any:
    """Reliability without and with the temperature, and below it how many images each bin has.

    Args:
        before, after: probabilities [N, K]; labels: [N], of images that the temperature was not fitted on.
    """
    titles = ("without temperature", f"with temperature {temperature:.2f}")

    def draw(figure: Any) -> None:
        panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
        for k, (probabilities, title) in enumerate(zip((before, after), titles, strict=True)):
            upper, lower = panels[:, k]
            colour = palette(LIGHT)[-1 if k else 0]
            counts = reliability_panel(upper, LIGHT, probabilities, labels, colour, "s" if k else "o")
            error = expected_calibration_error(probabilities, labels, BINS)
            upper.set_title(f"{title}: ECE {100 * error:.2f}%", fontsize=10)
            upper.set_xlabel("")
            _counts(lower, counts, colour)
        for axes in panels[:, 1]:
            axes.set_ylabel("")

    return light_page(5.0, draw)


def _counts(axes: Any, counts: NDArray[np.floating], colour: str) -> None:
    """How many images each bin of probability has, on a logarithmic scale, with the numbers."""
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    axes.bar(middles, counts, width=0.8 / len(counts), color=colour, alpha=0.55)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 12 * max(1.0, float(counts.max())))
    axes.set_yticks([])
    axes.minorticks_off()
    axes.spines["left"].set_visible(False)
    for middle, count in zip(middles, counts, strict=True):
        if count:
            axes.text(middle, count * 1.25, f"{count:.0f}", ha="center", va="bottom", fontsize=7)
    axes.set_ylabel("images (log)")
    axes.set_xlabel("probability that it gives")


def angles(
    errors_deg: NDArray[np.floating],
    concentrations: NDArray[np.floating],
    alike: NDArray[np.bool_],
    names: Sequence[str],
) -> Any:
    """The angle's error: how often which, and against the concentration that comes with it.

    Args:
        errors_deg: [N], absolute; concentrations: [N]; alike: [N], whether the image is of a class that, when turned,
            passes for an upright image; names: these classes.
    """
    parts = [(~alike, "the other classes" if len(names) else "all classes", LIGHT["known"], "o")]
    which = ", ".join(names) if len(", ".join(names)) < 28 else f"{len(names)} classes"
    parts.append((alike, f"turned, pass for upright: {which}", LIGHT["others"][0], "^"))
    parts = [part for part in parts if part[0].any()]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for mask, word, colour, marker in parts:
            look = (
                {"histtype": "stepfilled", "alpha": 0.45} if marker == "o" else {"histtype": "step", "linewidth": 1.8}
            )
            left.hist(errors_deg[mask], bins=np.arange(0, 185, 5), color=colour, label=word, **look)
            right.scatter(
                _doubt(concentrations[mask]),
                np.maximum(errors_deg[mask], LEAST_ERROR),
                s=8,
                color=colour,
                marker=marker,
                alpha=0.4,
                linewidths=0,
            )
        left.set_yscale("symlog", linthresh=1)
        left.set(xticks=range(0, 181, 30), xlabel="error of the angle, degrees", ylabel="images (log)")
        left.set_title(f"all: median {np.median(errors_deg):.1f}°, mean {errors_deg.mean():.1f}°", fontsize=10)
        left.legend(fontsize=8)
        _running_median(right, errors_deg, concentrations)
        right.set(yscale="log", xscale="log", ylabel="error of the angle, degrees (log)")
        low, high = 0.85 * _doubt(concentrations).min(), 1.15 * _doubt(concentrations).max()
        ticks = [c for c in CONCENTRATIONS if low <= 1 - c <= high]
        right.set_xticks([1 - c for c in ticks], [f"{c:g}" for c in ticks])
        right.set_xlim(high, low)
        right.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        right.set_ylim(0.08, 500)
        right.minorticks_off()
        right.set_xlabel("concentration: how sure it is of the angle (log)")
        right.set_title("error by concentration", fontsize=10)
        right.legend(fontsize=8, loc="upper right")

    return light_page(3.9, draw)


LEAST_ERROR = 0.1  # degrees; smaller ones are drawn here
CONCENTRATIONS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)


def _doubt(concentrations: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far concentrations are from 1, at least by 0.001."""
    return np.maximum(1.0 - concentrations, 1e-3)


def _running_median(axes: Any, errors_deg: NDArray[np.floating], concentrations: NDArray[np.floating]) -> None:
    groups = [group for group in np.array_split(np.argsort(concentrations, kind="stable"), 12) if len(group)]
    axes.plot(
        [np.median(_doubt(concentrations[group])) for group in groups],
        [max(LEAST_ERROR, float(np.median(errors_deg[group]))) for group in groups],
        color=LIGHT["ink"],
        linewidth=1.8,
        label="median, by twelfths of the images",
    )
