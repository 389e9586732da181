"""How images are sampled: what the ONNX file asks of each GridSample, and what the parser made of it.

ONNX calls bilinear interpolation `bilinear` up to opset 19 and `linear` from 20 on. Parsers that know only the old
name (TensorRT-RTX 1.5, TensorRT 10.1) take `linear` for `nearest` and say nothing. AffineGrid is new in opset 20, so
that no file of ours can use the old name. After parsing, each layer is held against its node and set right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import EngineError

_MODES = {"linear": "LINEAR", "bilinear": "LINEAR", "nearest": "NEAREST", "cubic": "CUBIC", "bicubic": "CUBIC"}
_PADDINGS = {"zeros": "FILL", "border": "CLAMP", "reflection": "REFLECT"}
_GRAPH, _NODE = 7, 1  # fields of ModelProto and GraphProto
_NODE_NAME, _OP_TYPE, _ATTRIBUTE = 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _INTEGER, _STRING = 1, 3, 4  # of AttributeProto


@dataclass(frozen=True)
class Sampling:
    """One GridSample node: its name, and members of TensorRT's InterpolationMode and SampleMode."""

    name: str
    mode: str
    padding: str
    align_corners: bool


def asked_samplings(model: bytes) -> list[Sampling]:
    """The GridSample nodes of a serialized ONNX model's graph, in order; the package onnx is not needed.

    Raises:
        EngineError: for a mode that ONNX does not know, or a model that is cut short.
    """
    nodes = (node for graph in _fields(model, _GRAPH) for node in _fields(graph, _NODE))
    return [_sampling(node) for node in nodes if _text(node, _OP_TYPE) == "GridSample"]


def set_sampling(module: Any, network: Any, asked: list[Sampling], path: Path, product: str) -> list[str]:
    """Hold the grid-sample layers of a parsed network against the nodes, and set what differs.

    Args:
        module: the TensorRT module.
        asked: what `asked_samplings` found in the file.
        product: TensorRT's name and version, for sentences.

    Returns:
        a sentence for each layer that was set.

    Raises:
        EngineError: if the layers are not those of the nodes, or one cannot be set.
    """
    layers = [layer for k in range(network.num_layers) if (layer := network.get_layer(k)).type.name == "GRID_SAMPLE"]
    if len(layers) != len(asked):
        raise EngineError(
            f"{product} made {len(layers)} grid-sample layers of the {len(asked)} GridSample nodes of {path.name}, so "
            "how they interpolate cannot be told: use another TensorRT."
        )
    return [
        sentence for layer, node in zip(layers, asked, strict=True) for sentence in _set(module, layer, node, product)
    ]


def _set(module: Any, layer: Any, node: Sampling, product: str) -> Iterator[str]:
    if not hasattr(layer, "interpolation_mode"):
        layer.__class__ = module.IGridSampleLayer  # a network gives its layers as plain ones
    wanted = {
        "interpolation_mode": getattr(module.InterpolationMode, node.mode),
        "sample_mode": getattr(module.SampleMode, node.padding),
        "align_corners": node.align_corners,
    }
    for name, value in wanted.items():
        found = getattr(layer, name)
        if found == value:
            continue
        setattr(layer, name, value)
        if getattr(layer, name) != value:
            raise EngineError(
                f"{product} reads the GridSample '{node.name}' with {name} {_word(found)} where the file asks for "
                f"{_word(value)}, and it cannot be set: use another TensorRT."
            )
        yield (
            f"{product} read the GridSample '{node.name}' with {name} {_word(found)}; it was set to {_word(value)}, "
            "which the file asks for."
        )


def _word(value: Any) -> str:
    return str(getattr(value, "name", value))


def _sampling(node: memoryview) -> Sampling:
    given = {_text(attribute, _ATTRIBUTE_NAME): attribute for attribute in _fields(node, _ATTRIBUTE)}
    name = _text(node, _NODE_NAME)
    mode = _text(given["mode"], _STRING) if "mode" in given else "linear"
    padding = _text(given["padding_mode"], _STRING) if "padding_mode" in given else "zeros"
    if mode not in _MODES or padding not in _PADDINGS:
        raise EngineError(
            f"The GridSample '{name}' has the mode {mode!r} and the padding {padding!r}; known are "
            f"{', '.join(_MODES)}, and {', '.join(_PADDINGS)}. Give a file that `vae-edge export` wrote."
        )
    corners = "align_corners" in given and next(iter(_numbers(given["align_corners"], _INTEGER)), 0) != 0
    return Sampling(name, _MODES[mode], _PADDINGS[padding], corners)


def _text(message: memoryview, number: int) -> str:
    return next((bytes(value).decode("utf-8", "replace") for value in _fields(message, number)), "")


def _fields(message: bytes | memoryview, number: int) -> Iterator[memoryview]:
    """The values of a field of texts, bytes or messages."""
    return (value for field, value in _parse(memoryview(message)) if field == number and not isinstance(value, int))


def _numbers(message: memoryview, number: int) -> Iterator[int]:
    """The values of a field of whole numbers."""
    return (value for field, value in _parse(message) if field == number and isinstance(value, int))


def _parse(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a Protocol Buffers message: number, and whole number or bytes (of fixed width or counted)."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            size, place = _varint(message, place)
        if not 0 <= size <= len(message) - place:
            raise EngineError("The ONNX file is damaged or cut short: export it again.")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise EngineError("The ONNX file is damaged or cut short: export it again.")
