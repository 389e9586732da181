"""A trained model to ONNX: the graphs that are exported, the file, its fp16 version, and the check against PyTorch.

Files have opset 20, a dynamic batch and our metadata, and no path of the machine that wrote them.
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
from vae_edge.environment import available_cpus
from vae_edge.errors import ExportError
from vae_edge.files import parse_json
from vae_edge.model import AngleVAE
from vae_edge.ops.rotate import rotate
from vae_edge.spec import (
    ANGLE_OUTPUTS,
    CLASSIFIER_OUTPUTS,
    UNCERTAINTY_OUTPUTS,
    Size,
    height_and_width,
    output_name,
)

if TYPE_CHECKING:
    import onnxruntime

OPSET = 20
MAX_BATCH = 65_536
PRODUCER = "vae-edge"
METADATA_PREFIX = "vae_edge."

# The graphs


def to_pixels(image: Tensor) -> Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in 0..1; cast before the transpose, as TensorRT-RTX asks."""
    return image.to(torch.float32).permute(0, 3, 1, 2) * (1.0 / 255.0)


def quantize_pixels(image: Tensor) -> Tensor:
    """float [N, C, H, W] in 0..1 to uint8 [N, H, W, C]."""
    return (image * 255.0).round().clamp(0.0, 255.0).permute(0, 2, 3, 1).to(torch.uint8)


class ClassifierGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `probabilities` [N, K], `angle` [N] in radians and `score` [N].

    A model that estimates the orientation also gives the angle's uncertainty: `angle_confidence`, `second_angle` and
    `second_angle_probability`, each [N] (`vae_edge.spec`). `outputs` has the names. In score mode `fast` the score
    leaves the reconstruction error out, and the graph has no decoder.
    """

    def __init__(self, model: AngleVAE, score_mode: str = "full") -> None:
        super().__init__()
        self.model, self.score_mode = model.for_export(), score_mode
        self.outputs = (
            (*CLASSIFIER_OUTPUTS,) if model.orientation is None else (*CLASSIFIER_OUTPUTS, *UNCERTAINTY_OUTPUTS)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        output = self.model(to_pixels(image))
        probabilities = self.model.probabilities(output.logits)
        rejection, features, logits = self.model.score, output.features, output.logits
        if self.score_mode == "fast":
            score = rejection.score_without_reconstruction(features, logits)
        else:
            score = rejection(output.target, output.reconstruction, features, logits)
        orientation, uncertainty = output.orientation, output.orientation.uncertainty
        if uncertainty is None:
            return probabilities, orientation.sin, score
        angle = torch.atan2(orientation.sin, orientation.cos)
        return (
            probabilities,
            angle,
            score,
            uncertainty.confidence,
            torch.atan2(uncertainty.second_sin, uncertainty.second_cos),
            uncertainty.second_prob,
        )


class ReconstructionGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `reconstruction`, uint8 of the same shape, rotated as the image is."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model.for_export()

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction, as bytes."""
        output = self.model(to_pixels(image))
        decoded = self.model.enlarge(output.reconstruction)
        if self.model.orientation is not None:
            decoded = rotate(decoded, output.orientation.cos, output.orientation.sin, self.model.config.fill)
        return quantize_pixels(decoded)


# The file


def to_onnx(
    graph: nn.Module, size: Size, channels: int, outputs: Sequence[str], metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """Trace `graph` with an input `image` uint8 [batch, height, width, channels] into a model of opset 20.

    Args:
        outputs: the names of the graph's outputs.
        metadata: stored in the file under `vae_edge.<key>`, as JSON.

    Raises:
        ExportError: the exporter fails, or the model does not pass ONNX's own checker.
    """
    example = torch.zeros(2, *height_and_width(size), channels, dtype=torch.uint8)
    return trace(graph, {"image": example}, outputs, metadata)


def trace(
    graph: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str], metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """Trace `graph` with inputs [batch, ...] into a model of opset 20.

    Args:
        examples: of the graph's inputs, by the names that they get, in order; two of a batch each.
        outputs: the names of the graph's outputs.
        metadata: stored in the file under `vae_edge.<key>`, as JSON.

    Raises:
        ExportError: as `to_onnx`.
    """
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        with suppress_logs("torch.onnx"):
            program = torch.onnx.export(
                graph.eval(),
                tuple(examples.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: batch} for _ in examples),
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


@contextmanager
def suppress_logs(*names: str) -> Iterator[None]:
    """Show only errors of these loggers (an empty name is the root), and no Python warnings."""
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


def strip(model: onnx.ModelProto) -> None:
    """Remove the stack traces, local paths and documentation that the exporter left on nodes and values."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Store our metadata in the file, each value as JSON, in place of what was there."""
    model.producer_name, model.producer_version = PRODUCER, __version__
    values = {f"{METADATA_PREFIX}{key}": json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, {**values, f"{METADATA_PREFIX}version": json.dumps(__version__)})


def replace_metadata(model: onnx.ModelProto, key: str, value: Any) -> None:
    """Change one of the values that `set_metadata` stored."""
    for stored in model.metadata_props:
        if stored.key == f"{METADATA_PREFIX}{key}":
            stored.value = json.dumps(value, ensure_ascii=False)


def get_metadata(model: onnx.ModelProto, name: object = "this ONNX file") -> dict[str, Any]:
    """The values that `set_metadata` stored; `name` is what a message calls the file.

    Raises:
        ExportError: the file was not written by us, or its metadata is damaged.
    """
    ours = {
        prop.key.removeprefix(METADATA_PREFIX): prop.value
        for prop in model.metadata_props
        if prop.key.startswith(METADATA_PREFIX)
    }
    if "version" not in ours:
        raise ExportError(f"{name} was not written by vae-edge: it has no vae_edge.version in its metadata")
    try:
        return {key: parse_json(value) for key, value in ours.items()}
    except ValueError as error:
        raise ExportError(f"{name} is damaged: its metadata is not what vae-edge writes ({error})") from error


# Running it with ONNX Runtime


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A model on ONNX Runtime's CPU provider, silent but for errors; int8 products do not saturate on any processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cpus()  # its own default sees neither a quota nor the affinity
    options.add_session_config_entry("session.x64quantprecision", "1")  # slower kernels on x86 without VNNI
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, images: NDArray[np.uint8], batch: int = 250) -> dict[str, NDArray[Any]]:
    """The outputs of a model on ONNX Runtime's CPU provider for uint8 images [N, H, W, C], by today's name."""
    names = [output.name for output in model.graph.output]
    session = open_session(model)
    parts = [session.run(names, {"image": images[i : i + batch]}) for i in range(0, len(images), batch)]
    return {output_name(name): np.concatenate([part[k] for part in parts]) for k, name in enumerate(names)}


def run_inner(
    model: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8], batch: int
) -> Iterator[list[NDArray[Any]]]:
    """The values of float tensors inside a model, by ONNX Runtime, for one batch of images [N, H, W, C] at a time."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:], opened.graph.node[:]
    needed, kept = set(tensors), []
    for node in reversed(model.graph.node):  # only those that lead to the tensors
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    opened.graph.node.extend(reversed(kept))
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    session = open_session(opened)
    image = session.get_inputs()[0].name
    for start in range(0, len(images), batch):
        yield session.run(list(tensors), {image: images[start : start + batch]})


# The check against PyTorch

TOLERANCE = {
    "probabilities": 1e-4,
    "score": 1e-2,
    "angle": 1e-3,
    "angle_confidence": 1e-4,
    "second_angle": 1e-3,
    "second_angle_probability": 1e-3,
    "reconstruction": 1,
}
ARGMAX_OUTPUTS = (*ANGLE_OUTPUTS, "second_angle_probability")
"""Read off the most probable angle bins: they jump where two bins tie."""
MAX_TIE_FRACTION = 0.01
"""Of the images: those whose bins tie may fall the other way by rounding."""
MIN_SECOND_PROBABILITY = 0.01
"""A second angle that is less probable is noise, and is not compared."""


def check_parity(graph: nn.Module, model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, float]:
    """Compare the exported model with PyTorch on real images; returns the largest difference of each output.

    Raises:
        ExportError: an output differs by more than `TOLERANCE`.
    """
    if len(images) == 0:
        raise ExportError("parity with PyTorch is checked on real images, and none were given")
    names = [output.name for output in model.graph.output]
    ours, theirs = reference(graph, images, names), run(model, images)
    worst: dict[str, float] = {}
    for name in names:
        difference = np.abs(ours[name].astype(np.float64) - theirs[name].astype(np.float64))
        if not np.isfinite(difference).all():
            raise ExportError(f"the exported graph gives {name} that are not finite numbers: nothing was written")
        if name == "score":
            difference = difference / np.maximum(1.0, np.abs(ours[name]))
        if name in ANGLE_OUTPUTS:
            difference = np.minimum(difference, 2 * np.pi - difference)
        if name == "second_angle":
            difference = np.where(ours["second_angle_probability"] >= MIN_SECOND_PROBABILITY, difference, 0.0)

        tied = MAX_TIE_FRACTION if name in ARGMAX_OUTPUTS else 0.0
        label = f"{name}_rad" if name in ANGLE_OUTPUTS else name
        worst[label] = float(np.quantile(difference, 1.0 - tied))
        if float((difference > TOLERANCE[name]).mean()) > tied:
            raise ExportError(
                f"the exported graph does not compute what the model computes: {name} differs by {worst[label]:.3g}, "
                f"allowed is {TOLERANCE[name]:g}; nothing was written"
            )
    return worst


@torch.no_grad()
def reference(graph: nn.Module, images: NDArray[np.uint8], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The same outputs by PyTorch."""
    outputs = graph.eval()(torch.from_numpy(np.ascontiguousarray(images)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}


# fp16

# `onnxruntime.transformers.float16` was tried (ONNX Runtime 1.32): with the same nodes kept in fp32 it leaves 222 casts
# where this has 12, sorts the nodes so that ONNX's checker refuses the file, and rounds subnormal weights otherwise.

COMPUTE_OPS = ("Conv", "ConvTranspose", "Gemm")  # in fp16 if their weights are constant
DATA_MOVEMENT_OPS = ("Relu", "Resize", "Reshape", "Slice", "Flatten")  # in fp16 if their data already is
ELEMENTWISE_OPS = ("Clip", "Add")  # in fp16 if all inputs are constant or already in fp16, and one is the latter
MAX_FP16 = 65504.0


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an fp32 model whose convolutions and matrix products with constant weights run in fp16, and so do the
    bounds and sums of what they give.

    A value is cast at most once in each direction. The graph's inputs and outputs keep their types.

    Raises:
        ExportError: a weight is beyond what fp16 can hold.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:], graph.value_info[:]
    weights = {initializer.name: initializer for initializer in model.graph.initializer}
    fp16_names: dict[str, str] = {}  # of the fp16 copy of a value, by its fp32 name
    made_in_fp16: dict[str, bool] = {}  # fp32 names of values computed in fp16: whether their fp32 copy is there yet

    def cast_fp16(name: str) -> str:
        if name not in fp16_names:
            fp16_names[name] = f"{name}_fp16"
            if name in weights:
                graph.initializer.append(_fp16_weight(weights[name], fp16_names[name]))
            else:
                graph.node.append(_cast(name, fp16_names[name], TensorProto.FLOAT16))
        return fp16_names[name]

    def cast_fp32(name: str) -> None:
        if made_in_fp16.get(name) is False:
            made_in_fp16[name] = True
            graph.node.append(_cast(fp16_names[name], name, TensorProto.FLOAT))

    for node in model.graph.node:
        is_compute = node.op_type in COMPUTE_OPS and node.input[1] in weights
        is_compute |= (
            node.op_type in ELEMENTWISE_OPS
            and all(not name or name in weights or name in made_in_fp16 for name in node.input)
            and any(name in made_in_fp16 for name in node.input)
        )
        if not is_compute and not (node.op_type in DATA_MOVEMENT_OPS and node.input[0] in made_in_fp16):
            for name in node.input:
                cast_fp32(name)
            graph.node.append(node)
            continue

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name and (is_compute or index == 0):
                copy.input[index] = cast_fp16(name)
        output = node.output[0]
        fp16_names[output] = copy.output[0] = f"{output}_fp16"
        made_in_fp16[output] = False
        graph.node.append(copy)

    for output in model.graph.output:
        cast_fp32(output.name)
    _drop_unused_weights(graph)
    return result


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


def _fp16_weight(weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(weight)
    if values.size and float(np.abs(values).max()) > MAX_FP16:
        raise ExportError(f"weight {weight.name} reaches {np.abs(values).max():.3g}, beyond fp16's {MAX_FP16:g}")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
