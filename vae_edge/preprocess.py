"""Prepare files and arrays as uint8 batches: the one preprocessing of training, calibration and runtime.

Pillow is imported when the first image file arrives. A program that predicts from arrays never loads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vae_edge import framing
from vae_edge.errors import ConfigError, DataError
from vae_edge.spec import Size, as_size, height_and_width, size_text

if TYPE_CHECKING:
    from PIL.Image import Image

INVERT = ("never", "always", "auto")
FIT = ("auto", "pad", "foreground")
COLOR = ("rgb", "bgr")
ERRORS = ("raise", "coerce")

_SMALL_FOREGROUND_RATIO = 0.5
"""Below this fraction of the expected size, of training's foreground or of the frame, a foreground counts as small."""
_MAX_WORKING_SIDE_PX = 2048
"""An image with at least twice this side is first reduced by a whole factor."""
_REDUCING_GAP = 3.0
"""Resizing first reduces by a whole factor, to at least this multiple of the target size (Pillow's `reducing_gap`)."""
_MIN_POLAR_FRACTION = 0.8
"""Fraction of the training images that must have the same background polarity."""
_MIN_CROPPED_FRACTION = 0.8
"""Fraction of array images that cropping must hardly change, for files to be cropped like them."""

_UINT8 = np.dtype(np.uint8)
T = TypeVar("T")


@dataclass(frozen=True)
class InputSpec:
    """The input of a model: images of `size` with 1 channel (grey) or 3 (RGB), and how files become them.

    Chosen when training loads its data, and stored in the run and in the bundle. Training, evaluation, calibration and
    prediction prepare files by it (`prepare_image`), so that all four see the same pixels.
    """

    size: Size
    """In pixels: the side of square images, or (height, width)."""
    channels: int
    background: str = "dark"
    """Polarity of the training images' background: `dark`, `light`, or `none` where they have none in common."""
    foreground_ratio: float | None = None
    """Longer side of the foreground over the side of the frame, 20/28 in MNIST. None: training images do not agree.

    In a frame that is not square, the greater of the two ratios: of the heights, and of the widths.
    """
    fit: str = "pad"
    """How a file becomes an image of this shape: `pad` or `foreground`, see `prepare_image`."""
    depth: int | None = None
    """Bits of the values of 16-bit grey files: 8, 10, 12, 14 or 16. None: training saw no such files."""
    alpha_background: str | None = None
    """The colour that transparency is laid on: `white` or `black`. None: training saw none, or is of an earlier
    version: each image by itself, on white, or on black if what is visible is light."""

    def __post_init__(self) -> None:
        """Give a size one form, whether JSON held it or Python."""
        object.__setattr__(self, "size", _to_size(self.size))

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.shape[1]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: (height, width, channels)."""
        return *height_and_width(self.size), self.channels

    @property
    def fill(self) -> int:
        """Pixel value outside the frame of a rotated image: 255 on a light background, else 0."""
        return 255 if self.background == "light" else 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object that manifests and runs store. Colour models also state the order of their channels."""
        size = self.size if isinstance(self.size, int) else list(self.size)
        return {**asdict(self), "size": size, **({"color_order": "rgb"} if self.channels == 3 else {})}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InputSpec:
        """The inverse of `to_json`, which also reads what older versions wrote (`upgrade_input_json`)."""
        current = upgrade_input_json(values)
        return cls(**{field.name: current[field.name] for field in fields(cls) if field.name in current})


def _to_size(size: Any) -> Any:
    """A pair of numbers as a `Size`; anything else as it is."""
    return as_size(*size) if isinstance(size, (list, tuple)) and len(size) == 2 else size


def upgrade_input_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of an `InputSpec` with today's keys and values, from one that any version wrote. Not validated.

    Version 1 wrote `ink` for `foreground_ratio`, and the fit `ink` for `foreground`. Before it had fits, files were
    cropped wherever training images had a foreground ratio.
    """
    current = dict(values)
    if "ink" in current:
        current.setdefault("foreground_ratio", current.pop("ink"))
    if current.get("fit") == "ink":
        current["fit"] = "foreground"
    current.setdefault("fit", "pad" if current.get("foreground_ratio") is None else "foreground")
    return current


@dataclass(frozen=True)
class PreprocessInfo:
    """What preprocessing did to one image, for a person to check."""

    source: str
    original_size: tuple[int, int]
    """(width, height) in pixels, as stored."""
    original_mode: str
    inverted: bool = False
    steps: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    """Sentences that say what to try when the result looks wrong."""

    def sentence(self) -> str:
        """One line: the original, the steps, and what to try."""
        width, height = self.original_size
        done = "; ".join(self.steps) or "taken as it is"
        return " ".join((f"{self.source} ({width}×{height}, {self.original_mode}): {done}.", *self.hints))


def open_image(source: str | os.PathLike[str] | Image) -> Image:
    """Decode an image file's first frame, or convert a Pillow image, to a Pillow image of mode L or RGB.

    EXIF orientation is applied, alpha is composited, and 16-bit grey is scaled to 8 bit.

    Raises:
        DataError: the source is missing, undecodable, truncated, without pixels, too large, or of a mode whose
            range is not known (floating point, 32-bit).
    """
    from PIL.Image import fromarray

    from vae_edge.decoding import decoded, to_array_image

    with decoded(source) as found:
        return fromarray(to_array_image(found.image).pixels)


def prepare_image(
    source: str | os.PathLike[str] | Image, spec: InputSpec, invert: str = "never", fit: str = "auto"
) -> tuple[np.ndarray, PreprocessInfo]:
    """Prepare one image for a model. Peak memory is about that of the image as Pillow decodes it.

    Args:
        source: a path or a Pillow image.
        spec: the model's input.
        invert: `never`; `always`; or `auto`, which inverts an image whose border is clearly light where training had
            a dark background, or the reverse.
        fit: `pad` keeps the full image, padded with its border's median colour to the shape of the model's input, a
            square unless the model says otherwise. `foreground` crops to the foreground on a uniform background, with
            the margin of the training images. `auto` does what training did (`spec.fit`), and takes images of the
            model's size as they are.

    Returns:
        uint8 [H, W, C], and what was done to the image.

    Raises:
        DataError: see `open_image`.
        ConfigError: an unknown `invert` or `fit`.
    """
    from vae_edge.decoding import decoded

    check_options(invert, fit)
    with decoded(source, spec.depth, spec.alpha_background) as found:
        steps, hints = list(found.steps), list(found.hints)
        pixels, polarity = _render(found.image, spec, fit, steps, hints)
    inverted = invert == "always" or (invert == "auto" and _is_opposite(polarity, spec.background))
    if inverted:
        pixels = 255 - pixels
        why = "as asked" if invert == "always" else f"its background is {polarity} and training's was {spec.background}"
        steps.append(f"inverted ({why})")
    elif invert == "never" and _is_opposite(polarity, spec.background):
        hints.append(f"Its background is {polarity} but training's was {spec.background}: try --invert auto.")
    return pixels, PreprocessInfo(found.source, found.size, found.mode, inverted, tuple(steps), tuple(hints))


def check_batch(array: Any, spec: InputSpec, name: str = "image") -> np.ndarray:
    """Check that an array is a batch of the model's form. Takes about a microsecond if it is. Nothing is converted.

    Returns:
        the array itself, uint8 [N, H, W, C] with N at least 1, or a contiguous copy.

    Raises:
        DataError: another type, dtype, rank or size; no images.
    """
    if (
        type(array) is np.ndarray
        and array.dtype is _UINT8
        and array.shape[1:] == spec.shape
        and array.shape[0]
        and array.flags.c_contiguous
    ):
        return array
    return _explain_bad_batch(array, spec, name)


def to_batch(
    inputs: Any, spec: InputSpec, invert: str = "never", fit: str = "auto", color: str = "rgb"
) -> tuple[np.ndarray, list[PreprocessInfo]]:
    """Prepare arrays, files and Pillow images as one batch.

    Args:
        inputs: an array, a path, a Pillow image, or a list of these. An array is a batch [N, H, W, C] or [N, H, W],
            or one image [H, W, C] or [H, W], of the model's size; it is not resized. Colour models take only the
            forms with channels.
        spec: the model's input.
        invert: see `prepare_image`. For arrays `auto` looks at each image's border.
        fit: see `prepare_image`. Arrays are never cropped.
        color: the channel order of colour arrays: `rgb`, as models take it, or `bgr`, as OpenCV has it. No effect on
            grey arrays, files and Pillow images.

    Returns:
        uint8 [N, H, W, C], and what was done to each of the N images.

    Raises:
        DataError: an input is not readable or has the wrong form; there are no inputs.
        ConfigError: an unknown `invert`, `fit` or `color`.
    """
    batch, infos, failed = to_rows(inputs, spec, invert, fit, color, errors="raise")
    assert not failed
    return batch, infos


def to_rows(
    inputs: Any,
    spec: InputSpec,
    invert: str = "never",
    fit: str = "auto",
    color: str = "rgb",
    errors: str = "coerce",
    workers: int = 1,
) -> tuple[np.ndarray, list[PreprocessInfo], dict[int, DataError]]:
    """As `to_batch`, but an unreadable item of a list does not fail the others.

    Args:
        inputs, spec, invert, fit, color: see `to_batch`.
        errors: `coerce` gives an unreadable item of a list one row of zeros and an error; `raise` raises the first.
        workers: threads that read the items of a list.

    Returns:
        uint8 [N, H, W, C]; what was done to each of the N images; and the error of each unreadable item, by row.

    Raises:
        DataError, ConfigError: see `to_batch`.
    """
    check_options(invert, fit, color, errors)
    if isinstance(inputs, np.ndarray):
        return *_prepare_array(inputs, spec, invert, color, "array"), {}
    if not isinstance(inputs, (list, tuple)):
        return *_prepare_one(inputs, spec, (invert, fit, color), ""), {}
    if not inputs:
        raise DataError("There are no images: the list is empty.")
    rows: list[np.ndarray] = []
    infos: list[PreprocessInfo] = []
    failed: dict[int, DataError] = {}

    def prepare(index: int) -> tuple[np.ndarray, list[PreprocessInfo]] | DataError:
        try:
            return _prepare_one(inputs[index], spec, (invert, fit, color), f"[{index}]")
        except DataError as error:
            if errors == "raise":
                raise
            return error

    for index, prepared in enumerate(_map_in_threads(prepare, len(inputs), workers)):
        if isinstance(prepared, DataError):
            failed[len(infos)] = prepared
            name, says = str(inputs[index])[:1000], (str(prepared),)
            pixels = np.zeros((1, *spec.shape), np.uint8)
            found = [PreprocessInfo(name, (0, 0), "unreadable", steps=("not read",), hints=says)]
        else:
            pixels, found = prepared
        rows.append(pixels)
        infos += found
    return np.concatenate(rows), infos, failed


def _map_in_threads(function: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """The function's results for 0, 1, ... in order, computed by threads where there are several."""
    if min(workers, count) < 2:
        yield from map(function, range(count))
        return
    with ThreadPoolExecutor(min(workers, count)) as pool:
        yield from pool.map(function, range(count))


def measure_background(images: np.ndarray) -> str:
    """The background polarity that training images have in common, by their border pixels.

    Args:
        images: uint8 [N, H, W, C].

    Returns:
        `dark` or `light` if four images in five have that border (by its median), else `none`.
    """
    found = framing.background_polarities(images)
    for polarity in ("dark", "light"):
        if len(found) and float(np.mean(found == polarity)) >= _MIN_POLAR_FRACTION:
            return polarity
    return "none"


def measure_input(images: np.ndarray) -> InputSpec:
    """The input of a model that is trained on these images, uint8 [N, H, W, C].

    The fit is `foreground` if cropping to the foreground would hardly change four images in five, as in MNIST; else
    `pad`.
    """
    background = measure_background(images)
    found = framing.typical_framing(images) if background != "none" else None
    fit = "foreground" if found is not None and found.cropped_fraction >= _MIN_CROPPED_FRACTION else "pad"
    ratio = None if found is None else found.foreground_ratio
    return InputSpec(as_size(*images.shape[1:3]), images.shape[3], background, ratio, fit)


def resize_image(image: Image, size: Size) -> Image:
    """Resize an image of the size's shape with antialiasing: box reduction by a whole factor, then Lanczos.

    Bicubic for enlarging.
    """
    from PIL.Image import Resampling

    height, width = height_and_width(size)
    if (image.width, image.height) == (width, height):
        return image
    if image.width > width or image.height > height:
        return image.resize((width, height), Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    return image.resize((width, height), Resampling.BICUBIC)


def fit_array(pixels: np.ndarray, size: Size) -> np.ndarray:
    """One image of any shape, uint8 [h, w, C] with C 1 or 3, padded and resized as files with the fit `pad`.

    Returns:
        uint8 [H, W, C].
    """
    image = framing.as_tiled(pixels)
    frame = framing.padded_frame(image, height_and_width(size))
    return _resize_crop(image, framing.background_colour(image), frame, size).reshape(
        *height_and_width(size), pixels.shape[-1]
    )


def uint8_hint(array: np.ndarray) -> str:
    """A sentence that says how to convert this array, whose dtype is not uint8."""
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


def check_options(invert: str, fit: str, color: str = "rgb", errors: str = "raise") -> None:
    """Refuse an option that `to_rows` does not know (ConfigError)."""
    options = (("invert", invert, INVERT), ("fit", fit, FIT), ("color", color, COLOR), ("errors", errors, ERRORS))
    for option, value, known in options:
        if value not in known:
            raise ConfigError(f"{option} is one of {', '.join(known)}, but {value!r} came.")


def _explain_bad_batch(array: Any, spec: InputSpec, name: str) -> np.ndarray:
    """The slow path of `check_batch`: fix the memory layout, or raise DataError with what is wrong."""
    shape = ", ".join(map(str, spec.shape))
    expected = f"{name}: expected a NumPy array, uint8, of shape [N, {shape}] with N at least 1"
    if not isinstance(array, np.ndarray):
        raise DataError(f"{expected}, but a {type(array).__name__} came. Convert it with np.asarray.")
    if array.dtype != np.uint8:
        raise DataError(f"{expected}, but its dtype is {array.dtype}. {uint8_hint(array)}")
    if array.shape[1:] != spec.shape or not array.shape[0]:
        raise DataError(f"{expected}, but its shape is {list(array.shape)}. {_shape_hint(array.shape, spec)}")
    return np.ascontiguousarray(array)


def _shape_hint(shape: tuple[int, ...], spec: InputSpec) -> str:
    height, width, channels = spec.shape
    if 0 in shape:
        return "There are no images in it."
    if shape[1:] == (channels, height, width):
        return "Its channels stand first: use x.transpose(0, 2, 3, 1)."
    if channels == 3 and (shape[-2:] == (height, width) or shape[-3:] == (height, width, 1)):
        grey = "x" if shape[-1] == 1 else "x[..., None]"
        return f"The model takes colour: use np.repeat({grey}, 3, axis=-1)."
    if height != width and shape[1:3] == (width, height):
        return f"Its height and width are exchanged: the model takes {size_text(spec.size)}."
    if channels == 1 and shape[1:] == (height, width, 3):
        return "The model takes grey: pass each image as PIL.Image.fromarray(x), which is converted; x is RGB."
    return "Arrays are not resized; pass each image as PIL.Image.fromarray(x), which is."


def _is_opposite(polarity: str, background: str) -> bool:
    return {polarity, background} == {"dark", "light"}


def _render(
    image: framing.TiledImage, spec: InputSpec, fit: str, steps: list[str], hints: list[str]
) -> tuple[np.ndarray, str]:
    """The pixels that the model sees, uint8 [H, W, C], and the polarity of the image's background."""
    from vae_edge.decoding import MAX_FULL_PIXELS, to_array_image, to_grey

    if image.channels == 3 and spec.channels == 1:
        image = to_grey(image)
        image = to_array_image(image) if image.width * image.height <= MAX_FULL_PIXELS else image
        steps.append("converted from colour to grey")
    polarity = framing.background_polarity(image if image.channels == 1 else to_grey(framing.border_only(image)))
    return _render_frame(image, spec, fit, steps, hints), polarity


def _render_frame(
    image: framing.TiledImage, spec: InputSpec, fit: str, steps: list[str], hints: list[str]
) -> np.ndarray:
    """The part of the image that the model sees, at the model's size and with its channels."""
    shape, stored = (spec.height, spec.width), (image.height, image.width)
    longer = max(stored)
    if fit == "auto":
        fit = spec.fit if stored != shape else "pad"
    if longer >= 2 * _MAX_WORKING_SIDE_PX:  # also keeps an image of 1 by a million pixels from becoming a square
        image = _box_reduce(image, longer // _MAX_WORKING_SIDE_PX)

    background = framing.background_colour(image)
    box = framing.foreground_box(image, background)
    frame = framing.padded_frame(image, shape)
    if box is not None and fit == "foreground":
        steps.append("cropped to its foreground and centred, with the margin of the training images")
        ratio = spec.foreground_ratio or framing.MNIST_FOREGROUND_RATIO
        frame = framing.foreground_frame(image, background, box, shape, ratio)
    else:
        if fit == "foreground":
            steps.append("not cropped, since its background is not uniform or has no foreground on it")
        elif box is not None and _is_small(box, frame, spec):
            hints.append("Its foreground fills less than half of the frame: try --fit foreground, which crops to it.")
        padded = framing.scaled_shape(shape, *stored)
        if padded != stored:
            steps.append(f"padded to {size_text(as_size(*padded))} with its border's colour")

    if (frame.height, frame.width) != shape:
        steps.append(f"resized from {size_text(as_size(frame.height, frame.width))} to {size_text(spec.size)}")
    pixels = _resize_crop(image, background, frame, spec.size)
    if spec.channels == 3 and pixels.ndim == 2:
        steps.append("its grey copied into three channels")
        return np.repeat(pixels[..., None], 3, axis=-1)
    return pixels.reshape(spec.shape)


def _is_small(box: framing.Box, frame: framing.Frame, spec: InputSpec) -> bool:
    ratio = max((box[2] - box[0]) / frame.width, (box[3] - box[1]) / frame.height)
    return ratio < _SMALL_FOREGROUND_RATIO * (spec.foreground_ratio or 1)


def _box_reduce(image: framing.TiledImage, factor: int) -> framing.ArrayImage:
    """The image reduced by a whole factor: each pixel is the mean of a square (of fewer pixels at the edges)."""
    from PIL.Image import fromarray

    shape = (-(-image.height // factor), -(-image.width // factor), *(() if image.channels == 1 else (3,)))
    pixels = np.empty(shape, np.uint8)
    for (left, top, _, _), tile in framing.tiles(image, step=factor):
        small = np.asarray(fromarray(tile).reduce(factor))
        x, y = left // factor, top // factor
        pixels[y : y + small.shape[0], x : x + small.shape[1]] = small
    return framing.ArrayImage(pixels)


def _resize_crop(image: framing.TiledImage, background: np.ndarray, frame: framing.Frame, size: Size) -> np.ndarray:
    """A part of the image, padded and resized as `resize_image` does; a new array.

    A large part is reduced tile by tile, and never in memory as a whole.
    """
    from PIL.Image import Resampling, fromarray

    height, width = height_and_width(size)
    gap = int(min(frame.height / height, frame.width / width) / _REDUCING_GAP)
    if max(frame.height, frame.width) <= _MAX_WORKING_SIDE_PX or gap <= 1:
        return np.array(resize_image(fromarray(framing.crop_padded(image, background, *frame.box)), size))
    small = _box_reduce(_PaddedCrop(image, background, frame), gap).pixels
    box = (0, 0, frame.width / gap, frame.height / gap)
    return np.array(fromarray(small).resize((width, height), Resampling.LANCZOS, box=box))


@dataclass(frozen=True)
class _PaddedCrop:
    """A part of an image, padded with the background colour, as an image of its own."""

    image: framing.TiledImage
    background: np.ndarray
    frame: framing.Frame

    @property
    def width(self) -> int:
        return self.frame.width

    @property
    def height(self) -> int:
        return self.frame.height

    @property
    def channels(self) -> int:
        return self.image.channels

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        x, y = self.frame.left, self.frame.top
        return framing.crop_padded(self.image, self.background, x + left, y + top, x + right, y + bottom)


def _prepare_one(
    item: Any, spec: InputSpec, options: tuple[str, str, str], index: str
) -> tuple[np.ndarray, list[PreprocessInfo]]:
    invert, fit, color = options
    if isinstance(item, np.ndarray):
        return _prepare_array(item, spec, invert, color, f"array{index}")
    pixels, info = prepare_image(item, spec, invert, fit)
    return pixels[None], [info]


def _prepare_array(
    array: np.ndarray, spec: InputSpec, invert: str, color: str, name: str
) -> tuple[np.ndarray, list[PreprocessInfo]]:
    height, width, channels = spec.shape
    if array.shape == spec.shape:
        array = array[None]
    elif channels == 1 and array.ndim in (2, 3) and array.shape[-2:] == (height, width):
        array = array[..., None] if array.ndim == 3 else array[None, ..., None]
    batch = check_batch(array, spec, name)
    steps: tuple[str, ...] = ()
    if color == "bgr" and channels == 3:
        batch, steps = np.ascontiguousarray(batch[..., ::-1]), ("channels reordered from BGR to RGB",)
    inverted = np.full(len(batch), invert == "always")
    if invert == "auto" and spec.background != "none":
        inverted = framing.background_polarities(batch) == ("light" if spec.background == "dark" else "dark")
    if inverted.any():
        batch = np.where(inverted[:, None, None, None], 255 - batch, batch)
    mode = f"uint8 {channels}-channel"
    as_is = PreprocessInfo(name, (width, height), mode, False, steps)
    as_inverted = PreprocessInfo(name, (width, height), mode, True, (*steps, "inverted"))
    return batch, [as_inverted if flag else as_is for flag in inverted]
