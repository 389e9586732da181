"""`run.toml`: a run is repeated from it, options win over it, and what is wrong in it is named."""

from __future__ import annotations

import inspect
import json
import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vae_edge
from vae_edge import api
from vae_edge.cli import main
from vae_edge.cli.parser import build_parser
from vae_edge.data import Dataset
from vae_edge.errors import ConfigError
from vae_edge.training.checkpoint import MODEL, read_config, read_tensors
from vae_edge.training.config import TrainConfig
from vae_edge.training.run_file import ARGUMENTS, RUN_FILE, TABLES, _toml, run_arguments, tomllib

FILE = """
data = "digits"
preset = "tiny"
[training]
rotation = 30
epochs = 3
mirror = true
[training.weights]
beta = 2
[model]
latent = 8
widths = [16, 32, 16]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey drawings of odd sizes, so that size, channels and fit are chosen."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for name in ("bar", "ring"):
        (folder / name).mkdir()
        for index in range(20):
            page = Image.new("L", (40, 50), 255)
            x, y = (int(value) for value in rng.integers(12, 28, 2))
            draw = ImageDraw.Draw(page)
            draw.ellipse([x - 8, y - 8, x + 8, y + 8], outline=0, width=3) if name == "ring" else draw.rectangle(
                [x - 9, y - 2, x + 9, y + 2], fill=0
            )
            page.save(folder / name / f"{index}.png")
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / MODEL)[0]


def test_a_run_is_repeated_bit_for_bit_from_the_file_beside_it(shapes: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    settings = ("--preset", "tiny", "--epochs", "2", "--seed", "3", "--beta", "0.5", "--holdout", "0.3")
    assert main(["train", "--data", str(shapes), *settings, "--out", str(first), "--json"]) == 0
    assert main(["train", "--config", str(first / RUN_FILE), "--out", str(second), "--json"]) == 0
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert (first / RUN_FILE).read_bytes() == (second / RUN_FILE).read_bytes()
    other = vae_edge.train(**run_arguments(first / RUN_FILE, out=tmp_path / "third", seed=4), progress=None)
    assert not torch.equal(weights_of(other.path)["mu.weight"], ours["mu.weight"])
    one, two = (read_config(run).to_dict() for run in (first, second))
    assert {name for name, value in one["training"].items() if value != two["training"][name]} == {
        "batch",
        "augment",
        "bf16",
    }  # which the file gives in place of what chose them
    assert all(one[part] == two[part] for part in ("model", "data", "input", "classes"))


def test_the_file_says_everything_and_the_number_of_epochs_that_was_chosen(few_digits: Dataset, tmp_path: Path) -> None:
    run = vae_edge.train(few_digits, tmp_path / "run", preset="tiny", minutes=0.001, model={"latent": 8}, progress=None)
    text = (run.path / RUN_FILE).read_text()
    content = tomllib.loads(text)
    assert content["training"]["epochs"] == read_config(run.path).training.epochs == 1
    assert "# epochs: what fits into 0.001 minutes" in text and "data" not in content
    assert content["model"]["latent"] == 8 and content["size"] == 28 and content["channels"] == 1
    none_by_default = {"labels_per_class", "patience", "group_by", "backbone_weights"}
    assert set(content["training"]) - {"weights"} == set(TABLES["training"]) - none_by_default
    assert set(content["training"]["weights"]) == set(TABLES["training.weights"])
    assert run_arguments(run.path / RUN_FILE)["config"].epochs == 1


def test_options_win_over_the_file(file: Path) -> None:
    found = run_arguments(file)
    assert found["data"] == "digits" and found["model"] == {"latent": 8, "widths": (16, 32, 16)}
    assert found["config"] == TrainConfig(rotation="30", epochs=3, mirror=True, weights=vae_edge_weights(beta=2))
    changed = run_arguments(file, epochs=5, mirror=False, gamma=50.0, preset="small", out="x", model={"latent": 16})
    assert changed["config"] == TrainConfig(
        rotation="30", epochs=5, mirror=False, weights=vae_edge_weights(beta=2, gamma=50.0)
    )
    assert (changed["preset"], changed["out"], changed["model"]["latent"]) == ("small", "x", 16)
    assert run_arguments(file, minutes=2.0)["config"].epochs is None
    assert run_arguments() == {"config": TrainConfig()}


def vae_edge_weights(**values: float) -> object:
    from vae_edge.model import LossWeights

    return LossWeights(**values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", r"unknown key epoch \(did you mean epochs\?\)"),
        ("epochs = 3", r"epochs: it belongs in the table \[training\]"),
        ("[training]\nlerning_rate = 1", r"in \[training\] \(did you mean learning_rate\?\)"),
        ("[training]\npreset = 'tiny'", "before the first table"),
        ("[training]\nbeta = 1.0", r"it belongs in the table \[training.weights\]"),
        ("[model]\nfill = 0.5", "follows from the images"),
        ("[[training]]\nepochs = 3", r"expected the table \[training\]"),
        ("[training.weights]\nbeta = nan", "expected a finite number"),
        ("[training]\nepochs = 'many'", "of another type"),
        ("[training]\nepochs = 0", "expected at least 1"),
        ("[model]\nlatent = true", "of another type"),
        ("data = 3", "data is '3': expected a text"),
        ("strict = 1", "expected true or false"),
        ("size = true", "expected a whole number"),
        ("data =", "no configuration file|not a configuration file"),
        ("a = " + "[" * 3000, "not a configuration file"),
        ("a = \xff", "not a configuration file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words) as error:
        run_arguments(tmp_path / "x.toml")
    assert "x.toml" in str(error.value) or "epochs 0" in str(error.value)


def test_a_file_that_is_not_there_and_an_option_that_is_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        run_arguments(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"unknown option epoch \(did you mean epochs"):
        run_arguments(epoch=3)


def test_every_argument_of_train_can_be_given() -> None:
    names = set(inspect.signature(api.train).parameters)
    assert set(ARGUMENTS) == names - {"config", "model", "resume", "progress"}
    keys = [key for keys in TABLES.values() for key in keys]
    assert len(keys) == len(set(keys))
    options = {action.dest for action in build_parser().parse_args(["train"]).parser._actions}
    assert options - {"help", "config", "resume", "json"} <= set(keys)


def test_train_asks_for_data_and_out_where_the_file_gives_none(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(file)])
    assert stop.value.code == 2 and "required: --out" in capsys.readouterr().err


def test_values_come_back_as_they_were_written() -> None:
    rng = random.Random(0)
    letters = string.printable + "\x7f\x00\u2028é犬\U0001f600"
    values = ["".join(rng.choices(letters, k=12)) for _ in range(200)]
    values += [True, False, 0, -3, 10**15, 1e-05, 1e300, 0.1, [16, 32], ["a", "\\"]]
    for value in values:
        assert tomllib.loads(f"x = {_toml(value)}")["x"] == value, value
    assert json.loads(_toml((1, 2))) == [1, 2]
