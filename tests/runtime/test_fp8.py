"""fp8 files: right on ONNX Runtime, whose full optimization would make them silently wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, add_model
from vae_edge.runtime.onnxruntime_backend import session_options


def to_fp8(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 model with its quantized activations in float8 e4m3 instead; the weights stay int8."""
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    zero = helper.make_tensor("fp8_zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    model.graph.initializer.append(zero)
    quantized = set()
    for node in model.graph.node:
        activation = node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in quantized
        )
        if activation:
            scale = weights[node.input[1]] * np.float32(127 / 448)
            name = f"{node.name}_fp8_scale"
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), name))
            node.input[1], node.input[2] = name, "fp8_zero"
            quantized.add(node.output[0])
    del model.graph.value_info[:]
    return model


@pytest.fixture(scope="module")
def fp8(session_bundle: Bundle) -> onnx.ModelProto:
    return to_fp8(onnx.load(session_bundle.file(session_bundle.find(precision="int8"))))


def test_fp8_gives_what_the_reference_evaluator_gives(
    fp8: onnx.ModelProto, own_bundle: Bundle, session_bundle: Bundle, tmp_path: Path
) -> None:
    images = noise(8, seed=7)
    expected = ReferenceEvaluator(fp8).run(None, {"image": images})
    onnx.save(fp8, tmp_path / "fp8.onnx")
    add_model(own_bundle.path, tmp_path / "fp8.onnx", ModelEntry("classifier", "fp8", opset=20))
    with vae_edge.load(own_bundle.path, "onnxruntime", "fp8") as classifier:
        predictions = classifier(images)
    np.testing.assert_allclose(predictions.probabilities, expected[0], atol=0.05)
    np.testing.assert_allclose(predictions.scores, expected[2], atol=0.12)


def test_the_optimization_that_is_left_out_is_what_breaks_it(fp8: onnx.ModelProto) -> None:
    """When this fails on the newest ONNX Runtime, it has been mended, and the exception in the backend may go."""
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 30):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} is older than the optimization")
    images = noise(8, seed=7)
    expected = ReferenceEvaluator(fp8).run(None, {"image": images})[2]
    session = onnxruntime.InferenceSession(
        fp8.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    broken = session.run(["score"], {"image": images})[0]
    assert np.abs(broken - expected).max() > 0.25
