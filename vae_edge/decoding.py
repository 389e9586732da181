"""Image files and Pillow images, of whatever mode, to pages of grey or RGB pixels; says each step that changed them.

A page converts its pixels piece by piece. So a large image is in memory once, as Pillow decoded it, and never a second
time in another form. Geometry and polarity are left to `vae_edge.preprocess`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vae_edge import files
from vae_edge.errors import DataError
from vae_edge.framing import ArrayPage, Box, Page, boxes, tiles
from vae_edge.limits import MAX_IMAGE_BYTES, MAX_LINES, MAX_PIXELS
from vae_edge.whole_image import check_whole

SMALL = 2048 * 2048
"""Pages of at most so many pixels are converted as a whole, once."""

DEPTHS = (8, 10, 12, 14, 16)
"""How many bits the values of a 16-bit file may have."""

_AVIF = ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()  # since Pillow 11.3
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", *_AVIF)
FIRST_FRAME = "took the first frame of an animation"
"""The step that says that a file has further frames."""
_CODEC_BYTES = {"WEBP": 16, "AVIF": 16, "JPEG2000": 24}
"""A pixel, of formats whose codecs hold the image in a form of their own as well."""
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_PLAIN = frozenset({"L", "RGB"})
_CONVERTED = {"1": "L", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "RGBX": "RGB"}
_MATTE_SHARE = 0.125
"""A light image is drawn ink on a transparent page only if at least this share of the page is transparent."""

_DARK = 64
"""The upper eight bits of values of 14 bits or fewer stay below this."""

_T = Image.Transpose
_ORIENTATIONS = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}

_OPENING = threading.Lock()

_NO_PAGE = ArrayPage(np.empty((0, 0), np.uint8))

Convert = Callable[[Image.Image], np.ndarray]
"""A piece in the image's own mode to uint8 [h, w] or [h, w, 3]."""


class _Budget:
    """Lets so many bytes be decoded at once, in the order of asking; one image alone may take more."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._turn = threading.Lock()
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Wait until there is room, or nobody else decodes."""
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self._taken or self._taken + amount <= self.limit)
            self._taken += amount
        try:
            yield
        finally:
            with self._freed:
                self._taken -= amount
                self._freed.notify_all()


_BUDGET = _Budget(256 << 20)


@dataclass
class Decoded:
    """An image as a page, and what it was before."""

    page: Page
    source: str
    size: tuple[int, int]
    mode: str
    steps: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Stored:
    """A page whose pixels are as Pillow decoded them: turned by EXIF, cut, and converted when they are asked for."""

    cut: Callable[[Box], Image.Image]
    stored: tuple[int, int]
    orientation: int
    convert: Convert
    channels: int

    @property
    def width(self) -> int:
        return self.stored[self.orientation >= 5]

    @property
    def height(self) -> int:
        return self.stored[self.orientation < 5]

    def piece(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return self.convert(self.raw((left, top, right, bottom)))

    def raw(self, box: Box) -> Image.Image:
        """A box of the page in the image's own mode."""
        image = self.cut(_stored_box(box, self.stored, self.orientation))
        return image.transpose(_ORIENTATIONS[self.orientation]) if self.orientation != 1 else image


@dataclass(frozen=True)
class Grey:
    """A colour page in grey, by ITU-R 601."""

    page: Page
    channels: int = 1

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.page.width

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.page.height

    def piece(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """The grey pixels of a box."""
        return np.asarray(Image.fromarray(self.page.piece(left, top, right, bottom)).convert("L"))


@dataclass(frozen=True)
class _FirstChannel:
    """A colour page whose three channels are equal, as grey."""

    page: Page
    channels: int = 1

    @property
    def width(self) -> int:
        return self.page.width

    @property
    def height(self) -> int:
        return self.page.height

    def piece(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return self.page.piece(left, top, right, bottom)[..., 0]


@contextlib.contextmanager
def decoded(source: str | os.PathLike[str] | Image.Image, depth: int | None = None) -> Iterator[Decoded]:
    """Decode a file's first frame, or take a Pillow image, as a page of grey or RGB pixels; for as long as it is held.

    The EXIF orientation is applied; alpha is composed on white, or on black where the visible ink is light; 16-bit
    grey is scaled to 8 bit from 0..65535, or from 0..2**depth - 1.

    Raises:
        DataError: the file is missing, no image, truncated, has no pixels or too many, or has floating-point or
            32-bit pixels, whose range nobody knows.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "") or "the Pillow image"
        _check_size(source, name)
        yield _to_page(source, name, [], depth)
        return
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"An image is a path or a Pillow image, but a {type(source).__name__} came.")
    with _opened(Path(source)) as (image, file):
        steps = [FIRST_FRAME] if _is_animated(image, str(source)) else []
        found = _to_page(image, str(Path(source)), steps, depth, file)
        try:
            yield found
        finally:
            found.page = _NO_PAGE  # nobody keeps the pixels when others are let in


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """An image file of bearable size, when there is room to decode it; its pixels are gone when others are let in."""
    with _open(path) as (image, file):
        _check_size(image, str(path))
        with _BUDGET.take(_decoding_bytes(image)):
            try:
                yield image, file
            finally:
                large = image.width * image.height > SMALL
                image.close()
                if large:
                    _trim()


def _trim() -> None:
    """Give freed memory back to the system: glibc keeps some for each thread, which comes to an image a thread."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


def _decoding_bytes(image: Image.Image) -> int:
    """About what Pillow and the codec take to decode it."""
    each = _CODEC_BYTES.get(image.format or "", 10 if "progressive" in image.info else 4)
    return image.width * image.height * each


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Read the header only; gives the image, and the file of which Pillow reads its pixels."""
    try:
        file = files.open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:
        if os.path.isdir(path):  # noqa: PTH112 (a Path's raises for a name that is too long)
            raise DataError(f"{path} is a folder, but an image file was expected; name the files in it.") from error
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{path} was not decoded: it has {size} bytes; expected at most {MAX_IMAGE_BYTES}.")
        with _header(path, file, size) as image:
            yield image, file


def _header(path: Path, file: BinaryIO, size: int) -> Image.Image:
    """Have Pillow read the header. The lock is there because Python's warning filters belong to the whole process."""
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} was not decoded: {_too_large(error)}") from error
    except UnidentifiedImageError as error:
        state = "is empty" if size == 0 else "does not decode as an image"
        raise DataError(f"{path} {state}; expected one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # a decoder fed hostile bytes may raise anything
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _too_large(detail: object) -> str:
    return f"it has more than {MAX_PIXELS // 1_000_000} million pixels, which may be a decompression bomb ({detail})."


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if 0 in (width, height):
        raise DataError(f"{name} has no pixels: it is {width}×{height}.")
    if width * height > MAX_PIXELS:
        raise DataError(f"{name} was not decoded: {_too_large(f'{width}×{height}')}")
    if height > MAX_LINES:
        raise DataError(
            f"{name} was not decoded: it is {width}×{height}; expected at most {MAX_LINES // 1_000_000} million lines."
        )


def _is_animated(image: Image.Image, name: str) -> bool:
    """Whether it has more frames; not so of a photograph (MPO), whose further images are its preview or its depth."""
    try:
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Exception as error:  # as in `_header`
        raise DataError(f"{name} is damaged or truncated and does not decode: {error}") from error


def _to_page(
    image: Image.Image, name: str, steps: list[str], depth: int | None, file: BinaryIO | None = None
) -> Decoded:
    size, mode = image.size, image.mode
    in_memory, deep = image.format is None, _is_deep_colour(image)
    try:
        cut = _load(image, file)
    except Exception as error:  # as in `_header`
        raise DataError(f"{name} is damaged or truncated and does not decode: {error}") from error
    orientation = _orientation(image, steps)
    found = Decoded(_NO_PAGE, name, size, mode, steps)

    def stored(convert: Convert, channels: int) -> _Stored:
        return _Stored(cut, size, orientation, convert, channels)

    raw, equal = stored(np.asarray, 1), False
    if mode in _SIXTEEN_BIT or mode == "I":
        found.page = stored(_scaler(raw, found, in_memory, depth), 1)
    elif image.has_transparency_data:
        convert, grey = _composer(raw, mode, steps)
        found.page, equal = stored(convert, 1 if grey else 3), not grey
    elif mode == "P":
        steps.append("looked up its palette")
        found.page, equal = stored(lambda part: np.asarray(part.convert("RGB")), 3), True
    elif mode in _CONVERTED:
        wanted = _CONVERTED[mode]
        steps.append(f"converted from {'1-bit' if mode == '1' else mode}")
        found.page = stored(lambda part: np.asarray(part.convert(wanted)), 1 if wanted == "L" else 3)
    elif mode in _PLAIN:
        found.page = stored(np.asarray, 1 if mode == "L" else 3)
    else:
        hint = " Convert floating-point pixels to 8 bit first, since their range is not known." if mode == "F" else ""
        raise DataError(f"{name} has pixels of mode {mode}; expected 8-bit grey, RGB, RGBA, palette or CMYK.{hint}")
    if size[0] * size[1] <= SMALL:
        found.page = in_full(found.page)
    if deep and all(int(part.max()) < _DARK for _, part in tiles(found.page)):
        found.hints.append(
            "Of its 16-bit colours the upper 8 bits are read, and are nearly black: convert it to 8 bit."
        )
    if equal and all((part == part[..., :1]).all() for _, part in tiles(found.page)):
        found.page = _FirstChannel(found.page)
    return found


def _load(image: Image.Image, file: BinaryIO | None) -> Callable[[Box], Image.Image]:
    """Decode, of a file where there is one; gives a function that cuts boxes."""
    if image.format == "WEBP" and image.width * image.height > SMALL and hasattr(image, "_decoder"):
        # The decoder holds two canvases of four bytes a pixel, and `load` would make two more of what it gives.
        frame = image._decoder.get_next()
        image._decoder = None
        if frame is None:
            raise OSError("its first frame is damaged")
        pixels = np.frombuffer(frame[0], np.uint8).reshape(image.height, image.width, 4)[..., : len(image.getbands())]
        return lambda box: Image.fromarray(pixels[box[1] : box[3], box[0] : box[2]])
    image.load()
    if file is not None:
        check_whole(image, file)
    return lambda box: image.crop(box) if box != (0, 0, *image.size) else image


def in_full(page: Page) -> ArrayPage:
    """A page whose pixels are all converted and in memory."""
    whole = (0, 0, page.width, page.height)
    pixels = None
    for box, part in tiles(page):
        if box == whole:
            return ArrayPage(part)
        if pixels is None:
            pixels = np.empty((page.height, page.width, *part.shape[2:]), np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = part
    assert pixels is not None  # an image has pixels, as `_check_size` saw
    return ArrayPage(pixels)


def _orientation(image: Image.Image, steps: list[str]) -> int:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:  # damaged EXIF does not damage the pixels
        steps.append(f"ignored its unreadable EXIF data ({error})")
        return 1
    if orientation not in _ORIENTATIONS:
        return 1
    steps.append(f"turned as its EXIF orientation {orientation} says")
    return int(orientation)


def _stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where a box of the turned image lies in the stored one, whose size this is."""
    (left, top, right, bottom), (width, height) = box, size
    if orientation >= 5:  # turned by a quarter: across as stored is down as seen
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _scaler(raw: _Stored, found: Decoded, in_memory: bool, depth: int | None) -> Convert:
    """16-bit values to 8 bit."""
    low, high = _extremes(raw)
    if found.mode == "I" and (in_memory or low < 0 or high > 0xFFFF):
        raise DataError(
            f"{found.source} has 32-bit pixels (mode I) from {low} to {high}, whose range is not known; "
            "convert it to 8 bit first, for example with image.convert('L') where the values are 0 to 255."
        )
    bits = depth or 16
    most = 2**bits - 1
    found.steps.append(f"scaled from {bits} to 8 bit")
    if high > most:
        found.steps.append(f"cut off above {most}")
        found.hints.append(f"It has values up to {high}, but training's files had {bits} bits (0 to {most}).")
    elif depth is None and (needed := bits_for(high)) < 16:
        found.hints.append(
            f"Its 16-bit values end at {high}: if they have {needed} bits, it comes out too dark; convert it to 8 bit."
        )

    def convert(part: Image.Image) -> np.ndarray:
        values = np.minimum(np.asarray(part).astype(np.int64), most)
        return ((values * 255 + most // 2) // most).astype(np.uint8)

    return convert


def _extremes(raw: _Stored) -> tuple[int, int]:
    low, high = 0xFFFF, 0
    for box in boxes(raw):
        part = np.asarray(raw.raw(box))
        low, high = min(low, int(part.min())), max(high, int(part.max()))
    return low, high


def bits_for(highest: int) -> int:
    """The smallest usual number of bits that holds a value of 16 bits."""
    return next(bits for bits in DEPTHS if highest < 2**bits)


def _layers(part: Image.Image) -> Image.Image:
    return (part.convert("LA") if part.mode == "La" else part).convert("RGBA")


def _composer(raw: _Stored, mode: str, steps: list[str]) -> tuple[Convert, bool]:
    """Lays a transparent image on a page: white, unless its ink is light and there is a page to see through to.

    Gives the conversion of a piece, and whether the image is stored in grey.
    """
    grey = mode in {"L", "LA", "La"}
    lowest, visible, light = 255, 0, 0
    for box in boxes(raw):
        layers = _layers(raw.raw(box))
        alpha = np.asarray(layers.getchannel("A"))
        luminance = np.asarray(layers.convert("RGB").convert("L"))
        lowest = min(lowest, int(alpha.min()))
        visible += int(alpha.sum(dtype=np.int64))
        light += int((luminance.astype(np.int64) * alpha).sum())
    page = "white"
    if lowest == 255:
        steps.append("dropped its alpha channel, which is opaque everywhere")
    else:
        share = visible / (255 * raw.width * raw.height)
        if visible and light > 127 * visible and share <= 1 - _MATTE_SHARE:
            page = "black"
        reason = ", since what is visible is light" if page == "black" else ""
        steps.append(f"laid its transparency on {page}{reason}")

    def convert(part: Image.Image) -> np.ndarray:
        layers = _layers(part)
        if lowest < 255:
            layers = Image.alpha_composite(Image.new("RGBA", layers.size, page), layers)
        pixels = layers.convert("RGB")
        return np.asarray(pixels.getchannel("R") if grey else pixels)

    return convert, grey


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether the file has colours of 16 bits, of which Pillow reads the upper eight."""
    return image.mode not in _SIXTEEN_BIT | {"I"} and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded."""

    size: tuple[int, int]
    """(width, height) as stored."""
    sixteen_bit: bool
    """Whether it has grey values of 16 bits."""
    deep_colour: bool
    """Whether it has colours of 16 bits."""


def read_header(path: str | os.PathLike[str]) -> Header:
    """What the header of an image file says.

    Raises:
        DataError: the file is missing or no image.
    """
    with _open(Path(path)) as (image, _):
        return Header(image.size, image.mode in _SIXTEEN_BIT or image.mode == "I", _is_deep_colour(image))


def highest_value(path: str | os.PathLike[str]) -> int:
    """The largest value in a 16-bit file.

    Raises:
        DataError: see `decoded`.
    """
    with _opened(Path(path)) as (image, file):
        try:
            cut = _load(image, file)
        except Exception as error:  # as in `_to_page`
            raise DataError(f"{path} is damaged or truncated and does not decode: {error}") from error
        return _extremes(_Stored(cut, image.size, 1, np.asarray, 1))[1]
