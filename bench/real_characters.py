"""The data set of printed characters: 36 classes, drawn with the fonts that `real_fonts.json` lists.

A picture is one character, upright, dark on light or light on dark, 64×64, grey. Size, place, width, contrast,
lighting, sharpness and noise vary as they do on photographs of labels. The font families of `test` occur in no other
split. A face is used only where its characters are real and told apart (`check_face`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageFont
from real_archives import unknown_folder

from vae_edge.data.random_numbers import permutation, uniform
from vae_edge.errors import DataError
from vae_edge.files import sha256

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWER = "aeft"
"""Lower-case letters that, rotated by any angle, look like no digit and no capital."""
LOOKALIKES = "bcdghijklmnopqrsuvwxyz"
"""The others: m is a 3 on its side, r a J upside down, h a 4."""
SYMBOLS = "&@#%?+=*{}~§¶÷±«»©®†"
CJK = "あおきぬねまむめゆれわをアオキネポホ永東書龍愛語馬雨雪風春夏秋冬海火花茶酒魚猫犬家車電話学校"
UNKNOWN = {"lower": LOWER, "lookalikes": LOOKALIKES, "symbols": SYMBOLS, "cjk": CJK}

SIZE = 64
OVERSAMPLING = 4
FONT_SIZE = 256  # pixels, of which a character is reduced
FIT = 56.0  # pixels: the diagonal of the largest character, so that hardly anything leaves the frame when it is rotated
NO_CHARACTERS = ("\U0010fffe", "\u0378")  # code points without a character
NEAR_COPY = 0.04  # mean difference in shape below which two families are copies of one design
FONTS = Path(__file__).with_name("real_fonts.json")


@dataclass(frozen=True)
class Family:
    """A font family.

    Attributes:
        roles: what it draws: `a train`, `a test`, `b train`, `b test`, and `cjk`.
        kind: `serif`, `sans`, `mono`, `slab`, `hand`, `display` or `cjk`.
        package: of Debian.
        faces: the SHA-256 of each file of the package that is used.
    """

    name: str
    roles: Sequence[str]
    kind: str
    package: str
    faces: Mapping[str, str]

    @property
    def slug(self) -> str:
        """The name as it stands in file names."""
        return "".join(letter for letter in self.name if letter.isalnum())


def families() -> dict[str, Family]:
    """All families by name."""
    table = json.loads(FONTS.read_text(encoding="utf-8"))
    return {name: Family(name, **entry) for name, entry in table.items()}


Faces = Mapping[str, Sequence[ImageFont.FreeTypeFont]]
"""The faces of each family, by the name that files have."""

# --------------------------------------------------------------------------------------------------- characters


def glyph(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8]:
    """The character's coverage, 0 to 255, cropped to what is drawn: uint8 [H, W]; [0, 0] where it draws nothing."""
    mask = font.getmask(character, mode="L")
    pixels = np.asarray(mask, np.uint8).reshape(mask.size[1], mask.size[0])
    rows, columns = np.nonzero(pixels > 127)
    if not len(rows):
        return np.zeros((0, 0), np.uint8)
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def shape_difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean difference of two characters stretched to one size: 0 where they are one shape, up to 1."""
    return float(np.abs(_stretched(one) - _stretched(other)).mean())


def _stretched(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The character as float32 [32, 32], 0 to 1."""
    square = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(square, np.float32) / np.float32(255)


def near_copies(faces: Faces, limit: float) -> list[tuple[str, str]]:
    """Families of which two faces differ by less than `limit` in shape, as a mean over the classes."""
    shapes = {
        name: [np.stack([_stretched(glyph(font, c)) for c in CLASSES]) for font in of] for name, of in faces.items()
    }
    return [
        (one, other)
        for one, other in itertools.combinations(sorted(shapes), 2)
        if min(np.abs(a - b).mean() for a in shapes[one] for b in shapes[other]) < limit
    ]


def check_face(font: ImageFont.FreeTypeFont, characters: Sequence[str] = CLASSES) -> str | None:
    """Why the face is of no use, or None: a character is missing, or a reader could not tell 0 from O or 1 from I."""
    drawn = {character: glyph(font, character) for character in characters}
    missing = [glyph(font, character) for character in NO_CHARACTERS]
    for character, pixels in drawn.items():
        if not pixels.size or any(np.array_equal(pixels, other) for other in missing):
            return f"it has no character {character!r}"
    if "0" in drawn and "O" in drawn:
        zero, letter = drawn["0"], drawn["O"]
        if zero.shape[0] < 0.85 * letter.shape[0] or _same(zero, letter, 0.07, (0.9, 1.12)):
            return "its 0 looks like its O"
    if "1" in drawn and "I" in drawn and _same(drawn["1"], drawn["I"], 0.1, (0.75, 1.3)):
        return "its 1 looks like its I"
    return None


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8], difference: float, aspects: tuple[float, float]) -> bool:
    """Whether the shapes differ by less, and the ratio of their aspects lies between the two."""
    ratio = (one.shape[1] / one.shape[0]) / (other.shape[1] / other.shape[0])
    return aspects[0] < ratio < aspects[1] and shape_difference(one, other) < difference


def has_lower_case(font: ImageFont.FreeTypeFont) -> bool:
    """Whether the lower-case letters are there and are no small capitals."""
    if check_face(font, LOWER) is not None:
        return False
    return all(shape_difference(glyph(font, letter), glyph(font, letter.upper())) >= 0.12 for letter in LOWER)


@cache
def capital_height(font: ImageFont.FreeTypeFont) -> int:
    """Pixels of the height of an H."""
    return max(1, glyph(font, "H").shape[0])


def draw(font: ImageFont.FreeTypeFont, character: str, seed: int, stream: int) -> NDArray[np.uint8]:
    """A picture of the character, uint8 [64, 64]. The same seed and stream give the same picture."""
    random = uniform(16 + 2 * SIZE * SIZE, seed, stream)
    pixels = glyph(font, character)
    capital = capital_height(font)
    scale = (22 + 20 * random[0]) / capital  # capitals are 22 to 42 pixels high
    width, height = (max(1.0, side * scale) for side in pixels.shape[::-1])
    width *= 0.9 + 0.2 * random[1]
    shrink = min(1.0, FIT / float(np.hypot(width, height)))
    width, height = width * shrink, height * shrink

    big = OVERSAMPLING * SIZE
    drawn = Image.fromarray(pixels).resize(
        (max(1, round(OVERSAMPLING * width)), max(1, round(OVERSAMPLING * height))), Image.Resampling.BOX
    )
    free = min(5.0, (SIZE - max(width, height)) / 2)
    left, top = (
        (big - side) // 2 + round(OVERSAMPLING * free * (2 * shift - 1))
        for side, shift in zip(drawn.size, random[2:4], strict=True)
    )
    page = Image.new("L", (big, big))
    page.paste(drawn, (int(left), int(top)))
    blurred = page.filter(ImageFilter.GaussianBlur(float(OVERSAMPLING * 0.9 * random[4])))
    coverage = np.asarray(blurred.reduce(OVERSAMPLING), np.float64) / 255

    contrast = 70 + 150 * random[5]
    paper = contrast + 15 + (225 - contrast) * random[6]
    ink = paper - contrast
    if random[7] < 0.5:
        paper, ink = ink, paper
    across, down = (np.linspace(-1, 1, SIZE) for _ in range(2))
    light = 20 * ((2 * random[8] - 1) * across[None, :] + (2 * random[9] - 1) * down[:, None])
    noise = np.sqrt(-2 * np.log1p(-random[16 : 16 + SIZE * SIZE])) * np.cos(2 * np.pi * random[16 + SIZE * SIZE :])
    image = paper + (ink - paper) * coverage + light + 8 * random[10] * noise.reshape(SIZE, SIZE)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------- files


def find_faces(role: str, root: Path, any_version: bool = False) -> Faces:
    """The faces of the families with a role, of 256 pixels, from `root/PACKAGE/usr/share/fonts/…`.

    Args:
        any_version: use faces whose files are not those of the table, and leave out those that cannot be used.

    Raises:
        DataError: a file is missing or another one, or a face cannot draw its characters.
    """
    found: dict[str, list[ImageFont.FreeTypeFont]] = {}
    others = []
    for family in (entry for entry in families().values() if role in entry.roles):
        for file, digest in family.faces.items():
            path = root / family.package / file
            if not path.is_file() or sha256(path) != digest:
                others.append(f"{path.name} of {family.package}")
                if not any_version or not path.is_file():
                    continue
            font = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
            why = check_face(font, CJK[:1]) if role == "cjk" else check_face(font)
            if why is None:
                found.setdefault(family.slug, []).append(font)
            elif not any_version:
                raise DataError(f"{path.name} of {family.package} cannot be used: {why}")
    if others and not any_version:
        raise DataError(
            f"{len(others)} font files are missing or others than those that figures were measured on, such as "
            f"{', '.join(others[:3])}. They are those of Debian 12. Add --any-version to draw with what there is."
        )
    if not found:
        raise DataError(f"{root} holds no font that can be used; expected those of the role {role!r}")
    return found


def write_class(folder: Path, character: str, faces: Faces, count: int, seed: int, stream: int) -> None:
    """Write `count` pictures of the character, from each family as many, as `folder/FAMILY__NUMBER.png`."""
    folder.mkdir(parents=True)
    names = sorted(faces)
    order = permutation(len(names), seed, stream)
    picks = uniform(count, seed, stream + 1)
    for index in range(count):
        name = names[order[index % len(names)]]
        font = faces[name][int(picks[index] * len(faces[name]))]
        image = draw(font, character, seed, stream + 2 + index)
        Image.fromarray(image).save(folder / f"{name}__{index:03d}.png")


def write(
    out: Path, root: Path, variant: str, train: int, test: int, unknown: int, seed: int, any_version: bool = False
) -> None:
    """Write the set: `train/A/FAMILY__NUMBER.png` and `test/…`, and beside it `SET-unknown/KIND/U+CODE/…`.

    Unknown characters are drawn with the faces of the test split, those of CJK with faces that have them.

    Args:
        root: the unpacked packages.
        train, test: pictures a class. unknown: pictures of each kind.
        any_version: as `find_faces`.

    Raises:
        DataError: as `find_faces`, or two families are copies of one design.
    """
    streams = itertools.count(0, 1 << 16)
    splits = {split: find_faces(f"{variant} {split}", root, any_version) for split in ("train", "test")}
    if copies := near_copies({**splits["train"], **splits["test"]}, NEAR_COPY):
        raise DataError(f"the fonts {' and '.join(copies[0])} are copies of one design; one of them has to go")
    for split, count in (("train", train), ("test", test)):
        for character in CLASSES:
            write_class(out / split / character, character, splits[split], count, seed, next(streams))
    small = select(splits["test"], has_lower_case)
    cjk = find_faces("cjk", root, any_version)
    for kind, characters in UNKNOWN.items():
        for index, character in enumerate(characters):
            able = select(cjk if kind == "cjk" else small, lambda font, text=character: check_face(font, text) is None)
            each = unknown * (index + 1) // len(characters) - unknown * index // len(characters)
            folder = unknown_folder(out) / kind / f"U+{ord(character):04X}"
            write_class(folder, character, able, each, seed, next(streams))


def select(faces: Faces, accept: Callable[[ImageFont.FreeTypeFont], bool]) -> Faces:
    """The faces that are accepted."""
    chosen = {name: [font for font in fonts if accept(font)] for name, fonts in faces.items()}
    return {name: fonts for name, fonts in chosen.items() if fonts}
