"""bench/model.py on a few digits: every row's code runs, nothing is done twice, and the table is what the files say."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vae_edge.experiments import model_benchmark

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.timeout(1200)  # all rows are run in one go

PHOTOGRAPHS = find_spec("skimage") is not None and find_spec("sklearn") is not None


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; its other files are found as they are when it is started."""
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_model", BENCH / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets, with stripes in the place of clothes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    stripes = np.repeat(rng.integers(0, 256, (120, 28, 1), dtype=np.uint8), 28, axis=2)
    np.savez(folder / "fashion-mnist.npz", x_train=stripes, y_train=np.arange(120) % 10)
    return folder


@pytest.fixture(scope="module")
def quick(script: ModuleType, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Each kind of row was run for a seed, two of them for another; the arguments to run the script again.

    Rows that are another one with another number are left out: of labels, degrees or the learning rate.
    """
    folder = tmp_path_factory.mktemp("quick")
    arguments = ["--quick", "--runs", str(folder / "runs"), "--results", str(folder / "results")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_EDGE_DATA", str(data_root))
        repeated = ("hundred", "thousand", "rotated-30", "equal-cnn-", "fashion-rotated")
        for name in [name for name in script.ROWS if name.startswith(repeated)]:
            patch.delitem(script.ROWS, name)
        assert script.main([*arguments, "--seed", "0"]) == 0
        assert script.main([*arguments, "--seed", "1", "--row", "ten-alone", "equal-cnn"]) == 0
        yield arguments


def record(arguments: list[str], name: str) -> dict[str, Any]:
    """What the results file of a row says."""
    loaded: dict[str, Any] = json.loads((Path(arguments[-1]) / f"model-{name}.json").read_text())
    return loaded


def figure(entry: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = entry["figures"]
    for name in path:
        value = value[name]
    return float(value)


def rows_run(script: ModuleType) -> dict[str, Any]:
    return {name: row for name, row in script.ROWS.items() if PHOTOGRAPHS or row.data != "photographs"}


@pytest.mark.slow
def test_every_row_has_an_entry_with_all_that_is_said_of_it(script: ModuleType, quick: list[str]) -> None:
    for name, row in rows_run(script).items():
        found = record(quick, name)
        seeds = [0, 1] if name in ("ten-alone", "equal-cnn") else [0]
        assert [entry["seed"] for entry in found["seeds"]] == seeds
        assert [(goal["what"], goal["n"]) for goal in found["goals"]] == [(g.what, len(seeds)) for g in row.goals]
        for entry in found["seeds"]:
            assert {"settings", "data", "machine", "versions", "date", "measuring_seconds"} <= set(entry)
            assert entry["figures"]["training_seconds"] > 0 and entry["machine"]["cpu"]
            assert entry["settings"]["training"]["seed"] == entry["seed"]
            assert entry["images"]["tested_on"] == entry["figures"]["n"] == (150 if row.take else held_out(row))
    rejection = record(quick, "rotated")["seeds"][0]["figures"]["rejection"]
    assert set(rejection) == {
        *("clothes", "drawn letters", "blends of two", "noise", "inverted", "shuffled quarters", "others")
    }
    worst = min(rejection[kind]["auroc"] for kind in ("noise", "inverted", "shuffled quarters"))
    assert rejection["others"]["auroc"] == worst


def held_out(row: Any) -> int:
    """A tenth of what a quick run has: 40 images of 10 classes, or 10 of 9."""
    return 9 if row.data == "photographs" else 40


@pytest.mark.slow
def test_the_score_costs_what_its_graphs_cost(quick: list[str]) -> None:
    for name in ("upright", "rotated"):
        taken = record(quick, name)["seeds"][0]["figures"]["latency"]
        assert taken["none_bytes"] < taken["fast_bytes"] < taken["full_bytes"]
        assert taken["full_over_none"] == pytest.approx(taken["full_us"] / taken["none_us"], abs=1e-5)
        assert taken["calls"] >= 5 and taken["threads"] == 1


@pytest.mark.slow
def test_the_control_has_the_size_and_the_compute_of_ours(quick: list[str]) -> None:
    ours, control = (record(quick, name)["seeds"][0] for name in ("rotated", "equal-cnn"))
    sizes = [entry["figures"]["inference"]["decision"]["parameters"] for entry in (ours, control)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    figures = control["figures"]
    assert figures["training_macs"] == pytest.approx(figures["training_macs_of_vae"], rel=0.05)  # of some ten steps
    same = ("data", "preset", "model", "training", "take")
    assert all(ours["settings"][name] == control["settings"][name] for name in same)
    assert ours["images"] == control["images"]


@pytest.mark.slow
def test_the_gain_is_paired(quick: list[str]) -> None:
    gain = record(quick, "gain")
    ours, control = (record(quick, name)["seeds"][0]["figures"]["accuracy"] for name in ("rotated", "equal-cnn"))
    assert [entry["seed"] for entry in gain["seeds"]] == [0]  # the seed that both have
    assert gain["goals"][0]["mean"] == pytest.approx(100 * (ours - control), abs=1e-3)


@pytest.mark.slow
def test_int8_is_calibrated_on_nothing_that_training_did_not_have(script: ModuleType, quick: list[str]) -> None:
    runs = Path(quick[quick.index("--runs") + 1])
    counts = {}
    for name in ("ten-alone", "ten-unlabelled"):
        manifest = json.loads(next(runs.glob(f"{name}-0-*-bundle/manifest.json")).read_text())
        int8 = next(model for model in manifest["models"] if model["precision"] == "int8")
        counts[name] = int8["provenance"]["calibration_images"]
    assert counts == {"ten-alone": 64, "ten-unlabelled": 320}  # whole batches of 90 and 360: a tenth is left out


@pytest.mark.slow
def test_a_second_run_trains_nothing(script: ModuleType, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(quick[2]).rglob("*") if path.is_file()}

    def texts() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path(quick[-1]).glob("*.json")}

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be trained or measured")

    before, said = files(), texts()
    for name in ("train_row", "train_control", "evaluate_vae", "evaluate_network"):
        monkeypatch.setattr(model_benchmark, name, refuse)
    assert script.main([*quick, "--seed", "0"]) == 0
    assert files() == before and texts() == said


@pytest.mark.slow
def test_the_table_says_what_the_files_say(
    script: ModuleType, quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([*quick, "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| what | images | reach | aim for | reached |"
    count = 2
    for name, row in rows_run(script).items():
        found = record(quick, name)
        for goal in row.goals:
            values = [goal.scale * figure(entry, goal.figure) for entry in found["seeds"]]
            sign = "≤" if goal.lower else "≥"
            wanted = ["–" if want is None else f"{sign} {want:,.10g}{goal.unit}" for want in (goal.reach, goal.aim)]
            start = f"| {goal.what} | {found['what']} | {wanted[0]} | {wanted[1]} | "
            (reached,) = [line[len(start) :] for line in lines if line.startswith(start)]
            spread = r" ± ([\d.,]+), 2 seeds" if len(values) > 1 else ", 1 seed"
            match = re.fullmatch(rf"(-?[\d.,]+){re.escape(goal.unit)}{spread} \|", reached)
            assert match, reached
            expected = [statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
            shown = [float(number.replace(",", "")) for number in match.groups()]
            assert shown == pytest.approx(expected, abs=0.51 * 10**-goal.decimals), start
            count += 1
    assert len(lines) == count + 1  # and the gain
    assert not any("not measured" in line or "other settings" in line for line in lines)


@pytest.mark.slow
def test_other_settings_are_said_trained_anew_and_leave_no_gain_of_two_recipes(
    script: ModuleType, quick: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(quick[-1])
    kept = {path: path.read_bytes() for path in results.glob("*.json")}
    row = script.ROWS["equal-cnn"]
    monkeypatch.setitem(script.ROWS, row.name, replace(row, training={**row.training, "learning_rate": 2e-3}))
    assert script.main([*quick, "--table"]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if "with other settings" in line]
    assert len(marked) == len(row.goals) and all(row.what in line for line in marked)
    assert script.main([*quick, "--row", row.name, "--seed", "1"]) == 0
    found = record(quick, row.name)
    assert [entry["seed"] for entry in found["seeds"]] == [1]  # that of the earlier settings is not mixed in
    assert found["seeds"][0]["settings"]["training"]["learning_rate"] == 2e-3
    assert not (results / "model-gain.json").exists()
    for path, text in kept.items():
        path.write_bytes(text)


def test_quick_figures_never_go_among_the_measured_ones(
    script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted((BENCH / "results").iterdir())
    assert script.main(["--quick", "--runs", str(tmp_path), "--results", str(BENCH / "results")]) == 2
    assert "--quick does not write to" in capsys.readouterr().err
    assert sorted((BENCH / "results").iterdir()) == before and not list(tmp_path.iterdir())
    assert script.parse(["--quick"]).results == Path("runs/model-quick/results")


def test_rows_are_listed_and_unknown_ones_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(script.ROWS)
    with pytest.raises(SystemExit):
        script.main(["--row", "sideways"])


def test_data_that_is_not_there_is_named(
    script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAE_EDGE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert script.main(["--row", "upright", "--results", str(tmp_path / "results")]) == 2
    assert "no data set 'mnist'" in capsys.readouterr().err and not (tmp_path / "results").exists()
