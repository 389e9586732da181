"""Symbolic sizes and tensors for shape inference: `fixed + per_image * N` elements, N being the free batch.

Sizes are linear in N, so that a graph whose memory grows with the square of the batch is refused. Small constants are
carried along, since shapes are computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_edge.onnx_graph import MAX_CONSTANT_ELEMENTS, Node

INT_LIMIT = 2**63


class ShapeError(Exception):
    """Why a node or a tensor is refused, as a clause."""


@dataclass(frozen=True)
class Size:
    """A number of elements: `fixed + per_image * N`, with `per_image` above 0."""

    fixed: int
    per_image: int

    def __add__(self, other: Any) -> Any:
        return _make_size(self.fixed + fixed_part(other), self.per_image + per_image_part(other))

    def __sub__(self, other: Any) -> Any:
        return _make_size(self.fixed - fixed_part(other), self.per_image - per_image_part(other))

    def __rsub__(self, other: Any) -> Any:
        return _make_size(fixed_part(other) - self.fixed, -self.per_image)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Size):
            raise ShapeError("it grows with the square of the number of images")
        return _make_size(self.fixed * to_int(other), self.per_image * to_int(other))

    __radd__, __rmul__ = __add__, __mul__


Side = Any  # int | Size
Shape = tuple[Side, ...]


def _make_size(fixed: int, per_image: int) -> Side:
    if abs(fixed) + abs(per_image) >= INT_LIMIT:
        raise ShapeError("a size is beyond 64 bits")
    return Size(fixed, per_image) if per_image else fixed


def to_int(value: Any) -> int:
    """A fixed size as int; a `Size` or a fraction is refused."""
    if isinstance(value, (bool, Size)) or value != int(value) or not -INT_LIMIT <= value < INT_LIMIT:
        raise ShapeError(f"{str(value)[:40]} is no size")
    return int(value)


def to_number(value: Any) -> float | int:
    """A number that does not depend on the batch."""
    if isinstance(value, Size):
        raise ShapeError("it counts images")
    return value


def fixed_part(value: Any) -> int:
    """What a size has for a batch of 0."""
    return value.fixed if isinstance(value, Size) else to_int(value)


def per_image_part(value: Any) -> int:
    """What a size grows by with each image."""
    return value.per_image if isinstance(value, Size) else 0


def for_one_image(value: Side) -> int:
    """A size for a batch of 1."""
    return fixed_part(value) + per_image_part(value)


def times(side: Side, count: Any) -> Side:
    """Their product, also where only the second is a `Size`."""
    return side * count if isinstance(side, Size) else count * side


def quotient(total: Side, by: Side) -> Side:
    """`total / by` if it divides without a remainder."""
    for number in {per_image_part(total) // (per_image_part(by) or 1), fixed_part(total) // (fixed_part(by) or 1)}:
        if by * number == total:
            return number
    divisible = isinstance(by, int) and by > 0 and isinstance(total, Size)
    if divisible and not (total.fixed % by or total.per_image % by):
        return _make_size(total.fixed // by, total.per_image // by)
    raise ShapeError("what is left does not divide")


def elements(shape: Sequence[Side]) -> Side:
    """How many elements a shape has."""
    total: Side = 1
    for side in shape:
        total = side * total if isinstance(side, Size) else total * side
    return total


def is_small(shape: Shape) -> bool:
    """Whether a constant of this shape is carried along."""
    return for_one_image(elements(shape)) <= MAX_CONSTANT_ELEMENTS


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that ONNX (and NumPy) broadcast these to."""
    rank = max(len(shape) for shape in shapes)
    result: list[Side] = []
    for axis in range(-rank, 0):
        sides = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sides) > 1:
            raise ShapeError(f"{' and '.join(map(describe, shapes[:3]))} do not broadcast")
        result.append(sides.pop() if sides else 1)
    return tuple(result)


def to_shape(values: Sequence[Any]) -> Shape:
    """A shape from the values of a constant."""
    return tuple(value if isinstance(value, Size) else to_int(value) for value in values)


def to_axis(axis: int, rank: int) -> int:
    """An axis counted from 0 on."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} of {rank} dimensions")
    return axis % rank


def describe(shape: Shape) -> str:
    """A shape as messages write it: "[1·N+0, 28, 28]"."""
    sides = [str(side) if not isinstance(side, Size) else f"{side.per_image}·N+{side.fixed}" for side in shape]
    return f"[{', '.join(sides)}]"[:120]


# Tensors and the inputs of a node


@dataclass(frozen=True)
class SymbolicTensor:
    """What is known of a tensor: its shape, and the values (int, float or Size) of a small constant."""

    shape: Shape
    values: np.ndarray | None = None

    def reshaped(self, shape: Shape) -> SymbolicTensor:
        """The same elements in another shape of the same size."""
        return SymbolicTensor(shape, None if self.values is None else self.values.reshape([to_int(s) for s in shape]))


def object_array(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """An array of Python objects, which NumPy must not take apart or convert."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array.reshape(tuple(shape))


def constant_values(values: Any) -> np.ndarray:
    """A constant's numbers as Python int and float."""
    array = np.asarray(values)
    return object_array(array.ravel().tolist(), array.shape)


@dataclass
class NodeInputs:
    """A node with what is known of its inputs; its attributes are read with their type checked.

    Attributes:
        operations: multiplications and additions that the node takes; a shape rule sets it where these are not the
            elements of the output.
    """

    node: Node
    tensors: list[SymbolicTensor]
    operations: Side = 0

    def __getitem__(self, index: int) -> Shape:
        return self.tensors[index].shape

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.tensors) and self.node.inputs[index] != ""

    def integer(self, name: str, default: int) -> int:
        """An attribute of type int."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, int):
            raise ShapeError(f"its attribute {name} is no whole number")
        return value

    def flag(self, name: str, default: int) -> bool:
        """An attribute that is 0 or 1."""
        value = self.integer(name, default)
        if value not in (0, 1):
            raise ShapeError(f"its attribute {name} is {value}, neither 0 nor 1")
        return bool(value)

    def integers(self, name: str, default: Sequence[int] | None) -> list[int] | None:
        """An attribute that is a list of int."""
        value = self.node.attributes.get(name)
        if value is None:
            return None if default is None else list(default)
        if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
            raise ShapeError(f"its attribute {name} is no list of whole numbers")
        return value

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, str):
            raise ShapeError(f"its attribute {name} is no text")
        return value

    def constant(self, index: int) -> list[Any]:
        """The values of a constant input, as a flat list."""
        values = self.tensors[index].values
        if values is None:
            raise ShapeError("it makes a shape of values that are not constant, or are many")
        return list(values.ravel())

    def axes(self, rank: int, index: int = 1, name: str = "axes") -> list[int] | None:
        """Axes from an attribute or an input, each counted from 0 on; None where there are none."""
        axes = self.integers(name, None)
        if axes is None and self.has(index):
            axes = [to_int(one) for one in self.constant(index)]
        return None if axes is None else [to_axis(one, rank) for one in axes]
