"""What x86 processors without VNNI compute: pairs of products of uint8 and int8, summed in 16 bits that saturate.

VPMADDUBSW multiplies 32 unsigned by 32 signed bytes and adds each two neighbours into a signed 16-bit number, saturated
(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2). The pairs here are neighbouring input
channels of one tap, as in oneDNN's blocked layouts; signed activations are shifted by 128 to unsigned ones, as engines
do, and the shift is taken off again exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from vae_edge.exporting import probes


def saturate(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a Q/DQ model whose quantized convolutions and linear layers saturate as described."""
    changed, layers = _with_integer_layers(model)
    operators = [*probes._operators(None), _layer_operator(layers)]
    names = [output.name for output in model.graph.output]
    values = ReferenceEvaluator(changed, new_ops=operators).run(None, {"image": images})
    return dict(zip(names, values, strict=True))


class Layer:
    """The integers of one layer: weights int8 [O, I, kh, kw], scales, bias, geometry."""

    def __init__(self, node: onnx.NodeProto, constants: Mapping[str, np.ndarray], given: onnx.NodeProto) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        made = constants["made_by"][node.input[1]]
        weight = constants[made.input[0]]
        if node.op_type == "Gemm":
            weight = weight if attributes.get("transB", 0) else weight.T
        self.weight = weight.reshape(*weight.shape, *[1] * (4 - weight.ndim)).astype(np.int64)
        scale = np.broadcast_to(constants[made.input[1]].astype(np.float64), self.weight.shape[:1])
        self.scale = scale * float(constants[given.input[1]])
        self.bias = constants[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(len(scale))
        self.pads = attributes.get("pads", [0] * 4)[:2]
        self.strides = attributes.get("strides", [1, 1])
        self.flat = node.op_type == "Gemm"

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Integers uint8 or int8 [N, I, ...] to float32."""
        shift = 128 if values.dtype == np.int8 else 0
        x = values.astype(np.int64).reshape(*values.shape, *[1] * (4 - values.ndim)) + shift
        padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in self.pads)), constant_values=shift)
        _, channels, kh, kw = self.weight.shape
        if channels == 1 and kh * kw > 1:  # neighbours are then taps
            columns = F.unfold(torch.from_numpy(padded).double(), (kh, kw), stride=tuple(self.strides)).numpy()
            columns, weight = columns.transpose(0, 2, 1), self.weight.reshape(len(self.weight), -1)
            sums = _saturated(columns, weight).transpose(0, 2, 1)
        else:
            columns = F.unfold(torch.from_numpy(padded).double(), (kh, kw), stride=tuple(self.strides)).numpy()
            n, _, places = columns.shape
            columns = columns.reshape(n, channels, kh * kw, places).transpose(0, 3, 2, 1).reshape(n, places, -1)
            weight = (
                self.weight.reshape(len(self.weight), channels, -1).transpose(0, 2, 1).reshape(len(self.weight), -1)
            )
            sums = _saturated(columns, weight).transpose(0, 2, 1)
        sums = sums - shift * self.weight.sum((1, 2, 3))[None, :, None]
        result = sums * self.scale[None, :, None] + self.bias[None, :, None]
        if self.flat:
            return result[..., 0].astype(np.float32)
        height = (padded.shape[2] - kh) // self.strides[0] + 1
        return result.reshape(len(x), -1, height, result.shape[2] // height).astype(np.float32)


def _saturated(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[N, P, D] by [O, D] to [N, P, O], each two neighbouring products saturated to 16 bits."""
    if columns.shape[2] % 2:
        columns, weight = (np.concatenate([a, np.zeros((*a.shape[:-1], 1))], -1) for a in (columns, weight))
    total = np.zeros((*columns.shape[:2], len(weight)))
    for k in range(0, columns.shape[2], 2):
        pair = columns[:, :, k, None] * weight[:, k] + columns[:, :, k + 1, None] * weight[:, k + 1]
        total += np.clip(pair, -32768, 32767)
    return total


def _with_integer_layers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Layer]]:
    """The model with each quantized layer as one node that reads its input's integers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
    constants["made_by"] = made_by = {name: node for node in copy.graph.node for name in node.output}
    layers: dict[str, Layer] = {}
    for node in copy.graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in made_by or node.input[0] not in made_by:
            continue
        given = made_by[node.input[0]]
        while given.op_type in ("Reshape", "Flatten"):
            given = made_by[given.input[0]]
        direct = made_by[node.input[0]]
        if made_by[node.input[1]].op_type != "DequantizeLinear" or direct.op_type != "DequantizeLinear":
            continue
        layers[node.output[0]] = Layer(node, constants, direct)
        source, name = direct.input[0], node.output[0]
        del node.attribute[:], node.input[:]
        node.input.append(source)
        node.op_type, node.domain = "IntegerLayer", "test"
        node.attribute.append(helper.make_attribute("layer", name))
    copy.opset_import.append(helper.make_opsetid("test", 1))
    assert layers
    return copy, layers


def _layer_operator(layers: Mapping[str, Layer]) -> type[OpRun]:
    class IntegerLayer(OpRun):
        op_domain = "test"

        def _run(self, values: np.ndarray, layer: str = "") -> tuple[np.ndarray]:
            return (layers[layer](values),)

    return IntegerLayer
