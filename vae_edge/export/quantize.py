"""An fp32 ONNX model to another precision: int8 by Q/DQ pairs, for TensorRT and for CPUs; fp16 is next door.

Bias correction: what rounding adds to a layer's outputs on average is taken off its bias.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.2, with the
means measured on calibration images instead of derived. Most of an image is background, where every activation of a
channel is the same and is rounded the same way: that error does not average out, unlike that of the strokes.

The int8 files that CPU backends run: the same calibration as TensorRT's file, in the form that CPU kernels take.

- Activations behind ReLU are uint8 (zero point 0, the same scale). ONNX Runtime's CPU kernels take uint8 activations;
  given int8 ones they leave dequantize, float convolution, quantize: slower than fp32.
- `reduced_range` has weights of 7 bits (half the integers, twice the scale). Without VNNI, x86 processors multiply
  uint8 by int8 with VPMADDUBSW, which sums two products in 16 bits and saturates: 2 · 255 · 127 = 64,770 is beyond
  32,767, while 2 · 255 · 64 = 32,640 is not. ONNX Runtime calls it `reduce_range`, both engines document it.

TensorRT's own file keeps int8 activations and 8-bit weights; nothing of this reaches it.

Which images a bundle's other precisions are calibrated and measured on.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vae_edge.errors import ConfigError, ExportError
from vae_edge.export.onnx_file import suppress_logs, open_session, to_fp16

PRECISIONS = ("fp16", "int8")
QUANTIZED = ("Conv", "ConvTranspose", "Gemm")
QDQ_OPS = (*QUANTIZED, "Add", "Relu", "Reshape", "Sigmoid", "Flatten")
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
RANGE_PERCENTILE = 99.99


def convert(model: onnx.ModelProto, precision: str, images: NDArray[np.uint8]) -> dict[str, onnx.ModelProto]:
    """The model in another precision, by target.

    Args:
        model: the fp32 classifier or reconstruction graph.
        precision: `fp16` or `int8`.
        images: calibration images, uint8 [N, H, W, C], from the training part; used by int8.

    Returns:
        `any`, and of int8 also `cpu` and `cpu_reduced_range` (see `vae_edge.export.quantize`).

    Raises:
        ConfigError: for another precision.
        ExportError: if the conversion fails, or the result breaks TensorRT's rules for Q/DQ.
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


class Calibration:
    """Batches of images for ONNX Runtime's calibrator, all of one size, as its histograms want them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        step = min(CALIBRATION_BATCH, len(images))
        self._batches: Iterator[NDArray[np.uint8]] = iter(images[i : i + step] for i in range(0, len(images), step))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch by input name, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of the calibrator's interface; strided calibration is not used."""
        raise ExportError(f"calibration by ranges ({start_index} to {end_index}) is not supported")


def calibration_subset(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Those that int8 is calibrated on: up to 512, and as many as make whole batches."""
    images = images[:CALIBRATION_IMAGES]
    return images[: len(images) - len(images) % max(1, min(CALIBRATION_BATCH, len(images)))]


def to_int8(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, onnx.ModelProto]:
    """Static int8, by target.

    `any`, which TensorRT takes, is symmetric with weights per channel, zero points 0, biases left to the builder, and
    no Q/DQ before a ReLU.

    Ranges hold 99.99% of the values that the calibration images give (percentile calibration, Wu et al. 2020); then the
    biases are corrected for what rounding adds on average. The files for CPUs have the same ranges; the one with
    weights of 7 bits has biases of its own.

    Raises:
        ExportError: if there are too few images, or a rule of TensorRT is broken by the result.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(images) < 16:
        raise ExportError(f"{len(images)} calibration images: int8 needs at least 16 to measure ranges from")
    images = calibration_subset(images)
    silent = contextlib.redirect_stdout(io.StringIO())  # the calibrator prints what it does
    with tempfile.TemporaryDirectory(prefix="vae-edge-int8-") as folder, suppress_logs(""), silent:
        source, ready, result = (Path(folder) / name for name in ("fp32.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(result),
            Calibration(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
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
        quantized, prepared = onnx.load(result), onnx.load(ready)
        reduced = with_reduced_range(quantized, prepared)
        for each in (quantized, reduced):
            correct_biases(each, prepared, images)
    validate_qdq(quantized)
    unsigned, reduced = (with_unsigned_activations(each) for each in (quantized, reduced))
    return {"any": quantized, "cpu": unsigned, "cpu_reduced_range": reduced}


def nodes_to_quantize(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and linear layers; the sums and distances of scores and angles stay fp32.

    Those are `MatMul`. They are told apart in the model as it was exported: ONNX Runtime's preparation for quantization
    makes a `Gemm` of a product and a sum, and keeps the names of the layers.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in QUANTIZED and n.input[1] in constants]


def validate_qdq(model: onnx.ModelProto) -> None:
    """TensorRT's rules for explicit quantization, as far as our graphs can break them.

    Zero points are 0, types are int8 or fp8, weights are per channel along axis 0 (1 for ConvTranspose, and for a Gemm
    along its output), no Q between a convolution and its ReLU, and something is quantized at all.

    Raises:
        ExportError: naming the first node that breaks a rule.
    """
    constants = {i.name: i for i in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    used_by: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            used_by.setdefault(name, []).append(node)
    pairs = 0
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        pairs += 1
        _check_zero_point(node, constants)
        source = made_by.get(node.input[0])
        if (
            node.op_type == "QuantizeLinear"
            and source is not None
            and source.op_type in ("Conv", "ConvTranspose", "Gemm")
        ):
            after = [
                n.op_type for name in node.output for dq in used_by.get(name, []) for n in used_by.get(dq.output[0], [])
            ]
            if after == ["Relu"]:
                raise ExportError(
                    f"{node.name}: Q/DQ between {source.op_type} and Relu keeps TensorRT from fusing them"
                )
        scale = constants.get(node.input[1])
        if scale is not None and scale.dims and int(np.prod(scale.dims)) > 1:
            _check_axis(node, used_by)
    if pairs == 0:
        raise ExportError("the int8 model has no Q/DQ pair: nothing would run in int8")


def _check_zero_point(node: onnx.NodeProto, constants: dict[str, Any]) -> None:
    if len(node.input) < 3 or node.input[2] not in constants:
        raise ExportError(f"{node.name}: TensorRT needs a constant zero point of type int8 or fp8")
    zero = constants[node.input[2]]
    if zero.data_type not in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN):
        name = TensorProto.DataType.Name(zero.data_type)
        raise ExportError(f"{node.name}: zero point of type {name}; TensorRT takes int8 or fp8 e4m3")
    if np.any(numpy_helper.to_array(zero).astype(np.float32) != 0):
        raise ExportError(f"{node.name}: the zero point is not 0; TensorRT takes symmetric quantization alone")


def _check_axis(node: onnx.NodeProto, used_by: dict[str, list[onnx.NodeProto]]) -> None:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    for user in used_by.get(node.output[0], []):
        wanted: tuple[int, ...] = {"Conv": (0,), "ConvTranspose": (1,)}.get(user.op_type, (0, 1))
        if user.op_type != "DequantizeLinear" and axis not in wanted:
            raise ExportError(
                f"{node.name}: scales along axis {axis} of {user.op_type}'s weights; expected {wanted[0]}"
            )


CORRECTED = ("Conv", "ConvTranspose", "Gemm")
BATCH = 64
IMAGES = 128  # of the calibration images; each adds hundreds of positions to a mean


def correct_biases(quantized: onnx.ModelProto, model: onnx.ModelProto, images: NDArray[np.uint8]) -> None:
    """Change the biases of a quantized model so that each layer's mean outputs are those of the fp32 model.

    Layer by layer from the input on, as one that is corrected changes what the next ones see.

    Args:
        quantized: with Q/DQ pairs; changed in place.
        model: the same graph in fp32; layers are matched by the names of their outputs.
        images: calibration images uint8 [N, H, W, C]; up to 128 are used.
    """
    images = images[:IMAGES]
    biases = {initializer.name: initializer for initializer in quantized.graph.initializer}
    known = {name for node in model.graph.node for name in node.output}
    layers = {
        node.output[0]: biases[node.input[2]]
        for node in quantized.graph.node
        if node.op_type in CORRECTED and len(node.input) > 2 and node.input[2] in biases and node.output[0] in known
    }
    wanted = channel_means(model, list(layers), images)
    for name, bias in layers.items():
        missing = wanted[name] - channel_means(quantized, [name], images)[name]
        values = numpy_helper.to_array(bias)
        bias.CopyFrom(numpy_helper.from_array((values + missing).astype(values.dtype), bias.name))


def channel_means(
    model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float64]]:
    """The means [C] of values [N, C, ...] inside a model, by their names, over images uint8 [N, H, W, C]."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_session(opened)
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    for start in range(0, len(images), BATCH):
        values = session.run(list(names), {session.get_inputs()[0].name: images[start : start + BATCH]})
        for name, value in zip(names, values, strict=True):
            by_channel = np.moveaxis(value, 1, 0).reshape(value.shape[1], len(value), -1)
            sums[name] = sums[name] + by_channel.mean(2, dtype=np.float64).sum(1)
    return {name: total / len(images) for name, total in sums.items()}


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
