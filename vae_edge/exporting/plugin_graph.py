"""Kernel graphs (`kernel_graph`) as TensorRT takes them.

`with_plugins` gives each node of ours the kernel that it runs: it compiles it, and fits the node to what TensorRT asks
of a plugin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper
from vae_edge_kernels.aot.plugin_operators import TensorType
from vae_edge_kernels.aot.plugins import compile_plugin
from vae_edge_kernels.config import DTYPE_NAMES

from vae_edge.engine.plugins.kernel_file import read_kernel
from vae_edge.engine.plugins.quick import NAMESPACE
from vae_edge.errors import KernelError

DOMAIN = "vae_edge"
OPSET = 20
IR_VERSION = 10
_TYPES = {
    TensorProto.UINT8: "u8",
    TensorProto.INT8: "i8",
    TensorProto.FLOAT16: "fp16",
    TensorProto.FLOAT: "fp32",
    TensorProto.INT64: "i64",
}
_ONNX_TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float16": TensorProto.FLOAT16} | {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
}


@dataclass(frozen=True)
class PluginGraph:
    """A graph for TensorRT, and its kernels.

    Attributes:
        model: whose nodes' operators are the names of plugins.
        kernels: kernel files by the plugin's name.
    """

    model: onnx.ModelProto
    kernels: Mapping[str, bytes]


# ---- Kernels for their nodes ----------------------------------------------------------------------------------------


def with_plugins(
    model: onnx.ModelProto,
    architectures: Sequence[int],
    *,
    quick: bool,
    progress: Callable[[str], None] | None = None,
) -> PluginGraph:
    """Compile the kernel of each node of the domain `vae_edge`, and fit the node to TensorRT.

    A plugin takes no uint8: such an input is cast to float16 before it, in which whole numbers up to 2048 are exact.
    Attributes are in the kernel already, so that each kernel is a plugin of its own, and its node has none.

    Args:
        model: whose nodes have the operators of `vae_edge_kernels.aot.plugins`; it stays as it is.
        architectures: 87 is sm_87; one, if `quick`.
        quick: for TensorRT's quick deployable plugins: with PTX and all variants of a kernel, and with its scratch
            memory as outputs of the node. Else machine code, and a workspace that the plugin asks for.
        progress: called with a line before each kernel is compiled.

    Raises:
        KernelError: a node does not fit its operator, or its kernel does not compile.
    """
    if quick and len(architectures) != 1:
        raise KernelError(f"Quick plugins are for one architecture; {len(architectures)} were given.")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.functions[:]  # what the nodes compute elsewhere
    kernels: dict[str, bytes] = {}
    compiled: dict[str, bytes] = {}
    nodes = [node for node in made.graph.node if node.domain == DOMAIN]
    for number, node in enumerate(nodes):
        if progress is not None:
            progress(f"compiling {node.name or node.op_type} ({number + 1} of {len(nodes)})")
        known = _tensors(onnx.shape_inference.infer_shapes(made, data_prop=True))
        _cast_bytes(made.graph, node, known)
        given = [_tensor_type(node, name, known) for name in node.input if name]
        attributes = _attributes(node)
        same = json.dumps([node.op_type, [[each.dtype, each.shape] for each in given], attributes], sort_keys=True)
        if same not in compiled:
            compiled[same] = compile_plugin(
                node.op_type, given, attributes, architectures, cubins=not quick, variants=quick
            )
        content = compiled[same]
        kernel = read_kernel(content, node.op_type)
        name = f"{node.op_type}_{hashlib.sha256(content).hexdigest()[:16]}"
        kernels[name] = content

        while node.input and not node.input[-1]:
            node.input.pop()
        if quick:
            node.output.extend(f"{node.name or node.op_type}.{number}.{each.name}" for each in kernel.scratch)
        for output, buffer in zip(node.output, kernel.outputs, strict=False):
            shape = [_known_side(side) for side in buffer.shape]
            if output not in {each.name for each in made.graph.output}:
                made.graph.value_info.append(
                    helper.make_tensor_value_info(output, _ONNX_TYPES[buffer.dtype], [s or "N" for s in shape])
                )
        node.op_type = name
        del node.attribute[:]
        where = {"plugin_namespace": NAMESPACE, "plugin_version": "1"}
        node.attribute.extend(helper.make_attribute(key, value) for key, value in where.items())
    return PluginGraph(made, kernels)


def _tensors(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int | None, ...]]]:
    """Type and shape of the tensors that are known, None for a free side."""
    known: dict[str, tuple[int, tuple[int | None, ...]]] = {}
    for info in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = info.type.tensor_type
        sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
        known[info.name] = tensor.elem_type, tuple(sides)
    for constant in model.graph.initializer:
        known[constant.name] = constant.data_type, tuple(constant.dims)
    return known


def _cast_bytes(
    graph: onnx.GraphProto, node: onnx.NodeProto, known: dict[str, tuple[int, tuple[int | None, ...]]]
) -> None:
    """Put a cast to float16 before each uint8 input."""
    for number, name in enumerate(node.input):
        if name in known and known[name][0] == TensorProto.UINT8:
            cast = f"{name}.float16"
            if cast not in known:
                known[cast] = TensorProto.FLOAT16, known[name][1]
                place = list(graph.node).index(node)
                graph.node.insert(place, helper.make_node("Cast", [name], [cast], name=cast, to=TensorProto.FLOAT16))
                shape = [side or "N" for side in known[name][1]]
                graph.value_info.append(helper.make_tensor_value_info(cast, TensorProto.FLOAT16, shape))
            node.input[number] = cast


def _tensor_type(
    node: onnx.NodeProto, name: str, known: Mapping[str, tuple[int, tuple[int | None, ...]]]
) -> TensorType:
    kind, shape = known.get(name, (TensorProto.UNDEFINED, ()))
    if kind not in _TYPES:
        told = TensorProto.DataType.Name(kind).lower()
        raise KernelError(
            f"The input {name!r} of the node {node.name or node.op_type} is of type {told}, which no plugin takes: "
            f"{', '.join(_TYPES.values())} are."
        )
    return TensorType(_TYPES[kind], shape)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes; types of tensors as Triton's names."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    if "dtype" in values:
        given = values["dtype"]
        name = _TYPES.get(given, "") if isinstance(given, int) else str(given).rpartition(".")[2]
        values["dtype"] = DTYPE_NAMES.get(name, name)
    return values


def _known_side(expression: Any) -> int | None:
    return expression if isinstance(expression, int) else None
