"""The number of epochs follows from the time of a step, once: a run that goes on keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prepared import prepare

import vae_edge
from vae_edge.data import Dataset, LabelledImages
from vae_edge.errors import ConfigError
from vae_edge.training import duration
from vae_edge.training.checkpoint import MODEL, STATE, read_config, read_log
from vae_edge.training.config import PRETRAINED_EPOCHS, TrainConfig
from vae_edge.training.duration import DEFAULT_MINUTES, MIN_EPOCHS, choose_epochs, measure_step


@pytest.fixture
def step_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a step is measured to take, which the test sets."""
    measured = [0.1]
    monkeypatch.setattr(duration, "measure_step", lambda splits, config: measured[0])
    return measured


def seconds(found: duration.Duration) -> float:
    assert found.steps % found.epochs == 0
    return found.steps * found.step_s


def test_a_small_set_takes_the_default_epochs_or_about_ten_minutes(few_digits: Dataset, step_s: list[float]) -> None:
    prepared = prepare(few_digits, TrainConfig())
    documented = TrainConfig().epochs_for(len(prepared[0].train))
    step_s[0] = 1e-4
    assert choose_epochs(*prepared).epochs == documented
    step_s[0] = 1.0
    slow = choose_epochs(*prepared)
    assert MIN_EPOCHS < slow.epochs < documented
    assert 60 * DEFAULT_MINUTES - 2 * slow.steps / slow.epochs < seconds(slow) * 1.03 <= 60 * DEFAULT_MINUTES
    assert f"not {documented}" in str(slow) and "about 10 minutes" in str(slow) and "--minutes M" in str(slow)
    step_s[0] = 1e3
    assert choose_epochs(*prepared).epochs == MIN_EPOCHS


def test_a_pretrained_backbone_takes_few_epochs_however_slow(few_digits: Dataset, step_s: list[float]) -> None:
    splits, config = prepare(few_digits, TrainConfig())
    model = replace(config.model, head="pooled", backbone="timm/tf_efficientnet_lite0")
    for step_s[0] in (1e-4, 1e3):
        found = choose_epochs(splits, replace(config, model=model))
        assert found.epochs == PRETRAINED_EPOCHS < MIN_EPOCHS and "the default for" in str(found)


def test_a_large_set_takes_the_default_epochs_however_long(step_s: list[float]) -> None:
    labels = np.arange(12_000) % 2
    images = np.random.default_rng(0).integers(0, 256, (12_000, 28, 28, 1), dtype=np.uint8)
    large = Dataset("large", "large", LabelledImages(images, labels, ("a", "b")), None)
    prepared = prepare(large, TrainConfig(rotation="none"))
    step_s[0] = 100.0
    found = choose_epochs(*prepared)
    assert found.epochs == TrainConfig().epochs_for(len(prepared[0].train)) == 65
    assert "the default for 10,800 images" in str(found) and "hours" in str(found)


def test_minutes_are_kept_to_the_epoch(few_digits: Dataset, step_s: list[float]) -> None:
    prepared = prepare(few_digits, TrainConfig())
    per_epoch_s = step_s[0] * choose_epochs(*prepared, 1.0).steps / choose_epochs(*prepared, 1.0).epochs * 1.03
    for minutes in (0.001, 0.5, 3.0, 60.0):
        found = choose_epochs(*prepared, minutes)
        assert found.epochs == max(1, int(minutes * 60 / per_epoch_s))
        assert f"fits into {minutes:g} minutes" in str(found)
    with pytest.raises(ConfigError, match="above 0"):
        choose_epochs(*prepared, -1.0)


def test_a_step_is_measured_and_leaves_nothing(few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepared = prepare(few_digits, TrainConfig(epochs=1, batch=64))  # five steps are a whole run, and more are taken
    assert 0 < measure_step(*prepared) < 60
    assert list(tmp_path.glob("vae-edge*")) == []


def test_a_run_that_goes_on_keeps_the_epochs_that_were_chosen(
    few_digits: Dataset, tmp_path: Path, step_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "run", {"preset": "tiny", "progress": None}
    config = TrainConfig(rotation="none", batch=64)
    step_s[0] = 60 / 5 / 3.2 / 1.03  # of five steps an epoch: three epochs in a minute
    monkeypatch.setattr("vae_edge.training.trainer.CHECKPOINT_INTERVAL_S", 0.0)

    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == 7:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        vae_edge.train(few_digits, out, config, minutes=1, preset="tiny", progress=die)
    assert (out / STATE).exists() and not (out / MODEL).exists()
    assert read_config(out).training.epochs == 3
    step_s[0] = 1e-6  # another machine's, or a quieter hour's
    vae_edge.train(few_digits, out, config, resume=True, **options)
    assert len(read_log(out)) == 3
    whole = vae_edge.train(few_digits, tmp_path / "whole", replace(config, epochs=3), **options)
    assert (whole.path / MODEL).read_bytes() == (out / MODEL).read_bytes()


def test_epochs_and_minutes_exclude_one_another(few_digits: Dataset, tmp_path: Path) -> None:
    for config, minutes in ((TrainConfig(epochs=2), 1.0), (None, 0.0), (None, float("inf")), (None, float("nan"))):
        with pytest.raises(ConfigError, match="minutes"):
            vae_edge.train(few_digits, tmp_path / "x", config, preset="tiny", minutes=minutes, progress=None)
    assert not (tmp_path / "x").exists()
