"""Where the foreground of an image is, how light its background is, and which square of it a model sees.

An image is read tile by tile (`TiledImage`), so that a large one is never in memory a second time. NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MNIST_FOREGROUND_RATIO = 20 / 28
"""MNIST scales a digit's longer side to 20 of the 28 pixels. Used where training data has no ratio of its own."""
MNIST_FOREGROUND_CENTRE = 14.5 / 28
"""MNIST puts a digit's centre of mass into the middle of pixel 14 (from 0), both ways: half a pixel off the centre."""

_MAX_DARK, _MIN_LIGHT = 85, 170
"""Median border values (0 to 255) below and above which a background is dark or light."""
_UNIFORM_TOLERANCE = 32
"""Largest difference (0 to 255) between a pixel of a uniform background and the background's colour."""
_MIN_UNIFORM_FRACTION = 0.9
"""Fraction of the border that must be within that tolerance."""
_MAX_TILE_PIXELS = 1 << 18
_MAX_CHUNK_BYTES = 64 << 20
"""Of images that are looked at together."""
_FRAMING_TOLERANCE = 1.5 / 28
"""Foreground ratios and positions that differ by at most this fraction of the frame count as equal."""
_MIN_AGREEING_FRACTION = 0.8
"""Fraction of the training images that must agree on a framing."""

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""


class TiledImage(Protocol):
    """An image whose pixels can be read box by box."""

    @property
    def width(self) -> int:
        """Pixels across."""

    @property
    def height(self) -> int:
        """Pixels down."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """The pixels of a box, uint8 [h, w] or [h, w, 3]."""


@dataclass(frozen=True)
class ArrayImage:
    """A `TiledImage` in memory: uint8 [H, W] or [H, W, 3]."""

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

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """A view of a box."""
        return self.pixels[top:bottom, left:right]


@dataclass(frozen=True)
class ConvertedImage:
    """A view of another image, whose colour pixels uint8 [h, w, 3] are converted to grey [h, w] when they are read."""

    source: TiledImage
    convert: Callable[[np.ndarray], np.ndarray]
    channels: int = 1

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.source.width

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.source.height

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """The converted pixels of a box."""
        return self.convert(self.source.crop(left, top, right, bottom))


def as_tiled(image: np.ndarray) -> ArrayImage:
    """One image of a batch, uint8 [H, W, C], as a `TiledImage`."""
    return ArrayImage(image[..., 0] if image.shape[-1] == 1 else image)


def boxes(image: TiledImage, box: Box | None = None, step: int = 1) -> Iterator[Box]:
    """Cut the image, or a box of it, into boxes of bounded size; sides are multiples of `step`, less at the edges."""
    left, top, right, bottom = box or (0, 0, image.width, image.height)
    down = step * max(1, _MAX_TILE_PIXELS // max(1, min(right - left, _MAX_TILE_PIXELS)) // step)
    across = step * max(1, _MAX_TILE_PIXELS // max(1, min(down, bottom - top)) // step)
    for y in range(top, bottom, down):
        for x in range(left, right, across):
            yield x, y, min(x + across, right), min(y + down, bottom)


def tiles(image: TiledImage, box: Box | None = None, step: int = 1) -> Iterator[tuple[Box, np.ndarray]]:
    """The boxes of `boxes`, each with its pixels."""
    for tile in boxes(image, box, step):
        yield tile, image.crop(*tile)


def border(image: TiledImage) -> Iterator[np.ndarray]:
    """The outermost pixels in pieces [n] or [n, 3]. A single row or column counts as both sides."""
    width, height = image.width, image.height
    if isinstance(image, ArrayImage) and _has_short_border(image):
        pixels = image.pixels
        yield np.concatenate((pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]))
        return
    sides = ((0, 0, width, 1), (0, height - 1, width, height), (0, 1, 1, height - 1), (width - 1, 1, width, height - 1))
    for side in sides:
        for _, pixels in tiles(image, side):
            yield pixels.reshape(-1, *pixels.shape[2:])


def border_only(image: TiledImage) -> TiledImage:
    """An image with the same border pixels: of an image in memory its border alone, as one row."""
    return (
        ArrayImage(next(border(image))[None]) if isinstance(image, ArrayImage) and _has_short_border(image) else image
    )


def _has_short_border(image: TiledImage) -> bool:
    return image.width + image.height <= _MAX_TILE_PIXELS // 2


def background_colour(image: TiledImage) -> np.ndarray:
    """The border's median colour, uint8 [] or [3]."""
    return np.round(_border_median(image)).astype(np.uint8)


def background_polarity(image: TiledImage) -> str:
    """`dark`, `light` or `none`, by the median of a grey image's border."""
    return str(_polarity_of(_border_median(image)))


def background_polarities(images: np.ndarray) -> np.ndarray:
    """The polarity of each image of [N, H, W, C], as strings [N]. Colour counts by the mean of its channels."""
    medians = np.empty(len(images))
    step = max(1, _MAX_CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        some = images[start : start + step]
        sides = (some[:, 0], some[:, -1], some[:, 1:-1, 0], some[:, 1:-1, -1])
        medians[start : start + step] = np.median(np.concatenate(sides, axis=1).mean(axis=-1), axis=1)
    return _polarity_of(medians)


def _polarity_of(median: np.ndarray) -> np.ndarray:
    return np.select([median < _MAX_DARK, median > _MIN_LIGHT], ["dark", "light"], "none")


def _border_median(image: TiledImage) -> np.ndarray:
    """The exact median of each channel of the border, from its histogram; float64 [] or [3]."""
    counts = np.zeros(256 * image.channels, np.int64)
    offsets = np.arange(0, 256 * image.channels, 256)
    for pixels in border(image):
        values = pixels if image.channels == 1 else (pixels + offsets).ravel()
        counts += np.bincount(values, minlength=len(counts))
    cumulative = counts.reshape(-1, 256).cumsum(axis=1)
    total = int(cumulative[0, -1])
    medians = np.array([row.searchsorted(((total - 1) // 2, total // 2), "right").sum() / 2 for row in cumulative])
    return medians[0] if image.channels == 1 else medians


def foreground_box(image: TiledImage, background: np.ndarray) -> Box | None:
    """The bounding box of what differs from a background of this colour.

    None if the background is not uniform, or nothing differs from it.
    """
    uniform = total = 0
    for pixels in border(image):
        uniform += int((distance_to_background(pixels, background) <= _UNIFORM_TOLERANCE).sum())
        total += len(pixels)
    if uniform / total < _MIN_UNIFORM_FRACTION:
        return None
    columns, rows = np.zeros(image.width, np.bool_), np.zeros(image.height, np.bool_)
    for (left, top, right, bottom), pixels in tiles(image):
        foreground = distance_to_background(pixels, background) > _UNIFORM_TOLERANCE
        columns[left:right] |= foreground.any(axis=0)
        rows[top:bottom] |= foreground.any(axis=1)
    across, down = np.flatnonzero(columns), np.flatnonzero(rows)
    if not len(across):
        return None
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


@dataclass(frozen=True)
class Framing:
    """How training images place the foreground in the frame."""

    foreground_ratio: float
    """Longer side of the foreground over the side of the frame: the median of the images."""
    uniform_fraction: float
    """Fraction of the images that have a uniform background with a foreground on it."""
    cropped_fraction: float
    """Fraction of the images that cropping to the foreground, with this ratio, hardly changes."""


def typical_framing(images: np.ndarray, sample: int = 1000) -> Framing | None:
    """Measure how images place the foreground in the frame, if nearly all do it in the same way.

    Args:
        images: uint8 [N, S, S, C].
        sample: number of images to measure, evenly spaced.

    Returns:
        None unless four images in five have a uniform background and a foreground ratio within 1.5/28 of the median.
    """
    chosen = range(0, len(images), max(1, len(images) // sample))
    uniform = []
    for index in chosen:
        image = as_tiled(images[index])
        background = background_colour(image)
        box = foreground_box(image, background)
        if box is not None:
            uniform.append((image, background, box))
    if not uniform or len(uniform) < _MIN_AGREEING_FRACTION * len(chosen):
        return None

    side = images.shape[1]
    ratios = np.array([max(box[2] - box[0], box[3] - box[1]) / side for _, _, box in uniform])
    ratio = round(float(np.median(ratios)), 4)
    if (np.abs(ratios - ratio) <= _FRAMING_TOLERANCE).sum() < _MIN_AGREEING_FRACTION * len(chosen):
        return None

    cropped = 0
    for image, background, box in uniform:
        left, top, cut = foreground_square(image, background, box, ratio)
        shift = max(abs(left), abs(top), abs(left + cut - side), abs(top + cut - side))
        cropped += shift <= 2 * _FRAMING_TOLERANCE * side
    return Framing(ratio, len(uniform) / len(chosen), cropped / len(chosen))


def distance_to_background(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Absolute difference of each pixel to the background colour, maximum over channels; uint8."""
    difference = np.maximum(pixels, background) - np.minimum(pixels, background)
    return difference.max(axis=-1) if background.ndim else difference


def foreground_square(
    image: TiledImage, background: np.ndarray, box: Box, foreground_ratio: float = MNIST_FOREGROUND_RATIO
) -> tuple[int, int, int]:
    """The square to crop to: (left, top, side).

    The foreground takes `foreground_ratio` of the side, lies wholly inside, and its centre of mass is in the middle.
    """
    left, top, right, bottom = box
    side = max(round(max(right - left, bottom - top) / foreground_ratio), 1)
    across, down = np.zeros(right - left, np.int64), np.zeros(bottom - top, np.int64)
    for (x0, y0, x1, y1), pixels in tiles(image, box):
        weight = distance_to_background(pixels, background)
        across[x0 - left : x1 - left] += weight.sum(axis=0, dtype=np.int64)
        down[y0 - top : y1 - top] += weight.sum(axis=1, dtype=np.int64)
    centre_x = left + float(across @ (np.arange(right - left) + 0.5)) / float(across.sum())
    centre_y = top + float(down @ (np.arange(bottom - top) + 0.5)) / float(down.sum())
    x = int(np.clip(round(centre_x - side * MNIST_FOREGROUND_CENTRE), right - side, left))
    y = int(np.clip(round(centre_y - side * MNIST_FOREGROUND_CENTRE), bottom - side, top))
    return x, y, side


def padded_square(image: TiledImage) -> tuple[int, int, int]:
    """(left, top, side) of the square around the whole image, which is in its middle."""
    side = max(image.height, image.width)
    return -((side - image.width) // 2), -((side - image.height) // 2), side


def crop_padded(image: TiledImage, background: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A box of the image, padded with the background colour outside the image; uint8 [h, w] or [h, w, 3]."""
    pixels = np.empty((bottom - top, right - left, *background.shape), dtype=np.uint8)
    pixels[...] = background
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    if x0 < x1 and y0 < y1:
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = image.crop(x0, y0, x1, y1)
    return pixels
