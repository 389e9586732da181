"""int8 files on ONNX Runtime's CPU provider: signed Q/DQ of what cannot be negative becomes unsigned, in memory alone.

TensorRT wants symmetric int8 activations. ONNX Runtime's CPU kernels take uint8 activations and, given int8 ones, leave
the graph as dequantize, float convolution, quantize: slower than fp32. A tensor behind Relu or Sigmoid has no negative
values, so int8 with zero point 0 and uint8 with zero point 0 and the same scale are the same numbers (uint8 merely
saturates later). The file on disk is never touched.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

NON_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "Abs"}
KEEPS_SIGN = {"MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}


def unsigned_activations(file: Path) -> bytes:
    """The ONNX model in `file` with its Q/DQ of non-negative tensors made unsigned, serialized.

    Where the package onnx is not installed the model comes back as it is: the same predictions, slower.
    """
    try:
        import onnx
    except ImportError:
        log.warning("int8 runs slowly on onnxruntime without the package onnx: run `pip install onnx`.")
        return file.read_bytes()
    model = onnx.load(file)
    count = rewrite(model)
    log.debug("%s: %d quantized activations made unsigned", file, count)
    return model.SerializeToString()


def rewrite(model: Any) -> int:
    """Rewrite an onnx.ModelProto in place; the number of QuantizeLinear nodes that were made unsigned."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    elsewhere = {output.name for output in graph.output} | _used_in_subgraphs(graph)
    unsigned = f"{graph.name}_unsigned_zero"
    changed = set()
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not _is_signed_zero(node, weights, numpy_helper):
            continue
        readers = users[node.output[0]]
        if node.output[0] in elsewhere or not all(_reads_signed_zero(r, node, weights, numpy_helper) for r in readers):
            continue
        if not _cannot_be_negative(node.input[0], makers):
            continue
        for each in (node, *readers):
            each.input[2] = unsigned
        changed.add(node.output[0])
    if changed:
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.uint8), unsigned))
        for info in graph.value_info:
            if info.name in changed:
                info.type.tensor_type.elem_type = TensorProto.UINT8
    return len(changed)


def _is_signed_zero(node: Any, weights: dict[str, Any], numpy_helper: Any) -> bool:
    """Whether the node's zero point is one int8 number, 0, that is a constant (per-channel ones are weights)."""
    if len(node.input) < 3 or node.input[2] not in weights or any(a.name == "output_dtype" for a in node.attribute):
        return False
    zero = numpy_helper.to_array(weights[node.input[2]])
    return bool(zero.dtype == np.int8 and zero.size == 1 and zero.reshape(()) == 0)


def _reads_signed_zero(reader: Any, quantize: Any, weights: dict[str, Any], numpy_helper: Any) -> bool:
    same = reader.op_type == "DequantizeLinear" and reader.input[0] == quantize.output[0]
    return same and _is_signed_zero(reader, weights, numpy_helper)


def _cannot_be_negative(name: str, makers: dict[str, Any]) -> bool:
    """Follow a tensor back through operators that keep the sign to one whose result is never negative."""
    node = makers.get(name)
    while node is not None and node.op_type in KEEPS_SIGN:
        node = makers.get(node.input[0])
    return node is not None and node.op_type in NON_NEGATIVE and node.domain in ("", "ai.onnx")


def _used_in_subgraphs(graph: Any) -> set[str]:
    """Names that the bodies of If, Loop and Scan may read from outside."""
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    inner += [g for node in graph.node for a in node.attribute for g in a.graphs]
    names: set[str] = set()
    for body in inner:
        names |= {name for node in body.node for name in node.input} | {o.name for o in body.output}
        names |= _used_in_subgraphs(body)
    return names
