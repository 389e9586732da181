"""Groups of images: from sub-folders, from a table, from a pattern of the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_edge.cli import main
from vae_edge.data import Dataset, LabelledImages, load_dataset
from vae_edge.data.groups import parse_pattern, paths_below_class, read_table
from vae_edge.errors import ConfigError, DataError

MAKERS = ("apple", "google", "twitter")


def write(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (28, 28), value).save(path)


def by_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), makers: tuple[str, ...] = MAKERS) -> None:
    for label, name in enumerate(classes):
        for number, maker in enumerate(makers):
            for index in range(2):
                write(root / name / maker / f"{index}.png", 50 * label + 10 * number + index)


def groups(dataset: Dataset) -> list[str]:
    assert dataset.train is not None and dataset.train.groups is not None
    return dataset.train.groups.tolist()


def test_sub_folders_of_class_folders_are_groups(tmp_path: Path) -> None:
    by_folder(tmp_path / "archive" / "train")
    write(tmp_path / "archive" / "train" / "cat" / "apple" / "deep" / "x.png", 200)
    dataset = load_dataset(tmp_path, group_by="folder")
    assert groups(dataset) == ["apple"] * 3 + ["google"] * 2 + ["twitter"] * 2 + ["apple"] * 2 + [
        *["google"] * 2,
        *["twitter"] * 2,
    ]
    assert any("groups by folder: 3 (apple: 5, google: 4, twitter: 4)" in note for note in dataset.notes)
    write(tmp_path / "archive" / "train" / "dog" / "loose.png", 201)
    with pytest.raises(
        DataError, match=r"1 of 14 images have no group \(archive/train/dog/loose.png\): they lie direct"
    ):
        load_dataset(tmp_path, group_by="folder")


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        ("{group}__*", ("apple__lamp-1.png", "google__x__y.jpg.png"), ["apple", "google"]),
        ("*_{group}", ("photo_2020_canon.png", "a_nikon.png"), ["canon", "nikon"]),
        ("IMG_{group}*_x", (), "begins or ends"),
        ("day-{group}-*", ("day-12-1.png", "day-3-4.png"), ["12", "3"]),
        ("{group}/*", ("k1/a.png", "k2/b.c.png"), ["k1", "k2"]),
        ("*/{group}_*", ("k/m1_a.png", "j/m2_b.png"), ["m1", "m2"]),
        ("{group}[1]*", ("a[1].png", "b[1]x.png"), ["a", "b"]),  # brackets are no wildcards
    ],
)
def test_patterns_take_the_group_out_of_names_and_paths(
    tmp_path: Path, pattern: str, names: tuple[str, ...], expected: list[str] | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            parse_pattern(pattern)
        return
    for label, name in enumerate(("cat", "dog")):
        for index, file in enumerate(names):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 100 * label + index).save(path, "PNG")
    found = load_dataset(tmp_path, group_by=pattern)
    assert sorted(set(groups(found))) == sorted(expected) and len(groups(found)) == 2 * len(names)


def test_a_table_gives_each_file_its_group(tmp_path: Path) -> None:
    for index, name in enumerate(("a, odd.png", "é.png", 'q".png')):
        write(tmp_path / "cat" / name, index)
        write(tmp_path / "dog" / name, 10 + index)
    rows = 'Group,note,FILE\nday 1,,"cat/a, odd.png"\nday 1,,cat/e\u0301.png\nday 2,,"cat/q"".png"\n'
    rows += '"day 3",x,"./dog/a, odd.png"\nday 2,,dog/é.png\n\nday 3,,"dog/q"".png"\nday 9,,gone.png\n'
    (tmp_path / "days.csv").write_text("\ufeff" + rows, encoding="utf-8")
    for name in ("days.csv", str(tmp_path / "days.csv")):  # beside the classes, or from where one is
        dataset = load_dataset(tmp_path, group_by=name)
        assert groups(dataset) == ["day 1", "day 2", "day 1", "day 3", "day 3", "day 2"]
    (tmp_path / "days.csv").write_text("file,group\ncat/é.png,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"5 of 6 images have no group .*days.csv has no row for them"):
        load_dataset(tmp_path, group_by="days.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected a first line with the columns file and group"),
        (b"file;group\na;b\n", "separated by a comma, but it is 'file;group'"),
        (b"file,group\na\n", "line 2: expected 2 values, but it has 1"),
        (b"file,group\na,\n", "line 2: expected a file and a group"),
        (b"file,group\na,b\n./a,c\n", r"line 3: \./a has another group on an earlier line"),
        (b'file,group\n"a,b\n', "line 2: it is damaged"),
        (b"file,group\n\xff,b\n", "cannot be read as UTF-8"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_table(tmp_path / "x.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize("rule", ["makers", "", "{group}", "*{group}*", "{group}*", "{group}_{group}", "{x}_{group}"])
def test_other_rules_are_refused(tmp_path: Path, rule: str) -> None:
    by_folder(tmp_path)
    with pytest.raises(ConfigError, match="group_by"):
        load_dataset(tmp_path, group_by=rule)


def test_arrays_have_no_groups_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((8, 28, 28), np.uint8), labels=np.arange(8) % 2)
    with pytest.raises(DataError, match="holds arrays, and groups come from the names of files"):
        load_dataset(tmp_path / "x.npz", group_by="folder")


def test_common_sub_folders_are_hinted_at_and_change_nothing(tmp_path: Path) -> None:
    by_folder(tmp_path)
    dataset = load_dataset(tmp_path)
    assert dataset.train is not None and dataset.train.groups is None
    assert any("sub-folders apple, google, twitter" in note and "--group-by folder" in note for note in dataset.notes)
    by_folder(tmp_path / "other", ("a", "b", "c"), ("only",))
    write(tmp_path / "other" / "a" / "more" / "x.png")
    assert not any("--group-by" in note for note in load_dataset(tmp_path / "other").notes)


def test_splits_other_than_train_have_groups_if_all_of_their_images_do(tmp_path: Path) -> None:
    by_folder(tmp_path / "train")
    by_folder(tmp_path / "test")
    write(tmp_path / "val" / "cat" / "x.png")
    dataset = load_dataset(tmp_path, group_by="folder")
    assert dataset.test is not None and dataset.validation is not None
    assert set(dataset.test.groups.tolist()) == set(MAKERS)  # type: ignore[union-attr]
    assert dataset.validation.groups is None


def test_groups_and_files_travel_with_the_images() -> None:
    texts = np.array(["a/x", "a/y", "b/x"], dtype=object)
    data = LabelledImages(np.zeros((3, 28, 28, 1), np.uint8), np.array([0, 0, 1]), ("a", "b"), None, texts, texts)
    taken = data.take(np.array([2, 0]))
    assert taken.groups.tolist() == taken.files.tolist() == ["b/x", "a/x"]  # type: ignore[union-attr]
    for wrong in (texts[:2], np.array(["a", "b", "c"]), np.array([1, 2, 3], dtype=object)):
        with pytest.raises(DataError, match="Groups are an array of dtype object with one text for each of the 3"):
            LabelledImages(data.images, data.labels, data.classes, groups=wrong)


def test_the_path_below_the_class_is_found_whatever_is_around_it() -> None:
    def below(*files: str, classes: tuple[str, ...] = ("a", "b")) -> list[str]:
        names = np.empty(len(files), dtype=object)
        names[:] = files
        labels = np.array([classes.index(next(part for part in file.split("/") if part in classes)) for file in files])
        data = LabelledImages(np.zeros((len(files), 28, 28, 1), np.uint8), labels, classes, files=names)
        return [str(path) for path in paths_below_class(data)]

    assert below("a/m/1.png", "b/m/2.png") == ["m/1.png", "m/2.png"]
    assert below("x/train/a/m/1.png", "x/train/b/2.png") == ["m/1.png", "2.png"]
    assert below("test/a/m/1.png", "test/a/m/2.png") == ["m/1.png", "m/2.png"]  # one class alone


def test_data_show_counts_groups_and_the_validation_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_folder(tmp_path / "data")
    by_folder(tmp_path / "more", makers=("zed",))
    options = ["--group-by", "folder", "--val", str(tmp_path / "more")]
    assert main(["data", "show", str(tmp_path / "data"), *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["train"]["by_group"] == dict.fromkeys(MAKERS, 4)
    assert told["validation"]["images"] == 4 and told["validation"]["also_in_train"] == 4
    assert main(["data", "show", str(tmp_path / "data"), *options]) == 0
    out = capsys.readouterr().out
    assert "groups by folder: 3" in out and "validation: 4 images" in out and "4 of them are training images too" in out
