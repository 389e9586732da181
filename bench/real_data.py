"""Writes three data sets of real pictures as folders of image files, from archives of packages that it downloads.

    python bench/real_data.py OUT [--set characters icons photographs] [--variant a] [--seed 0] [--archives DIR]

Each set is made so that what is held out is of another kind than what is trained on, as it is where a model is used:

| set | classes | held out | unknown |
|---|---|---|---|
| characters | 36 printed characters, 64×64, grey | 19 of 86 font families | lower case, look-alikes, symbols, CJK |
| icons | 20 kinds of emoji, 64×64, with alpha | one of four makers | objects, signs, scenes |
| photographs | 15 pictures, crops of 128×128 | a third of each picture's regions | crops of four other pictures |

`OUT/SET/train/CLASS/GROUP__NUMBER.png` is a training image, and `OUT/SET/test/…` one that is held out. Its name begins
with its group: the font family, the maker, the region. Unknown images lie in `OUT/SET-unknown/KIND/`. `OUT/SET.json`
says what the set was made of. `--variant b` makes each set of other fonts, classes and regions, so that nobody need
choose settings on the set that they are measured on. The same seed gives the same images, with the same FreeType and
libjpeg; `OUT/SET.json` has a digest.

| what | from | licence |
|---|---|---|
| fonts | 120 packages of Debian 12's main section (`real_fonts.json`) | free; each archive has its own |
| icons' names and kinds | `emoji-datasource-*` 16.0.0, npm | MIT |
| icons of Google, of Twitter | the same | Apache 2.0; CC BY 4.0 |
| icons of Apple, of Facebook | the same | © Apple, © Facebook: to measure on, not to pass on |
| astronaut, galaxies | scikit-image: NASA, HubbleSite | public domain |
| brick, gravel; grass | scikit-image: CC0Textures; linolafett, DeviantArt | CC0 |
| camera; cat; coffee | scikit-image: Lav Varshney; Stefan van der Walt; Rachel Michetti | CC0 |
| clock; text | scikit-image: Stefan van der Walt; Wikipedia | public domain |
| coins; tissue | scikit-image: Brooklyn Museum; CMMI | no known copyright restrictions |
| moon; page | scikit-image | none is stated |
| motorcycle | scikit-image: Middlebury stereo benchmark (Scharstein et al. 2014) | none is stated |
| retina; rocket | scikit-image: Mikael Häggström; SpaceX | CC0; public domain |
| china; flower | scikit-learn: danielbuechele; vultilion, both Flickr | CC BY 2.0 |

What is written is for measuring on; it is not part of the package.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import real_characters
import real_icons
import real_photographs
from PIL import features
from real_archives import debian_packages, npm_package, python_files, unknown_folder

from vae_edge.errors import ConfigError, DataError, VaeEdgeError
from vae_edge.files import check_folder, write_json

SETS = ("characters", "icons", "photographs")
VARIANTS = ("a", "b")
ARCHIVES = Path("runs/archives")


@dataclass(frozen=True)
class Counts:
    """Images of a class to train on and to test, and unknown images of each kind."""

    train: int
    test: int
    unknown: int


COUNTS = {"characters": Counts(168, 50, 420), "photographs": Counts(160, 80, 100)}
UNKNOWN_ICONS = 48  # of each kind and maker


@dataclass(frozen=True)
class Sources:
    """Where the archives lie, and what may differ from the table.

    Attributes:
        archives: folder of the downloads.
        any_version: draw with fonts of other versions as well.
    """

    archives: Path
    any_version: bool = False


def write_characters(out: Path, variant: str, seed: int, sources: Sources, counts: Counts) -> dict[str, Any]:
    """Write the set of characters; what it was made of."""
    roles = {f"{variant} train", f"{variant} test", "cjk"}
    packages = {family.package for family in real_characters.families().values() if roles & set(family.roles)}
    versions = debian_packages(packages, sources.archives)
    real_characters.write(
        *(out, sources.archives / "debian", variant, counts.train, counts.test, counts.unknown, seed),
        any_version=sources.any_version,
    )
    return {"debian": versions, "freetype": features.version_module("freetype2")}


def write_icons(out: Path, variant: str, seed: int, sources: Sources, unknown: int = UNKNOWN_ICONS) -> dict[str, Any]:
    """Write the set of icons; what it was made of."""
    folders = {}
    for maker, source in real_icons.MAKERS.items():
        parts = ("emoji.json", f"img/{maker}/64/")
        folders[maker] = npm_package(source.package, source.version, source.sha256, sources.archives, parts)
    real_icons.write(out, folders, variant, unknown, seed)
    return {"npm": {source.package: source.version for source in real_icons.MAKERS.values()}}


def write_photographs(out: Path, variant: str, seed: int, sources: Sources, counts: Counts) -> dict[str, Any]:
    """Write the set of photographs; what it was made of."""
    files: dict[str, Path] = {}
    for distribution, package in (("scikit-image", "skimage/"), ("scikit-learn", "sklearn/")):
        wanted = [picture.file for picture in real_photographs.PICTURES.values() if picture.file.startswith(package)]
        files |= python_files(distribution, wanted, sources.archives)
    real_photographs.write(out, files, variant, counts.train, counts.test, counts.unknown, seed)
    return {"pypi": ["scikit-image", "scikit-learn"], "libjpeg": features.version("libjpeg_turbo")}


def write_set(name: str, out: Path, variant: str, seed: int, sources: Sources) -> dict[str, Any]:
    """Write `out/NAME`, `out/NAME-unknown` and `out/NAME.json`; the content of the last.

    Raises:
        ConfigError: there is no such set or variant.
        DataError: the set is there already, or something that it is made of cannot be had.
    """
    if name not in SETS or variant not in VARIANTS:
        raise ConfigError(f"{name}, variant {variant}: expected one of {', '.join(SETS)}, and a or b")
    target = out / name
    for path in (target, unknown_folder(target)):
        if path.exists():
            raise DataError(f"{path} exists already; remove it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        written = Path(temporary) / name
        if name == "icons":
            made_of = write_icons(written, variant, seed, sources)
        else:
            write = write_characters if name == "characters" else write_photographs
            made_of = write(written, variant, seed, sources, COUNTS[name])
        about = {
            "set": name,
            "variant": variant,
            "seed": seed,
            "images": {
                "train": count_files(written / "train"),
                "test": count_files(written / "test"),
                "unknown": count_files(unknown_folder(written)),
            },
            "digest": {folder.name: digest(folder) for folder in (written, unknown_folder(written))},
            "pillow": PIL.__version__,
            **made_of,
        }
        unknown_folder(written).rename(unknown_folder(target))
        written.rename(target)
    write_json(out / f"{name}.json", about)
    return about


def count_files(folder: Path) -> int:
    """Files at any depth."""
    return sum(path.is_file() for path in folder.rglob("*"))


def digest(folder: Path) -> str:
    """The SHA-256 of the names and the contents of a folder's files."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sets; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", nargs="+", choices=SETS, default=SETS, metavar="NAME", help="default: all three")
    parser.add_argument("--variant", choices=VARIANTS, default="a", help="b: other fonts, classes and regions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--archives", type=Path, default=ARCHIVES, help=f"where downloads lie (default: {ARCHIVES})")
    parser.add_argument("--any-version", action="store_true", help="draw with fonts of other versions as well")
    arguments = parser.parse_args(argv)
    try:
        check_folder(arguments.out)
        check_folder(arguments.archives)
        for name in arguments.set:
            sources = Sources(arguments.archives, arguments.any_version)
            about = write_set(name, arguments.out, arguments.variant, arguments.seed, sources)
            images = ", ".join(f"{count} {split}" for split, count in about["images"].items())
            print(f"{arguments.out / name}: {images} images", flush=True)
    except (VaeEdgeError, OSError) as error:
        print(f"real_data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
