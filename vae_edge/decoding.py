"""Decode image files and Pillow images of any mode into grey or RGB pixels, with a list of the conversions made.

Pixels are converted tile by tile (`TiledImage`): a large image is in memory once, as Pillow decoded it. Geometry and
polarity are left to `vae_edge.preprocess`.

Incomplete files are refused. Pillow refuses a file that is cut off, but not one whose compressed data ends early in
good order: zlib reports the end in a PNG, or the end marker of a JPEG comes before its last row. Missing pixels would
come out black or grey.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vae_edge import files
from vae_edge.errors import DataError
from vae_edge.framing import ArrayImage, Box, ConvertedImage, TiledImage, boxes, tiles
from vae_edge.spec import MAX_IMAGE_BYTES, MAX_LINES, MAX_PIXELS
from vae_edge.transparency import GREY_MODES, Transparency, compositing, is_opaque, measure_transparency

MAX_FULL_PIXELS = 2048 * 2048
"""Images of at most this many pixels are converted in one piece."""
BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths that the values of a 16-bit grey file may have."""
_AVIF = ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()  # since Pillow 11.3
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", *_AVIF)
FIRST_FRAME_STEP = "took the first frame of an animation"
"""The step that reports a file with more frames."""

_CODEC_BYTES_PER_PIXEL = {"WEBP": 16, "AVIF": 16, "JPEG2000": 24}
"""Memory of formats whose codecs hold the image in a form of their own as well."""
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_PLAIN = frozenset({"L", "RGB"})
_CONVERTED = {"1": "L", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "RGBX": "RGB"}
_MAX_DARK_VALUE = 64
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
"""What undoes each EXIF orientation."""

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel by a PNG's colour type."""
_ADAM7_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""Interlacing of PNG (specification, section 8.2): first column, first row, column step and row step of each pass."""
_CHUNK = 1 << 16
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends a JPEG's entropy-coded data: neither a stuffed byte nor a restart marker."""
_CORNER_PX = 4

_OPEN_LOCK = threading.Lock()
_NO_IMAGE = ArrayImage(np.empty((0, 0), np.uint8))

Convert = Callable[[Image.Image], np.ndarray]
"""A tile in the image's own mode to uint8 [h, w] or [h, w, 3]."""


class _DecodeBudget:
    """Limits the bytes of concurrent decoding, first come, first served. A single image may exceed the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._queue = threading.Lock()
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Wait until so many bytes are free, or no other image is being decoded."""
        with self._queue, self._freed:
            self._freed.wait_for(lambda: not self._taken or self._taken + amount <= self.limit)
            self._taken += amount
        try:
            yield
        finally:
            with self._freed:
                self._taken -= amount
                self._freed.notify_all()


_BUDGET = _DecodeBudget(256 << 20)


@dataclass
class Decoded:
    """A decoded image, what it was as stored, the conversions made (`steps`), and what to try (`hints`)."""

    image: TiledImage
    source: str
    size: tuple[int, int]
    """(width, height) as stored, in pixels."""
    mode: str
    """Pillow's mode, as stored."""
    steps: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _StoredImage:
    """An image as Pillow decoded it. Tiles are cut, rotated by EXIF and converted when they are read."""

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

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return self.convert(self.raw((left, top, right, bottom)))

    def raw(self, box: Box) -> Image.Image:
        """A box, rotated by EXIF, in the image's own mode."""
        image = self.cut(_stored_box(box, self.stored, self.orientation))
        return image.transpose(_ORIENTATIONS[self.orientation]) if self.orientation != 1 else image


def to_grey(image: TiledImage) -> ConvertedImage:
    """A colour image in grey, by ITU-R 601."""
    return ConvertedImage(image, lambda pixels: np.asarray(Image.fromarray(pixels).convert("L")))


@contextlib.contextmanager
def decoded(
    source: str | os.PathLike[str] | Image.Image, depth: int | None = None, alpha_background: str | None = None
) -> Iterator[Decoded]:
    """Decode a file's first frame, or take a Pillow image, as grey or RGB pixels. They are valid inside the context.

    The EXIF orientation is applied. Alpha is composited on `alpha_background`, `white` or `black`; without one on
    white, or on black where the visible part is light. 16-bit grey is scaled to 8 bit from 0..65535, or from
    0..2**depth - 1.

    Raises:
        DataError: the file is missing, no image, truncated, has no pixels or too many, or has floating-point or
            32-bit pixels, whose range is not known.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "") or "the Pillow image"
        _check_size(source, name)
        yield _to_tiled(source, name, [], depth, alpha_background)
        return
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"An image is a path or a Pillow image, but a {type(source).__name__} came.")
    with _open_within_budget(Path(source)) as (image, file):
        steps = [FIRST_FRAME_STEP] if _is_animated(image, str(source)) else []
        found = _to_tiled(image, str(Path(source)), steps, depth, alpha_background, file)
        try:
            yield found
        finally:
            found.image = _NO_IMAGE  # the pixels are freed before the budget is


@contextlib.contextmanager
def _open_within_budget(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image file within the size limits, when the budget allows decoding it; its pixels are freed on exit."""
    with _open(path) as (image, file):
        _check_size(image, str(path))
        with _BUDGET.take(_decoding_bytes(image)):
            try:
                yield image, file
            finally:
                large = image.width * image.height > MAX_FULL_PIXELS
                image.close()
                if large:
                    _trim_heap()


def _trim_heap() -> None:
    """Return freed memory to the system: glibc keeps an arena for each thread, which adds up to an image a thread."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


def _decoding_bytes(image: Image.Image) -> int:
    """Estimate of the memory that Pillow and the codec need to decode it."""
    per_pixel = _CODEC_BYTES_PER_PIXEL.get(image.format or "", 10 if "progressive" in image.info else 4)
    return image.width * image.height * per_pixel


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Read the header only. Gives the image, and the file from which Pillow will read its pixels."""
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
    """Let Pillow read the header, under a lock because Python's warning filters are shared by all threads."""
    try:
        with _OPEN_LOCK, warnings.catch_warnings():
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
    """Whether it has more frames. The further images of a photograph (MPO) are its preview or its depth: no frames."""
    try:
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Exception as error:  # as in `_header`
        raise DataError(f"{name} is damaged or truncated and does not decode: {error}") from error


def _to_tiled(
    image: Image.Image,
    name: str,
    steps: list[str],
    depth: int | None,
    alpha_background: str | None,
    file: BinaryIO | None = None,
) -> Decoded:
    size, mode = image.size, image.mode
    in_memory, deep = image.format is None, _is_deep_colour(image)
    try:
        cut = _load(image, file)
    except Exception as error:  # as in `_header`
        raise DataError(f"{name} is damaged or truncated and does not decode: {error}") from error

    orientation = _exif_orientation(image, steps)
    found = Decoded(_NO_IMAGE, name, size, mode, steps)

    def stored(convert: Convert, channels: int) -> _StoredImage:
        return _StoredImage(cut, size, orientation, convert, channels)

    raw, may_be_grey = stored(np.asarray, 1), False
    if mode in _SIXTEEN_BIT or mode == "I":
        found.image = stored(_scale_16_bit(raw, found, in_memory, depth), 1)
    elif image.has_transparency_data:
        convert, grey = _composite_alpha(raw, mode, alpha_background, steps)
        found.image, may_be_grey = stored(convert, 1 if grey else 3), not grey
    elif mode == "P":
        steps.append("looked up its palette")
        found.image, may_be_grey = stored(lambda tile: np.asarray(tile.convert("RGB")), 3), True
    elif mode in _CONVERTED:
        target = _CONVERTED[mode]
        steps.append(f"converted from {'1-bit' if mode == '1' else mode}")
        found.image = stored(lambda tile: np.asarray(tile.convert(target)), 1 if target == "L" else 3)
    elif mode in _PLAIN:
        found.image = stored(np.asarray, 1 if mode == "L" else 3)
    else:
        hint = " Convert floating-point pixels to 8 bit first, since their range is not known." if mode == "F" else ""
        raise DataError(f"{name} has pixels of mode {mode}; expected 8-bit grey, RGB, RGBA, palette or CMYK.{hint}")

    if size[0] * size[1] <= MAX_FULL_PIXELS:
        found.image = to_array_image(found.image)
    if deep and all(int(tile.max()) < _MAX_DARK_VALUE for _, tile in tiles(found.image)):
        found.hints.append(
            "Of its 16-bit colours the upper 8 bits are read, and are nearly black: convert it to 8 bit."
        )
    if may_be_grey and all((tile == tile[..., :1]).all() for _, tile in tiles(found.image)):
        found.image = ConvertedImage(found.image, lambda pixels: pixels[..., 0])
    return found


def _load(image: Image.Image, file: BinaryIO | None) -> Callable[[Box], Image.Image]:
    """Decode the pixels, and check that a file holds all of them. Returns a function that cuts a box."""
    if image.format == "WEBP" and image.width * image.height > MAX_FULL_PIXELS and hasattr(image, "_decoder"):
        # The decoder holds two canvases of four bytes a pixel, and Pillow's `load` would copy its result twice more.
        frame = image._decoder.get_next()
        image._decoder = None
        if frame is None:
            raise OSError("its first frame is damaged")
        pixels = np.frombuffer(frame[0], np.uint8).reshape(image.height, image.width, 4)[..., : len(image.getbands())]
        return lambda box: Image.fromarray(pixels[box[1] : box[3], box[0] : box[2]])
    image.load()
    if file is not None:
        _check_complete(image, file)
    return lambda box: image.crop(box) if box != (0, 0, *image.size) else image


def to_array_image(image: TiledImage) -> ArrayImage:
    """All pixels converted, in memory."""
    everything = (0, 0, image.width, image.height)
    pixels = None
    for box, tile in tiles(image):
        if box == everything:
            return ArrayImage(tile)
        if pixels is None:
            pixels = np.empty((image.height, image.width, *tile.shape[2:]), np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = tile
    assert pixels is not None  # `_check_size` refused images without pixels
    return ArrayImage(pixels)


def _exif_orientation(image: Image.Image, steps: list[str]) -> int:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:  # the pixels may be fine
        steps.append(f"ignored its unreadable EXIF data ({error})")
        return 1
    if orientation not in _ORIENTATIONS:
        return 1
    steps.append(f"rotated as its EXIF orientation {orientation} says")
    return int(orientation)


def _stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """A box of the rotated image in the coordinates of the stored one, whose (width, height) is `size`."""
    (left, top, right, bottom), (width, height) = box, size
    if orientation >= 5:  # rotated by a quarter: stored columns are displayed rows
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _scale_16_bit(raw: _StoredImage, found: Decoded, in_memory: bool, depth: int | None) -> Convert:
    """The conversion of 16-bit values to 8 bit, rounded to nearest."""
    low, high = _value_range(raw)
    if found.mode == "I" and (in_memory or low < 0 or high > 0xFFFF):
        raise DataError(
            f"{found.source} has 32-bit pixels (mode I) from {low} to {high}, whose range is not known; "
            "convert it to 8 bit first, for example with image.convert('L') where the values are 0 to 255."
        )
    bits = depth or 16
    max_value = 2**bits - 1
    found.steps.append(f"scaled from {bits} to 8 bit")
    if high > max_value:
        found.steps.append(f"clipped above {max_value}")
        found.hints.append(f"It has values up to {high}, but training's files had {bits} bits (0 to {max_value}).")
    elif depth is None and (needed := bit_depth_of(high)) < 16:
        found.hints.append(
            f"Its 16-bit values end at {high}: if they have {needed} bits, it comes out too dark; convert it to 8 bit."
        )

    def convert(tile: Image.Image) -> np.ndarray:
        values = np.minimum(np.asarray(tile).astype(np.int64), max_value)
        return ((values * 255 + max_value // 2) // max_value).astype(np.uint8)

    return convert


def _value_range(raw: _StoredImage) -> tuple[int, int]:
    low, high = 0xFFFF, 0
    for box in boxes(raw):
        values = np.asarray(raw.raw(box))
        low, high = min(low, int(values.min())), max(high, int(values.max()))
    return low, high


def bit_depth_of(highest: int) -> int:
    """The smallest of `BIT_DEPTHS` that holds a value."""
    return next(bits for bits in BIT_DEPTHS if highest < 2**bits)


def _composite_alpha(
    raw: _StoredImage, mode: str, alpha_background: str | None, steps: list[str]
) -> tuple[Convert, bool]:
    """Composite an image with alpha on a colour; None chooses it by the image alone.

    Returns the conversion of a tile, and whether the image is stored in grey.
    """
    grey, reason = mode in GREY_MODES, ""
    if is_opaque(raw.raw(box) for box in boxes(raw)):
        steps.append("dropped its alpha channel, which is opaque everywhere")
        return compositing(None, grey), grey
    if alpha_background is None:
        alpha_background = measure_transparency(raw.raw(box) for box in boxes(raw)).own_background
        reason = ", since what is visible is light" if alpha_background == "black" else ""
    steps.append(f"composited its transparency on {alpha_background}{reason}")
    return compositing(alpha_background, grey), grey


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether the file has 16-bit colours, of which Pillow reads the upper eight bits."""
    return image.mode not in _SIXTEEN_BIT | {"I"} and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


@dataclass(frozen=True)
class Header:
    """What the header of an image file says, before pixels are decoded."""

    size: tuple[int, int]
    """(width, height) as stored, in pixels."""
    sixteen_bit: bool
    """Whether it has 16-bit grey values."""
    deep_colour: bool
    """Whether it has 16-bit colours."""
    has_alpha: bool
    """Whether it has an alpha channel, or a colour or palette entries that are transparent."""


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of an image file.

    Raises:
        DataError: the file is missing or no image.
    """
    with _open(Path(path)) as (image, _):
        sixteen_bit = image.mode in _SIXTEEN_BIT or image.mode == "I"
        return Header(image.size, sixteen_bit, _is_deep_colour(image), image.has_transparency_data and not sixteen_bit)


def max_value(path: str | os.PathLike[str]) -> int:
    """The largest value in a 16-bit file.

    Raises:
        DataError: see `decoded`.
    """
    with _open_raw(path) as raw:
        return _value_range(raw)[1]


def read_transparency(path: str | os.PathLike[str]) -> Transparency:
    """What a file with an alpha channel (`Header.has_alpha`) shows.

    Raises:
        DataError: see `decoded`.
    """
    with _open_raw(path) as raw:
        return measure_transparency(raw.raw(box) for box in boxes(raw))


@contextlib.contextmanager
def _open_raw(path: str | os.PathLike[str]) -> Iterator[_StoredImage]:
    """A decoded file, unconverted."""
    with _open_within_budget(Path(path)) as (image, file):
        try:
            cut = _load(image, file)
        except Exception as error:  # as in `_to_tiled`
            raise DataError(f"{path} is damaged or truncated and does not decode: {error}") from error
        yield _StoredImage(cut, image.size, 1, np.asarray, 1)


def _check_complete(image: Image.Image, file: BinaryIO) -> None:
    """Refuse a PNG or a baseline JPEG with missing pixels (OSError). `image` was loaded from `file`."""
    if image.format == "PNG":
        have, promised = _png_pixel_bytes(file)
        if have < promised:
            raise OSError(f"it ends early: {have} of the {promised} bytes of its pixels are there")
    elif image.format == "JPEG" and _is_last_corner_uniform(image) and _jpeg_ends_early(file):
        raise OSError("its compressed data ends before its last row")


def _png_pixel_bytes(file: BinaryIO) -> tuple[int, int]:
    """Bytes of pixel data that a PNG holds (at most what it promises), and bytes that it promises."""
    file.seek(8)
    promised = have = 0
    inflate = zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IHDR":
            promised = _png_promised_bytes(file.read(length))
        elif kind == b"IDAT":
            have += _inflated_bytes(inflate, file, length)
            if have >= promised or inflate.eof:
                break
        elif kind == b"IEND":
            break
        else:
            file.seek(length, 1)
        file.seek(4, 1)  # the checksum, which Pillow has verified
    return min(have, promised), promised


def _inflated_bytes(inflate: zlib._Decompress, file: BinaryIO, length: int) -> int:
    """How many bytes a chunk inflates to; none of them is kept."""
    count = 0
    while length > 0 and not inflate.eof:
        part = file.read(min(length, _CHUNK))
        if not part:
            break
        length -= len(part)
        while part and not inflate.eof:
            count += len(inflate.decompress(part, _CHUNK))
            part = inflate.unconsumed_tail
    file.seek(length, 1)
    return count


def _png_promised_bytes(header: bytes) -> int:
    """Bytes of all rows, each with its filter byte, by the chunk IHDR."""
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] * _PNG_CHANNELS.get(header[9], 1)
    passes = _ADAM7_PASSES if header[12] else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _is_last_corner_uniform(image: Image.Image) -> bool:
    """Whether the last corner has a single colour, as decoders fill in for missing data."""
    corner = np.asarray(
        image.crop((max(0, image.width - _CORNER_PX), max(0, image.height - _CORNER_PX), image.width, image.height))
    )
    return bool((corner == corner[-1, -1]).all())


def _jpeg_ends_early(file: BinaryIO) -> bool:
    """Whether a baseline JPEG of one scan lacks data: its end marker is replaced by zeros, and it is decoded again.

    A decoder that has all blocks stops there. One that lacks some fails, since it needs more than a few zeros.
    """
    file.seek(0)
    content = file.read(MAX_IMAGE_BYTES)
    at, baseline = 2, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        baseline |= marker in (0xC0, 0xC1)
        at += 2 + length
        if marker == 0xDA:
            break
    else:
        return False
    end = _JPEG_MARKER.search(content, at)
    if not baseline or end is None or content[end.start() + 1] != 0xD9:
        return False  # progressive, or in several scans
    probe = Image.open(BytesIO(content[: end.start()] + bytes(16)), formats=("JPEG",))
    probe.draft(probe.mode, (1, 1))  # decodes at an eighth of the size: reads all data in little memory
    try:
        probe.load()
    except OSError:
        return True
    return False
