"""Which files of a folder are images, and where those without labels lie."""

from __future__ import annotations

import os
from pathlib import Path

from vae_edge.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
UNLABELLED = ("unlabelled", "unlabeled")
"""The folder, or the array of an .npz, of images without labels. No class can be called so in a folder."""
_OTHER_IMAGES = frozenset(
    {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jfif", ".jpe", ".ppm", ".pgm", ".tga", ".dng"}
)
"""Suffixes of pictures that are not read."""


def is_image(file: Path) -> bool:
    """Whether the file's suffix is one that is read, and it is not hidden."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def subfolders(folder: Path) -> list[Path]:
    """The folders inside, sorted, without hidden ones and those of other programs (`__MACOSX`)."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not _hidden(child))


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders that can be classes: all but the one of images without labels."""
    return [child for child in subfolders(folder) if child.name.lower() not in UNLABELLED]


def unlabelled_folder(folder: Path) -> Path | None:
    """The sub-folder of images without labels, if there is one.

    Raises:
        DataError: there are two, of either spelling.
    """
    found = [child for child in subfolders(folder) if child.name.lower() in UNLABELLED]
    if len(found) > 1:
        raise DataError(f"{folder} has both {found[0].name} and {found[1].name}, which mean the same; keep one.")
    return found[0] if found else None


def unlabelled_files(place: Path) -> list[Path]:
    """Every image in a folder and in its sub-folders, however deep, in the order of their paths.

    None is left out in silence: pictures of formats that are not read are an error. Hidden files and files that are
    no pictures are passed over.

    Raises:
        DataError: there are no images; a picture of a format that is not read; a link that leads in a circle.
    """
    files = _walk(place, ())
    if not files:
        raise DataError(
            f"{place} holds no images; expected {', '.join(sorted(SUFFIXES))} files in it or in folders inside it. "
            "Remove the folder if there are no images without labels."
        )
    return files


def _walk(place: Path, above: tuple[str, ...]) -> list[Path]:
    real = os.path.realpath(place)
    if real in above:
        raise DataError(f"{place} is a link to a folder that it lies in; remove it.")
    files: list[Path] = []
    for child in sorted(place.iterdir()):
        if child.is_dir():
            files += [] if _hidden(child) else _walk(child, (*above, real))
        elif is_image(child):
            files.append(child)
        elif child.suffix.lower() in SUFFIXES | _OTHER_IMAGES and not child.name.startswith("."):
            what = "is a link to nothing" if child.is_symlink() else "is a picture of a format that is not read here"
            raise DataError(f"{child} {what}; expected {', '.join(sorted(SUFFIXES))}. Convert it or take it out.")
    return files


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))
