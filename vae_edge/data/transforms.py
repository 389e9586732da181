"""New images from a data set: rotated copies, synthetic OOD images, and a contact sheet for a person to look at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

from vae_edge.data.dataset import LabelledImages
from vae_edge.data.random_numbers import permutation, uniform
from vae_edge.errors import ConfigError
from vae_edge.metrics import wrap_degrees

OOD_KINDS = ("blends of two", "shuffled quarters", "inverted", "drawn letters", "noise")
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYZ"  # without I, O and S, which look like digits

COLUMNS = 12
_MAX_ANGLES = 36
_MIN_CELL_PX = 56
_FONT_PX, _MARGIN_PX, _MAX_NAME_PX = 15, 8, 220
_BACKGROUND, _FOREGROUND = 64, 235  # grey levels of the contact sheet


def rotate_dataset(data: LabelledImages, range_deg: float = 180.0, seed: int = 0, fill: int = 0) -> LabelledImages:
    """Rotate each image by an angle of its own, bilinear; the same angles for the same seed.

    Args:
        data: images, upright or with known angles.
        range_deg: angles are uniform in [-range_deg, range_deg), counter-clockwise as displayed; at most 180.
        seed: chooses the angles.
        fill: the pixel value, 0 to 255, outside the frame (`InputSpec.fill`).

    Returns:
        the rotated images with `angles_deg` in (-180, 180]: this rotation added to the known one.

    Raises:
        ConfigError: the range is not between 0 and 180.
    """
    return rotate_by(data, draw_angles(len(data), range_deg, seed), fill)


def draw_angles(count: int, range_deg: float, seed: int) -> NDArray[np.float32]:
    """The angles of `rotate_dataset` for so many images, in degrees [count].

    Raises:
        ConfigError: the range is not between 0 and 180.
    """
    if not 0 <= range_deg <= 180:
        raise ConfigError(f"Images are rotated by 0 to 180 degrees either way, but {range_deg} came.")
    return ((uniform(count, seed) * 2 - 1) * range_deg).astype(np.float32)


def rotate_by(data: LabelledImages, angles: NDArray[np.float32], fill: int = 0) -> LabelledImages:
    """Rotate each image by its angle in degrees [N], as `rotate_dataset` does."""
    grey = data.images.shape[-1] == 1
    outside = fill if grey else (fill,) * 3
    images = np.empty(data.images.shape, np.uint8)
    for index, angle in enumerate(angles):
        image = Image.fromarray(data.images[index, ..., 0] if grey else data.images[index])
        pixels = np.asarray(image.rotate(float(angle), Resampling.BILINEAR, fillcolor=outside))
        images[index] = pixels[..., None] if grey else pixels
    total = angles if data.angles_deg is None else angles + data.angles_deg
    return replace(data, images=images, angles_deg=wrap_degrees(total).astype(np.float32))


def rotation_range(rotation: str) -> float:
    """The largest angle of a rotation setting, in degrees either way: 0 for `none`, 180 for `full`, or the number.

    Raises:
        ConfigError: for anything else.
    """
    if rotation == "none":
        return 0.0
    if rotation == "full":
        return 180.0
    try:
        degrees = float(rotation)
    except ValueError:
        degrees = float("nan")
    if not 0 < degrees <= 180:
        raise ConfigError(f"rotation {rotation!r}: expected none, full, or degrees above 0 up to 180")
    return degrees


def make_ood_images(
    images: NDArray[np.uint8], kind: str, seed: int = 0, letters_rotation_deg: float = 180.0
) -> NDArray[np.uint8]:
    """Synthetic out-of-distribution (OOD) images to test the anomaly score, as many as there are images given.

    Args:
        images: in-distribution images, uint8 [N, H, W, C].
        kind: one of `OOD_KINDS`: the brighter pixel of two images; the upper and the lower half exchanged, each
            shifted by a quarter of the width; dark and bright exchanged; white capital letters on black in a plain
            font, rotated; uniform noise.
        seed: chooses pairs, letters, angles and noise.
        letters_rotation_deg: letters are rotated by up to this angle either way: 180 is any angle, 0 is upright.

    Raises:
        ConfigError: an unknown kind, or a rotation that is not between 0 and 180 degrees.
    """
    if not 0 <= letters_rotation_deg <= 180:
        raise ConfigError(f"Letters are rotated by 0 to 180 degrees either way, but {letters_rotation_deg} came.")
    rng = np.random.default_rng(seed)
    if kind == "blends of two":
        order = rng.permutation(len(images))
        return np.maximum(images[order], images[np.roll(order, 1)])
    if kind == "shuffled quarters":
        height, width = images.shape[1:3]
        return np.roll(images, (height // 2, width // 2 // 2), axis=(1, 2))
    if kind == "inverted":
        return 255 - images
    if kind == "drawn letters":
        return _letters(images.shape, rng, letters_rotation_deg)
    if kind == "noise":
        return rng.integers(0, 256, images.shape, dtype=np.uint8)
    raise ConfigError(f"unknown kind {kind!r} of OOD images: expected one of {', '.join(OOD_KINDS)}")


def _letters(shape: tuple[int, ...], rng: np.random.Generator, rotation_deg: float) -> NDArray[np.uint8]:
    count, height, width, channels = shape
    font = ImageFont.load_default(size=min(height, width) * 0.75)
    result = np.empty(shape, np.uint8)
    for index in range(count):
        image = Image.new("L", (width, height))
        letter = LETTERS[int(rng.integers(len(LETTERS)))]
        ImageDraw.Draw(image).text((width / 2, height / 2), letter, fill=255, font=font, anchor="mm")
        rotated = image.rotate(float(rng.uniform(-rotation_deg, rotation_deg)), Resampling.BILINEAR)
        result[index] = np.asarray(rotated)[..., None].repeat(channels, 2)
    return result


def contact_sheet(data: LabelledImages, columns: int = COLUMNS, seed: int = 0) -> Image.Image:
    """A contact sheet: one row for each class that has images, with the class's name on the left.

    If the images have a few known angles (2 to 36), columns are grouped by angle, in the order in which the angles
    appear, with the angle above. Otherwise a row shows images from all over its class (`spread`), chosen by the seed.
    """
    angles = list(dict.fromkeys(np.round(data.angles_deg).astype(int).tolist())) if data.angles_deg is not None else []
    by_angle = 1 < len(angles) <= _MAX_ANGLES
    heads = [angle for angle in angles for _ in range(max(1, columns // len(angles)))] if by_angle else []
    rows: list[np.ndarray] = []
    names: list[str] = []
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        if len(members):
            chosen = _by_angle(data, members, heads) if by_angle else spread(data, members, columns, seed + label)
            rows.append(chosen)
            names.append("".join(letter if letter.isprintable() else " " for letter in name))
    return _paint_sheet(data.images, rows, names, [f"{angle}°" for angle in heads])


def spread(data: LabelledImages, members: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose some images so that all kinds are among them: int64, at most `count` of `members`, in their order.

    They are taken in turn from each group, or where there are no groups from each folder that files lie in. Of one
    group or folder they are evenly spaced in the order of the files, in which similar names are neighbours.

    Args:
        data: images.
        members: int64 [M], the indices to choose from.
        count: how many.
        seed: chooses the images, and the groups if they are more than `count`.
    """
    if len(members) <= count:
        return members
    parts: dict[str, list[int]] = {}
    for index in members.tolist():
        parts.setdefault(_part_of(data, index), []).append(index)
    names = [list(parts)[index] for index in permutation(len(parts), seed)]
    quotas = dict.fromkeys(names, 0)
    while (left := count - sum(quotas.values())) > 0:
        open_parts = [name for name in names if quotas[name] < len(parts[name])]
        for name in open_parts[:left]:
            quotas[name] += 1
    chosen: list[int] = []
    for number, (name, quota) in enumerate(quotas.items()):
        if quota:
            bounds = np.arange(quota + 1) * len(parts[name]) // quota  # one image of each interval
            within = bounds[:-1] + uniform(quota, seed, stream=1 + number) * np.diff(bounds)
            chosen += [parts[name][place] for place in within.astype(np.int64).tolist()]
    return members[np.isin(members, chosen)]


def _part_of(data: LabelledImages, index: int) -> str:
    """The group of an image, or without groups the folder of its file."""
    if data.groups is not None:
        return str(data.groups[index])
    return "" if data.files is None else str(data.files[index]).rpartition("/")[0]


def _by_angle(data: LabelledImages, members: np.ndarray, heads: list[int]) -> np.ndarray:
    """For each column the index of an image of the class at that angle, or -1 if there are no more."""
    assert data.angles_deg is not None
    of_angle = {angle: members[np.round(data.angles_deg[members]) == angle].tolist() for angle in heads}
    return np.array([of_angle[angle].pop(0) if of_angle[angle] else -1 for angle in heads], dtype=np.int64)


def _paint_sheet(images: np.ndarray, rows: list[np.ndarray], names: list[str], heads: list[str]) -> Image.Image:
    """Paint the sheet: cells one pixel apart, each image enlarged by a whole factor."""
    font = ImageFont.load_default(size=_FONT_PX)
    names = [_shortened(name, font) for name in names]
    _, height, width, channels = images.shape
    zoom = -(-_MIN_CELL_PX // min(height, width))
    step, row_step = width * zoom + 1, height * zoom + 1
    left = int(max(font.getlength(name) for name in names)) + 2 * _MARGIN_PX
    top = _FONT_PX + _MARGIN_PX if heads else 1
    size = (left + max(map(len, rows)) * step, top + len(rows) * row_step)
    sheet = Image.new("L" if channels == 1 else "RGB", size, _BACKGROUND if channels == 1 else (_BACKGROUND,) * 3)
    pen = ImageDraw.Draw(sheet)
    text_colour = _FOREGROUND if channels == 1 else (_FOREGROUND,) * 3
    for y, (row, name) in enumerate(zip(rows, names, strict=True)):
        pen.text((left - _MARGIN_PX, top + y * row_step + row_step / 2), name, fill=text_colour, font=font, anchor="rm")
        for x, index in enumerate(row):
            if index >= 0:
                image = Image.fromarray(images[index, ..., 0] if channels == 1 else images[index])
                large = image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
                sheet.paste(large, (left + x * step, top + y * row_step))
    for x, head in enumerate(heads):
        if x == 0 or head != heads[x - 1]:
            pen.text((left + x * step, top - 4), head, fill=text_colour, font=font, anchor="ls")
    return sheet


def _shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(name) <= _MAX_NAME_PX:
        return name
    while name and font.getlength(name + "…") > _MAX_NAME_PX:
        name = name[:-1]
    return name + "…"
