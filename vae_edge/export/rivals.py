"""Other models' way to ONNX, so that they are measured as ours is: bytes in, and one number for each class out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vae_edge.export.graph import to_pixels
from vae_edge.export.onnx_file import OPSET, set_metadata, strip, to_onnx
from vae_edge.export.quiet import errors_only
from vae_edge.model import AngleVAE

PROBABILITIES = "probabilities"


class DecisionGraph(nn.Module):
    """`image` uint8 [N, S, S, C] to `probabilities` [N, K] of our network or of any that gives logits; nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """The probabilities."""
        pixels = to_pixels(image)
        if isinstance(self.network, AngleVAE):
            return self.network.probabilities(self.network(pixels).logits)
        return self.network(pixels).softmax(1)


def decision_onnx(network: nn.Module, size: int, channels: int, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A network's probabilities as a graph; of ours the parts that they do not depend on are left out.

    Raises:
        ExportError: if the exporter fails.
    """
    return to_onnx(DecisionGraph(network), size, channels, (PROBABILITIES,), metadata)


def estimator_onnx(estimator: Any, size: int, channels: int, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A classifier of scikit-learn as a graph of the same kind, by skl2onnx.

    A cast, a reshape and a scaling are put before it. Its output is called `probabilities` and is one number for each
    class that it was trained on: a probability, or what its decision function gives where it has no probabilities.
    """
    from skl2onnx import to_onnx as convert

    pixels = channels * size**2
    example = np.zeros((1, pixels), np.float32)
    options = {"zipmap": False, "raw_scores": not hasattr(estimator, "predict_proba")}
    with errors_only("skl2onnx"):
        model = convert(estimator, example, options={id(estimator): options}, target_opset=OPSET)
    graph = model.graph
    inner, scores = graph.input[0].name, graph.output[1].name
    graph.initializer.append(numpy_helper.from_array(np.array([0, pixels], np.int64), "row_of_pixels"))
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "white"))
    first = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "row_of_pixels"], ["row"]),
        helper.make_node("Mul", ["row", "white"], [inner]),
    ]
    last = [helper.make_node("Identity", [scores], [PROBABILITIES])] if scores != PROBABILITIES else []
    nodes = [*first, *graph.node, *last]
    classes = len(estimator.classes_)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, channels]))
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]))
    strip(model)
    set_metadata(model, {**metadata, "labels": [int(label) for label in estimator.classes_]})
    onnx.checker.check_model(model, full_check=True)
    return model
