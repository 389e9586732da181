"""bench/real.py on pictures that are made here: both models run, figures are what they say, the table is the files'."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vae_edge.data import LabelledImages
from vae_edge.errors import DataError
from vae_edge.experiments import model_benchmark

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, found as they are when one of them is started."""
    sys.path.insert(0, str(BENCH))
    yield {name: import_module(name) for name in ("real", "real_rows", "real_cnn", "real_data")}
    sys.path.remove(str(BENCH))


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    """A bar, a cross or a ring, dark on light, or noise."""
    pixels = np.full((28, 28), 230.0)
    x, y = rng.integers(11, 17, 2)
    if kind in ("bar", "cross"):
        pixels[4:24, x - 2 : x + 2] = 30
    if kind == "cross":
        pixels[y - 2 : y + 2, 4:24] = 30
    if kind == "ring":
        radius = np.hypot(*np.meshgrid(np.arange(28) - x, np.arange(28) - y))
        pixels[(radius > 6) & (radius < 10)] = 30
    if kind == "noise":
        pixels = rng.uniform(0, 255, (28, 28))
    return Image.fromarray(np.clip(pixels + rng.normal(0, 8, (28, 28)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(bench: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sets with one of three classes, as `bench/real_data.py` leaves it."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    shapes = [("train", name, 40) for name in ("bar", "cross", "ring")]
    shapes += [("test", name, 15) for name in ("bar", "cross", "ring")]
    for split, name, count in shapes:
        folder = root / "a" / "shapes" / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            picture(name, rng).save(folder / f"{split}__{index:03d}.png")
    folder = root / "a" / "shapes-unknown" / "noise"
    folder.mkdir(parents=True)
    for index in range(20):
        picture("noise", rng).save(folder / f"x__{index:03d}.png")
    digest = {"shapes": bench["real_data"].digest(root / "a" / "shapes")}
    (root / "a" / "shapes.json").write_text(json.dumps({"digest": digest}))
    return root


@pytest.fixture(scope="module")
def rows(bench: dict[str, ModuleType]) -> dict[str, Any]:
    row = bench["real_rows"].Row(
        name="shapes",
        what="shapes upright",
        set="shapes",
        variant="a",
        training={"rotation": "none"},
        unknown=("noise",),
        preset="tiny",
        alike=("bar", "ring"),
        goals={"accuracy": 99.5, bench["real_rows"].GAIN: 1.0},
    )
    return {row.name: row}


@pytest.fixture(scope="module")
def measured(
    bench: dict[str, ModuleType], data: Path, rows: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Both models were trained and measured; the arguments to run the script again."""
    folder = tmp_path_factory.mktemp("measured")
    arguments = ["--data", str(data), "--runs", str(folder / "runs"), "--results", str(folder / "results")]
    arguments += ["--seed", "0", "--epochs", "12", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        with_rows(patch, bench, rows)
        assert bench["real"].main(arguments) == 0
    return arguments


def with_rows(patch: pytest.MonkeyPatch, bench: dict[str, ModuleType], rows: dict[str, Any]) -> None:
    """Take these rows for the script's."""
    for module in ("real", "real_rows"):
        patch.setattr(bench[module], "ROWS", rows)


def record(arguments: list[str], model: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(arguments[5]) / f"real-shapes-{model}.json").read_text())
    return loaded


@pytest.mark.slow
def test_both_models_are_measured_on_the_same_images_and_train_as_long(measured: list[str]) -> None:
    ours, other, equal = (record(measured, model)["seeds"][0] for model in ("vae", "cnn", "cnn-equal"))
    for entry in (ours, other, equal):
        assert {"settings", "data", "machine", "versions", "date"} <= set(entry) and entry["seed"] == 0
        assert entry["figures"]["fp32"]["n"] == 45 and entry["figures"]["fp32"]["unknown"]["noise"]["n"] == 20
        assert entry["settings"]["epochs"] == 12 and entry["run"] == ours["run"]
        assert entry["figures"]["fp32"]["accuracy"] > 0.5
    assert set(ours["figures"]) >= {"fp32", "int8", "int8_loss", "inference", "training"}
    assert set(other["figures"]) >= {"fp32", "mahalanobis", "without_temperature", "inference", "training"}
    seconds = [entry["figures"]["training"]["processor_seconds"] for entry in (ours, other, equal)]
    assert seconds[1:] == pytest.approx([seconds[0]] * 2, rel=0.25)
    int8 = ours["figures"]["int8"]
    for lost, name in (("accuracy", "accuracy"), ("accepted", "rejected")):
        difference = ours["figures"]["fp32"][name] - int8[name]
        expected = difference if name == "accuracy" else -difference
        assert ours["figures"]["int8_loss"][lost] == pytest.approx(expected, abs=1e-5)
    assert other["figures"]["inference"]["parameters"] == pytest.approx(170_000, rel=0.05)
    parameters = [entry["figures"]["inference"]["parameters"] for entry in (ours, equal)]
    assert parameters[1] == pytest.approx(parameters[0], rel=0.15)


@pytest.mark.parametrize("parameters", [30_000, 170_000, 313_000, 650_000, 3_000_000])
def test_a_plain_cnn_is_made_as_large_as_asked_for(bench: dict[str, ModuleType], parameters: int) -> None:
    cnn = bench["real_cnn"]
    widths = cnn.widths_for(parameters, 3, 20)
    found = sum(parameter.numel() for parameter in cnn.PlainCNN(3, 20, widths).parameters())
    assert found == pytest.approx(parameters, rel=0.15)
    assert all(width % 4 == 0 for width in widths)


@pytest.mark.slow
def test_what_is_there_is_not_done_again(
    bench: dict[str, ModuleType],
    measured: list[str],
    rows: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("nothing is to be trained or measured")

    with_rows(monkeypatch, bench, rows)
    before = [record(measured, model) for model in ("vae", "cnn", "cnn-equal")]
    for name in ("run_vae", "run_cnn"):
        monkeypatch.setattr(bench["real"], name, refuse)
    assert bench["real"].main(measured) == 0
    assert capsys.readouterr().err.count("done already") == 3
    assert [record(measured, model) for model in ("vae", "cnn", "cnn-equal")] == before


@pytest.mark.slow
def test_the_table_says_what_the_files_say(
    bench: dict[str, ModuleType],
    measured: list[str],
    rows: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_rows(monkeypatch, bench, rows)
    assert bench["real"].main([*measured, "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ours, other, equal = (record(measured, model)["seeds"][0]["figures"] for model in ("vae", "cnn", "cnn-equal"))
    percent = [f"{100 * value:.1f}%" for value in (ours["fp32"]["accuracy"], ours["int8"]["accuracy"])]
    assert lines[0] == "Shapes upright (`shapes`; seeds: 1 of ours, 1 of the plain CNN, 1 of the one of our size):"
    rivals = [f"{100 * figures['fp32']['accuracy']:.1f}%" for figures in (other, equal)]
    assert f"| accuracy | ≥ 99.5% | {percent[0]} | {percent[1]} | {rivals[0]} |  | {rivals[1]} |" in lines
    for figures, name in ((other, "plain CNN's"), (equal, "plain CNN's of our size")):
        points = f"{100 * (ours['fp32']['accuracy'] - figures['fp32']['accuracy']) + 0.0:.1f} points"
        assert f"| accuracy, ours less the {name} | ≥ 1 points | {points} | | | | |" in lines
    areas = [ours["fp32"], ours["int8"], other["fp32"], other["mahalanobis"], equal["fp32"]]
    cells = " | ".join(f"{100 * part['unknown']['noise']['auroc']:.1f}%" for part in areas)
    assert f"| AUROC against noise |  | {cells} |" in lines
    with_rows(monkeypatch, bench, {"shapes": replace(rows["shapes"], preset="small")})
    assert bench["real"].main([*measured, "--table"]) == 0
    assert "1 of the one of our size; with other settings)" in capsys.readouterr().out
    assert all(line.count("|") == 8 for line in lines if line.startswith("|"))


def test_a_budget_becomes_epochs_by_the_time_of_a_step(
    bench: dict[str, ModuleType], few_digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds until the first step, and half a second each: 360 images in batches of 16 are 11 seconds an epoch."""
    from vae_edge.training.config import TrainConfig

    real, clock = bench["real"], [0.0]
    monkeypatch.setattr(real.time, "process_time", lambda: clock[0])

    def train(dataset: Any, out: Path, config: TrainConfig, *, preset: str, backbone: Any, progress: Any) -> None:
        clock[0] += 1.5
        for step in range(1, 1000):
            clock[0] += 0.5
            progress(step, 1000, {})

    monkeypatch.setattr(real.api, "train", train)
    config = TrainConfig(rotation="none", batch=16)
    row = replace(bench["real_rows"].CHARACTERS, preset="tiny")
    assert real.epochs_for(2 + 5 * 11 + 1, few_digits, config, row) == 5
    assert real.epochs_for(1, few_digits, config, row) == 1


def test_figures_are_counted_as_they_say(bench: dict[str, ModuleType]) -> None:
    """Four images of which one is wrong: a 6 taken for a 9."""
    real = bench["real"]
    row = replace(bench["real_rows"].CHARACTERS, symmetric=("O",))
    classes, labels = ("6", "9", "O"), np.array([0, 0, 1, 2])
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 1, 0], [0, 0, 1.0]])
    angles = np.array([10.0, -170, 90, 0], np.float32)
    known = LabelledImages(np.zeros((4, 28, 28, 1), np.uint8), labels, classes, angles)
    scores = real.Scores(probabilities, np.array([1.0, 2, 3, 4]), angles + np.array([1, 5, -3, 180]))
    unknown = {"noise": real.Scores(probabilities[:2], np.array([0.5, 9.0]))}
    found = real.figures_of(row, real.TestImages(known, {}), scores, unknown, limit=3.0)
    assert found["accuracy"] == 0.75 and found["accuracy_alike"] == 1.0 and found["rejected"] == 0.25
    assert found["worst_class"] == {"name": "6", "accuracy": 0.5}
    assert found["unknown"] == {"noise": {"n": 2, "auroc": 0.5, "accepted": 0.5}}
    assert found["angle_error_deg"]["median"] == 4 and found["angle_error_deg"]["without_symmetric"]["median"] == 3


def test_the_distance_of_features_is_that_of_the_formula(bench: dict[str, ModuleType]) -> None:
    """Against NumPy's covariance, class by class; a class without images is refused."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = rng.normal(0, [1, 3, 0.2, 2], (300, 4)) + 5 * labels[:, None]
    distances = bench["real_cnn"].Mahalanobis(features, labels, 3)
    queries = rng.normal(4, 6, (20, 4))
    residuals = np.concatenate([features[labels == k] - features[labels == k].mean(0) for k in range(3)])
    covariance = np.cov(residuals.T, bias=True)
    covariance += 1e-3 * covariance.trace() / 4 * np.eye(4)
    expected = [
        min((q - features[labels == k].mean(0)) @ np.linalg.solve(covariance, q - features[labels == k].mean(0))
            for k in range(3))
        for q in queries
    ]  # fmt: skip
    np.testing.assert_allclose(distances.scores(queries), expected, rtol=1e-9)
    with pytest.raises(DataError, match="3 classes have a mean each, but only 2 have images"):
        bench["real_cnn"].Mahalanobis(features[labels < 2], labels[labels < 2], 3)


def test_the_plain_cnn_stops_when_its_time_is_over(
    bench: dict[str, ModuleType], few_digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By processor seconds, which a busy machine does not use up."""
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.data import make_run_config, make_splits

    settings = TrainConfig(rotation="none", epochs=1)
    splits = make_splits(few_digits, settings)
    config = make_run_config(few_digits, splits, "tiny", settings)
    rates: list[float] = []
    whole = bench["real_cnn"].warmup_cosine_lr
    monkeypatch.setattr(bench["real_cnn"], "warmup_cosine_lr", lambda *a: rates.append(whole(*a)) or rates[-1])
    began = time.process_time()
    network, steps = bench["real_cnn"].train_cnn(splits, config, 2.0)
    assert 2.0 <= time.process_time() - began < 8 and steps == len(rates) and not network.training
    assert max(rates) > 3e-3 and rates[-1] < max(rates)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_rows_are_listed_and_name_sets_and_kinds_that_are_made(
    bench: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench["real_rows"].ROWS
    assert bench["real"].main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(rows)
    characters, icons, photographs = (import_module(f"real_{name}") for name in ("characters", "icons", "photographs"))
    for row in rows.values():
        made = {
            "characters": characters.UNKNOWN,
            "icons": icons.UNKNOWN[row.variant],
            "photographs": photographs.UNKNOWN[row.variant],
        }[row.set]
        assert set(row.unknown) == set(made), row.name
        said = {line.goal.what for line in bench["real_rows"].lines(row)} | {bench["real_rows"].GAIN}
        assert set(row.goals) <= said, row.name
    assert set(rows["characters"].alike) | set(rows["characters"].symmetric) <= set(characters.CLASSES)


def test_a_set_that_is_not_there_is_named_with_the_command_that_makes_it(
    bench: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--row", "icons-b", "--data", str(tmp_path), "--results", str(tmp_path / "results")]
    assert bench["real"].main(arguments) == 2
    assert f"python bench/real_data.py {tmp_path / 'b'} --variant b --set icons" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_record_of_other_settings_or_images_is_not_kept(
    bench: dict[str, ModuleType], data: Path, rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, row = bench["real"], rows["shapes"]
    figures = {"fp32": {"accuracy": 0.5}, "training": {"processor_seconds": 1.0}}
    monkeypatch.setattr(real, "run_vae", lambda *arguments: (figures, {}))
    options = real.Options(data, tmp_path / "runs", tmp_path / "results")
    for seed in (0, 1):
        real.run_trial(row, "vae", seed, options)
    path = real.result_file(options.results, row, "vae")
    assert set(model_benchmark.read_results(path)) == {0, 1}
    real.run_trial(row, "vae", 2, replace(options, epochs=3))
    assert set(model_benchmark.read_results(path)) == {2}
