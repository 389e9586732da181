"""What training and its commands read, nearly right 2,100 times each: a right result or an error of our family."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import onnx
import pytest
from mutations import EACH, bytes_changed, json_changed, outcome, seeds

from vae_edge.errors import CheckpointError

torch = pytest.importorskip("torch")

from vae_edge.experiments.comparison import read_trial  # noqa: E402
from vae_edge.experiments.trials import SCHEMA  # noqa: E402
from vae_edge.exporting.bundle import load_onnx  # noqa: E402
from vae_edge.exporting.onnx_file import get_metadata  # noqa: E402
from vae_edge.model import AngleVAE, create_config  # noqa: E402
from vae_edge.preprocess import InputSpec  # noqa: E402
from vae_edge.training.checkpoint import (  # noqa: E402
    CONFIG,
    LOG,
    MODEL,
    load_checkpoint,
    read_config,
    read_log,
    read_tensors,
    write_tensors,
)
from vae_edge.training.config import RunConfig, TrainConfig, TrainingData  # noqa: E402
from vae_edge.training.run_file import ARGUMENTS, RUN_FILE, run_arguments, write_run_file  # noqa: E402

CONFIGURATION = RunConfig(
    create_config("tiny", classes=3),
    TrainConfig(epochs=2),
    ("a", "b", "c"),
    InputSpec(28, 1),
    TrainingData("x", trained_on=9, unlabelled=0, holdout_fraction=0.1, seed=0, ambiguous=(), absent=()),
)
RESULT = {
    "step": 3, "threshold": 1.0, "threshold_fast": 1.0, "reject_rate": 0.01, "validation": {"accuracy": 0.5, "n": 3},
}  # fmt: skip


@seeds
def test_configurations(tmp_path: Path, rng: random.Random) -> None:
    for _ in range(EACH):
        (tmp_path / CONFIG).write_bytes(json_changed(CONFIGURATION.to_dict(), rng))
        config = outcome(lambda: read_config(tmp_path))
        if config is not None:
            assert max(config.model.widths) <= 1024 and config.model.classes == len(config.classes)
            assert all(type(width) is int for width in config.model.widths)
            json.dumps(config.to_dict(), allow_nan=False).encode("utf-8")


@pytest.mark.parametrize(
    "key", ["absent", "ambiguous", "fingerprint", "holdout_fraction", "seed", "trained_on", "unlabelled"]
)
def test_a_configuration_that_lacks_what_is_said_of_the_data_is_refused(tmp_path: Path, key: str) -> None:
    stored = CONFIGURATION.to_dict()
    stored["data"] = {name: value for name, value in stored["data"].items() if name != key}
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=f"it lacks 'data.{key}'"):
        read_config(tmp_path)


@pytest.fixture(scope="session")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "small.safetensors"
    kinds = {"b": torch.arange(5), "c": torch.zeros(2, dtype=torch.bfloat16)}
    write_tensors(path, {"a": torch.zeros(3, 4), **kinds}, RESULT)
    return path


@seeds
def test_tensors(tensors: Path, tmp_path: Path, rng: random.Random) -> None:
    path, content = tmp_path / "a.safetensors", tensors.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    for _ in range(EACH):
        if rng.random() < 0.6:
            changed = json_changed(header, rng)
            path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
        else:
            path.write_bytes(bytes_changed(content, rng))
        found = outcome(lambda: read_tensors(path))
        if found is not None:
            assert isinstance(found[1], dict) and all(isinstance(value, torch.Tensor) for value in found[0].values())


@pytest.mark.slow
@seeds
def test_results_of_a_run(run_folder: Path, rng: random.Random) -> None:
    path, content = run_folder / MODEL, (run_folder / "right").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    for _ in range(EACH):
        result = json_changed(RESULT, rng).decode("utf-8", "replace")
        changed = json.dumps({**header, "__metadata__": {"vae_edge": result}}).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
        found = outcome(lambda: load_checkpoint(run_folder))
        if found is not None:
            assert isinstance(found.result.step, int) and abs(found.result.threshold) < float("inf")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model was not trained."""
    folder = tmp_path_factory.mktemp("run")
    (folder / CONFIG).write_text(json.dumps(CONFIGURATION.to_dict()))
    write_tensors(folder / MODEL, AngleVAE(CONFIGURATION.model).state_dict(), RESULT)
    (folder / MODEL).rename(folder / "right")
    return folder


def test_a_run_with_weights_that_are_no_numbers_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes((run_folder / CONFIG).read_bytes())
    state = AngleVAE(CONFIGURATION.model).state_dict()
    write_tensors(tmp_path / MODEL, state, RESULT)
    load_checkpoint(tmp_path)
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[0] = float("nan")
    write_tensors(tmp_path / MODEL, state, RESULT)
    with pytest.raises(CheckpointError, match="not numbers"):
        load_checkpoint(tmp_path)


@seeds
def test_logs(tmp_path: Path, rng: random.Random) -> None:
    for _ in range(EACH):
        line = json_changed({"epoch": 1, "seconds": 1.5, "total": 3.0}, rng)
        (tmp_path / LOG).write_bytes(b'{"epoch": 0, "seconds": 1}\n' + line + b"\n")
        for epoch in outcome(lambda: read_log(tmp_path)) or ():
            assert epoch["seconds"] < float("inf")


@seeds
def test_records_of_a_comparison(tmp_path: Path, rng: random.Random) -> None:
    number = {"macs": None, "images_seen": 1, "wall_seconds": 1.0, "processor_seconds": 1.0}
    right: dict[str, Any] = {
        "schema": SCHEMA,
        "trial": {"model": "svm", "images": "rotated", "generated": False, "seed": 0},
        "settings": {"training": {"batch": None, "ema": 0.998}},
        "fingerprint": "x",
        "images": {"trained_on": 1, "generated": 0, "tested_on": 2},
        "accuracy": 0.5,
        "training": number,
        "inference": {"decision": {"macs": 1, "parameters": 2}},
        "generator": None,
        "files": {"decision": {"file": "a.onnx", "bytes": 3, "sha256": "0"}},
    }
    before = {name: value for name, value in right.items() if name != "trial"} | {
        "schema": 1,
        "cell": {"model": "svm", "images": "turned", "generated": False, "seed": 0},
        "images": {"trained_on": 1, "drawn": 0, "judged_on": 2},
    }
    for k in range(2 * EACH):
        stored = before if k % 2 else right
        (tmp_path / "trial.json").write_bytes(json_changed(stored, rng))
        record = outcome(lambda: read_trial(tmp_path / "trial.json"))
        if record is not None:
            assert record["trial"]["model"] and 0 * record["accuracy"] == 0


@seeds
def test_onnx_files_that_are_inspected(model_file: Path, tmp_path: Path, rng: random.Random) -> None:
    path, content = tmp_path / "a.onnx", model_file.read_bytes()
    for _ in range(EACH):
        made = content[:2000] + content[-600:] if rng.random() < 0.5 else content
        kept = 0 if rng.random() < 0.5 else len(made) - 80
        path.write_bytes(made[:kept] + bytes_changed(made[kept:], rng))
        model = outcome(lambda: load_onnx(path))
        if model is not None:
            assert isinstance(model, onnx.ModelProto)
            outcome(lambda model=model: get_metadata(model, path))


@seeds
def test_configuration_files(tmp_path: Path, rng: random.Random) -> None:
    write_run_file(tmp_path, CONFIGURATION, {"data": "digits", "preset": "tiny", "size": 28, "threads": 1})
    content = (tmp_path / RUN_FILE).read_bytes()
    assert run_arguments(tmp_path / RUN_FILE)["config"] == CONFIGURATION.training
    for _ in range(EACH):
        (tmp_path / RUN_FILE).write_bytes(bytes_changed(content, rng))
        found = outcome(lambda: run_arguments(tmp_path / RUN_FILE))
        if found is not None:
            assert isinstance(found.pop("config"), TrainConfig) and set(found) <= {*ARGUMENTS, "model"}
