"""Quantizing cannot destroy a model: images of another kind and too great a loss are refused, the bundle as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vae_edge.bundle import load_bundle
from vae_edge.cli import main
from vae_edge.data import Dataset, LabelledImages
from vae_edge.errors import ExportError
from vae_edge.exporting import bundle as bundle_module
from vae_edge.exporting import quantize_bundle_from_dataset
from vae_edge.exporting.quality import matching_threshold, sign_test
from vae_edge.exporting.quantize import validate_qdq
from vae_edge.runtime import autoselect, load


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    return copy


def state(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def without_test(digits: Dataset, images: np.ndarray, chosen: np.ndarray | None = None) -> Dataset:
    train = replace(digits.train, images=images)
    return Dataset("given", "given", train if chosen is None else train.take(chosen), None)


def first_of_each(labels: np.ndarray, classes: tuple[int, ...], each: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == k)[:each] for k in classes])


def test_dark_images_are_refused_and_the_bundle_stays_as_it_was(mine: Path, digits: Dataset):
    before = state(mine)
    with pytest.raises(ExportError, match=r"the fp32 model gets 1?\d\.\d% of these images right, but got 9\d") as told:
        quantize_bundle_from_dataset(mine, "int8", without_test(digits, digits.train.images // 16))
    for words in ("accepts", "mean pixel is", "largest pixel is 15", "Nothing was changed", "--force"):
        assert words in str(told.value)
    assert state(mine) == before


def test_who_insists_gets_it_but_auto_does_not_trust_it(mine: Path, digits: Dataset):
    result = quantize_bundle_from_dataset(mine, "int8", without_test(digits, digits.train.images // 16), force=True)
    assert any("fp32 model gets" in sentence for sentence in result.warnings)
    opened = load_bundle(mine)
    assert all(entry.accuracy["refused"] for entry in opened.select("classifier", "onnx", "int8"))
    assert "int8" not in {c.precision for c in autoselect.candidates(opened, "auto", "auto")}


def test_images_of_a_few_classes_are_refused_and_missing_ones_warned_about(mine: Path, digits: Dataset):
    labels, images = digits.train.labels, digits.train.images
    with pytest.raises(ExportError, match="they cover 3 of 10 classes"):
        quantize_bundle_from_dataset(mine, "int8", without_test(digits, images, first_of_each(labels, (1, 4, 7), 20)))
    most = first_of_each(labels, tuple(range(9)), 60)
    result = quantize_bundle_from_dataset(mine, "int8", without_test(digits, images, most))
    assert "no image is of the class 9" in result.warnings


def test_a_handful_of_images_is_warned_about_and_not_trusted(mine: Path, digits: Dataset):
    few = first_of_each(digits.train.labels, tuple(range(10)), 8)
    result = quantize_bundle_from_dataset(mine, "int8", without_test(digits, digits.train.images, few))
    low, high = result.before["accuracy_interval"]
    assert high - low > 0.15
    assert any("only 70 images" in sentence for sentence in result.warnings)
    assert any("only 10 images" in sentence and "auto" in sentence for sentence in result.warnings)
    assert "int8" not in {c.precision for c in autoselect.candidates(load_bundle(mine), "auto", "auto")}


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.GraphProto], None]) -> None:
    """Have every quantized model come out with its graph changed."""
    real = bundle_module.convert

    def convert(*arguments):
        models = real(*arguments)
        for model in models.values():
            change(model.graph)
        return models

    monkeypatch.setattr(bundle_module, "convert", convert)


def without_a_layer(graph: onnx.GraphProto) -> None:
    """All weights of the encoder's first layer become 0."""
    name = next(node.input[1] for node in graph.node if node.op_type == "Conv" and "encoder" in node.input[1])
    name = next(node.input[0] for node in graph.node if name in node.output)
    weight = next(tensor for tensor in graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), name))


def with_scores_moved(graph: onnx.GraphProto) -> None:
    """Every score is 5 higher."""
    node = next(node for node in graph.node if "score" in node.output)
    node.output[:] = ["unmoved" if name == "score" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.float32(5.0), "move"))
    graph.node.append(onnx.helper.make_node("Add", ["unmoved", "move"], ["score"]))


def test_a_model_that_int8_destroys_is_refused(mine: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch, without_a_layer)
    before = state(mine)
    with pytest.raises(ExportError, match=r"int8 loses too much: .*accuracy falls from 9.* to .* \(400 images\)"):
        quantize_bundle_from_dataset(mine, "int8", digits)
    assert state(mine) == before


def test_a_score_that_int8_moves_keeps_its_acceptance_by_a_threshold_of_its_own(
    mine: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
):
    plant(monkeypatch, with_scores_moved)
    result = quantize_bundle_from_dataset(mine, "int8", digits)
    opened = load_bundle(mine)
    entries = opened.select("classifier", "onnx", "int8")
    assert len(entries) == 3 and all(4 < entry.threshold - opened.threshold < 6 for entry in entries)
    for part in result.files.values():
        assert abs(part.figures["accepted"] - result.before["accepted"]) <= 0.02
    with load(mine, "onnxruntime", "int8") as classifier:
        predictions = classifier(digits.test.images)
        assert classifier.threshold == predictions.threshold > opened.threshold
        assert (predictions.scores <= opened.threshold).mean() < 0.9
        assert predictions.accepted.mean() > 0.95


def test_every_figure_that_rejection_rests_on_is_recorded_for_each_file(bundle: Path):
    opened = load_bundle(bundle)
    for precision, targets in (("fp16", ["any"]), ("int8", ["any", "cpu", "cpu_reduced_range"])):
        entries = opened.select("classifier", "onnx", precision)
        assert [entry.target for entry in entries] == targets
        for entry in entries:
            assert {
                "accepted",
                "auroc",
                "angle_error_deg",
                "accuracy_interval",
                "fp32_accuracy",
            } <= entry.accuracy.keys()
            assert len(entry.accuracy["auroc"]) == 5 and isinstance(entry.threshold, float)
    assert opened.find().threshold is None and opened.threshold_of(opened.find()) == opened.threshold


def test_only_tensorrts_file_keeps_tensorrts_rules(bundle: Path):
    opened = load_bundle(bundle)
    validate_qdq(onnx.load(opened.file(opened.find(precision="int8"))))
    for target in ("cpu", "cpu_reduced_range"):
        with pytest.raises(ExportError, match="UINT8"):
            validate_qdq(onnx.load(opened.file(opened.find(precision="int8", target=target))))


@pytest.mark.slow
def test_the_command_prints_every_file_and_refuses_with_a_sentence(
    mine: Path, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "dark.npz", images=digits.train.images // 16, labels=digits.train.labels)
    assert main(["quantize", str(mine), "--data", str(tmp_path / "dark.npz")]) == 2
    assert "not the images that" in capsys.readouterr().err
    assert main(["quantize", str(mine), "--data", "digits"]) == 0
    out = capsys.readouterr().out
    for words in ("95% interval", "fp32:", "classifier.int8", "reduced_range", "AUROC", "accepted", "angle"):
        assert words in out
    assert main(["quantize", str(mine), "--data", "digits", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == {"any", "cpu", "cpu_reduced_range"}


def test_the_matching_threshold_accepts_as_many():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500)
    for moved in (scores + 4.0, 3.0 * scores - 1.0, scores + rng.normal(scale=0.3, size=500)):
        for threshold in (-1.0, 0.0, 2.0):
            found = matching_threshold(scores, threshold, moved)
            assert (moved <= found).sum() == (scores <= threshold).sum()
    assert matching_threshold(scores, 100.0, scores + 4.0) == pytest.approx(104.0)
    assert matching_threshold(scores, -100.0, scores + 4.0) == pytest.approx(-96.0)
    assert matching_threshold(scores, 0.1, scores + 4.0) == pytest.approx(4.1)


def test_the_sign_test_gives_known_probabilities():
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(1 / 32)
    assert sign_test(9, 1) == pytest.approx(11 / 1024)
    assert sign_test(1, 1) == pytest.approx(0.75)


def test_labelled_images_keep_their_order_of_classes(mine: Path, digits: Dataset):
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    place = np.argsort(order)
    names = tuple(digits.classes[k] for k in order)
    shuffled = LabelledImages(digits.train.images, place[digits.train.labels].astype(np.int64), names)
    result = quantize_bundle_from_dataset(mine, "int8", Dataset("shuffled", "shuffled", shuffled, None))
    assert result.files["any"].figures["accuracy"] > 0.9
