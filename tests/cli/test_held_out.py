"""`--group-by` and `--val` through the commands: what is held out in training is found again by every later one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vae_edge.cli import main

pytest.importorskip("torch")
CHEAP = ("--preset", "tiny", "--rotation", "none", "--epochs", "1", "--batch", "8")
PLAIN = ("--backend", "onnxruntime", "--precision", "fp32")


def write(folder: Path, makers: tuple[str, ...], each: int = 8, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(("box", "disc")):
        for maker in makers:
            (folder / name / maker).mkdir(parents=True)
            for index in range(each):
                image = Image.new("L", (28, 28), int(rng.integers(0, 20)))
                pen = ImageDraw.Draw(image)
                box = [*rng.integers(3, 9, 2).tolist(), *rng.integers(17, 24, 2).tolist()]
                (pen.ellipse if label else pen.rectangle)(box, fill=int(rng.integers(150, 256)))
                image.save(folder / name / maker / f"{index}.png")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict, str]:
    code = main([*(str(argument) for argument in arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_whole_groups_are_held_out_said_stored_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model, bundle = tmp_path / "data", tmp_path / "run", tmp_path / "bundle"
    write(data, ("apple", "google", "twitter"))
    rows = [f"{file.relative_to(data)},{file.parent.name}" for file in sorted(data.rglob("*.png"))]
    table = tmp_path / "private" / "makers.csv"
    table.parent.mkdir()
    table.write_text("file,group\n" + "\n".join(rows) + "\n")
    _, said = run(capsys, "train", "--data", data, *CHEAP, "--group-by", table, "--out", model)
    stored = json.loads((model / "config.json").read_text())["data"]
    assert (stored["groups"], stored["held_out_groups"], stored["group_by"]) == (3, 1, "makers.csv")
    (name,) = stored["held_out_group_names"]
    assert stored["held_out"] == 16 and f"held out: 1 of 3 groups ({name}), 16 images" in said
    told = run(capsys, "inspect", model)[0]["result"]["validation"]

    measured, said = run(capsys, "evaluate", model, "--data", data)
    assert f"16 images of the train split that training held out, of the groups {name}" in said
    assert measured["accuracy"] == told["accuracy"] and measured["n"] == 16
    run(capsys, "export", model, "--out", bundle)
    assert "private" not in (bundle / "manifest.json").read_text()
    says = refused(capsys, "evaluate", bundle, "--data", data, *PLAIN)  # the table's folder did not travel
    assert "whole groups by makers.csv, which cannot be told here" in says and "--group-by" in says
    measured, _ = run(capsys, "evaluate", bundle, "--data", data, *PLAIN, "--group-by", table)
    assert measured["n"] == 16 and measured["accuracy"] == told["accuracy"]
    (data / "makers.csv").write_text(table.read_text())  # with the data it is found
    quantized, _ = run(capsys, "quantize", bundle, "--data", data, "--precision", "fp16", "--force")
    assert quantized["before"]["n"] == 16


@pytest.mark.slow
def test_a_data_set_of_its_own_validates_and_is_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, more, model, bundle = (tmp_path / name for name in ("data", "more", "run", "bundle"))
    write(data, ("x",), 16)
    write(more, ("y",), 12, seed=1)
    _, said = run(capsys, "train", "--data", data, *CHEAP, "--val", more, "--patience", 1, "--out", model)
    assert f"the 24 images of {more} are the validation split" in said
    assert "the 24 images of the validation split set early stopping" in said
    stored = json.loads((model / "config.json").read_text())["data"]
    assert (stored["own_validation"], stored["trained_on"], stored["held_out"], stored["val"]) == (True, 32, 24, 24)
    told = run(capsys, "inspect", model)[0]["result"]["validation"]

    assert "name its folder with --val" in refused(capsys, "evaluate", model, "--data", data)
    measured, said = run(capsys, "evaluate", model, "--data", data, "--val", more)
    assert "measuring on the 24 images of the validation split" in said and "not trained on exactly" not in said
    assert measured["accuracy"] == told["accuracy"] and measured["split"] == "validation"
    run(capsys, "export", model, "--out", bundle)
    quantized, _ = run(capsys, "quantize", bundle, "--data", data, "--precision", "fp16", "--force", "--val", more)
    assert quantized["before"]["n"] == 24
