"""A small ONNX classifier with what the doubles' tests need: GridSample, convolution, matrix product, Q/DQ pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 8


def small_graph(channels: int = 1, quantized: bool = False, batch: int | str = "batch") -> bytes:
    """`image` uint8 [N, 8, 8, C] to probabilities [N, 3], angle [N], score [N], serialized."""
    rng = np.random.default_rng(5)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(operator: str, inputs: list[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def pair(tensor: str, scale: float) -> str:
        if not quantized:
            return tensor
        parameters = [constant(f"{tensor}_scale", scale), constant(f"{tensor}_zero", 0, np.int8)]
        return add(
            "DequantizeLinear",
            [add("QuantizeLinear", [tensor, *parameters], f"{tensor}_q"), *parameters],
            f"{tensor}_dq",
        )

    x = add("Transpose", [add("Cast", ["image"], "float", to=TensorProto.FLOAT)], "nchw", perm=[0, 3, 1, 2])
    x = add("Mul", [x, constant("norm", 1 / 255)], "scaled")
    count = add("Shape", [x], "count", start=0, end=1)
    sides = add("Concat", [count, constant("sides", [SIZE, SIZE, 2], np.int64)], "grid_shape", axis=0)
    grid = add("Expand", [constant("turn", turned_grid()), sides], "grid")
    x = add("GridSample", [x, grid], "turned", mode="linear")
    kernel = constant("kernel", rng.normal(0, 0.5, (4, channels, 3, 3)))
    x = add("Conv", [pair(x, 0.01), pair(kernel, 0.02)], "conv", kernel_shape=[3, 3], pads=[1] * 4)
    x = add("GlobalMaxPool", [add("Relu", [x], "relu")], "pooled")
    x = add("Flatten", [x], "flat")
    matrix = constant("matrix", rng.normal(0, 1, (5, 4)))
    x = add("Gemm", [pair(x, 0.02), pair(matrix, 0.03)], "logits", transB=1)
    bounds = [constant(name, [value], np.int64) for name, value in (("begin", 0), ("end", 3), ("axis", 1))]
    add("Softmax", [add("Slice", [x, *bounds], "first")], "probabilities", axis=1)
    for name, place in (("angle", 3), ("score", 4)):
        add("Gather", [x, constant(f"{name}_place", place, np.int64)], name, axis=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("image", TensorProto.UINT8, [batch, SIZE, SIZE, channels])],
        [
            value("probabilities", TensorProto.FLOAT, [batch, 3]),
            value("angle", TensorProto.FLOAT, [batch]),
            value("score", TensorProto.FLOAT, [batch]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def turned_grid() -> np.ndarray:
    """Where each pixel is read, [1, 8, 8, 2]: a rotation and a shift, between the pixels."""
    y, x = np.meshgrid(*[(np.arange(SIZE) * 2 + 1) / SIZE - 1] * 2, indexing="ij")
    return np.stack([0.8 * x - 0.6 * y + 0.1, 0.6 * x + 0.8 * y], axis=-1)[None]


def images(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise, uint8 [N, 8, 8, C]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, channels), dtype=np.uint8)
