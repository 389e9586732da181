"""An ONNX model for the TensorRT plugin in C++ (kernels/native/tensorrt): its `VaeEdgeNetwork` nodes have machine code.

The plugin has no compiler, and takes no file beside the engine: the node has the code in the attribute `machine_code`,
and the engine that TensorRT builds keeps it. Such a model is for the plugin alone: TensorRT gives no uint8 tensor to a
plugin, so the graph's input is int8, with the bytes of the uint8 pixels. Not verified on hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
from vae_edge_kernels import KernelError as CompileError
from vae_edge_kernels.aot.network_file import pack_machine_code

from vae_edge.errors import EngineError, ExportError
from vae_edge.exporting.network_file import check_targets
from vae_edge.text import printable

OP_TYPE, DOMAIN = "VaeEdgeNetwork", "vae_edge"
LAYOUT, MACHINE_CODE = "layout", "machine_code"


def make_plugin_model(
    model: onnx.ModelProto, targets: str | Iterable[str], *, progress: Callable[[str], None] | None = None
) -> onnx.ModelProto:
    """A copy of a model whose `VaeEdgeNetwork` nodes have machine code for the targets, and whose image is int8.

    A local function that stands in for the operator elsewhere is left out of the copy: it would take the int8 for
    numbers below zero, and answer wrongly instead of not at all.

    Args:
        model: with one such node or several, whose attribute `layout` has the JSON of the network's layout.
        targets: devices or architectures, as `vae-edge build --target` takes them: "orin", ["sm_86", "sm_89"]. None of
            them is this machine's GPU.
        progress: called with a line when an architecture is done.

    Raises:
        ExportError: the model has no such node, or one without a layout, or one whose image is not the graph's input.
        EngineError: a target is unknown or not compiled for, or a network does not compile.
    """
    names = check_targets([targets] if isinstance(targets, str) else list(targets), "model for the plugin")
    architectures = tuple(int(name.removeprefix("sm_")) for name in names)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = [node for node in made.graph.node if _is_ours(node.op_type, node.domain)]
    if not nodes:
        raise ExportError(f"the model has no node {OP_TYPE} of the domain {DOMAIN}: export it with the kernel first")

    compiled: dict[bytes, bytes] = {}
    for node in nodes:
        layout = _layout_of(node)
        if layout not in compiled:
            try:
                compiled[layout] = pack_machine_code(layout.decode(), architectures, progress)
            except (CompileError, ValueError) as error:
                raise EngineError(f"the network of node {_name(node)} does not compile: {error}") from error
        kept = [attribute for attribute in node.attribute if attribute.name != MACHINE_CODE]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(MACHINE_CODE, compiled[layout])])
        _declare_int8(made.graph, node)

    functions = [function for function in made.functions if not _is_ours(function.name, function.domain)]
    del made.functions[:]
    made.functions.extend(functions)
    return made


def _declare_int8(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Declare a node's image, which must be the graph's input and nobody else's, int8 instead of uint8."""
    image = next((value for value in graph.input if node.input and value.name == node.input[0]), None)
    others = [
        other
        for other in graph.node
        if image and image.name in other.input and not _is_ours(other.op_type, other.domain)
    ]
    if image is None or others:
        raise ExportError(
            f"the image of node {_name(node)} must be an input of the graph that no other node reads: it is declared "
            "int8, since TensorRT gives no uint8 tensor to a plugin"
        )
    kind = image.type.tensor_type
    if kind.elem_type not in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
        came = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise ExportError(f"the image of node {_name(node)} must be UINT8; it is {came}")
    kind.elem_type = onnx.TensorProto.INT8


def _is_ours(name: str, domain: str) -> bool:
    return (name, domain) == (OP_TYPE, DOMAIN)


def _layout_of(node: onnx.NodeProto) -> bytes:
    for attribute in node.attribute:
        if attribute.name == LAYOUT and attribute.type == onnx.AttributeProto.STRING:
            return bytes(attribute.s)
    raise ExportError(f"node {_name(node)} has no attribute {LAYOUT!r} with the JSON of the network's layout")


def _name(node: onnx.NodeProto) -> str:
    return repr(printable(node.name or node.op_type))
