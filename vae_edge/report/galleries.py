"""Images in rows and columns: turned back, moved through the latent space, generated. Drawn from arrays.

Each function gives a matplotlib figure for `vae_edge.report.model_figures.write_png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.report.figures import LIGHT
from vae_edge.report.model_figures import WIDTH, light_page

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
