"""A run's files: what is stored, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vae_edge.data import Dataset
from vae_edge.errors import CheckpointError
from vae_edge.model import AngleVAE, create_config
from vae_edge.model.network import SCHEMA_1_NAMES, current_name
from vae_edge.preprocess import InputSpec
from vae_edge.training.checkpoint import (
    CONFIG,
    MODEL,
    Checkpoint,
    load_checkpoint,
    load_samples,
    read_config,
)
from vae_edge.training.evaluate import predict


def test_samples_are_held_out_images_that_the_model_was_measured_on(run: Path, checkpoint: Checkpoint, digits: Dataset):
    samples = load_samples(run)
    known = {image.tobytes() for image in digits.train.images}
    assert all(image.numpy().tobytes() in known for image in samples.upright)
    right = predict(checkpoint.model, samples.images.numpy()).probabilities.argmax(1) == samples.labels.numpy()
    assert right.mean() > 0.75


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "missing"])
def test_a_damaged_checkpoint_is_a_sentence(run: Path, tmp_path: Path, damage: str):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / MODEL).read_bytes())
    if damage == "truncated":
        (folder / MODEL).write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[20] ^= 0xFF
        (folder / MODEL).write_bytes(content)
    elif damage == "foreign":
        (folder / MODEL).write_bytes(b"PK\x03\x04 this is a zip, or a pickle")
    else:
        (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"damaged|not a training run"):
        load_checkpoint(folder)


def test_a_run_of_before_prepares_files_as_it_did(checkpoint: Checkpoint, tmp_path: Path):
    config = json.loads((checkpoint.path / CONFIG).read_text())
    for ink, fit in ((0.7, "foreground"), (None, "pad")):
        config["input"] = {"size": 28, "channels": 1, "background": "dark", "ink": ink}
        (tmp_path / CONFIG).write_text(json.dumps(config))
        assert read_config(tmp_path).input == InputSpec(28, 1, "dark", ink, fit)


def test_names_of_schema_1_are_translated_and_those_of_today_stay() -> None:
    for orientation in (True, False):
        names = list(AngleVAE(create_config("tiny", orientation=orientation)).state_dict())
        assert [current_name(name) for name in names] == names
        before = [_name_in_schema_1(name) for name in names]
        assert [current_name(name) for name in before] == names
        changed = [new for old, new in zip(before, names, strict=True) if old != new]
        assert len(changed) == 3 + sum(name.startswith("orientation.") for name in names)


def _name_in_schema_1(name: str) -> str:
    for old, new in SCHEMA_1_NAMES.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def test_a_run_of_a_later_schema_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = json.loads((checkpoint.path / CONFIG).read_text())
    assert config["schema"] == 2
    for schema in (3, 0, True, "1", None):
        (tmp_path / CONFIG).write_text(json.dumps({**config, "schema": schema}))
        with pytest.raises(CheckpointError, match="this version reads schemas 1 to 2"):
            read_config(tmp_path)
