"""Small data sets on disk, written byte by byte here and not by the code under test."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from vae_edge.data import LabelledImages


def idx_bytes(values: np.ndarray, kind: int = 8, dims: tuple[int, ...] | None = None) -> bytes:
    """An IDX file: two zero bytes, type, rank, big-endian sizes, values."""
    dims = values.shape if dims is None else dims
    return bytes((0, 0, kind, len(dims))) + struct.pack(f">{len(dims)}I", *dims) + values.tobytes()


def some_images(count: int = 20, size: int = 28, channels: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (count, size, size) if channels is None else (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def some_labels(count: int = 20, classes: int = 4) -> np.ndarray:
    return (np.arange(count) % classes).astype(np.uint8)


def write_idx(folder: Path, half: str = "train", count: int = 20, zipped: bool = False, dotted: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    joint = "." if dotted else "-"
    for name, values in ((f"images{joint}idx3", some_images(count)), (f"labels{joint}idx1", some_labels(count))):
        content = idx_bytes(values)
        path = folder / f"{half}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


def write_image_folder(
    folder: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    each: int = 3,
    size: tuple[int, int] = (40, 40),
    mode: str = "L",
) -> None:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            colour = 10 * label + index
            Image.new(mode, size, colour if mode == "L" else (colour, 200, 100)).save(folder / name / f"{index}.png")


def marked(count: int = 300, size: int = 28, channels: int = 1) -> LabelledImages:
    """Upright images: a bright mark near the top, in the middle."""
    images = np.zeros((count, size, size, channels), dtype=np.uint8)
    images[:, 4:7, size // 2 - 1 : size // 2 + 1] = 255
    return LabelledImages(images, np.arange(count, dtype=np.int64) % 2, ("a", "b"))


def angle_of_mark(image: np.ndarray) -> float:
    """Where the mark stands, in degrees counter-clockwise from the top, by the centre of mass."""
    weight = image.astype(float).sum(axis=-1)
    middle = (len(weight) - 1) / 2
    right = weight.sum(axis=0) @ (np.arange(len(weight)) - middle)
    down = weight.sum(axis=1) @ (np.arange(len(weight)) - middle)
    return math.degrees(math.atan2(-right, -down))
