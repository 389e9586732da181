"""Other people's log lines, kept from the user's terminal while their code runs.

The graphs that travel: bytes in, decisions out. Modules for the exporter, nothing else.

A trained model to ONNX: opset 20, dynamic batch, our metadata, nobody's paths, checked on real images.

fp16 by casts in the graph: heavy operators and what moves their data run in fp16, all else stays fp32.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vae_edge import __version__
from vae_edge.errors import ExportError
from vae_edge.files import parse_json
from vae_edge.model import AngleVAE
from vae_edge.ops.turn import turn
from vae_edge.processors import available_cpus

if TYPE_CHECKING:
    import onnxruntime


@contextmanager
def errors_only(*names: str) -> Iterator[None]:
    """Let these loggers (an empty name is the root) speak of errors alone, and Python's warnings not at all."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


OUTPUTS = ("probabilities", "angle", "score")
DOUBTS = ("concentration", "second_angle", "second_share")  # of models with a pose trunk, behind the others
RECONSTRUCTION = ("reconstruction",)


def to_pixels(image: Tensor) -> Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in [0, 1]; cast before the transpose, as TensorRT-RTX asks."""
    return image.to(torch.float32).permute(0, 3, 1, 2) * (1.0 / 255.0)


class ClassifierGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `probabilities` [N, K], `angle` [N] in radians and `score` [N].

    With a pose trunk also, each [N]: `concentration` (0 is any angle, 1 is certain), `second_angle` in radians, and
    `second_share`, the probability of the second angle. `outputs` has the names. With `light`, the score is the one
    without the reconstruction, and the graph has no decoder.
    """

    def __init__(self, model: AngleVAE, light: bool = False) -> None:
        super().__init__()
        self.model, self.light = model, light
        self.outputs = OUTPUTS if model.orientation is None else OUTPUTS + DOUBTS

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        output = self.model(to_pixels(image))
        probabilities = self.model.probabilities(output.logits)
        rejection, features, logits = self.model.score, output.features, output.logits
        if self.light:
            score = rejection.score_without_reconstruction(features, logits)
        else:
            score = rejection(output.upright, output.reconstruction, features, logits)
        orientation, uncertainty = output.orientation, output.orientation.uncertainty
        if uncertainty is None:
            return probabilities, orientation.sin, score
        angle = torch.atan2(orientation.sin, orientation.cos)
        second_angle = torch.atan2(uncertainty.second_sin, uncertainty.second_cos)
        return probabilities, angle, score, uncertainty.confidence, second_angle, uncertainty.second_prob


class ReconstructionGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `reconstruction`, uint8 of the same shape, turned as the image is."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction, as bytes."""
        output = self.model(to_pixels(image))
        drawn = output.reconstruction
        if self.model.orientation is not None:
            drawn = turn(drawn, output.orientation.cos, output.orientation.sin, self.model.config.fill)
        return (drawn * 255.0).round().clamp(0.0, 255.0).permute(0, 2, 3, 1).to(torch.uint8)


OPSET = 20
LARGEST_BATCH = 65_536
TOLERANCE = {
    "probabilities": 1e-4,
    "score": 1e-2,
    "angle": 1e-3,
    "concentration": 1e-4,
    "second_angle": 1e-3,
    "second_share": 1e-3,
    "reconstruction": 1,
}
ANGLES = ("angle", "second_angle")  # radians, compared on the circle
OF_BEST_BINS = (*ANGLES, "second_share")  # these jump where two bins tie
TIES = 0.01  # share of images whose best bins may tie and fall the other way by rounding
LEAST_SHARE = 0.01  # a second angle with less than this behind it is noise, and is not compared


def to_onnx(
    graph: nn.Module, size: int, channels: int, outputs: Sequence[str], metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """Trace `graph` with an input `image` uint8 [batch, size, size, channels] into a model of opset 20.

    Args:
        graph: one of the modules of `vae_edge.export.onnx_file`.
        outputs: the names of its outputs.
        metadata: what is stored in the file under `vae_edge.<key>`, as JSON.

    Raises:
        ExportError: if the exporter fails or the model does not pass ONNX's own checker.
    """
    example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        with errors_only("torch.onnx"):
            program = torch.onnx.export(
                graph.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(outputs),
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the exporter could not trace the model: {error}") from error
    assert program is not None
    model = program.model_proto
    strip(model)
    set_metadata(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove stack traces, local paths and documentation that the exporter left on nodes and values."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Store our metadata in the file, each value as JSON; what was there before goes."""
    model.producer_name, model.producer_version = "vae-edge", __version__
    values = {f"vae_edge.{key}": json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, {**values, "vae_edge.version": json.dumps(__version__)})


def replace_metadata(model: onnx.ModelProto, key: str, value: Any) -> None:
    """Change one of the values that `set_metadata` stored."""
    for stored in model.metadata_props:
        if stored.key == f"vae_edge.{key}":
            stored.value = json.dumps(value, ensure_ascii=False)


def get_metadata(model: onnx.ModelProto, name: object = "this ONNX file") -> dict[str, Any]:
    """What `set_metadata` stored; `name` is what the file is called in the error.

    Raises:
        ExportError: if the file was not written by us, or its metadata is damaged.
    """
    ours = {p.key[len("vae_edge.") :]: p.value for p in model.metadata_props if p.key.startswith("vae_edge.")}
    if "version" not in ours:
        raise ExportError(f"{name} was not written by vae-edge: it has no vae_edge.version in its metadata")
    try:
        return {key: parse_json(value) for key, value in ours.items()}
    except ValueError as error:
        raise ExportError(f"{name} is damaged: its metadata is not what vae-edge writes ({error})") from error


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A model on ONNX Runtime's CPU provider, silent but for errors; int8 products do not saturate on any processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cpus()  # its own default sees neither a quota nor the affinity
    options.add_session_config_entry("session.x64quantprecision", "1")  # slower kernels on x86 without VNNI
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, images: NDArray[np.uint8], batch: int = 250) -> dict[str, NDArray[Any]]:
    """Run a model on ONNX Runtime's CPU provider over uint8 images [N, H, W, C]; outputs by name, whole set."""
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    parts = [session.run(names, {"image": images[i : i + batch]}) for i in range(0, len(images), batch)]
    return {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(names)}


@torch.no_grad()
def reference(graph: nn.Module, images: NDArray[np.uint8], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The same outputs by PyTorch."""
    outputs = graph.eval()(torch.from_numpy(np.ascontiguousarray(images)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}


def check_parity(graph: nn.Module, model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, float]:
    """Compare the exported model with PyTorch on real images; the largest differences by output.

    Raises:
        ExportError: if an output differs by more than `TOLERANCE`.
    """
    if len(images) == 0:
        raise ExportError("parity with PyTorch is checked on real images, and none were given")
    names = [output.name for output in model.graph.output]
    ours, theirs = reference(graph, images, names), run(model, images)
    worst: dict[str, float] = {}
    for name in names:
        apart = np.abs(ours[name].astype(np.float64) - theirs[name].astype(np.float64))
        if not np.isfinite(apart).all():
            raise ExportError(f"the exported graph gives {name} that are not finite numbers: nothing was written")
        if name == "score":
            apart = apart / np.maximum(1.0, np.abs(ours[name]))
        if name in ANGLES:
            apart = np.minimum(apart, 2 * np.pi - apart)
        if name == "second_angle":
            apart = np.where(ours["second_share"] >= LEAST_SHARE, apart, 0.0)
        label = f"{name}_rad" if name in ANGLES else name
        worst[label] = float(np.quantile(apart, 1.0 - TIES) if name in OF_BEST_BINS else apart.max())
        beyond = float((apart > TOLERANCE[name]).mean())
        _refuse(beyond > (TIES if name in OF_BEST_BINS else 0.0), name, worst[label], TOLERANCE[name])
    return worst


def _refuse(wrong: bool, name: str, difference: float, tolerance: float) -> None:
    if wrong:
        raise ExportError(
            f"the exported graph does not compute what the model computes: {name} differs by {difference:.3g}, "
            f"allowed is {tolerance:g}; nothing was written"
        )


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
