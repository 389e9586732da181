"""`vae-edge predict` on folders: which files, in which form, and what it says of those it cannot read."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vae_edge
from vae_edge.cli import main
from vae_edge.data import Dataset
from vae_edge.runtime.table import COLUMNS

pytest.importorskip("torch")
PLAIN = ("--backend", "onnxruntime", "--precision", "fp32")
ODD = 'a, "b"\n=c.png'
TEXTS = ("file", "class", "error")


@pytest.fixture
def folder(tmp_path: Path, digits: Dataset) -> Path:
    """Seventy digits in two sub-folders, one with an odd name, and some things that are no images."""
    root = tmp_path / "pictures"
    for index, pixels in enumerate(digits.test.images[:69, ..., 0]):
        (root / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"{index % 2}" / f"{index:03}.png")
    Image.fromarray(digits.test.images[69, ..., 0]).save(root / ODD)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").write_text("x")
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def read(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert all(tuple(row) == COLUMNS for row in rows)
    return rows


def test_a_folder_stands_for_the_images_in_it_and_the_rest_is_named(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(str(path) for path in folder.rglob("*.png"))
    code, out, said = run(capsys, "predict", bundle, folder, *PLAIN, "--json")
    result = json.loads(out)
    assert code == 0 and [row["file"] for row in result["predictions"]] == files
    assert "left out: files that are not images: 1" in said and "notes.txt" in said and ".hidden" in said
    assert {entry["reason"] for entry in result["left_out"]} == {
        "files that are not images",
        "hidden files and folders",
    }
    alone = json.loads(run(capsys, "predict", bundle, *files, *PLAIN, "--json")[1])
    assert alone["predictions"] == result["predictions"] and alone["left_out"] == []
    code, out, _ = run(capsys, "predict", bundle, folder / "0", files[-1], *PLAIN)
    assert code == 0 and sum(": " in line and line.startswith(str(folder)) for line in out.splitlines()) == 36


def test_the_table_has_the_numbers_of_the_json_and_reads_back_whatever_the_names(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out" / "x.csv"
    code, out, _ = run(capsys, "predict", bundle, folder, *PLAIN, "--csv", table, "--json")
    rows, predictions = read(table.read_bytes().decode("utf-8")), json.loads(out)["predictions"]
    assert code == 0 and len(rows) == len(predictions) == 70
    assert ODD in {Path(row["file"]).name for row in rows}
    for row, prediction in zip(rows, predictions, strict=True):
        assert (row["file"], row["class"], row["error"]) == (prediction["file"], prediction["name"], "")
        assert row["accepted"] == str(prediction["accepted"]).lower()
        for column in COLUMNS:
            if column not in (*TEXTS, "accepted"):
                assert float(np.float32(row[column])) == prediction[column], column
    code, out, _ = run(capsys, "predict", bundle, folder, *PLAIN, "--csv", table)
    assert code == 0 and out.startswith("70 images: ") and f"written to {table}" in out and out.count("\n") == 1


def test_the_table_goes_to_standard_output_alone(bundle: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "vae_edge", "predict", str(bundle), str(folder), *PLAIN, "--csv", "-"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    rows = read(done.stdout.decode("utf-8"))
    assert [row["file"] for row in rows] == sorted(str(path) for path in folder.rglob("*.png"))


def test_unreadable_images_are_named_have_a_row_and_change_the_exit_code(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "0" / "000.png").read_bytes()
    (folder / "0" / "000.png").write_bytes(whole[:-30])
    (folder / "1" / "text.jpg").write_text("no image, although its name says so")
    (folder / "1" / "empty.png").touch()
    table = tmp_path / "x.csv"
    code, out, said = run(capsys, "predict", bundle, folder, tmp_path / "gone.png", *PLAIN, "--csv", table)
    assert code == 1 and "4 of 73 images cannot be read" in said and out.startswith("69 images")
    errors = {Path(row["file"]).name: row["error"] for row in read(table.read_text(encoding="utf-8")) if row["error"]}
    assert set(errors) == {"000.png", "text.jpg", "empty.png", "gone.png"}
    assert "no such file" in errors["gone.png"] and "empty files" in errors["empty.png"]
    code, out, _ = run(capsys, "predict", bundle, folder, *PLAIN)
    assert code == 1 and f"{folder}/1/text.jpg: ERROR: " in out and f"{folder}/0/000.png: ERROR: " in out
    code, out, _ = run(capsys, "predict", bundle, folder, *PLAIN, "--json")
    told = json.loads(out)["predictions"]
    assert code == 1 and sum("error" in row for row in told) == 3 and len(told) == 72


def test_without_a_readable_image_the_command_fails_and_names_them(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    code, out, said = run(capsys, "predict", bundle, tmp_path / "a", *PLAIN)
    assert code == 2 and not out and "holds no images" in said
    (tmp_path / "a" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    code, out, said = run(capsys, "predict", bundle, tmp_path / "a", *PLAIN)
    assert code == 2 and not out and "x.png" in said
    code, _, said = run(capsys, "predict", bundle, tmp_path / "a", "--csv", "-", "--json")
    assert code == 2 and "both take standard output" in said
    code, _, said = run(capsys, "predict", bundle, tmp_path / ("n" * 300), *PLAIN)
    assert code == 2 and said.count("\n") == 1 and "n" * 300 in said


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_a_name_that_is_not_utf8_is_written_escaped(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "0" / "000.png").rename(folder / "0" / os.fsdecode(b"caf\xe9.png"))
    code, _, _ = run(capsys, "predict", bundle, folder / "0", *PLAIN, "--csv", tmp_path / "x.csv")
    assert code == 0 and "caf\\xe9.png" in (tmp_path / "x.csv").read_bytes().decode("utf-8")


def test_python_streams_a_folder_and_writes_the_same_table(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "predict", bundle, folder, *PLAIN, "--csv", tmp_path / "command.csv")
    with vae_edge.load(bundle, "onnxruntime", "fp32") as classifier:
        assert vae_edge.write_csv(tmp_path / "python.csv", classifier.stream(folder)) == 70
    assert (tmp_path / "python.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()
    assert len(vae_edge.find_images(folder).files) == 70
