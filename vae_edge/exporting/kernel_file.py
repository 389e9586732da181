"""Kernel graphs as files: made of a bundle and checked by its probe images, and written without functions.

`bundle_kernel_graph` reads the weights out of a bundle's ONNX file, as a network file is made, and has ONNX Runtime
answer the bundle's probe images by the graph's functions: a graph whose answers are wrong is not given out. `inline`
makes the file for runtimes that expand no functions, `without_functions` the one for TensorRT before 10.7.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

from vae_edge.bundle import load_bundle
from vae_edge.errors import EngineError, ExportError, KernelError
from vae_edge.exporting.kernel_functions import DOMAIN
from vae_edge.exporting.kernel_graph import Form, ImageType, check_graph, kernel_graph
from vae_edge.exporting.network_file import (
    compare_answers,
    default_precision,
    exact_answers,
    find_source,
    load_source,
    read_network,
)
from vae_edge.exporting.onnx_file import get_metadata, run
from vae_edge.files import atomic_path
from vae_edge.ops.packing import PackedNetwork, conv_filters
from vae_edge.probes import load as load_probes

EXACT_SUM = 1 << 24  # whole numbers up to this, and their sums, are exact in float32
MAX_INT8 = 128  # magnitude
_CONDITIONS: dict[str, Callable[..., Any]] = {"Equal": np.equal, "Greater": np.greater}


# ---- From a bundle --------------------------------------------------------------------------------------------------


def bundle_kernel_graph(
    path: str | os.PathLike[str],
    precision: str | None = None,
    form: Form = "network",
    image_type: ImageType = "uint8",
) -> tuple[onnx.ModelProto, dict[str, dict[str, float]]]:
    """A bundle's classifier as a kernel graph, compared with the bundle's probe images on ONNX Runtime.

    Args:
        path: of the bundle.
        precision: fp16 or int8; None is int8 if the bundle has an int8 ONNX file, else fp16.
        form, image_type: as `kernel_graph.kernel_graph` takes them.

    Returns:
        The model, and how far its answers lie from the exact ones (`network_file.check_answers`); empty where the
        bundle has no probe images of that file.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: the bundle has no such ONNX file, its encoder is a pretrained network, or the answers are wrong.
        ExportError: the form or the type is unknown.
    """
    bundle = load_bundle(path)
    precision = default_precision(bundle) if precision is None else precision
    source = find_source(bundle, precision, "kernel graph")
    file = bundle.file(source)
    model = load_source(bundle, source)
    try:
        packed, metadata = read_network(model, bundle.input), get_metadata(model, source.file)
    except (ExportError, KernelError) as error:
        raise EngineError(f"No kernel graph can be made of {file}: {error}") from error

    metadata.pop("version")
    metadata |= {"threshold": bundle.threshold_of(source)}
    made = kernel_graph(packed, form, metadata, image_type)
    probes = None if bundle.probes is None else load_probes(bundle.file(bundle.probes))
    if probes is None or source.sha256 not in probes.models:
        return made, {}
    answers = exact_answers(model, source, precision, probes)
    return made, compare_answers(run(made, probes.images), answers, f"The kernel graph made of {file}", "written")


def write_kernel_graph(model: onnx.ModelProto, path: str | os.PathLike[str]) -> int:
    """Write the file, completely or not at all; returns its bytes."""
    content = model.SerializeToString(deterministic=True)
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(content)
    return len(content)


def inexact_layers(packed: PackedNetwork) -> list[int]:
    """The int8 convolutions whose sums a float32 Conv may round, as indices into the layout's layers.

    The largest sum of a channel is 128 · Σ|w|; up to 2^24 every partial sum is exact.
    """
    found = []
    for index, layer in enumerate(packed.layout.layers if packed.layout.int8 else ()):
        filters = conv_filters(packed.weights, packed.layout, layer).cpu().numpy().astype(np.int64)
        sums = np.abs(filters).sum((1, 2, 3))
        if MAX_INT8 * int(sums.max()) > EXACT_SUM:
            found.append(index)
    return found


# ---- Without functions ----------------------------------------------------------------------------------------------


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph of standard operators alone: no functions, and no `If` on an attribute.

    For runtimes that expand no functions (OpenVINO), and those that know a function by its name alone. Plugins find no
    nodes of ours in it.

    Raises:
        ExportError: the result does not pass ONNX's own checker.
    """
    result = inliner.inline_local_functions(model)
    graph = result.graph
    outputs = {output.name for output in graph.output}
    nodes = _without_identities(_without_constant_ifs(list(graph.node), {}), {}, outputs)
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(_inputs(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    opsets = [opset for opset in result.opset_import if opset.domain != DOMAIN]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    check_graph(result)
    return result


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes without their functions: for plugins alone.

    TensorRT before 10.7 runs a function even where it has a plugin of the node's op type.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.functions[:]
    check_graph(result)
    return result


def _inputs(node: onnx.NodeProto) -> list[str]:
    """What a node reads, its branches included."""
    inner = [each for attribute in node.attribute if attribute.HasField("g") for each in attribute.g.node]
    return [*node.input, *(name for each in inner for name in _inputs(each))]


def _without_constant_ifs(nodes: list[onnx.NodeProto], known: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """Nodes with each `If` whose condition is a constant replaced by the nodes of its branch."""
    kept = []
    for node in nodes:
        if node.op_type == "Constant":
            known[node.output[0]] = _constant(node)
        elif node.op_type in _CONDITIONS and all(name in known for name in node.input):
            known[node.output[0]] = _CONDITIONS[node.op_type](*(known[name] for name in node.input))
        if node.op_type != "If" or node.input[0] not in known:
            kept.append(node)
            continue
        taken = "then_branch" if known[node.input[0]].item() else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == taken)
        kept += _without_constant_ifs(list(branch.node), known)
        kept.append(helper.make_node("Identity", [branch.output[0].name], [node.output[0]]))
    return kept


def _without_identities(
    nodes: list[onnx.NodeProto], sources: dict[str, str], outputs: set[str]
) -> list[onnx.NodeProto]:
    """Nodes that read what an `Identity` read, in place of what it gave, unless that is an output."""
    kept = []
    for node in nodes:
        node.input[:] = [sources.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):  # a branch gives its results by name
                inner = {output.name for output in attribute.g.output}
                branch = _without_identities(list(attribute.g.node), sources, inner)
                del attribute.g.node[:]
                attribute.g.node.extend(branch)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            sources[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept


def _constant(node: onnx.NodeProto) -> NDArray[Any]:
    """The value of a `Constant`."""
    value = helper.get_attribute_value(node.attribute[0])
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
