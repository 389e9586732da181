"""Probe images and their exact answers: what is chosen, how it is computed, how it is kept and compared."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from vae_edge import probes
from vae_edge.bundle import ModelEntry, add_model, load_bundle
from vae_edge.data import Dataset
from vae_edge.errors import BundleError
from vae_edge.exporting import quantize_bundle_from_dataset
from vae_edge.exporting.onnx_file import get_metadata, run
from vae_edge.exporting.probes import Noise, choose_probes, evaluate, expect, inner_tensor_names
from vae_edge.probes import Expected, Probes, Tolerance, compare, fingerprint
from vae_edge.training.checkpoint import Checkpoint, load_samples


def model_of(bundle: Path, precision: str, target: str = "any") -> onnx.ModelProto:
    opened = load_bundle(bundle)
    return onnx.load(opened.file(opened.find("classifier", "onnx", precision, target)))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 0]])
def test_average_pooling_is_pytorchs_with_and_without_padding(pads: list[int]) -> None:
    """Without padding it does not go through the loops of `onnx`, whose answers with padding are the same rule's."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=pads, count_include_pad=1
        ),
    ]
    given = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 6, 8, 1])
    graph = helper.make_graph(nodes, "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 1), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    expected = F.avg_pool2d(x, 2, padding=(pads[0], pads[1]))
    np.testing.assert_allclose(evaluate(model, images)["y"], expected.numpy(), rtol=1e-6)


@pytest.fixture(scope="module")
def kept(bundle: Path) -> Probes:
    opened = load_bundle(bundle)
    assert opened.probes is not None
    return probes.load(opened.file(opened.probes))


def test_every_model_file_of_a_bundle_has_its_answers(bundle: Path, kept: Probes):
    opened = load_bundle(bundle)
    assert kept.images.shape == (64, 28, 28, 1) and kept.images.dtype == np.uint8
    assert set(kept.models) == {model.sha256 for model in opened.models}
    for model in opened.select("classifier"):
        expected = kept.models[model.sha256]
        compared = np.isfinite(expected.outputs["probabilities"]).all(1).sum()
        assert compared >= 40 and set(expected.tolerance) == set(expected.outputs)
        assert len(expected.inner) >= 12


def test_the_answers_are_those_of_pytorch_in_double_precision(checkpoint: Checkpoint, bundle: Path, kept: Probes):
    expected = kept.models[load_bundle(bundle).find().sha256].outputs
    model = copy.deepcopy(checkpoint.model).double()  # back to float, its float16 parts would not be what they were
    pixels = torch.from_numpy(kept.images).permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        probabilities = model.probabilities(model(pixels).logits).numpy()
    np.testing.assert_allclose(expected["probabilities"], probabilities, atol=2e-6)


def test_probe_images_drive_every_layer_to_its_full_range(bundle: Path, run: Path, kept: Probes):
    held = load_samples(run).images.numpy()
    for precision, target in (("fp32", "any"), ("int8", "any"), ("int8", "cpu_reduced_range")):
        model = model_of(bundle, precision, target)
        largest = dict.fromkeys(
            inner_tensor_names(model), lambda values: np.abs(values).reshape(len(values), -1).max(1)
        )
        ours, all_ = evaluate(model, kept.images, inner=largest), evaluate(model, held, inner=largest)
        for name in largest:
            assert ours[name].max() >= 0.9 * all_[name].max(), (precision, name)


def test_each_file_says_its_own_threshold(bundle: Path):
    opened = load_bundle(bundle)
    for entry in opened.select("classifier"):
        assert get_metadata(onnx.load(opened.file(entry)))["threshold"] == opened.threshold_of(entry)


def test_no_probe_image_is_a_close_call(bundle: Path, kept: Probes):
    probabilities = np.sort(run(model_of(bundle, "fp32"), kept.images)["probabilities"], 1)
    assert (probabilities[:, -1] - probabilities[:, -2]).min() >= 0.09


def test_another_runtime_is_within_the_tolerance_and_another_model_is_not(bundle: Path, kept: Probes):
    opened = load_bundle(bundle)
    for precision in ("fp32", "fp16", "int8"):
        entry = opened.find("classifier", "onnx", precision)
        model, expected = onnx.load(opened.file(entry)), kept.models[entry.sha256]
        assert compare(expected, run(model, kept.images)) == []
    expected = kept.models[opened.find().sha256]
    assert compare(expected, run(model_of(bundle, "int8"), kept.images)), "int8 is not fp32"


def test_an_exact_convolution_and_product_are_the_double_precision_ones():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 3, 3, 3)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    last = rng.normal(size=(4, 5 * 16)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "l"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(a, n) for a, n in ((weight, "w"), (bias, "b"), (last, "l"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    images = rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    sums = F.conv2d(pixels, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), 2, 1)
    want = sums.float().double().flatten(1) @ torch.from_numpy(last).double().T
    np.testing.assert_array_equal(evaluate(model, images)["y"], want.float().numpy())
    ours = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": images})[0]
    np.testing.assert_allclose(evaluate(model, images)["y"], ours, rtol=1e-4, atol=0.05)
    moved = evaluate(model, images, Noise(0, sums=1e-3))["y"] - want.numpy()
    assert 1e-4 < np.sqrt(np.mean(moved**2)) / np.sqrt(np.mean(want.numpy() ** 2)) < 1e-2


def test_noise_before_rounding_moves_only_values_near_a_tie():
    nodes = [helper.make_node("QuantizeLinear", ["image", "s", "z"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, ["n"])],
        [numpy_helper.from_array(np.float32(2), "s"), numpy_helper.from_array(np.int8(0), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    values = np.concatenate([np.full(500, 3.0), np.full(500, 3.2), np.full(500, -400.0)]).astype(np.float32)
    noisy = evaluate(model, values, Noise(0, rounding=0.05))["y"]
    assert set(noisy[:500].tolist()) == {1, 2} and set(noisy[500:1000].tolist()) == {2}
    assert set(noisy[1000:].tolist()) == {-128}


def test_probes_are_kept_as_they_are_and_the_same_ones_give_the_same_bytes(kept: Probes, tmp_path: Path):
    probes.save(tmp_path / "a.npz", kept)
    probes.save(tmp_path / "b.npz", probes.load(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = probes.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.images, kept.images)
    for digest, expected in kept.models.items():
        for name, values in expected.outputs.items():
            np.testing.assert_array_equal(again.models[digest].outputs[name], values)
        assert again.models[digest].tolerance == expected.tolerance


@pytest.mark.parametrize("damage", ["schema", "missing", "pickle", "bomb", "text", "deep", "infinite", "empty", "flat"])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, damage: str):
    file = tmp_path / "probes.npz"
    about = {"schema": 9 if damage == "schema" else 1, "models": {"x": {"number": 0, "tolerance": {"a": [1, 1]}}}}
    content = {"images": np.zeros((1, 2, 2, 1), np.uint8), "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    if damage == "pickle":
        content["about"] = np.array([object()])
    if damage == "bomb":
        content["images"] = np.zeros((300 << 20,), np.uint8)
    if damage == "deep":
        content["about"] = np.frombuffer(b"[" * 100_000, np.uint8)
    if damage == "infinite":
        content["about"] = np.frombuffer(b'{"schema": 1, "models": {"x": {"number": Infinity}}}', np.uint8)
    if damage == "empty":
        content["about"] = np.frombuffer(
            b'{"schema": 1, "models": {"x": {"number": 0, "tolerance": {}, "inner": {}}}}', np.uint8
        )
    if damage == "flat":
        content["images"] = np.zeros((1, 4), np.uint8)
    np.savez_compressed(file, **content)
    if damage == "text":
        file.write_text("no zip")
    with pytest.raises(BundleError, match="readable probe images"):
        probes.load(file)


def expected(**outputs: list[float]) -> Expected:
    values = {name: np.array(value, np.float32) for name, value in outputs.items()}
    return Expected(values, dict.fromkeys(values, Tolerance(0.1, 1.0)))


def test_answers_are_compared_by_mean_and_largest_and_close_calls_are_not():
    right = {"score": np.zeros(10, np.float32)}
    assert compare(expected(score=[0.0] * 10), right) == []
    (found,) = compare(expected(score=[0.2] * 10), right)
    assert found.images == 10 and found.mean == pytest.approx(0.2)
    assert (
        found.sentence() == "score is off by 0.2 in the mean and 0.2 at most over 10 probe images (allowed: 0.1 and 1)"
    )
    (found,) = compare(expected(second_angle_probability=[0.0] * 9 + [1.5]), {"second_angle_probability": np.zeros(10)})
    assert found.largest == pytest.approx(1.5) and found.mean == pytest.approx(0.15)
    assert compare(expected(score=[1000.0] * 10), {"score": np.full(10, 1050.0)}) == [], "scores by their size"
    assert compare(expected(score=[np.nan] * 9 + [0.05]), right) == []
    assert compare(expected(score=[np.nan] * 10), right) == []
    assert "not finite" in compare(expected(score=[0.0] * 10), {"score": np.full(10, np.nan)})[0].sentence()


def test_angles_are_compared_on_the_circle_and_a_few_images_may_tip_over():
    turn = 2 * np.pi
    assert compare(expected(angle=[3.1] * 10), {"angle": np.full(10, 3.15 - turn, np.float32)}) == []
    assert compare(expected(angle=[0.0] * 10), {"angle": np.full(10, 3.0, np.float32)})
    tipped = np.zeros(60, np.float32)
    tipped[:2] = 3.0
    assert compare(expected(angle=[0.0] * 60), {"angle": tipped}) == []
    tipped[:3] = 3.0
    assert compare(expected(angle=[0.0] * 60), {"angle": tipped})


def test_fingerprints_tell_tensors_apart_by_as_much_as_they_differ():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 8, 7, 7)).astype(np.float32)
    prints = fingerprint(values)
    assert prints.shape == (6, 5) and prints.dtype == np.float32
    assert 0.5 < prints[:, 1:].std() < 2.0
    swapped = values[:, [1, 0, *range(2, 8)]]
    assert np.abs(fingerprint(swapped) - prints)[:, 1:].max() > 0.1
    assert np.abs(fingerprint(values + 1e-6) - prints).max() < 1e-3


def test_a_bundle_without_probes_gets_them_when_it_is_quantized(bundle: Path, digits: Dataset, tmp_path: Path):
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    manifest = json.loads((mine / "manifest.json").read_text())
    del manifest["probes"]
    (mine / "manifest.json").write_text(json.dumps(manifest))
    (mine / "probes.npz").unlink(missing_ok=True)
    assert load_bundle(mine).probes is None
    quantize_bundle_from_dataset(mine, "fp16", digits)
    opened = load_bundle(mine)
    assert opened.probes is not None
    assert set(probes.load(opened.file(opened.probes)).models) == {model.sha256 for model in opened.models}


def test_files_that_others_made_get_no_answers(bundle: Path, digits: Dataset, tmp_path: Path):
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    add_model(mine, load_bundle(mine).file(load_bundle(mine).find()), ModelEntry("classifier", "fp8", opset=20))
    quantize_bundle_from_dataset(mine, "fp16", digits)
    opened = load_bundle(mine)
    answered = set(probes.load(opened.file(opened.probes)).models)
    assert answered == {model.sha256 for model in opened.models if model.precision != "fp8"}


def test_a_model_that_is_sure_of_nothing_gets_probes_too(bundle: Path):
    model = model_of(bundle, "fp32")
    soft = next(node for node in model.graph.node if "probabilities" in node.output)
    scale = numpy_helper.from_array(np.float32(1e-3), "nearly_even")
    model.graph.initializer.append(scale)
    place = list(model.graph.node).index(soft)
    model.graph.node.insert(place, helper.make_node("Mul", [soft.input[0], "nearly_even"], ["flat_logits"]))
    soft.input[0] = "flat_logits"
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    chosen = choose_probes(model, images)
    assert len(chosen) >= 32
    assert np.isfinite(expect(model, "fp32", chosen).outputs["probabilities"]).all(1).sum() >= 8
