"""Images of a data set on one page that a person looks at: a row for each class, columns by angle."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae_edge.data.dataset import LabelledImages

"""What `generate` calls the sheet in the folder that it writes, where it is no image without a class."""
COLUMNS = 12
_MOST_ANGLES = 36
_CELL = 56  # pixels that an image is wide at least
_FONT, _MARGIN, _LONGEST = 15, 8, 220
_PAGE, _INK = 64, 235


def contact_sheet(data: LabelledImages, columns: int = COLUMNS) -> Image.Image:
    """The first images of each class that has any, with the classes' names on the left.

    Where the images come with a few angles (at most 36), columns go by angle in the order in which these appear, as
    many columns for each as fit, with the angle above; else columns are the first images as they come.
    """
    angles = list(dict.fromkeys(np.round(data.angles_deg).astype(int).tolist())) if data.angles_deg is not None else []
    by_angle = 1 < len(angles) <= _MOST_ANGLES
    heads = [angle for angle in angles for _ in range(max(1, columns // len(angles)))] if by_angle else []
    rows: list[np.ndarray] = []
    names: list[str] = []
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        if len(members):
            rows.append(_by_angle(data, members, heads) if by_angle else members[:columns])
            names.append("".join(letter if letter.isprintable() else " " for letter in name))
    return _draw(data.images, rows, names, [f"{angle}°" for angle in heads])


def _by_angle(data: LabelledImages, members: np.ndarray, heads: list[int]) -> np.ndarray:
    """For each column one of the class's images at that angle, or -1 where there are no more."""
    assert data.angles_deg is not None
    of_angle = {angle: members[np.round(data.angles_deg[members]) == angle].tolist() for angle in heads}
    return np.array([of_angle[angle].pop(0) if of_angle[angle] else -1 for angle in heads], dtype=np.int64)


def _draw(images: np.ndarray, rows: list[np.ndarray], names: list[str], heads: list[str]) -> Image.Image:
    """Cells one pixel apart, each pixel of an image a whole number of pixels wide."""
    font = ImageFont.load_default(size=_FONT)
    names = [_shortened(name, font) for name in names]
    _, side, _, channels = images.shape
    zoom = -(-_CELL // side)
    step = side * zoom + 1
    left = int(max(font.getlength(name) for name in names)) + 2 * _MARGIN
    top = _FONT + _MARGIN if heads else 1
    size = (left + max(map(len, rows)) * step, top + len(rows) * step)
    page = Image.new("L" if channels == 1 else "RGB", size, _PAGE if channels == 1 else (_PAGE,) * 3)
    pen, ink = ImageDraw.Draw(page), _INK if channels == 1 else (_INK,) * 3
    for y, (row, name) in enumerate(zip(rows, names, strict=True)):
        pen.text((left - _MARGIN, top + y * step + step / 2), name, fill=ink, font=font, anchor="rm")
        for x, index in enumerate(row):
            if index >= 0:
                image = Image.fromarray(images[index, ..., 0] if channels == 1 else images[index])
                large = image.resize((side * zoom, side * zoom), Image.Resampling.NEAREST)
                page.paste(large, (left + x * step, top + y * step))
    for x, head in enumerate(heads):
        if x == 0 or head != heads[x - 1]:
            pen.text((left + x * step, top - 4), head, fill=ink, font=font, anchor="ls")
    return page


def _shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(name) <= _LONGEST:
        return name
    while name and font.getlength(name + "…") > _LONGEST:
        name = name[:-1]
    return name + "…"
