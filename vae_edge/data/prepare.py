"""A progress bar on standard error for work that is long, and none where nobody looks.

How image files become the images of a data set: chosen once, over all of them, where nobody has chosen yet.

- **Size**: if all are square, of one size from 28 to 64 pixels, they keep it; otherwise 28 where no image is larger
  than 32 pixels either way, else 64.
- **Channels**: one if all images are grey, also where they are stored as colour: no two channels of a pixel are further
  apart than `GREY_TOLERANCE`. Else three.
- **Depth**: the values of 16-bit grey files have as many bits as the largest of them all needs (8, 10, 12, 14 or 16).
- **Fit**: `ink` where every training image has an even page and nearly all stand in their frames as cropping to the ink
  would put them, so that cropping hardly changes them; else `pad`.

Images without labels count alike.
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
from vae_edge.data.dataset import LARGEST, SMALLEST
from vae_edge.decoding import DEPTHS, FIRST_FRAME, Header, bits_for, highest_value, read_header
from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec, measure_background, prepare_image
from vae_edge.processors import available_cpus
from vae_edge.text import terminal

_WORTH_SHOWING = 500


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count items with rate and time left; quiet for few items and where standard error is no terminal.

    Gives a function that is told how many items were done since its last call.
    """
    if total < _WORTH_SHOWING or not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft())
    with Progress(*columns, console=Console(file=terminal()), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


T = TypeVar("T")

GREY_TOLERANCE = 4
"""Grey pictures stored in colour as WebP or JPEG, once or twice, come back with channels that are up to 3 apart
(measured at qualities from 5 to 100)."""
_SMALL = 32
_CROPPED = 0.95
"""The share of the training images that cropping must hardly change for files to be cropped."""


@dataclass(frozen=True)
class Prepared:
    """Image files as images uint8 [M, S, S, C], the settings they were prepared with, and sentences on these.

    The images are those of the files that decode, in the files' order.
    """

    images: np.ndarray
    input: InputSpec
    notes: tuple[str, ...] = ()
    broken: dict[int, str] = field(default_factory=dict)
    """For each file that does not decode, by its index, a sentence that says why."""
    animated: frozenset[int] = frozenset()
    """Which files have further frames, which are not used."""


@dataclass(frozen=True)
class _Page:
    """A decoded file: one channel where the three are equal."""

    pixels: np.ndarray
    spread: int
    """How far apart the channels of a pixel are, at most."""
    animated: bool


class _Material:
    """Image files, each decoded once for a setting; those that do not decode are set aside."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.broken: dict[int, str] = {}
        self._spec: InputSpec | None = None
        self._pages: dict[int, _Page] = {}

    @property
    def kept(self) -> list[int]:
        """The indices of the files that have not been set aside."""
        return [index for index in range(len(self.files)) if index not in self.broken]

    def each(self, function: Callable[[Path], T], what: str, indices: list[int]) -> dict[int, T]:
        """What the function gives for each file; those for which it raises DataError are set aside."""
        results = _in_threads(partial(_caught, function), [self.files[index] for index in indices], what)
        found: dict[int, T] = {}
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, DataError):
                self.broken[index] = str(result)
            else:
                found[index] = result
        return found

    def pages(self, spec: InputSpec) -> dict[int, _Page]:
        """The files as pages of these settings, but for those that are set aside."""
        if spec != self._spec:
            self._spec, self._pages = spec, {}
        missing = [index for index in self.kept if index not in self._pages]
        self._pages.update(self.each(partial(_look, spec), "decoding images", missing))
        return {index: self._pages[index] for index in self.kept}

    def prepared(self, spec: InputSpec, notes: list[str]) -> Prepared:
        """The pages of these settings as images."""
        pages = self.pages(spec)
        images = _stack(list(pages.values()), spec)
        animated = frozenset(index for index, page in pages.items() if page.animated)
        return Prepared(images, spec, tuple(notes), dict(self.broken), animated)


def prepare_files(files: list[Path], spec: InputSpec) -> Prepared:
    """Prepare image files as a model's settings say."""
    return _Material(files).prepared(spec, [])


def choose_and_prepare(
    files: list[Path], size: int | None, channels: int | None, fit: str, training: np.ndarray | None = None
) -> Prepared:
    """Choose what is not given, by the rules at the top of this module, and prepare the files.

    What is chosen does not depend on files that do not decode: without them the images are the same.

    Args:
        files: at least one.
        size: the side in pixels, or None.
        channels: 1, 3, or None.
        fit: `auto`, `pad` or `ink`.
        training: bool [N], which of the files the fit is chosen on; None: all.

    Raises:
        DataError: none of the files decodes.
    """
    material = _Material(files)
    headers = material.each(read_header, "looking at images", material.kept)
    while material.kept:
        prepared = _choose(material, headers, (size, channels, fit), training)
        if prepared is not None:
            return prepared
    raise DataError(f"None of the {len(files)} images decodes: {'; '.join(list(material.broken.values())[:3])}")


def _choose(
    material: _Material,
    headers: dict[int, Header],
    asked: tuple[int | None, int | None, str],
    training: np.ndarray | None,
) -> Prepared | None:
    """One attempt; None where files were set aside during it, on which what was chosen may have rested."""
    size, channels, fit = asked
    kept = material.kept
    remaining = [headers[index] for index in kept]
    size = size or _choose_size(remaining)
    depth, notes = _choose_depth(material, headers)
    if material.kept != kept:
        return None
    spec = InputSpec(size, channels or 3, "none", depth=depth)
    pages = material.pages(spec)
    if material.kept != kept:
        return None
    if channels is None:
        spec, images = _choose_channels(material, pages, spec, notes)
    else:
        images = _stack(list(pages.values()), spec)
    looked_at = images if training is None or not training[kept].any() else images[training[kept]]
    spec = _choose_fit(looked_at, spec, fit)
    colours = "grey" if spec.channels == 1 else "colour (RGB)"
    how = "whole pictures, padded to a square" if spec.fit == "pad" else "drawings, cropped to their ink"
    was_asked = "" if fit == "auto" else ", as asked"
    notes.insert(0, f"images are prepared as {colours}, {size}×{size}: {how} (fit {spec.fit}{was_asked})")
    if spec.fit == "ink":
        return material.prepared(spec, notes)
    animated = frozenset(index for index, page in pages.items() if page.animated)
    return Prepared(images, spec, tuple(notes), dict(material.broken), animated)


def choose_depth(files: list[Path]) -> tuple[int | None, list[str]]:
    """The depth of the 16-bit grey files, None where there are none; and sentences on 16-bit files."""
    material = _Material(files)
    return _choose_depth(material, material.each(read_header, "looking at images", material.kept))


def _look(spec: InputSpec, file: Path) -> _Page:
    pixels, found = prepare_image(file, spec)
    spread = int((pixels.max(-1) - pixels.min(-1)).max())
    return _Page(pixels if spread else pixels[..., :1].copy(), spread, FIRST_FRAME in found.steps)


def _stack(pages: list[_Page], spec: InputSpec) -> np.ndarray:
    images = np.empty((len(pages), spec.size, spec.size, spec.channels), np.uint8)
    for image, page in zip(images, pages, strict=True):
        image[:] = page.pixels  # one channel is copied into three
    return images


def _caught(function: Callable[[Path], T], file: Path) -> T | DataError:
    try:
        return function(file)
    except DataError as error:
        return error


def _choose_size(headers: list[Header]) -> int:
    sizes = {header.size for header in headers}
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height and SMALLEST <= width <= LARGEST:
            return width
    return SMALLEST if max(max(pair) for pair in sizes) <= _SMALL else LARGEST


def _choose_depth(material: _Material, headers: dict[int, Header]) -> tuple[int | None, list[str]]:
    notes = []
    kept = material.kept
    coloured = sum(headers[index].deep_colour for index in kept)
    if coloured:
        notes.append(
            f"{coloured} files have 16-bit colours, of which the upper 8 bits are read; "
            "if their values have fewer bits, they come out too dark: convert them to 8 bit"
        )
    deep = [index for index in kept if headers[index].sixteen_bit]
    values = material.each(highest_value, "looking at 16-bit images", deep)
    if not values:
        return None, notes
    highest = max(values.values())
    depth = bits_for(min(highest, 2 ** DEPTHS[-1] - 1))  # what is beyond is refused when it is prepared
    notes.append(f"{len(values)} files have 16-bit values up to {highest}: they are taken for values of {depth} bits")
    return depth, notes


def _choose_channels(
    material: _Material, pages: dict[int, _Page], spec: InputSpec, notes: list[str]
) -> tuple[InputSpec, np.ndarray]:
    """Grey where nothing is coloured."""
    widest = max(page.spread for page in pages.values())
    if widest > GREY_TOLERANCE:
        return spec, _stack(list(pages.values()), spec)
    spec = replace(spec, channels=1)
    stored = [place for place, page in enumerate(pages.values()) if page.spread]
    images = np.stack([page.pixels[..., :1] for page in pages.values()])
    if stored:
        notes.append(
            f"{len(stored)} files are not quite grey, but no two channels of a pixel are more than {widest} of 255 "
            "apart: they are taken for grey (--channels 3 keeps the colours)"
        )
        again = [material.files[list(pages)[place]] for place in stored]
        images[stored] = np.stack(_in_threads(lambda file: prepare_image(file, spec)[0], again, "decoding images"))
    return spec, images


def _choose_fit(images: np.ndarray, spec: InputSpec, fit: str) -> InputSpec:
    if fit == "pad":
        return spec
    even = measure_background(images) != "none"
    found = framing.common_framing(images) if even else None
    if fit == "auto" and (found is None or found.even < 1 or found.cropped < _CROPPED):
        return spec
    return replace(spec, fit="ink", ink=framing.INK_SHARE if found is None else found.share)


def _in_threads(function: Callable[[Path], object], files: list[Path], what: str) -> list:
    with counting(what, len(files)) as advance, ThreadPoolExecutor(available_cpus()) as pool:
        results = []
        for result in pool.map(function, files):
            results.append(result)
            advance(1)
        return results
