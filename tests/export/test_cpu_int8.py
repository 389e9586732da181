"""The uint8 rewrite: the same numbers, only where a sign cannot occur, and nothing on disk."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import Graph, noise

from vae_edge.bundle import Bundle
from vae_edge.runtime.onnxruntime_backend import session_options
from vae_edge.runtime.unsigned import rewrite, unsigned_activations


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, feeds)


def types_of_zero_points(model: onnx.ModelProto) -> Counter[str]:
    weights = {w.name: w for w in model.graph.initializer}
    return Counter(
        str(numpy_helper.to_array(weights[n.input[2]]).dtype) for n in model.graph.node if n.op_type == "QuantizeLinear"
    )


def test_a_quantized_classifier_gives_the_same_numbers_and_the_file_is_untouched(session_bundle: Bundle) -> None:
    file = session_bundle.file(session_bundle.find(precision="int8"))
    before = file.read_bytes()
    images = noise(8, seed=7)  # of those it was calibrated on: int8 does not saturate, so the two must agree exactly
    model = onnx.load_from_string(unsigned_activations(file))
    assert file.read_bytes() == before
    onnx.checker.check_model(model, full_check=True)
    assert types_of_zero_points(model)["uint8"] >= 6
    original = onnx.load(file)
    for have, want in zip(run(model, {"image": images}), run(original, {"image": images}), strict=True):
        np.testing.assert_allclose(have, want, atol=0.03)  # a value at the very edge may round beyond 127
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1))
    assert session.run(None, {"image": images})[0].shape == (8, 10)


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
    assert rewrite(model) == 1
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
    before = model.SerializeToString()
    assert rewrite(model) == 0
    assert model.SerializeToString() == before


def test_without_the_package_onnx_the_file_is_used_as_it_is_and_that_is_said(
    session_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file: Path = session_bundle.file(session_bundle.find(precision="int8"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with caplog.at_level(logging.WARNING):
        assert unsigned_activations(file) == file.read_bytes()
    assert "pip install onnx" in caplog.text
