"""Image arrays from files to the arrays of a data set: their form checked, their size and channels as wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vae_edge.errors import ConfigError, DataError
from vae_edge.images import how_to_uint8, resize_square
from vae_edge.limits import MAX_ARRAY_BYTES

SMALLEST, LARGEST = 28, 64
"""The sides, in pixels, of the images that models take."""


def read_limit() -> int:
    """How many bytes of arrays are read at once: `MAX_ARRAY_BYTES`, or what this machine has free, if that is less."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return min(MAX_ARRAY_BYTES, int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return MAX_ARRAY_BYTES  # not Linux, or hidden
    return MAX_ARRAY_BYTES


def check_options(size: int | None, channels: int | None) -> None:
    """Refuse a size or a channel count that no model takes (ConfigError)."""
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"Images are {SMALLEST} to {LARGEST} pixels a side, but size {size} came.")
    if channels not in (None, 1, 3):
        raise ConfigError(f"Images have 1 channel (grey) or 3 (colour), but {channels} came.")


def shaped(images: np.ndarray, size: int | None, channels: int | None, source: str) -> np.ndarray:
    """Check an array of images, resize it where a size is given, and give it the channels that are wanted.

    Args:
        images: uint8 [N, S, S] or [N, S, S, C].
        size: the side that is wanted; None keeps theirs, which must be from 28 to 64.
        channels: 1, 3, or None to keep theirs.
        source: what a message calls the array.

    Returns:
        uint8 [N, S, S, C].

    Raises:
        DataError: another rank, dtype or form, or a side that needs a `size`.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{source}: images are uint8, but their dtype is {images.dtype}. {how_to_uint8(images)}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        hint = " Its channels stand first: use x.transpose(0, 2, 3, 1)." if first else ""
        raise DataError(
            f"{source}: images are [N, H, W] or [N, H, W, C] with 1 or 3 channels, "
            f"but their shape is {list(images.shape)}.{hint}"
        )
    count, height, width, _ = images.shape
    if not count:
        raise DataError(f"{source}: there are no images.")
    if height != width:
        raise DataError(f"{source}: images are square, but these are {width}×{height}; pad or crop them first.")
    if size is None and not SMALLEST <= height <= LARGEST:
        raise DataError(
            f"{source}: images are {SMALLEST} to {LARGEST} pixels a side, but these have {height}; "
            "give the size to resize them to (--size, or size= in Python)."
        )
    if not height:
        raise DataError(f"{source}: the images have no pixels.")
    return with_channels(_resized(images, size or height), channels)


def with_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    """Grey to colour by copying, colour to grey by ITU-R 601 as Pillow rounds it; uint8 [N, H, W, C]."""
    if channels is None or channels == images.shape[-1]:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    return (((images.astype(np.uint32) @ weights + 0x8000) >> 16).astype(np.uint8))[..., None]


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1] == size:
        return images
    grey = images.shape[-1] == 1
    result = np.empty((len(images), size, size, images.shape[-1]), dtype=np.uint8)
    for index, image in enumerate(images):
        pixels = np.asarray(resize_square(Image.fromarray(image[..., 0] if grey else image), size))
        result[index] = pixels[..., None] if grey else pixels
    return result
