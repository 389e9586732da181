"""The data set of photographs: crops of pictures and textures that two Python packages carry. A class is a picture.

A picture is divided into regions; the crops of a region lie inside it, so that no pixel is in two regions. A third of
the regions, spread over the picture, is the test split. A crop has 96 to 200 pixels a side and is stored as JPEG of
128. Crops that are nearly of one colour are skipped. The other variant has other pictures and other test regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from real_archives import unknown_folder

from vae_edge.data.random_numbers import permutation, uniform
from vae_edge.errors import DataError
from vae_edge.files import sha256

MIN_CROP, MAX_CROP, STORED = 96, 200, 128  # pixels
MIN_STD = 5.0  # standard deviation of a crop's grey values, which are 0 to 255
MAX_TRIES = 50  # random crops for each one that is wanted
QUALITY = 92
REGION = 150  # pixels: the least side of a region, where that leaves three
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """A file of a Python package; `reduce` is the factor by which it is scaled down first."""

    file: str
    sha256: str
    reduce: int = 1


PICTURES = {
    "astronaut": Picture(
        "skimage/data/astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"
    ),
    "brick": Picture("skimage/data/brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
    "camera": Picture("skimage/data/camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    "cat": Picture("skimage/data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    "china": Picture(
        "sklearn/datasets/images/china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"
    ),
    "clock": Picture(
        "skimage/data/clock_motion.png", "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955"
    ),
    "coffee": Picture("skimage/data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    "coins": Picture("skimage/data/coins.png", "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba"),
    "flower": Picture(
        "sklearn/datasets/images/flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"
    ),
    "galaxies": Picture(
        "skimage/data/hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"
    ),
    "grass": Picture("skimage/data/grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
    "gravel": Picture("skimage/data/gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
    "moon": Picture("skimage/data/moon.png", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577"),
    "motorcycle": Picture(
        "skimage/data/motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"
    ),
    "page": Picture("skimage/data/page.png", "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3"),
    "retina": Picture("skimage/data/retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", 2),
    "rocket": Picture("skimage/data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    "text": Picture("skimage/data/text.png", "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1"),
    "tissue": Picture("skimage/data/ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
}
UNKNOWN = {"a": ("clock", "coffee", "rocket", "text"), "b": ("flower", "galaxies", "grass", "page")}
"""The pictures that are no classes."""
SHIFT = {"a": 0, "b": 1}  # which third of the regions is the test split


def regions(size: tuple[int, int]) -> dict[str, Box]:
    """The regions (left, top, right, bottom) of a picture of that width and height, by their name `r0c1`."""
    for side in (REGION, REGION * 4 // 5):
        columns, rows = (min(4, max(1, length // side)) for length in size)
        if columns * rows >= 3:
            break
    xs, ys = (
        [length * index // parts for index in range(parts + 1)]
        for length, parts in zip(size, (columns, rows), strict=True)
    )
    return {
        f"r{row}c{column}": (xs[column], ys[row], xs[column + 1], ys[row + 1])
        for row in range(rows)
        for column in range(columns)
    }


def is_test(region: str, shift: int) -> bool:
    """Whether a region belongs to the test split: every third diagonal does."""
    row, column = region[1:].split("c")
    return (int(row) + int(column) + shift) % 3 == 0


def crops(
    picture: Image.Image, boxes: Mapping[str, Box], count: int, seed: int, stream: int
) -> list[tuple[str, Image.Image]]:
    """`count` random crops, from each region in turn: its name, and the crop of 128×128.

    Raises:
        DataError: too few crops are not nearly of one colour.
    """
    names = list(boxes)
    order = permutation(len(names), seed, stream)
    found: list[tuple[str, Image.Image]] = []
    for turn, pick in enumerate(uniform(3 * MAX_TRIES * count, seed, stream + 1).reshape(-1, 3)):
        name = names[order[turn % len(names)]]
        left, top, right, bottom = boxes[name]
        largest = min(MAX_CROP, right - left, bottom - top)
        smallest = min(MIN_CROP, largest)
        side = smallest + int(pick[0] * (largest - smallest + 1))
        x = left + int(pick[1] * (right - left - side + 1))
        y = top + int(pick[2] * (bottom - top - side + 1))
        crop = picture.crop((x, y, x + side, y + side))
        if np.asarray(crop.convert("L")).std() >= MIN_STD:
            found.append((name, crop.resize((STORED, STORED), Image.Resampling.LANCZOS)))
            if len(found) == count:
                return found
    raise DataError(f"{len(found)} of {MAX_TRIES * count} crops show anything, where {count} are wanted")


def save(found: Sequence[tuple[str, Image.Image]], folder: Path) -> None:
    """Write the crops as `folder/REGION__NUMBER.jpg`."""
    folder.mkdir(parents=True)
    for index, (name, crop) in enumerate(found):
        crop.save(folder / f"{name}__{index:03d}.jpg", quality=QUALITY)


def write(out: Path, files: Mapping[str, Path], variant: str, train: int, test: int, unknown: int, seed: int) -> None:
    """Write the set: `train/PICTURE/REGION__NUMBER.jpg` and `test/…`, and beside it `SET-unknown/PICTURE/…`.

    Args:
        files: where each file of a package lies.
        train, test: crops a class. unknown: crops of each other picture.

    Raises:
        DataError: a picture is another one.
    """
    for index, (name, picture) in enumerate(PICTURES.items()):
        path = files[picture.file]
        if sha256(path) != picture.sha256:
            raise DataError(f"{path} is not the picture that figures were measured on: its SHA-256 is another.")
        with Image.open(path) as file:
            image = file.convert("L" if file.mode == "L" else "RGB").reduce(picture.reduce)
        boxes = regions(image.size)
        stream = 8 * index
        if name in UNKNOWN[variant]:
            save(crops(image, boxes, unknown, seed, stream), unknown_folder(out) / name)
            continue
        for split, count in (("train", train), ("test", test)):
            part = {
                region: box for region, box in boxes.items() if is_test(region, SHIFT[variant]) == (split == "test")
            }
            save(crops(image, part, count, seed, stream), out / split / name)
            stream += 2
