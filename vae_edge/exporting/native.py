"""What the native path needs of a model: the layout of a preset, and the int8 layers of an exported file.

`layout_for_preset` says for what the kernels are compiled before there is a trained network. `read_qdq_layers` reads
the layers of a quantized file, so that `vae_edge.ops.network.fuse` runs on the same calibration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from vae_edge_kernels.layout import NetworkLayout

from vae_edge.errors import ExportError
from vae_edge.model import AngleVAE, create_config
from vae_edge.model.network import current_name
from vae_edge.ops.packing import LayerParams, QuantizedNetwork, ScoreMode, network_layout

LAYER_OPS = ("Conv", "Gemm")
PREFIX = "model."  # of the network's names in the exported graph
SUFFIX = ".weight_DequantizeLinear_Output"


def layout_for_preset(name: str, score: ScoreMode = "full", int8: bool = False) -> NetworkLayout:
    """The layout of a preset, its anomaly score with as many clusters as training may find.

    Raises:
        ConfigError: the preset is unknown.
    """
    model = AngleVAE(create_config(name))
    size = model.score.components
    model.score.cluster_whitening = torch.zeros((model.config.classes * model.score.max_clusters(), size, size))
    return network_layout(model, score, int8)


def read_qdq_layers(model: onnx.ModelProto) -> QuantizedNetwork:
    """Read the layers of a QDQ file: int8 weights, their scales, biases, input scales; and the score's offsets.

    Raises:
        ExportError: the file has no int8 layers, or weights or input of a layer are not quantized as `quantize_int8`
            does.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}

    def constant(name: str) -> Any:
        if name not in constants:
            raise ExportError(f"{name} is not a constant of the int8 file; export and quantize the model anew")
        return numpy_helper.to_array(constants[name])

    layers = {}
    for node in model.graph.node:
        if node.op_type not in LAYER_OPS or not node.input[1].endswith(SUFFIX):
            continue
        weight_node, input_node = producers[node.input[1]], producers.get(node.input[0])
        if input_node is None or input_node.op_type != "DequantizeLinear":
            raise ExportError(f"the input of {node.name} is not quantized; export and quantize the model anew")

        weight = constant(weight_node.input[0])
        bias = constant(node.input[2]) if len(node.input) > 2 else np.zeros(weight.shape[0], np.float32)
        scale = np.broadcast_to(constant(weight_node.input[1]), weight.shape[:1])  # one for the tensor, or by channel
        name = node.input[1].removeprefix(PREFIX).removesuffix(SUFFIX)
        layers[current_name(name)] = LayerParams(
            torch.tensor(weight), torch.tensor(bias), torch.tensor(scale.copy()), float(constant(input_node.input[1]))
        )
    if not layers:
        raise ExportError("the file has no int8 layers; quantize the bundle to int8 first")

    names = (f"{PREFIX}score.{name}" for name in ("offset", "nearest_offset"))
    offset, nearest_offset = (torch.tensor(constant(name)) if name in constants else None for name in names)
    return QuantizedNetwork(layers, offset, nearest_offset)
