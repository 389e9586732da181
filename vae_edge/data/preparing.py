"""How image files become the images of a data set: chosen once, over all of them, where nobody has chosen yet.

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

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vae_edge import framing
from vae_edge.data.arrays import LARGEST, SMALLEST, with_channels
from vae_edge.data.progress import counting
from vae_edge.decoding import DEPTHS, Header, bits_for, highest_value, read_header
from vae_edge.images import InputSpec, measure_background, prepare_image

GREY_TOLERANCE = 4
"""Grey pictures stored in colour as WebP or JPEG, once or twice, come back with channels that are up to 3 apart
(measured at qualities from 5 to 100)."""
_SMALL = 32
_CROPPED = 0.95
"""The share of the training images that cropping must hardly change for files to be cropped."""


@dataclass(frozen=True)
class Prepared:
    """Image files as images uint8 [N, S, S, C], the settings they were prepared with, and sentences on these."""

    images: np.ndarray
    input: InputSpec
    notes: tuple[str, ...] = ()


def prepare_files(files: list[Path], spec: InputSpec) -> np.ndarray:
    """Prepare image files as a model's settings say; uint8 [N, S, S, C].

    Raises:
        DataError: an image does not decode.
    """
    pages = _in_threads(partial(_prepare, spec), files, "decoding images")
    return np.stack(pages) if pages else np.empty((0, spec.size, spec.size, spec.channels), np.uint8)


def choose_and_prepare(
    files: list[Path], size: int | None, channels: int | None, fit: str, training: np.ndarray | None = None
) -> Prepared:
    """Choose what is not given, by the rules at the top of this module, and prepare the files.

    Args:
        files: at least one.
        size: the side in pixels, or None.
        channels: 1, 3, or None.
        fit: `auto`, `pad` or `ink`.
        training: which of the files the fit is chosen on (indices or a mask); None: all.

    Raises:
        DataError: an image does not decode.
    """
    headers = read_headers(files)
    size = size or _choose_size(headers)
    depth, notes = choose_depth(files, headers)
    spec = InputSpec(size, channels or 3, "none", depth=depth)
    if channels is None:
        spec, images = _choose_channels(files, spec, notes)
    else:
        images = prepare_files(files, spec)
    looked_at = images if training is None else images[training]
    spec = _choose_fit(looked_at, spec, fit)
    if spec.fit == "ink":
        images = prepare_files(files, spec)
    colours = "grey" if spec.channels == 1 else "colour (RGB)"
    how = "whole pictures, padded to a square" if spec.fit == "pad" else "drawings, cropped to their ink"
    asked = "" if fit == "auto" else ", as asked"
    notes.insert(0, f"images are prepared as {colours}, {size}×{size}: {how} (fit {spec.fit}{asked})")
    return Prepared(images, spec, tuple(notes))


def _prepare(spec: InputSpec, file: Path) -> np.ndarray:
    return prepare_image(file, spec)[0]


def _choose_size(headers: list[Header]) -> int:
    sizes = {header.size for header in headers}
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height and SMALLEST <= width <= LARGEST:
            return width
    return SMALLEST if max(max(pair) for pair in sizes) <= _SMALL else LARGEST


def read_headers(files: list[Path]) -> list[Header]:
    """What the files say of themselves."""
    return _in_threads(read_header, files, "looking at images")


def choose_depth(files: list[Path], headers: list[Header]) -> tuple[int | None, list[str]]:
    """The depth of the 16-bit grey files, None where there are none; and sentences on 16-bit files."""
    notes = []
    coloured = sum(header.deep_colour for header in headers)
    if coloured:
        notes.append(
            f"{coloured} files have 16-bit colours, of which the upper 8 bits are read; "
            "if their values have fewer bits, they come out too dark: convert them to 8 bit"
        )
    deep = [file for file, header in zip(files, headers, strict=True) if header.sixteen_bit]
    if not deep:
        return None, notes
    highest = max(_in_threads(highest_value, deep, "looking at 16-bit images"))
    depth = bits_for(min(highest, 2 ** DEPTHS[-1] - 1))  # what is beyond is refused when it is prepared
    notes.append(f"{len(deep)} files have 16-bit values up to {highest}: they are taken for values of {depth} bits")
    return depth, notes


def _choose_channels(files: list[Path], spec: InputSpec, notes: list[str]) -> tuple[InputSpec, np.ndarray]:
    """Grey where nothing is coloured."""

    def look(file: Path) -> tuple[np.ndarray, int]:
        pixels = _prepare(spec, file)
        spread = int((pixels.max(-1) - pixels.min(-1)).max())
        return (pixels if spread else pixels[..., :1].copy()), spread

    pages = _in_threads(look, files, "decoding images")
    widest = max(spread for _, spread in pages)
    if widest > GREY_TOLERANCE:
        return spec, np.stack([with_channels(page[None], 3)[0] for page, _ in pages])
    spec = replace(spec, channels=1)
    stored = [index for index, (_, spread) in enumerate(pages) if spread]
    images = np.stack([page[..., :1] for page, _ in pages])
    if stored:
        notes.append(
            f"{len(stored)} files are not quite grey, but no two channels of a pixel are more than {widest} of 255 "
            "apart: they are taken for grey (--channels 3 keeps the colours)"
        )
        images[stored] = prepare_files([files[index] for index in stored], spec)
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
    with counting(what, len(files)) as advance, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = []
        for result in pool.map(function, files):
            results.append(result)
            advance(1)
        return results
