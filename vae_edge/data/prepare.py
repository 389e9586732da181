"""Choose once, over all image files of a data set, how they become images of one size; and decode them.

What the user does not set is chosen by these rules. Images without labels count like the others.

- **Size**: images that are all square and of one size from 28 to 96 pixels keep it. Otherwise they become squares: of
  28 pixels if no side is longer than 32 pixels; of 96 if at least half of the images have a side of 96 pixels or more;
  else of 64. A network for 96 pixels computes no more than one for 64, since its first convolution halves the image.
- **Channels**: one if all images are grey, even where they are stored as colour: no two channels of a pixel differ by
  more than `GREY_TOLERANCE`. Else three.
- **Depth**: the values of 16-bit grey files have as many bits as the largest of them needs (8, 10, 12, 14 or 16).
- **Fit**: `foreground` if every training image has a uniform background, and cropping to the foreground would hardly
  change nearly all of them. Else `pad`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from vae_edge import framing
from vae_edge.decoding import BIT_DEPTHS, FIRST_FRAME_STEP, Header, bit_depth_of, max_value, read_header
from vae_edge.environment import available_cpus
from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec, measure_background, prepare_image
from vae_edge.spec import MIN_SIZE, Size, size_text
from vae_edge.text import terminal

T = TypeVar("T")

GREY_TOLERANCE = 4
"""Grey pictures stored in colour as WebP or JPEG, once or twice, come back with channels up to 3 apart (measured at
qualities from 5 to 100)."""
_MAX_SMALL_PX = 32
"""Longest side of images that become 28 pixels and not 64."""
_MEDIUM_PX, _LARGE_PX = 64, 96
"""Sides of the frames that larger images become; the second if at least half of the images are as large as that."""
_MIN_CROPPED_FRACTION = 0.95
"""Fraction of the training images that cropping must hardly change, for files to be cropped."""
_MIN_ITEMS_SHOWN = 500
"""Fewer items get no progress bar."""


@dataclass(frozen=True)
class Prepared:
    """Image files as images, and the settings that they were prepared with."""

    images: np.ndarray
    """uint8 [M, H, W, C]: of the files that decode, in the files' order."""
    input: InputSpec
    notes: tuple[str, ...] = ()
    """Sentences about what was chosen."""
    broken: dict[int, str] = field(default_factory=dict)
    """Why a file does not decode, by the file's index."""
    animated: frozenset[int] = frozenset()
    """Indices of files with further frames, which are not used."""


@dataclass(frozen=True)
class _DecodedFile:
    """A decoded file, uint8 [H, W, C]: one channel where the three are equal."""

    pixels: np.ndarray
    channel_range: int
    """Largest difference between two channels of a pixel."""
    animated: bool


class _ImageFiles:
    """Image files, each decoded once for a setting. Those that do not decode are set aside in `broken`."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.broken: dict[int, str] = {}
        self._spec: InputSpec | None = None
        self._decoded: dict[int, _DecodedFile] = {}

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

    def decode(self, spec: InputSpec) -> dict[int, _DecodedFile]:
        """Decode the kept files with these settings."""
        if spec != self._spec:
            self._spec, self._decoded = spec, {}
        missing = [index for index in self.kept if index not in self._decoded]
        self._decoded.update(self.map(partial(_decode, spec), "decoding images", missing))
        return {index: self._decoded[index] for index in self.kept}

    def prepared(self, spec: InputSpec, notes: list[str]) -> Prepared:
        """The kept files as images, prepared with these settings."""
        decoded = self.decode(spec)
        return self.result(decoded, _stack(list(decoded.values()), spec), spec, notes)

    def result(
        self, decoded: dict[int, _DecodedFile], images: np.ndarray, spec: InputSpec, notes: list[str]
    ) -> Prepared:
        """Images with what is known about their files."""
        animated = frozenset(index for index, file in decoded.items() if file.animated)
        return Prepared(images, spec, tuple(notes), dict(self.broken), animated)


def prepare_files(files: list[Path], spec: InputSpec) -> Prepared:
    """Prepare image files with a model's settings."""
    return _ImageFiles(files).prepared(spec, [])


def choose_and_prepare(
    files: list[Path], size: Size | None, channels: int | None, fit: str, training: np.ndarray | None = None
) -> Prepared:
    """Prepare image files with settings chosen by the rules at the top of this module.

    Files that do not decode have no influence: without them the images are the same.

    Args:
        files: at least one.
        size: in pixels, or None.
        channels: 1, 3, or None.
        fit: `auto`, `pad` or `foreground`.
        training: bool [N], the files on which the fit is chosen; None: all.

    Raises:
        DataError: none of the files decodes.
    """
    image_files = _ImageFiles(files)
    headers = image_files.map(read_header, "looking at images", image_files.kept)
    while image_files.kept:
        prepared = _choose(image_files, headers, (size, channels, fit), training)
        if prepared is not None:
            return prepared
    raise DataError(f"None of the {len(files)} images decodes: {'; '.join(list(image_files.broken.values())[:3])}")


def _choose(
    image_files: _ImageFiles,
    headers: dict[int, Header],
    requested: tuple[Size | None, int | None, str],
    training: np.ndarray | None,
) -> Prepared | None:
    """One attempt. None if files were set aside during it, since they may have influenced the choice."""
    size, channels, fit = requested
    kept = image_files.kept
    remaining = [headers[index] for index in kept]
    size = size or _infer_size(remaining)
    depth, notes = _choose_depth(image_files, headers)
    if image_files.kept != kept:
        return None

    spec = InputSpec(size, channels or 3, "none", depth=depth)
    decoded = image_files.decode(spec)
    if image_files.kept != kept:
        return None
    if channels is None:
        spec, images = _choose_channels(image_files, decoded, spec, notes)
    else:
        images = _stack(list(decoded.values()), spec)
    measured = images if training is None or not training[kept].any() else images[training[kept]]
    spec = _choose_fit(measured, spec, fit)

    colours = "grey" if spec.channels == 1 else "colour (RGB)"
    shape = "a square" if spec.height == spec.width else "this shape"
    how = f"full pictures, padded to {shape}" if spec.fit == "pad" else "drawings, cropped to their foreground"
    was_requested = "" if fit == "auto" else ", as asked"
    notes.insert(0, f"images are prepared as {colours}, {size_text(size)}: {how} (fit {spec.fit}{was_requested})")
    if spec.fit == "foreground":
        return image_files.prepared(spec, notes)
    return image_files.result(decoded, images, spec, notes)


def choose_depth(files: list[Path]) -> tuple[int | None, list[str]]:
    """The depth of the 16-bit grey files (None if there are none), and sentences about 16-bit files."""
    image_files = _ImageFiles(files)
    return _choose_depth(image_files, image_files.map(read_header, "looking at images", image_files.kept))


def _decode(spec: InputSpec, file: Path) -> _DecodedFile:
    pixels, info = prepare_image(file, spec)
    channel_range = int((pixels.max(-1) - pixels.min(-1)).max())
    kept = pixels if channel_range else pixels[..., :1].copy()
    return _DecodedFile(kept, channel_range, FIRST_FRAME_STEP in info.steps)


def _stack(decoded: list[_DecodedFile], spec: InputSpec) -> np.ndarray:
    images = np.empty((len(decoded), *spec.shape), np.uint8)
    for image, file in zip(images, decoded, strict=True):
        image[:] = file.pixels  # broadcasts one channel to three
    return images


def _catch_data_error(function: Callable[[Path], T], file: Path) -> T | DataError:
    try:
        return function(file)
    except DataError as error:
        return error


def _infer_size(headers: list[Header]) -> int:
    sizes = {header.size for header in headers}
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height and MIN_SIZE <= width <= _LARGE_PX:
            return width
    longer = [max(header.size) for header in headers]
    if max(longer) <= _MAX_SMALL_PX:
        return MIN_SIZE
    return _LARGE_PX if 2 * sum(side >= _LARGE_PX for side in longer) >= len(longer) else _MEDIUM_PX


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


def _choose_channels(
    image_files: _ImageFiles, decoded: dict[int, _DecodedFile], spec: InputSpec, notes: list[str]
) -> tuple[InputSpec, np.ndarray]:
    """Make the images grey if nothing in them is coloured."""
    widest = max(file.channel_range for file in decoded.values())
    if widest > GREY_TOLERANCE:
        return spec, _stack(list(decoded.values()), spec)
    spec = replace(spec, channels=1)
    rows = [row for row, file in enumerate(decoded.values()) if file.channel_range]
    images = np.stack([file.pixels[..., :1] for file in decoded.values()])
    if rows:
        notes.append(
            f"{len(rows)} files are not quite grey, but no two channels of a pixel are more than {widest} of 255 "
            "apart: they are taken for grey (--channels 3 keeps the colours)"
        )
        again = [image_files.files[list(decoded)[row]] for row in rows]
        images[rows] = np.stack(_thread_map(lambda file: prepare_image(file, spec)[0], again, "decoding images"))
    return spec, images


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


def _thread_map(function: Callable[[Path], object], files: list[Path], what: str) -> list:
    with progress_bar(what, len(files)) as advance, ThreadPoolExecutor(available_cpus()) as pool:
        results = []
        for result in pool.map(function, files):
            results.append(result)
            advance(1)
        return results


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
