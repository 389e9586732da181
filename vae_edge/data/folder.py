"""A folder of image files, one sub-folder a class; or parts (`train`, `valid`, `Testing`, …) with such inside.

Images in sub-folders of a class belong to that class. One folder around all of it is looked through. Images without
labels lie in a folder `unlabelled` beside the classes, or beside `train` and `test`. What is not used is left out, with
the reason (`vae_edge.data.image_files`); too many images that cannot be read are an error.

How the files become images, where nobody says it, is chosen in `vae_edge.data.prepare`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vae_edge.data.dataset import Dataset, LabelledImages, labelled, two_halves
from vae_edge.data.image_files import (
    BROKEN,
    CONTACT_SHEET,
    FRAMES,
    NO_IMAGES,
    OUTSIDE,
    Listing,
    class_folders,
    class_name,
    unlabelled_files,
    unlabelled_folder,
    why_none,
)
from vae_edge.data.prepare import Prepared, choose_and_prepare, prepare_files
from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec
from vae_edge.text import system_name

MOST_BROKEN = 0.25
"""A folder of whose images a larger share cannot be read is refused: it is damaged, or not what it was taken for."""
NAMED = 20
"""So many broken images are named in an error, and their number is said."""

_ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev", "eval", "evaluation"), "validation"),
}
_DEEPEST = 8
"""So many folders around the classes are looked through."""


@dataclass(frozen=True)
class _Part:
    """The files of one part and the class of each."""

    files: list[Path]
    names: list[str]
    classes: tuple[str, ...]
    nested: int
    """How many of the files lie in sub-folders of their class's folder."""


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has sub-folders."""
    return bool(Listing(folder).scan(folder)[0])


def load_folder(
    folder: Path,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
) -> Dataset:
    """Load image files; see the module for the layout.

    Every image becomes square by the preprocessing that prediction uses (`vae_edge.preprocess.prepare_image`): with the
    settings `prepared_as` of a model, or with those that are chosen here, which the data set then carries.
    Classes are numbered as the training half has them. A validation folder is the test half where there is no `test`,
    else it joins the training half.

    Raises:
        DataError: a class of the training half without images; a half with a class that training lacks; more than a
            quarter of the images cannot be read; a folder for images without labels that has none; images without
            labels alone.
    """
    listing = Listing(folder)
    place = _inside(listing, folder) or folder
    halves = _halves(listing, place)
    unlabelled_place = _unlabelled(listing, place, halves)
    parts = _list_parts(listing, place, halves)
    classes = next(iter(parts.values())).classes
    files = [file for part in parts.values() for file in part.files]
    labels = [classes.index(name) for part in parts.values() for name in part.names]
    roles = [role for role, part in parts.items() for _ in part.files]
    if unlabelled_place is not None:
        others = unlabelled_files(listing, unlabelled_place)
        files, labels, roles = files + others, labels + [-1] * len(others), roles + ["unlabelled"] * len(others)
    of_role, of_label = np.array(roles), np.array(labels, dtype=np.int64)
    if prepared_as is not None:
        prepared = prepare_files(files, prepared_as)
    else:
        prepared = choose_and_prepare(files, size, channels, fit, of_role != "test")
    kept = leave_out_broken(listing, files, prepared)
    of_role, of_label = of_role[kept], of_label[kept]
    _check_classes_left(place, parts, classes, of_role, of_label)
    made: dict[str, LabelledImages] = {}
    for role in parts:
        chosen = of_role == role
        if chosen.any():
            made[role] = labelled(str(folder), prepared.images[chosen], of_label[chosen], classes)
    without = prepared.images[of_role == "unlabelled"] if "unlabelled" in of_role else None
    dataset = two_halves(folder.name, str(folder), made.get("train"), made.get("validation"), made.get("test"), without)
    notes = (*_notes(folder, place, parts), *prepared.notes)
    return replace(dataset, input=prepared.input, notes=notes, left_out=listing.left_out)


def leave_out_broken(listing: Listing, files: list[Path], prepared: Prepared) -> list[int]:
    """Leave out the files that did not decode, and say of which only the first frame is used; the indices of the rest.

    Raises:
        DataError: more than a quarter of the images cannot be read.
    """
    for index, error in prepared.broken.items():
        listing.leave_out(files[index], BROKEN, error)
    for index in prepared.animated:
        listing.leave_out(files[index], FRAMES)
    lost = [entry for entry in listing.left_out if entry.is_lost_image()]
    kept = [index for index in range(len(files)) if index not in prepared.broken]
    if len(lost) > MOST_BROKEN * (len(lost) + len(kept)):
        more = f"; and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        raise DataError(
            f"{listing.root}: {len(lost)} of {len(lost) + len(kept)} images cannot be read, more than the "
            f"{MOST_BROKEN:.0%} that are left out: is the copy whole? "
            + "; ".join(entry.error or f"{entry.path} ({entry.reason})" for entry in lost[:NAMED])
            + more
        )
    return kept


def _inside(listing: Listing, place: Path, known: tuple[str, ...] | None = None, depth: int = 0) -> Path | None:
    """The folder that holds the classes or parts, where one folder after the other lies around it; else None.

    Args:
        listing: of the data set.
        place: where to begin.
        known: for a part, the names of classes, which are no folders around others; None: parts may lie inside.
        depth: how deep `place` is already.
    """
    folders, images = listing.scan(place)
    if unlabelled_folder(listing, place) is not None or depth > _DEEPEST:
        return None
    inner = [child for child in folders if listing.images(child)]
    parts = known is None and any(_role(child) and listing.scan(child)[0] for child in inner)
    if len(inner) != 1 or parts or (images and depth):
        return place if depth and (len(inner) > 1 or parts) and not images else None
    if known is not None and system_name(inner[0].name) in known:
        return None
    found = _inside(listing, inner[0], known, depth + 1)
    if found is not None:
        for child in folders:
            if child != inner[0]:
                listing.leave_out(child, NO_IMAGES)
        for file in images:
            listing.leave_out(file, OUTSIDE)
    return found


def _role(folder: Path) -> str | None:
    """Which part a folder's whole name says that it holds."""
    return _ROLES.get(folder.name.casefold())


def _role_in_words(folder: Path) -> str | None:
    """Which part one word of a folder's name says that it holds, as in `seg_train` and `test images`."""
    found = {_ROLES[word] for word in re.split(r"[\W_]+", folder.name.casefold()) if word in _ROLES}
    return found.pop() if len(found) == 1 else None


def _halves(listing: Listing, place: Path) -> dict[str, Path]:
    """Which folder holds which part; a folder of classes is the training half."""
    children = class_folders(listing, place)
    of_role = {child: role for child in children if (role := _role(child)) and listing.scan(child)[0]}
    if not of_role:
        worded = {child: role for child in children if (role := _role_in_words(child)) and listing.scan(child)[0]}
        of_role = worded if len(set(worded.values())) > 1 else {}
    others = [child for child in children if child not in of_role and listing.images(child)]
    flat = [child for child in others if _role(child) or _role_in_words(child)]
    if not of_role or (others and all(listing.scan(child)[1] for child in of_role)):
        return {"train": place}  # classes, of which some may be called so
    strange = [child.name for child in others if child not in flat]
    if strange:
        raise DataError(
            f"{place} has {', '.join(child.name for child in of_role)} with classes inside, but also "
            f"{', '.join(strange)}; expected train and test alone, or one folder a class."
        )
    for child in children:
        if child in flat:
            for file in listing.images(child):
                listing.leave_out(file, OUTSIDE)
        elif child not in of_role:
            listing.leave_out(child, NO_IMAGES)
    for file in listing.scan(place)[1]:
        listing.leave_out(file, OUTSIDE)
    found: dict[str, Path] = {}
    for child, role in of_role.items():
        if role in found:
            raise DataError(f"{place} has both {found[role].name} and {child.name}, which mean the same; keep one.")
        found[role] = child
    return {role: found[role] for role in ("train", "validation", "test") if role in found}


def _unlabelled(listing: Listing, place: Path, halves: dict[str, Path]) -> Path | None:
    """The folder of images without labels: beside the halves, or in the training half."""
    places = [place, *(half for half in halves.values() if half != place)]
    found = {where: inside for where in places if (inside := unlabelled_folder(listing, where)) is not None}
    for role, half in halves.items():
        if role != "train" and half in found:
            raise DataError(f"{found[half]}: images without labels are for training; move the folder to {place}.")
    if len(found) > 1:
        raise DataError(f"{place} has {' and '.join(map(str, found.values()))}, which mean the same; keep one.")
    return next(iter(found.values()), None)


def _list_parts(listing: Listing, place: Path, halves: dict[str, Path]) -> dict[str, _Part]:
    """The files of each part; the first one has all classes."""
    parts: dict[str, _Part] = {}
    known: tuple[str, ...] = ()
    for role, half in halves.items():
        inner = half if half == place else _inside(listing, half, known) or half
        part = _list(listing, inner, is_first=not parts)
        known = known or part.classes
        more = sorted(set(part.classes) - set(known))
        if more:
            raise DataError(
                f"{place}: the halves differ in their classes ({', '.join(more[:10])}): {half.name} has them, but "
                f"{next(iter(halves.values())).name} does not. Give both images of them, or neither."
            )
        parts[role] = part
    return parts


def _list(listing: Listing, place: Path, is_first: bool) -> _Part:
    folders = class_folders(listing, place)
    if not folders:
        raise DataError(f"{place} has images without labels alone; expected one sub-folder a class beside them.")
    for file in listing.scan(place)[1]:
        if file.name != CONTACT_SHEET:
            listing.leave_out(file, OUTSIDE)
    by_name: dict[str, list[Path]] = {}
    for folder in folders:
        by_name.setdefault(class_name(folder), []).append(folder)
    classes = sorted(by_name)
    if all(name.isascii() and name.isdigit() for name in classes):
        classes.sort(key=lambda name: (int(name), name))
    files: list[Path] = []
    names: list[str] = []
    for name in classes:
        images = [file for folder in by_name[name] for file in listing.images(folder)]
        if not images and is_first:
            folder = by_name[name][0]
            raise DataError(
                f"{folder} holds no images{why_none(listing, folder)}; expected some in each class's folder. "
                "Add images, or take the folder away."
            )
        if not images:
            for folder in by_name[name]:
                listing.leave_out(folder, NO_IMAGES)
        files += images
        names += [name] * len(images)
    outermost, present = set(folders), set(names)
    nested = sum(file.parent not in outermost for file in files)
    return _Part(files, names, tuple(name for name in classes if name in present), nested)


def _check_classes_left(
    place: Path, parts: dict[str, _Part], classes: tuple[str, ...], roles: np.ndarray, labels: np.ndarray
) -> None:
    """Check that each class of the first part has an image that decodes."""
    first = next(iter(parts))
    left = set(labels[roles == first].tolist())
    for label, name in enumerate(classes):
        if label not in left:
            raise DataError(f"{place}: no image of class {name} decodes; give it images that do, or take it away.")


def _notes(folder: Path, place: Path, parts: dict[str, _Part]) -> list[str]:
    notes = []
    if place != folder:
        notes.append(f"the data set is the folder {place.relative_to(folder)} inside it")
    nested = sum(part.nested for part in parts.values())
    if nested:
        notes.append(f"{nested} images lie in sub-folders of their class's folder")
    return notes
