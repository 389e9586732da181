"""Files and arrays to uint8 batches: the one preprocessing that training, calibration and runtime share.

Pillow is imported when the first image arrives, so that a program that predicts from arrays never loads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge import framing
from vae_edge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

INVERT = ("never", "always", "auto")
FIT = ("auto", "pad", "ink")
COLOR = ("rgb", "bgr")
ERRORS = ("raise", "coerce")
_SMALL = 0.5
"""A drawing whose longer side is below this part of training's, or of the frame's, is small."""

_ENOUGH = 2048
"""Pages twice as large as this are first reduced by a whole number."""

_GAP = 3.0
"""Resizing first reduces by a whole number to at least so many times the size that is wanted."""

_MOST = 0.8
"""The share of arrays that must be framed alike for files to be framed like them."""

_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: square images of `size` pixels with `channels` (1: grey, 3: RGB), and how files become them.

    It is chosen when training loads its data, and stored in the run and in the bundle. Training, evaluation,
    calibration and prediction prepare a file by it (`prepare_image`), so that all four see the same pixels.
    """

    size: int
    channels: int
    background: str = "dark"
    """`dark`, `light`, or `none` where training images have no common one (then polarity is never judged)."""

    ink: float | None = None
    """The share of the frame that a drawing's longer side takes, where training images agree on one: 20/28 in MNIST."""

    fit: str = "pad"
    """How a file becomes square: `pad` or `ink`, see `prepare_image`."""

    depth: int | None = None
    """How many bits the values of 16-bit grey files have: 8, 10, 12, 14 or 16. None: training saw no such files."""

    @property
    def fill(self) -> int:
        """What comes in from outside the frame when an image is turned: 255 on a light background, else 0."""
        return 255 if self.background == "light" else 0

    def to_json(self) -> dict[str, Any]:
        """As a manifest and a run's configuration hold it; colour models say that their channels are RGB."""
        return {**asdict(self), **({"color_order": "rgb"} if self.channels == 3 else {})}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InputSpec:
        """The inverse of `to_json`. Without `fit`, as older versions wrote it, `ink` means that files are cropped."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{"fit": "pad" if values.get("ink") is None else "ink", **known})


@dataclass(frozen=True)
class Interpretation:
    """What was made of one input, for a person to check."""

    source: str
    original_size: tuple[int, int]
    """(width, height) in pixels, as stored."""
    original_mode: str
    inverted: bool = False
    steps: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    """Sentences that say what to try when the result looks wrong."""

    def sentence(self) -> str:
        """One line: what came, what was done to it, and what to try."""
        width, height = self.original_size
        done = "; ".join(self.steps) or "taken as it is"
        return " ".join((f"{self.source} ({width}×{height}, {self.original_mode}): {done}.", *self.hints))


def open_image(source: str | os.PathLike[str] | Image) -> Image:
    """Decode an image file's first frame, or convert a Pillow image, to a Pillow image of mode L or RGB.

    EXIF orientation is applied, alpha composed, 16-bit grey scaled to 8 bit.

    Raises:
        DataError: the source is missing, undecodable, truncated, without pixels, too large, or of a mode whose
            range is not known (floating point, 32-bit).
    """
    from PIL.Image import fromarray

    from vae_edge.decoding import decoded, in_full

    with decoded(source) as found:
        return fromarray(in_full(found.page).pixels)


def prepare_image(
    source: str | os.PathLike[str] | Image, spec: InputSpec, invert: str = "never", fit: str = "auto"
) -> tuple[np.ndarray, Interpretation]:
    """Turn one image into what a model takes. Peak memory is about that of the image as Pillow decodes it.

    Args:
        source: a path or a Pillow image.
        spec: the model's input.
        invert: `never`; `always`; or `auto`, which inverts where the image's border is clearly light and training
            had a dark background, or the reverse.
        fit: `pad` keeps the whole image, padded to a square with its border's median colour. `ink` crops a drawing
            on a uniform background to its ink and leaves the margin that training images had. `auto` is what training
            did (`spec.fit`); images of the model's own size are taken as they are.

    Returns:
        uint8 [S, S, C], and what was done.

    Raises:
        DataError: see `open_image`.
        ConfigError: an unknown `invert` or `fit`.
    """
    from vae_edge.decoding import decoded

    _check_options(invert, fit)
    with decoded(source, spec.depth) as found:
        steps, hints = list(found.steps), list(found.hints)
        pixels, tone = _look(found.page, spec, fit, steps, hints)
    invert_it = invert == "always" or (invert == "auto" and _opposite(tone, spec.background))
    if invert_it:
        pixels = 255 - pixels
        why = "as asked" if invert == "always" else f"its background is {tone} and training's was {spec.background}"
        steps.append(f"inverted ({why})")
    elif invert == "never" and _opposite(tone, spec.background):
        hints.append(f"Its background is {tone} but training's was {spec.background}: try --invert auto.")
    return pixels, Interpretation(found.source, found.size, found.mode, invert_it, tuple(steps), tuple(hints))


def check_batch(array: Any, spec: InputSpec, name: str = "image") -> np.ndarray:
    """Check that an array is a batch that a model takes; about a microsecond when it is. Nothing is converted.

    Returns:
        the array itself, uint8 [N, S, S, C] with N at least 1, or a copy where it was not contiguous.

    Raises:
        DataError: another type, dtype, rank or size; no images.
    """
    if (
        type(array) is np.ndarray
        and array.dtype is _UINT8
        and array.shape[1:] == (spec.size, spec.size, spec.channels)
        and array.shape[0]
        and array.flags.c_contiguous
    ):
        return array
    return _check_slowly(array, spec, name)


def to_batch(
    inputs: Any, spec: InputSpec, invert: str = "never", fit: str = "auto", color: str = "rgb"
) -> tuple[np.ndarray, list[Interpretation]]:
    """Turn whatever a user has into a batch.

    Args:
        inputs: an array, a path, a Pillow image, or a list of these. An array is a batch [N, S, S, C] or [N, S, S],
            or one image [S, S, C] or [S, S], of the model's own size; it is not resized. For colour models only the
            forms with channels.
        spec: the model's input.
        invert: see `prepare_image`. For arrays `auto` judges each image by its border.
        fit: see `prepare_image`. Arrays are never cropped.
        color: the order of the channels of colour arrays: `rgb`, which is what models take, or `bgr`, which is
            OpenCV's. Files and Pillow images know their order, and grey has none: on them it has no effect.

    Returns:
        uint8 [N, S, S, C], and N interpretations.

    Raises:
        DataError: an input is not readable or has the wrong form; there are no inputs.
        ConfigError: an unknown `invert`, `fit` or `color`.
    """
    batch, found, failed = to_rows(inputs, spec, invert, fit, color, errors="raise")
    assert not failed
    return batch, found


def to_rows(
    inputs: Any, spec: InputSpec, invert: str = "never", fit: str = "auto", color: str = "rgb", errors: str = "coerce"
) -> tuple[np.ndarray, list[Interpretation], dict[int, DataError]]:
    """As `to_batch`; but an item of a list that cannot be read does not cost the others.

    Args:
        inputs, spec, invert, fit, color: see `to_batch`.
        errors: `coerce` gives an unreadable item of a list one row of zeros and an error; `raise` raises the first.

    Returns:
        uint8 [N, S, S, C]; N interpretations; and by row the error of each item that cannot be read.

    Raises:
        DataError, ConfigError: see `to_batch`.
    """
    _check_options(invert, fit, color, errors)
    if isinstance(inputs, np.ndarray):
        return *_from_array(inputs, spec, invert, color, "array"), {}
    if not isinstance(inputs, (list, tuple)):
        return *_from_one(inputs, spec, (invert, fit, color), ""), {}
    if not inputs:
        raise DataError("There are no images: the list is empty.")
    parts: list[np.ndarray] = []
    interpretations: list[Interpretation] = []
    failed: dict[int, DataError] = {}
    for index, item in enumerate(inputs):
        try:
            pixels, found = _from_one(item, spec, (invert, fit, color), f"[{index}]")
        except DataError as error:
            if errors == "raise":
                raise
            failed[len(interpretations)] = error
            pixels = np.zeros((1, spec.size, spec.size, spec.channels), np.uint8)
            found = [Interpretation(str(item)[:1000], (0, 0), "unreadable", steps=("not read",), hints=(str(error),))]
        parts.append(pixels)
        interpretations += found
    return np.concatenate(parts), interpretations, failed


def measure_background(images: np.ndarray) -> str:
    """Tell the background that training images share, from their border pixels.

    Args:
        images: uint8 [N, H, W, C].

    Returns:
        `dark` or `light` if four images in five have that border (by its median), else `none`.
    """
    found = framing.tones(images)
    for tone in ("dark", "light"):
        if len(found) and float(np.mean(found == tone)) >= 0.8:
            return tone
    return "none"


def measure_input(images: np.ndarray) -> InputSpec:
    """What a model that is trained on these images uint8 [N, S, S, C] takes: size, channels, background, margin, fit.

    The fit is `ink` where the drawings in four images in five stand as cropping to the ink would put them, as in
    MNIST; else `pad`.
    """
    background = measure_background(images)
    found = framing.common_framing(images) if background != "none" else None
    fit = "ink" if found is not None and found.cropped >= _MOST else "pad"
    return InputSpec(images.shape[1], images.shape[3], background, None if found is None else found.share, fit)


def resize_square(square: Image, size: int) -> Image:
    """Resize with antialiasing: whole-number box reduction, then Lanczos; bicubic upwards."""
    from PIL.Image import Resampling

    if square.width == size:
        return square
    if square.width > size:
        return square.resize((size, size), Resampling.LANCZOS, reducing_gap=_GAP)
    return square.resize((size, size), Resampling.BICUBIC)


def how_to_uint8(array: np.ndarray) -> str:
    """A sentence that says how this array, whose dtype is not uint8, becomes pixels."""
    if array.dtype == np.bool_:
        return "Convert it with x.astype(np.uint8) * 255."
    if array.dtype.kind not in "iuf" or not array.size:
        return "Pixels are whole numbers from 0 to 255."
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"It holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite, which no pixel can be."
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return "Convert it with (x * 255).round().astype(np.uint8)."
    if low >= 0 and high <= 255:
        return f"Convert it with {'x.round()' if array.dtype.kind == 'f' else 'x'}.astype(np.uint8)."
    return f"Its values go from {low} to {high}: undo any normalization and bring them to 0..255 first."


def _check_options(invert: str, fit: str, color: str = "rgb", errors: str = "raise") -> None:
    options = (("invert", invert, INVERT), ("fit", fit, FIT), ("color", color, COLOR), ("errors", errors, ERRORS))
    for option, value, known in options:
        if value not in known:
            raise ConfigError(f"{option} is one of {', '.join(known)}, but {value!r} came.")


def _check_slowly(array: Any, spec: InputSpec, name: str) -> np.ndarray:
    """What `check_batch` does when the array is not plainly right: say why, or mend what is only memory layout."""
    size, channels = spec.size, spec.channels
    expected = f"{name}: expected a NumPy array, uint8, of shape [N, {size}, {size}, {channels}] with N at least 1"
    if not isinstance(array, np.ndarray):
        raise DataError(f"{expected}, but a {type(array).__name__} came. Convert it with np.asarray.")
    if array.dtype != np.uint8:
        raise DataError(f"{expected}, but its dtype is {array.dtype}. {how_to_uint8(array)}")
    if array.shape[1:] != (size, size, channels) or not array.shape[0]:
        raise DataError(f"{expected}, but its shape is {list(array.shape)}. {_how_to_shape(array.shape, spec)}")
    return np.ascontiguousarray(array)


def _how_to_shape(shape: tuple[int, ...], spec: InputSpec) -> str:
    size, channels = spec.size, spec.channels
    if 0 in shape:
        return "There are no images in it."
    if shape[1:] == (channels, size, size):
        return "Its channels stand first: use x.transpose(0, 2, 3, 1)."
    if channels == 3 and (shape[-2:] == (size, size) or shape[-3:] == (size, size, 1)):
        grey = "x" if shape[-1] == 1 else "x[..., None]"
        return f"The model takes colour: use np.repeat({grey}, 3, axis=-1)."
    if channels == 1 and shape[1:] == (size, size, 3):
        return "The model takes grey: pass each image as PIL.Image.fromarray(x), which is converted; x is RGB."
    return "Arrays are not resized; pass each image as PIL.Image.fromarray(x), which is."


def _opposite(tone: str, background: str) -> bool:
    return {tone, background} == {"dark", "light"}


def _look(page: framing.Page, spec: InputSpec, fit: str, steps: list[str], hints: list[str]) -> tuple[np.ndarray, str]:
    """What the model sees of a page, and the page's tone."""
    from vae_edge.decoding import SMALL, Grey, in_full

    if page.channels == 3 and spec.channels == 1:
        page = Grey(page)
        page = in_full(page) if page.width * page.height <= SMALL else page
        steps.append("turned from colour to grey")
    tone = framing.tone(page if page.channels == 1 else Grey(framing.only_border(page)))
    return _fill_frame(page, spec, fit, steps, hints), tone


def _fill_frame(page: framing.Page, spec: InputSpec, fit: str, steps: list[str], hints: list[str]) -> np.ndarray:
    """The square part of the page that the model sees, at the model's size and with its channels."""
    width, height = page.width, page.height
    longer = max(width, height)
    if fit == "auto":
        fit = spec.fit if (width, height) != (spec.size, spec.size) else "pad"
    if longer >= 2 * _ENOUGH:  # also keeps a page of 1 by a million from becoming a square
        page = _reduced(page, longer // _ENOUGH)
    colour = framing.page_colour(page)
    box = framing.ink_box(page, colour)
    left, top, side = framing.whole_square(page)
    if box is not None and fit == "ink":
        steps.append("cropped to its ink and centred, with the margin of the training images")
        left, top, side = framing.ink_square(page, colour, box, spec.ink or framing.INK_SHARE)
    else:
        if fit == "ink":
            steps.append("not cropped, since its background is not uniform or holds no ink")
        elif box is not None and max(box[2] - box[0], box[3] - box[1]) < _SMALL * (spec.ink or 1) * side:
            hints.append("What is drawn fills less than half of the frame: try --fit ink, which crops to it.")
        if width != height:
            steps.append(f"padded to {longer}×{longer} with its border's colour")
    if side != spec.size:
        steps.append(f"resized from {side}×{side} to {spec.size}×{spec.size}")
    pixels = _square(page, colour, (left, top, side), spec.size)
    if spec.channels == 3 and pixels.ndim == 2:
        steps.append("its grey copied into three channels")
        return np.repeat(pixels[..., None], 3, axis=-1)
    return pixels.reshape(spec.size, spec.size, spec.channels)


def _reduced(page: framing.Page, factor: int) -> framing.ArrayPage:
    """The page made smaller by a whole number, each pixel the mean of a square (fewer pixels at the edges)."""
    from PIL.Image import fromarray

    shape = (-(-page.height // factor), -(-page.width // factor), *(() if page.channels == 1 else (3,)))
    pixels = np.empty(shape, np.uint8)
    for (left, top, _, _), part in framing.tiles(page, step=factor):
        small = np.asarray(fromarray(part).reduce(factor))
        x, y = left // factor, top // factor
        pixels[y : y + small.shape[0], x : x + small.shape[1]] = small
    return framing.ArrayPage(pixels)


def _square(page: framing.Page, colour: np.ndarray, square: tuple[int, int, int], size: int) -> np.ndarray:
    """A square of the page resized as `resize_square` does, without the large square in memory; a fresh array."""
    from PIL.Image import Resampling, fromarray

    left, top, side = square
    gap = int(side / size / _GAP)
    if side <= _ENOUGH or gap <= 1:
        whole = fromarray(framing.window(page, colour, left, top, left + side, top + side))
        return np.array(resize_square(whole, size))
    small = _reduced(_Window(page, colour, square), gap).pixels
    return np.array(fromarray(small).resize((size, size), Resampling.LANCZOS, box=(0, 0, side / gap, side / gap)))


@dataclass(frozen=True)
class _Window:
    """A square of a page as a page of its own."""

    page: framing.Page
    colour: np.ndarray
    square: tuple[int, int, int]

    @property
    def width(self) -> int:
        return self.square[2]

    @property
    def height(self) -> int:
        return self.square[2]

    @property
    def channels(self) -> int:
        return self.page.channels

    def piece(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        x, y, _ = self.square
        return framing.window(self.page, self.colour, x + left, y + top, x + right, y + bottom)


def _from_one(
    item: Any, spec: InputSpec, options: tuple[str, str, str], place: str
) -> tuple[np.ndarray, list[Interpretation]]:
    invert, fit, color = options
    if isinstance(item, np.ndarray):
        return _from_array(item, spec, invert, color, f"array{place}")
    pixels, interpretation = prepare_image(item, spec, invert, fit)
    return pixels[None], [interpretation]


def _from_array(
    array: np.ndarray, spec: InputSpec, invert: str, color: str, name: str
) -> tuple[np.ndarray, list[Interpretation]]:
    size, channels = spec.size, spec.channels
    if array.shape == (size, size, channels):
        array = array[None]
    elif channels == 1 and array.ndim in (2, 3) and array.shape[-2:] == (size, size):
        array = array[..., None] if array.ndim == 3 else array[None, ..., None]
    batch = check_batch(array, spec, name)
    steps: tuple[str, ...] = ()
    if color == "bgr" and channels == 3:
        batch, steps = np.ascontiguousarray(batch[..., ::-1]), ("channels brought from BGR to RGB",)
    inverted = np.full(len(batch), invert == "always")
    if invert == "auto" and spec.background != "none":
        inverted = framing.tones(batch) == ("light" if spec.background == "dark" else "dark")
    if inverted.any():
        batch = np.where(inverted[:, None, None, None], 255 - batch, batch)
    mode = f"uint8 {channels}-channel"
    kinds = [
        Interpretation(name, (size, size), mode, flag, (*steps, "inverted") if flag else steps)
        for flag in (False, True)
    ]
    return batch, [kinds[int(flag)] for flag in inverted]
