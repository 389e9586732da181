"""Whether an ONNX graph can be run in bounded memory and time: the shape of every tensor, before an engine sees it.

Shapes are inferred by the rules of the ONNX operators (https://onnx.ai/onnx/operators). Sizes are kept as
`fixed + per_image * batch`, so that what grows with the square of the batch is refused too. Small constants are carried
along where shapes are computed of them. Operators without a rule here are refused: loops, conditions, random
numbers, whatever makes a shape of the pixels' values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vae_edge.limits import MAX_ELEMENTS, MAX_OPERATIONS, MAX_TOTAL_ELEMENTS
from vae_edge.onnx_graph import SMALL, Graph, ModelRefused, Node, Tensor, read_graph

_LARGEST_INT = 2**63


class _Refused(Exception):
    """Why a node is refused."""


@dataclass(frozen=True)
class Size:
    """A number of elements: `fixed + per_image * batch`, with `per_image` above 0."""

    fixed: int
    per_image: int

    def __add__(self, other: Any) -> Any:
        return _size(self.fixed + _fixed(other), self.per_image + _per_image(other))

    def __sub__(self, other: Any) -> Any:
        return _size(self.fixed - _fixed(other), self.per_image - _per_image(other))

    def __rsub__(self, other: Any) -> Any:
        return _size(_fixed(other) - self.fixed, -self.per_image)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Size):
            raise _Refused("it grows with the square of the number of images")
        return _size(self.fixed * _integer(other), self.per_image * _integer(other))

    __radd__, __rmul__ = __add__, __mul__


Side = Any  # int | Size
Shape = tuple[Side, ...]


@dataclass(frozen=True)
class Form:
    """What is known of a tensor: its shape, and the values (int, float or Size) of a small constant."""

    shape: Shape
    values: np.ndarray | None = None


@dataclass
class Totals:
    """What a graph takes for one image."""

    elements: int = 0
    operations: int = 0
    shapes: dict[str, Shape] = field(default_factory=dict)


def check_model(content: bytes, name: str) -> Totals:
    """Check that the ONNX file with these bytes can be run within `vae_edge.limits`; `name` is what a message calls it.

    Raises:
        ModelRefused: the file is no ONNX model, uses an operator that is not known here, or takes more.
    """
    return check_graph(read_graph(content, name), name)


def check_graph(graph: Graph, name: str) -> Totals:
    """As `check_model`, of a graph that was read."""
    totals = Totals()
    try:
        return _check(graph, totals)
    except _Refused as error:
        raise ModelRefused(name, error) from error


def _check(graph: Graph, totals: Totals) -> Totals:
    forms: dict[str, Form] = {"": Form(())}
    for tensor in graph.tensors.values():  # all that they promise is in the file, whose size is bounded
        forms[tensor.name] = _of_tensor(tensor)
        totals.shapes[tensor.name] = tensor.shape
    for name, shape in graph.inputs.items():
        if name not in forms:  # else an initializer that may be overridden
            _keep(forms, name, Form(_of_input(name, shape)), totals)
    for node in graph.nodes:
        rule = _RULES.get(node.operator)
        if rule is None:
            raise _Refused(f"{node.title}: this operator is not known here")
        missing = [given for given in node.inputs if given not in forms]
        if missing:
            raise _Refused(f"{node.title} takes {missing[0]!r}, which nothing before it gives")
        given = _Given(node, [forms[one] for one in node.inputs])
        try:
            made = rule(given)
        except (IndexError, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError, AttributeError) as error:
            raise _Refused(f"{node.title} has inputs or attributes that do not fit ({error})") from error
        except _Refused as error:
            raise _Refused(f"{node.title}: {error}") from error
        if len(node.outputs) > len(made):
            raise _Refused(f"{node.title} has {len(node.outputs)} outputs, where {len(made)} are known")
        for out, form in zip(node.outputs, made, strict=False):
            if out in forms and out:
                raise _Refused(f"two nodes give {out!r}")
            if out:
                _keep(forms, out, form, totals)
        totals.operations += _for_one(given.operations or _largest(made))
        if totals.operations > MAX_OPERATIONS:
            raise _Refused(f"{node.title}: one image takes more than {MAX_OPERATIONS:.2g} operations up to here")
    absent = [out for out in graph.outputs if out not in forms]
    if absent:
        raise _Refused(f"nothing gives its output {absent[0]!r}")
    return totals


def _keep(forms: dict[str, Form], name: str, form: Form, totals: Totals) -> None:
    """Remember a tensor, after its size was found to be bearable."""
    for side in form.shape:
        if _fixed(side) < 0 or _per_image(side) < 0:
            raise _Refused(f"the tensor {name!r} has a negative side: {_words(form.shape)}")
    count = _for_one(elements(form.shape))
    totals.elements += count
    if count > MAX_ELEMENTS:
        raise _Refused(
            f"the tensor {name!r} of {_words(form.shape)} has {count} elements; at most {MAX_ELEMENTS} may be"
        )
    if totals.elements > MAX_TOTAL_ELEMENTS:
        raise _Refused(f"its tensors together have more than {MAX_TOTAL_ELEMENTS} elements")
    forms[name] = form
    totals.shapes[name] = form.shape


def _of_tensor(tensor: Tensor) -> Form:
    return Form(tensor.shape, None if tensor.values is None else _objects(tensor.values))


def _of_input(name: str, shape: tuple[int | None, ...]) -> Shape:
    sides = [Size(0, 1) if k == 0 and side is None else side for k, side in enumerate(shape)]
    if any(side is None for side in sides):
        raise _Refused(f"the input {name!r} has a side behind the batch that is not fixed")
    return tuple(sides)


# Sizes


def elements(shape: Sequence[Side]) -> Side:
    """How many elements a shape has."""
    total: Side = 1
    for side in shape:
        total = side * total if isinstance(side, Size) else total * side
    return total


def _fixed(value: Any) -> int:
    return value.fixed if isinstance(value, Size) else _integer(value)


def _per_image(value: Any) -> int:
    return value.per_image if isinstance(value, Size) else 0


def _for_one(value: Side) -> int:
    return _fixed(value) + _per_image(value)


def _integer(value: Any) -> int:
    if isinstance(value, (bool, Size)) or value != int(value) or not -_LARGEST_INT <= value < _LARGEST_INT:
        raise _Refused(f"{str(value)[:40]} is no size")
    return int(value)


def _size(fixed: int, per_image: int) -> Side:
    if abs(fixed) + abs(per_image) >= _LARGEST_INT:
        raise _Refused("a size is beyond 64 bits")
    return Size(fixed, per_image) if per_image else fixed


def _words(shape: Shape) -> str:
    words = [str(side) if not isinstance(side, Size) else f"{side.per_image}·N+{side.fixed}" for side in shape]
    return f"[{', '.join(words)}]"[:120]


def _largest(forms: Sequence[Form]) -> Side:
    return max((elements(form.shape) for form in forms), key=_for_one, default=0)


def _objects(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return _array(array.ravel().tolist(), array.shape)


@dataclass
class _Given:
    """A node with the forms of its inputs."""

    node: Node
    forms: list[Form]
    operations: Side = 0

    def __getitem__(self, index: int) -> Shape:
        return self.forms[index].shape

    def has(self, index: int) -> bool:
        return index < len(self.forms) and self.node.inputs[index] != ""

    def integer(self, name: str, usual: int) -> int:
        value = self.node.attributes.get(name, usual)
        if not isinstance(value, int):
            raise _Refused(f"its attribute {name} is no whole number")
        return value

    def flag(self, name: str, usual: int) -> bool:
        value = self.integer(name, usual)
        if value not in (0, 1):
            raise _Refused(f"its attribute {name} is {value}, neither 0 nor 1")
        return bool(value)

    def integers(self, name: str, usual: Sequence[int] | None) -> list[int] | None:
        value = self.node.attributes.get(name)
        if value is None:
            return None if usual is None else list(usual)
        if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
            raise _Refused(f"its attribute {name} is no list of whole numbers")
        return value

    def text(self, name: str, usual: str) -> str:
        value = self.node.attributes.get(name, usual)
        if not isinstance(value, str):
            raise _Refused(f"its attribute {name} is no text")
        return value

    def constant(self, index: int) -> list[Any]:
        """The values of an input, as a flat list."""
        values = self.forms[index].values
        if values is None:
            raise _Refused("it makes a shape of values that are not constant, or are many")
        return list(values.ravel())

    def axes(self, rank: int, index: int = 1, name: str = "axes") -> list[int] | None:
        """Axes from an attribute or an input, each from 0 on; None where there are none."""
        found = self.integers(name, None)
        if found is None and self.has(index):
            found = [_integer(one) for one in self.constant(index)]
        return None if found is None else [_axis(one, rank) for one in found]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise _Refused(f"axis {axis} of {rank} dimensions")
    return axis % rank


Rule = Callable[[_Given], list[Form]]


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(len(shape) for shape in shapes)
    result: list[Side] = []
    for place in range(-rank, 0):
        sides = {shape[place] for shape in shapes if len(shape) >= -place} - {1}
        if len(sides) > 1:
            raise _Refused(f"{' and '.join(map(_words, shapes[:3]))} do not broadcast")
        result.append(sides.pop() if sides else 1)
    return tuple(result)


def _same(given: _Given) -> list[Form]:
    return [Form(given[0])] * 3


def _kept(given: _Given) -> list[Form]:
    return [given.forms[0]]


def _cast(given: _Given) -> list[Form]:
    values = given.forms[0].values
    to = given.integer("to", 1)
    if values is None or to not in (1, 6, 7, 11):
        return [Form(given[0])]
    whole = [one if isinstance(one, Size) or to in (1, 11) else int(one) for one in values.ravel()]
    return [Form(given[0], _array(whole, values.shape))]


def _array(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array.reshape(tuple(shape))


def _elementwise(compute: Callable[[Any, Any], Any] | None = None) -> Rule:
    def rule(given: _Given) -> list[Form]:
        shape = _broadcast([form.shape for form in given.forms])
        known = [form.values for form in given.forms if form.values is not None]
        if compute is None or len(known) != len(given.forms) or len(known) != 2 or _for_one(elements(shape)) > SMALL:
            return [Form(shape)]
        first, second = np.broadcast_arrays(*known)
        try:
            made = [compute(a, b) for a, b in zip(first.ravel(), second.ravel(), strict=True)]
        except (_Refused, TypeError, ZeroDivisionError, OverflowError):
            return [Form(shape)]  # no constant then: refused where a shape is made of it
        if any(isinstance(one, int) and abs(one) >= _LARGEST_INT for one in made):
            return [Form(shape)]
        return [Form(shape, _array(made, shape))]

    return rule


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a / b


def _reduce(given: _Given) -> list[Form]:
    shape = given[0]
    given.operations = elements(shape)
    axes, keep = given.axes(len(shape)), given.flag("keepdims", 1)
    if not axes:
        if given.flag("noop_with_empty_axes", 0):
            return [Form(shape)]
        axes = list(range(len(shape)))
    sides = [1 if k in axes else side for k, side in enumerate(shape) if keep or k not in axes]
    return [Form(tuple(sides))]


def _arg(given: _Given) -> list[Form]:
    shape, keep = given[0], given.flag("keepdims", 1)
    given.operations = elements(shape)
    axis = _axis(given.integer("axis", 0), len(shape))
    return [Form(tuple(1 if k == axis else side for k, side in enumerate(shape) if keep or k != axis))]


def _shape_of(given: _Given) -> list[Form]:
    rank = len(given[0])
    sides = given[0][slice(given.integer("start", 0), given.integer("end", rank))]
    return [Form((len(sides),), _array(sides, (len(sides),)))]


def _size_of(given: _Given) -> list[Form]:
    return [Form((), _array([elements(given[0])], ()))]


def _constant(given: _Given) -> list[Form]:
    (value,) = given.node.attributes.values()
    if isinstance(value, Tensor):
        return [_of_tensor(value)]
    if isinstance(value, str):
        raise _Refused("it is a text")
    return [Form(np.shape(value), _objects(value) if np.size(value) <= SMALL else None)]


def _filled(given: _Given) -> list[Form]:
    shape = _target(given.constant(0))
    value = given.node.attributes.get("value")
    one: Any = 0.0 if value is None else None
    if isinstance(value, Tensor) and value.values is not None:
        one = value.values.ravel()[0].item()
    count = elements(shape)
    if one is None or isinstance(count, Size) or count > SMALL:
        return [Form(shape)]
    return [Form(shape, _array([one] * count, shape))]


def _target(values: Sequence[Any]) -> Shape:
    return tuple(value if isinstance(value, Size) else _integer(value) for value in values)


def _reshape(given: _Given) -> list[Form]:
    wanted = list(_target(given.constant(1)))
    if not given.flag("allowzero", 0):
        wanted = [given[0][k] if side == 0 else side for k, side in enumerate(wanted)]
    total = elements(given[0])
    if -1 in wanted:
        place = wanted.index(-1)
        others = elements([*wanted[:place], *wanted[place + 1 :]])
        wanted[place] = _quotient(total, others)
    if elements(wanted) != total:
        raise _Refused(f"{_words(given[0])} cannot be {_words(tuple(wanted))}")
    values = given.forms[0].values
    fits = values is not None and all(isinstance(side, int) for side in wanted)
    return [Form(tuple(wanted), values.reshape(wanted) if values is not None and fits else None)]


def _quotient(total: Side, by: Side) -> Side:
    """The whole number of times that one size goes into another."""
    for number in {_per_image(total) // (_per_image(by) or 1), _fixed(total) // (_fixed(by) or 1)}:
        if by * number == total:
            return number
    whole = isinstance(by, int) and by > 0 and isinstance(total, Size)
    if whole and not (total.fixed % by or total.per_image % by):
        return _size(total.fixed // by, total.per_image // by)
    raise _Refused("what is left does not divide")


def _flatten(given: _Given) -> list[Form]:
    shape, axis = given[0], given.integer("axis", 1)
    axis = axis if axis == len(shape) else _axis(axis, len(shape) or 1)
    return [Form((elements(shape[:axis]), elements(shape[axis:])))]


def _squeeze(given: _Given) -> list[Form]:
    shape = given[0]
    axes = given.axes(len(shape))
    gone = [k for k, side in enumerate(shape) if side == 1] if axes is None else axes
    if any(shape[k] != 1 for k in gone):
        raise _Refused(f"it takes away a side of {_words(shape)} that is not 1")
    return [_reshaped(given.forms[0], tuple(side for k, side in enumerate(shape) if k not in gone))]


def _unsqueeze(given: _Given) -> list[Form]:
    rank = len(given[0]) + len(given.integers("axes", None) or (given.constant(1) if given.has(1) else []))
    axes, left = given.axes(rank) or [], list(given[0])
    if len(set(axes)) != rank - len(left):
        raise _Refused("its axes stand twice")
    return [_reshaped(given.forms[0], tuple(1 if k in axes else left.pop(0) for k in range(rank)))]


def _reshaped(form: Form, shape: Shape) -> Form:
    """The same elements in another shape."""
    return Form(shape, None if form.values is None else form.values.reshape([_integer(side) for side in shape]))


def _transpose(given: _Given) -> list[Form]:
    shape, values = given[0], given.forms[0].values
    order = given.integers("perm", range(len(shape))[::-1]) or []
    if sorted(order) != list(range(len(shape))):
        raise _Refused(f"its order {order} is none of {len(shape)} dimensions")
    return [Form(tuple(shape[k] for k in order), None if values is None else values.transpose(order))]


def _concat(given: _Given) -> list[Form]:
    shapes = [form.shape for form in given.forms]
    axis = _axis(given.integer("axis", 0), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) != 1:
        raise _Refused("the sides of its inputs do not agree")
    along: Side = 0
    for shape in shapes:
        along = shape[axis] + along
    made = (*shapes[0][:axis], along, *shapes[0][axis + 1 :])
    known = [form.values for form in given.forms if form.values is not None]
    small = len(known) == len(shapes) and _for_one(elements(made)) <= SMALL
    return [Form(made, np.concatenate(known, axis) if small else None)]


def _slice(given: _Given) -> list[Form]:
    shape, values = given[0], given.forms[0].values
    starts, ends = (given.constant(k) for k in (1, 2))
    axes = given.axes(len(shape), 3) or list(range(len(starts)))
    steps = [_integer(one) for one in given.constant(4)] if given.has(4) else [1] * len(starts)
    sides = list(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if isinstance(shape[axis], Size):
            whole = start == 0 and step == 1 and not isinstance(end, Size) and _integer(end) >= 2**31 - 1
            if not whole and end != shape[axis]:
                raise _Refused("it cuts the batch")
            continue
        part = slice(_integer(start), _integer(end), step)
        if step < 0 and _integer(end) <= -shape[axis] - 1:
            part = slice(_integer(start), None, step)
        sides[axis] = len(range(shape[axis])[part])
        if values is not None:
            values = values[(slice(None),) * axis + (part,)]
    return [Form(tuple(sides), values)]


def _gather(given: _Given) -> list[Form]:
    shape, where = given[0], given[1]
    axis = _axis(given.integer("axis", 0), len(shape))
    made = (*shape[:axis], *where, *shape[axis + 1 :])
    values, chosen = given.forms[0].values, given.forms[1].values
    if values is None or chosen is None or _for_one(elements(made)) > SMALL:
        return [Form(made)]
    numbers = np.array([_integer(one) for one in chosen.ravel()], np.int64).reshape(chosen.shape)
    return [Form(made, _as_objects(np.take(values, numbers, axis)))]


def _as_objects(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else _array([value], ())


def _like_second(given: _Given) -> list[Form]:
    return [Form(given[1])]


def _split(given: _Given) -> list[Form]:
    shape = given[0]
    axis = _axis(given.integer("axis", 0), len(shape))
    parts = given.integers("split", None) or ([_integer(one) for one in given.constant(1)] if given.has(1) else None)
    count = len(given.node.outputs)
    if parts is None:
        each = -(-_integer(shape[axis]) // count)
        parts = [min(each, max(0, shape[axis] - k * each)) for k in range(count)]
    if sum(parts) != shape[axis] or min(parts) < 0:
        raise _Refused(f"its parts {parts[:8]} are not {shape[axis]}")
    return [Form((*shape[:axis], part, *shape[axis + 1 :])) for part in parts]


def _expand(given: _Given) -> list[Form]:
    shape = _broadcast([given[0], _target(given.constant(1))])
    values, count = given.forms[0].values, elements(shape)
    if values is None or isinstance(count, Size) or count > SMALL:
        return [Form(shape)]
    return [Form(shape, np.broadcast_to(values, shape))]


def _tile(given: _Given) -> list[Form]:
    repeats = given.constant(1)
    return [Form(tuple(_times(side, count) for side, count in zip(given[0], repeats, strict=True)))]


def _times(side: Side, count: Any) -> Side:
    return side * count if isinstance(side, Size) else count * side


def _pad(given: _Given) -> list[Form]:
    shape = list(given[0])
    pads = given.integers("pads", None) or [_integer(one) for one in given.constant(1)]
    axes = given.axes(len(shape), 3) or list(range(len(shape)))
    for k, axis in enumerate(axes):
        shape[axis] = shape[axis] + pads[k] + pads[k + len(axes)]
    return [Form(tuple(shape))]


def _resize(given: _Given) -> list[Form]:
    shape = given[0]
    axes = given.axes(len(shape), 99) or list(range(len(shape)))
    sides = list(shape)
    if given.has(3):
        for axis, wanted in zip(axes, given.constant(3), strict=True):
            sides[axis] = wanted if isinstance(wanted, Size) else _integer(wanted)
    else:
        for axis, scale in zip(axes, given.constant(2), strict=True):
            if not 0 < scale < _LARGEST_INT:
                raise _Refused(f"its scale {scale} is none")
            sides[axis] = shape[axis] if scale == 1 else math.floor(_integer(shape[axis]) * scale)
    given.operations = _times(elements(tuple(sides)), 16)
    return [Form(tuple(sides))]


def _range(given: _Given) -> list[Form]:
    start, limit, step = (given.constant(k)[0] for k in range(3))
    count = max(0, math.ceil((_number(limit) - _number(start)) / _number(step)))
    values = _objects(np.arange(count) * _number(step) + _number(start)) if count <= SMALL else None
    return [Form((count,), values)]


def _number(value: Any) -> float | int:
    if isinstance(value, Size):
        raise _Refused("it counts images")
    return value


def _one_hot(given: _Given) -> list[Form]:
    shape, depth = list(given[0]), _integer(given.constant(1)[0])
    axis = given.integer("axis", -1)
    shape.insert(_axis(axis, len(shape) + 1), depth)
    return [Form(tuple(shape))]


def _top_k(given: _Given) -> list[Form]:
    shape = list(given[0])
    shape[_axis(given.integer("axis", -1), len(shape))] = _integer(given.constant(1)[0])
    given.operations = _times(elements(given[0]), 32)
    return [Form(tuple(shape))] * 2


def _windows(given: _Given, kernel: Sequence[int]) -> list[int]:
    """How often a window of these sides fits, along each side of the image [N, C, ...]."""
    sides = [_integer(side) for side in given[0][2:]]
    count = len(sides)
    strides = given.integers("strides", [1] * count) or []
    dilations = given.integers("dilations", [1] * count) or []
    pads = given.integers("pads", [0] * 2 * count) or []
    automatic, ceil = given.text("auto_pad", "NOTSET"), given.flag("ceil_mode", 0)
    if len(kernel) != count or len(pads) != 2 * count or min([*strides, *dilations, *kernel], default=1) < 1:
        raise _Refused("its kernel, strides, pads or dilations do not fit")
    found = []
    for k, (side, stride, dilation) in enumerate(zip(sides, strides, dilations, strict=True)):
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            found.append(-(-side // stride))
            continue
        around = pads[k] + pads[k + count] if automatic == "NOTSET" else 0
        room = side + around - dilation * (kernel[k] - 1) - 1
        found.append((-(-room // stride) if ceil else room // stride) + 1)
    if any(one < 1 for one in found):
        raise _Refused("its window is larger than the image")
    return found


def _conv(given: _Given) -> list[Form]:
    image, weight = given[0], given[1]
    groups = given.integer("group", 1)
    if len(weight) != len(image) or groups < 1 or image[1] != weight[1] * groups:
        raise _Refused(f"a weight of {_words(weight)} in {groups} groups does not fit an image of {_words(image)}")
    made = (image[0], weight[0], *_windows(given, [_integer(side) for side in weight[2:]]))
    given.operations = _times(elements(made), _integer(elements(weight[1:])))
    return [Form(made)]


def _conv_transpose(given: _Given) -> list[Form]:
    image, weight = given[0], given[1]
    count, groups = len(image) - 2, given.integer("group", 1)
    if len(weight) != len(image) or groups < 1 or image[1] != weight[0]:
        raise _Refused(f"a weight of {_words(weight)} does not fit an image of {_words(image)}")
    strides = given.integers("strides", [1] * count) or []
    dilations = given.integers("dilations", [1] * count) or []
    pads = given.integers("pads", [0] * 2 * count) or []
    further = given.integers("output_padding", [0] * count) or []
    wanted = given.integers("output_shape", None)
    if given.text("auto_pad", "NOTSET") != "NOTSET" and wanted is None:
        raise _Refused("its auto_pad is not known here")
    sides = []
    for k in range(count):
        reach = dilations[k] * (_integer(weight[2 + k]) - 1) + 1
        side = strides[k] * (_integer(image[2 + k]) - 1) + further[k] + reach - pads[k] - pads[k + count]
        sides.append(side if wanted is None else wanted[k - count])
    given.operations = _times(elements(image), _integer(elements(weight[1:])))
    return [Form((image[0], weight[1] * groups, *sides))]


def _pool(given: _Given) -> list[Form]:
    kernel = given.integers("kernel_shape", None) or []
    made = (*given[0][:2], *_windows(given, kernel))
    given.operations = _times(elements(made), math.prod(kernel))
    return [Form(made)] * 2


def _global_pool(given: _Given) -> list[Form]:
    given.operations = elements(given[0])
    return [Form((*given[0][:2], *[1] * (len(given[0]) - 2)))]


def _matmul(given: _Given) -> list[Form]:
    a, b = given[0], given[1]
    first, second = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    if first[-1] != second[-2]:
        raise _Refused(f"{_words(a)} and {_words(b)} do not fit")
    made = (
        (*_broadcast([first[:-2], second[:-2]]), first[-2], second[-1])
        if len(first) + len(second) > 4
        else (
            first[-2],
            second[-1],
        )
    )
    given.operations = _times(elements(made), _integer(first[-1]))
    made = made[:-1] if len(b) == 1 else made
    return [Form((*made[:-2], *made[-1:]) if len(a) == 1 and len(b) > 1 else made[:-1] if len(a) == 1 else made)]


def _gemm(given: _Given) -> list[Form]:
    a, b = given[0], given[1]
    a = a[::-1] if given.flag("transA", 0) else a
    b = b[::-1] if given.flag("transB", 0) else b
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise _Refused(f"{_words(a)} and {_words(b)} do not fit")
    made = (a[0], b[1])
    if given.has(2) and _broadcast([made, given[2]]) != made:
        raise _Refused(f"what is added, {_words(given[2])}, does not fit {_words(made)}")
    given.operations = _times(elements(made), _integer(a[1]))
    return [Form(made)]


def _depth_to_space(given: _Given) -> list[Form]:
    n, channels, height, width = given[0]
    block = given.integer("blocksize", 0)
    if block < 1 or channels % (block * block):
        raise _Refused(f"{channels} channels are not blocks of {block}×{block}")
    return [Form((n, channels // block**2, height * block, width * block))]


def _space_to_depth(given: _Given) -> list[Form]:
    n, channels, height, width = given[0]
    block = given.integer("blocksize", 0)
    if block < 1 or height % block or width % block:
        raise _Refused(f"{height}×{width} are not blocks of {block}×{block}")
    return [Form((n, channels * block**2, height // block, width // block))]


def _grid_sample(given: _Given) -> list[Form]:
    image, grid = given[0], given[1]
    if len(grid) != len(image) or image[0] != grid[0] or grid[-1] != len(image) - 2:
        raise _Refused(f"a grid of {_words(grid)} does not fit an image of {_words(image)}")
    made = (*image[:2], *grid[1:-1])
    given.operations = _times(elements(made), 16)
    return [Form(made)]


def _affine_grid(given: _Given) -> list[Form]:
    wanted = _target(given.constant(1))
    return [Form((wanted[0], *wanted[2:], len(wanted) - 2))]


def _where(given: _Given) -> list[Form]:
    return [Form(_broadcast([form.shape for form in given.forms[:3]]))]


_ONE_TO_ONE = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitwiseNot", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "InstanceNormalization",
    "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "Mish", "Not", "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu",
    "Round", "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu",
)  # fmt: skip
_BROADCAST = (
    "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Or", "PRelu", "Pow", "Sum", "Xor",
)  # fmt: skip
_REDUCE = (
    "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
)  # fmt: skip

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ONE_TO_ONE, _same),
    **dict.fromkeys(_BROADCAST, _elementwise()),
    **{f"Reduce{name}": _reduce for name in _REDUCE},
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_divide),
    "Where": _where,
    "Neg": _same,
    "Identity": _kept,
    "Cast": _cast,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Shape": _shape_of,
    "Size": _size_of,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _like_second,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": _resize,
    "Range": _range,
    "OneHot": _one_hot,
    "TopK": _top_k,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
}
