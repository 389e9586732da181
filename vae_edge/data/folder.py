"""A folder of image files, one sub-folder a class; or `train` and `test` folders, each with such sub-folders.

Images without labels lie in a folder `unlabelled` beside the classes, or beside `train` and `test`.

Which size the images get, where none is asked for: if all are square, of one size from 28 to 64 pixels, they keep it;
otherwise 28 where no image is larger than 32 pixels either way, else 64. Which channels: one if all images are grey
(also where they are stored as colour), else three. Images without labels count alike in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vae_edge.data.arrays import LARGEST, SMALLEST, with_channels
from vae_edge.data.listing import (
    SUFFIXES,
    class_folders,
    is_image,
    subfolders,
    unlabelled_files,
    unlabelled_folder,
)
from vae_edge.data.progress import counting
from vae_edge.data.sets import Dataset, LabelledImages, labelled, two_halves
from vae_edge.decoding import image_size
from vae_edge.errors import DataError
from vae_edge.images import InputSpec, prepare_image

_ROLES = {"train": "train", "training": "train", "test": "test", "val": "validation", "validation": "validation"}
_SMALL = 32


@dataclass(frozen=True)
class _Part:
    """The files of one part and the label of each."""

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...]


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has sub-folders."""
    return bool(subfolders(folder))


def load_folder(folder: Path, size: int | None = None, channels: int | None = None) -> Dataset:
    """Load image files; see the module for the layout, the size and the channels.

    Every image becomes square by the preprocessing that prediction uses (`vae_edge.images.prepare_image`).
    Hidden files, and files of other suffixes, are passed over. A `val` or `validation` folder is the test half where
    there is no `test`, else it joins the training half.

    Raises:
        DataError: an image does not decode; a class without images; halves whose classes differ; a folder for images
            without labels that has none; images without labels alone.
    """
    halves = _halves(folder)
    place = _unlabelled(folder, halves)
    parts = {role: _list(half) for role, half in halves.items()}
    if len({part.classes for part in parts.values()}) > 1:
        differing = sorted(set.symmetric_difference(*[set(part.classes) for part in list(parts.values())[:2]]))
        raise DataError(f"{folder}: {' and '.join(parts)} differ in their classes ({', '.join(differing[:10])}).")
    files = [file for part in parts.values() for file in part.files]
    files += unlabelled_files(place) if place is not None else []
    size = size or _choose_size(files)
    images = decode_files(files, size, channels)
    made: dict[str, LabelledImages] = {}
    start = 0
    for role, part in parts.items():
        stop = start + len(part.files)
        made[role] = labelled(str(folder), images[start:stop], np.array(part.labels, dtype=np.int64), part.classes)
        start = stop
    others = images[start:] if place is not None else None
    return two_halves(folder.name, str(folder), made.get("train"), made.get("validation"), made.get("test"), others)


def decode_files(files: list[Path], size: int, channels: int | None) -> np.ndarray:
    """Decode to uint8 [N, size, size, C]; where the channels are not asked for, what is grey is found out.

    Raises:
        DataError: an image does not decode.
    """
    spec = InputSpec(size, channels or 3, "none")

    def decode(file: Path) -> np.ndarray:
        pixels, _ = prepare_image(file, spec)
        grey = channels is None and (pixels == pixels[..., :1]).all()
        return pixels[..., :1].copy() if grey else pixels

    pages = _in_threads(decode, files, "decoding images")
    widest = max(page.shape[-1] for page in pages)
    images = np.empty((len(pages), size, size, widest), dtype=np.uint8)
    for index, page in enumerate(pages):
        images[index] = with_channels(page[None], widest)[0]
    return images


def _halves(folder: Path) -> dict[str, Path]:
    """Which folder holds which part; a folder of classes is the training half."""
    children = class_folders(folder)
    named = [child for child in children if child.name.lower() in _ROLES and subfolders(child)]
    if not named:
        return {"train": folder}
    others = [child.name for child in children if child not in named]
    if others:
        raise DataError(
            f"{folder} has {', '.join(child.name for child in named)} with classes inside, but also "
            f"{', '.join(others)}; expected train and test alone, or one folder a class."
        )
    found: dict[str, Path] = {}
    for child in named:
        role = _ROLES[child.name.lower()]
        if role in found:
            raise DataError(f"{folder} has both {found[role].name} and {child.name}, which mean the same; keep one.")
        found[role] = child
    return found


def _unlabelled(folder: Path, halves: dict[str, Path]) -> Path | None:
    """The folder of images without labels: beside the halves, or in the training half."""
    places = [folder, *(half for half in halves.values() if half != folder)]
    found = {place: inside for place in places if (inside := unlabelled_folder(place)) is not None}
    for role, half in halves.items():
        if role != "train" and half in found:
            raise DataError(f"{found[half]}: images without labels are for training; move the folder to {folder}.")
    if len(found) > 1:
        raise DataError(f"{folder} has {' and '.join(map(str, found.values()))}, which mean the same; keep one.")
    return next(iter(found.values()), None)


def _list(folder: Path) -> _Part:
    places = class_folders(folder)
    if not places:
        raise DataError(f"{folder} has images without labels alone; expected one sub-folder a class beside them.")
    names = [place.name for place in places]
    if all(name.isascii() and name.isdigit() for name in names):
        places.sort(key=lambda place: (int(place.name), place.name))
    for name in names:
        if not name.isprintable() or "\ufffd" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"{folder}: the folder name {name!r} is not readable as UTF-8 text; rename that class.")
    files: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(places):
        images = sorted(file for file in place.iterdir() if is_image(file))
        if not images:
            raise DataError(
                f"{place} holds no images; expected {', '.join(sorted(SUFFIXES))} files in each class's folder."
            )
        files += images
        labels += [label] * len(images)
    return _Part(files, labels, tuple(place.name for place in places))


def _choose_size(files: list[Path]) -> int:
    sizes = set(_in_threads(image_size, files, "looking at images"))
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height and SMALLEST <= width <= LARGEST:
            return width
    return SMALLEST if max(max(pair) for pair in sizes) <= _SMALL else LARGEST


def _in_threads(function: Callable[[Path], object], files: list[Path], what: str) -> list:
    with counting(what, len(files)) as advance, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = []
        for result in pool.map(function, files):
            results.append(result)
            advance(1)
        return results
