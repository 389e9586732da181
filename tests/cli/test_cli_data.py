from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae_edge.cli import main
from vae_edge.data import Dataset, load_dataset
from vae_edge.training.checkpoint import SAMPLE_FILE, Checkpoint, load_samples, write_tensors
from vae_edge.training.evaluate import predict


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_show_tells_of_images_without_labels_and_of_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b", "unlabelled"):
        (tmp_path / place).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(tmp_path / place / f"{index}.png")
    code, out, _ = call(capsys, "data", "show", tmp_path)
    assert code == 0 and "unlabelled: 4 images" in out and "duplicates" not in out and "training images too" not in out
    shutil.copy(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "a" / "copy.png")
    shutil.copy(tmp_path / "train" / "b" / "2.png", tmp_path / "test" / "b" / "copy.png")
    code, out, _ = call(capsys, "data", "show", tmp_path)
    assert "1 of them are exact duplicates" in out and "1 of them are training images too" in out
    told = json.loads(call(capsys, "data", "show", tmp_path, "--json")[1])
    assert (
        told["unlabelled"] == {"images": 4} and told["train"]["duplicates"] == 1 and told["test"]["also_in_train"] == 1
    )


def test_show_says_what_is_wrong_with_a_folder_for_images_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unlabelled").mkdir()
    code, _, err = call(capsys, "data", "show", tmp_path)
    assert code == 2 and "images without labels alone" in err and "Traceback" not in err


def test_generate_mixes_the_codes_that_a_run_keeps(
    checkpoint: Checkpoint, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.path, run)
    threes = digits.train.take(np.flatnonzero(digits.train.labels == 3)[:30])
    kept = {"codes": predict(checkpoint.model, threes.images).codes, "code_labels": torch.from_numpy(threes.labels)}
    write_tensors(run / SAMPLE_FILE, {**vars(load_samples(run)), **kept}, {})
    for name, options in {
        "default": (),
        "interpolate": ("--method", "interpolate"),
        "gaussian": ("--method", "gaussian"),
        "temperature": ("--temperature", "0.7"),
    }.items():
        out = tmp_path / f"{name}.npz"
        code, _, err = call(capsys, "generate", run, "--class", 3, "--per-class", 4, "--out", out, *options)
        assert code == 0, err
    made = {
        name: load_dataset(tmp_path / f"{name}.npz").train.images
        for name in ("default", "interpolate", "gaussian", "temperature")
    }
    assert (made["temperature"] == made["gaussian"]).all()
    assert (made["default"] == made["interpolate"]).all() and (made["default"] != made["gaussian"]).any()
    assert predict(checkpoint.model, made["default"]).probabilities[:, 3].min() >= 0.899
    for options, says in (
        (("--class", 4, "--method", "interpolate"), "two training codes are mixed, and it has 0"),
        (("--class", 3, "--confidence", "1.5"), "confidence 1.5"),
        (("--class", 3, "--method", "interpolate", "--temperature", "0.5"), "--temperature"),
    ):
        code, _, err = call(capsys, "generate", run, "--out", tmp_path / "no", *options)
        assert code == 2 and says in err and not (tmp_path / "no").exists()


def noise(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{index}.png")


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"a": 30}, "All 30 images are of one class (a)"),
        ({"a": 30, "b": 1}, "Class b has a single image"),
        ({"a": 1, "b": 1}, "has a single image"),
        ({"a": 30, "b": 0}, "b holds no images"),
        ({"a": 30, "b": 30, "unlabelled": 0}, "unlabelled holds no images"),
        ({"unlabelled": 30}, "images without labels alone"),
        ({"a": 30, "copies": 8}, "The 8 images of class copies are duplicates of one another"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_on_gets_a_sentence(
    tmp_path: Path, counts: dict[str, int], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (name, count) in enumerate(counts.items()):
        noise(tmp_path / "data" / name, count, seed)
    for file in (tmp_path / "data").glob("copies/*.png"):
        if file.name != "0.png":
            shutil.copy(file.with_name("0.png"), file)
    code, _, err = call(capsys, "train", "--data", tmp_path / "data", "--preset", "tiny", "--out", tmp_path / "run")
    assert code == 2 and says in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_labels_without_images_get_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "set.npz", labels=np.arange(20) % 2)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02\0\1")
    for name, says in (("set.npz", "lacks images"), ("idx", "holds labels but no images file")):
        code, _, err = call(capsys, "train", "--data", tmp_path / name, "--out", tmp_path / "run")
        assert code == 2 and says in err and "Traceback" not in err
