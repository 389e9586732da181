"""The int8 files that CPU backends run: the same calibration as TensorRT's file, in the form that CPU kernels take.

- Activations behind ReLU are uint8 (zero point 0, the same scale). ONNX Runtime's CPU kernels take uint8 activations;
  given int8 ones they leave dequantize, float convolution, quantize: slower than fp32.
- `reduced_range` has weights of 7 bits (half the integers, twice the scale). Without VNNI, x86 processors multiply
  uint8 by int8 with VPMADDUBSW, which sums two products in 16 bits and saturates: 2 · 255 · 127 = 64,770 is beyond
  32,767, while 2 · 255 · 64 = 32,640 is not. ONNX Runtime calls it `reduce_range`, both engines document it.

TensorRT's own file keeps int8 activations and 8-bit weights; nothing of this reaches it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

NON_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "Abs"}
KEEPS_SIGN = {"MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
MULTIPLIES = {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # whose second input is the weight
LARGEST_REDUCED = 64


def with_unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which Q/DQ pairs of tensors that cannot be negative are uint8; the numbers mean the same.

    Values above 127 steps are kept up to 255, where int8 saturates.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    elsewhere = {output.name for output in graph.output} | _used_in_subgraphs(graph)
    unsigned = f"{graph.name}_unsigned_zero"
    changed = set()
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not _is_signed_zero(node, weights):
            continue
        users, quantized = readers[node.output[0]], node.output[0]
        if quantized in elsewhere or not all(_dequantizes(user, quantized, weights) for user in users):
            continue
        if not _cannot_be_negative(node.input[0], makers):
            continue
        for each in (node, *users):
            each.input[2] = unsigned
        changed.add(quantized)
    if changed:
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.uint8), unsigned))
        for info in graph.value_info:
            if info.name in changed:
                info.type.tensor_type.elem_type = TensorProto.UINT8
    return copy


def with_reduced_range(model: onnx.ModelProto, source: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """A copy whose int8 weights have 7 bits, -64 to 64, and scales twice as large.

    Args:
        model: with int8 weights behind DequantizeLinear, one scale for each output channel or one for all.
        source: the fp32 model that it was made of, whose weights of the same names (without `_quantized`) are rounded
            anew; where there is none, the 8-bit integers are halved, which rounds a second time.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    originals = {} if source is None else {tensor.name: tensor for tensor in source.graph.initializer}
    multiplied = {node.input[1] for node in copy.graph.node if node.op_type in MULTIPLIES}
    scales = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}  # as they were
    done = set()
    for node in copy.graph.node:
        if node.op_type != "DequantizeLinear" or node.output[0] not in multiplied or node.input[0] in done:
            continue
        if node.input[0] not in constants or constants[node.input[0]].data_type != TensorProto.INT8:
            continue
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        integers, steps = numpy_helper.to_array(weight), scales[scale.name]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if k == axis else 1 for k in range(integers.ndim)] if steps.size > 1 else [1] * integers.ndim
        original = originals.get(weight.name.removesuffix("_quantized"))
        floats = numpy_helper.to_array(original) / steps.reshape(shape) if original is not None else integers
        halved = np.clip(np.rint(floats / 2), -LARGEST_REDUCED, LARGEST_REDUCED).astype(np.int8)
        weight.CopyFrom(numpy_helper.from_array(halved, weight.name))
        scale.CopyFrom(numpy_helper.from_array((steps * 2).astype(steps.dtype), scale.name))
        done.add(node.input[0])
    return copy


def _is_signed_zero(node: onnx.NodeProto, weights: dict[str, Any]) -> bool:
    """Whether the node's zero point is one int8 number, 0, that is a constant (per-channel ones are weights)."""
    if len(node.input) < 3 or node.input[2] not in weights or any(a.name == "output_dtype" for a in node.attribute):
        return False
    zero = numpy_helper.to_array(weights[node.input[2]])
    return bool(zero.dtype == np.int8 and zero.size == 1 and zero.reshape(()) == 0)


def _dequantizes(reader: onnx.NodeProto, quantized: str, weights: dict[str, Any]) -> bool:
    same = reader.op_type == "DequantizeLinear" and reader.input[0] == quantized
    return same and _is_signed_zero(reader, weights)


def _cannot_be_negative(name: str, makers: dict[str, onnx.NodeProto]) -> bool:
    """Follow a tensor back through operators that keep the sign to one whose result is never negative."""
    node = makers.get(name)
    while node is not None and node.op_type in KEEPS_SIGN:
        node = makers.get(node.input[0])
    return node is not None and node.op_type in NON_NEGATIVE and node.domain in ("", "ai.onnx")


def _used_in_subgraphs(graph: onnx.GraphProto) -> set[str]:
    """Names that the bodies of If, Loop and Scan may read from outside."""
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    inner += [g for node in graph.node for a in node.attribute for g in a.graphs]
    names: set[str] = set()
    for body in inner:
        names |= {name for node in body.node for name in node.input} | {o.name for o in body.output}
        names |= _used_in_subgraphs(body)
    return names
