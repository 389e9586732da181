"""Read a folder of image files: which files are images, and which class and split each belongs to.

The layout is one sub-folder a class, or folders for splits (`train`, `valid`, `Testing`, …) with such inside. Images in
sub-folders of a class belong to that class. A single folder around all of it is looked through. Images without labels
lie in a folder `unlabelled` beside the classes, or beside `train` and `test`.

`vae_edge.listing` finds the files, and says why others are left out. Too many unreadable images are an error.
`vae_edge.data.prepare` turns the files into arrays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vae_edge.data.dataset import UNLABELLED, Dataset, LabelledImages, labelled_images
from vae_edge.data.groups import hint_of_folders
from vae_edge.data.images import select
from vae_edge.data.prepare import Prepared, choose_and_prepare, prepare_files
from vae_edge.errors import DataError
from vae_edge.listing import BROKEN, FRAMES, NO_IMAGES, OUTSIDE, Listing, is_lost_image, why_none
from vae_edge.preprocess import InputSpec
from vae_edge.text import printable, system_name

CONTACT_SHEET = "contact_sheet.png"
"""The contact sheet in a folder that `generate` wrote: not an image without a class."""

MAX_BROKEN_FRACTION = 0.25
"""A folder with a larger fraction of unreadable images is refused: it is damaged, or no data set."""
MAX_NAMED = 20
"""Broken images that an error lists by name."""

_ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev", "eval", "evaluation"), "validation"),
}
_MAX_DEPTH = 8
"""Folders around the classes that are looked through."""


@dataclass(frozen=True)
class _SplitFiles:
    """The files of one split and the class of each."""

    files: list[Path]
    names: list[str]
    classes: tuple[str, ...]
    nested: int
    """Number of files in sub-folders of their class's folder."""


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has visible sub-folders."""
    return bool(Listing(folder).scan(folder)[0])


def load_folder(
    folder: Path,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
    alpha_background: str = "auto",
    cache: bool = True,
) -> Dataset:
    """Load image files; see the module for the layout, and `vae_edge.data.load_dataset` for the arguments.

    Every image is prepared as prediction does it (`vae_edge.preprocess.prepare_image`): with a model's settings
    `prepared_as`, or with settings chosen here, which the data set then carries. The train split numbers the classes.

    Raises:
        DataError: a class of the train split has no images; another split has a class that the train split lacks; more
            than a quarter of the images cannot be read; the folder for images without labels is empty; all images are
            without labels.
    """
    listing = Listing(folder)
    root = _find_root(listing, folder) or folder
    split_dirs = _split_dirs(listing, root)
    unlabelled_dir = _unlabelled_dir(listing, root, split_dirs)
    found = _list_splits(listing, root, split_dirs)
    classes = next(iter(found.values())).classes
    files = [file for split in found.values() for file in split.files]
    labels = [classes.index(name) for split in found.values() for name in split.names]
    roles = [role for role, split in found.items() for _ in split.files]
    if unlabelled_dir is not None:
        others = unlabelled_files(listing, unlabelled_dir)
        files, labels, roles = files + others, labels + [-1] * len(others), roles + ["unlabelled"] * len(others)
    role_of, label_of = np.array(roles), np.array(labels, dtype=np.int64)

    if prepared_as is not None:
        prepared = prepare_files(files, prepared_as, cache)
    else:
        training = (role_of == "train") | (role_of == "unlabelled")
        prepared = choose_and_prepare(files, size, channels, fit, training, alpha_background, cache)
    kept_files = np.array(leave_out_broken(listing, files, prepared), dtype=np.int64)
    role_of, label_of = role_of[kept_files], label_of[kept_files]
    _check_classes_left(root, found, classes, role_of, label_of)

    splits: dict[str, LabelledImages] = {}
    for role in found:
        chosen = role_of == role
        if chosen.any():
            names = relative_names([files[index] for index in kept_files[chosen]], folder)
            images = select(prepared.images, chosen)
            splits[role] = labelled_images(str(folder), images, label_of[chosen], classes, files=names)
    unlabelled = select(prepared.images, role_of == "unlabelled") if "unlabelled" in role_of else None
    train, validation, test = (splits.get(role) for role in ("train", "validation", "test"))
    dataset = Dataset(folder.name, str(folder), train, test, unlabelled, validation=validation)
    notes = [*_notes(folder, root, found), *prepared.notes]
    if train is not None and prepared_as is None:
        notes += hint_of_folders(train)
    return replace(dataset, input=prepared.input, notes=tuple(notes), left_out=listing.left_out)


def relative_names(files: list[Path], folder: Path) -> np.ndarray:
    """object [N]: the files' paths relative to a folder, with slashes."""
    names = np.empty(len(files), dtype=object)
    names[:] = [file.relative_to(folder).as_posix() for file in files]
    return names


def leave_out_broken(listing: Listing, files: list[Path], prepared: Prepared) -> list[int]:
    """Leave out the files that did not decode, and record those of which only the first frame is used.

    Returns:
        the indices of the files that decoded.

    Raises:
        DataError: more than a quarter of the images cannot be read.
    """
    for index, error in prepared.broken.items():
        listing.leave_out(files[index], BROKEN, error)
    for index in prepared.animated:
        listing.leave_out(files[index], FRAMES)
    lost = [entry for entry in listing.left_out if is_lost_image(entry)]
    kept = [index for index in range(len(files)) if index not in prepared.broken]
    if len(lost) > MAX_BROKEN_FRACTION * (len(lost) + len(kept)):
        more = f"; and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        raise DataError(
            f"{listing.root}: {len(lost)} of {len(lost) + len(kept)} images cannot be read, more than the "
            f"{MAX_BROKEN_FRACTION:.0%} that are left out: is the copy complete? "
            + "; ".join(entry.error or f"{entry.path} ({entry.reason})" for entry in lost[:MAX_NAMED])
            + more
        )
    return kept


def _find_root(listing: Listing, folder: Path, known: tuple[str, ...] | None = None, depth: int = 0) -> Path | None:
    """The folder that holds the classes or splits, if there are single folders around it; else None.

    Args:
        listing: of the data set.
        folder: where to begin.
        known: for a split, the class names, which are no folders around others. None: splits may lie inside.
        depth: depth of `folder` below the beginning.
    """
    folders, images = listing.scan(folder)
    if unlabelled_folder(listing, folder) is not None or depth > _MAX_DEPTH:
        return None
    inner = [child for child in folders if listing.images(child)]
    has_splits = known is None and any(_role(child) and listing.scan(child)[0] for child in inner)
    if len(inner) != 1 or has_splits or (images and depth):
        return folder if depth and (len(inner) > 1 or has_splits) and not images else None
    if known is not None and system_name(inner[0].name) in known:
        return None
    found = _find_root(listing, inner[0], known, depth + 1)
    if found is not None:
        for child in folders:
            if child != inner[0]:
                listing.leave_out(child, NO_IMAGES)
        for file in images:
            listing.leave_out(file, OUTSIDE)
    return found


def _role(folder: Path) -> str | None:
    """The split that a folder's full name denotes."""
    return _ROLES.get(folder.name.casefold())


def _role_in_words(folder: Path) -> str | None:
    """The split that one word of a folder's name denotes, as in `seg_train` and `test images`."""
    found = {_ROLES[word] for word in re.split(r"[\W_]+", folder.name.casefold()) if word in _ROLES}
    return found.pop() if len(found) == 1 else None


def _split_dirs(listing: Listing, root: Path) -> dict[str, Path]:
    """The folder of each split. A folder of classes is the train split."""
    children = class_folders(listing, root)
    role_of = {child: role for child in children if (role := _role(child)) and listing.scan(child)[0]}
    if not role_of:
        worded = {child: role for child in children if (role := _role_in_words(child)) and listing.scan(child)[0]}
        role_of = worded if len(set(worded.values())) > 1 else {}
    others = [child for child in children if child not in role_of and listing.images(child)]
    flat = [child for child in others if _role(child) or _role_in_words(child)]
    if not role_of or (others and all(listing.scan(child)[1] for child in role_of)):
        return {"train": root}  # classes, some of which may have such names
    unexpected = [child.name for child in others if child not in flat]
    if unexpected:
        raise DataError(
            f"{root} has {', '.join(child.name for child in role_of)} with classes inside, but also "
            f"{', '.join(unexpected)}; expected train and test alone, or one folder a class."
        )
    for child in children:
        if child in flat:
            for file in listing.images(child):
                listing.leave_out(file, OUTSIDE)
        elif child not in role_of:
            listing.leave_out(child, NO_IMAGES)
    for file in listing.scan(root)[1]:
        listing.leave_out(file, OUTSIDE)
    found: dict[str, Path] = {}
    for child, role in role_of.items():
        if role in found:
            raise DataError(f"{root} has both {found[role].name} and {child.name}, which mean the same; keep one.")
        found[role] = child
    return {role: found[role] for role in ("train", "validation", "test") if role in found}


def _unlabelled_dir(listing: Listing, root: Path, split_dirs: dict[str, Path]) -> Path | None:
    """The folder of images without labels: beside the splits, or in the train split."""
    parents = [root, *(folder for folder in split_dirs.values() if folder != root)]
    found = {parent: child for parent in parents if (child := unlabelled_folder(listing, parent)) is not None}
    for role, folder in split_dirs.items():
        if role != "train" and folder in found:
            raise DataError(f"{found[folder]}: images without labels are for training; move the folder to {root}.")
    if len(found) > 1:
        raise DataError(f"{root} has {' and '.join(map(str, found.values()))}, which mean the same; keep one.")
    return next(iter(found.values()), None)


def _list_splits(listing: Listing, root: Path, split_dirs: dict[str, Path]) -> dict[str, _SplitFiles]:
    """The files of each split. The first split has all classes."""
    found: dict[str, _SplitFiles] = {}
    known: tuple[str, ...] = ()
    for role, folder in split_dirs.items():
        inner = folder if folder == root else _find_root(listing, folder, known) or folder
        split = _list_files(listing, inner, is_first=not found)
        known = known or split.classes
        more = sorted(set(split.classes) - set(known))
        if more:
            raise DataError(
                f"{root}: the splits differ in their classes ({', '.join(more[:10])}): {folder.name} has them, but "
                f"{next(iter(split_dirs.values())).name} does not. Give both images of them, or neither."
            )
        found[role] = split
    return found


def _list_files(listing: Listing, root: Path, is_first: bool) -> _SplitFiles:
    """The images of each class below `root`. Of the first split, every class must have some."""
    folders = class_folders(listing, root)
    if not folders:
        raise DataError(f"{root} has images without labels alone; expected one sub-folder a class beside them.")
    for file in listing.scan(root)[1]:
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
    return _SplitFiles(files, names, tuple(name for name in classes if name in present), nested)


def _check_classes_left(
    root: Path, found: dict[str, _SplitFiles], classes: tuple[str, ...], roles: np.ndarray, labels: np.ndarray
) -> None:
    """Check that each class of the first split has an image that decodes."""
    first = next(iter(found))
    left = set(labels[roles == first].tolist())
    for label, name in enumerate(classes):
        if label not in left:
            raise DataError(f"{root}: no image of class {name} decodes; give it images that do, or take it away.")


def _notes(folder: Path, root: Path, found: dict[str, _SplitFiles]) -> list[str]:
    notes = []
    if "validation" in found:
        notes.append(f"the {len(found['validation'].files)} images of the validation folder are the validation split")
    if root != folder:
        notes.append(f"the data set is the folder {root.relative_to(folder)} inside it")
    nested = sum(split.nested for split in found.values())
    if nested:
        notes.append(f"{nested} images lie in sub-folders of their class's folder")
    return notes


def class_folders(listing: Listing, folder: Path) -> list[Path]:
    """The sub-folders that can be classes: all but `unlabelled`."""
    return [child for child in listing.scan(folder)[0] if child.name.lower() not in UNLABELLED]


def unlabelled_folder(listing: Listing, folder: Path) -> Path | None:
    """The sub-folder `unlabelled`, of images without labels, if there is one.

    Raises:
        DataError: there are two, of either spelling.
    """
    found = [child for child in listing.scan(folder)[0] if child.name.lower() in UNLABELLED]
    if len(found) > 1:
        raise DataError(f"{folder} has both {found[0].name} and {found[1].name}, which mean the same; keep one.")
    return found[0] if found else None


def unlabelled_files(listing: Listing, folder: Path) -> list[Path]:
    """Every image in a folder of images without labels.

    Raises:
        DataError: there are none.
    """
    files = listing.images(folder)
    if not files:
        raise DataError(
            f"{folder} holds no images{why_none(listing, folder)}; expected image files in it or in folders inside it. "
            "Remove the folder if there are no images without labels."
        )
    return files


def class_name(folder: Path) -> str:
    """The class name of a folder: UTF-8 whatever the locale, in Unicode's normal form C.

    Raises:
        DataError: the name is not UTF-8, or holds control characters.
    """
    name = system_name(folder.name)
    if not name.isprintable() or "\ufffd" in name:
        raise DataError(
            f"{folder.parent}: the folder name {printable(name)!r} is not readable as UTF-8 text; rename that class."
        )
    return name
