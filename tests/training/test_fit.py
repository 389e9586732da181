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

from vae_edge.data import Dataset, LabelledImages, rotated, rotation_range
from vae_edge.errors import CheckpointError, ConfigError, DataError
from vae_edge.model import AngleVAE, LossWeights
from vae_edge.preprocess import InputSpec
from vae_edge.training.checkpoint import (
    CONFIG,
    MODEL,
    STATE,
    Checkpoint,
    load_checkpoint,
    load_samples,
    read_config,
    read_tensors,
)
from vae_edge.training.config import TrainConfig, learning_rate
from vae_edge.training.data import make_splits, plan, to_float
from vae_edge.training.evaluate import fit_score, predict
from vae_edge.training.generate import generate
from vae_edge.training.trainer import Interrupted, train

SETTINGS = TrainConfig(epochs=3, batch=64)


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def save_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_edge.training.trainer.CHECKPOINT_INTERVAL_S", 0.0)


def fit(data: Dataset, out: Path, settings: TrainConfig = SETTINGS, **options) -> dict[str, torch.Tensor]:
    train(data, plan(data, "tiny", settings), out, **options)
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
    assert {"reconstruction", "kl", "classes", "angle", "pose_classes", "total"} <= log[0].keys()
    assert not list(run.glob("**/*.pt")) and not list(run.glob("**/*.pkl"))


def test_the_threshold_rejects_its_share_of_the_held_out_images(checkpoint: Checkpoint):
    count = checkpoint.result.validation["n"]
    assert checkpoint.result.validation["accepted"] == pytest.approx(0.99, abs=1.5 / count)


def test_samples_are_held_out_images_that_the_model_was_measured_on(run: Path, checkpoint: Checkpoint, digits: Dataset):
    samples = load_samples(run)
    known = {image.tobytes() for image in digits.train.images}
    assert all(image.numpy().tobytes() in known for image in samples["upright"])
    right = predict(checkpoint.model, samples["images"].numpy()).probabilities.argmax(1) == samples["labels"].numpy()
    assert right.mean() > 0.75


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(few_digits: Dataset, tmp_path: Path):
    first, second = fit(few_digits, tmp_path / "a"), fit(few_digits, tmp_path / "b")
    assert_equal(first, second)
    other = fit(few_digits, tmp_path / "c", replace(SETTINGS, seed=1))
    assert not torch.equal(first["mu.weight"], other["mu.weight"])


def test_a_run_that_died_at_any_step_resumes_to_the_same_weights(few_digits: Dataset, tmp_path: Path):
    whole = fit(few_digits, tmp_path / "whole")

    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == 8:  # in the middle of the second epoch
            raise Stop

    config = plan(few_digits, "tiny", SETTINGS)
    with pytest.raises(Stop):
        train(few_digits, config, tmp_path / "died", progress=die)
    with pytest.raises(CheckpointError, match="not finished"):
        load_checkpoint(tmp_path / "died")
    with pytest.raises(CheckpointError, match="--resume"):
        train(few_digits, config, tmp_path / "died")
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
            train(few_digits, plan(few_digits, "tiny", SETTINGS), tmp_path / "asked", progress=ask)
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
        replace(SETTINGS, rotation="none", generated=0.5, pretrain=0.5, confidence=0.02, epochs=4),
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

        config = plan(few_digits, "tiny", settings)
        with pytest.raises(Stop):
            train(few_digits, config, tmp_path / f"{dies_at}", progress=die)
        assert_equal(whole, fit(few_digits, tmp_path / f"{dies_at}", settings, resume=True))


def test_known_angles_are_part_of_the_truth(digits: Dataset, tmp_path: Path):
    """All images lie on their side and say so: the angle encoder must learn the sum of both turns."""
    chosen = digits.train.take(np.flatnonzero(np.isin(digits.train.labels, [2, 4, 7])))
    lying = np.ascontiguousarray(np.rot90(chosen.images, 1, axes=(1, 2)))  # a quarter turn counter-clockwise
    data = replace(chosen, images=lying, angles_deg=np.full(len(chosen), 90, np.float32))
    settings = TrainConfig(epochs=14, batch=64)
    train(
        Dataset("lying", "lying", data, None),
        plan(Dataset("lying", "lying", data, None), "tiny", settings),
        tmp_path / "r",
    )
    assert load_checkpoint(tmp_path / "r").result["validation"]["angle_error_deg"]["median"] < 30


def test_a_class_without_images_does_no_harm(few_digits: Dataset, tmp_path: Path):
    named = replace(few_digits.train, labels=few_digits.train.labels + 1, classes=("none", *few_digits.classes))
    data = Dataset("shifted", "shifted", named, None)
    fit(data, tmp_path / "r")
    checkpoint = load_checkpoint(tmp_path / "r")
    assert np.isfinite(checkpoint.result.threshold)
    assert checkpoint.config.data.absent == ["none"]
    with pytest.raises(ConfigError, match="none"):
        generate(checkpoint.model, named.classes, 1, wanted=["none"], absent=["none"])


def test_turned_images_of_a_light_background_stay_light_in_the_corners(few_digits: Dataset):
    light = replace(few_digits.train, images=255 - few_digits.train.images)
    config = plan(Dataset("light", "light", light, None), "tiny", SETTINGS)
    assert config.input.background == "light" and config.model.fill == 1.0
    assert plan(few_digits, "tiny", SETTINGS).model.fill == 0.0
    turned = rotated(light, 180.0, 0, config.input.fill).images
    assert turned[:, 0, 0].min() > 200
    model = AngleVAE(config.model).eval()
    assert model(to_float(turned)).upright[:, 0, 0, 0].min() > 0.8


def test_too_few_images_are_refused_before_anything_is_written(few_digits: Dataset):
    few = Dataset("few", "few", few_digits.train.take(np.array([0, 1, 2, 40, 41, 42])), None)
    with pytest.raises(DataError, match="at least 16"):
        plan(few, "tiny", SETTINGS)


@pytest.mark.parametrize("weights", [{"gamma": 0.0}, {"beta": -1.0}, {"delta": float("nan")}])
def test_weights_that_no_loss_can_have_are_refused(weights: dict):
    with pytest.raises(ConfigError, match=next(iter(weights))):
        LossWeights(**weights)


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


def test_a_state_without_its_settings_is_not_gone_on_with(few_digits: Dataset, tmp_path: Path):
    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == 8:
            raise Stop

    config = plan(few_digits, "tiny", SETTINGS)
    with pytest.raises(Stop):
        train(few_digits, config, tmp_path / "r", progress=die)
    (tmp_path / "r" / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=CONFIG):
        train(few_digits, config, tmp_path / "r")


def test_generated_images_need_two_of_each_class_to_draw_between(few_digits: Dataset):
    half = few_digits.train
    few = half.take(np.concatenate([np.flatnonzero(half.labels != 3), np.flatnonzero(half.labels == 3)[:2]]))
    with pytest.raises(ConfigError, match="one labelled training image of 3"):
        plan(Dataset("few", "digits", few, None), "tiny", replace(SETTINGS, generated=0.5))
    none = half.take(np.flatnonzero(half.labels != 3))  # a class without any is drawn not at all
    assert plan(Dataset("few", "digits", none, None), "tiny", replace(SETTINGS, generated=0.5)).data["absent"] == ["3"]


def test_images_of_the_test_half_are_not_learnt_from_without_labels(few_digits: Dataset, digits: Dataset):
    others = np.concatenate([digits.test.images[:30], digits.train.images[-20:]])
    dataset = Dataset("both", "digits", few_digits.train, digits.test, others)
    material = make_splits(dataset, SETTINGS)
    assert len(material.unlabelled) == 20
    repeated = Dataset("leaky", "digits", few_digits.train, few_digits.train.take(np.arange(40)))
    assert 30 <= plan(repeated, "tiny", SETTINGS).data["also_tested"] <= 40  # but for those that are held out


def test_other_angles_are_other_data(few_digits: Dataset):
    angles = np.zeros(len(few_digits.train), np.float32)
    one, other = (
        Dataset("few", "digits", replace(few_digits.train, angles_deg=angles + turn), None).fingerprint()
        for turn in (0, 90)
    )
    assert one != other


def test_a_model_that_came_to_nothing_is_a_sentence(few_digits: Dataset):
    config = plan(few_digits, "tiny", SETTINGS)
    model = AngleVAE(config.model)
    model.mu.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="came to nothing"):
        fit_score(model, few_digits.train, config)


def test_a_finished_run_is_never_written_over(run: Path, digits: Dataset):
    before = (run / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match="finished run"):
        train(digits, plan(digits, "tiny", SETTINGS), run, resume=True)
    assert (run / MODEL).read_bytes() == before


def test_resuming_with_other_settings_or_other_images_is_refused(few_digits: Dataset, tmp_path: Path):
    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(few_digits, plan(few_digits, "tiny", SETTINGS), tmp_path / "r", progress=die)
    with pytest.raises(CheckpointError, match="learning_rate"):
        fit(few_digits, tmp_path / "r", replace(SETTINGS, learning_rate=1e-3), resume=True)
    changed = few_digits.train.images.copy()
    changed[0, 0, 0, 0] ^= 1
    other = Dataset("few", "digits", replace(few_digits.train, images=changed), None)
    with pytest.raises(CheckpointError, match="other images"):
        fit(other, tmp_path / "r", resume=True)


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


def test_one_class_and_no_training_half_are_refused(digits: Dataset):
    one = digits.train.take(np.flatnonzero(digits.train.labels == 3))
    single = LabelledImages(one.images, np.zeros_like(one.labels), ("three",))
    with pytest.raises(DataError, match=r"one class|two classes"):
        plan(Dataset("one", "one", single, None), "tiny", SETTINGS)
    with pytest.raises(DataError, match="training half"):
        plan(Dataset("t", "t", None, digits.test), "tiny", SETTINGS)


@pytest.mark.parametrize(
    "options", [{"rotation": "left"}, {"rotation": "400"}, {"holdout": 1.0}, {"batch": 1}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(options: dict):
    with pytest.raises(ConfigError):
        TrainConfig(**options)


def test_rotation_ranges_and_the_schedule():
    assert [rotation_range(r) for r in ("none", "full", "30")] == [0.0, 180.0, 30.0]
    rates = [learning_rate(step, 100, 1.0, 0.15) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.02) and rates.index(max(rates)) in (14, 15, 16)
    assert rates[0] < 0.05 and rates[-1] < 0.01


def test_mirroring_says_which_classes_it_makes_strange(digits: Dataset):
    assert plan(digits, "tiny", SETTINGS).data["unlike_mirrored"] == []
    strange = plan(digits, "tiny", replace(SETTINGS, mirror=True)).data["unlike_mirrored"]
    assert {"2", "3", "5", "7"} <= set(strange) and "8" not in strange


def test_without_tensorboard_its_log_is_refused_before_anything_is_written(
    few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CheckpointError, match=r"vae-edge\[tensorboard\]"):
        train(few_digits, plan(few_digits, "tiny", SETTINGS), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_prepares_files_as_it_did(checkpoint: Checkpoint, tmp_path: Path):
    config = json.loads((checkpoint.path / CONFIG).read_text())
    for ink, fit in ((0.7, "ink"), (None, "pad")):
        config["input"] = {"size": 28, "channels": 1, "background": "dark", "ink": ink}
        (tmp_path / CONFIG).write_text(json.dumps(config))
        assert read_config(tmp_path).input == InputSpec(28, 1, "dark", ink, fit)
