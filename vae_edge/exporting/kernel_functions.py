"""The toolkit's operators as ONNX nodes, with a model-local function for each: what a runtime without our kernels runs.

A node of the domain `vae_edge` has the tensors of the PyTorch operator as inputs, in its order, and the other fields as
attributes of the same names. A TensorRT plugin of the same op type replaces the node; the two attributes of
`PLUGIN_ATTRIBUTES` say so to its parser, which from 10.15 on takes a function before a plugin without them. ONNX
Runtime runs the function, whose body is standard operators and computes what the CPU reference in `vae_edge.ops` does.

A function has one body, whatever the attributes: not even ONNX Runtime tells overloads of a function apart. So a body
chooses with `If` on an attribute. The condition is a constant of each node, and runtimes drop the other branch.

int8: a sum of products is a float32 Conv of whole numbers, exact where no partial sum exceeds 2^24. So it is for up to
1,024 summands (|x| and |w| are at most 128), and for more where 128 · Σ|w| of each output channel is at most 2^24
(`kernel_file.inexact_layers`). Requantization goes by way of float64, as the reference's, and rounds half to even. A
NaN, which only a parameter that is not finite could make, is not treated as the kernels treat it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from vae_edge_kernels.layout import NetworkLayout

from vae_edge.exporting.onnx_file import OPSET

DOMAIN = "vae_edge"
VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": ""}  # as REGISTER_TENSORRT_PLUGIN registers plugins
FLOAT, FLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
INT8, INT32, INT64 = TensorProto.INT8, TensorProto.INT32, TensorProto.INT64
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


# ---- Writing nodes --------------------------------------------------------------------------------------------------


class Ref(NamedTuple):
    """An attribute's value that is the function's own attribute of this name."""

    name: str
    type: int


class Nodes:
    """Nodes of a graph or a function's body, in order; each method appends some and gives the names of their outputs.

    The nodes of a branch share the numbering of those around it, since names are unique over both. `scope` begins the
    names: TensorRT's parser confuses a function's names with the same names outside.
    """

    def __init__(self, scope: str = "", around: Nodes | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._scope: str = scope if around is None else around._scope
        self._count: list[int] = [0] if around is None else around._count

    def ops(self, op_type: str, *inputs: str, count: int, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """A node with `count` outputs. A value `Ref` refers to an attribute of the function."""
        self._count[0] += 1
        name = f"{self._scope}{op_type}_{self._count[0]}"
        outputs = [f"{name}_{k}" if count > 1 else name for k in range(count)]
        given = {name: value for name, value in attributes.items() if not isinstance(value, Ref)}
        given |= PLUGIN_ATTRIBUTES if domain == DOMAIN else {}
        node = helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain or None, **given)
        for name, value in attributes.items():
            if isinstance(value, Ref):
                node.attribute.append(AttributeProto(name=name, type=value.type, ref_attr_name=value.name))
        self.nodes.append(node)
        return tuple(outputs)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A standard operator of one output."""
        return self.ops(op_type, *inputs, count=1, **attributes)[0]

    def call(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """An operator of ours with one output."""
        return self.ops(op_type, *inputs, count=1, domain=DOMAIN, **attributes)[0]

    def const(self, value: ArrayLike, dtype: Any = np.float32) -> str:
        """A constant tensor."""
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, dtype=dtype)))

    def ints(self, *values: int) -> str:
        """A constant int64 [n]."""
        return self.const(values, np.int64)

    def scalar_attribute(self, name: str) -> str:
        """The function's float attribute as a float32 scalar."""
        return self.op("Constant", value_float=Ref(name, AttributeProto.FLOAT))

    def attribute_is(self, name: str, value: int) -> str:
        """Whether the function's int attribute has this value: a bool scalar."""
        return self.op("Equal", self._int_attribute(name), self.const(value, np.int64))

    def int_vector(self, name: str) -> str:
        """The function's int attribute as int64 [1]."""
        return self.op("Reshape", self._int_attribute(name), self.ints(1))

    def _int_attribute(self, name: str) -> str:
        return self.op("Constant", value_int=Ref(name, AttributeProto.INT))

    def choose(self, condition: str, then: Callable[[Nodes], str], otherwise: Callable[[Nodes], str]) -> str:
        """The float32 result of one of two branches."""
        branches = {}
        for name, write in (("then_branch", then), ("else_branch", otherwise)):
            branch = Nodes(around=self)
            result = branch.op("Identity", write(branch))
            output = helper.make_tensor_value_info(result, FLOAT, None)
            branches[name] = helper.make_graph(branch.nodes, name, [], [output])
        return self.op("If", condition, **branches)

    def cast(self, x: str, to: int | Ref) -> str:
        """Another dtype."""
        return self.op("Cast", x, to=to)

    def reshape(self, x: str, *shape: int) -> str:
        """Another shape; −1 for the rest."""
        return self.op("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """Dimensions in another order."""
        return self.op("Transpose", x, perm=list(order))

    def cut(self, x: str, start: int, stop: int, axis: int = 0) -> str:
        """x[start:stop] along an axis."""
        return self.op("Slice", x, *(self.ints(value) for value in (start, stop, axis)))

    def matrix(self, buffer: str, offset: int, rows: int, row_stride: int, columns: int) -> str:
        """A matrix [rows, columns] in a flat buffer, whose rows are `row_stride` apart."""
        found = self.reshape(self.cut(buffer, offset, offset + rows * row_stride), rows, row_stride)
        return found if columns == row_stride else self.cut(found, 0, columns, axis=1)

    def fma(self, value: str, factor: str, addend: str) -> str:
        """value * factor + addend in float32, rounded once but for ties: by way of float64, as `ops.conv.fma`."""
        product = self.op("Mul", self.cast(value, DOUBLE), self.cast(factor, DOUBLE))
        return self.cast(self.op("Add", product, self.cast(addend, DOUBLE)), FLOAT)

    def round_int8(self, x: str) -> str:
        """float32 to whole numbers in −128..127, half to even; still float32."""
        return self.op("Round", self.op("Clip", x, self.const(-128.0), self.const(127.0)))

    def quantize_int8(self, x: str) -> str:
        """float32 to int8."""
        return self.cast(self.round_int8(x), INT8)

    def fake_quantize(self, x: str, inverse: str, scale: str) -> str:
        """x as int8 numbers times their scale, float32; `inverse` is 1 / scale."""
        return self.op("Mul", self.round_int8(self.op("Mul", x, inverse)), scale)


def make_function(
    op_type: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Sequence[str],
    write: Callable[..., str | tuple[str, ...]],
) -> onnx.FunctionProto:
    """A model-local function. `write(nodes, *inputs)` appends its body and gives the names of the results."""
    scope = op_type.removeprefix("VaeEdge")
    body = Nodes(f"{scope}.")
    results = write(body, *inputs)
    results = (results,) if isinstance(results, str) else results
    ends = [
        helper.make_node("Identity", [result], [name], name=f"{scope}.{name}")
        for result, name in zip(results, outputs, strict=True)
    ]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    nodes = [*body.nodes, *ends]
    return helper.make_function(DOMAIN, op_type, list(inputs), list(outputs), nodes, opsets, list(attributes))


# ---- Pixels ---------------------------------------------------------------------------------------------------------


def _centres(b: Nodes, side: int) -> str:
    """0, 1, ..., side − 1, float32 [side]."""
    return b.op("Range", b.const(0.0), b.const(float(side)), b.const(1.0))


def mask_pixels(b: Nodes, images: str, net: NetworkLayout, fill: str) -> str:
    """Images float32 [N, C, H, W] seen through `ops.rotate.circular_mask`, with `fill` around it."""
    sides = []
    for side, shape in ((net.height, (net.height, 1)), (net.width, (1, net.width))):
        from_centre = b.op("Sub", b.op("Add", _centres(b, side), b.const(0.5)), b.const(side / 2))
        sides.append(b.reshape(b.op("Mul", from_centre, from_centre), *shape))
    distance = b.op("Sqrt", b.op("Add", *sides))
    inside = b.op("Sub", b.const(min(net.height, net.width) / 2), distance)
    mask = b.op("Clip", inside, b.const(0.0), b.const(1.0))
    around = b.op("Mul", fill, b.op("Sub", b.const(1.0), mask))
    return b.op("Add", b.op("Mul", images, mask), around)


def _rotate_images(b: Nodes, images: str, cos: str, sin: str, net: NetworkLayout, fill: str) -> str:
    """`ops.rotate.rotate`: images float32 [N, C, H, W], angles float32 [N]."""
    height, width = net.height, net.width
    across, down = (
        b.op(
            "Sub",
            b.op(
                "Div",
                b.op("Add", b.op("Mul", _centres(b, side), b.const(2.0)), b.const(1.0)),
                b.const(float(side)),
            ),
            b.const(1.0),
        )
        for side in (width, height)
    )
    y_factors = sin, cos
    if height != width:
        stretch = b.const(width / height)
        down = b.op("Div", down, stretch)
        y_factors = b.op("Mul", sin, stretch), b.op("Mul", cos, stretch)
    shape = b.ints(height, width, 1)
    x = b.op("Expand", b.reshape(across, 1, width, 1), shape)
    y = b.op("Expand", b.reshape(down, height, 1, 1), shape)
    points = b.reshape(b.op("Concat", x, y, axis=-1), height * width, 2)

    parts = (cos, y_factors[0], b.op("Neg", sin), y_factors[1])
    rotations = b.op("Concat", *(b.reshape(part, -1, 1) for part in parts), axis=1)
    grid = b.reshape(b.op("MatMul", points, b.reshape(rotations, -1, 2, 2)), -1, height, width, 2)
    sampled = b.op("GridSample", b.op("Sub", images, fill), grid, mode="linear", padding_mode="zeros", align_corners=0)
    return b.op("Add", sampled, fill)


def rotate_function(net: NetworkLayout) -> onnx.FunctionProto:
    """`ops.rotate.rotate_pixels` for images of the network's size."""

    def write(b: Nodes, x: str, cos: str, sin: str) -> str:
        fill, scale = b.scalar_attribute("fill"), b.scalar_attribute("scale")
        input_scale = b.scalar_attribute("input_scale")
        images = b.op("Mul", b.transpose(b.cast(x, FLOAT), TO_CHANNELS_FIRST), scale)
        images = b.choose(
            b.attribute_is("masked", 1),
            lambda then: mask_pixels(then, images, net, fill),
            lambda otherwise: images,
        )
        quantized = b.op("Greater", input_scale, b.const(0.0))
        images = b.choose(
            quantized,
            lambda then: then.fake_quantize(images, then.op("Div", then.const(1.0), input_scale), input_scale),
            lambda otherwise: images,
        )
        rotated = b.transpose(_rotate_images(b, images, cos, sin, net, fill), TO_CHANNELS_LAST)
        rotated = b.choose(
            b.attribute_is("dtype", INT8),
            lambda then: then.round_int8(then.op("Mul", rotated, then.scalar_attribute("inv_output_scale"))),
            lambda otherwise: rotated,
        )
        return b.cast(rotated, Ref("dtype", AttributeProto.INT))

    attributes = ("scale", "fill", "masked", "dtype", "inv_output_scale", "input_scale")
    return make_function("VaeEdgeRotate", ("x", "cos", "sin"), ("y",), attributes, write)


# ---- Convolutions ---------------------------------------------------------------------------------------------------


def _convolve(b: Nodes, x: str, weight: str, bias: Sequence[str] = ()) -> str:
    """Convolution float32 [N, C, H, W] by [K, C, R, S] with the function's stride and padding."""
    zeros, top, left = b.ints(0, 0), b.int_vector("pad_top"), b.int_vector("pad_left")
    padded = b.op("Pad", x, b.op("Concat", zeros, top, left, zeros, top, left, axis=0))
    step = b.int_vector("stride")

    def conv(nodes: Nodes, stride: int) -> str:
        return nodes.op("Conv", padded, weight, *bias, strides=[stride, stride])

    def any_stride(nodes: Nodes) -> str:  # Conv takes its strides as a list, which one number cannot be made
        ends = nodes.const([np.iinfo(np.int64).max] * 2, np.int64)
        steps = nodes.op("Concat", step, step, axis=0)
        return nodes.op("Slice", conv(nodes, 1), nodes.ints(0, 0), ends, nodes.ints(2, 3), steps)

    return b.choose(
        b.attribute_is("stride", 1),
        lambda then: conv(then, 1),
        lambda others: others.choose(others.attribute_is("stride", 2), lambda then: conv(then, 2), any_stride),
    )


def _relu(b: Nodes, x: str) -> str:
    """ReLU where the function's attribute says so."""
    return b.choose(b.attribute_is("relu", 1), lambda then: then.op("Relu", x), lambda otherwise: x)


def _float_conv(b: Nodes, image: str, weight: str, bias: str) -> str:
    """Image float32 [N, H, W, C] by float16 [R, S, C, K], in float32; float16 [N, OH, OW, K]."""
    kernel = b.transpose(b.cast(weight, FLOAT), [3, 2, 0, 1])
    y = _relu(b, _convolve(b, b.transpose(image, TO_CHANNELS_FIRST), kernel, [bias]))
    return b.cast(b.transpose(y, TO_CHANNELS_LAST), FLOAT16)


def _int8_conv(b: Nodes, image: str, kernel: str, scale: str, bias: str) -> str:
    """Whole numbers float32 [N, H, W, C] by int8 [K, C, R, S]: the epilogue's value, float32 [N, OH, OW, K]."""
    total = _convolve(b, b.transpose(image, TO_CHANNELS_FIRST), b.cast(kernel, FLOAT))
    return _relu(b, b.fma(b.transpose(total, TO_CHANNELS_LAST), scale, bias))


CONV_ATTRIBUTES = ("stride", "pad_top", "pad_left", "relu")


def conv_function() -> onnx.FunctionProto:
    """`ops.conv.conv` of float16, without a residual, which no network of ours has."""

    def write(b: Nodes, x: str, weight: str, bias: str) -> str:
        return _float_conv(b, b.cast(x, FLOAT), weight, bias)

    return make_function("VaeEdgeConv", ("x", "weight", "bias"), ("y",), CONV_ATTRIBUTES, write)


def stem_conv_function() -> onnx.FunctionProto:
    """`ops.conv.stem_conv` with weights of float16."""

    def write(b: Nodes, x: str, weight: str, bias: str) -> str:
        scaled = b.op("Mul", b.cast(x, FLOAT), b.scalar_attribute("scale"))
        return _float_conv(b, b.cast(b.cast(scaled, FLOAT16), FLOAT), weight, bias)

    return make_function("VaeEdgeStemConv", ("x", "weight", "bias"), ("y",), (*CONV_ATTRIBUTES, "scale"), write)


def conv_int8_function() -> onnx.FunctionProto:
    """`ops.conv.conv_int8`, without a residual."""

    def write(b: Nodes, x: str, weight: str, scale: str, bias: str) -> str:
        value = _int8_conv(b, b.cast(x, FLOAT), b.transpose(weight, [2, 3, 0, 1]), scale, bias)
        rounded = b.choose(b.attribute_is("dtype", INT8), lambda then: then.round_int8(value), lambda otherwise: value)
        return b.cast(rounded, Ref("dtype", AttributeProto.INT))

    inputs, attributes = ("x", "weight", "scale", "bias"), (*CONV_ATTRIBUTES, "residual_scale", "dtype")
    return make_function("VaeEdgeConvInt8", inputs, ("y",), attributes, write)


def stem_conv_int8_function() -> onnx.FunctionProto:
    """`ops.conv.stem_conv_int8` of bytes or floats."""

    def write(b: Nodes, x: str, weight: str, scale: str, bias: str) -> str:
        image = b.round_int8(b.op("Mul", b.cast(x, FLOAT), b.scalar_attribute("inv_x_scale")))
        return b.quantize_int8(_int8_conv(b, image, b.transpose(weight, [0, 3, 1, 2]), scale, bias))

    inputs, attributes = ("x", "weight", "scale", "bias"), (*CONV_ATTRIBUTES, "inv_x_scale")
    return make_function("VaeEdgeStemConvInt8", inputs, ("y",), attributes, write)
