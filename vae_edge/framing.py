"""Where the ink is on a page, how light the page is, and which square of it a model is shown. NumPy alone.

A page is looked at piece by piece, so that a large one is never in memory a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

INK_SHARE = 20 / 28
"""In MNIST the longer side of a digit is 20 of the frame's 28 pixels: what is taken where training says nothing."""
INK_CENTRE = 14.5 / 28
"""In MNIST a digit's centre of mass is in the middle of pixel 14 (from 0), both ways: half a pixel off the centre."""

_DARK_BELOW, _LIGHT_ABOVE = 85, 170
_UNIFORM_TOLERANCE = 32
_UNIFORM_SHARE = 0.9
_PIECE = 1 << 18
"""Pixels that are looked at together."""
_NEAR = 1.5 / 28
"""Shares and places of ink that differ by less than this part of the frame are the same."""
_NEARLY_ALL = 0.8

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are the first ones outside."""


class Page(Protocol):
    """An image that gives its pixels piece by piece."""

    @property
    def width(self) -> int:
        """Pixels across."""

    @property
    def height(self) -> int:
        """Pixels down."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""

    def piece(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """The pixels of a box, uint8 [h, w] or [h, w, 3]."""


@dataclass(frozen=True)
class ArrayPage:
    """A page that is in memory: uint8 [H, W] or [H, W, 3]."""

    pixels: np.ndarray

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.pixels.shape[0]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return 1 if self.pixels.ndim == 2 else 3

    def piece(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """A view of a box."""
        return self.pixels[top:bottom, left:right]


def as_page(image: np.ndarray) -> ArrayPage:
    """An image uint8 [H, W, C] of a batch as a page."""
    return ArrayPage(image[..., 0] if image.shape[-1] == 1 else image)


def boxes(page: Page, box: Box | None = None, step: int = 1) -> Iterator[Box]:
    """The page, or a box of it, as boxes of bounded size whose sides are multiples of `step` from its top left on."""
    left, top, right, bottom = box or (0, 0, page.width, page.height)
    down = step * max(1, _PIECE // max(1, min(right - left, _PIECE)) // step)
    across = step * max(1, _PIECE // max(1, min(down, bottom - top)) // step)
    for y in range(top, bottom, down):
        for x in range(left, right, across):
            yield x, y, min(x + across, right), min(y + down, bottom)


def tiles(page: Page, box: Box | None = None, step: int = 1) -> Iterator[tuple[Box, np.ndarray]]:
    """The boxes of `boxes`, each with its pixels."""
    for part in boxes(page, box, step):
        yield part, page.piece(*part)


def border(page: Page) -> Iterator[np.ndarray]:
    """The outermost pixels in pieces [n] or [n, 3]; the one row of a strip counts as both sides."""
    width, height = page.width, page.height
    if isinstance(page, ArrayPage) and _has_short_border(page):
        pixels = page.pixels
        yield np.concatenate((pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]))
        return
    sides = ((0, 0, width, 1), (0, height - 1, width, height), (0, 1, 1, height - 1), (width - 1, 1, width, height - 1))
    for side in sides:
        for _, pixels in tiles(page, side):
            yield pixels.reshape(-1, *pixels.shape[2:])


def only_border(page: Page) -> Page:
    """A page with the same border: of a page in memory, its border alone, as one row."""
    return ArrayPage(next(border(page))[None]) if isinstance(page, ArrayPage) and _has_short_border(page) else page


def _has_short_border(page: Page) -> bool:
    return page.width + page.height <= _PIECE // 2


def page_colour(page: Page) -> np.ndarray:
    """The border's median colour, uint8 [] or [3]."""
    return np.round(_border_median(page)).astype(np.uint8)


def tone(page: Page) -> str:
    """Tell by the border of a grey page whether it is `dark`, `light`, or `none` of both."""
    return str(_tone_of(_border_median(page)))


def tones(images: np.ndarray) -> np.ndarray:
    """The tone of each image of [N, H, W, C]; colour counts by the mean of its channels. Strings [N]."""
    sides = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    return _tone_of(np.median(np.concatenate(sides, axis=1).mean(axis=-1), axis=1))


def _tone_of(median: np.ndarray) -> np.ndarray:
    return np.select([median < _DARK_BELOW, median > _LIGHT_ABOVE], ["dark", "light"], "none")


def _border_median(page: Page) -> np.ndarray:
    """The exact median of each channel of the border, from its histogram; float64 [] or [3]."""
    counts = np.zeros(256 * page.channels, np.int64)
    offsets = np.arange(0, 256 * page.channels, 256)
    for pixels in border(page):
        places = pixels if page.channels == 1 else (pixels + offsets).ravel()
        counts += np.bincount(places, minlength=len(counts))
    reached = counts.reshape(-1, 256).cumsum(axis=1)
    total = int(reached[0, -1])
    medians = np.array([row.searchsorted(((total - 1) // 2, total // 2), "right").sum() / 2 for row in reached])
    return medians[0] if page.channels == 1 else medians


def ink_box(page: Page, colour: np.ndarray) -> Box | None:
    """The box of what differs from a uniform page of this colour; None if the page is not uniform, or empty."""
    alike = total = 0
    for pixels in border(page):
        alike += int((distance(pixels, colour) <= _UNIFORM_TOLERANCE).sum())
        total += len(pixels)
    if alike / total < _UNIFORM_SHARE:
        return None
    columns, rows = np.zeros(page.width, np.bool_), np.zeros(page.height, np.bool_)
    for (left, top, right, bottom), pixels in tiles(page):
        ink = distance(pixels, colour) > _UNIFORM_TOLERANCE
        columns[left:right] |= ink.any(axis=0)
        rows[top:bottom] |= ink.any(axis=1)
    across, down = np.flatnonzero(columns), np.flatnonzero(rows)
    if not len(across):
        return None
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


@dataclass(frozen=True)
class Framing:
    """How drawings stand in the frames of training images."""

    share: float
    """The share of the frame's side that the longer side of the ink takes: the median."""
    even: float
    """The share of the images that have an even page with ink on it."""
    cropped: float
    """The share of the images that cropping to the ink, with that share, hardly changes."""


def common_framing(images: np.ndarray, sample: int = 1000) -> Framing | None:
    """How the drawings stand, where their share of the frame is the same in nearly all images.

    Args:
        images: uint8 [N, S, S, C]; `sample` of them, evenly spread, are looked at.

    Returns:
        None unless four images in five have a uniform page and a share within 1.5/28 of the median.
    """
    chosen = images[:: max(1, len(images) // sample)]
    found = []
    for image in chosen:
        page = as_page(image)
        colour = page_colour(page)
        box = ink_box(page, colour)
        if box is not None:
            found.append((page, colour, box))
    if not found or len(found) < _NEARLY_ALL * len(chosen):
        return None
    side = images.shape[1]
    shares = np.array([max(box[2] - box[0], box[3] - box[1]) / side for _, _, box in found])
    share = round(float(np.median(shares)), 4)
    if (np.abs(shares - share) <= _NEAR).sum() < _NEARLY_ALL * len(chosen):
        return None
    near = 0
    for page, colour, box in found:
        left, top, cut = ink_square(page, colour, box, share)
        near += max(abs(left), abs(top), abs(left + cut - side), abs(top + cut - side)) <= 2 * _NEAR * side
    return Framing(share, len(found) / len(chosen), near / len(chosen))


def distance(pixels: np.ndarray, page: np.ndarray) -> np.ndarray:
    """How far each uint8 pixel is from the page's colour, by the channel that differs most; uint8."""
    difference = np.maximum(pixels, page) - np.minimum(pixels, page)
    return difference.max(axis=-1) if page.ndim else difference


def ink_square(page: Page, colour: np.ndarray, box: Box, share: float = INK_SHARE) -> tuple[int, int, int]:
    """(left, top, side) of a square of which the ink takes `share`, on its centre of mass, the ink wholly inside."""
    left, top, right, bottom = box
    side = max(round(max(right - left, bottom - top) / share), 1)
    across, down = np.zeros(right - left, np.int64), np.zeros(bottom - top, np.int64)
    for (x0, y0, x1, y1), pixels in tiles(page, box):
        weight = distance(pixels, colour)
        across[x0 - left : x1 - left] += weight.sum(axis=0, dtype=np.int64)
        down[y0 - top : y1 - top] += weight.sum(axis=1, dtype=np.int64)
    centre_x = left + float(across @ (np.arange(right - left) + 0.5)) / float(across.sum())
    centre_y = top + float(down @ (np.arange(bottom - top) + 0.5)) / float(down.sum())
    x = int(np.clip(round(centre_x - side * INK_CENTRE), right - side, left))
    y = int(np.clip(round(centre_y - side * INK_CENTRE), bottom - side, top))
    return x, y, side


def whole_square(page: Page) -> tuple[int, int, int]:
    """(left, top, side) of the square in whose middle the whole page is."""
    side = max(page.height, page.width)
    return -((side - page.width) // 2), -((side - page.height) // 2), side


def window(page: Page, colour: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A box of the page, which goes on beyond the image's edges in its colour; uint8 [h, w] or [h, w, 3]."""
    pixels = np.empty((bottom - top, right - left, *colour.shape), dtype=np.uint8)
    pixels[...] = colour
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, page.width), min(bottom, page.height)
    if x0 < x1 and y0 < y1:
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = page.piece(x0, y0, x1, y1)
    return pixels
