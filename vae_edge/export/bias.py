"""Bias correction: what rounding adds to a layer's outputs on average is taken off its bias.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.2, with the
means measured on calibration images instead of derived. Most of an image is background, where every activation of a
channel is the same and is rounded the same way: that error does not average out, unlike that of the strokes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vae_edge.export.onnx_file import open_session

CORRECTED = ("Conv", "ConvTranspose", "Gemm")
BATCH = 64
IMAGES = 128  # of the calibration images; each adds hundreds of positions to a mean


def correct_biases(quantized: onnx.ModelProto, model: onnx.ModelProto, images: NDArray[np.uint8]) -> None:
    """Change the biases of a quantized model so that each layer's mean outputs are those of the fp32 model.

    Layer by layer from the input on, as one that is corrected changes what the next ones see.

    Args:
        quantized: with Q/DQ pairs; changed in place.
        model: the same graph in fp32; layers are matched by the names of their outputs.
        images: calibration images uint8 [N, H, W, C]; up to 128 are used.
    """
    images = images[:IMAGES]
    biases = {initializer.name: initializer for initializer in quantized.graph.initializer}
    known = {name for node in model.graph.node for name in node.output}
    layers = {
        node.output[0]: biases[node.input[2]]
        for node in quantized.graph.node
        if node.op_type in CORRECTED and len(node.input) > 2 and node.input[2] in biases and node.output[0] in known
    }
    wanted = channel_means(model, list(layers), images)
    for name, bias in layers.items():
        missing = wanted[name] - channel_means(quantized, [name], images)[name]
        values = numpy_helper.to_array(bias)
        bias.CopyFrom(numpy_helper.from_array((values + missing).astype(values.dtype), bias.name))


def channel_means(
    model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float64]]:
    """The means [C] of values [N, C, ...] inside a model, by their names, over images uint8 [N, H, W, C]."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_session(opened)
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    for start in range(0, len(images), BATCH):
        values = session.run(list(names), {session.get_inputs()[0].name: images[start : start + BATCH]})
        for name, value in zip(names, values, strict=True):
            by_channel = np.moveaxis(value, 1, 0).reshape(value.shape[1], len(value), -1)
            sums[name] = sums[name] + by_channel.mean(2, dtype=np.float64).sum(1)
    return {name: total / len(images) for name, total in sums.items()}
