"""Files that are right, of which the fuzz tests make nearly right ones: no training, no engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vae_edge.bundle import ModelEntry, create_bundle
from vae_edge.preprocess import InputSpec


def small_model() -> onnx.ModelProto:
    """A graph with a convolution, a shape that is computed, and all three outputs."""
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.normal(0, 1, (4, 1, 3, 3)).astype(np.float32),
        "bias": np.zeros(4, np.float32),
        "row": np.array([-1], np.int64),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "zero": np.array(0, np.int64),
        "matrix": rng.normal(0, 1, (4 * 14 * 14, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Pad", ["planes", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "weight", "bias"], ["features"], strides=[2, 2], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Shape", ["positive"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axis0"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "row"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["positive", "wanted"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceMax", ["logits", "axis1"], ["score"], keepdims=0),
        helper.make_node("ReduceMin", ["logits", "axis1"], ["angle"], keepdims=0),
    ]
    constants |= {"axis0": np.array([0], np.int64), "axis1": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 28, 28, 1])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("angle", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"vae_edge.version": '"0"', "vae_edge.classes": '["a", "b"]'})
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture
def small_bundle(tmp_path: Path, model_file: Path) -> Path:
    """A bundle that loads, and whose model is small."""
    create_bundle(
        tmp_path / "bundle",
        name="small",
        classes=[str(k) for k in range(10)],
        input=InputSpec(28, 1),
        threshold=1.0,
        reject_rate=0.01,
        models=[(model_file, ModelEntry("classifier", "fp32", opset=20, accuracy={"accuracy": 0.9}))],
    )
    return tmp_path / "bundle"
