"""Where the ink is on a page, how light the page is, and which square of it a model is shown. NumPy alone."""

from __future__ import annotations

import numpy as np

INK_SHARE = 20 / 28
"""In MNIST the longer side of a digit is 20 of the frame's 28 pixels: what is taken where training says nothing."""
INK_CENTRE = 14.5 / 28
"""In MNIST a digit's centre of mass is in the middle of pixel 14 (from 0), both ways: half a pixel off the centre."""

_DARK_BELOW, _LIGHT_ABOVE = 85, 170
_UNIFORM_TOLERANCE = 32
_UNIFORM_SHARE = 0.9

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are the first ones outside."""


def border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of [H, W] or [H, W, C], one row each."""
    return np.concatenate((pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]))


def page_colour(pixels: np.ndarray) -> np.ndarray:
    """The border's median colour, uint8 [] or [C]."""
    return np.round(np.median(border(pixels), axis=0)).astype(np.uint8)


def tone(grey: np.ndarray) -> str:
    """Tell by the border of uint8 [H, W] whether the page is `dark`, `light`, or `none` of both."""
    return str(tones(grey[None, :, :, None])[0])


def tones(images: np.ndarray) -> np.ndarray:
    """The tone of each image of [N, H, W, C]; colour counts by the mean of its channels. Strings [N]."""
    sides = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    medians = np.median(np.concatenate(sides, axis=1).mean(axis=-1), axis=1)
    return np.select([medians < _DARK_BELOW, medians > _LIGHT_ABOVE], ["dark", "light"], "none")


def ink_box(pixels: np.ndarray, page: np.ndarray) -> Box | None:
    """The box of what differs from a uniform page; None if the page is not uniform, or empty."""
    if float(np.mean(distance(border(pixels), page) <= _UNIFORM_TOLERANCE)) < _UNIFORM_SHARE:
        return None
    ink = distance(pixels, page) > _UNIFORM_TOLERANCE
    columns, rows = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def common_share(images: np.ndarray, sample: int = 1000) -> float | None:
    """The share of the frame's side that the longer side of the ink takes, where it is the same in nearly all images.

    Args:
        images: uint8 [N, S, S, C]; `sample` of them, evenly spread, are looked at.

    Returns:
        the median share, if four images in five are within 1/28 of the frame of it and have a uniform page; else None.
    """
    chosen = images[:: max(1, len(images) // sample)]
    shares = []
    for image in chosen:
        page = page_colour(image)
        box = ink_box(image, page)
        if box is not None:
            shares.append(max(box[2] - box[0], box[3] - box[1]) / image.shape[0])
    if len(shares) < 0.8 * len(chosen) or not shares:
        return None
    middle = float(np.median(shares))
    near = np.abs(np.array(shares) - middle) <= 1.5 / 28
    return round(middle, 4) if near.sum() >= 0.8 * len(chosen) else None


def distance(pixels: np.ndarray, page: np.ndarray) -> np.ndarray:
    """How far each uint8 pixel is from the page's colour, by the channel that differs most; uint8."""
    difference = np.maximum(pixels, page) - np.minimum(pixels, page)
    return difference.max(axis=-1) if page.ndim else difference


def crop_to_ink(pixels: np.ndarray, page: np.ndarray, box: Box, share: float = INK_SHARE) -> np.ndarray:
    """A square of which the ink's longer side takes `share`, on the ink's centre of mass, the ink wholly inside."""
    left, top, right, bottom = box
    side = max(round(max(right - left, bottom - top) / share), 1)
    weight = distance(pixels[top:bottom, left:right], page).astype(np.float64)
    across, down = np.arange(right - left) + 0.5, np.arange(bottom - top) + 0.5
    centre_x = left + float(weight.sum(axis=0) @ across) / float(weight.sum())
    centre_y = top + float(weight.sum(axis=1) @ down) / float(weight.sum())
    x = int(np.clip(round(centre_x - side * INK_CENTRE), right - side, left))
    y = int(np.clip(round(centre_y - side * INK_CENTRE), bottom - side, top))
    return window(pixels, page, left=x, top=y, side=side)


def pad_to_square(pixels: np.ndarray, page: np.ndarray) -> np.ndarray:
    """The whole of [H, W] or [H, W, C] in the middle of a square of the page's colour."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    return window(pixels, page, left=-((side - width) // 2), top=-((side - height) // 2), side=side)


def window(pixels: np.ndarray, page: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square of the page, which goes on beyond the image's edges in the page's colour."""
    square = np.empty((side, side, *pixels.shape[2:]), dtype=np.uint8)
    square[...] = page
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    square[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
    return square
