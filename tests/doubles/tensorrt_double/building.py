"""Making engines of ONNX files: for the builder, for tests, and wrong on purpose. Needs the package onnx."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from . import engine_file
from .engine_file import Description
from .personality import HERE, PERSONALITIES, Personality
from .session import NUMPY, RUNTIME_PLANTS

DTYPES = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16", TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32", TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8",
    TensorProto.FLOAT8E4M3FN: "FP8", TensorProto.DOUBLE: "FLOAT",
}  # fmt: skip
PLANTS = ("weight", "nearest", "fp32", *RUNTIME_PLANTS)


def value_shape(value: onnx.ValueInfoProto) -> list[int]:
    """The dimensions of an input or output, -1 for a free one."""
    return [side.dim_value if side.HasField("dim_value") else -1 for side in value.type.tensor_type.shape.dim]


def describe_io(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Inputs and outputs as an engine lists them, inputs first."""
    initializers = {each.name for each in model.graph.initializer}
    return [
        {
            "name": value.name,
            "mode": mode,
            "dtype": DTYPES[value.type.tensor_type.elem_type],
            "shape": value_shape(value),
        }
        for mode, values in (("INPUT", model.graph.input), ("OUTPUT", model.graph.output))
        for value in values
        if value.name not in initializers
    ]


def precision_of(model: onnx.ModelProto) -> str:
    """ "int8", "fp8", "fp16" or "fp32", by the types in the graph."""
    types = {each.data_type for each in model.graph.initializer}
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if quantized and TensorProto.FLOAT8E4M3FN in types:
        return "fp8"
    if quantized:
        return "int8"
    return "fp16" if TensorProto.FLOAT16 in types else "fp32"


def make_engine(
    model: bytes,
    *,
    batch: tuple[int, int, int] = (1, 8, 64),
    profiles: list[tuple[int, int, int]] | None = None,
    capabilities: tuple[int, ...] = (87,),
    version: str | None = None,
    plants: tuple[str, ...] = (),
    **options: Any,
) -> bytes:
    """An engine of this version for an ONNX file.

    Args:
        batch: (min, opt, max) of the one profile; `profiles` gives several instead.
        capabilities: compute capabilities that it runs on; empty for every one (TensorRT-RTX without targets).
        version: another version than this one, such as "10.13", which then refuses it.
        plants: what is wrong with it on purpose, of `PLANTS`.
        options: "version_compatible", "hardware_compatibility", "dla_core", "not_capturable", "refit", "layers",
            "platform" ("windows" is refused here).

    Raises:
        ValueError: a plant that does not exist, or that this model cannot have.
    """
    proto = onnx.load_model_from_string(model)
    io = _measured(describe_io(proto), model)
    built_by = HERE if version is None else _personality(version)
    ranges = profiles or [batch]
    description = Description(
        version=built_by.version,
        flavour=built_by.flavour,
        tag=built_by.tag,
        capabilities=list(capabilities),
        io=io,
        profiles=[
            {each["name"]: [_with_batch(each["shape"], n) for n in sizes] for each in io if each["mode"] == "INPUT"}
            for sizes in ranges
        ],
        precision=precision_of(proto),
        options=options,
    )
    engine = engine_file.pack(description, model, built_by.version_bytes)
    for kind in plants:
        engine = plant(engine, kind)
    return engine


def _measured(io: list[dict[str, Any]], model: bytes) -> list[dict[str, Any]]:
    """The same with the sides of outputs that the graph does not tell, from a run with one image and with two."""
    if all(-1 not in each["shape"][1:] for each in io):
        return io
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (image,) = [each for each in io if each["mode"] == "INPUT"]
    names = [each["name"] for each in io if each["mode"] == "OUTPUT"]
    dtype = NUMPY[image["dtype"]]
    one, two = (session.run(names, {image["name"]: np.zeros([n, *image["shape"][1:]], dtype)}) for n in (1, 2))
    shapes = {
        name: [a if a == b else -1 for a, b in zip(first.shape, second.shape, strict=True)]
        for name, first, second in zip(names, one, two, strict=True)
    }
    return [{**each, "shape": shapes.get(each["name"], each["shape"])} for each in io]


def _personality(version: str) -> Personality:
    if version in PERSONALITIES:
        return PERSONALITIES[version]
    return dataclasses.replace(HERE, version=version, tag=HERE.tag + 2)


def _with_batch(shape: list[int], batch: int) -> list[int]:
    return [batch if side == -1 else side for side in shape]


def plant(engine: bytes, kind: str) -> bytes:
    """The engine with something wrong: a whole, valid file that gives other answers.

    Args:
        kind: "weight" (one weight changed), "nearest" (instead of bilinear in GridSample), "swapped_outputs" (two of
            the same shape), "reversed_batch", "color_order" (of images with three channels), "fp32" (a quantized file
            runs without its quantization), "fp16" (with the error of fp16).

    Raises:
        ValueError: a kind that does not exist, or that this model cannot have.
    """
    if kind not in PLANTS:
        raise ValueError(f"The plant {kind!r} is unknown: {', '.join(PLANTS)}.")
    flavour = next(name for name, magic in engine_file.MAGIC.items() if engine.startswith(magic))
    description, model = engine_file.unpack(engine, flavour)
    if kind in RUNTIME_PLANTS:
        _check(kind, description)
    else:
        proto = onnx.load_model_from_string(model)
        {"weight": _change_weight, "nearest": _sample_nearest, "fp32": _drop_quantization}[kind](proto)
        model = proto.SerializeToString()
    changed = dataclasses.replace(description, plants=[*description.plants, kind])
    return engine_file.pack(changed, model, engine_file.version_bytes(engine))


def _check(kind: str, description: Description) -> None:
    channels = [each["shape"][-1] for each in description.io if each["mode"] == "INPUT"]
    if kind == "color_order" and channels != [3]:
        raise ValueError("The colour order needs an input of three channels.")
    kinds = [(each["dtype"], tuple(each["shape"])) for each in description.io if each["mode"] == "OUTPUT"]
    if kind == "swapped_outputs" and len(set(kinds)) == len(kinds):
        raise ValueError("This engine has no two outputs of the same type and shape.")


def _change_weight(proto: onnx.ModelProto) -> None:
    """The largest weight of the last convolution or matrix product gets the other sign."""
    weights = {each.name: each for each in proto.graph.initializer}
    producers = {name: node for node in proto.graph.node for name in node.output}
    for node in reversed(proto.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        while name in producers and name not in weights:  # through quantization, casts and transpositions
            name = producers[name].input[0]
        if name in weights:
            array = numpy_helper.to_array(weights[name]).copy()
            flat = array.reshape(-1)
            index = int(np.argmax(np.abs(flat.astype(np.float32))))
            flat[index] = -flat[index]
            weights[name].CopyFrom(numpy_helper.from_array(array, name))
            return
    raise ValueError("This model has no weight of a convolution or matrix product.")


def _sample_nearest(proto: onnx.ModelProto) -> None:
    nodes = [node for node in proto.graph.node if node.op_type == "GridSample"]
    if not nodes:
        raise ValueError("This model has no GridSample.")
    for node in nodes:
        kept = [attribute for attribute in node.attribute if attribute.name != "mode"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("mode", "nearest")])


def _drop_quantization(proto: onnx.ModelProto) -> None:
    """Pairs of QuantizeLinear and DequantizeLinear become nothing. Weights that are stored quantized stay so."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    renamed = {}
    for node in proto.graph.node:
        before = producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is not None and before.op_type == "QuantizeLinear":
            renamed[node.output[0]] = before.input[0]
    if not renamed:
        raise ValueError("This model has no pair of QuantizeLinear and DequantizeLinear.")
    kept = [node for node in proto.graph.node if not (node.op_type == "DequantizeLinear" and node.output[0] in renamed)]
    for node in kept:
        node.input[:] = [_origin(name, renamed) for name in node.input]
    used = {name for node in kept for name in node.input} | {value.name for value in proto.graph.output}
    kept = [node for node in kept if node.op_type != "QuantizeLinear" or node.output[0] in used]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def _origin(name: str, renamed: dict[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name
