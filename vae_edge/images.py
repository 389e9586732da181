"""Files and arrays to uint8 batches: the one preprocessing that training, calibration and runtime share.

Pillow is imported when the first image arrives, so that a program that predicts from arrays never loads it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge import framing
from vae_edge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

INVERT = ("never", "always", "auto")
FIT = ("auto", "pad", "ink")
_SMALL = 0.5
"""A drawing whose longer side is below this share of the frame is small."""

_ENOUGH = 2048
"""Pages twice as large as this are first reduced by a whole number."""

_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: square images of `size` pixels with `channels` (1 or 3), trained on this `background`."""

    size: int
    channels: int
    background: str = "dark"
    """`dark`, `light`, or `none` where training images have no common one (then polarity is never judged)."""

    ink: float | None = None
    """The share of the frame that a drawing's longer side takes, where training images agree on one: 20/28 in MNIST."""

    @property
    def fill(self) -> int:
        """What comes in from outside the frame when an image is turned: 255 on a light background, else 0."""
        return 255 if self.background == "light" else 0


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
    from vae_edge.decoding import decode

    return decode(source).image


def prepare_image(
    source: str | os.PathLike[str] | Image, spec: InputSpec, invert: str = "never", fit: str = "auto"
) -> tuple[np.ndarray, Interpretation]:
    """Turn one image into what a model takes.

    Args:
        source: a path or a Pillow image.
        spec: the model's input.
        invert: `never`; `always`; or `auto`, which inverts where the image's border is clearly light and training
            had a dark background, or the reverse.
        fit: `pad` keeps the whole image, padded to a square with its border's median colour. `ink` crops a drawing
            on a uniform background to its ink and leaves the margin that training images had. `auto` is `ink` where
            training images had a common margin and the image is not of the model's size already, else `pad`.

    Returns:
        uint8 [S, S, C], and what was done.

    Raises:
        DataError: see `open_image`.
        ConfigError: an unknown `invert` or `fit`.
    """
    from vae_edge.decoding import decode

    _check_options(invert, fit)
    decoded = decode(source)
    steps, hints = list(decoded.steps), list[str]()
    image, tone = decoded.image, framing.tone(np.asarray(decoded.image.convert("L")))
    if image.mode == "RGB" and spec.channels == 1:
        image = image.convert("L")
        steps.append("turned from colour to grey")
    pixels = _resize(_frame(image, spec, fit, steps, hints), spec, steps)
    invert_it = invert == "always" or (invert == "auto" and _opposite(tone, spec.background))
    if invert_it:
        pixels = 255 - pixels
        why = "as asked" if invert == "always" else f"its background is {tone} and training's was {spec.background}"
        steps.append(f"inverted ({why})")
    elif invert == "never" and _opposite(tone, spec.background):
        hints.append(f"Its background is {tone} but training's was {spec.background}: try --invert auto.")
    interpretation = Interpretation(decoded.source, decoded.size, decoded.mode, invert_it, tuple(steps), tuple(hints))
    return pixels, interpretation


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
    inputs: Any, spec: InputSpec, invert: str = "never", fit: str = "auto"
) -> tuple[np.ndarray, list[Interpretation]]:
    """Turn whatever a user has into a batch.

    Args:
        inputs: an array, a path, a Pillow image, or a list of these. An array is a batch [N, S, S, C] or [N, S, S],
            or one image [S, S, C] or [S, S], of the model's own size; it is not resized. For colour models only the
            forms with channels.
        spec: the model's input.
        invert: see `prepare_image`. For arrays `auto` judges each image by its border.
        fit: see `prepare_image`. Arrays are never cropped.

    Returns:
        uint8 [N, S, S, C], and N interpretations.

    Raises:
        DataError: an input is not readable or has the wrong form; there are no inputs.
        ConfigError: an unknown `invert` or `fit`.
    """
    _check_options(invert, fit)
    if isinstance(inputs, np.ndarray):
        return _from_array(inputs, spec, invert, "array")
    if not isinstance(inputs, (list, tuple)):
        return _from_one(inputs, spec, invert, fit, "")
    if not inputs:
        raise DataError("There are no images: the list is empty.")
    parts = [_from_one(item, spec, invert, fit, f"[{index}]") for index, item in enumerate(inputs)]
    return np.concatenate([pixels for pixels, _ in parts]), [each for _, found in parts for each in found]


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
    """What a model that is trained on these images uint8 [N, S, S, C] takes: size, channels, background, margin."""
    background = measure_background(images)
    ink = framing.common_share(images) if background != "none" else None
    return InputSpec(images.shape[1], images.shape[3], background, ink)


def resize_square(square: Image, size: int) -> Image:
    """Resize with antialiasing: whole-number box reduction, then Lanczos; bicubic upwards."""
    from PIL.Image import Resampling

    if square.width == size:
        return square
    if square.width > size:
        return square.resize((size, size), Resampling.LANCZOS, reducing_gap=3.0)
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


def _check_options(invert: str, fit: str) -> None:
    for option, value, known in (("invert", invert, INVERT), ("fit", fit, FIT)):
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
        return "The model takes grey: pass each image as PIL.Image.fromarray(x), which is converted."
    return "Arrays are not resized; pass each image as PIL.Image.fromarray(x), which is."


def _opposite(tone: str, background: str) -> bool:
    return {tone, background} == {"dark", "light"}


def _frame(image: Image, spec: InputSpec, fit: str, steps: list[str], hints: list[str]) -> Image:
    """The square part of the page that the model sees."""
    from PIL.Image import fromarray

    width, height = image.size
    side = max(width, height)
    if fit == "auto":
        fit = "ink" if spec.ink is not None and (width, height) != (spec.size, spec.size) else "pad"
    if side >= 2 * _ENOUGH:  # also keeps a page of 1 by a million from becoming a square
        image = image.reduce(side // _ENOUGH)
    pixels = np.asarray(image)
    page = framing.page_colour(pixels)
    box = framing.ink_box(pixels, page)
    if box is not None and fit == "ink":
        steps.append("cropped to its ink and centred, with the margin of the training images")
        return fromarray(framing.crop_to_ink(pixels, page, box, spec.ink or framing.INK_SHARE))
    if fit == "ink":
        steps.append("not cropped, since its background is not uniform or holds no ink")
    elif box is not None and max(box[2] - box[0], box[3] - box[1]) < _SMALL * max(pixels.shape[:2]):
        hints.append("What is drawn fills less than half of the frame: try --fit ink, which crops to it.")
    if width == height:
        return image
    steps.append(f"padded to {side}×{side} with its border's colour")
    return fromarray(framing.pad_to_square(pixels, page))


def _resize(square: Image, spec: InputSpec, steps: list[str]) -> np.ndarray:
    """To the model's size and channels."""
    side = square.width
    if side != spec.size:
        square = resize_square(square, spec.size)
        steps.append(f"resized from {side}×{side} to {spec.size}×{spec.size}")
    if spec.channels == 3 and square.mode == "L":
        steps.append("its grey copied into three channels")
        square = square.convert("RGB")
    return np.array(square, dtype=np.uint8).reshape(spec.size, spec.size, spec.channels)


def _from_one(item: Any, spec: InputSpec, invert: str, fit: str, place: str) -> tuple[np.ndarray, list[Interpretation]]:
    if isinstance(item, np.ndarray):
        return _from_array(item, spec, invert, f"array{place}")
    pixels, interpretation = prepare_image(item, spec, invert, fit)
    return pixels[None], [interpretation]


def _from_array(array: np.ndarray, spec: InputSpec, invert: str, name: str) -> tuple[np.ndarray, list[Interpretation]]:
    size, channels = spec.size, spec.channels
    if array.shape == (size, size, channels):
        array = array[None]
    elif channels == 1 and array.ndim in (2, 3) and array.shape[-2:] == (size, size):
        array = array[..., None] if array.ndim == 3 else array[None, ..., None]
    batch = check_batch(array, spec, name)
    inverted = np.full(len(batch), invert == "always")
    if invert == "auto" and spec.background != "none":
        inverted = framing.tones(batch) == ("light" if spec.background == "dark" else "dark")
    if inverted.any():
        batch = np.where(inverted[:, None, None, None], 255 - batch, batch)
    kinds = [
        Interpretation(name, (size, size), f"uint8 {channels}-channel", flag, ("inverted",) if flag else ())
        for flag in (False, True)
    ]
    return batch, [kinds[int(flag)] for flag in inverted]
