"""A copy of a data set in which each image is turned by an angle of its own."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from vae_edge.data.numbers import uniform
from vae_edge.data.sets import LabelledImages
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
