"""The scripts that make sets of real pictures: layout, splits without a common group, repetition, what is refused.

Nothing is downloaded. Fonts are those that matplotlib carries, icons and pictures are made here.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from vae_edge.data import load_dataset
from vae_edge.errors import ConfigError, DataError

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, found as they are when one of them is started."""
    sys.path.insert(0, str(BENCH))
    names = ("real_archives", "real_characters", "real_icons", "real_photographs", "real_data")
    yield {name.removeprefix("real_"): import_module(name) for name in names}
    sys.path.remove(str(BENCH))


def font_file(name: str) -> Path:
    spec = find_spec("matplotlib")
    assert spec and spec.origin
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name


def open_font(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(name), 256, layout_engine=ImageFont.Layout.BASIC)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def groups(folder: Path) -> set[str]:
    """What stands before `__` in the names of a split's files."""
    return {path.name.partition("__")[0] for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------- characters


class Alike:
    """A font that draws one character as another."""

    def __init__(self, font: ImageFont.FreeTypeFont, drawn_as: dict[str, str]) -> None:
        self.font, self.drawn_as = font, drawn_as

    def getmask(self, text: str, mode: str) -> Any:
        return self.font.getmask(self.drawn_as.get(text, text), mode=mode)


def test_a_face_is_used_only_where_its_characters_are_there_and_told_apart(bench: dict[str, ModuleType]) -> None:
    check, font = bench["characters"].check_face, open_font("DejaVuSerif.ttf")
    assert check(font) is None
    assert check(font, "永") == "it has no character '永'"
    assert check(Alike(font, {"0": "O"})) == "its 0 looks like its O"
    assert check(Alike(font, {"1": "I"})) == "its 1 looks like its I"
    assert check(Alike(font, {"0": "o"})) == "its 0 looks like its O"  # an old-style figure, lower than capitals
    assert bench["characters"].has_lower_case(font)
    assert not bench["characters"].has_lower_case(Alike(font, {letter: letter.upper() for letter in "aeft"}))


@pytest.mark.parametrize("character", ["0", "I", "W", "永"])
def test_a_character_stays_within_35_pixels_of_the_middle(
    bench: dict[str, ModuleType], character: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that hardly anything of it leaves the frame when it is rotated. Here it has full contrast, without noise."""
    module, font = bench["characters"], open_font("DejaVuSans-Bold.ttf")
    across = np.arange(64) - 31.5
    outside = np.hypot(*np.meshgrid(across, across)) > 35.5
    for stream in range(20):
        seen = module.uniform(16 + 2 * 64 * 64, 3, stream)
        seen[4:] = [0, 1, 1, 1, 0.5, 0.5, 0, *seen[11:]]
        monkeypatch.setattr(module, "uniform", lambda count, seed, stream, values=seen: values)
        image = module.draw(font, character, 3, stream)
        monkeypatch.undo()
        assert image.shape == (64, 64) and image.dtype == np.uint8 and np.ptp(image) > 200
        assert (image[outside] == image[0, 0]).all(), stream


def test_pictures_repeat_for_a_seed_and_are_dark_and_light(bench: dict[str, ModuleType]) -> None:
    draw, font = bench["characters"].draw, open_font("DejaVuSans.ttf")
    images = [draw(font, "R", 0, stream) for stream in range(40)]
    assert all(np.array_equal(image, draw(font, "R", 0, stream)) for stream, image in enumerate(images))
    assert not np.array_equal(images[0], draw(font, "R", 1, 0))
    border = np.array([np.median(np.concatenate([image[0], image[-1]])) for image in images])
    middle = np.array([np.median(image) for image in images])
    inside = np.array([image[16:48, 16:48].mean() for image in images])
    assert 5 < (inside > middle).sum() < 35 and np.ptp(border) > 100


def test_the_fonts_of_a_variant_are_many_and_in_one_split(bench: dict[str, ModuleType]) -> None:
    families = bench["characters"].families()
    roles = Counter(role for family in families.values() for role in family.roles)
    assert roles["a train"] >= 60 and roles["a test"] >= 15 and roles["b train"] >= 40 and roles["b test"] >= 12
    assert all(len({role for role in family.roles if role != "cjk"}) <= 1 for family in families.values())
    assert len({family.slug for family in families.values()}) == len(families)
    for role in ("a train", "a test", "b train", "b test"):
        kinds = {family.kind for family in families.values() if role in family.roles}
        assert kinds >= {"serif", "sans", "mono", "hand", "display"}
    digests = [digest for family in families.values() for digest in family.faces.values()]
    assert len(set(digests)) == len(digests) and all(len(digest) == 64 for digest in digests)


@pytest.fixture
def fonts(bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of three families, and the folder of packages with their files."""
    files = {"a train": "DejaVuSans.ttf", "a test": "DejaVuSerif.ttf", "cjk": "DejaVuSansMono.ttf"}
    table = {}
    for role, name in files.items():
        path = tmp_path / "debian" / "fonts-test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(font_file(name).read_bytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        table[path.stem] = {"roles": [role], "kind": "sans", "package": "fonts-test", "faces": {name: digest}}
    (tmp_path / "fonts.json").write_text(json.dumps(table))
    monkeypatch.setattr(bench["characters"], "FONTS", tmp_path / "fonts.json")
    monkeypatch.setattr(bench["characters"], "CJK", "&@")  # which DejaVu has
    return tmp_path / "debian"


def test_the_families_of_the_test_split_are_in_no_other(
    bench: dict[str, ModuleType], fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench["characters"]
    monkeypatch.setattr(module, "CLASSES", "0B")
    monkeypatch.setattr(module, "UNKNOWN", {"lower": "ae", "cjk": "&@"})
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        module.write(tmp_path / name, fonts, "a", 2, 1, 3, seed)
    one, again, other = (files_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again and one.keys() == other.keys() and all(one[name] != other[name] for name in one)
    assert groups(tmp_path / "one" / "train") == {"DejaVuSans"} and groups(tmp_path / "one" / "test") == {"DejaVuSerif"}
    unknown = files_of(tmp_path / "one-unknown")
    assert Counter(name.split("/")[0] for name in unknown) == {"lower": 3, "cjk": 3}
    assert groups(tmp_path / "one-unknown" / "lower") == {"DejaVuSerif"}
    dataset = load_dataset(tmp_path / "one")
    assert dataset.train.images.shape == (4, 64, 64, 1) and len(dataset.test) == 2 and not dataset.left_out


def test_copies_of_one_design_are_refused(bench: dict[str, ModuleType], fonts: Path, tmp_path: Path) -> None:
    """Whatever their families are called: else a font of the test split would be trained on."""
    module = bench["characters"]
    sans, oblique, serif = (open_font(f"DejaVu{name}.ttf") for name in ("Sans", "Sans-Oblique", "Serif"))
    assert module.near_copies({"A": [serif, sans], "B": [oblique], "C": [sans]}, 0.04) == [("A", "C")]
    table = json.loads(module.FONTS.read_text())
    table["Other"] = {**table["DejaVuSans"], "roles": ["a test"]}
    module.FONTS.write_text(json.dumps(table))
    with pytest.raises(DataError, match="the fonts DejaVuSans and Other are copies of one design"):
        module.write(tmp_path / "set", fonts, "a", 2, 1, 3, 0)
    assert not (tmp_path / "set").exists()


def test_another_version_of_a_font_is_refused_or_taken(
    bench: dict[str, ModuleType], fonts: Path, tmp_path: Path
) -> None:
    find = bench["characters"].find_faces
    assert set(find("a train", fonts)) == {"DejaVuSans"}
    (fonts / "fonts-test" / "DejaVuSans.ttf").write_bytes(font_file("DejaVuSerif.ttf").read_bytes())
    with pytest.raises(DataError, match=r"1 font files .* DejaVuSans.ttf of fonts-test.* --any-version"):
        find("a train", fonts)
    assert find("a train", fonts, any_version=True)["DejaVuSans"][0].getname()[0] == "DejaVu Serif"
    (fonts / "fonts-test" / "DejaVuSans.ttf").unlink()
    with pytest.raises(DataError, match="no font that can be used"):
        find("a train", fonts, any_version=True)


# -------------------------------------------------------------------------------------------------------- icons


@pytest.fixture(scope="module")
def icons(bench: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The unpacked packages of four makers: files of other bytes each, and two of each sub-category that is unknown."""
    module = bench["icons"]
    names = {name for table in module.read_classes().values() for variants in table.values() for name in variants}
    toned = {name.partition("/")[0] for name in names if "/" in name}
    entries: list[dict[str, Any]] = []
    for name in sorted({name.partition("/")[0] for name in names}):
        tones = {code: {"image": f"{name}-{code}.png"} for code in module.SKIN_TONES.values() if name in toned}
        entries.append({"short_name": name, "subcategory": "office", "image": f"{name}.png", "skin_variations": tones})
    for part in {name for kinds in module.UNKNOWN.values() for parts in kinds.values() for name in parts}:
        for number in range(2):
            name = f"{part} {number}"
            entries.append({"short_name": name, "subcategory": part, "image": f"{name}.png"})
    packages = {}
    for maker in module.MAKERS:
        packages[maker] = tmp_path_factory.mktemp(maker)
        folder = packages[maker] / "img" / maker / "64"
        folder.mkdir(parents=True)
        (packages[maker] / "emoji.json").write_text(json.dumps(entries))
        for entry in entries:
            for tone in (entry, *entry.get("skin_variations", {}).values()):
                (folder / tone["image"]).write_bytes(f"{tone['image']} of {maker}".encode())
    return packages


@pytest.mark.parametrize("variant", ["a", "b"])
def test_one_maker_is_held_out_and_icons_stay_as_they_are_shipped(
    bench: dict[str, ModuleType], icons: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    module = bench["icons"]
    module.write(tmp_path / "set", icons, variant, 5, 0)
    held_out = module.HELD_OUT[variant]
    assert groups(tmp_path / "set" / "test") == {held_out}
    assert groups(tmp_path / "set" / "train") == set(icons) - {held_out}
    classes = module.read_classes()[variant]
    train = files_of(tmp_path / "set" / "train")
    assert Counter(name.split("/")[0] for name in train) == {name: 3 * len(of) for name, of in classes.items()}
    maker = next(iter(set(icons) - {held_out}))
    name = next(iter(classes))
    first = classes[name][0]
    shipped = (icons[maker] / "img" / maker / "64" / f"{first}.png").read_bytes()
    assert train[f"{name}/{maker}__{first}.png"] == shipped
    for kind in module.UNKNOWN[variant]:
        found = {path.name.split("__")[1] for path in (tmp_path / "set-unknown" / kind).iterdir()}
        assert len(found) == 5 and not found & {f"{icon}.png" for of in classes.values() for icon in of}
        assert groups(tmp_path / "set-unknown" / kind) == set(icons)


def test_an_icon_that_a_maker_lacks_is_named(
    bench: dict[str, ModuleType], icons: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench["icons"], "read_classes", lambda: {"a": {"flower": ["tulip", "daisy"]}})
    with pytest.raises(DataError, match=r"google.*no icon 'daisy'"):
        bench["icons"].write(tmp_path / "set", icons, "a", 5, 0)


def test_classes_of_icons_are_twenty_and_share_no_icon(bench: dict[str, ModuleType]) -> None:
    tables = bench["icons"].read_classes()
    for table in tables.values():
        names = [name for variants in table.values() for name in variants]
        assert len(table) == 20 and len(set(names)) == len(names)
        assert all(6 <= len(variants) <= 9 for variants in table.values())
    assert not set(tables["a"]) & set(tables["b"])


# -------------------------------------------------------------------------------------------------- photographs


@pytest.mark.parametrize("size", [(512, 512), (451, 300), (384, 191), (448, 172), (705, 705)])
@pytest.mark.parametrize("shift", [0, 1])
def test_no_pixel_is_in_two_regions_and_each_split_has_some(
    bench: dict[str, ModuleType], size: tuple[int, int], shift: int
) -> None:
    module = bench["photographs"]
    seen = np.zeros(size[::-1], np.uint8)
    boxes = module.regions(size)
    for left, top, right, bottom in boxes.values():
        seen[top:bottom, left:right] += 1
        assert min(right - left, bottom - top) >= 96
    assert (seen == 1).all()
    test = [name for name in boxes if module.is_test(name, shift)]
    assert len(boxes) >= 3 and 0.15 <= len(test) / len(boxes) <= 0.5


def test_crops_lie_in_their_region_and_repeat_for_a_seed(bench: dict[str, ModuleType]) -> None:
    module = bench["photographs"]
    boxes = module.regions((450, 450))
    pixels = np.random.default_rng(0).choice(np.array([0, 90], np.uint8), (450, 450))
    for number, (left, top, right, bottom) in enumerate(boxes.values()):
        pixels[top:bottom, left:right] += 18 * number
    picture = Image.fromarray(pixels)
    first, again, other = (module.crops(picture, boxes, 20, seed, 0) for seed in (1, 1, 2))
    means = {name: 18 * number + 45 for number, name in enumerate(boxes)}
    for name, crop in first:
        assert crop.size == (128, 128) and abs(np.asarray(crop).mean() - means[name]) < 4
    assert {name for name, _ in first} == set(boxes)
    assert [np.asarray(crop).tobytes() for _, crop in first] == [np.asarray(crop).tobytes() for _, crop in again]
    assert [name for name, _ in first] != [name for name, _ in other]
    with pytest.raises(DataError, match="0 of 250 crops show anything"):
        module.crops(Image.new("L", (450, 450)), boxes, 5, 0, 0)


def test_a_set_of_photographs_has_regions_in_one_split_and_other_pictures_beside_it(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, rng = bench["photographs"], np.random.default_rng(0)
    pictures, files = {}, {}
    for name in ("grass", "text"):
        files[name] = tmp_path / f"{name}.png"
        Image.fromarray(rng.integers(0, 256, (450, 450, 3), np.uint8)).save(files[name])
        pictures[name] = module.Picture(name, hashlib.sha256(files[name].read_bytes()).hexdigest())
    monkeypatch.setattr(module, "PICTURES", pictures)
    module.write(tmp_path / "set", files, "a", 12, 6, 4, 0)
    train, test = (groups(tmp_path / "set" / split) for split in ("train", "test"))
    assert train and test and not train & test
    assert [path.name for path in (tmp_path / "set-unknown").iterdir()] == ["text"]
    assert len(files_of(tmp_path / "set" / "train" / "grass")) == 12
    files["grass"].write_bytes(b"another")
    with pytest.raises(DataError, match="SHA-256 is another"):
        module.write(tmp_path / "other", files, "a", 12, 6, 4, 0)


def test_the_variants_have_other_unknown_pictures_and_other_test_regions(bench: dict[str, ModuleType]) -> None:
    module = bench["photographs"]
    for variant in ("a", "b"):
        assert set(module.UNKNOWN[variant]) < set(module.PICTURES) and len(module.PICTURES) - 4 == 15
    assert not set(module.UNKNOWN["a"]) & set(module.UNKNOWN["b"])
    names = module.regions((450, 450))
    tests = [{name for name in names if module.is_test(name, module.SHIFT[variant])} for variant in ("a", "b")]
    assert not tests[0] & tests[1]


# ----------------------------------------------------------------------------------------- archives and the whole


def test_a_client_that_is_not_there_or_fails_is_named(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    run = bench["archives"].run_client
    with pytest.raises(DataError, match=r"no-such-client is not here; it is needed for the icons"):
        run(["no-such-client", "pack"], tmp_path, "the icons")
    failing = [sys.executable, "-c", "import sys; sys.exit('Could not resolve host')"]
    with pytest.raises(DataError, match=r"failed, so the icons cannot be had: Could not resolve host.*--archives"):
        run(failing, tmp_path, "the icons")
    assert run([sys.executable, "-c", "print('done')"], tmp_path, "nothing") == "done\n"


def test_a_client_that_never_ends_is_ended(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench["archives"], "TIMEOUT_S", 0.2)
    with pytest.raises(DataError, match="took more than"):
        bench["archives"].run_client([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, "nothing")


def test_debian_packages_are_downloaded_once_and_missing_ones_named(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run_client(command: list[str], folder: Path, wanted: str) -> str:
        calls.append(command[0])
        if command[0] == "apt-get":
            (folder / "fonts-a_1%3a2-3_all.deb").touch()
        else:
            Path(command[-1]).mkdir()
        return ""

    monkeypatch.setattr(bench["archives"], "run_client", run_client)
    get = bench["archives"].debian_packages
    assert get(["fonts-a"], tmp_path) == get(["fonts-a"], tmp_path) == {"fonts-a": "1:2-3"}
    assert calls == ["apt-get", "dpkg-deb"] and (tmp_path / "debian" / "fonts-a").is_dir()
    with pytest.raises(DataError, match="downloaded no fonts-b"):
        get(["fonts-a", "fonts-b"], tmp_path)


def test_an_archive_of_icons_is_checked_and_nothing_leaves_its_folder(
    bench: dict[str, ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "npm").mkdir()
    archive = tmp_path / "npm" / "icons-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("package/emoji.json", "package/img/64/a.png", "package/img/../../../out.png", "package/x.js"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("package/img/64/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    get, parts = bench["archives"].npm_package, ("emoji.json", "img/")
    with pytest.raises(DataError, match=r"is not icons 1\.0: its SHA-256 is"):
        get("icons", "1.0", "0" * 64, tmp_path, parts)
    folder = get("icons", "1.0", digest, tmp_path, parts)
    assert files_of(folder) == {"emoji.json": b"abc", "img/64/a.png": b"abc"} and not (tmp_path / "out.png").exists()


def test_pictures_come_from_the_installed_package_or_from_its_wheel(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = bench["archives"].python_files
    (tmp_path / "python").mkdir()
    with zipfile.ZipFile(tmp_path / "python" / "no_such_pictures-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("no_such_pictures/cat.png", b"of the wheel")
    name = "no_such_pictures/cat.png"
    assert get("no-such-pictures", [name], tmp_path)[name].read_bytes() == b"of the wheel"
    with pytest.raises(DataError, match=r"has no file no_such_pictures/dog.png"):
        get("no-such-pictures", ["no_such_pictures/dog.png"], tmp_path)
    installed = tmp_path / "site" / "no_such_pictures"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    (installed / "cat.png").write_bytes(b"installed")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert get("no-such-pictures", [name], tmp_path)[name].read_bytes() == b"installed"


def test_a_set_is_written_whole_or_not_at_all(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = bench["data"]

    def write(out: Path, variant: str, seed: int, sources: Any) -> dict[str, Any]:
        for folder in (out / "train" / "a", out / "test" / "a", out.with_name(f"{out.name}-unknown") / "b"):
            folder.mkdir(parents=True)
            (folder / "x__0.png").write_bytes(bytes([seed]))
        if variant == "b":
            raise DataError("nothing can be had")
        return {"npm": {}}

    monkeypatch.setattr(module, "write_icons", write)
    assert module.main([str(tmp_path / "b"), "--set", "icons", "--variant", "b"]) == 2
    assert "real_data: nothing can be had" in capsys.readouterr().err and list((tmp_path / "b").iterdir()) == []
    arguments = [str(tmp_path / "a"), "--set", "icons"]
    assert module.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["icons", "icons-unknown", "icons.json"]
    about = json.loads((tmp_path / "a" / "icons.json").read_text())
    assert about["images"] == {"train": 1, "test": 1, "unknown": 1} and about["variant"] == "a"
    assert about["digest"]["icons"] == module.digest(tmp_path / "a" / "icons")
    assert module.main(arguments) == 2 and "exists already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected one of characters, icons, photographs"):
        module.write_set("cars", tmp_path, "a", 0, module.Sources(tmp_path))


def test_the_command_without_a_client_says_what_is_missing(tmp_path: Path) -> None:
    """Started as a user does, where PATH holds no client."""
    command = [sys.executable, str(BENCH / "real_data.py"), str(tmp_path / "out"), "--set", "icons"]
    command += ["--archives", str(tmp_path / "archives")]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(BENCH.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "npm is not here; it is needed for emoji-datasource-google" in done.stderr
    assert "Traceback" not in done.stderr and not list((tmp_path / "out").iterdir())
