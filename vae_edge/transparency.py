"""Lay images with transparency on white or black: which of the two, and the compositing itself.

A data set has one colour (`vae_edge.preprocess.InputSpec.alpha_background`): chosen once, it is the same for each image
of training and of prediction. An image is composited at its full size, before it is resized: a resized alpha channel
would mix the colours under transparent pixels, which are arbitrary, into the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

ALPHA_BACKGROUNDS = ("white", "black")
"""Colours that transparency is laid on."""
GREY_MODES = frozenset({"L", "LA", "La"})
"""Pillow's modes, with transparency, of images that stay grey."""

MIN_CONTRAST_GAIN = 0.1
"""Black is taken where its contrast is larger than white's by at least this fraction of the full contrast."""
_MAX_CONTRAST = 64
"""Difference (0 to 255) between content and background from which on more of it is no gain."""
_MIN_TRANSPARENT_FRACTION = 0.125
"""By itself, a light image counts as a drawing on a transparent background only if this fraction is transparent."""


@dataclass(frozen=True)
class Transparency:
    """What an image with an alpha channel shows."""

    lowest: int
    """The smallest alpha, 0 to 255: 255 for an image that is opaque everywhere."""
    opaque_fraction: float
    """Mean alpha, 0 to 1."""
    luminance: float
    """Mean luminance of what is visible, 0 to 255, weighted by alpha."""
    contrast: dict[str, float]
    """Contrast of what is visible with each of `ALPHA_BACKGROUNDS`, 0 to 1, weighted by alpha: the difference of a
    pixel to the background, the largest over its channels, where a quarter of the range counts as full contrast."""

    @property
    def is_transparent(self) -> bool:
        """Whether any pixel is."""
        return self.lowest < 255

    @property
    def own_background(self) -> str:
        """The colour for an image alone: white; black if its visible part is light and enough is transparent."""
        is_drawing = self.opaque_fraction <= 1 - _MIN_TRANSPARENT_FRACTION
        return "black" if self.luminance > 127 and is_drawing else "white"


def to_rgba(image: Image.Image) -> Image.Image:
    """An image of any mode with transparency as RGBA, its colours not multiplied by alpha."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def is_opaque(tiles: Iterable[Image.Image]) -> bool:
    """Whether an image with an alpha channel is opaque everywhere."""
    return all(to_rgba(tile).getchannel("A").getextrema() == (255, 255) for tile in tiles)


def measure_transparency(tiles: Iterable[Image.Image]) -> Transparency:
    """Measure an image with an alpha channel, tile by tile."""
    lowest, pixels, visible, light = 255, 0, 0, 0
    contrast = dict.fromkeys(ALPHA_BACKGROUNDS, 0)
    for tile in tiles:
        layers = to_rgba(tile)
        alpha = np.asarray(layers.getchannel("A")).astype(np.int64)
        colours = layers.convert("RGB")
        light += int((np.asarray(colours.convert("L")) * alpha).sum())
        lowest, pixels, visible = min(lowest, int(alpha.min())), pixels + alpha.size, visible + int(alpha.sum())
        values = np.asarray(colours)
        for name, distance in (("white", 255 - values.min(-1)), ("black", values.max(-1))):
            contrast[name] += int((np.minimum(distance, _MAX_CONTRAST) * alpha).sum())
    scale = max(1, visible)
    return Transparency(
        lowest,
        visible / (255 * max(1, pixels)),
        light / scale,
        {name: total / (_MAX_CONTRAST * scale) for name, total in contrast.items()},
    )


def choose_alpha_background(images: list[Transparency]) -> str | None:
    """The colour on which the visible part of these images has the most contrast, each image counting the same.

    White where both are about equal. None if no image is transparent.
    """
    transparent = [image for image in images if image.is_transparent and image.opaque_fraction]
    if not transparent:
        return None
    white, black = (float(np.mean([image.contrast[name] for image in transparent])) for name in ALPHA_BACKGROUNDS)
    return "black" if black >= white + MIN_CONTRAST_GAIN else "white"


def compositing(background: str | None, grey: bool) -> Callable[[Image.Image], np.ndarray]:
    """The conversion of a tile with an alpha channel to uint8 [h, w, 3], or [h, w] if `grey`.

    Args:
        background: of `ALPHA_BACKGROUNDS`; None drops the alpha channel.
        grey: whether the image is stored in grey.
    """

    def convert(tile: Image.Image) -> np.ndarray:
        layers = to_rgba(tile)
        if background is not None:
            layers = Image.alpha_composite(Image.new("RGBA", layers.size, background), layers)
        pixels = layers.convert("RGB")
        return np.asarray(pixels.getchannel("R") if grey else pixels)

    return convert
