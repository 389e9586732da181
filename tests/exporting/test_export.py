import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vae_edge.api import export
from vae_edge.bundle import load_bundle
from vae_edge.data import Dataset, rotate_dataset
from vae_edge.errors import BundleError, ConfigError, ExportError
from vae_edge.exporting import quantize_bundle_from_dataset
from vae_edge.exporting.bundle import load_onnx
from vae_edge.exporting.onnx_file import (
    ClassifierGraph,
    check_parity,
    get_metadata,
    run,
    to_fp16,
    to_onnx,
)
from vae_edge.exporting.quantize import convert, validate_qdq
from vae_edge.model import AngleVAE, create_config
from vae_edge.runtime import load
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS
from vae_edge.training.checkpoint import Checkpoint, load_checkpoint
from vae_edge.training.evaluate import predict


def model_of(bundle: Path, precision: str) -> onnx.ModelProto:
    opened = load_bundle(bundle)
    return onnx.load(opened.file(opened.find("classifier", "onnx", precision)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_graph_takes_bytes_and_gives_decisions(bundle: Path, precision: str):
    model = model_of(bundle, precision)
    assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [20]
    (image,) = model.graph.input
    sides = image.type.tensor_type.shape.dim
    assert image.name == "image" and image.type.tensor_type.elem_type == TensorProto.UINT8
    assert sides[0].dim_param and [side.dim_value for side in sides[1:]] == [28, 28, 1]
    assert [output.name for output in model.graph.output] == [*CLASSIFIER_OUTPUTS, *UNCERTAINTY_OUTPUTS]
    assert all(output.type.tensor_type.elem_type == TensorProto.FLOAT for output in model.graph.output)


def test_the_exported_graph_equals_pytorch_on_real_images(bundle: Path, checkpoint: Checkpoint, digits: Dataset):
    outputs = run(model_of(bundle, "fp32"), digits.test.images)
    reference = predict(checkpoint.model, digits.test.images)
    np.testing.assert_allclose(outputs["probabilities"], reference.probabilities, atol=1e-5)
    np.testing.assert_allclose(outputs["score"], reference.scores, atol=1e-3)
    assert circular(outputs["angle"], reference.angles_deg, 0.995) < 0.01
    np.testing.assert_allclose(outputs["angle_confidence"], reference.angle_confidences, atol=1e-4)
    assert np.quantile(np.abs(outputs["second_angle_probability"] - reference.second_angle_probabilities), 0.995) < 1e-4
    told = reference.second_angle_probabilities > 0.01
    assert told.sum() > 100
    assert circular(outputs["second_angle"][told], reference.second_angles_deg[told], 0.99) < 0.1


def circular(angles_rad: np.ndarray, angles_deg: np.ndarray, quantile: float) -> float:
    apart = np.abs(np.rad2deg(angles_rad) - angles_deg)
    return float(np.quantile(np.minimum(apart, 360 - apart), quantile))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_coarser_precisions_are_about_as_sure_of_the_angle(bundle: Path, digits: Dataset, precision: str):
    fine, coarse = (run(model_of(bundle, each), digits.test.images) for each in ("fp32", precision))
    for name in ("angle_confidence", "second_angle_probability"):
        assert np.median(np.abs(coarse[name] - fine[name])) < 0.03
        assert coarse[name].min() >= 0 and coarse[name].max() <= 1 + 1e-5
    model = model_of(bundle, precision)
    made_by = {name: node for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert products, "what is read off the bins, and the distances of the score"
    for given in (made_by[name] for node in products for name in node.input if name in made_by):
        looked_up = given.op_type == "Cast" and made_by[given.input[0]].op_type == "Gather"  # a cluster's stored matrix
        assert given.op_type not in ("DequantizeLinear", "Cast") or looked_up


def test_the_graph_has_the_temperature_and_the_score_has_it_not(digits: Dataset):
    torch.manual_seed(0)
    model = AngleVAE(create_config("tiny")).eval()
    before = predict(model, digits.test.images[:64])
    model.temperature.fill_(0.3)
    graph = ClassifierGraph(model)
    outputs = run(to_onnx(graph, 28, 1, graph.outputs, {}), digits.test.images[:64])
    expected = torch.from_numpy(before.logits / 0.3).softmax(1)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert np.abs(outputs["probabilities"] - before.probabilities).max() > 0.01
    np.testing.assert_allclose(outputs["score"], before.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_batch_is_dynamic(bundle: Path, digits: Dataset, count: int):
    outputs = run(model_of(bundle, "fp32"), digits.test.images[:count])
    assert outputs["probabilities"].shape == (count, 10) and outputs["angle"].shape == outputs["score"].shape == (
        count,
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_files_carry_our_metadata_and_nobody_s_paths(bundle: Path, precision: str):
    model = model_of(bundle, precision)
    metadata = get_metadata(model)
    assert metadata["classes"] == [str(k) for k in range(10)]
    opened = load_bundle(bundle)
    assert metadata["threshold"] == opened.threshold_of(opened.find(precision=precision))
    assert metadata["input"]["size"] == 28 and metadata["version"]
    raw = model.SerializeToString()
    for word in (
        b"site-packages",
        b"network.py",
        b"/vae_edge/",
        b"Traceback",
        b"stack_trace",
        str(Path.cwd()).encode(),
    ):
        assert word not in raw, word


def test_int8_and_fp16_lose_little(bundle: Path):
    opened = load_bundle(bundle)
    for precision in ("fp16", "int8"):
        accuracy = opened.find("classifier", "onnx", precision).accuracy
        assert accuracy["n"] == 400
        assert accuracy["accuracy"] >= accuracy["fp32_accuracy"] - 0.0125
    sizes = {model.precision: model.bytes for model in opened.select("classifier")}
    assert sizes["fp16"] < 0.75 * sizes["fp32"] and sizes["int8"] < sizes["fp16"]


def test_every_convolution_of_the_int8_file_reads_and_weighs_int8(bundle: Path):
    model = model_of(bundle, "int8")
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) >= 13
    for node in convolutions:
        assert all(made_by[name].op_type == "DequantizeLinear" for name in node.input[:2]), node.name


def test_fp16_casts_only_where_a_value_changes_sides(bundle: Path):
    model = model_of(bundle, "fp16")
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in made_by:
            assert made_by[node.input[0]].op_type != "Cast" or node.input[0] == "image", node.name
    halves = {i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT16}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert node.input[1] in halves


def test_a_graph_that_computes_something_else_is_refused(checkpoint: Checkpoint, run: Path, digits: Dataset):
    graph = ClassifierGraph(checkpoint.model)
    model = to_onnx(graph, 28, 1, graph.outputs, {})
    assert check_parity(graph, model, digits.test.images[:64])["probabilities"] < 1e-5
    bias = next(i for i in model.graph.initializer if numpy_helper.to_array(i).shape == (10,))
    bias.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(bias) + np.linspace(0, 1, 10, dtype=np.float32), bias.name)
    )
    with pytest.raises(ExportError, match="does not compute"):
        check_parity(graph, model, digits.test.images[:64])
    model = to_onnx(graph, 28, 1, graph.outputs, {})
    sums = next(i for i in model.graph.initializer if numpy_helper.to_array(i).shape == (3 * 36, 7))
    sums.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(sums)[:, [0, 1, 3, 2, 4, 5, 6]], sums.name))
    with pytest.raises(ExportError, match="second_angle differs"):
        check_parity(graph, model, digits.test.images[:64])
    with pytest.raises(ExportError, match="real images"):
        check_parity(graph, model, digits.test.images[:0])


@pytest.mark.parametrize(("orientation", "size", "channels"), [(False, 28, 1), (True, 32, 3), (True, 45, 1)])
def test_other_shapes_and_unturned_models_export_too(orientation: bool, size: int, channels: int):
    torch.manual_seed(0)
    graph = ClassifierGraph(
        AngleVAE(create_config("tiny", size=size, channels=channels, classes=4, orientation=orientation)).eval()
    )
    model = to_onnx(graph, size, channels, graph.outputs, {})
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, channels), dtype=np.uint8)
    check_parity(graph, model, images)
    assert [output.name for output in model.graph.output] == [
        *CLASSIFIER_OUTPUTS,
        *(UNCERTAINTY_OUTPUTS if orientation else ()),
    ]
    if not orientation:
        np.testing.assert_array_equal(run(model, images)["angle"], np.zeros(5))


def test_a_failed_export_leaves_the_bundle_that_was_there(bundle: Path, run: Path, digits: Dataset, tmp_path: Path):
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    before = (mine / "manifest.json").read_bytes()
    (mine / "notes.txt").write_text("mine")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"):
        export(run, taken)
    assert [path.name for path in taken.iterdir()] == ["letter.txt"]
    with pytest.raises(ConfigError, match="int4"):
        quantize_bundle_from_dataset(mine, "int4", digits)
    assert (mine / "manifest.json").read_bytes() == before


def linear_model(**quantize) -> onnx.ModelProto:
    """x -> Q/DQ -> Conv (weights Q/DQ) -> y, with one thing wrong as told."""
    zero = quantize.get("zero", numpy_helper.from_array(np.zeros((), np.int8), "zero"))
    zero.name = "zero"
    axis = quantize.get("axis", 0)
    weights = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.int8), "w")
    scales = numpy_helper.from_array(np.ones(4, np.float32), "ws")
    zeros = numpy_helper.from_array(np.zeros(4, np.int8), "wz")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["xq"], name="quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "zero"], ["xd"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights", axis=axis),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
    ]
    last = "c"
    if quantize.get("before_relu"):
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "s", "zero"], ["cq"], name="between"),
            helper.make_node("DequantizeLinear", ["cq", "s", "zero"], ["cd"], name="between2"),
        ]
        last = "cd"
    nodes.append(helper.make_node("Relu", [last], ["y"], name="relu"))
    shape = ["n", 4, 2, 2]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weights, scales, zeros, zero, numpy_helper.from_array(np.float32(0.1), "s")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_the_rules_of_tensorrt_pass_what_keeps_them():
    validate_qdq(linear_model())


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"zero": numpy_helper.from_array(np.int8(3))}, "not 0"),
        ({"zero": numpy_helper.from_array(np.uint8(0))}, "UINT8"),
        ({"axis": 2}, "axis 2"),
        ({"before_relu": True}, "Relu"),
    ],
)
def test_the_rules_of_tensorrt_refuse_what_breaks_them(wrong: dict, word: str):
    with pytest.raises(ExportError, match=word):
        validate_qdq(linear_model(**wrong))


def test_a_graph_without_any_quantization_is_no_int8_model(bundle: Path):
    with pytest.raises(ExportError, match="no Q/DQ"):
        validate_qdq(model_of(bundle, "fp32"))


def test_a_weight_beyond_fp16_is_refused(bundle: Path):
    model = model_of(bundle, "fp32")
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(i for i in model.graph.initializer if i.name == conv.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1e9, weight.name))
    with pytest.raises(ExportError, match="65504"):
        to_fp16(model)


def test_too_few_calibration_images_are_refused(bundle: Path, digits: Dataset):
    with pytest.raises(ExportError, match="at least 16"):
        convert(model_of(bundle, "fp32"), "int8", digits.train.images[:5])


def test_a_file_that_is_not_ours_is_a_sentence(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"\x00\xffthis is no protobuf")
    with pytest.raises(BundleError, match="no Protocol Buffers"):
        load_onnx(tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="not written by vae-edge"):
        get_metadata(linear_model())


def test_the_manifest_says_where_everything_comes_from(bundle: Path, run: Path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    by_precision = {m["precision"]: m for m in manifest["models"] if m["role"] == "classifier"}
    assert by_precision["fp32"]["provenance"]["parity"]["images"] == 256
    assert by_precision["int8"]["provenance"]["from_sha256"] == by_precision["fp32"]["sha256"]
    assert by_precision["int8"]["provenance"]["calibration_images"] == 512
    assert manifest["data"]["name"] == "digits" and manifest["rotation"] == "full"


def test_a_bundle_with_the_light_score_has_no_decoder_and_a_threshold_of_its_own(
    run: Path, bundle: Path, digits: Dataset, tmp_path: Path
):
    export(run, tmp_path / "light", score_mode="fast")
    light, full = load_bundle(tmp_path / "light"), load_bundle(bundle)
    assert (light.score_mode, full.score_mode) == ("fast", "full")
    assert light.threshold != full.threshold
    nodes = [node.op_type for node in onnx.load(light.file(light.find("classifier", "onnx", "fp32"))).graph.node]
    assert "Resize" not in nodes and nodes.count("Conv") == 12
    images = rotate_dataset(digits.test, 180.0, 3).images[:400]
    with load(tmp_path / "light", backend="onnxruntime", precision="fp32") as classifier:
        predictions = classifier(images)
    reference = predict(load_checkpoint(run).model, images)
    np.testing.assert_allclose(predictions.scores, reference.fast_scores, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(predictions.accepted, predictions.scores <= light.threshold)
    assert predictions.accepted.mean() > 0.9
