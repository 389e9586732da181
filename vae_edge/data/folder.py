"""A folder of image files, one sub-folder a class; or `train` and `test` folders, each with such sub-folders.

Images without labels lie in a folder `unlabelled` beside the classes, or beside `train` and `test`.

How the files become images, where nobody says it, is chosen in `vae_edge.data.preparing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vae_edge.data.listing import (
    SUFFIXES,
    class_folders,
    is_image,
    subfolders,
    unlabelled_files,
    unlabelled_folder,
)
from vae_edge.data.preparing import Prepared, choose_and_prepare, prepare_files
from vae_edge.data.sets import Dataset, LabelledImages, labelled, two_halves
from vae_edge.errors import DataError
from vae_edge.images import InputSpec

_ROLES = {"train": "train", "training": "train", "test": "test", "val": "validation", "validation": "validation"}


@dataclass(frozen=True)
class _Part:
    """The files of one part and the label of each."""

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...]


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has sub-folders."""
    return bool(subfolders(folder))


def load_folder(
    folder: Path,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
) -> Dataset:
    """Load image files; see the module for the layout.

    Every image becomes square by the preprocessing that prediction uses (`vae_edge.images.prepare_image`): with the
    settings `prepared_as` of a model, or with those that are chosen here, which the data set then carries.
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
    if prepared_as is not None:
        prepared = Prepared(prepare_files(files, prepared_as), prepared_as)
    else:
        roles = [role for role, part in parts.items() for _ in part.files]
        training = np.array([role != "test" for role in roles] + [True] * (len(files) - len(roles)))
        prepared = choose_and_prepare(files, size, channels, fit, training if training.any() else None)
    images = prepared.images
    made: dict[str, LabelledImages] = {}
    start = 0
    for role, part in parts.items():
        stop = start + len(part.files)
        made[role] = labelled(str(folder), images[start:stop], np.array(part.labels, dtype=np.int64), part.classes)
        start = stop
    others = images[start:] if place is not None else None
    dataset = two_halves(folder.name, str(folder), made.get("train"), made.get("validation"), made.get("test"), others)
    return replace(dataset, input=prepared.input, notes=prepared.notes)


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
