"""An fp32 ONNX model to another precision: fp16, or static int8 by Q/DQ pairs for TensorRT and for CPUs.

int8 takes three steps. Percentile calibration (Wu et al., "Integer quantization for deep learning inference", 2020)
gives symmetric scales. Bias correction takes off each layer's bias what rounding adds to its outputs on average. From
TensorRT's file the files for CPUs are derived, with the same calibration. `read_qdq_layers` reads the layers of such a
file, so that `vae_edge.ops.network.fuse` runs on the same calibration.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from vae_edge.errors import ConfigError, ExportError
from vae_edge.exporting.onnx_file import run_inner, suppress_logs, to_fp16
from vae_edge.model.network import current_name
from vae_edge.ops.packing import LayerParams, QuantizedNetwork
from vae_edge.spec import EXPORTED_PRECISIONS

PRECISIONS = EXPORTED_PRECISIONS[1:]
QUANTIZED_OPS = ("Conv", "ConvTranspose", "Gemm")
ACTIVATION_OPS = ("Relu", "Clip")  # which engines fuse into the convolution before them
QDQ_OPS = (
    *QUANTIZED_OPS,
    "Add",
    "Relu",
    "Clip",
    "Reshape",
    "Sigmoid",
    "Flatten",
)  # whose outputs get no Q/DQ of their own
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
MIN_CALIBRATION_IMAGES = 16
RANGE_PERCENTILE = 99.99
LAYER_OPS = ("Conv", "Gemm")
PREFIX = "model."  # of the network's names in the exported graph
SUFFIX = ".weight_DequantizeLinear_Output"

Constants = Mapping[str, onnx.TensorProto]


def convert(model: onnx.ModelProto, precision: str, images: NDArray[np.uint8]) -> dict[str, onnx.ModelProto]:
    """The model in another precision, by target.

    Args:
        model: the fp32 classifier or reconstruction graph.
        precision: `fp16` or `int8`.
        images: calibration images, uint8 [N, H, W, C], of the training split; used by int8.

    Returns:
        `any`, and for int8 also `cpu` and `cpu_reduced_range` (see `to_int8`).

    Raises:
        ConfigError: another precision.
        ExportError: the conversion fails, or its result breaks TensorRT's rules for Q/DQ.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    models = {"any": to_fp16(model)} if precision == "fp16" else to_int8(model, images)
    for converted in models.values():
        del converted.metadata_props[:]
        converted.metadata_props.extend(model.metadata_props)
        converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
        onnx.checker.check_model(converted, full_check=True)
    return models


def to_int8(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, onnx.ModelProto]:
    """Static int8, by target.

    - `any`, which TensorRT takes: symmetric, weights per channel, zero points 0, float biases, no Q/DQ before a ReLU,
      nor between a convolution and the residual addition that it is fused with.
    - `cpu`: both inputs of a residual addition are int8; activations that cannot be negative are uint8
      (`with_unsigned_activations`).
    - `cpu_reduced_range`: the same with weights of 7 bits (`with_reduced_range`) and biases corrected for them.

    Ranges hold 99.99% of the values that the calibration images give.

    Raises:
        ExportError: there are too few images, activations do not vary over them, or the result breaks a rule of
            TensorRT.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(images) < MIN_CALIBRATION_IMAGES:
        raise ExportError(f"{len(images)} calibration images: int8 needs at least 16 to measure ranges from")
    images = calibration_subset(images)
    silent = contextlib.redirect_stdout(io.StringIO())  # the calibrator prints what it does
    with tempfile.TemporaryDirectory(prefix="vae-edge-int8-") as folder, suppress_logs(""), silent:
        source, ready, result = (Path(folder) / name for name in ("fp32.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        prepared = with_own_parameters(onnx.load(ready))
        # ONNX Runtime measures the ranges of every node of a type: only residual additions are to be of the type Add.
        measured = {node.name for node in residual_additions(prepared)}
        _rename_additions(prepared, "Add", "Sum", measured)
        onnx.save(prepared, ready)
        try:
            quantize_static(
                str(ready),
                str(result),
                CalibrationReader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*QUANTIZED_OPS, "Add"],
                nodes_to_quantize=nodes_to_quantize(model),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={
                    "CalibPercentile": RANGE_PERCENTILE,
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(QDQ_OPS),
                },
            )
        except ValueError as error:  # of NumPy's histogram
            raise ExportError(
                f"the ranges of the activations cannot be measured ({error}): some of them hardly vary over the "
                "calibration images, as in a network that did not learn; train it longer, or export it in fp16"
            ) from error
        quantized = onnx.load(result)
        for each in (quantized, prepared):
            _rename_additions(each, "Sum", "Add", measured)
        reduced = with_reduced_range(quantized, prepared)
        for each in (quantized, reduced):
            correct_biases(each, prepared, images)
    fused = with_fused_additions(quantized)
    validate_qdq(fused)
    return {
        "any": fused,
        "cpu": with_unsigned_activations(quantized),
        "cpu_reduced_range": with_unsigned_activations(reduced),
    }


def with_own_parameters(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no two layers share a weight or a bias, as they do where a graph runs an encoder twice.

    Each bias is corrected by itself. ONNX Runtime 1.32 does not load a file in which two quantized convolutions share a
    weight or a bias: it rewrites both, and gives both results one name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if node.op_type not in QUANTIZED_OPS or index == 0 or name not in constants:
                continue
            if name in taken:
                own = copy.graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = node.input[index] = f"{name}_of_{node.name}"
            taken.add(name)
    return copy


class CalibrationReader:
    """ONNX Runtime's `CalibrationDataReader`: batches of one size, as its histograms need them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        step = min(CALIBRATION_BATCH, len(images))
        self._batches: Iterator[NDArray[np.uint8]] = iter(images[i : i + step] for i in range(0, len(images), step))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch by input name, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of the interface; strided calibration is not used."""
        raise ExportError(f"calibration by ranges ({start_index} to {end_index}) is not supported")


def calibration_subset(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images that int8 is calibrated on: up to 512, in full batches."""
    images = images[:CALIBRATION_IMAGES]
    return images[: len(images) - len(images) % max(1, min(CALIBRATION_BATCH, len(images)))]


def nodes_to_quantize(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions, linear layers and residual additions; the sums and distances of scores and angles stay
    fp32.

    Those are `MatMul` in the exported model. ONNX Runtime's preparation for quantization fuses a product and a sum into
    a `Gemm`, but keeps the names of the layers: so they are found by name, before it.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    names = [n.name for n in model.graph.node if n.op_type in QUANTIZED_OPS and n.input[1] in constants]
    return names + [node.name for node in residual_additions(model)]


def _rename_additions(model: onnx.ModelProto, before: str, after: str, but: Collection[str]) -> None:
    """Change the type of all nodes of the type `before`, but those of some names. A Sum of two tensors is an Add."""
    for node in model.graph.node:
        if node.op_type == before and node.name not in but:
            node.op_type = after


def residual_additions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Sums of two feature maps, at least one of which is a convolution's output, perhaps behind Q/DQ."""
    producers = _producers(model.graph)
    constants = {initializer.name for initializer in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Add" and not constants & set(node.input)
        if any(_conv_before(name, producers) is not None for name in node.input)
    ]


def _conv_before(name: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The convolution whose output a tensor is, but for a Q/DQ pair."""
    node = producers.get(name)
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "Conv" else None


def with_fused_additions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the Q/DQ pair between a convolution and the residual addition behind it, so that TensorRT fuses
    them. Of an addition of two convolutions' outputs the other one keeps its pair.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    producers = _producers(copy.graph)
    for node in residual_additions(copy):
        for index, name in enumerate(node.input):
            conv = _conv_before(name, producers)
            if conv is not None and conv.output[0] != name:
                node.input[index] = conv.output[0]
                break
    used = {name for node in copy.graph.node for name in node.input} | {output.name for output in copy.graph.output}
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        unused = [n for n in copy.graph.node if n.op_type == kind and n.output[0] not in used]
        for node in unused:
            copy.graph.node.remove(node)
        used = {name for node in copy.graph.node for name in node.input} | {output.name for output in copy.graph.output}
    return copy


# TensorRT's rules


def validate_qdq(model: onnx.ModelProto) -> None:
    """Check TensorRT's rules for explicit quantization, as far as our graphs can break them.

    Something is quantized. Zero points are 0 and of type int8 or fp8. Weights are quantized per channel along axis 0 (1
    for ConvTranspose, the output's for Gemm). There is no Q/DQ between a convolution and its ReLU or Clip.

    Raises:
        ExportError: naming the first node that breaks a rule.
    """
    constants = {i.name: i for i in model.graph.initializer}
    producers = _producers(model.graph)
    consumers = _consumers(model.graph)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        _check_zero_point(node, constants)
        _check_relu_fusion(node, producers, consumers)
        scale = constants.get(node.input[1])
        if scale is not None and scale.dims and int(np.prod(scale.dims)) > 1:
            _check_axis(node, consumers)
    if not pairs:
        raise ExportError("the int8 model has no Q/DQ pair: nothing would run in int8")


def _check_zero_point(node: onnx.NodeProto, constants: Constants) -> None:
    if len(node.input) < 3 or node.input[2] not in constants:
        raise ExportError(f"{node.name}: TensorRT needs a constant zero point of type int8 or fp8")
    zero = constants[node.input[2]]
    if zero.data_type not in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN):
        name = TensorProto.DataType.Name(zero.data_type)
        raise ExportError(f"{node.name}: zero point of type {name}; TensorRT takes int8 or fp8 e4m3")
    if np.any(numpy_helper.to_array(zero).astype(np.float32) != 0):
        raise ExportError(f"{node.name}: the zero point is not 0; TensorRT takes only symmetric quantization")


def _check_relu_fusion(
    node: onnx.NodeProto,
    producers: Mapping[str, onnx.NodeProto],
    consumers: Mapping[str, list[onnx.NodeProto]],
) -> None:
    source = producers.get(node.input[0])
    if node.op_type != "QuantizeLinear" or source is None or source.op_type not in QUANTIZED_OPS:
        return
    dequantized = [user.output[0] for name in node.output for user in consumers.get(name, [])]
    after = [user.op_type for name in dequantized for user in consumers.get(name, [])]
    if len(after) == 1 and after[0] in ACTIVATION_OPS:
        raise ExportError(f"{node.name}: Q/DQ between {source.op_type} and {after[0]} keeps TensorRT from fusing them")


def _check_axis(node: onnx.NodeProto, consumers: Mapping[str, list[onnx.NodeProto]]) -> None:
    axis = _axis(node)
    for user in consumers.get(node.output[0], []):
        allowed: tuple[int, ...] = {"Conv": (0,), "ConvTranspose": (1,)}.get(user.op_type, (0, 1))
        if user.op_type != "DequantizeLinear" and axis not in allowed:
            raise ExportError(
                f"{node.name}: scales along axis {axis} of {user.op_type}'s weights; expected {allowed[0]}"
            )


def _producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    return consumers


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


# Bias correction

# Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.2, with means
# measured on calibration images instead of derived. Most of an image is background, where all activations of a channel
# are equal and are rounded the same way: unlike that of the strokes, this error does not average out.

BIAS_BATCH = 64
BIAS_IMAGES = 128  # of the calibration images; each adds hundreds of positions to a mean


def correct_biases(quantized: onnx.ModelProto, model: onnx.ModelProto, images: NDArray[np.uint8]) -> None:
    """Change the biases of a quantized model so that each layer's mean outputs are those of the fp32 model.

    Layer by layer from the input on, since each correction changes the inputs of the next layers.

    Args:
        quantized: with Q/DQ pairs; changed in place.
        model: the same graph in fp32; layers are matched by the names of their outputs.
        images: calibration images uint8 [N, H, W, C]; up to 128 are used.
    """
    images = images[:BIAS_IMAGES]
    biases = {initializer.name: initializer for initializer in quantized.graph.initializer}
    in_fp32 = {name for node in model.graph.node for name in node.output}
    layers = {
        node.output[0]: biases[node.input[2]]
        for node in quantized.graph.node
        if node.op_type in QUANTIZED_OPS and len(node.input) > 2 and node.input[2] in biases
        if node.output[0] in in_fp32
    }
    expected = channel_means(model, list(layers), images)
    for name, bias in layers.items():
        error = expected[name] - channel_means(quantized, [name], images)[name]
        values = numpy_helper.to_array(bias)
        bias.CopyFrom(numpy_helper.from_array((values + error).astype(values.dtype), bias.name))


def channel_means(
    model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float64]]:
    """The means [C] of tensors [N, C, ...] inside a model, by name, over images uint8 [N, H, W, C]."""
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    for values in run_inner(model, names, images, BIAS_BATCH):
        for name, value in zip(names, values, strict=True):
            by_channel = np.moveaxis(value, 1, 0).reshape(value.shape[1], len(value), -1)
            sums[name] = sums[name] + by_channel.mean(2, dtype=np.float64).sum(1)
    return {name: total / len(images) for name, total in sums.items()}


# The files for CPUs

NON_NEGATIVE_OPS = {"Relu", "Sigmoid", "Softmax", "Abs"}
SIGN_PRESERVING_OPS = {
    "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"
}  # fmt: skip
WEIGHTED_OPS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # whose second input is the weight
MAX_REDUCED_WEIGHT = 64


def with_unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the Q/DQ pairs of tensors that cannot be negative are uint8, with the same scale and zero point.

    Values above 127 steps are kept up to 255, where int8 saturates. Where a Clip bounds the tensor (ReLU6), 255 steps
    end at its bound at most: the steps are finer, and ONNX Runtime fuses such a Clip into the convolution.

    ONNX Runtime's CPU kernels take uint8 activations. Its own rewrite of int8 (QDQS8ToU8Transformer, on by default on
    x86) moves the zero point to 128, which leaves the ReLU between convolution and Q: 13 convolutions stay float, at
    1.7 times the latency of this file and 1.9 times that of fp32 (ONNX Runtime 1.32, x86 with AVX2, one image, one
    thread).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers, consumers = _producers(graph), _consumers(graph)
    used_elsewhere = {output.name for output in graph.output} | _used_in_subgraphs(graph)
    zero_point = f"{graph.name}_unsigned_zero"

    changed = set()
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not _has_int8_zero(node, constants):
            continue
        quantized = node.output[0]
        users = consumers[quantized]
        if quantized in used_elsewhere or not all(_dequantizes(user, quantized, constants) for user in users):
            continue
        if not _cannot_be_negative(node.input[0], producers, constants):
            continue
        bound = _upper_bound(node.input[0], producers, constants)
        scale = numpy_helper.to_array(constants[node.input[1]])
        finer = np.nextafter(np.float32(bound / 255), np.float32(0))
        if bound < math.inf and float(scale) > float(finer):
            graph.initializer.append(numpy_helper.from_array(finer, f"{quantized}_unsigned_scale"))
            for each in (node, *users):
                each.input[1] = f"{quantized}_unsigned_scale"
        for each in (node, *users):
            each.input[2] = zero_point
        changed.add(quantized)

    if changed:
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.uint8), zero_point))
        for info in graph.value_info:
            if info.name in changed:
                info.type.tensor_type.elem_type = TensorProto.UINT8
        _drop_unused(graph)
    return copy


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out constants that no node reads any more: ONNX Runtime warns of each of them."""
    used = {name for node in graph.node for name in node.input} | _used_in_subgraphs(graph)
    used |= {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def with_reduced_range(model: onnx.ModelProto, source: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """A copy whose int8 weights have 7 bits, -64 to 64, and scales twice as large (ONNX Runtime's `reduce_range`).

    Without VNNI, x86 processors multiply uint8 by int8 with VPMADDUBSW, which adds two products in 16 bits and
    saturates: 2 · 255 · 127 = 64,770 is beyond 32,767, while 2 · 255 · 64 = 32,640 is not.

    Args:
        model: with int8 weights behind DequantizeLinear, one scale for each output channel or one for all.
        source: the fp32 model it was made of, whose weights of the same names (without `_quantized`) are rounded
            anew; without it the 8-bit integers are halved, which rounds a second time.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    originals = {} if source is None else {tensor.name: tensor for tensor in source.graph.initializer}
    weights = {node.input[1] for node in copy.graph.node if node.op_type in WEIGHTED_OPS}
    scales = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}  # before any is doubled

    done = set()
    for node in copy.graph.node:
        if node.op_type != "DequantizeLinear" or node.output[0] not in weights or node.input[0] in done:
            continue
        if node.input[0] not in constants or constants[node.input[0]].data_type != TensorProto.INT8:
            continue
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        integers, steps = numpy_helper.to_array(weight), scales[scale.name]
        axis = _axis(node)
        shape = [-1 if k == axis else 1 for k in range(integers.ndim)] if steps.size > 1 else [1] * integers.ndim
        original = originals.get(weight.name.removesuffix("_quantized"))
        unrounded = numpy_helper.to_array(original) / steps.reshape(shape) if original is not None else integers
        halved = np.clip(np.rint(unrounded / 2), -MAX_REDUCED_WEIGHT, MAX_REDUCED_WEIGHT).astype(np.int8)
        weight.CopyFrom(numpy_helper.from_array(halved, weight.name))
        scale.CopyFrom(numpy_helper.from_array((steps * 2).astype(steps.dtype), scale.name))
        done.add(node.input[0])
    return copy


def _has_int8_zero(node: onnx.NodeProto, constants: Constants) -> bool:
    """Whether the node's zero point is one constant int8 number, 0 (per-channel ones are weights)."""
    if len(node.input) < 3 or node.input[2] not in constants or any(a.name == "output_dtype" for a in node.attribute):
        return False
    zero = numpy_helper.to_array(constants[node.input[2]])
    return bool(zero.dtype == np.int8 and zero.size == 1 and zero.reshape(()) == 0)


def _dequantizes(user: onnx.NodeProto, quantized: str, constants: Constants) -> bool:
    same = user.op_type == "DequantizeLinear" and user.input[0] == quantized
    return same and _has_int8_zero(user, constants)


def _cannot_be_negative(name: str, producers: Mapping[str, onnx.NodeProto], constants: Constants) -> bool:
    """Follow a tensor back through operators that keep the sign, to one whose result is never negative."""
    node = producers.get(name)
    while node is not None and node.op_type in SIGN_PRESERVING_OPS:
        node = producers.get(node.input[0])
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in NON_NEGATIVE_OPS or (node.op_type == "Clip" and _clip_bound(node, 1, constants) >= 0)


def _upper_bound(name: str, producers: Mapping[str, onnx.NodeProto], constants: Constants) -> float:
    """The largest value of a Clip's output; infinite for any other tensor."""
    node = producers.get(name)
    return _clip_bound(node, 2, constants) if node is not None and node.op_type == "Clip" else math.inf


def _clip_bound(node: onnx.NodeProto, index: int, constants: Constants) -> float:
    """The constant lower (index 1) or upper bound (2) of a Clip; infinite where it has none."""
    if len(node.input) <= index or node.input[index] not in constants:
        return math.inf if index == 2 else -math.inf
    return float(numpy_helper.to_array(constants[node.input[index]]))


def _used_in_subgraphs(graph: onnx.GraphProto) -> set[str]:
    """Names that the bodies of If, Loop and Scan may read from outside."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    bodies += [g for node in graph.node for a in node.attribute for g in a.graphs]
    names: set[str] = set()
    for body in bodies:
        names |= {name for node in body.node for name in node.input} | {o.name for o in body.output}
        names |= _used_in_subgraphs(body)
    return names


def read_qdq_layers(model: onnx.ModelProto) -> QuantizedNetwork:
    """Read the layers of a QDQ file: int8 weights, their scales, biases, input scales; and the score's offsets.

    Raises:
        ExportError: the file has no int8 layers, or weights or input of a layer are not quantized as `quantize_int8`
            does.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}

    def constant(name: str) -> Any:
        if name not in constants:
            raise ExportError(f"{name} is not a constant of the int8 file; export and quantize the model anew")
        return numpy_helper.to_array(constants[name])

    layers = {}
    for node in model.graph.node:
        if node.op_type not in LAYER_OPS or not node.input[1].endswith(SUFFIX):
            continue
        weight_node, input_node = producers[node.input[1]], producers.get(node.input[0])
        if input_node is None or input_node.op_type != "DequantizeLinear":
            raise ExportError(f"the input of {node.name} is not quantized; export and quantize the model anew")

        weight = constant(weight_node.input[0])
        bias = constant(node.input[2]) if len(node.input) > 2 else np.zeros(weight.shape[0], np.float32)
        scale = np.broadcast_to(constant(weight_node.input[1]), weight.shape[:1])  # one for the tensor, or by channel
        name = node.input[1].removeprefix(PREFIX).removesuffix(SUFFIX)
        layers[current_name(f"{name}.").removesuffix(".")] = LayerParams(
            torch.tensor(weight), torch.tensor(bias), torch.tensor(scale.copy()), float(constant(input_node.input[1]))
        )
    if not layers:
        raise ExportError("the file has no int8 layers; quantize the bundle to int8 first")

    names = (f"{PREFIX}score.{name}" for name in ("offset", "nearest_offset"))
    offset, nearest_offset = (torch.tensor(constant(name)) if name in constants else None for name in names)
    return QuantizedNetwork(layers, offset, nearest_offset)
