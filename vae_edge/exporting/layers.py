"""The int8 layers of an exported file as numbers, so that the kernels run on the same calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from vae_edge.errors import ExportError
from vae_edge.model.network import current_name
from vae_edge.ops.packing import LayerNumbers, QuantizedNetwork

LAYERS = ("Conv", "Gemm")
PREFIX = "model."  # of the network in the exported graph
SUFFIX = ".weight_DequantizeLinear_Output"


def read_layers(model: onnx.ModelProto) -> QuantizedNetwork:
    """The quantized layers: int8 weights, their scales, biases, and the scales of inputs; and the score's offsets.

    Raises:
        ExportError: if the file has no int8 layers, or a layer's weights or input are not quantized as `to_int8` does.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}

    def value(name: str) -> Any:
        if name not in constants:
            raise ExportError(f"{name} is not a constant of the int8 file; export and quantize the model anew")
        return numpy_helper.to_array(constants[name])

    layers = {}
    for node in model.graph.node:
        if node.op_type not in LAYERS or not node.input[1].endswith(SUFFIX):
            continue
        weights, given = made_by[node.input[1]], made_by.get(node.input[0])
        if given is None or given.op_type != "DequantizeLinear":
            raise ExportError(f"the input of {node.name} is not quantized; export and quantize the model anew")
        weight = value(weights.input[0])
        bias = value(node.input[2]) if len(node.input) > 2 else np.zeros(weight.shape[0], np.float32)
        scale = np.broadcast_to(value(weights.input[1]), weight.shape[:1])
        name = node.input[1].removeprefix(PREFIX).removesuffix(SUFFIX)
        layers[current_name(name)] = LayerNumbers(
            torch.tensor(weight), torch.tensor(bias), torch.tensor(scale.copy()), float(value(given.input[1]))
        )
    if not layers:
        raise ExportError("the file has no int8 layers; quantize the bundle to int8 first")
    offsets = (f"{PREFIX}score.{name}" for name in ("offset", "nearest_offset"))
    first, second = (torch.tensor(value(name)) if name in constants else None for name in offsets)
    return QuantizedNetwork(layers, first, second)
