"""Curves and histograms of what a trained model does, drawn from arrays, on a light page as wide as a README.

Each function gives a matplotlib figure; `write_png` writes it, the same bytes for the same arrays and versions.

Images in rows and columns: turned back, moved through the latent space, generated. Drawn from arrays.

Each function gives a matplotlib figure for `vae_edge.report.galleries.write_png`.
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
from vae_edge.report.plots import BINS, LIGHT, palette, reliability_panel, roc_panel, style

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
    angle_confidences: NDArray[np.floating],
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
                _doubt(angle_confidences[mask]),
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
        _running_median(right, errors_deg, angle_confidences)
        right.set(yscale="log", xscale="log", ylabel="error of the angle, degrees (log)")
        low, high = 0.85 * _doubt(angle_confidences).min(), 1.15 * _doubt(angle_confidences).max()
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


def _doubt(angle_confidences: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far concentrations are from 1, at least by 0.001."""
    return np.maximum(1.0 - angle_confidences, 1e-3)


def _running_median(axes: Any, errors_deg: NDArray[np.floating], angle_confidences: NDArray[np.floating]) -> None:
    groups = [group for group in np.array_split(np.argsort(angle_confidences, kind="stable"), 12) if len(group)]
    axes.plot(
        [np.median(_doubt(angle_confidences[group])) for group in groups],
        [max(LEAST_ERROR, float(np.median(errors_deg[group]))) for group in groups],
        color=LIGHT["ink"],
        linewidth=1.8,
        label="median, by twelfths of the images",
    )


CELL, GAP, NAMES, CAPTION, TITLE = 0.74, 0.06, 1.0, 0.14, 0.34  # inches; a line of a caption


@dataclass(frozen=True)
class Column:
    """Pictures uint8 [R, S, S, C], one below the other, and what stands under them; `wrong` marks them."""

    pictures: NDArray[np.uint8]
    caption: str
    wrong: bool = False


@dataclass(frozen=True)
class Block:
    """Columns side by side under a title, with a name for each row."""

    title: str
    rows: Sequence[str]
    columns: Sequence[Column]


def _show(axes: Any, picture: NDArray[np.uint8], colour: str | None = None) -> None:
    """One image uint8 [S, S, C], framed in a colour."""
    grey = picture.shape[2] == 1
    axes.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=colour is not None, color=colour, linewidth=2.5)


def signed(value: float, form: str = ".0f") -> str:
    """A number with its sign, a proper minus, and none for zero."""
    text = format(abs(value), form)
    if not float(text):
        return "0"
    return ("−" if value < 0 else "+") + text


def degrees(angle_deg: float) -> str:
    """An angle in whole degrees, in (-180, 180] when rounded."""
    return f"{signed(180.0 if round(angle_deg) == -180 else angle_deg)}°"


def turned(lines: Sequence[Sequence[Block]]) -> Any:
    """Images as they came, turned back and reconstructed: blocks side by side, line below line.

    A line has room for ten columns, or for eight in two blocks.
    """
    heights = [max(map(_height, line)) for line in lines]
    whole = sum(heights)

    def draw(figure: Any) -> None:
        top = whole
        for line, height in zip(lines, heights, strict=True):
            left = 0.0
            for block in line:
                _block(figure, block, left, top, whole)
                left += NAMES + max(len(block.columns), 4) * (CELL + GAP) + 0.1
            top -= height

    return light_page(whole, draw, by_hand=True)


def _height(block: Block) -> float:
    captions = max(len(column.caption.splitlines()) for column in block.columns)
    return TITLE + len(block.rows) * (CELL + GAP) + captions * CAPTION + 0.12


def _block(figure: Any, block: Block, left: float, top: float, whole: float) -> None:
    """A block whose upper left corner is at (left, top), in inches from the page's lower left one."""
    at = left + NAMES
    figure.text(at / WIDTH, (top - 0.1) / whole, block.title, va="top", ha="left", fontsize=10, fontweight="bold")
    for r, name in enumerate(block.rows):
        y = top - TITLE - r * (CELL + GAP) - CELL / 2
        figure.text((at - 0.08) / WIDTH, y / whole, name, va="center", ha="right", fontsize=9)
    for c, column in enumerate(block.columns):
        x = at + c * (CELL + GAP)
        colour = LIGHT["others"][0] if column.wrong else None
        for r, picture in enumerate(column.pictures):
            y = top - TITLE - r * (CELL + GAP) - CELL
            axes = figure.add_axes((x / WIDTH, y / whole, CELL / WIDTH, CELL / whole))
            _show(axes, picture, colour)
        y = top - TITLE - len(block.rows) * (CELL + GAP) - 0.01
        words = {"color": colour, "fontweight": "bold"} if colour else {}
        figure.text(
            (x + CELL / 2) / WIDTH,
            y / whole,
            column.caption,
            va="top",
            ha="center",
            fontsize=7.5,
            linespacing=1.3,
            **words,
        )


def traversal(
    pictures: NDArray[np.uint8], shares: NDArray[np.floating], names: Sequence[str], deviations: Sequence[float]
) -> Any:
    """Decoded codes, moved along the principal directions of their class.

    Args:
        pictures: uint8 [K, D, T, S, S, C]: of K classes, along D directions, at T places.
        shares: [K, D], of each direction in the variance of its class's codes.
        names: of the classes; deviations: the T places, in standard deviations.
    """
    ordinals = ("first", "second", "third", "fourth")
    classes, directions, steps = pictures.shape[:3]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, directions, squeeze=False)[0]
        for d, axes in enumerate(panels):
            _mosaic(axes, pictures[:, d])
            axes.set_xticks(range(steps), [signed(value, ".1f") for value in deviations])
            axes.set_yticks(range(classes), [f"{share:.0%}" for share in shares[:, d]])
            axes.tick_params(axis="y", labelright=True, labelleft=False)
            axes.set_title(f"along the {ordinals[d]} direction", fontsize=10)
            axes.set_xlabel("standard deviations; right: share of the variance", fontsize=9)
        twin = panels[0].secondary_yaxis("left")
        twin.set_yticks(range(classes), names)
        twin.tick_params(length=0)
        twin.spines[:].set_visible(False)

    cell = (WIDTH - 1.6) / directions / steps
    return light_page(0.85 + cell * classes, draw)


def generated(images: Mapping[str, NDArray[np.uint8] | None], angles_deg: Sequence[float] | None) -> Any:
    """Generated images by class (rows) and angle (columns).

    Args:
        images: uint8 [T, S, S, C] of each class; None: there are none, and the row says so.
        angles_deg: the T angles, counter-clockwise; None: all are upright.
    """
    there = [found for found in images.values() if found is not None]
    steps = len(there[0]) if there else len(angles_deg or range(12))
    blank = np.full_like(there[0], 255) if there else np.full((steps, 28, 28, 1), 255, np.uint8)
    rows = np.stack([blank if found is None else found for found in images.values()])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _mosaic(axes, rows)
        axes.set_yticks(range(len(images)), list(images))
        for r, found in enumerate(images.values()):
            if found is None:
                axes.text(-0.4, r, "none: the classifier recognizes too few of them", va="center", fontsize=9)
        axes.xaxis.tick_top()
        axes.set_xticks(range(steps) if angles_deg else [], [degrees(angle) for angle in angles_deg or ()])

    return light_page(0.45 + (WIDTH - 0.9) / steps * len(rows), draw)


def _mosaic(axes: Any, pictures: NDArray[np.uint8]) -> None:
    """Pictures uint8 [R, T, S, S, C] in a table whose cell (r, t) is centred on the point (t, r)."""
    rows, steps, side, _, channels = pictures.shape
    edge = max(1, side // 28)
    wide = np.full((rows, steps, side + edge, side + edge, channels), 255, np.uint8)
    wide[:, :, :side, :side] = pictures
    table = wide.transpose(0, 2, 1, 3, 4).reshape(rows * (side + edge), steps * (side + edge), channels)
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
