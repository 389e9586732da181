"""What folders from the field hold: read by content, and nothing left out in silence."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data_makers import write_image_folder
from PIL import Image, features

from vae_edge.data import LabelledImages, align_classes, load_dataset
from vae_edge.data.folder import MAX_BROKEN_FRACTION, MAX_NAMED
from vae_edge.decoding import FORMATS
from vae_edge.errors import DataError
from vae_edge.listing import SUFFIXES, is_image

KINDS = [kind for kind in FORMATS if kind != "AVIF" or features.check("avif")]
DECOMPOSED = unicodedata.normalize("NFD", "café")


def content(kind: str, value: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("L", (40, 40), value).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def reasons(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in load_dataset(folder).left_out:
        found.setdefault(entry.reason, set()).add(entry.path)
    return found


# By content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.PNG", "x.jfif", "x.dat", "no suffix", "x.tar.gz"])
def test_every_format_is_read_under_any_name(tmp_path: Path, kind: str, name: str) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "dog" / name).write_bytes(content(kind))
    dataset = load_dataset(tmp_path)
    assert len(dataset.train) == 7 and dataset.left_out == ()
    assert 85 <= dataset.train.images[dataset.train.labels == 1].max() <= 95


def test_the_quick_check_agrees_with_pillow() -> None:
    for kind in KINDS:
        assert is_image(content(kind)[:32]), kind
    for mode, form in (("1", "PPM"), ("RGB", "PPM"), ("RGB", "BMP"), ("P", "GIF"), ("CMYK", "JPEG"), ("I;16", "TIFF")):
        file = io.BytesIO()
        Image.new(mode, (3, 3)).save(file, form)
        assert is_image(file.getvalue()[:32])
    others = [
        b"",
        b"BMW and other cars are text.........",
        b"P1: notes",
        b"P",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"<svg",
        b"%PDF",
    ]
    for head in (*others, b"\0" * 32, b"{}", "é".encode(), b"II*", b"\0\0\0\x18ftypmp42", b"GIF88a"):
        assert not is_image(head)
        with pytest.raises((OSError, ValueError)):
            Image.open(io.BytesIO(head), formats=FORMATS)


def test_usual_suffixes_of_what_pillow_reads_are_known() -> None:
    Image.init()
    usual = {suffix for suffix, kind in Image.registered_extensions().items() if kind in KINDS}
    assert {".png", ".jpg", ".tif", ".jfif", ".gif"} <= usual & SUFFIXES
    assert usual - SUFFIXES <= {".avifs", ".j2c", ".jpc", ".jpf", ".pfm"}


def test_images_in_sub_folders_belong_to_their_class(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    write_image_folder(tmp_path / "dog", ("puppies/small", "2021"), each=2)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog") and np.bincount(dataset.train.labels).tolist() == [3, 7]
    assert "4 images lie in sub-folders" in dataset.notes[0]


# Left out


def test_each_thing_left_out_is_named_by_its_reason(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_image_folder(data, each=20)
    dog = data / "dog"
    frames = [Image.new("L", (40, 40), value) for value in (5, 90)]
    frames[0].save(dog / "moving.gif", save_all=True, append_images=frames[1:])
    (dog / "empty.png").touch()
    (dog / "text.png").write_text("hello\n" * 100_000)
    (dog / "half.png").write_bytes((dog / "0.png").read_bytes()[:-30])
    (dog / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (dog / "raw.dng").write_bytes(content("TIFF"))
    (dog / "notes.txt").write_text("notes")
    (dog / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (dog / ".ipynb_checkpoints").mkdir()
    (data / "__MACOSX").mkdir()
    os.mkfifo(dog / "pipe.png")
    (dog / "endless.png").symlink_to("/dev/zero")
    (dog / "gone.png").symlink_to("nowhere.png")
    (dog / "ring.png").symlink_to("ring.png")
    (dog / "again.png").symlink_to("1.png")
    (dog / "up").symlink_to(data)
    (dog / "everything").symlink_to("/")
    (data / "beside.jpg").write_bytes(content("JPEG"))
    assert reasons(data) == {
        "broken images": {"dog/text.png", "dog/half.png"},
        "empty files": {"dog/empty.png"},
        "images of formats that are not read": {"dog/phone.heic", "dog/raw.dng"},
        "images outside the class folders": {"beside.jpg"},
        "animations, of which only the first frame is used": {"dog/moving.gif"},
        "links that lead nowhere": {"dog/gone.png", "dog/ring.png"},
        "links to folders that are read already": {"dog/up", "dog/everything"},
        "pipes, sockets and devices": {"dog/pipe.png", "dog/endless.png"},
        "files that are not images": {"dog/notes.txt"},
        "folders of other programs": {"__MACOSX"},
        "hidden files and folders": {"dog/.DS_Store", "dog/.ipynb_checkpoints"},
    }
    dataset = load_dataset(data)
    assert len(dataset.train) == 42  # 40, the animation's first frame, and the link to a file
    assert dataset.train.images[:, 7, 7, 0].max() == 29  # the animation's second frame is 90
    with pytest.raises(DataError, match=r"17 files or folders are left out.*broken images: 2 \(dog/half.png, dog/text"):
        load_dataset(data, strict=True)


def test_links_among_folders_are_followed_once(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "data")
    write_image_folder(tmp_path / "elsewhere", ("more",))
    for name in "abcdefghijklmnop":  # followed as often as there are ways, this would not end
        (tmp_path / "elsewhere" / name).mkdir()
    for name, target in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True):
        for number in range(2):
            (tmp_path / "elsewhere" / name / str(number)).symlink_to(tmp_path / "elsewhere" / target)
    (tmp_path / "data" / "dog" / "link").symlink_to(tmp_path / "elsewhere")
    dataset = load_dataset(tmp_path / "data")
    assert len(dataset.train) == 9 and len(dataset.left_out) == 30


def test_folders_deeper_than_pythons_recursion_are_read(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    place = tmp_path / "dog"
    for _ in range(1200):
        place /= "d"
        place.mkdir()
    (place / "x").write_bytes(content("PNG"))
    assert len(load_dataset(tmp_path).train) == 7
    subprocess.run(["rm", "-r", tmp_path / "dog"], check=True)  # pytest's own cleaning recurses


def test_without_its_broken_images_a_folder_gives_the_same_data_set(tmp_path: Path) -> None:
    """Their headers, which are whole, would make it colour, 64 pixels and 16 bit."""
    write_image_folder(tmp_path, each=10, size=(30, 30))
    expected = load_dataset(tmp_path)
    for name, page in (("large", Image.new("RGB", (90, 50), "red")), ("deep", Image.new("I;16", (30, 30), 60000))):
        file = io.BytesIO()
        page.save(file, "PNG")
        (tmp_path / "cat" / f"{name}.png").write_bytes(file.getvalue()[:-30])
    dataset = load_dataset(tmp_path)
    assert dataset.fingerprint() == expected.fingerprint() and dataset.input == expected.input
    assert [entry.path for entry in dataset.left_out] == ["cat/deep.png", "cat/large.png"]
    again = load_dataset(tmp_path, prepared_as=expected.input)
    assert again.fingerprint() == expected.fingerprint() and again.left_out == dataset.left_out


def test_a_folder_whose_images_are_mostly_broken_is_refused_and_they_are_listed(tmp_path: Path) -> None:
    write_image_folder(tmp_path, each=30)
    for index in range(20):
        (tmp_path / "cat" / f"broken {index:02}.png").write_bytes(b"no image")
    assert len(load_dataset(tmp_path).left_out) == 20 == 80 * MAX_BROKEN_FRACTION
    for index in range(5):
        (tmp_path / "dog" / f"empty {index:02}.png").touch()
    with pytest.raises(DataError, match=r"25 of 85 images cannot be read, more than the 25%.*and 5 more") as stopped:
        load_dataset(tmp_path)
    assert str(stopped.value).count("broken ") == MAX_NAMED == 20
    (tmp_path / "dog" / "notes.txt").write_text("what is no image does not count")
    with pytest.raises(DataError, match=r"25 of 85 images"):
        load_dataset(tmp_path)


def test_a_class_of_which_no_image_decodes_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path, each=30)
    write_image_folder(tmp_path, ("newt",), each=2)
    for file in (tmp_path / "newt").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match="no image of class newt decodes"):
        load_dataset(tmp_path)


# Layouts


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", "valid"), ("Training", "Testing"), ("training", "validation"), ("TRAIN", "Test"), ("train", "dev")),
        *(("train_set", "test_set"), ("seg_train", "seg_test"), ("train/train", "test/test"), ("a/b/train", "a/b/val")),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)
def test_layouts_of_common_exports_are_taken(tmp_path: Path, train: str, test: str) -> None:
    write_image_folder(tmp_path / train)
    write_image_folder(tmp_path / test, each=2)
    (tmp_path / "README.dataset.txt").write_text("about it")
    dataset = load_dataset(tmp_path)
    held_out = dataset.test if dataset.test is not None else dataset.validation
    assert len(dataset.train) == 6 and len(held_out) == 4 and dataset.classes == ("cat", "dog")
    assert (dataset.test is None) == ("val" in test or test == "dev")
    assert {entry.path for entry in dataset.left_out} == {"README.dataset.txt"}


def test_folders_around_the_classes_are_looked_through_and_said(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "archive" / "images")
    (tmp_path / "archive" / "labels").mkdir()
    (tmp_path / "cover.png").write_bytes(content("PNG"))
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog") and "archive/images" in dataset.notes[0]
    assert [entry.path for entry in dataset.left_out] == ["cover.png", "archive/labels"]
    write_image_folder(tmp_path / "one" / "class", (".", "with", "folders"))
    assert load_dataset(tmp_path / "one").classes == ("class",)


def test_a_part_of_images_without_classes_is_left_out_and_said(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train")
    write_image_folder(tmp_path, ("test",), each=4)
    (tmp_path / "annotations").mkdir()
    dataset = load_dataset(tmp_path)
    assert dataset.test is None and len(dataset.train) == 6
    assert reasons(tmp_path) == {
        "images outside the class folders": {f"test/{index}.png" for index in range(4)},
        "folders without images": {"annotations"},
    }


def test_classes_that_are_called_like_parts_stay_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path, ("bus", "train", "bullet train"))
    write_image_folder(tmp_path / "train", ("old",))
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("bullet train", "bus", "train")
    assert np.bincount(dataset.train.labels).tolist() == [3, 3, 6]


def test_a_test_half_may_lack_classes_and_is_numbered_as_training(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", ("ant", "bee", "cat"))
    write_image_folder(tmp_path / "test", ("cat",), each=2)
    (tmp_path / "test" / "ant").mkdir()
    dataset = load_dataset(tmp_path)
    assert dataset.test.classes == dataset.train.classes == ("ant", "bee", "cat")
    assert dataset.test.labels.tolist() == [2, 2]
    assert reasons(tmp_path) == {"folders without images": {"test/ant"}}


# Names


def test_the_two_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", ("café", "dog"))
    write_image_folder(tmp_path / "train", (DECOMPOSED,), each=2)
    write_image_folder(tmp_path / "test", (DECOMPOSED, "dog"))
    if len(list((tmp_path / "train").iterdir())) < 3:
        pytest.skip("this file system knows one form only")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("café", "dog") and np.bincount(dataset.train.labels).tolist() == [5, 3]
    images = np.zeros((2, 28, 28, 1), np.uint8)
    data = LabelledImages(images, np.array([0, 1]), ("dog", DECOMPOSED))
    assert align_classes(data, ("café", "dog")).labels.tolist() == [1, 0]
    assert align_classes(data, (DECOMPOSED, "dog")).labels.tolist() == [1, 0]


def test_names_are_read_alike_in_every_locale(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "café", ("crêpe", "dog"))
    (tmp_path / "café" / "dog" / os.fsdecode(b"caf\xe9.png")).write_bytes(content("PNG"))
    code = (
        "from vae_edge.data import load_dataset; d = load_dataset('.'); print(ascii((d.name, d.classes, len(d.train))))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    for environment in ({"PYTHONUTF8": "1"}, plain, {**plain, "LC_ALL": "POSIX"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path / "café",
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == r"('caf\xe9', ('cr\xeape', 'dog'), 7)"


def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "cat").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DataError, match=r"'caf\\\\xe9' is not readable as UTF-8"):
        load_dataset(tmp_path)


def test_the_sheet_that_generate_writes_is_no_image_left_out(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "contact_sheet.png").write_bytes(content("PNG"))
    assert len(load_dataset(tmp_path, strict=True).train) == 6
    (tmp_path / "another.png").write_bytes(content("PNG"))
    with pytest.raises(DataError, match=r"images outside the class folders: 1 \(another.png\)"):
        load_dataset(tmp_path, strict=True)
