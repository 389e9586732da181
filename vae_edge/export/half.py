"""fp16 by casts in the graph: heavy operators and what moves their data run in fp16, all else stays fp32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vae_edge.errors import ExportError

HEAVY = ("Conv", "ConvTranspose", "Gemm")
LIGHT = ("Relu", "Resize", "Reshape", "Slice", "Flatten")  # in fp16 where their data already is
LARGEST = 65504.0


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an fp32 model whose convolutions and matrix products with constant weights run in fp16.

    Casts stand only where a value changes sides, one a value; inputs and outputs of the graph keep their types.

    Raises:
        ExportError: if a weight is beyond what fp16 can hold.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    weights = {initializer.name: initializer for initializer in model.graph.initializer}
    halves: dict[str, str] = {}  # fp32 name to the name of the same value in fp16
    wholes: dict[str, str] = {}  # the name of a value made in fp16 to the name of its fp32 copy
    graph = result.graph

    def half(name: str) -> str:
        if name not in halves:
            halves[name] = f"{name}_fp16"
            if name in weights:
                graph.initializer.append(_half_weight(weights[name], halves[name]))
            else:
                graph.node.append(_cast(name, halves[name], TensorProto.FLOAT16))
        return halves[name]

    def whole(name: str) -> str:
        if name in wholes and wholes[name] == "":
            wholes[name] = name
            graph.node.append(_cast(halves[name], name, TensorProto.FLOAT))
        return name

    for node in model.graph.node:
        heavy = node.op_type in HEAVY and node.input[1] in weights
        if not heavy and not (node.op_type in LIGHT and node.input[0] in wholes):
            for name in node.input:
                whole(name)
            graph.node.append(node)
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name and (heavy or index == 0):
                copy.input[index] = half(name)
        halves[node.output[0]] = copy.output[0] = f"{node.output[0]}_fp16"
        wholes[node.output[0]] = ""
        graph.node.append(copy)
    for output in model.graph.output:
        whole(output.name)
    _drop_unused(graph)
    return result


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


def _half_weight(weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(weight)
    if values.size and float(np.abs(values).max()) > LARGEST:
        raise ExportError(f"weight {weight.name} reaches {np.abs(values).max():.3g}, beyond fp16's {LARGEST:g}")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
