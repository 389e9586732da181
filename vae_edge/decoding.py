"""Image files and Pillow images, of whatever mode, to grey or RGB pixels; says each step that changed what is seen.

Geometry and polarity are left to `vae_edge.images`.
"""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_edge.errors import DataError

MAX_PIXELS = 64_000_000
"""More pixels than this are never decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_PLAIN = frozenset({"L", "RGB"})
_CONVERTED = {"1": "L", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "RGBX": "RGB"}
_MATTE_SHARE = 0.125
"""A light image is drawn ink on a transparent page only if at least this share of the page is transparent."""

_OPENING = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """An image as pixels (mode L or RGB), and what it was before."""

    image: Image.Image
    source: str
    size: tuple[int, int]
    mode: str
    steps: tuple[str, ...]


def decode(source: str | os.PathLike[str] | Image.Image) -> Decoded:
    """Decode a file's first frame, or convert a Pillow image, to mode L or RGB.

    The EXIF orientation is applied; alpha is composed on white, or on black where the visible ink is light;
    16-bit grey is scaled from 0..65535 to 0..255.

    Raises:
        DataError: the file is missing, no image, truncated, has no pixels or too many, or has floating-point or
            32-bit pixels, whose range nobody knows.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "") or "the Pillow image"
        return _to_pixels(source, name, [])
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"An image is a path or a Pillow image, but a {type(source).__name__} came.")
    path = Path(source)
    with _open(path) as image:
        steps = ["took the first frame of an animation"] if getattr(image, "is_animated", False) else []
        return _to_pixels(image, str(path), steps)


def _open(path: Path) -> Image.Image:
    """Read the header only. The lock is there because Python's warning filters belong to the whole process."""
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} was not decoded: {_too_large(error)}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, but an image file was expected; name the files in it.") from error
    except UnidentifiedImageError as error:
        state = "is empty" if path.stat().st_size == 0 else "does not decode as an image"
        raise DataError(f"{path} {state}; expected one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # a decoder fed hostile bytes may raise anything
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _too_large(detail: object) -> str:
    return f"it has more than {MAX_PIXELS // 1_000_000} million pixels, which may be a decompression bomb ({detail})."


def _to_pixels(image: Image.Image, name: str, steps: list[str]) -> Decoded:
    size, mode = image.size, image.mode
    if 0 in size:
        raise DataError(f"{name} has no pixels: it is {size[0]}×{size[1]}.")
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{name} was not decoded: {_too_large(f'{size[0]}×{size[1]}')}")
    try:
        image.load()
    except Exception as error:  # as above
        raise DataError(f"{name} is damaged or truncated and does not decode: {error}") from error
    in_memory = image.format is None
    image = _turn_by_exif(image, steps)
    if mode in _SIXTEEN_BIT or mode == "I":
        image = _scale_sixteen_bit(image, name, in_memory, steps)
    elif image.has_transparency_data:
        image = _compose(image, steps)
    elif mode == "P":
        image = _palette_to_pixels(image, steps)
    elif mode in _CONVERTED:
        image = image.convert(_CONVERTED[mode])
        steps.append(f"converted from {'1-bit' if mode == '1' else mode}")
    elif mode not in _PLAIN:
        hint = " Convert floating-point pixels to 8 bit first, since their range is not known." if mode == "F" else ""
        raise DataError(f"{name} has pixels of mode {mode}; expected 8-bit grey, RGB, RGBA, palette or CMYK.{hint}")
    return Decoded(image, name, size, mode, tuple(steps))


def _turn_by_exif(image: Image.Image, steps: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
        turned = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    except Exception as error:  # damaged EXIF does not damage the pixels
        steps.append(f"ignored its unreadable EXIF data ({error})")
        return image
    if turned is not image:
        steps.append(f"turned as its EXIF orientation {orientation} says")
    return turned


def _scale_sixteen_bit(image: Image.Image, name: str, in_memory: bool, steps: list[str]) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and (in_memory or values.min() < 0 or values.max() > 0xFFFF):
        raise DataError(
            f"{name} has 32-bit pixels (mode I) from {values.min()} to {values.max()}, whose range is not known; "
            "convert it to 8 bit first, for example with image.convert('L') where the values are 0 to 255."
        )
    steps.append("scaled from 16 to 8 bit")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _palette_to_pixels(image: Image.Image, steps: list[str]) -> Image.Image:
    steps.append("looked up its palette")
    return _grey_if_grey(image.convert("RGB"))


def _grey_if_grey(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image


def _compose(image: Image.Image, steps: list[str]) -> Image.Image:
    """Lay a transparent image on a page: white, unless its ink is light and there is a page to see through to."""
    grey = image.mode in {"L", "LA", "La"}
    layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = np.asarray(layers.getchannel("A"), dtype=np.float32) / 255
    if alpha.min() == 1:
        steps.append("dropped its alpha channel, which is opaque everywhere")
        pixels = layers.convert("RGB")
    else:
        luminance = np.asarray(layers.convert("RGB").convert("L"), dtype=np.float32)
        visible = float(alpha.sum())
        light = visible > 0 and float((luminance * alpha).sum()) / visible > 127
        page = "black" if light and alpha.mean() <= 1 - _MATTE_SHARE else "white"
        reason = ", since what is visible is light" if page == "black" else ""
        steps.append(f"laid its transparency on {page}{reason}")
        pixels = Image.alpha_composite(Image.new("RGBA", layers.size, page), layers).convert("RGB")
    return pixels.getchannel("R") if grey else _grey_if_grey(pixels)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of an image file as stored, from its header alone.

    Raises:
        DataError: the file is missing or no image.
    """
    with _open(Path(path)) as image:
        return image.size
