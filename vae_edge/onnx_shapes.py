"""Whether an ONNX graph can be run in bounded memory and time: the shape of every tensor, before an engine sees it.

Shapes are inferred by the rules of the ONNX operators (https://onnx.ai/onnx/operators). Operators without a rule here
are refused: loops, conditions, random numbers, whatever makes a shape of the pixels' values.

ONNX's own shape inference is not used: devices have no package `onnx`, it leaves a shape open where it cannot tell
instead of refusing, and it bounds nothing. ONNX Runtime infers shapes only while it loads a model, when it has already
folded constants, which may themselves be huge.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vae_edge.onnx_graph import MAX_CONSTANT_ELEMENTS, Graph, ModelRefused, Node, Tensor, read_graph
from vae_edge.onnx_sizes import (
    INT_LIMIT,
    NodeInputs,
    Shape,
    ShapeError,
    Side,
    Size,
    SymbolicTensor,
    broadcast,
    constant_values,
    describe,
    elements,
    fixed_part,
    for_one_image,
    is_small,
    object_array,
    per_image_part,
    quotient,
    times,
    to_axis,
    to_int,
    to_number,
    to_shape,
)
from vae_edge.spec import MAX_ELEMENTS, MAX_OPERATIONS, MAX_TOTAL_ELEMENTS


@dataclass
class GraphCost:
    """What a graph takes for one image, and the shapes of its tensors."""

    elements: int = 0
    operations: int = 0
    shapes: dict[str, Shape] = field(default_factory=dict)


def check_model(content: bytes, name: str) -> GraphCost:
    """Check that the ONNX file with these bytes can be run within `vae_edge.spec`; `name` is what a message calls it.

    Raises:
        ModelRefused: the file is no ONNX model, uses an operator without a rule here, or takes more.
    """
    return check_graph(read_graph(content, name), name)


def check_graph(graph: Graph, name: str) -> GraphCost:
    """As `check_model`, for a graph that was read before."""
    cost = GraphCost()
    tensors: dict[str, SymbolicTensor] = {"": SymbolicTensor(())}
    try:
        for tensor in graph.tensors.values():  # all that they promise is in the file, whose size is bounded
            tensors[tensor.name] = _from_tensor(tensor)
            cost.shapes[tensor.name] = tensor.shape
        for given, shape in graph.inputs.items():
            if given not in tensors:  # else an initializer that may be overridden
                _add_tensor(tensors, given, SymbolicTensor(_input_shape(given, shape)), cost)
        for node in graph.nodes:
            _add_node(tensors, node, cost)
        absent = [out for out in graph.outputs if out not in tensors]
        if absent:
            raise ShapeError(f"no node makes its output {absent[0]!r}")
    except ShapeError as error:
        raise ModelRefused(name, error) from error
    return cost


def _from_tensor(tensor: Tensor) -> SymbolicTensor:
    return SymbolicTensor(tensor.shape, None if tensor.values is None else constant_values(tensor.values))


def _input_shape(name: str, shape: tuple[int | None, ...]) -> Shape:
    sides = [Size(0, 1) if axis == 0 and side is None else side for axis, side in enumerate(shape)]
    if any(side is None for side in sides):
        raise ShapeError(f"the input {name!r} has a side behind the batch that is not fixed")
    return tuple(sides)


def _add_node(tensors: dict[str, SymbolicTensor], node: Node, cost: GraphCost) -> None:
    """Infer the outputs of a node, and add what they and the node take."""
    rule = _RULES.get(node.operator)
    if rule is None:
        raise ShapeError(f"{node.title}: this operator is not known here")
    missing = [name for name in node.inputs if name not in tensors]
    if missing:
        raise ShapeError(f"{node.title} takes {missing[0]!r}, which no node before it makes")

    inputs = NodeInputs(node, [tensors[name] for name in node.inputs])
    try:
        outputs = rule(inputs)
    except (IndexError, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise ShapeError(f"{node.title} has inputs or attributes that do not fit ({error})") from error
    except ShapeError as error:
        raise ShapeError(f"{node.title}: {error}") from error

    if len(node.outputs) > len(outputs):
        raise ShapeError(f"{node.title} has {len(node.outputs)} outputs, where {len(outputs)} are known")
    for name, output in zip(node.outputs, outputs, strict=False):
        if name and name in tensors:
            raise ShapeError(f"two nodes make {name!r}")
        if name:
            _add_tensor(tensors, name, output, cost)
    largest = max((elements(output.shape) for output in outputs), key=for_one_image, default=0)
    cost.operations += for_one_image(inputs.operations or largest)
    if cost.operations > MAX_OPERATIONS:
        raise ShapeError(f"{node.title}: one image takes more than {MAX_OPERATIONS:.2g} operations up to here")


def _add_tensor(tensors: dict[str, SymbolicTensor], name: str, tensor: SymbolicTensor, cost: GraphCost) -> None:
    """Keep a tensor if its size is within the limits."""
    shape = tensor.shape
    for side in shape:
        if fixed_part(side) < 0 or per_image_part(side) < 0:
            raise ShapeError(f"the tensor {name!r} has a negative side: {describe(shape)}")
    count = for_one_image(elements(shape))
    cost.elements += count
    if count > MAX_ELEMENTS:
        raise ShapeError(
            f"the tensor {name!r} of {describe(shape)} has {count} elements; at most {MAX_ELEMENTS} may be"
        )
    if cost.elements > MAX_TOTAL_ELEMENTS:
        raise ShapeError(f"its tensors together have more than {MAX_TOTAL_ELEMENTS} elements")
    tensors[name] = tensor
    cost.shapes[name] = shape


# The rules. Each gives a node's outputs, and sets `operations` where these are not the elements of the outputs.

Rule = Callable[[NodeInputs], list[SymbolicTensor]]

# Elementwise


def _same(node: NodeInputs) -> list[SymbolicTensor]:
    return [SymbolicTensor(node[0])] * 3


def _identity(node: NodeInputs) -> list[SymbolicTensor]:
    return [node.tensors[0]]


def _cast(node: NodeInputs) -> list[SymbolicTensor]:
    values = node.tensors[0].values
    to = node.integer("to", 1)
    if values is None or to not in (1, 6, 7, 11):
        return [SymbolicTensor(node[0])]
    # 1 and 11 are float and double, 6 and 7 are int32 and int64
    cast = [one if isinstance(one, Size) or to in (1, 11) else int(one) for one in values.ravel()]
    return [SymbolicTensor(node[0], object_array(cast, values.shape))]


def _elementwise(compute: Callable[[Any, Any], Any] | None = None) -> Rule:
    """Operators that broadcast; `compute` is what two small constants give."""

    def rule(node: NodeInputs) -> list[SymbolicTensor]:
        shape = broadcast([tensor.shape for tensor in node.tensors])
        known = [tensor.values for tensor in node.tensors if tensor.values is not None]
        if compute is None or len(node.tensors) != 2 or len(known) != 2 or not is_small(shape):
            return [SymbolicTensor(shape)]
        first, second = np.broadcast_arrays(*known)
        try:
            values = [compute(a, b) for a, b in zip(first.ravel(), second.ravel(), strict=True)]
        except (ShapeError, TypeError, ZeroDivisionError, OverflowError):
            return [SymbolicTensor(shape)]  # no constant then: refused where a shape is made of it
        if any(isinstance(one, int) and abs(one) >= INT_LIMIT for one in values):
            return [SymbolicTensor(shape)]
        return [SymbolicTensor(shape, object_array(values, shape))]

    return rule


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a / b


# Reductions


def _reduce(node: NodeInputs) -> list[SymbolicTensor]:
    shape = node[0]
    node.operations = elements(shape)
    axes, keep = node.axes(len(shape)), node.flag("keepdims", 1)
    if not axes:
        if node.flag("noop_with_empty_axes", 0):
            return [SymbolicTensor(shape)]
        axes = list(range(len(shape)))
    sides = [1 if k in axes else side for k, side in enumerate(shape) if keep or k not in axes]
    return [SymbolicTensor(tuple(sides))]


def _arg_reduce(node: NodeInputs) -> list[SymbolicTensor]:
    shape, keep = node[0], node.flag("keepdims", 1)
    node.operations = elements(shape)
    axis = to_axis(node.integer("axis", 0), len(shape))
    return [SymbolicTensor(tuple(1 if k == axis else side for k, side in enumerate(shape) if keep or k != axis))]


# Shapes and constants


def _shape_of(node: NodeInputs) -> list[SymbolicTensor]:
    rank = len(node[0])
    sides = node[0][slice(node.integer("start", 0), node.integer("end", rank))]
    return [SymbolicTensor((len(sides),), object_array(sides, (len(sides),)))]


def _size_of(node: NodeInputs) -> list[SymbolicTensor]:
    return [SymbolicTensor((), object_array([elements(node[0])], ()))]


def _constant(node: NodeInputs) -> list[SymbolicTensor]:
    (value,) = node.node.attributes.values()
    if isinstance(value, Tensor):
        return [_from_tensor(value)]
    if isinstance(value, str):
        raise ShapeError("it is a text")
    small = np.size(value) <= MAX_CONSTANT_ELEMENTS
    return [SymbolicTensor(np.shape(value), constant_values(value) if small else None)]


def _constant_of_shape(node: NodeInputs) -> list[SymbolicTensor]:
    shape = to_shape(node.constant(0))
    value = node.node.attributes.get("value")
    one: Any = 0.0 if value is None else None
    if isinstance(value, Tensor) and value.values is not None:
        one = value.values.ravel()[0].item()
    count = elements(shape)
    if one is None or isinstance(count, Size) or count > MAX_CONSTANT_ELEMENTS:
        return [SymbolicTensor(shape)]
    return [SymbolicTensor(shape, object_array([one] * count, shape))]


# The same elements in another shape or order


def _reshape(node: NodeInputs) -> list[SymbolicTensor]:
    target = list(to_shape(node.constant(1)))
    if not node.flag("allowzero", 0):
        target = [node[0][k] if side == 0 else side for k, side in enumerate(target)]
    total = elements(node[0])
    if -1 in target:
        free = target.index(-1)
        others = elements([*target[:free], *target[free + 1 :]])
        target[free] = quotient(total, others)
    if elements(target) != total:
        raise ShapeError(f"{describe(node[0])} cannot be {describe(tuple(target))}")
    values = node.tensors[0].values
    fits = values is not None and all(isinstance(side, int) for side in target)
    return [SymbolicTensor(tuple(target), values.reshape(target) if values is not None and fits else None)]


def _flatten(node: NodeInputs) -> list[SymbolicTensor]:
    shape, axis = node[0], node.integer("axis", 1)
    axis = axis if axis == len(shape) else to_axis(axis, len(shape) or 1)
    return [SymbolicTensor((elements(shape[:axis]), elements(shape[axis:])))]


def _squeeze(node: NodeInputs) -> list[SymbolicTensor]:
    shape = node[0]
    axes = node.axes(len(shape))
    gone = [k for k, side in enumerate(shape) if side == 1] if axes is None else axes
    if any(shape[k] != 1 for k in gone):
        raise ShapeError(f"it takes away a side of {describe(shape)} that is not 1")
    return [node.tensors[0].reshaped(tuple(side for k, side in enumerate(shape) if k not in gone))]


def _unsqueeze(node: NodeInputs) -> list[SymbolicTensor]:
    rank = len(node[0]) + len(node.integers("axes", None) or (node.constant(1) if node.has(1) else []))
    axes, left = node.axes(rank) or [], list(node[0])
    if len(set(axes)) != rank - len(left):
        raise ShapeError("its axes are given twice")
    return [node.tensors[0].reshaped(tuple(1 if k in axes else left.pop(0) for k in range(rank)))]


def _transpose(node: NodeInputs) -> list[SymbolicTensor]:
    shape, values = node[0], node.tensors[0].values
    order = node.integers("perm", range(len(shape))[::-1]) or []
    if sorted(order) != list(range(len(shape))):
        raise ShapeError(f"its order {order} is none of {len(shape)} dimensions")
    return [SymbolicTensor(tuple(shape[k] for k in order), None if values is None else values.transpose(order))]


def _concat(node: NodeInputs) -> list[SymbolicTensor]:
    shapes = [tensor.shape for tensor in node.tensors]
    axis = to_axis(node.integer("axis", 0), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) != 1:
        raise ShapeError("the sides of its inputs do not agree")
    along: Side = 0
    for shape in shapes:
        along = shape[axis] + along
    output = (*shapes[0][:axis], along, *shapes[0][axis + 1 :])
    known = [tensor.values for tensor in node.tensors if tensor.values is not None]
    small = len(known) == len(shapes) and is_small(output)
    return [SymbolicTensor(output, np.concatenate(known, axis) if small else None)]


# Parts of a tensor, and tensors of its parts


def _slice(node: NodeInputs) -> list[SymbolicTensor]:
    shape, values = node[0], node.tensors[0].values
    starts, ends = (node.constant(k) for k in (1, 2))
    axes = node.axes(len(shape), 3) or list(range(len(starts)))
    steps = [to_int(one) for one in node.constant(4)] if node.has(4) else [1] * len(starts)
    sides = list(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if isinstance(shape[axis], Size):
            keeps_all = start == 0 and step == 1 and not isinstance(end, Size) and to_int(end) >= 2**31 - 1
            if not keeps_all and end != shape[axis]:
                raise ShapeError("it cuts the batch")
            continue
        part = slice(to_int(start), to_int(end), step)
        if step < 0 and to_int(end) <= -shape[axis] - 1:
            part = slice(to_int(start), None, step)
        sides[axis] = len(range(shape[axis])[part])
        if values is not None:
            values = values[(slice(None),) * axis + (part,)]
    return [SymbolicTensor(tuple(sides), values)]


def _gather(node: NodeInputs) -> list[SymbolicTensor]:
    shape, where = node[0], node[1]
    axis = to_axis(node.integer("axis", 0), len(shape))
    output = (*shape[:axis], *where, *shape[axis + 1 :])
    values, chosen = node.tensors[0].values, node.tensors[1].values
    if values is None or chosen is None or not is_small(output):
        return [SymbolicTensor(output)]
    indices = np.array([to_int(one) for one in chosen.ravel()], np.int64).reshape(chosen.shape)
    taken = np.take(values, indices, axis)
    return [SymbolicTensor(output, taken if isinstance(taken, np.ndarray) else object_array([taken], ()))]


def _same_as_second(node: NodeInputs) -> list[SymbolicTensor]:
    return [SymbolicTensor(node[1])]


def _split(node: NodeInputs) -> list[SymbolicTensor]:
    shape = node[0]
    axis = to_axis(node.integer("axis", 0), len(shape))
    parts = node.integers("split", None) or ([to_int(one) for one in node.constant(1)] if node.has(1) else None)
    count = len(node.node.outputs)
    if parts is None:
        each = -(-to_int(shape[axis]) // count)
        parts = [min(each, max(0, shape[axis] - k * each)) for k in range(count)]
    if sum(parts) != shape[axis] or min(parts) < 0:
        raise ShapeError(f"its parts {parts[:8]} are not {shape[axis]}")
    return [SymbolicTensor((*shape[:axis], part, *shape[axis + 1 :])) for part in parts]


def _expand(node: NodeInputs) -> list[SymbolicTensor]:
    shape = broadcast([node[0], to_shape(node.constant(1))])
    values, count = node.tensors[0].values, elements(shape)
    if values is None or isinstance(count, Size) or count > MAX_CONSTANT_ELEMENTS:
        return [SymbolicTensor(shape)]
    return [SymbolicTensor(shape, np.broadcast_to(values, shape))]


def _tile(node: NodeInputs) -> list[SymbolicTensor]:
    repeats = node.constant(1)
    return [SymbolicTensor(tuple(times(side, count) for side, count in zip(node[0], repeats, strict=True)))]


def _pad(node: NodeInputs) -> list[SymbolicTensor]:
    shape = list(node[0])
    pads = node.integers("pads", None) or [to_int(one) for one in node.constant(1)]
    axes = node.axes(len(shape), 3) or list(range(len(shape)))
    for k, axis in enumerate(axes):
        shape[axis] = shape[axis] + pads[k] + pads[k + len(axes)]
    return [SymbolicTensor(tuple(shape))]


def _resize(node: NodeInputs) -> list[SymbolicTensor]:
    shape = node[0]
    axes = node.axes(len(shape), 99) or list(range(len(shape)))
    sides = list(shape)
    if node.has(3):
        for axis, target in zip(axes, node.constant(3), strict=True):
            sides[axis] = target if isinstance(target, Size) else to_int(target)
    else:
        for axis, scale in zip(axes, node.constant(2), strict=True):
            if not 0 < scale < INT_LIMIT:
                raise ShapeError(f"its scale {scale} is none")
            sides[axis] = shape[axis] if scale == 1 else math.floor(to_int(shape[axis]) * scale)
    node.operations = times(elements(tuple(sides)), 16)
    return [SymbolicTensor(tuple(sides))]


def _range(node: NodeInputs) -> list[SymbolicTensor]:
    start, limit, step = (node.constant(k)[0] for k in range(3))
    count = max(0, math.ceil((to_number(limit) - to_number(start)) / to_number(step)))
    if count > MAX_CONSTANT_ELEMENTS:
        return [SymbolicTensor((count,))]
    return [SymbolicTensor((count,), constant_values(np.arange(count) * to_number(step) + to_number(start)))]


def _one_hot(node: NodeInputs) -> list[SymbolicTensor]:
    shape, depth = list(node[0]), to_int(node.constant(1)[0])
    axis = node.integer("axis", -1)
    shape.insert(to_axis(axis, len(shape) + 1), depth)
    return [SymbolicTensor(tuple(shape))]


def _top_k(node: NodeInputs) -> list[SymbolicTensor]:
    shape = list(node[0])
    shape[to_axis(node.integer("axis", -1), len(shape))] = to_int(node.constant(1)[0])
    node.operations = times(elements(node[0]), 32)
    return [SymbolicTensor(tuple(shape))] * 2


# Convolutions and pooling


def _output_sides(node: NodeInputs, kernel: Sequence[int]) -> list[int]:
    """The sides of the output of a window that moves over the image [N, C, ...].

    (side + pads - dilation * (kernel - 1) - 1) / stride + 1, rounded down, or up in ceil mode.
    """
    sides = [to_int(side) for side in node[0][2:]]
    count = len(sides)
    strides = node.integers("strides", [1] * count) or []
    dilations = node.integers("dilations", [1] * count) or []
    pads = node.integers("pads", [0] * 2 * count) or []
    automatic, ceil = node.text("auto_pad", "NOTSET"), node.flag("ceil_mode", 0)
    if len(kernel) != count or len(pads) != 2 * count or min([*strides, *dilations, *kernel], default=1) < 1:
        raise ShapeError("its kernel, strides, pads or dilations do not fit")
    outputs = []
    for k, (side, stride, dilation) in enumerate(zip(sides, strides, dilations, strict=True)):
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            outputs.append(-(-side // stride))
            continue
        padding = pads[k] + pads[k + count] if automatic == "NOTSET" else 0
        span = side + padding - dilation * (kernel[k] - 1) - 1
        outputs.append((-(-span // stride) if ceil else span // stride) + 1)
    if any(one < 1 for one in outputs):
        raise ShapeError("its window is larger than the image")
    return outputs


def _conv(node: NodeInputs) -> list[SymbolicTensor]:
    image, weight = node[0], node[1]
    groups = node.integer("group", 1)
    if len(weight) != len(image) or groups < 1 or image[1] != weight[1] * groups:
        raise ShapeError(
            f"a weight of {describe(weight)} in {groups} groups does not fit an image of {describe(image)}"
        )
    output = (image[0], weight[0], *_output_sides(node, [to_int(side) for side in weight[2:]]))
    node.operations = times(elements(output), to_int(elements(weight[1:])))
    return [SymbolicTensor(output)]


def _conv_transpose(node: NodeInputs) -> list[SymbolicTensor]:
    image, weight = node[0], node[1]
    count, groups = len(image) - 2, node.integer("group", 1)
    if len(weight) != len(image) or groups < 1 or image[1] != weight[0]:
        raise ShapeError(f"a weight of {describe(weight)} does not fit an image of {describe(image)}")
    strides = node.integers("strides", [1] * count) or []
    dilations = node.integers("dilations", [1] * count) or []
    pads = node.integers("pads", [0] * 2 * count) or []
    output_padding = node.integers("output_padding", [0] * count) or []
    target = node.integers("output_shape", None)
    if node.text("auto_pad", "NOTSET") != "NOTSET" and target is None:
        raise ShapeError("its auto_pad is not known here")
    sides = []
    for k in range(count):
        reach = dilations[k] * (to_int(weight[2 + k]) - 1) + 1
        side = strides[k] * (to_int(image[2 + k]) - 1) + output_padding[k] + reach - pads[k] - pads[k + count]
        sides.append(side if target is None else target[k - count])
    node.operations = times(elements(image), to_int(elements(weight[1:])))
    return [SymbolicTensor((image[0], weight[1] * groups, *sides))]


def _pool(node: NodeInputs) -> list[SymbolicTensor]:
    kernel = node.integers("kernel_shape", None) or []
    output = (*node[0][:2], *_output_sides(node, kernel))
    node.operations = times(elements(output), math.prod(kernel))
    return [SymbolicTensor(output)] * 2


def _global_pool(node: NodeInputs) -> list[SymbolicTensor]:
    node.operations = elements(node[0])
    return [SymbolicTensor((*node[0][:2], *[1] * (len(node[0]) - 2)))]


# Matrix products


def _matmul(node: NodeInputs) -> list[SymbolicTensor]:
    a, b = node[0], node[1]
    first, second = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    if first[-1] != second[-2]:
        raise ShapeError(f"{describe(a)} and {describe(b)} do not fit")
    batch = broadcast([first[:-2], second[:-2]]) if len(first) + len(second) > 4 else ()
    rows, columns = first[-2], second[-1]
    node.operations = times(elements((*batch, rows, columns)), to_int(first[-1]))
    return [SymbolicTensor((*batch, *([rows] if len(a) > 1 else []), *([columns] if len(b) > 1 else [])))]


def _gemm(node: NodeInputs) -> list[SymbolicTensor]:
    a, b = node[0], node[1]
    a = a[::-1] if node.flag("transA", 0) else a
    b = b[::-1] if node.flag("transB", 0) else b
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise ShapeError(f"{describe(a)} and {describe(b)} do not fit")
    output = (a[0], b[1])
    if node.has(2) and broadcast([output, node[2]]) != output:
        raise ShapeError(f"what is added, {describe(node[2])}, does not fit {describe(output)}")
    node.operations = times(elements(output), to_int(a[1]))
    return [SymbolicTensor(output)]


# Moving pixels


def _depth_to_space(node: NodeInputs) -> list[SymbolicTensor]:
    n, channels, height, width = node[0]
    block = node.integer("blocksize", 0)
    if block < 1 or channels % (block * block):
        raise ShapeError(f"{channels} channels are not blocks of {block}×{block}")
    return [SymbolicTensor((n, channels // block**2, height * block, width * block))]


def _space_to_depth(node: NodeInputs) -> list[SymbolicTensor]:
    n, channels, height, width = node[0]
    block = node.integer("blocksize", 0)
    if block < 1 or height % block or width % block:
        raise ShapeError(f"{height}×{width} are not blocks of {block}×{block}")
    return [SymbolicTensor((n, channels * block**2, height // block, width // block))]


def _grid_sample(node: NodeInputs) -> list[SymbolicTensor]:
    image, grid = node[0], node[1]
    if len(grid) != len(image) or image[0] != grid[0] or grid[-1] != len(image) - 2:
        raise ShapeError(f"a grid of {describe(grid)} does not fit an image of {describe(image)}")
    output = (*image[:2], *grid[1:-1])
    node.operations = times(elements(output), 16)
    return [SymbolicTensor(output)]


def _affine_grid(node: NodeInputs) -> list[SymbolicTensor]:
    target = to_shape(node.constant(1))
    return [SymbolicTensor((target[0], *target[2:], len(target) - 2))]


_ONE_TO_ONE = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitwiseNot", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "InstanceNormalization",
    "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "Mish", "Neg", "Not", "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu",
    "Round", "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu",
)  # fmt: skip
_BROADCAST = (
    "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Or", "PRelu", "Pow", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ONE_TO_ONE, _same),
    **dict.fromkeys(_BROADCAST, _elementwise()),
    **{f"Reduce{name}": _reduce for name in _REDUCE},
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg_reduce),
    "Add": _elementwise(operator.add), "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul), "Div": _elementwise(_divide),
    "Cast": _cast, "Identity": _identity,
    "Shape": _shape_of, "Size": _size_of, "Constant": _constant, "ConstantOfShape": _constant_of_shape,
    "Range": _range, "OneHot": _one_hot, "TopK": _top_k,
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose,
    "Concat": _concat, "Slice": _slice, "Split": _split, "Gather": _gather, "GatherElements": _same_as_second,
    "Expand": _expand, "Tile": _tile, "Pad": _pad,
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MatMul": _matmul, "Gemm": _gemm,
    "Resize": _resize, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
    "AffineGrid": _affine_grid, "GridSample": _grid_sample,
}  # fmt: skip
