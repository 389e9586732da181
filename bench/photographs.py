"""Writes a data set of 64×64 colour photographs with labels: crops of nine real photographs that two packages carry.

    pip install "vae-edge[photographs]"
    python bench/photographs.py OUT [--train 300] [--test 100] [--seed 0]

A class is one photograph. Its images are random crops of 64 to 128 pixels a side, resized to 64. Those of the test
split come from one end of the photograph, those of the training split from the rest: no pixel is in both. Crops of one
split overlap, so images held out of the training split tell less than the test split does. The same seed gives the same
crops on any machine. Crops that are nearly of one colour are skipped.

| class | picture | source and licence |
|---|---|---|
| astronaut | Eileen Collins | NASA Great Images; public domain |
| cat | Chelsea | Stefan van der Walt; CC0 |
| coffee | a cup | Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0 |
| galaxies | Hubble eXtreme Deep Field | NASA, HubbleSite; public domain |
| retina | fundus of a left eye | Mikael Häggström, Wikimedia Commons; CC0 |
| rocket | Falcon 9 with DSCOVR | SpaceX; public domain |
| tissue | colonic glands, FHL2 stained | Center for Microscopy and Molecular Imaging; no known copyright restrictions |
| china | a pagoda | danielbuechele, Flickr; CC BY 2.0 |
| flower | a dahlia | vultilion, Flickr; CC BY 2.0 |

The first seven are files of scikit-image (its `skimage.data` states these sources and licences), the last two of
scikit-learn (`sklearn/datasets/images/README.txt`). What is written is for measuring on; it is not part of the package.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from vae_edge.data.random_numbers import uniform
from vae_edge.errors import ConfigError, DataError, VaeEdgeError
from vae_edge.files import sha256

SIZE, MAX_CROP = 64, 128
TEST_FRACTION = 0.35
MIN_STD = 12.0  # standard deviation of a crop's grey values, which are 0 to 255
MAX_TRIES = 50  # random crops for each one that is wanted


@dataclass(frozen=True)
class Photograph:
    """A file of an installed package; `test` is the end of the picture that the test split is cut from."""

    package: str
    file: str
    sha256: str
    test: str
    reduce: int = 1


PHOTOGRAPHS = {
    "astronaut": Photograph(
        "skimage", "data/astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", "bottom"
    ),
    "cat": Photograph(
        "skimage", "data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", "left"
    ),
    "china": Photograph(
        "sklearn",
        "datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "bottom",
    ),
    "coffee": Photograph(
        "skimage", "data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", "right"
    ),
    "flower": Photograph(
        "sklearn",
        "datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "bottom",
    ),
    "galaxies": Photograph(
        "skimage",
        "data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "right",
    ),
    "retina": Photograph(
        "skimage", "data/retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", "right", 2
    ),
    "rocket": Photograph(
        "skimage", "data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c", "right"
    ),
    "tissue": Photograph(
        "skimage", "data/ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef", "right"
    ),
}


def find(photograph: Photograph) -> Path:
    """The path of the file, without importing its package.

    Raises:
        DataError: the package is not installed, or its file is another one.
    """
    spec = find_spec(photograph.package)
    install = 'install it with: pip install "vae-edge[photographs]"'
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / photograph.file
        if path.is_file():
            if sha256(path) != photograph.sha256:
                raise DataError(f"{path} is not the photograph that figures were measured on: its SHA-256 is another.")
            return path
    raise DataError(f"{photograph.package} with its file {photograph.file} is not there; {install}")


def split_boxes(size: tuple[int, int], test: str) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """The boxes (left, top, right, bottom) of training and test in a picture of that width and height."""
    width, height = size
    cut_x, cut_y = round(TEST_FRACTION * width), round(TEST_FRACTION * height)
    whole = (0, 0, width, height)
    boxes = {
        "left": ((cut_x, 0, width, height), (0, 0, cut_x, height)),
        "right": ((0, 0, width - cut_x, height), (width - cut_x, 0, width, height)),
        "top": ((0, cut_y, width, height), (0, 0, width, cut_y)),
        "bottom": ((0, 0, width, height - cut_y), (0, height - cut_y, width, height)),
    }
    if test not in boxes:
        raise ConfigError(f"{test!r} is no end of a picture {whole}: expected {', '.join(boxes)}")
    return boxes[test]


def crops(picture: Image.Image, box: tuple[int, int, int, int], count: int, seed: int, stream: int) -> list[np.ndarray]:
    """Random squares inside the box, resized: uint8 [64, 64, 3] each.

    Raises:
        DataError: the box has too few that are not nearly of one colour.
    """
    left, top, right, bottom = box
    largest = min(MAX_CROP, right - left, bottom - top)
    found: list[np.ndarray] = []
    for pick in uniform(3 * MAX_TRIES * count, seed, stream).reshape(-1, 3):
        side = SIZE + int(pick[0] * (largest - SIZE + 1))
        x = left + int(pick[1] * (right - left - side + 1))
        y = top + int(pick[2] * (bottom - top - side + 1))
        crop = picture.crop((x, y, x + side, y + side))
        if np.asarray(crop.convert("L")).std() >= MIN_STD:
            found.append(np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.LANCZOS)))
            if len(found) == count:
                return found
    raise DataError(f"{len(found)} of {MAX_TRIES * count} crops show anything, where {count} are wanted")


def write(out: Path, train: int, test: int, seed: int) -> None:
    """Write `out/train/CLASS/NUMBER.png` and `out/test/CLASS/NUMBER.png`."""
    if out.exists():
        raise DataError(f"{out} exists already; choose another folder")
    if min(train, test) < 1:
        raise ConfigError(f"{train} images to train and {test} to test of each class: expected at least 1")
    paths = {name: find(photograph) for name, photograph in PHOTOGRAPHS.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        temporary_out = Path(temporary) / out.name
        for number, (name, photograph) in enumerate(PHOTOGRAPHS.items()):
            picture = Image.open(paths[name]).convert("RGB").reduce(photograph.reduce)
            boxes = split_boxes(picture.size, photograph.test)
            for split, (role, count) in enumerate((("train", train), ("test", test))):
                folder = temporary_out / role / name
                folder.mkdir(parents=True)
                for index, pixels in enumerate(crops(picture, boxes[split], count, seed, stream=2 * number + split)):
                    Image.fromarray(pixels).save(folder / f"{index:05d}.png")
        temporary_out.rename(out)


def main() -> int:
    """Write the folder; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=300, help="training images of each class (default: 300)")
    parser.add_argument("--test", type=int, default=100, help="test images of each class (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        write(arguments.out, arguments.train, arguments.test, arguments.seed)
    except VaeEdgeError as error:
        print(f"photographs: {error}", file=sys.stderr)
        return 2
    print(
        f"{arguments.out}: {len(PHOTOGRAPHS)} classes, {arguments.train} to train and {arguments.test} to test of each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
