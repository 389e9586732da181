import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vae_edge.cli import main
from vae_edge.data import Dataset, LabelledImages
from vae_edge.errors import CheckpointError, ConfigError, DataError
from vae_edge.experiments.comparison import Comparison, estimate
from vae_edge.experiments.setup import (
    IMAGE_KINDS,
    MODELS,
    THRESHOLD_FRACTION,
    ExperimentConfig,
    ExperimentSetup,
    Trial,
    list_trials,
)

TINY = ExperimentConfig(preset="tiny", images_seen=400)


SOME = ("svm", "cnn-equal", "angle-vae")


COMMAND = ("compare", "--preset", "tiny", "--images-seen", "400", "--seconds", "0.2", "--models", ",".join(SOME))


@pytest.fixture(scope="session")
def few_file(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred digits as a file."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    split = few_digits.train
    np.savez(path, x_train=split.images, y_train=split.labels)
    return path


@pytest.fixture(scope="session")
def compared(few_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some models on rotated images, with and without generated ones, by the command."""
    out = tmp_path_factory.mktemp("compared") / "out"
    assert main([*COMMAND, "--data", str(few_file), "--seeds", "1", "--only", "rotated", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def result(compared: Path) -> dict:
    return json.loads((compared / "compare.json").read_text())


def test_every_row_is_there_with_all_that_is_said_of_it(result: dict):
    assert [(row["model"], row["generated"]) for row in result["rows"]] == [
        (name, mix) for mix in (False, True) for name in SOME
    ]
    for row in result["rows"]:
        assert 0 <= row["accuracy"]["mean"] <= 1 and row["tested_on"] == 40
        assert row["wall_seconds"] > 0 and row["images_seen"] > 0
        for name in ("parameters", "macs", "bytes", "latency_us"):
            assert row["decision"][name] > 0, (row["model"], name)
    assert {gain["of"] for gain in result["gains"]} == {"angle-vae"}
    assert {gain["over"] for gain in result["gains"]} == {"cnn-equal"}
    assert result["machine"]["cpu"] and result["versions"]["scikit-learn"]


def test_ours_costs_more_with_all_that_it_gives(result: dict):
    ours = [row for row in result["rows"] if row["model"] == "angle-vae"]
    assert len(ours) == 2
    for row in ours:
        assert all(row["full"][name] > row["decision"][name] for name in ("parameters", "macs", "bytes"))


def test_the_table_says_what_the_json_says(compared: Path, result: dict):
    text = (compared / "compare.md").read_text()
    for row in result["rows"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['model']} |"))
        assert f"{100 * row['accuracy']['mean']:.2f}%" in line
        if not row["generated"]:
            assert f"{row['decision']['parameters']:,}" in line and f"{row['decision']['macs']:,}" in line
    assert result["sentence"] in text
    assert (compared / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (compared / "compare.svg").read_bytes()


def test_generated_images_come_from_one_generator_and_make_the_wanted_fraction(result: dict):
    mixed = [trial for trial in result["trials"] if trial["trial"]["generated"]]
    assert {trial["generator"]["trial"] for trial in mixed} == {"rotated-angle-vae-real-0"}
    assert len(result["generators"]) == 1
    for trial in mixed:
        share = trial["images"]["generated"] / (trial["images"]["generated"] + 360)
        assert share == pytest.approx(0.3, abs=0.02)
        assert trial["images"]["trained_on"] == pytest.approx(
            (1 - THRESHOLD_FRACTION) * (360 + trial["images"]["generated"]), rel=0.02
        )


def test_a_second_run_trains_nothing(compared: Path, few_file: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in (compared / "trials").iterdir()}
    again = [*COMMAND, "--data", str(few_file), "--seeds", "1", "--only", "rotated", "--out", str(compared)]
    assert main(again) == 0
    assert {path: path.stat().st_mtime_ns for path in (compared / "trials").iterdir()} == before
    assert "0 are to be trained" in capsys.readouterr().err


def test_other_settings_and_other_images_are_another_comparison(
    compared: Path, few_file: Path, few_digits: Dataset, capsys: pytest.CaptureFixture[str]
):
    other = [*COMMAND[:3], "--data", str(few_file), "--images-seen", "500", "--out", str(compared)]
    assert main(other) == 2
    assert "images_seen: 400 then, 500 now" in capsys.readouterr().err
    changed = few_digits.train.images.copy()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(ConfigError, match="images: '"):
        Comparison(Dataset("few", "few", replace(few_digits.train, images=changed), None), TINY, compared)
    assert len(list((compared / "trials").glob("*.json"))) == 6


@pytest.mark.parametrize("model", sorted(set(MODELS) - set(SOME)))
def test_every_other_model_runs_too(few_digits: Dataset, tmp_path: Path, model: str):
    record = Comparison(few_digits, TINY, tmp_path).run_or_load(Trial(model, "upright", False, 0))
    assert record["accuracy"] > 0.05 and record["inference"]["decision"]["parameters"] > 7000
    assert record["files"] == {}  # nobody asked for them


def test_a_trial_whose_file_is_damaged_or_gone_is_noticed(few_digits: Dataset, tmp_path: Path):
    comparison = Comparison(few_digits, TINY, tmp_path)
    trial = Trial("logistic", "upright", False, 0)
    comparison.run_or_load(trial)
    assert comparison.pending([trial]) == []
    comparison.record_file(trial).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        comparison.load(trial)
    comparison.record_file(trial).unlink()
    assert comparison.pending([trial]) == [trial]


def test_a_record_of_schema_1_is_read_where_it_is(few_digits: Dataset, tmp_path: Path):
    trial = Trial("logistic", "rotated", False, 0)
    comparison = Comparison(few_digits, TINY, tmp_path)
    record = comparison.run_or_load(trial)
    images = record["images"]
    before = {name: value for name, value in record.items() if name != "trial"} | {
        "schema": 1,
        "cell": {**record["trial"], "images": "turned"},
        "images": {"trained_on": images["trained_on"], "drawn": images["generated"], "judged_on": images["tested_on"]},
    }
    comparison.record_file(trial).unlink()
    path = tmp_path / "cells" / "turned-logistic-real-0.json"
    path.parent.mkdir()
    path.write_text(json.dumps(before))
    again = Comparison(few_digits, TINY, tmp_path)
    assert again.record_file(trial) == path and again.pending([trial]) == []
    assert again.load(trial) == {**record, "schema": 1}
    path.write_text(json.dumps({**before, "settings": {**before["settings"], "images_seen": 7}}))
    with pytest.raises(ConfigError, match="images_seen: 7 then, 400 now"):
        Comparison(few_digits, TINY, tmp_path)


def test_trials_that_were_done_before_a_stop_stay_done(few_digits: Dataset, tmp_path: Path):
    comparison = Comparison(few_digits, TINY, tmp_path)
    first, second = list_trials(["logistic", "mlp"], ["upright"], False, [0])
    comparison.run_or_load(first)

    class Stopped:
        def __enter__(self):
            def stop(step: int, steps: int, terms: dict) -> None:
                raise KeyboardInterrupt

            return stop

        def __exit__(self, *error: object) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        comparison.run_or_load(second, lambda name: Stopped())
    assert Comparison(few_digits, TINY, tmp_path).pending([first, second]) == [second]


def test_ours_trains_on_the_images_that_the_others_train_on(few_digits: Dataset, tmp_path: Path):
    """`train` holds images out by itself: they must be the ones that no other model is given."""
    comparison = Comparison(few_digits, TINY, tmp_path)
    ours = comparison.run_or_load(Trial("vae", "upright", False, 0))
    others = comparison.run_or_load(Trial("logistic", "upright", False, 0))
    assert ours["images"] == others["images"]
    config = json.loads((comparison.run_folder(Trial("vae", "upright", False, 0)) / "config.json").read_text())
    assert config["data"]["trained_on"] == ours["images"]["trained_on"]
    assert (config["data"]["holdout_fraction"], config["data"]["seed"]) == (THRESHOLD_FRACTION, 0)


def test_a_rotated_svm_sees_each_image_once(few_digits: Dataset, tmp_path: Path):
    record = Comparison(few_digits, TINY, tmp_path).run_or_load(Trial("svm", "rotated", False, 0))
    assert record["training"]["images_seen"] == record["images"]["trained_on"]
    vectors = record["details"]["support_vectors"]
    assert record["inference"]["decision"]["macs"] == vectors * 784 + vectors * 9


def test_the_estimate_counts_every_model(few_digits: Dataset):
    trials = list_trials(list(MODELS), IMAGE_KINDS, True, [0, 1])
    seconds = estimate(ExperimentSetup(few_digits, TINY), trials)
    assert seconds.keys() == MODELS.keys() and all(value > 0 for value in seconds.values())
    longer = estimate(ExperimentSetup(few_digits, replace(TINY, images_seen=4_000_000)), trials[-1:])
    assert longer["angle-vae"] > seconds["angle-vae"]  # of one trial, against eight


def test_mistakes_are_sentences(
    few_digits: Dataset, few_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ConfigError, match="unknown model tree: expected some of svm, logistic"):
        list_trials(["svm", "tree"], IMAGE_KINDS, True, [0])
    with pytest.raises(DataError, match="no training split"):
        ExperimentSetup(Dataset("t", "test.npz", None, few_digits.train), TINY)
    one = few_digits.train.take(np.flatnonzero(few_digits.train.labels == 3))
    with pytest.raises(DataError, match="one class"):
        ExperimentSetup(Dataset("one", "one", one, None), TINY)
    with pytest.raises(DataError, match="342"):
        ExperimentSetup(few_digits, replace(TINY, train_images=400)).splits(0)
    with pytest.raises(ConfigError, match="at least 32"):
        replace(TINY, train_images=5)
    tiny = few_digits.train.take(np.arange(0, 400, 20))
    with pytest.raises(DataError, match="too few"):
        ExperimentSetup(Dataset("t", "t", tiny, None), TINY).splits(0)
    for options, words in (
        (("--train-images", "some"), "whole number, or all"),
        (("--generated", "1.5"), "fraction 1.5"),
        (("--models", "cnn,forest"), "unknown model forest"),
        (("--preset", "huge"), "unknown preset"),
    ):
        assert main(["compare", "--data", str(few_file), "--out", str(tmp_path / "out"), *options]) == 2
        errors = capsys.readouterr().err
        assert words in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_colour_works_as_grey_does(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = np.arange(80, dtype=np.int64) % 2
    images = rng.integers(0, 60, (80, 32, 32, 3), dtype=np.uint8)
    images[labels == 1, :, :, 0] += 150
    data = Dataset("colours", "colours", LabelledImages(images, labels, ("dull", "red")), None)
    comparison = Comparison(data, TINY, tmp_path)
    for name in ("svm", "cnn-equal", "angle-vae"):
        record = comparison.run_or_load(Trial(name, "upright", False, 0))
        assert record["images"]["tested_on"] == 8
    assert comparison.run_or_load(Trial("svm", "upright", False, 0))["accuracy"] == 1.0
