"""Pictures of what a trained model does, drawn from arrays: curves, histograms, and images in rows and columns.

Each function gives a matplotlib figure on a light background, as wide as a README. `write_png` writes it: the same
bytes for the same arrays and versions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_edge.files import write_bytes
from vae_edge.metrics import expected_calibration_error
from vae_edge.report.plots import (
    BINS,
    LIGHT,
    label_epochs,
    palette,
    plot_accuracies,
    plot_losses,
    plot_reliability,
    plot_roc,
    style,
)

WIDTH, DPI = 9.0, 150  # inches; 1350 pixels: as many as 900 on a screen of one and a half times the density
BACKGROUND = "white"


def new_figure(height: float, draw: Callable[[Any], None], fixed_layout: bool = False) -> Any:
    """A figure of our width and style, `height` inches high, filled by `draw`; `fixed_layout`: axes stay where put."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(LIGHT)):
        figure = Figure(figsize=(WIDTH, height), layout=None if fixed_layout else "constrained", facecolor=BACKGROUND)
        FigureCanvasAgg(figure)
        draw(figure)
    return figure


def write_png(figure: Any, path: str | Path) -> Path:
    """Write a figure as a small PNG: the nearest 256 colors, no metadata; the path."""
    import matplotlib

    with matplotlib.rc_context(style(LIGHT)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor=BACKGROUND, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    packed = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    write_bytes(path, packed.getvalue())
    return Path(path)


def roc(
    scores: Mapping[str, tuple[NDArray[np.floating], Mapping[str, NDArray[np.floating]], float]],
) -> Any:
    """ROC curves of several scores side by side.

    Args:
        scores: by name, the scores of known images, those of unknown images by kind, and the threshold.
    """

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for axes, (name, (known, unknown, threshold)) in zip(all_axes, scores.items(), strict=True):
            plot_roc(axes, LIGHT, known, unknown, threshold)
            axes.set_title(name, fontsize=10)
        for axes in all_axes[1:]:
            axes.set_ylabel("")

    return new_figure(4.6, draw)


def reliability_diagram(
    before: NDArray[np.floating], after: NDArray[np.floating], labels: NDArray[np.int64], temperature: float
) -> Any:
    """Reliability without and with the temperature, and below it the number of images in each bin.

    Args:
        before, after: probabilities [N, K]; labels: [N]. The temperature was fitted on other images.
    """
    titles = ("without temperature", f"with temperature {temperature:.2f}")

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
        for k, (probabilities, title) in enumerate(zip((before, after), titles, strict=True)):
            upper, lower = all_axes[:, k]
            color = palette(LIGHT)[-1 if k else 0]
            counts = plot_reliability(upper, LIGHT, probabilities, labels, color, "s" if k else "o")
            error = expected_calibration_error(probabilities, labels, BINS)
            upper.set_title(f"{title}: ECE {100 * error:.2f}%", fontsize=10)
            upper.set_xlabel("")
            _counts(lower, counts, color)
        for axes in all_axes[:, 1]:
            axes.set_ylabel("")

    return new_figure(5.0, draw)


def _counts(axes: Any, counts: NDArray[np.floating], color: str) -> None:
    """The number of images in each bin of probability, on a logarithmic axis."""
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    axes.bar(middles, counts, width=0.8 / len(counts), color=color, alpha=0.55)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 12 * max(1.0, float(counts.max())))
    axes.set_yticks([])
    axes.minorticks_off()
    axes.spines["left"].set_visible(False)
    for middle, count in zip(middles, counts, strict=True):
        if count:
            axes.text(middle, count * 1.25, f"{count:.0f}", ha="center", va="bottom", fontsize=7)
    axes.set_ylabel("images (log)")
    axes.set_xlabel("probability given")


def learning_curves(log: Sequence[Mapping[str, float]]) -> Any:
    """The terms of the loss by epoch, beside them the accuracies and the learning rate where the log has them.

    Args:
        log: lines of a run's `log.jsonl`.
    """
    has_accuracy = any(name.endswith("accuracy") for row in log for name in row)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        plot_losses(left, LIGHT, log)
        left.set_title("terms of the loss", fontsize=10)
        if has_accuracy:
            plot_accuracies(right, LIGHT, log)
            right.set_title("accuracy", fontsize=10)
            return
        known = [row for row in log if "learning_rate" in row]
        right.plot([row["epoch"] for row in known], [row["learning_rate"] for row in known], color=LIGHT["known"])
        label_epochs(right)
        right.set_title("learning rate", fontsize=10)

    return new_figure(3.6, draw)


MIN_ERROR_DEG = 0.1  # smaller errors are drawn here
CONFIDENCE_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)


def angles(
    errors_deg: NDArray[np.floating],
    confidences: NDArray[np.floating],
    ambiguous: NDArray[np.bool_],
    names: Sequence[str],
) -> Any:
    """The error of the angle: its histogram, and the error against the angle confidence.

    Args:
        errors_deg: absolute errors [N]; confidences: angle confidences [N].
        ambiguous: [N], whether an image's class passes for upright when it is rotated; names: of these classes.
    """
    classes = ", ".join(names) if len(", ".join(names)) < 28 else f"{len(names)} classes"
    groups = [
        (~ambiguous, "the other classes" if len(names) else "all classes", LIGHT["known"], "o"),
        (ambiguous, f"rotated, pass for upright: {classes}", LIGHT["others"][0], "^"),
    ]
    groups = [group for group in groups if group[0].any()]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for mask, label, color, marker in groups:
            filled = {"histtype": "stepfilled", "alpha": 0.45}
            look = filled if marker == "o" else {"histtype": "step", "linewidth": 1.8}
            left.hist(errors_deg[mask], bins=np.arange(0, 185, 5), color=color, label=label, **look)
            right.scatter(
                _uncertainty(confidences[mask]),
                np.maximum(errors_deg[mask], MIN_ERROR_DEG),
                s=8,
                color=color,
                marker=marker,
                alpha=0.4,
                linewidths=0,
            )
        left.set_yscale("symlog", linthresh=1)
        left.set(xticks=range(0, 181, 30), xlabel="error of the angle, degrees", ylabel="images (log)")
        left.set_title(f"all: median {np.median(errors_deg):.1f}°, mean {errors_deg.mean():.1f}°", fontsize=10)
        left.legend(fontsize=8)

        _running_median(right, errors_deg, confidences)
        right.set(yscale="log", xscale="log", ylabel="error of the angle, degrees (log)")
        low, high = 0.85 * _uncertainty(confidences).min(), 1.15 * _uncertainty(confidences).max()
        ticks = [tick for tick in CONFIDENCE_TICKS if low <= 1 - tick <= high]
        right.set_xticks([1 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
        right.set_xlim(high, low)
        right.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        right.set_ylim(0.08, 500)
        right.minorticks_off()
        right.set_xlabel("angle confidence (log)")
        right.set_title("error by confidence", fontsize=10)
        right.legend(fontsize=8, loc="upper right")

    return new_figure(3.9, draw)


def _uncertainty(confidences: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 less the confidence, at least 0.001."""
    return np.maximum(1.0 - confidences, 1e-3)


def _running_median(axes: Any, errors_deg: NDArray[np.floating], confidences: NDArray[np.floating]) -> None:
    groups = [group for group in np.array_split(np.argsort(confidences, kind="stable"), 12) if len(group)]
    axes.plot(
        [np.median(_uncertainty(confidences[group])) for group in groups],
        [max(MIN_ERROR_DEG, float(np.median(errors_deg[group]))) for group in groups],
        color=LIGHT["text"],
        linewidth=1.8,
        label="median, by twelfths of the images",
    )


# ------------------------------------------------------------------------------------------------------- images

# Inches: an image, the gap between two, the column of names, a line of a caption, a title.
CELL, GAP, NAMES, CAPTION, TITLE = 0.74, 0.06, 1.0, 0.14, 0.34


@dataclass(frozen=True)
class Column:
    """Images uint8 [R, S, S, C], one below the other, and a caption under them; `wrong` frames them in colour."""

    images: NDArray[np.uint8]
    caption: str
    wrong: bool = False


@dataclass(frozen=True)
class Block:
    """Columns side by side under a title, with a name for each row."""

    title: str
    rows: Sequence[str]
    columns: Sequence[Column]


def _show(axes: Any, image: NDArray[np.uint8], color: str | None = None) -> None:
    """One image uint8 [S, S, C], framed in a colour."""
    grey = image.shape[2] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=color is not None, color=color, linewidth=2.5)


def signed(value: float, form: str = ".0f") -> str:
    """A number with its sign, a proper minus, and none for zero."""
    text = format(abs(value), form)
    if not float(text):
        return "0"
    return ("−" if value < 0 else "+") + text


def degrees(angle_deg: float) -> str:
    """An angle in whole degrees, in (-180, 180] when rounded."""
    return f"{signed(180.0 if round(angle_deg) == -180 else angle_deg)}°"


def derotated(lines: Sequence[Sequence[Block]]) -> Any:
    """Input images, derotated and reconstructed: blocks side by side, line below line.

    A line has room for ten columns, or for eight in two blocks.
    """
    heights = [max(map(_height, line)) for line in lines]
    page_height = sum(heights)

    def draw(figure: Any) -> None:
        top = page_height
        for line, height in zip(lines, heights, strict=True):
            left = 0.0
            for block in line:
                _block(figure, block, left, top, page_height)
                left += NAMES + max(len(block.columns), 4) * (CELL + GAP) + 0.1
            top -= height

    return new_figure(page_height, draw, fixed_layout=True)


def _height(block: Block) -> float:
    captions = max(len(column.caption.splitlines()) for column in block.columns)
    return TITLE + len(block.rows) * (CELL + GAP) + captions * CAPTION + 0.12


def _block(figure: Any, block: Block, left: float, top: float, page_height: float) -> None:
    """Draw a block with its upper left corner at (left, top), in inches from the lower left corner of the page."""
    at = left + NAMES
    figure.text(at / WIDTH, (top - 0.1) / page_height, block.title, va="top", ha="left", fontsize=10, fontweight="bold")
    for r, name in enumerate(block.rows):
        y = top - TITLE - r * (CELL + GAP) - CELL / 2
        figure.text((at - 0.08) / WIDTH, y / page_height, name, va="center", ha="right", fontsize=9)
    for c, column in enumerate(block.columns):
        x = at + c * (CELL + GAP)
        color = LIGHT["others"][0] if column.wrong else None
        for r, image in enumerate(column.images):
            y = top - TITLE - r * (CELL + GAP) - CELL
            axes = figure.add_axes((x / WIDTH, y / page_height, CELL / WIDTH, CELL / page_height))
            _show(axes, image, color)
        y = top - TITLE - len(block.rows) * (CELL + GAP) - 0.01
        words = {"color": color, "fontweight": "bold"} if color else {}
        figure.text(
            (x + CELL / 2) / WIDTH,
            y / page_height,
            column.caption,
            va="top",
            ha="center",
            fontsize=7.5,
            linespacing=1.3,
            **words,
        )


def traversal(
    images: NDArray[np.uint8], ratios: NDArray[np.floating], names: Sequence[str], deviations: Sequence[float]
) -> Any:
    """Decoded codes, moved along the principal directions of the codes of their class.

    Args:
        images: uint8 [K, D, T, S, S, C]: of K classes, along D directions, at T positions.
        ratios: [K, D], the fraction of the variance of a class's codes that a direction explains.
        names: of the classes; deviations: the T positions, in standard deviations.
    """
    ordinals = ("first", "second", "third", "fourth")
    classes, directions, steps = images.shape[:3]

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(1, directions, squeeze=False)[0]
        for d, axes in enumerate(all_axes):
            _mosaic(axes, images[:, d])
            axes.set_xticks(range(steps), [signed(value, ".1f") for value in deviations])
            axes.set_yticks(range(classes), [f"{ratio:.0%}" for ratio in ratios[:, d]])
            axes.tick_params(axis="y", labelright=True, labelleft=False)
            axes.set_title(f"along the {ordinals[d]} direction", fontsize=10)
            axes.set_xlabel("standard deviations; right: fraction of the variance", fontsize=9)
        twin = all_axes[0].secondary_yaxis("left")
        twin.set_yticks(range(classes), names)
        twin.tick_params(length=0)
        twin.spines[:].set_visible(False)

    cell = (WIDTH - 1.6) / directions / steps
    return new_figure(0.85 + cell * classes, draw)


def generated(images: Mapping[str, NDArray[np.uint8] | None], angles_deg: Sequence[float] | None) -> Any:
    """Generated images by class (rows) and angle (columns).

    Args:
        images: uint8 [T, S, S, C] of each class, or fewer; None: there are none, and the row says so.
        angles_deg: the T angles, counter-clockwise; None: all are upright.
    """
    present = [found for found in images.values() if found is not None]
    steps = max(map(len, present)) if present else len(angles_deg or range(12))
    blank = np.full((steps, *present[0].shape[1:]) if present else (steps, 28, 28, 1), 255, np.uint8)
    rows = np.stack([blank if found is None else [*found, *blank[len(found) :]] for found in images.values()])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _mosaic(axes, rows)
        axes.set_yticks(range(len(images)), list(images))
        for r, found in enumerate(images.values()):
            if found is None:
                axes.text(-0.4, r, "none: the classifier recognizes too few of them", va="center", fontsize=9)
        axes.xaxis.tick_top()
        axes.set_xticks(range(steps) if angles_deg else [], [degrees(angle) for angle in angles_deg or ()])

    return new_figure(0.45 + (WIDTH - 0.9) / steps * len(rows), draw)


def _mosaic(axes: Any, images: NDArray[np.uint8]) -> None:
    """Images uint8 [R, T, H, W, C] in a table whose cell (r, t) is centred on the point (t, r)."""
    rows, steps, height, width, channels = images.shape
    edge = max(1, height // 28)
    wide = np.full((rows, steps, height + edge, width + edge, channels), 255, np.uint8)
    wide[:, :, :height, :width] = images
    table = wide.transpose(0, 2, 1, 3, 4).reshape(rows * (height + edge), steps * (width + edge), channels)
    axes.imshow(
        table[..., 0] if channels == 1 else table,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(-0.5, steps - 0.5, rows - 0.5, -0.5),
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
