"""Choose once, over all image files of a data set, how they become square images of one size; and decode them.

What the user does not set is chosen by these rules. Images without labels count like the others.

- **Size**: images that are all square and of one size from 28 to 64 pixels keep it. Otherwise 28 pixels if no side is
  longer than 32 pixels, else 64.
- **Channels**: one if all images are grey, even where they are stored as colour: no two channels of a pixel differ by
  more than `GREY_TOLERANCE`. Else three.
- **Depth**: the values of 16-bit grey files have as many bits as the largest of them needs (8, 10, 12, 14 or 16).
- **Alpha background**: transparency is laid on white or black, on which the visible part of the training images has
  more contrast; on white where both are about equal (`vae_edge.transparency`).
- **Fit**: `foreground` if every training image has a uniform background, and cropping to the foreground would hardly
  change nearly all of them. Else `pad`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from vae_edge import framing
from vae_edge.data.cache import FileCache, cache_folder
from vae_edge.data.image_writer import ImageWriter
from vae_edge.data.images import chunks, digest, select
from vae_edge.decoding import (
    BIT_DEPTHS,
    FIRST_FRAME_STEP,
    Header,
    bit_depth_of,
    max_value,
    read_header,
    read_transparency,
)
from vae_edge.environment import available_cpus
from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec, measure_background, prepare_image
from vae_edge.spec import MAX_SIZE, MIN_SIZE
from vae_edge.text import terminal
from vae_edge.transparency import choose_alpha_background

T = TypeVar("T")

GREY_TOLERANCE = 4
"""Grey pictures stored in colour as WebP or JPEG, once or twice, come back with channels up to 3 apart (measured at
qualities from 5 to 100)."""
_MAX_SMALL_PX = 32
"""Longest side of images that become 28 pixels and not 64."""
_MIN_CROPPED_FRACTION = 0.95
"""Fraction of the training images that cropping must hardly change, for files to be cropped."""
_WINDOW = 1024
"""Files that are handed to threads together."""
_MIN_ITEMS_SHOWN = 500
"""Fewer items get no progress bar."""


@dataclass(frozen=True)
class Prepared:
    """Image files as images, and the settings that they were prepared with."""

    images: np.ndarray
    """uint8 [M, S, S, C] of the files that decode, in the files' order: an array, or a view of a file if they are many
    (`vae_edge.data.images`)."""
    input: InputSpec
    notes: tuple[str, ...] = ()
    """Sentences about what was chosen."""
    broken: dict[int, str] = field(default_factory=dict)
    """Why a file does not decode, by the file's index."""
    animated: frozenset[int] = frozenset()
    """Indices of files with further frames, which are not used."""


class _ImageFiles:
    """Image files, each decoded once for a setting. Those that do not decode are set aside in `broken`."""

    def __init__(self, files: list[Path], folder: Path | None) -> None:
        """`folder`: of the cache; None: there is none."""
        self.files = files
        self.broken: dict[int, str] = {}
        self.cache = FileCache(files, folder, _thread_map)
        self._decoded: _Decoded | None = None
        self._exit = ExitStack()

    def __enter__(self) -> _ImageFiles:
        """The files themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove images on disk that were not kept."""
        self._exit.close()

    @property
    def kept(self) -> list[int]:
        """Indices of the files that are not set aside."""
        return [index for index in range(len(self.files)) if index not in self.broken]

    def map(self, function: Callable[[Path], T], what: str, indices: list[int]) -> dict[int, T]:
        """Apply a function to files, by their indices. Files for which it raises DataError are set aside."""
        results = _thread_map(partial(_catch_data_error, function), [self.files[index] for index in indices], what)
        found: dict[int, T] = {}
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, DataError):
                self.broken[index] = str(result)
            else:
                found[index] = result
        return found

    def decode(self, spec: InputSpec) -> np.ndarray:
        """The kept files as images, prepared with these settings: uint8 [M, S, S, C]."""
        if self._decoded is None or self._decoded.spec != spec:
            self._decoded = self._find(spec) or self._decode(spec)
        if self.kept != self._decoded.indices:  # others were set aside since
            kept = set(self.kept)
            positions = [position for position, index in enumerate(self._decoded.indices) if index in kept]
            images = select(self._decoded.images, np.array(positions, dtype=np.int64))
            self._decoded = replace(self._decoded, indices=self.kept, images=images, writer=None)
        return self._decoded.images

    def _find(self, spec: InputSpec) -> _Decoded | None:
        """What the cache holds. Files that it says are broken are tried again, for what is wrong with them."""
        found = self.cache.find_images(spec)
        if found is None or not self.broken.keys() <= set(found.broken):
            return None
        broken = self.map(partial(_decode, spec), "decoding images", list(found.broken))
        indices = self.kept
        if broken or len(indices) != len(found.images):
            return None
        return _Decoded(spec, indices, found.images, found.animated, None)

    def _decode(self, spec: InputSpec) -> _Decoded:
        writer = self._new_writer(spec)
        indices: list[int] = []
        animated: set[int] = set()
        kept = self.kept
        for index, result in zip(kept, self._each(partial(_decode, spec), kept, "decoding images"), strict=True):
            if isinstance(result, DataError):
                self.broken[index] = str(result)
                continue
            pixels, is_animated = result
            writer.append(pixels)
            indices.append(index)
            if is_animated:
                animated.add(index)
        return _Decoded(spec, indices, writer.images(), frozenset(animated), writer)

    def _each(self, function: Callable[[Path], T], indices: list[int], what: str) -> Iterator[T | DataError]:
        files = [self.files[index] for index in indices]
        return _thread_iterator(partial(_catch_data_error, function), files, what)

    def _new_writer(self, spec: InputSpec) -> ImageWriter:
        shape = (spec.size, spec.size, spec.channels)
        return self._exit.enter_context(ImageWriter(len(self.files), shape, self.cache.folder, self.cache.warn))

    def to_grey(self, spec: InputSpec, channel_ranges: np.ndarray) -> None:
        """Replace the decoded images, of three channels, by grey ones of this setting.

        An image whose channels are not equal is decoded again, so that it is converted as a grey model does it.
        """
        assert self._decoded is not None
        before, writer = self._decoded, self._new_writer(spec)
        for start, chunk in chunks(before.images):
            ranges = channel_ranges[start : start + len(chunk)]
            again = [before.indices[start + row] for row in np.flatnonzero(ranges).tolist()]
            found = iter(self._each(partial(_decode, spec), again, "decoding images"))
            for image, channel_range in zip(chunk, ranges.tolist(), strict=True):
                result = next(found) if channel_range else (image[..., :1], False)
                if isinstance(result, DataError):
                    raise result
                writer.append(result[0])
        self._decoded = _Decoded(spec, before.indices, writer.images(), before.animated, writer)

    def prepared(self, spec: InputSpec, notes: list[str]) -> Prepared:
        """The kept files as images, prepared with these settings, which the cache keeps."""
        images = self.decode(spec)
        assert self._decoded is not None
        animated = self._decoded.animated & set(self.kept)
        if self._decoded.writer is not None:
            self.cache.keep_images(spec, self._decoded.writer, sorted(self.broken), sorted(animated))
        return Prepared(images, spec, tuple(notes), dict(self.broken), animated)


@dataclass(frozen=True)
class _Decoded:
    """The files that decode, as images."""

    spec: InputSpec
    indices: list[int]
    images: np.ndarray
    """uint8 [M, S, S, C], for each index."""
    animated: frozenset[int]
    writer: ImageWriter | None
    """What holds them, if the cache does not have them yet."""


def prepare_files(files: list[Path], spec: InputSpec, cache: bool = True) -> Prepared:
    """Prepare image files with a model's settings. `cache`: use the cache of prepared images."""
    with _ImageFiles(files, cache_folder() if cache else None) as image_files:
        return image_files.prepared(spec, [])


def choose_and_prepare(
    files: list[Path],
    size: int | None,
    channels: int | None,
    fit: str,
    training: np.ndarray | None = None,
    alpha_background: str = "auto",
    cache: bool = True,
) -> Prepared:
    """Prepare image files with settings chosen by the rules at the top of this module.

    Files that do not decode have no influence: without them the images are the same.

    Args:
        files: at least one.
        size: the side in pixels, or None.
        channels: 1, 3, or None.
        fit: `auto`, `pad` or `foreground`.
        training: bool [N], the files on which the fit and the colour under transparency are chosen; None: all.
        alpha_background: `auto`, `white` or `black`.
        cache: use the cache of prepared images.

    Raises:
        DataError: none of the files decodes.
    """
    asked: dict[str, Any] = {"size": size, "channels": channels, "fit": fit, "alpha_background": alpha_background}
    if training is not None:
        asked["training"] = digest(training).hex()
    with _ImageFiles(files, cache_folder() if cache else None) as image_files:
        known = image_files.cache.find_choice(asked)
        if known is not None:
            prepared = image_files.prepared(*known)
            if len(prepared.images):
                return prepared
        headers = image_files.map(read_header, "looking at images", image_files.kept)
        while image_files.kept:
            chosen = _choose(image_files, headers, (size, channels, fit, alpha_background), training)
            if chosen is not None:
                image_files.cache.keep_choice(asked, chosen.input, chosen.notes)
                return chosen
        raise DataError(f"None of the {len(files)} images decodes: {'; '.join(list(image_files.broken.values())[:3])}")


def _choose(
    image_files: _ImageFiles,
    headers: dict[int, Header],
    requested: tuple[int | None, int | None, str, str],
    training: np.ndarray | None,
) -> Prepared | None:
    """One attempt. None if files were set aside during it, since they may have influenced the choice."""
    size, channels, fit, alpha_background = requested
    kept = image_files.kept
    remaining = [headers[index] for index in kept]
    size = size or _infer_size(remaining)
    depth, notes = _choose_depth(image_files, headers)
    background = _choose_alpha_background(image_files, headers, alpha_background, training, notes)
    if image_files.kept != kept:
        return None

    spec = InputSpec(size, channels or 3, "none", depth=depth, alpha_background=background)
    image_files.decode(spec)
    if image_files.kept != kept:
        return None
    if channels is None:
        spec = _choose_channels(image_files, spec, notes)
    images = image_files.decode(spec)
    measured = images if training is None or not training[kept].any() else select(images, training[kept])
    spec = _choose_fit(measured, spec, fit)

    colours = "grey" if spec.channels == 1 else "colour (RGB)"
    how = "full pictures, padded to a square" if spec.fit == "pad" else "drawings, cropped to their foreground"
    was_requested = "" if fit == "auto" else ", as asked"
    notes.insert(0, f"images are prepared as {colours}, {size}×{size}: {how} (fit {spec.fit}{was_requested})")
    return image_files.prepared(spec, notes)


@dataclass(frozen=True)
class Layers:
    """How 16-bit files and files with transparency become 8-bit pixels, beside arrays that fix everything else."""

    depth: int | None
    alpha_background: str | None
    notes: tuple[str, ...]
    """Sentences about what was chosen."""

    def applied_to(self, spec: InputSpec) -> InputSpec:
        """The input with these settings."""
        return replace(spec, depth=self.depth, alpha_background=self.alpha_background)


def choose_layers(files: list[Path], alpha_background: str = "auto") -> Layers:
    """Choose the depth and the colour under transparency of files. Those that do not decode have no influence."""
    image_files = _ImageFiles(files, None)
    headers = image_files.map(read_header, "looking at images", image_files.kept)
    depth, notes = _choose_depth(image_files, headers)
    background = _choose_alpha_background(image_files, headers, alpha_background, None, notes)
    return Layers(depth, background, tuple(notes))


def _decode(spec: InputSpec, file: Path) -> tuple[np.ndarray, bool]:
    """An image, uint8 [S, S, C], and whether the file has further frames."""
    pixels, info = prepare_image(file, spec)
    return pixels, FIRST_FRAME_STEP in info.steps


def _catch_data_error(function: Callable[[Path], T], file: Path) -> T | DataError:
    try:
        return function(file)
    except DataError as error:
        return error


def _infer_size(headers: list[Header]) -> int:
    sizes = {header.size for header in headers}
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height and MIN_SIZE <= width <= MAX_SIZE:
            return width
    return MIN_SIZE if max(max(pair) for pair in sizes) <= _MAX_SMALL_PX else MAX_SIZE


def _choose_depth(image_files: _ImageFiles, headers: dict[int, Header]) -> tuple[int | None, list[str]]:
    notes = []
    kept = image_files.kept
    coloured = sum(headers[index].deep_colour for index in kept)
    if coloured:
        notes.append(
            f"{coloured} files have 16-bit colours, of which the upper 8 bits are read; "
            "if their values have fewer bits, they come out too dark: convert them to 8 bit"
        )
    deep = [index for index in kept if headers[index].sixteen_bit]
    values = image_files.map(max_value, "looking at 16-bit images", deep)
    if not values:
        return None, notes
    highest = max(values.values())
    depth = bit_depth_of(min(highest, 2 ** BIT_DEPTHS[-1] - 1))  # preparing a file refuses higher values
    notes.append(f"{len(values)} files have 16-bit values up to {highest}: they are taken for values of {depth} bits")
    return depth, notes


def _choose_alpha_background(
    image_files: _ImageFiles,
    headers: dict[int, Header],
    requested: str,
    training: np.ndarray | None,
    notes: list[str],
) -> str | None:
    """The colour under transparency: as requested, or chosen on the training images."""
    if requested != "auto":
        notes.append(f"transparency is laid on {requested}, as asked")
        return requested
    kept = image_files.kept
    chosen_on = [index for index in kept if training is None or training[index]] or kept
    layered = [index for index in chosen_on if headers[index].has_alpha]
    found = list(image_files.map(read_transparency, "looking at transparency", layered).values())
    background = choose_alpha_background(found)
    if background is not None:
        count = sum(image.is_transparent for image in found)
        notes.append(
            f"{count} images have transparency: it is laid on {background} in every image, here and in all later steps "
            f"(--alpha-background {'black' if background == 'white' else 'white'} takes the other)"
        )
    return background


def _choose_channels(image_files: _ImageFiles, spec: InputSpec, notes: list[str]) -> InputSpec:
    """Make the images grey if nothing in them is coloured."""
    images = image_files.decode(spec)
    ranges = np.empty(len(images), np.uint8)  # largest difference between two channels of a pixel
    for start, chunk in chunks(images):
        ranges[start : start + len(chunk)] = (chunk.max(-1) - chunk.min(-1)).max((1, 2))
    widest = int(ranges.max())
    if widest > GREY_TOLERANCE:
        return spec
    spec = replace(spec, channels=1)
    coloured = int(np.count_nonzero(ranges))
    if coloured:
        notes.append(
            f"{coloured} files are not quite grey, but no two channels of a pixel are more than {widest} of 255 "
            "apart: they are taken for grey (--channels 3 keeps the colours)"
        )
    image_files.to_grey(spec, ranges)
    return spec


def _choose_fit(images: np.ndarray, spec: InputSpec, fit: str) -> InputSpec:
    if fit == "pad":
        return spec
    common = measure_background(images) != "none"
    found = framing.typical_framing(images) if common else None
    if fit == "auto" and (
        found is None or found.uniform_fraction < 1 or found.cropped_fraction < _MIN_CROPPED_FRACTION
    ):
        return spec
    ratio = framing.MNIST_FOREGROUND_RATIO if found is None else found.foreground_ratio
    return replace(spec, fit="foreground", foreground_ratio=ratio)


def _thread_map(function: Callable[[Path], T], files: Sequence[Path], what: str) -> list[T]:
    return list(_thread_iterator(function, files, what))


def _thread_iterator(function: Callable[[Path], T], files: Sequence[Path], what: str) -> Iterator[T]:
    """The function's results in the files' order, of which few wait in memory at a time."""
    with progress_bar(what, len(files)) as advance, ThreadPoolExecutor(available_cpus()) as pool:
        for start in range(0, len(files), _WINDOW):
            for result in pool.map(function, files[start : start + _WINDOW]):
                yield result
                advance(1)


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error with rate and time left; none for few items, or without a terminal.

    Gives a function that takes the number of items done since its last call.
    """
    if total < _MIN_ITEMS_SHOWN or not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft())
    with Progress(*columns, console=Console(file=terminal()), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
