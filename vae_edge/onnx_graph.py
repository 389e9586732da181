"""An ONNX file read without the package onnx: its operators, the shapes of its tensors, and small constants.

Strict where Protocol Buffers are lenient, so that no engine can read the bytes in another way than this reader: a field
of the wrong kind is refused, and so is one that may occur once and occurs twice. So is what no exporter of ours writes:
graphs inside nodes, functions, sparse and external tensors. `vae_edge.onnx_shapes` checks the shapes.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), the wire format is that
of https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_edge.errors import BundleError
from vae_edge.spec import MAX_MODEL_BYTES, MAX_NODES, MAX_RANK, MAX_TENSORS

TYPE_BYTES = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 17: 1, 18: 1, 19: 1, 20: 1,
}  # fmt: skip
"""Bytes of an element by TensorProto.DataType: numbers and bool; no strings, complex or 4-bit numbers."""
MAX_CONSTANT_ELEMENTS = 1024
"""The values of constants up to this size are kept: shapes, axes, pads."""

_NUMPY_DTYPE = {1: "<f4", 6: "<i4", 7: "<i8", 11: "<f8"}
_TYPED_DATA = {4: "float_data", 5: "int32_data", 7: "int64_data", 10: "double_data", 11: "uint64_data"}
_FIXED_WIDTH = {4: 4, 10: 8}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ATTRIBUTE_TYPE = {2: 1, 3: 2, 4: 3, 5: 4, 7: 6, 8: 7}
"""AttributeProto.AttributeType by the field that holds the value."""
_UNSUPPORTED_ATTRIBUTES = {
    6: "a graph inside a node",
    9: "a list of texts",
    10: "a list of tensors",
    11: "graphs inside a node",
    14: "a type",
    15: "types",
    21: "a reference to a function's attribute",
    22: "a sparse tensor",
    23: "sparse tensors",
}


@dataclass(frozen=True)
class Tensor:
    """A stored tensor. `values`, float64 or int64, are kept of small tensors of int32, int64, float and double."""

    name: str
    shape: tuple[int, ...]
    values: np.ndarray | None


@dataclass(frozen=True)
class Node:
    """An operator of ONNX's own domain. Attributes are int, float, str, lists of numbers, or a `Tensor`."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"the node {self.name!r} ({self.operator})" if self.name else f"a node {self.operator}"


@dataclass(frozen=True)
class Graph:
    """The graph of an ONNX file. A dimension of an input that is not fixed is None."""

    nodes: list[Node]
    tensors: dict[str, Tensor]
    inputs: dict[str, tuple[int | None, ...]]
    outputs: tuple[str, ...]


class ModelRefused(BundleError):
    """An ONNX file that is given to no engine; `reason` is a clause that says why."""

    def __init__(self, name: str, reason: object) -> None:
        """`name` is what the message calls the file."""
        super().__init__(f"{name} is not a model that is loaded here: {reason}; export it again (see docs/limits.md).")
        self.reason = str(reason)


class _Malformed(Exception):
    """Why the bytes are refused."""


def read_graph(content: bytes, name: str) -> Graph:
    """The graph in the bytes of an ONNX file; `name` is what a message calls the file.

    Raises:
        ModelRefused: the bytes are no ONNX model, hold what this reader refuses, or more than `vae_edge.spec` allow.
    """
    try:
        if len(content) > MAX_MODEL_BYTES:
            raise _Malformed(f"it has {len(content)} bytes; at most {MAX_MODEL_BYTES} may be")
        return _model(memoryview(content))
    except (_Malformed, UnicodeDecodeError, struct.error, OverflowError) as error:
        raise ModelRefused(name, error) from error


def _model(content: memoryview) -> Graph:
    graph: memoryview | None = None
    for number, kind, value in _fields(content):
        if number == 7:
            graph = _once(graph, _bytes(value, kind, "the graph"), "the graph")
        elif number in (8, 14):  # operator sets, metadata
            _check_texts(_bytes(value, kind, "a pair"))
        elif number in (20, 25):
            raise _Malformed("it holds " + ("functions of its own" if number == 25 else "instructions for training"))
    if graph is None:
        raise _Malformed("it holds no graph")
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    inputs: dict[str, tuple[int | None, ...]] = {}
    outputs: list[str] = []
    for number, kind, value in _fields(graph):
        if number == 1:
            nodes.append(_node(_bytes(value, kind, "a node")))
            if len(nodes) > MAX_NODES:
                raise _Malformed(f"it has more than {MAX_NODES} nodes")
        elif number == 5:
            tensor = _tensor(_bytes(value, kind, "a tensor"))
            if tensor.name in tensors or len(tensors) > MAX_TENSORS:
                raise _Malformed(f"the tensor {tensor.name!r} occurs twice, or there are more than {MAX_TENSORS}")
            tensors[tensor.name] = tensor
        elif number == 11:
            given, shape = _value(_bytes(value, kind, "an input"), "input")
            if given in inputs:
                raise _Malformed(f"the input {given!r} occurs twice")
            inputs[given] = shape
        elif number == 12:
            outputs.append(_value(_bytes(value, kind, "an output"), "output")[0])
        elif number == 15:
            raise _Malformed("it holds sparse tensors")
    return Graph(nodes, tensors, inputs, tuple(outputs))


def _node(content: memoryview) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    words: dict[int, str] = {}
    attributes: dict[str, Any] = {}
    for number, kind, value in _fields(content):
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(_text(value, kind))
        elif number in (3, 4, 7, 8):
            words[number] = _once(words.get(number), _text(value, kind), "a node's name, operator or domain")
        elif number == 5:
            given, what = _attribute(_bytes(value, kind, "an attribute"))
            if given in attributes:
                raise _Malformed(f"the attribute {given!r} of a node occurs twice")
            attributes[given] = what
    if words.get(7, "") not in ("", "ai.onnx") or words.get(8):
        raise _Malformed(f"its operator {words.get(4, '')!r} is of the domain {words.get(7, '')!r}, not ONNX's own")
    return Node(words.get(3, ""), words.get(4, ""), tuple(inputs), tuple(outputs), attributes)


def _attribute(content: memoryview) -> tuple[str, Any]:
    name: str | None = None
    stated: int | None = None
    found: dict[int, Any] = {}
    for number, kind, value in _fields(content):
        if number == 1:
            name = _once(name, _text(value, kind), "an attribute's name")
        elif number in (2, 3, 4, 5):
            found[number] = _once(found.get(number), _attribute_value(number, kind, value), "an attribute's value")
        elif number == 7:
            found.setdefault(number, []).extend(_packed_floats(kind, value))
        elif number == 8:
            found.setdefault(number, []).extend(_signed(one) for one in _packed_integers(kind, value))
        elif number == 20:
            stated = _once(stated, value, "an attribute's type")
        elif number in _UNSUPPORTED_ATTRIBUTES:
            raise _Malformed(f"it holds {_UNSUPPORTED_ATTRIBUTES[number]} (attribute {name!r})")
    if not found and stated in (_ATTRIBUTE_TYPE[7], _ATTRIBUTE_TYPE[8]):
        return name or "", []
    if len(found) != 1 or stated not in (None, *(_ATTRIBUTE_TYPE[number] for number in found)):
        raise _Malformed(f"the attribute {name!r} holds no value of its type, or several")
    (value,) = found.values()
    if isinstance(value, list) and len(value) > MAX_TENSORS:
        raise _Malformed(f"the attribute {name!r} is a list of more than {MAX_TENSORS} numbers")
    return name or "", value


def _attribute_value(number: int, kind: int, value: Any) -> Any:
    if number == 2:
        _is(kind, _FIXED32)
        return struct.unpack("<f", value)[0]
    if number == 3:
        _is(kind, _VARINT)
        return _signed(value)
    content = _bytes(value, kind, "an attribute's value")
    return bytes(content).decode("utf-8", "replace") if number == 4 else _tensor(content)


def _tensor(content: memoryview) -> Tensor:
    shape: list[int] = []
    single: dict[int, Any] = {}
    typed: dict[int, list[memoryview | int]] = {}
    for number, kind, value in _fields(content):
        if number == 1:
            shape += [_signed(one) for one in _packed_integers(kind, value)]
        elif number in (2, 8, 9):
            one = value if number == 2 else _bytes(value, kind, "a tensor's field")
            if number == 2:
                _is(kind, _VARINT)
            single[number] = _once(single.get(number), one, "a tensor's type, name or data")
        elif number == 13 or (number == 14 and value):
            raise _Malformed(
                "the values of a tensor lie outside the file (external data), where no checksum covers them"
            )
        elif number in _TYPED_DATA:
            typed.setdefault(number, []).append(value if kind == _BYTES else _single(number, kind, value))
        elif number in (3, 6):
            raise _Malformed("a tensor holds text, or is a segment of another one")
        if len(shape) > MAX_RANK:
            raise _Malformed(f"a tensor has more than {MAX_RANK} dimensions")
    name, kind = bytes(single.get(8, b"")).decode("utf-8"), single.get(2, 0)
    if kind not in TYPE_BYTES or any(side < 0 for side in shape):
        raise _Malformed(f"the tensor {name!r} is of type {kind} and shape {shape}")
    elements = math.prod(shape)
    stored = _stored(single.get(9), typed, kind, name)
    if stored != elements:
        raise _Malformed(f"the tensor {name!r} promises {elements} elements, but holds {stored}")
    return Tensor(name, tuple(shape), _small_values(single.get(9), typed, kind, elements, tuple(shape)))


def _single(number: int, kind: int, value: Any) -> Any:
    """One element outside a packed list."""
    _is(kind, {4: _FIXED32, 10: _FIXED64}.get(number, _VARINT))
    return value


def _stored(raw: memoryview | None, typed: dict[int, list[Any]], kind: int, name: str) -> int:
    """How many elements a tensor stores."""
    if (raw is not None) + len(typed) > 1:
        raise _Malformed(f"the tensor {name!r} holds its values twice")
    if raw is not None:
        return len(raw) // TYPE_BYTES[kind] if len(raw) % TYPE_BYTES[kind] == 0 else -1
    count = 0
    for number, parts in typed.items():
        for part in parts:
            if isinstance(part, int) or number not in _FIXED_WIDTH:
                packed = isinstance(part, memoryview)
                count += int((np.frombuffer(part, np.uint8) < 0x80).sum()) if packed else 1
            else:
                count += len(part) // _FIXED_WIDTH[number]
    return count


def _small_values(
    raw: memoryview | None, typed: dict[int, list[Any]], kind: int, elements: int, shape: tuple[int, ...]
) -> np.ndarray | None:
    if elements > MAX_CONSTANT_ELEMENTS or kind not in _NUMPY_DTYPE:
        return None
    if raw is not None:
        values = np.frombuffer(raw, _NUMPY_DTYPE[kind])
    elif typed:
        ((number, parts),) = typed.items()
        if number in _FIXED_WIDTH:
            values = np.frombuffer(b"".join(parts), "<f4" if number == 4 else "<f8")
        else:
            numbers = [
                one for part in parts for one in ([part] if isinstance(part, int) else _packed_integers(_BYTES, part))
            ]
            values = np.array([_signed(one) for one in numbers], np.int64)
    else:
        values = np.empty(0)
    return values.astype(np.float64 if kind in (1, 11) else np.int64).reshape(shape)


def _check_texts(content: memoryview) -> None:
    """Refuse a pair of texts, or of a text and a number, that is not Unicode."""
    for _, kind, value in _fields(content):
        if kind == _BYTES:
            _text(value, kind)


def _value(content: memoryview, what: str) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of a ValueInfoProto: its type (2) is a tensor (1), whose shape (2) has dimensions (1)."""
    name = _value_name(content)
    message = content
    for path in (2, 1, 2):
        inner: memoryview | None = None
        for number, kind, value in _fields(message):
            if number == path:
                inner = _once(inner, _bytes(value, kind, "a type"), f"the type of an {what}")
        if inner is None:
            raise _Malformed(f"the {what} {name!r} is no tensor of known rank")
        message = inner
    shape: list[int | None] = []
    for number, kind, value in _fields(message):
        if number != 1:
            continue
        side: int | None = None
        for part, wire, given in _fields(_bytes(value, kind, "a dimension")):
            if part == 1:
                _is(wire, _VARINT)
                side = _once(side, _signed(given), "a dimension")
            elif part == 2:
                _text(given, wire)
        shape.append(side)
        if len(shape) > MAX_RANK:
            raise _Malformed(f"the {what} {name!r} has more than {MAX_RANK} dimensions")
    return name, tuple(shape)


def _value_name(content: memoryview) -> str:
    name: str | None = None
    for number, kind, value in _fields(content):
        if number == 1:
            name = _once(name, _text(value, kind), "a value's name")
    return name or ""


def _fields(content: memoryview) -> Iterator[tuple[int, int, Any]]:
    """The fields of a message: number, wire type, and value, which is an int or the bytes."""
    at, end = 0, len(content)
    while at < end:
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise _Malformed("its bytes are no Protocol Buffers")
        if length > end - at or not number:
            raise _Malformed("it is cut short, or its bytes are no Protocol Buffers")
        yield number, kind, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise _Malformed("it is cut short, or its bytes are no Protocol Buffers")
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number & (2**64 - 1), at
        shift += 7


def _packed_integers(kind: int, value: Any) -> list[int]:
    if kind == _VARINT:
        return [value]
    content, numbers, at = _bytes(value, kind, "a list of numbers"), [], 0
    while at < len(content):
        number, at = _varint(content, at)
        numbers.append(number)
    return numbers


def _packed_floats(kind: int, value: Any) -> list[float]:
    if kind not in (_BYTES, _FIXED32) or len(value) % 4:
        raise _Malformed("a list of numbers is damaged")
    return [float(one) for one in np.frombuffer(value, "<f4")]


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _once(before: Any, now: Any, what: str) -> Any:
    if before is not None:
        raise _Malformed(f"{what} occurs twice")
    return now


def _is(kind: int, wanted: int) -> None:
    if kind != wanted:
        raise _Malformed("a field has the wrong kind of value")


def _bytes(value: Any, kind: int, what: str) -> memoryview:
    if kind != _BYTES:
        raise _Malformed(f"{what} has the wrong kind of value")
    return value


def _text(value: Any, kind: int) -> str:
    return bytes(_bytes(value, kind, "a text")).decode("utf-8")
