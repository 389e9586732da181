"""Training: what a run writes, the same weights from a seed, and from a run that was stopped anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import prepare

from vae_edge.data import Dataset
from vae_edge.errors import CheckpointError, ConfigError
from vae_edge.training.checkpoint import (
    CONFIG,
    MODEL,
    STATE,
    Checkpoint,
    load_checkpoint,
    read_tensors,
)
from vae_edge.training.config import TrainConfig
from vae_edge.training.evaluate import predict
from vae_edge.training.generate import generate
from vae_edge.training.trainer import Interrupted, train

SETTINGS = TrainConfig(epochs=3, batch=64)


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def save_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_edge.training.trainer.CHECKPOINT_INTERVAL_S", 0.0)


def fit(data: Dataset, out: Path, settings: TrainConfig = SETTINGS, **options) -> dict[str, torch.Tensor]:
    train(*prepare(data, settings), out, **options)
    return read_tensors(out / MODEL)[0]


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_learns_and_writes_what_it_promises(run: Path, checkpoint: Checkpoint):
    assert checkpoint.result.validation["accuracy"] > 0.8
    assert checkpoint.result.validation_upright["accuracy"] > 0.8
    assert checkpoint.result.validation["angle_error_deg"]["median"] < 20
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(log) == checkpoint.config.training.epochs
    assert log[-1]["total"] < log[0]["total"]
    assert {"reconstruction", "kl", "classes", "angle", "orientation_classes", "code_classes", "total"} <= log[0].keys()
    assert not list(run.glob("**/*.pt")) and not list(run.glob("**/*.pkl"))


def test_the_threshold_rejects_its_fraction_of_the_held_out_images(checkpoint: Checkpoint):
    count = checkpoint.result.validation["n"]
    assert checkpoint.result.validation["accepted"] == pytest.approx(0.99, abs=1.5 / count)


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(few_digits: Dataset, tmp_path: Path):
    first, second = fit(few_digits, tmp_path / "a"), fit(few_digits, tmp_path / "b")
    assert_equal(first, second)
    other = fit(few_digits, tmp_path / "c", replace(SETTINGS, seed=1))
    assert not torch.equal(first["mu.weight"], other["mu.weight"])


def test_a_run_that_was_killed_at_any_step_resumes_to_the_same_weights(few_digits: Dataset, tmp_path: Path):
    whole = fit(few_digits, tmp_path / "whole")

    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == 8:  # in the middle of the second epoch
            raise Stop

    prepared = prepare(few_digits, SETTINGS)
    with pytest.raises(Stop):
        train(*prepared, tmp_path / "died", progress=die)
    with pytest.raises(CheckpointError, match="not finished"):
        load_checkpoint(tmp_path / "died")
    with pytest.raises(CheckpointError, match="--resume"):
        train(*prepared, tmp_path / "died")
    assert_equal(whole, fit(few_digits, tmp_path / "died", resume=True))
    assert log_of(tmp_path / "died") == log_of(tmp_path / "whole")


def test_a_run_that_was_asked_to_stop_inside_an_epoch_logs_that_epoch_whole(few_digits: Dataset, tmp_path: Path):
    fit(few_digits, tmp_path / "whole")

    def ask(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(Interrupted, match="step 8 of"):
            train(*prepare(few_digits, SETTINGS), tmp_path / "asked", progress=ask)
    finally:
        signal.signal(signal.SIGINT, before)
    fit(few_digits, tmp_path / "asked", resume=True)
    assert log_of(tmp_path / "asked") == log_of(tmp_path / "whole")


def log_of(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(rows) == SETTINGS.epochs
    assert all(row.pop("seconds") > 0 and row.pop("data_seconds") > 0 for row in rows)
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, rotation="none", labels_per_class=8),
        replace(SETTINGS, rotation="none", synthetic_ratio=0.5, pretrain=0.5, pseudo_label_threshold=0.02, epochs=4),
        replace(SETTINGS, rotation="none", patience=1, epochs=6),
        replace(SETTINGS, rotation="30", augment="strong", mirror=True),
    ],
    ids=["few labels", "generated", "patience", "strong"],
)
def test_every_kind_of_training_resumes_to_the_same_weights(settings: TrainConfig, few_digits: Dataset, tmp_path: Path):
    whole = fit(few_digits, tmp_path / "whole", settings)
    for dies_at in (7, 13):

        def die(step: int, steps: int, terms: dict[str, float], last: int = dies_at) -> None:
            if step == last:
                raise Stop

        prepared = prepare(few_digits, settings)
        with pytest.raises(Stop):
            train(*prepared, tmp_path / f"{dies_at}", progress=die)
        assert_equal(whole, fit(few_digits, tmp_path / f"{dies_at}", settings, resume=True))


def test_classes_that_cannot_be_generated_do_not_stop_the_run(
    few_digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """One training image of 3 is left: nothing can be mixed of it."""
    split = few_digits.train
    few = split.take(np.concatenate([np.flatnonzero(split.labels != 3), np.flatnonzero(split.labels == 3)[:2]]))
    settings = replace(SETTINGS, rotation="none", synthetic_ratio=0.5, epochs=2)
    caplog.set_level("INFO", "vae_edge")
    fit(Dataset("few", "digits", few, None), tmp_path / "r", settings)
    generated = read_tensors(tmp_path / "r" / "generated.safetensors")[0]["labels"]
    assert set(generated.tolist()) == set(range(10)) - {3}
    assert any("class 3 are trained on: two training codes are mixed" in line for line in caplog.messages)


def test_each_epoch_says_how_accurate_the_model_is(few_digits: Dataset, tmp_path: Path):
    seen: list[dict[str, float]] = []
    settings = replace(SETTINGS, rotation="none", epochs=8, learning_rate=0.01)
    splits, config = prepare(few_digits, settings)
    train(splits, config, tmp_path / "r", progress=lambda step, steps, terms: seen.append(terms))
    log = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    assert log[0]["accuracy"] < 0.3 and log[0]["accuracy"] + 0.1 < log[-1]["accuracy"] <= 1
    per_epoch = len(seen) // len(log)
    for number, line in enumerate(log):
        steps = seen[number * per_epoch : (number + 1) * per_epoch]
        assert line["accuracy"] == pytest.approx(np.mean([terms["accuracy"] for terms in steps]), abs=1e-5)
        assert ["val_accuracy" in terms for terms in steps] == [False] * (per_epoch - 1) + [True]
        assert steps[-1]["val_accuracy"] == line["val_accuracy"] and steps[-1]["epoch"] == number + 1
    # a tenth of the 320 images of an epoch, of the held-out ones
    assert log[-1]["val_accuracy"] * 32 == pytest.approx(round(log[-1]["val_accuracy"] * 32), abs=1e-3)


def test_the_validation_accuracy_is_that_of_the_saved_model(few_digits: Dataset, tmp_path: Path):
    """With early stopping all validation images count, and after the last epoch the EMA model is the one saved."""
    settings = replace(SETTINGS, rotation="none", patience=9, epochs=3, learning_rate=0.01)
    splits, config = prepare(few_digits, settings)
    train(splits, config, tmp_path / "r")
    log = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    best = min(log, key=lambda line: line["val_classes"])
    right = predict(load_checkpoint(tmp_path / "r").model, splits.val.images).logits.argmax(1) == splits.val.labels
    assert best["val_accuracy"] == pytest.approx(right.mean(), abs=1e-5)


def test_known_angles_are_part_of_the_truth(digits: Dataset, tmp_path: Path):
    """All images lie on their side and say so: the angle encoder must learn the sum of both turns."""
    chosen = digits.train.take(np.flatnonzero(np.isin(digits.train.labels, [2, 4, 7])))
    lying = np.ascontiguousarray(np.rot90(chosen.images, 1, axes=(1, 2)))  # a quarter turn counter-clockwise
    data = replace(chosen, images=lying, angles_deg=np.full(len(chosen), 90, np.float32))
    settings = TrainConfig(epochs=14, batch=64)
    train(*prepare(Dataset("lying", "lying", data, None), settings), tmp_path / "r")
    assert load_checkpoint(tmp_path / "r").result.validation["angle_error_deg"]["median"] < 30


def test_a_class_without_images_does_no_harm(few_digits: Dataset, tmp_path: Path):
    named = replace(few_digits.train, labels=few_digits.train.labels + 1, classes=("none", *few_digits.classes))
    data = Dataset("shifted", "shifted", named, None)
    fit(data, tmp_path / "r")
    checkpoint = load_checkpoint(tmp_path / "r")
    assert np.isfinite(checkpoint.result.threshold)
    assert checkpoint.config.data.absent == ("none",)
    with pytest.raises(ConfigError, match="none"):
        generate(checkpoint.model, named.classes, 1, wanted=["none"], absent=["none"])


LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
from vae_edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(out: Path, *extra: str) -> subprocess.Popen:
    options = ["train", "--data", "digits", "--preset", "tiny", "--epochs", "40", "--out", str(out), *extra]
    return subprocess.Popen([sys.executable, "-c", LISTENING, *options], stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen, other_than: int | None = None) -> None:
    """Until the file is there, and is not the one that was last changed at the time `other_than`."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_mtime_ns == other_than:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_a_whole_state_from_which_it_goes_on(tmp_path: Path, number: int, code: int):
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / STATE, process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert "--resume" in errors and "Traceback" not in errors
    _, metadata = read_tensors(tmp_path / "run" / STATE)
    assert metadata["step"] > 0
    saved = (tmp_path / "run" / STATE).stat().st_mtime_ns
    again = start(tmp_path / "run", "--resume")
    wait_for(tmp_path / "run" / STATE, again, other_than=saved)
    again.send_signal(signal.SIGINT)
    assert again.wait(60) in (0, 130)
    assert read_tensors(tmp_path / "run" / STATE)[1]["step"] > metadata["step"]


def test_a_full_disk_is_a_sentence_and_the_last_state_stays(few_digits: Dataset, tmp_path: Path):
    program = textwrap.dedent(f"""
        import resource, signal, sys
        from vae_edge.cli import main
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        command = "train --data digits --preset tiny --epochs 1 --out"
        sys.exit(main([*command.split(), {str(tmp_path / "r")!r}]))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "could not be written" in done.stderr or "File too large" in done.stderr
    assert not [path for path in (tmp_path / "r").iterdir() if path.name.endswith(".part")]


def test_a_state_without_its_settings_is_not_resumed(few_digits: Dataset, tmp_path: Path):
    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == 8:
            raise Stop

    prepared = prepare(few_digits, SETTINGS)
    with pytest.raises(Stop):
        train(*prepared, tmp_path / "r", progress=die)
    (tmp_path / "r" / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=CONFIG):
        train(*prepared, tmp_path / "r")


def test_a_finished_run_is_never_written_over(run: Path, digits: Dataset):
    before = (run / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match="finished run"):
        train(*prepare(digits, SETTINGS), run, resume=True)
    assert (run / MODEL).read_bytes() == before


def test_resuming_with_other_settings_or_other_images_is_refused(few_digits: Dataset, tmp_path: Path):
    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(*prepare(few_digits, SETTINGS), tmp_path / "r", progress=die)
    with pytest.raises(CheckpointError, match="learning_rate"):
        fit(few_digits, tmp_path / "r", replace(SETTINGS, learning_rate=1e-3), resume=True)
    changed = few_digits.train.images.copy()
    changed[0, 0, 0, 0] ^= 1
    other = Dataset("few", "digits", replace(few_digits.train, images=changed), None)
    with pytest.raises(CheckpointError, match="other images"):
        fit(other, tmp_path / "r", resume=True)


def test_without_tensorboard_its_log_is_refused_before_anything_is_written(
    few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CheckpointError, match=r"vae-edge\[tensorboard\]"):
        train(*prepare(few_digits, SETTINGS), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
