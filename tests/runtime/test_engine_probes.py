"""Wrong engines, planted in the double of TensorRT: the bundle's probe images find each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.loading import process_environment, write_package
from engines import KINDS, engine_bundle
from small_models import make_bundle, noise

import vae_edge
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.cli import main
from vae_edge.errors import VerificationError
from vae_edge.runtime import verification

pytest.importorskip("torch", reason="the exact answers are computed with PyTorch")

Gpu = Callable[..., Any]
PLANTS = ["weight", "nearest", "swapped_outputs", "reversed_batch"]
UNCERTAINTY = ("angle_confidence", "second_angle", "second_angle_probability")


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of colour images with all outputs and with probe images."""
    folder = tmp_path_factory.mktemp("colour")
    return make_bundle(folder / "bundle", folder / "work", channels=3, uncertainty=UNCERTAINTY, proving=True)


@pytest.mark.parametrize("version", list(KINDS))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_right_engine_is_believed(gpu: Gpu, colour: Bundle, tmp_path: Path, version: str, precision: str) -> None:
    double = gpu(version)
    bundle = engine_bundle(colour, tmp_path / "bundle", double, precisions=(precision,))
    with vae_edge.load(bundle.path, double.kind, precision) as classifier:
        assert len(classifier(noise(5, channels=3))) == 5
    (record,) = json.loads((bundle.path / "verified.json").read_text())["records"]
    assert record["right"] is True and double.kind in record["sentence"]
    (model,) = (m for m in vae_edge.verify(bundle.path, [double.kind]).models)
    assert model.right and set(model.outputs) >= {"probabilities", "angle", "score", *UNCERTAINTY}
    assert double.faults() == []


@pytest.mark.parametrize("kind", [*PLANTS, "color_order"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_engine_is_refused(gpu: Gpu, colour: Bundle, tmp_path: Path, kind: str, precision: str) -> None:
    _refused(gpu("10.3"), colour, tmp_path, kind, precision)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", *PLANTS, "fp32"])
def test_a_wrong_int8_engine_of_a_trained_model_is_refused_and_a_right_one_is_not(
    gpu: Gpu, bundle: Path, tmp_path: Path, kind: str
) -> None:
    """Of a model with random weights, where roundings to int8 move the answers as much as a weight does, it is not."""
    double = gpu("10.3")
    if kind:
        _refused(double, load_bundle(bundle), tmp_path, kind, "int8")
        return
    built = engine_bundle(load_bundle(bundle), tmp_path / "bundle", double, precisions=("int8",))
    with vae_edge.load(built.path, "tensorrt", "int8") as classifier:
        assert classifier.threshold == built.threshold_of(built.find(precision="int8"))


def _refused(double: Any, source: Bundle, tmp_path: Path, kind: str, precision: str) -> None:
    bundle = engine_bundle(source, tmp_path / "bundle", double, precisions=(precision,), plant=kind)
    with pytest.raises(VerificationError, match="gives wrong answers"):
        vae_edge.load(bundle.path, double.kind, precision)
    assert vae_edge.verify(bundle.path, [double.kind]).right is False
    with vae_edge.load(bundle.path, precision=precision) as classifier:
        assert classifier.backend != double.kind, "auto leaves it out"


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("version", list(KINDS))
def test_an_int8_engine_that_runs_in_another_precision_is_refused(
    gpu: Gpu, colour: Bundle, tmp_path: Path, version: str, kind: str
) -> None:
    double = gpu(version)
    bundle = engine_bundle(colour, tmp_path / "bundle", double, precisions=("int8",))
    (entry,) = bundle.select(format=double.kind)
    honest = bundle.file(entry).read_bytes()
    plants = ["fp32"] if kind == "fp32" else ["fp32", "fp16"]  # without its quantization, and with the error of fp16
    for plant in plants:
        honest = double.plant(honest, plant)
    folder = tmp_path / "planted"
    shutil.copytree(bundle.path, folder)
    replace(folder, double.kind, honest)
    with pytest.raises(VerificationError, match="so it does not compute in int8"):
        vae_edge.load(folder, double.kind, "int8")


def replace(folder: Path, kind: str, content: bytes) -> None:
    """Other bytes in an engine's place, as if they had been built."""
    import dataclasses

    from vae_edge.bundle import add_models

    (entry,) = load_bundle(folder).select(format=kind)
    file = folder.parent / "planted.plan"
    file.write_bytes(content)
    add_models(folder, [(file, dataclasses.replace(entry, file="", sha256="", bytes=0))])


def test_verify_and_its_report_name_what_is_wrong(
    gpu: Gpu, colour: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(colour, tmp_path / "bundle", double, plant="weight")
    monkeypatch.setattr(verification, "verify_in_subprocess", verification.verify)  # the double is in this process
    assert main(["verify", str(bundle.path), "--backend", "tensorrt", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "gives wrong answers" in said and "tensorrt 10.3.0" in said and "Orin, sm_87" in said
    page = (tmp_path / "verification.md").read_text()
    assert "**wrong**" in page and "classifier.fp32.sm_87.engine" in page
    assert "the backend onnxruntime was not asked" not in page


def test_engines_for_other_gpus_are_named_and_not_run(gpu: Gpu, colour: Bundle, tmp_path: Path) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(colour, tmp_path / "bundle", double, capability=86)
    found = vae_edge.verify(bundle.path, ["tensorrt", "onnxruntime"])
    assert {model.backend for model in found.models} == {"onnxruntime"}
    assert any("sm_86" in sentence and "this GPU is Orin (sm_87)" in sentence for sentence in found.not_run)
    engines_alone = vae_edge.verify(bundle.path, ["tensorrt"]).not_run
    assert "classifier.fp32.onnx: CPU backends run it, and none was asked" in engines_alone


@pytest.mark.slow
def test_evaluate_measures_the_engine(gpu: Gpu, bundle: Path, tmp_path: Path, few_digits: Any) -> None:
    """Accuracy, angle and acceptance of the engine itself, not of the file that it was built from."""
    double = gpu("10.3")
    built = engine_bundle(load_bundle(bundle), tmp_path / "right", double, precisions=("int8",))
    right = vae_edge.evaluate(built.path, few_digits, backend="tensorrt", precision="int8", split="all")
    onnx = vae_edge.evaluate(built.path, few_digits, backend="onnxruntime", precision="int8", split="all")
    assert (right.backend, right.precision) == ("tensorrt", "int8")
    assert abs(right.figures["accuracy"] - onnx.figures["accuracy"]) < 0.01
    assert abs(right.figures["accepted"] - onnx.figures["accepted"]) < 0.02
    medians = [found.figures["angle_error_deg"]["median"] for found in (right, onnx)]
    assert np.ptp(medians) < 0.5


def test_the_command_verifies_engines_in_a_process_that_cuda_may_run_in(
    gpu: Gpu, cuda: Any, colour: Bundle, tmp_path: Path
) -> None:
    """A CUDA driver reserves more addresses than the limit that other backends get."""
    bundle = engine_bundle(colour, tmp_path / "bundle", gpu("10.3"))
    environment = process_environment(write_package(tmp_path / "packages", "10.3"), cuda.folder, DOUBLE_CC=87)
    limits = tmp_path / "sitecustomize.py"  # what the process that verifies asks for is noted
    limits.write_text(
        f"import resource\nreal = resource.setrlimit\n"
        f"def note(*arguments):\n    open({str(tmp_path / 'asked')!r}, 'a').write('asked\\n')\n    real(*arguments)\n"
        "resource.setrlimit = note\n"
    )
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    command = [sys.executable, "-m", "vae_edge", "verify", str(bundle.path), "--out", str(tmp_path)]
    for backend, limited in (("tensorrt", False), ("onnxruntime", True)):
        run = subprocess.run(
            [*command, "--backend", backend], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert "gives right answers" in run.stdout and backend in run.stdout
        assert (tmp_path / "asked").exists() == limited
