"""An fp32 ONNX model to another precision: int8 by Q/DQ pairs, for TensorRT and for CPUs; fp16 is next door."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from vae_edge.errors import ConfigError, ExportError
from vae_edge.export.bias import correct_biases
from vae_edge.export.cpu_int8 import with_reduced_range, with_unsigned_activations
from vae_edge.export.half import to_fp16
from vae_edge.export.quiet import errors_only

PRECISIONS = ("fp16", "int8")
QUANTIZED = ("Conv", "ConvTranspose", "Gemm")
KEPT_WHOLE = (*QUANTIZED, "Add", "Relu", "Reshape", "Sigmoid", "Flatten")
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
        `any`, and of int8 also `cpu` and `cpu_reduced_range` (see `vae_edge.export.cpu_int8`).

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


def for_calibration(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
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
    images = for_calibration(images)
    silent = contextlib.redirect_stdout(io.StringIO())  # the calibrator prints what it does
    with tempfile.TemporaryDirectory(prefix="vae-edge-int8-") as folder, errors_only(""), silent:
        source, ready, result = (Path(folder) / name for name in ("fp32.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(result),
            Calibration(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_quantize=worth_quantizing(model),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": RANGE_PERCENTILE,
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(KEPT_WHOLE),
            },
        )
        quantized, prepared = onnx.load(result), onnx.load(ready)
        reduced = with_reduced_range(quantized, prepared)
        for each in (quantized, reduced):
            correct_biases(each, prepared, images)
    check_rules(quantized)
    unsigned, reduced = (with_unsigned_activations(each) for each in (quantized, reduced))
    return {"any": quantized, "cpu": unsigned, "cpu_reduced_range": reduced}


def worth_quantizing(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and linear layers; the sums and distances of scores and angles stay fp32.

    Those are `MatMul`. They are told apart in the model as it was exported: ONNX Runtime's preparation for quantization
    makes a `Gemm` of a product and a sum, and keeps the names of the layers.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in QUANTIZED and n.input[1] in constants]


def check_rules(model: onnx.ModelProto) -> None:
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
