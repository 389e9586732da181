"""Small ONNX files with the interface of the exported graph, in each precision, built node by node."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (16, 32, 32)


class _Graph:
    def __init__(self, precision: str, skip: Collection[str]) -> None:
        self.rng = np.random.default_rng(7)
        self.precision, self.skip = precision, skip
        self.float = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.dtype = np.float16 if precision == "fp16" else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype or self.dtype), name))
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def quantized(self, tensor: str, scale: Any, layer: str, axis: int | None = None) -> str:
        """The tensor through a Q/DQ pair with zero point 0, unless the precision has none or the layer is skipped."""
        if self.precision not in ("int8", "fp8") or layer in self.skip:
            return tensor
        name = f"{layer}_{tensor}"
        shape = np.shape(scale)
        self.constant(f"{name}_scale", scale, np.float32)
        if self.precision == "int8":
            self.constant(f"{name}_zero", np.zeros(shape), np.int8)
        else:
            zeros = [0.0] * int(np.prod(shape, dtype=int))
            self.weights.append(helper.make_tensor(f"{name}_zero", TensorProto.FLOAT8E4M3FN, shape, zeros))
        where = {} if axis is None else {"axis": axis}
        q = self.add("QuantizeLinear", [tensor, f"{name}_scale", f"{name}_zero"], f"{name}_q", **where)
        return self.add("DequantizeLinear", [q, f"{name}_scale", f"{name}_zero"], f"{name}_dq", **where)

    def convolution(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        self.constant(f"{name}_w", self.rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3)))
        self.constant(f"{name}_b", np.zeros(outputs))
        x = self.quantized(x, 0.05, name)
        w = self.quantized(f"{name}_w", np.full(outputs, 0.01), name, axis=0)
        same = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [stride] * 2}
        self.nodes.append(helper.make_node("Conv", [x, w, f"{name}_b"], [f"{name}_y"], name=name, **same))
        return self.add("Relu", [f"{name}_y"], f"{name}_relu")

    def product(self, x: str, name: str, inputs: int, outputs: int) -> str:
        self.constant(f"{name}_w", self.rng.normal(0, inputs**-0.5, (outputs, inputs)))
        self.constant(f"{name}_b", np.zeros(outputs))
        x = self.quantized(x, 0.05, name)
        w = self.quantized(f"{name}_w", np.full(outputs, 0.01), name, axis=0)
        self.nodes.append(helper.make_node("Gemm", [x, w, f"{name}_b"], [f"{name}_y"], name=name, transB=1))
        out = f"{name}_y"
        return self.add("Cast", [out], f"{name}_f32", to=TensorProto.FLOAT) if self.precision == "fp16" else out


def classifier(
    precision: str = "fp32",
    *,
    size: int = 28,
    channels: int = 1,
    classes: int = 10,
    batch: str | int = "batch",
    skip: Collection[str] = (),
    rename: dict[str, str] | None = None,
    cast_first: bool = True,
    doubts: Collection[str] = (),
) -> onnx.ModelProto:
    """`image` uint8 [N, S, S, C] to probabilities [N, K], angle [N], score [N], and `doubts` as further outputs [N].

    `skip` names layers (conv0, conv1, conv2, logits, turn) without Q/DQ; `rename` changes names of inputs and outputs.
    """
    g = _Graph(precision, skip)
    if cast_first:
        x = g.add("Transpose", [g.add("Cast", ["image"], "float", to=g.float)], "nchw", perm=[0, 3, 1, 2])
    else:
        x = g.add("Cast", [g.add("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2])], "float", to=g.float)
    x = g.add("Mul", [x, g.constant("scale", 1 / 255)], "scaled")
    inputs = channels
    for index, width in enumerate(WIDTHS):
        x = g.convolution(x, f"conv{index}", inputs, width, stride=1 if index == 0 else 2)
        inputs = width
    flat = g.add("Flatten", [g.add("GlobalAveragePool", [x], "pooled")], "flat")
    logits, turn = g.product(flat, "logits", inputs, classes), g.product(flat, "turn", inputs, 1)
    axis = g.constant("last", [1], np.int64)
    g.add("Softmax", [logits], "probabilities", axis=1)
    g.add("Squeeze", [turn, axis], "angle")
    g.add("Neg", [g.add("ReduceLogSumExp", [logits, axis], "energy", keepdims=0)], "score")
    for name in doubts:
        g.add("Sigmoid", ["angle"], name)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "classifier",
        [value("image", TensorProto.UINT8, [batch, size, size, channels])],
        [
            value("probabilities", TensorProto.FLOAT, [batch, classes]),
            value("angle", TensorProto.FLOAT, [batch]),
            *(value(name, TensorProto.FLOAT, [batch]) for name in ("score", *doubts)),
        ],
        g.weights,
    )
    for old, new in (rename or {}).items():
        _rename(graph, old, new)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def reconstruction(size: int = 28, channels: int = 1) -> onnx.ModelProto:
    """`image` uint8 [N, S, S, C] to `reconstruction` uint8 [N, S, S, C], through one convolution."""
    g = _Graph("fp32", ())
    x = g.add("Transpose", [g.add("Cast", ["image"], "float", to=g.float)], "nchw", perm=[0, 3, 1, 2])
    x = g.convolution(x, "conv0", channels, channels, stride=1)
    x = g.add("Transpose", [x], "nhwc", perm=[0, 2, 3, 1])
    g.add("Cast", [g.add("Clip", [x, g.constant("low", 0), g.constant("high", 255)], "clip")], "reconstruction", to=2)
    shape = ["batch", size, size, channels]
    graph = helper.make_graph(
        g.nodes,
        "reconstruction",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("reconstruction", TensorProto.UINT8, shape)],
        g.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model and give the path back."""
    path.write_bytes(model.SerializeToString())
    return path
