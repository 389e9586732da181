"""Images that a model does not know: a folder of images in any arrangement, or all images of a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vae_edge.data.arrays import is_idx_folder
from vae_edge.data.dataset import Dataset
from vae_edge.data.folder import CONTACT_SHEET, leave_out_broken, unlabelled_files
from vae_edge.data.load import open_data
from vae_edge.data.prepare import prepare_files
from vae_edge.errors import DataError
from vae_edge.listing import Listing
from vae_edge.preprocess import InputSpec
from vae_edge.text import normal_form, printable, system_name


@dataclass(frozen=True)
class UnknownImages:
    """Images without labels, uint8 [M, S, S, C], prepared for a model; `name` is that of their folder."""

    name: str
    images: np.ndarray
    known_names: tuple[str, ...] = ()
    """Sub-folders, or classes of the data set, that are named like a class of the model."""


def load_unknown(
    spec: str | os.PathLike[str] | Dataset, prepared_as: InputSpec, classes: Sequence[str] = (), cache: bool = True
) -> UnknownImages:
    """Load images of which a model knows none, prepared as its training files were.

    Args:
        spec: a folder of image files, in sub-folders or not, or whatever `load_dataset` reads: all its images count.
        prepared_as: the model's input.
        classes: of the model; a folder that is named like one of them is told.
        cache: use the cache of decoded images.

    Raises:
        DataError: there are no images, more than a quarter cannot be read, or they are not the model's size.
    """
    path = None if isinstance(spec, Dataset) else Path(spec).expanduser()
    if path is not None and os.fspath(path) and path.is_dir() and not is_idx_folder(path):
        name, images, inside = _load_folder(path.absolute(), prepared_as, cache)
    else:
        dataset = open_data(spec, prepared_as=prepared_as, cache=cache)
        splits = [split.images for split in dataset.splits.values()]
        if dataset.unlabelled is not None:
            splits.append(dataset.unlabelled)
        name, images, inside = dataset.name, np.concatenate(splits), dataset.classes
    expected = prepared_as.shape
    if images.shape[1:] != expected:
        raise DataError(f"{name}: unknown images are {list(images.shape[1:])}, but the model takes {list(expected)}.")
    known = {normal_form(each) for each in classes}
    shared = tuple(each for each in inside if normal_form(each) in known)
    return UnknownImages(printable(system_name(name)), images, shared)


def _load_folder(folder: Path, prepared_as: InputSpec, cache: bool) -> tuple[str, np.ndarray, tuple[str, ...]]:
    """Name, images and sub-folders of a folder of image files."""
    listing = Listing(folder)
    try:
        files = [file for file in unlabelled_files(listing, folder) if file.name != CONTACT_SHEET]
    except DataError as error:
        raise DataError(f"{folder} holds no images: expected some in it, or in folders inside it.") from error
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    if not files:
        raise DataError(f"{folder} holds no images but a contact sheet: expected some in it, or in folders inside it.")
    prepared = prepare_files(files, prepared_as, cache)
    leave_out_broken(listing, files, prepared)
    return folder.name, prepared.images, tuple(system_name(child.name) for child in listing.scan(folder)[0])
