"""What `vae-edge train` says at its end, and what a bundle keeps of it: classes, angles, learning curves."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import vae_edge
from vae_edge import api
from vae_edge.bundle import load_bundle
from vae_edge.cli.evaluate import held_out_lines
from vae_edge.data import Dataset
from vae_edge.training.checkpoint import CURVES, TrainResult, load_checkpoint
from vae_edge.training.config import TrainConfig

pytest.importorskip("onnxscript")
FIXTURES = Path(__file__).parents[1] / "fixtures" / "schema1"


def test_a_model_that_learnt_nothing_says_so_and_its_bundle_does_not_tell_angles(
    few_digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vae_edge")
    settings = TrainConfig(epochs=1, batch=128, learning_rate=1e-5)
    run = vae_edge.train(few_digits, tmp_path / "run", settings, preset="tiny")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("never right" in sentence for sentence in warnings)
    assert any("the angles are not to be relied on: their median error is " in sentence for sentence in warnings)
    lines = list(held_out_lines(run.result))
    assert lines[1].startswith("  NEVER RIGHT  ") and any(line.startswith("  confusions   ") for line in lines)
    assert any(line.startswith("  calibration  ") for line in lines)
    assert run.result.validation["near_copies"]["compared"] == len(few_digits.train) // 10
    with Image.open(tmp_path / "run" / CURVES) as picture:
        assert picture.format == "PNG" and picture.width == 1350

    vae_edge.export(tmp_path / "run", tmp_path / "bundle", probes=False)
    bundle = load_bundle(tmp_path / "bundle")
    assert not bundle.angle_is_reliable and bundle.ambiguous == {} and bundle.manifest["data"]["ambiguous"] == []
    assert load_checkpoint(tmp_path / "run").result == run.result


def test_without_matplotlib_there_is_no_picture_but_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "vae_edge")
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    api._write_learning_curves(tmp_path)
    assert "matplotlib" in caplog.text and list(tmp_path.iterdir()) == []


def test_symmetry_of_a_run_is_read_as_written_and_refused_where_damaged() -> None:
    old = load_checkpoint(FIXTURES / "rotated")
    assert old.result.symmetry is None and old.ambiguous == old.config.data.ambiguous == ()
    stored = replace(old.result, symmetry={"8": 2, "0": 0}).to_dict()
    assert TrainResult.from_dict(stored).symmetry == {"8": 2, "0": 0}
    del stored["symmetry"]
    assert TrainResult.from_dict(stored).symmetry is None  # a run of an earlier version
    for damaged in ([], {"8": -1}, {"8": "2"}, {"8": True}):
        with pytest.raises(ValueError, match="symmetry"):
            TrainResult.from_dict({**stored, "symmetry": damaged})
