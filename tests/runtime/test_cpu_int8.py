"""The int8 files for CPUs: the same numbers, uint8 only where a sign cannot occur, 7 bits that cannot saturate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import Graph, noise

from vae_edge.bundle import Bundle
from vae_edge.exporting.quantize import with_reduced_range, with_unsigned_activations
from vae_edge.runtime.onnxruntime_backend import session_options

exact = pytest.importorskip("vae_edge.exporting.probes", reason="needs PyTorch")


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, feeds)


def types_of_zero_points(model: onnx.ModelProto) -> Counter[str]:
    weights = {w.name: w for w in model.graph.initializer}
    return Counter(
        str(numpy_helper.to_array(weights[n.input[2]]).dtype) for n in model.graph.node if n.op_type == "QuantizeLinear"
    )


def int8_file(bundle: Bundle, target: str = "any") -> onnx.ModelProto:
    return onnx.load(bundle.file(bundle.find(precision="int8", target=target)))


def test_unsigned_activations_mean_the_same_and_the_model_is_untouched(session_bundle: Bundle) -> None:
    original = int8_file(session_bundle)
    before = original.SerializeToString()
    images = noise(8, seed=7)  # of those it was calibrated on: int8 does not saturate, so the two must agree
    model = with_unsigned_activations(original)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read  # ONNX Runtime warns of others
    assert original.SerializeToString() == before
    onnx.checker.check_model(model, full_check=True)
    assert types_of_zero_points(model)["uint8"] >= 6 and "uint8" not in types_of_zero_points(original)
    have, want = exact.evaluate(model, images), exact.evaluate(original, images)
    for name, values in want.items():
        np.testing.assert_allclose(have[name], values, atol=0.03)  # a value at the very edge may round beyond 127
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1))
    assert session.run(None, {"image": images})[0].shape == (8, 10)


def test_weights_of_reduced_range_have_7_bits_and_nearly_the_same_values(session_bundle: Bundle) -> None:
    original = int8_file(session_bundle)
    reduced = with_reduced_range(original)
    pairs = list(zip(dequantized_weights(original), dequantized_weights(reduced), strict=True))
    assert len(pairs) >= 7
    for (before, step, _), (after, doubled, integers) in pairs:
        assert np.abs(integers.astype(int)).max() <= 64 and np.allclose(doubled, 2 * step)
        assert (np.abs(after - before) <= step * 1.001).all()
    images = noise(16, seed=7)
    have, want = exact.evaluate(reduced, images), exact.evaluate(original, images)
    assert np.abs(have["probabilities"] - want["probabilities"]).max() < 0.25


def dequantized_weights(model: onnx.ModelProto) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Values, steps (broadcast), and integers of each quantized weight."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    used = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in used:
            integers, steps = constants[node.input[0]], constants[node.input[1]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shaped = steps.reshape([-1 if k == axis else 1 for k in range(integers.ndim)])
            yield integers * shaped, np.broadcast_to(shaped, integers.shape), integers


def test_weights_of_reduced_range_are_rounded_once_where_the_floats_are_there() -> None:
    g = Graph()
    weight = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    steps = (np.abs(weight).max(1) / 127).astype(np.float32)
    source = onnx.ModelProto()
    source.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    integers = np.rint(weight / steps[:, None]).astype(np.int8)
    g.weights = [
        numpy_helper.from_array(integers, "w_quantized"),
        numpy_helper.from_array(steps, "w_scale"),
        numpy_helper.from_array(np.zeros(4, np.int8), "w_zero"),
    ]
    g.add("DequantizeLinear", "w_quantized", "w_scale", "w_zero", out="y", axis=0)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])]
    model = helper.make_model(helper.make_graph(g.nodes, "q", [], outputs, g.weights))
    (once,) = run(with_reduced_range(model, source), {})
    (twice,) = run(with_reduced_range(model), {})
    assert (np.abs(once - weight) <= steps[:, None] * 1.001).all()
    assert np.abs(once - weight).sum() <= np.abs(twice - weight).sum()


@pytest.mark.parametrize("target", ["cpu", "cpu_reduced_range"])
def test_only_the_reduced_range_survives_sums_of_16_bits(session_bundle: Bundle, target: str) -> None:
    """VPMADDUBSW simulated: every two neighbouring products are added in 16 bits, which saturate."""
    model, images = int8_file(session_bundle, target), noise(64, seed=7)
    bright = np.where(images > 60, 255, images).astype(np.uint8)  # drives activations beyond the calibrated range
    from saturating import saturate

    right, saturating = exact.evaluate(model, bright), saturate(model, bright)
    apart = np.abs(right["score"] - saturating["score"]).max()
    if target == "cpu":
        assert apart > 0.05
    else:
        assert apart < 1e-3


def quantized(*, op: str, zero: int = 0, dtype: type = np.int8, extra_reader: bool = False) -> onnx.ModelProto:
    """x -> op -> Q -> DQ -> y, and beside it an operator that reads the quantized tensor itself."""
    g = Graph()
    scale, point = g.constant(0.25), g.constant(zero, dtype)
    value = g.add(op, "x") if op else "x"
    q = g.add("QuantizeLinear", g.add("Reshape", value, g.constant([-1], np.int64)), scale, point, out="q")
    g.add("DequantizeLinear", q, scale, point, out="y")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    if extra_reader:
        g.add("Cast", q, to=TensorProto.FLOAT, out="z")
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])]
    graph = helper.make_graph(g.nodes, "q", inputs, outputs, g.weights)
    kind = TensorProto.INT8 if dtype is np.int8 else TensorProto.UINT8
    graph.value_info.append(helper.make_tensor_value_info("q", kind, [None]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Abs"])
def test_what_cannot_be_negative_is_rewritten_and_means_the_same(op: str) -> None:
    model = quantized(op=op)
    x = np.linspace(-20, 20, 101, dtype=np.float32)
    want = run(model, {"x": x})[0]
    model = with_unsigned_activations(model)
    assert types_of_zero_points(model) == {"uint8": 1}
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, {"x": x})[0], want)
    ours = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(ours, want)


@pytest.mark.parametrize(
    "model",
    [
        quantized(op="Neg"),
        quantized(op="Tanh"),
        quantized(op=""),
        quantized(op="Relu", zero=-5),
        quantized(op="Relu", dtype=np.uint8),
        quantized(op="Relu", extra_reader=True),
    ],
    ids=["Neg", "Tanh", "an input", "a zero point of its own", "uint8 already", "read by another operator"],
)
def test_anything_else_is_left_alone(model: onnx.ModelProto) -> None:
    assert with_unsigned_activations(model).SerializeToString() == model.SerializeToString()
