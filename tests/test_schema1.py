"""Files of schema 1 are read: a run, a stopped run, bundles, a comparison, as the last version before schema 2 wrote
them. What they answer is compared with what that version answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vae_edge
from vae_edge.bundle import add_model, load_bundle
from vae_edge.cli import main
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS

FIXTURES = Path(__file__).parent / "fixtures" / "schema1"
DATA = FIXTURES / "data"
ATTRIBUTES = {
    "probabilities": "probabilities",
    "scores": "scores",
    "labels": "labels",
    "names": "names",
    "accepted": "accepted",
    "angles_deg": "angles_deg",
    "concentrations": "angle_confidences",
    "second_angles_deg": "second_angles_deg",
    "second_shares": "second_angle_probabilities",
}
"""Attributes of `Predictions`: as schema 1 called them, and as they are called now."""
FIGURES = {
    "by_concentration": "by_angle_confidence",
    "pose_classes": "orientation_classes",
    "watched_classes": "val_classes",
}
"""Keys of what `evaluate` gives: as schema 1 called them, and as they are called now. Others kept their names."""
COMPARE = (
    "compare --preset tiny --models logistic --seeds 1 --images-seen 400 --train-images all --threads 1 --seconds 0.1"
)
CLOSE = {
    "probabilities": 1e-5,
    "scores": 1e-3,
    "angles_deg": 1e-2,
    "concentrations": 1e-5,
    "second_angles_deg": 1e-2,
    "second_shares": 1e-5,
}
"""How far answers of other processors may lie apart. A score adds up thousands of products."""
INT8 = {
    "probabilities": 0.02,
    "scores": 0.5,
    "angles_deg": 2.0,
    "concentrations": 0.02,
    "second_angles_deg": 5.0,
    "second_shares": 0.02,
}
OTHER_FILE = 5  # times as far apart, where this processor takes the int8 file for other processors


def resume(run: Path, data: Path) -> None:
    """Go on with a run whose network is none of the presets' (the command line takes presets alone)."""
    from vae_edge.data import load_dataset
    from vae_edge.training.checkpoint import read_config
    from vae_edge.training.data import make_splits
    from vae_edge.training.trainer import train

    config = read_config(run)
    train(make_splits(load_dataset(str(data)), config.training), config, run, resume=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: loading writes beside the manifest what it found out of this machine."""
    return Path(shutil.copytree(FIXTURES, tmp_path_factory.mktemp("schema1") / "files"))


@pytest.fixture(scope="module")
def answers() -> Iterator[Any]:
    with np.load(FIXTURES / "answers.npz") as stored:
        yield stored


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / "answers.json").read_text())
    return found


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """A command's JSON."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def check_predictions(predictions: Any, answers: Any, stored: str, close: dict[str, float], times: float = 1) -> None:
    for then, now in ATTRIBUTES.items():
        found, key = getattr(predictions, now), f"{stored}.{then}"
        if key not in answers:
            assert found is None, now
            continue
        expected = answers[key]
        if then not in close:
            assert np.array_equal(found, expected), now
            continue
        assert found.shape == expected.shape and found.dtype == expected.dtype, now
        apart = np.abs(found - expected)
        apart = np.minimum(apart, 360 - apart) if then.endswith("angles_deg") else apart
        assert apart.max() <= close[then] * times, (now, apart.max())


def check_figures(found: Any, expected: Any, where: str = "") -> None:
    """Every figure of schema 1 is there and the same: counts exactly, means of floats within what processors differ."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            check_figures(found[FIGURES.get(key, key)], value, f"{where}/{key}")
    elif isinstance(expected, float):
        near = 0.02 if "angle_error_deg" in where else 1e-4
        assert found == pytest.approx(expected, abs=near), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_bundle_answers_as_it_did(files: Path, answers: Any, precision: str) -> None:
    with vae_edge.load(files / "bundle", backend="onnxruntime", precision=precision) as classify:
        predictions = classify(answers["images"])
        same_file = classify.entry.file == str(answers[f"{precision}.file"])
    close = INT8 if precision == "int8" else CLOSE
    check_predictions(predictions, answers, precision, close, 1 if same_file else OTHER_FILE)


def test_a_bundle_of_upright_images_and_the_light_score_answers_as_it_did(files: Path, answers: Any) -> None:
    with vae_edge.load(files / "light", backend="onnxruntime", precision="fp32") as classify:
        check_predictions(classify(answers["upright_images"]), answers, "light", CLOSE)
        drawn = classify.reconstruct(answers["upright_images"][:4])
    assert np.abs(drawn.astype(int) - answers["light.reconstruction"]).max() <= 1


def test_a_bundle_draws_again_what_it_drew(files: Path, answers: Any) -> None:
    with vae_edge.load(files / "bundle", backend="onnxruntime", precision="fp32") as classify:
        drawn = classify.reconstruct(answers["images"][:4])
    assert np.abs(drawn.astype(int) - answers["fp32.reconstruction"]).max() <= 1


def test_a_bundle_is_chosen_from_verified_and_inspected(
    files: Path, answers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with vae_edge.load(files / "bundle") as classify:
        assert np.array_equal(classify(answers["images"]).labels, answers["fp32.labels"])
    asked(capsys, "verify", files / "bundle", "--out", files)
    assert asked(capsys, "inspect", files / "bundle")["classes"] == ["ell", "tee", "wedge"]


def test_what_is_added_to_a_bundle_makes_it_one_of_schema_2_whose_files_keep_their_names(
    files: Path, answers: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))
    before = load_bundle(folder)
    entry = before.find(precision="fp16")
    shutil.copy(before.file(entry), tmp_path / "fp16.onnx")
    after = add_model(folder, tmp_path / "fp16.onnx", replace(entry, opset=20))
    assert json.loads((folder / "manifest.json").read_text())["schema"] == 2
    assert {m.sha256 for m in after.models} == {m.sha256 for m in before.models} and after.probes == before.probes
    found = vae_edge.verify(folder, ["onnxruntime"])
    assert found.right and set(found.models[0].outputs) == {*CLASSIFIER_OUTPUTS, *UNCERTAINTY_OUTPUTS}
    with vae_edge.load(folder, backend="onnxruntime", precision="fp32") as classify:
        check_predictions(classify(answers["images"]), answers, "fp32", CLOSE)


@pytest.mark.parametrize("model, data", [("rotated", "three"), ("masked", "photo")])
def test_a_run_is_measured_as_it_was(
    files: Path, figures: dict[str, Any], capsys: pytest.CaptureFixture[str], model: str, data: str
) -> None:
    found = asked(capsys, "evaluate", files / model, "--data", DATA / f"{data}.npz")
    check_figures(found, figures["evaluated"][model])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_is_measured_as_it_was(
    files: Path, figures: dict[str, Any], answers: Any, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    with vae_edge.load(files / "bundle", backend="onnxruntime", precision=precision) as classify:
        if classify.entry.file != str(answers[f"{precision}.file"]):
            pytest.skip("this processor takes another file, whose figures are others")
    options = ("--backend", "onnxruntime", "--precision", precision)
    found = asked(capsys, "evaluate", files / "bundle", "--data", DATA / "three.npz", *options)
    check_figures(found, figures["evaluated"][f"bundle, {precision}"])


@pytest.mark.slow
def test_a_run_is_exported_to_what_it_was_exported_to(
    files: Path, answers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(capsys, "export", files / "rotated", "--out", tmp_path / "bundle")
    with vae_edge.load(tmp_path / "bundle", backend="onnxruntime", precision="fp32") as classify:
        check_predictions(classify(answers["images"]), answers, "fp32", CLOSE)


@pytest.mark.slow
def test_a_bundle_is_quantized_further(
    files: Path, answers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(files / "bundle", tmp_path / "bundle")
    asked(capsys, "quantize", bundle, "--precision", "int8", "--data", DATA / "three.npz")
    with vae_edge.load(bundle, backend="onnxruntime", precision="int8") as classify:
        predictions = classify(answers["images"])
        same_file = classify.entry.file == str(answers["int8.file"])
    check_predictions(predictions, answers, "int8", INT8, 1 if same_file else OTHER_FILE)


def test_images_are_generated_from_a_run(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "generate", files / "rotated", "--out", tmp_path / "new.npz", "--confidence", "0")
    assert found["images"] == 36


def test_a_stopped_run_goes_on_to_the_end_that_it_had(
    files: Path, figures: dict[str, Any], answers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(files / "stopped", tmp_path / "stopped"))
    resume(run, DATA / "two.npz")
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    for key, expected in figures["last epoch of the resumed run"].items():
        assert last[FIGURES.get(key, key)] == pytest.approx(expected, rel=0.05, abs=0.01), key
    found = asked(capsys, "evaluate", run, "--data", DATA / "two.npz")
    expected = figures["evaluated"]["stopped, then resumed"]
    assert found["accuracy"] == expected["accuracy"] and found["confusion"] == expected["confusion"]
    assert asked(capsys, "inspect", run)["result"]["threshold"] == pytest.approx(
        figures["threshold of the resumed run"], abs=0.5
    )


def test_a_comparison_goes_on_with_the_records_that_are_there(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((FIXTURES / "comparison/compare.json").read_text())
    out = Path(shutil.copytree(files / "comparison", tmp_path / "comparison"))
    (out / "compare.json").unlink()
    kept = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    assert main([*COMPARE.split(), "--data", str(DATA / "three.npz"), "--out", str(out)]) == 0
    assert "0 are to be trained" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (out / "cells").iterdir()} == kept
    now = json.loads((out / "compare.json").read_text())
    expected = [row["accuracy"] for row in before["rows"] if row["model"] == "logistic"]
    assert len(expected) == 4 and [row["accuracy"] for row in now["rows"]] == expected
