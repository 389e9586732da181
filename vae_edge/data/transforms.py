"""A copy of a data set in which each image is turned by an angle of its own.

Images unlike anything that was trained on, made from the data itself or drawn: to test the rejection score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

from vae_edge.data.dataset import LabelledImages
from vae_edge.data.splits import uniform
from vae_edge.errors import ConfigError


def rotated(data: LabelledImages, range_deg: float = 180.0, seed: int = 0, fill: int = 0) -> LabelledImages:
    """Turn each image counter-clockwise as displayed, bilinear; the same angles for the same seed.

    Args:
        data: images, upright or with known angles.
        range_deg: angles are uniform in [-range_deg, range_deg); at most 180.
        seed: chooses the angles.
        fill: the value, 0 to 255, that comes in from outside the frame (`InputSpec.fill`).

    Returns:
        the turned images with `angles_deg` in (-180, 180]: the angle turned by, added to the one that was known.

    Raises:
        ConfigError: the range is not between 0 and 180.
    """
    if not 0 <= range_deg <= 180:
        raise ConfigError(f"Images are turned by 0 to 180 degrees either way, but {range_deg} came.")
    angles = ((uniform(len(data), seed) * 2 - 1) * range_deg).astype(np.float32)
    grey = data.images.shape[-1] == 1
    outside = fill if grey else (fill,) * 3
    images = np.empty_like(data.images)
    for index, angle in enumerate(angles):
        page = Image.fromarray(data.images[index, ..., 0] if grey else data.images[index])
        turned = np.asarray(page.rotate(float(angle), Resampling.BILINEAR, fillcolor=outside))
        images[index] = turned[..., None] if grey else turned
    total = angles if data.angles_deg is None else angles + data.angles_deg
    return LabelledImages(images, data.labels, data.classes, wrap_deg(total))


def wrap_deg(angles_deg: np.ndarray) -> np.ndarray:
    """The same directions in (-180, 180], float32."""
    return (-((-angles_deg.astype(np.float64) + 180) % 360 - 180)).astype(np.float32)


def rotation_range(rotation: str) -> float:
    """`none`, `full` or degrees to the largest angle either way, in degrees: 0, 180 or the number.

    Raises:
        ConfigError: for anything else.
    """
    if rotation == "none":
        return 0.0
    if rotation == "full":
        return 180.0
    try:
        degrees = float(rotation)
    except ValueError:
        degrees = float("nan")
    if not 0 < degrees <= 180:
        raise ConfigError(f"rotation {rotation!r}: expected none, full, or degrees above 0 up to 180")
    return degrees


KINDS = ("blends of two", "shuffled quarters", "inverted", "drawn letters", "noise")
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYZ"  # without I, O and S, which are digits to any eye


def make_unknown(
    images: NDArray[np.uint8], kind: str, seed: int = 0, letters_turn_deg: float = 180.0
) -> NDArray[np.uint8]:
    """As many unknown images as there are known ones.

    Args:
        images: known images, uint8 [N, S, S, C].
        kind: one of `KINDS`: the brighter pixel of two images of the set; the upper and the lower half
            exchanged, each moved by a quarter of the side; dark and bright exchanged; capital letters in a plain font,
            white on black, turned; uniform noise.
        letters_turn_deg: letters are turned by up to this either way: 180 is any angle, 0 leaves them upright.

    Raises:
        ConfigError: for an unknown kind, or a turn that is not between 0 and 180 degrees.
    """
    if not 0 <= letters_turn_deg <= 180:
        raise ConfigError(f"Letters are turned by 0 to 180 degrees either way, but {letters_turn_deg} came.")
    rng = np.random.default_rng(seed)
    if kind == "blends of two":
        order = rng.permutation(len(images))
        return np.maximum(images[order], images[np.roll(order, 1)])
    if kind == "shuffled quarters":
        half = images.shape[1] // 2
        return np.roll(images, (half, half // 2), axis=(1, 2))
    if kind == "inverted":
        return 255 - images
    if kind == "drawn letters":
        return _letters(images.shape, rng, letters_turn_deg)
    if kind == "noise":
        return rng.integers(0, 256, images.shape, dtype=np.uint8)
    raise ConfigError(f"unknown kind {kind!r} of unknown images: expected one of {', '.join(KINDS)}")


def _letters(shape: tuple[int, ...], rng: np.random.Generator, turn_deg: float) -> NDArray[np.uint8]:
    count, side, _, channels = shape
    font = ImageFont.load_default(size=side * 0.75)
    result = np.empty(shape, np.uint8)
    for index in range(count):
        page = Image.new("L", (side, side))
        letter = LETTERS[int(rng.integers(len(LETTERS)))]
        ImageDraw.Draw(page).text((side / 2, side / 2), letter, fill=255, font=font, anchor="mm")
        turned = page.rotate(float(rng.uniform(-turn_deg, turn_deg)), Image.Resampling.BILINEAR)
        result[index] = np.asarray(turned)[..., None].repeat(channels, 2)
    return result
