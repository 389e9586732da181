"""The data set of coloured icons: 20 classes of emoji as four makers draw them, 64×64 with alpha, as they are shipped.

A class is a kind of thing with nine variants (`heart`: in nine colours). The icons of one maker are the test split.
The other variant has other classes and holds out another maker.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from real_archives import unknown_folder

from vae_edge.data.random_numbers import permutation
from vae_edge.errors import DataError


@dataclass(frozen=True)
class Maker:
    """A package of icons on the npm registry: its version and the SHA-256 of its archive."""

    package: str
    version: str
    sha256: str


MAKERS = {
    "google": Maker(
        "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
    "twitter": Maker(
        "emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
    "apple": Maker(
        "emoji-datasource-apple", "16.0.0", "b34d1665e136f163b0d4433318df151895b785186e8c729b2211b43017945075"
    ),
    "facebook": Maker(
        "emoji-datasource-facebook", "16.0.0", "017038cf5a4e7fcf03dd9133cbed43d4c281c4b3ce7b927c7160261b92b8821e"
    ),
}
CLASSES = Path(__file__).with_name("real_icons.json")
HELD_OUT = {"a": "twitter", "b": "google"}

UNKNOWN = {
    "a": {
        "objects": ("household", "office", "computer", "tool", "musical-instrument", "light & video", "medical"),
        "signs": ("arrow", "alphanum", "av-symbol", "warning", "transport-sign", "religion"),
        "scenes": ("place-building", "place-geographic", "place-other", "food-prepared", "drink", "sky & weather"),
    },
    "b": {
        "objects": ("household", "office", "computer", "phone", "medical", "science", "lock", "money"),
        "signs": ("alphanum", "av-symbol", "warning", "transport-sign", "religion", "geometric"),
        "animals": ("animal-mammal", "animal-bird", "animal-marine", "plant-flower", "food-fruit"),
    },
}
"""The sub-categories that the unknown icons come from. What belongs to a class is left out."""
NEAR = {"a": ("moon", "sun_with_face", "clock", "compass"), "b": ("arrow", "hat", "cloud")}
SKIN_TONES = {"2": "1F3FB", "3": "1F3FC", "4": "1F3FD", "5": "1F3FE", "6": "1F3FF"}


def read_classes() -> dict[str, dict[str, list[str]]]:
    """For each variant of the set, the short names of each class's icons; `/2` to `/6` is a skin tone."""
    tables: dict[str, dict[str, list[str]]] = json.loads(CLASSES.read_text(encoding="utf-8"))
    return tables


class Icons:
    """The icons of one maker, in its unpacked package."""

    def __init__(self, maker: str, package: Path) -> None:
        self.maker, self.folder = maker, package / "img" / maker / "64"
        entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
        self.entries: dict[str, dict[str, object]] = {entry["short_name"]: entry for entry in entries}

    def path(self, variant: str) -> Path | None:
        """The file of a variant, as `read_classes` gives it; None where the maker has none."""
        name, _, tone = variant.partition("/")
        entry = self.entries.get(name, {})
        if tone:
            entry = entry.get("skin_variations", {}).get(SKIN_TONES[tone], {})
        path = self.folder / str(entry.get("image", ""))
        return path if path.is_file() else None


def unknown_variants(makers: Mapping[str, Icons], variant: str, kind: str, count: int, seed: int) -> list[str]:
    """Short names of icons that all makers have and that belong to no class."""
    known = {name.partition("/")[0] for names in read_classes()[variant].values() for name in names}
    first = next(iter(makers.values()))
    names = sorted(
        name
        for name, entry in first.entries.items()
        if entry["subcategory"] in UNKNOWN[variant][kind]
        and name not in known
        and not any(part in name for part in NEAR[variant])
        and all(icons.path(name) for icons in makers.values())
    )
    return [names[index] for index in permutation(len(names), seed)[:count]]


def copy(makers: Iterable[Icons], variants: Iterable[str], folder: Path) -> None:
    """Copy the icons to `folder/MAKER__VARIANT.png`.

    Raises:
        DataError: a maker has no such icon.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for icons in makers:
        for variant in variants:
            path = icons.path(variant)
            if path is None:
                raise DataError(f"{icons.folder} has no icon {variant!r}")
            shutil.copyfile(path, folder / f"{icons.maker}__{variant.replace('/', '-tone')}.png")


def write(out: Path, packages: Mapping[str, Path], variant: str, unknown: int, seed: int) -> None:
    """Write the set: `train/CLASS/MAKER__VARIANT.png` and `test/…`, and beside it `SET-unknown/KIND/…`.

    Args:
        packages: the unpacked package of each maker.
        unknown: icons of each kind, of each maker.
    """
    makers = {maker: Icons(maker, package) for maker, package in packages.items()}
    for name, variants in read_classes()[variant].items():
        for maker, icons in makers.items():
            split = "test" if maker == HELD_OUT[variant] else "train"
            copy([icons], variants, out / split / name)
    for kind in UNKNOWN[variant]:
        names = unknown_variants(makers, variant, kind, unknown, seed)
        copy(makers.values(), names, unknown_folder(out) / kind)
