"""A packed network as an ONNX graph of the toolkit's own operators, which one file brings to several runtimes.

TensorRT takes a plugin for each node of the domain `vae_edge`; ONNX Runtime runs the node's model-local function, whose
body is standard operators (`kernel_functions`, `kernel_heads`). A runtime that knows no functions takes what `inline`
makes of the file. The form `network` is one node, whose function reads every layer from its inputs; the form
`operators` is the sequence of `vae_edge.ops.network.forward_layerwise`. There the filters of each convolution are a
constant of their own, beside the packed buffers for the heads: TensorRT takes int8 constants straight into a plugin
only, not by way of a Slice. The form `network` holds each weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from vae_edge_kernels.layout import ConvLayout, Fc, FilterLayout, LinearLayout, NetworkLayout, to_json

from vae_edge.errors import ExportError
from vae_edge.exporting import kernel_functions as functions
from vae_edge.exporting import kernel_heads as heads
from vae_edge.exporting.kernel_functions import DOMAIN, FLOAT, FLOAT16, INT8, VERSION, Nodes
from vae_edge.exporting.onnx_file import OPSET, set_metadata
from vae_edge.ops.conv import MAX_STEM_K
from vae_edge.ops.heads import ORIENTATION_VALUES, fc_layout
from vae_edge.ops.packing import PackedNetwork, conv_filters
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS

Form = Literal["network", "operators"]
ImageType = Literal["uint8", "float16"]
IR_VERSION = 10
NETWORK_INPUTS = ("image", "weights", "params", "whitening")
NETWORK_OUTPUTS = ("probabilities", "angle", "score", "uncertainty")


# ---- The graph ------------------------------------------------------------------------------------------------------


def kernel_graph(
    packed: PackedNetwork,
    form: Form = "network",
    metadata: Mapping[str, Any] | None = None,
    image_type: ImageType = "uint8",
) -> onnx.ModelProto:
    """A classifier as a graph of the toolkit's own operators, with a function for each.

    Inputs and outputs are those of the exported classifier: `image` uint8 [batch, H, W, C]; `probabilities` [batch, K],
    `angle` and `score` [batch], and with an orientation encoder `angle_confidence`, `second_angle` and
    `second_angle_probability` [batch].

    Args:
        packed: the network, float16 or int8.
        form: one node `VaeEdgeNetwork`, or a node for each operator.
        metadata: stored in the file, as `onnx_file.set_metadata` does.
        image_type: what our nodes read. With float16, which holds bytes exactly, a Cast stands between the graph's
            input and them: TensorRT gives no plugin bytes.

    Raises:
        ExportError: an unknown form or type, or the graph does not pass ONNX's own checker.
    """
    if form not in get_args(Form):
        raise ExportError(
            f"a kernel graph has the form {' or '.join(get_args(Form))}, not {form!r}: choose one of these"
        )
    if image_type not in get_args(ImageType):
        known = " or ".join(get_args(ImageType))
        raise ExportError(f"the nodes of a kernel graph read the image as {known}, not {image_type!r}")
    net, body, constants = packed.layout, Nodes(), list[onnx.TensorProto]()
    read = "image" if image_type == "uint8" else body.cast("image", FLOAT16)
    if form == "network":
        inputs = read, *NETWORK_INPUTS[1:]
        found = body.ops("VaeEdgeNetwork", *inputs, count=4, domain=DOMAIN, layout=to_json(net))
    else:
        operators = _Network(net, body, read, *NETWORK_INPUTS[1:], packed)
        found, constants = operators.classify(), list(operators.constants.values())
    probabilities, angle, score, uncertainty = found
    results = dict(zip(CLASSIFIER_OUTPUTS, (probabilities, angle, score), strict=True))
    if net.bins:
        for column, name in enumerate(UNCERTAINTY_OUTPUTS):
            results[name] = body.op("Gather", uncertainty, body.const(column, np.int64), axis=1)
    for name, result in results.items():
        body.nodes.append(helper.make_node("Identity", [result], [name], name=name))

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", net.height, net.width, net.channels])
    shapes = {name: ["batch"] for name in results} | {"probabilities": ["batch", net.classes]}
    outputs = [helper.make_tensor_value_info(name, FLOAT, shapes[name]) for name in results]
    buffers = [
        numpy_helper.from_array(getattr(packed, name).detach().cpu().contiguous().numpy(), name)
        for name in NETWORK_INPUTS[1:]
    ]
    precision = "int8" if net.int8 else "fp16"
    return finish(
        helper.make_graph(body.nodes, "classifier", [image], outputs, [*buffers, *constants]),
        network_functions(net),
        {**(metadata or {}), "kernel_graph": {"form": form, "precision": precision}},
    )


def finish(
    graph: onnx.GraphProto, known: Mapping[str, Callable[[], onnx.FunctionProto]], metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """A model of a graph and the functions that it uses, callees first, with our metadata; checked.

    Raises:
        ExportError: it does not pass ONNX's own checker.
    """
    made: dict[str, onnx.FunctionProto] = {}

    def add(nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            if node.domain == DOMAIN and node.op_type not in made:
                function = known[node.op_type]()
                add(function.node)
                made[node.op_type] = function

    add(graph.node)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, functions=list(made.values()), opset_imports=opsets, ir_version=IR_VERSION)
    set_metadata(model, metadata)
    check_graph(model)
    return model


def check_graph(model: onnx.ModelProto) -> None:
    """Refuse what ONNX's own checker refuses, shapes included.

    Raises:
        ExportError: it does not pass.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the kernel graph is not valid ONNX: {error}") from error


def network_functions(net: NetworkLayout) -> dict[str, Callable[[], onnx.FunctionProto]]:
    """What makes the function of each operator of a network, by op type."""
    return {
        "VaeEdgeNetwork": lambda: _network_function(net),
        "VaeEdgeRotate": lambda: functions.rotate_function(net),
        "VaeEdgeStemConv": functions.stem_conv_function,
        "VaeEdgeConv": functions.conv_function,
        "VaeEdgeStemConvInt8": functions.stem_conv_int8_function,
        "VaeEdgeConvInt8": functions.conv_int8_function,
        "VaeEdgeAvgPool": heads.avg_pool_function,
        "VaeEdgeOrientationHead": lambda: heads.orientation_head_function(net),
        "VaeEdgeContentHead": lambda: heads.content_head_function(net),
        "VaeEdgeReconstructionError": lambda: heads.reconstruction_error_function(net),
    }


def _network_function(net: NetworkLayout) -> onnx.FunctionProto:
    """`ops.network.network`: everything is read from the node's inputs, so that they can be replaced or refitted."""

    def write(b: Nodes, image: str, weights: str, params: str, whitening: str) -> tuple[str, ...]:
        return _Network(net, b, image, weights, params, whitening).classify()

    return functions.make_function("VaeEdgeNetwork", NETWORK_INPUTS, NETWORK_OUTPUTS, ("layout",), write)


# ---- One operator after the other -----------------------------------------------------------------------------------


class _Network:
    """`forward_layerwise` as nodes.

    Without `packed` every weight and parameter is cut out of the inputs. With it, those of single layers are constants,
    which `constants` collects, and what an operator takes as an attribute is written there; without, the nodes around
    the operator compute with the parameter, which gives the same bits.
    """

    def __init__(
        self,
        net: NetworkLayout,
        b: Nodes,
        image: str,
        weights: str,
        params: str,
        whitening: str,
        packed: PackedNetwork | None = None,
    ) -> None:
        self.net, self.b, self.image, self.packed = net, b, image, packed
        self.constants: dict[str, onnx.TensorProto] = {}
        self.weights, self.params, self.whitening = weights, params, whitening
        self.layout = to_json(net)
        self.batch = b.cut(b.op("Shape", image), 0, 1)

    def classify(self) -> tuple[str, str, str, str]:
        """Probabilities, angle, score and uncertainty."""
        net, b = self.net, self.b
        ones, zeros = self.constant((), 1.0), self.constant((), 0.0)

        # 1. Orientation.
        if net.bins:
            seen, scale = (self.rotate(ones, zeros), 1.0) if net.circular_mask else (self.image, 1.0 / 255.0)
            features, orientation_means = self.backbone(seen, scale, 0, net.orientation_layers, net.image_scale)
            logits, orientation = b.ops(
                "VaeEdgeOrientationHead",
                features,
                self.weights,
                self.params,
                count=2,
                domain=DOMAIN,
                layout=self.layout,
            )

            # 2. Derotation.
            cos, sin = (b.reshape(b.cut(orientation, k, k + 1, axis=1), -1) for k in (0, 1))
            upright = self.rotate(cos, b.op("Neg", sin), net.image_scale if net.int8 else None)
        else:
            orientation_means = self.constant((net.orientation_feature_channels,))
            logits, orientation = self.constant((net.classes,)), self.constant((ORIENTATION_VALUES,))
            upright = self.rotate(ones, zeros)

        # 3. Encoder and classifier.
        features, feature_means = self.backbone(
            upright, 1.0, net.orientation_layers, net.encoder_layers, net.upright_scale
        )
        inputs = (features, orientation_means, feature_means, logits, orientation)
        probabilities, code, partial_score = b.ops(
            "VaeEdgeContentHead",
            *inputs,
            self.weights,
            self.params,
            self.whitening,
            count=3,
            domain=DOMAIN,
            layout=self.layout,
        )

        # 4. Decoder, and the score with the reconstruction term.
        if net.score.fast:
            score = b.reshape(b.cut(partial_score, 0, 1, axis=1), -1)
        else:
            weight = self.param(net.score.terms)
            images = self.decode(code), self.reduce(upright)
            score = b.call("VaeEdgeReconstructionError", *images, partial_score, weight, block=net.block)
        angle = b.reshape(b.cut(orientation, 2, 3, axis=1), -1)
        return probabilities, angle, score, b.cut(orientation, 3, 6, axis=1)

    # Parameters and weights

    def param(self, offset: int, count: int = 1) -> str:
        """Parameters, float32 [count]."""
        if self.packed is not None:
            return self.store(f"params_{offset}_{count}", self.packed.params[offset : offset + count])
        return self.b.cut(self.params, offset, offset + count)

    def value(self, offset: int) -> float:
        """A parameter for an attribute; 1 where the nodes around the operator compute with it instead."""
        return 1.0 if self.packed is None else float(self.packed.params[offset])

    def filters(self, layer: ConvLayout, order: tuple[int, ...]) -> str:
        """A convolution's filters, [K, R, S, C] in another order."""
        net, b = self.net, self.b
        if self.packed is not None:
            return self.store(f"weights_{layer.weights}", conv_filters(self.packed.weights, net, layer).permute(order))
        kernel, channels = layer.kernel_size, layer.in_channels
        rows = self.filter_rows(layer.weights, layer.filters)
        rows = b.cut(rows, 0, layer.out_channels, axis=0)
        if layer.reads_image:
            rows = b.reshape(b.cut(rows, 0, kernel * net.stem_row, axis=2), -1, kernel, net.stem_row)
        filters = b.cut(rows, 0, kernel * channels, axis=2)
        filters = b.reshape(filters, layer.out_channels, kernel, kernel, channels)
        return filters if order == (0, 1, 2, 3) else b.transpose(filters, list(order))

    def filter_rows(self, offset: int, filters: FilterLayout) -> str:
        """`packing.from_fragments` of the weights from an offset on, in two steps: TensorRT knows up to eight axes."""
        b, parts, channels = self.b, [], filters.dots * filters.dot_m
        splits = (offset, offset + filters.full_size, offset + filters.size)
        for start, stop, chunks, steps in ((*splits[:2], filters.full, 2), (*splits[1:], filters.half, 1)):
            if start < stop:
                stored = b.reshape(
                    b.cut(self.weights, start, stop), -1, steps, filters.dot_m // 2, 4, 2, 2, filters.pack
                )
                depth = steps * filters.step
                pairs = b.transpose(stored, [0, 2, 5, 3, 1, 4, 6])  # […, j · g, i, t, s, h, p]
                pairs = b.reshape(pairs, filters.rows * chunks, filters.dots, filters.dot_m // 16, 8, 2, depth)
                rows = b.transpose(pairs, [1, 3, 2, 4, 0, 5])
                parts.append(b.reshape(rows, channels, filters.rows, chunks * depth))
        return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=2)

    def matrix(self, layer: LinearLayout, order: tuple[int, ...]) -> str:
        """A fully connected layer's weights as filters of 1×1, [K, R, S, C] in another order."""
        shape = (layer.out_features, 1, 1, layer.in_features)
        if self.packed is not None:
            stop = layer.weights + layer.out_features * layer.row_stride
            stored = self.packed.weights[layer.weights : stop].reshape(layer.out_features, -1)[:, : layer.in_features]
            return self.store(f"weights_{layer.weights}", stored.reshape(shape).permute(order))
        rows = self.b.matrix(self.weights, layer.weights, layer.out_features, layer.row_stride, layer.in_features)
        filters = self.b.reshape(rows, *shape)
        return filters if order == (0, 1, 2, 3) else self.b.transpose(filters, list(order))

    def store(self, name: str, tensor: torch.Tensor) -> str:
        """A constant of the graph."""
        self.constants[name] = numpy_helper.from_array(tensor.detach().cpu().contiguous().numpy(), name)
        return name

    def constant(self, shape: tuple[int, ...], value: float = 0.0) -> str:
        """One value, float32 [N, *shape]."""
        sizes = self.b.op("Concat", self.batch, self.b.ints(*shape), axis=0) if shape else self.batch
        return self.b.op("ConstantOfShape", sizes, value=numpy_helper.from_array(np.array([value], np.float32)))

    # Steps

    def rotate(self, cos: str, sin: str, scale: int | None = None) -> str:
        """The image's pixels, rotated; with `scale`, the offset of 1 / s and s, fake-quantized before."""
        net, b, image, scaled, masked = self.net, self.b, self.image, 1.0 / 255.0, self.net.circular_mask
        input_scale = 0.0
        if scale is not None and self.packed is not None:
            input_scale = self.value(scale + 1)
        elif scale is not None:
            pixels = b.op("Mul", b.transpose(b.cast(image, FLOAT), functions.TO_CHANNELS_FIRST), b.const(scaled))
            if masked:
                pixels = functions.mask_pixels(b, pixels, net, b.const(net.fill))
            step = self.param(scale + 1)
            pixels = b.fake_quantize(pixels, b.op("Div", b.const(1.0), step), step)
            image, scaled, masked = b.transpose(pixels, functions.TO_CHANNELS_LAST), 1.0, False
        return b.call(
            "VaeEdgeRotate",
            image,
            cos,
            sin,
            scale=scaled,
            fill=float(net.fill),
            masked=int(masked),
            dtype=FLOAT if net.int8 else FLOAT16,
            inv_output_scale=1.0,
            input_scale=input_scale,
        )

    def backbone(self, x: str, scale: float, first: int, count: int, input_scale: int) -> tuple[str, str]:
        """Pixels [N, H, W, C] to features [N, F], and the average pool of the feature layer [N, W]."""
        b, means = self.b, ""
        for index in range(first, first + count):
            layer = self.net.layers[index]
            x = self.stem_layer(layer, x, scale, input_scale) if index == first else self.conv_layer(layer, x)
            if layer.is_feature_layer:
                means = b.call("VaeEdgeAvgPool", x, scale=self.value(layer.output_scale) if self.net.int8 else 1.0)
                if self.net.int8 and self.packed is None:
                    means = b.op("Mul", means, self.param(layer.output_scale))
        last = self.net.layers[first + count - 1]
        return b.reshape(x, -1, last.out_pixels * last.out_channels), means

    def stem_layer(self, layer: ConvLayout, x: str, scale: float, input_scale: int) -> str:
        """A backbone's first layer, from pixels."""
        b = self.b
        bias = self.param(layer.bias, layer.out_channels)
        if not self.net.int8:
            weight = self.filters(layer, (1, 2, 3, 0))
            return b.call("VaeEdgeStemConv", x, weight, bias, **_geometry(layer), scale=scale)
        weight = self.filters(layer, (0, 1, 2, 3))
        requantize = self.param(layer.scale, layer.out_channels)
        return self.stem_conv_int8(x, weight, requantize, bias, _geometry(layer), scale, input_scale)

    def stem_conv_int8(
        self, x: str, weight: str, requantize: str, bias: str, geometry: Mapping[str, int], scale: float, at: int
    ) -> str:
        """A `stem_conv_int8` that quantizes x · scale by the parameter 1 / s_x at an offset."""
        b, inverse = self.b, 1.0
        if self.packed is not None:
            inverse = float(torch.tensor(scale) * self.packed.params[at].cpu())  # in float32, as the kernel does
        else:
            x = b.op("Mul", b.cast(x, FLOAT), b.op("Mul", b.const(scale), self.param(at)))
        return b.call("VaeEdgeStemConvInt8", x, weight, requantize, bias, **geometry, inv_x_scale=inverse)

    def conv_layer(self, layer: ConvLayout, x: str, dtype: int = INT8) -> str:
        """Any other convolution; `dtype` is the output's where the network is int8."""
        b = self.b
        bias = self.param(layer.bias, layer.out_channels)
        if not self.net.int8:
            weight = self.filters(layer, (1, 2, 3, 0))
            return b.call("VaeEdgeConv", x, weight, bias, **_geometry(layer))
        weight = self.filters(layer, (1, 2, 0, 3))
        requantize = self.param(layer.scale, layer.out_channels)
        attributes = {**_geometry(layer), "residual_scale": 1.0, "dtype": dtype}
        return b.call("VaeEdgeConvInt8", x, weight, requantize, bias, **attributes)

    def decode(self, code: str) -> str:
        """Code [N, Z + K] to the decoder's logits [N, rows, columns, P]."""
        net, b = self.net, self.b
        x = b.reshape(self.decoder_fc(code), -1, net.grid_height, net.grid_width, net.decoder_width)
        x = self.conv_layer(net.layers[-2], x)
        return self.conv_layer(net.layers[-1], x, FLOAT)

    def decoder_fc(self, code: str) -> str:
        """The decoder's first layer, as a 1×1 convolution of an image of one pixel."""
        net, b = self.net, self.b
        layer = fc_layout(net, Fc.DECODER)
        rows, columns = layer.in_features, layer.out_features
        bias, is_short = self.param(layer.bias, columns), rows <= MAX_STEM_K
        x = b.reshape(code, -1, 1, 1, rows)
        geometry = {"stride": 1, "pad_top": 0, "pad_left": 0, "relu": 1}
        if not net.int8:
            weight = self.matrix(layer, (1, 2, 3, 0))
            if is_short:
                return b.call("VaeEdgeStemConv", x, weight, bias, **geometry, scale=1.0)
            return b.call("VaeEdgeConv", b.cast(x, FLOAT16), weight, bias, **geometry)

        scale = self.param(layer.scale, columns)
        if is_short:
            weight = self.matrix(layer, (0, 1, 2, 3))
            return self.stem_conv_int8(x, weight, scale, bias, geometry, 1.0, layer.input_scale)
        weight = self.matrix(layer, (1, 2, 0, 3))
        quantized = b.quantize_int8(b.op("Mul", x, self.param(layer.input_scale)))
        return b.call("VaeEdgeConvInt8", quantized, weight, scale, bias, **geometry, residual_scale=1.0, dtype=INT8)

    def reduce(self, upright: str) -> str:
        """`ops.network.reduce_image`: the derotated image at the decoder's size."""
        net, b, factor = self.net, self.b, self.net.reduction
        if factor == 1:
            return upright
        image = b.transpose(b.cast(upright, FLOAT), functions.TO_CHANNELS_FIRST)
        below, beside = -net.height % factor, -net.width % factor
        if below or beside:
            image = b.op("Pad", image, b.ints(0, 0, 0, 0, 0, 0, below, beside), mode="edge")
        pooled = b.op("AveragePool", image, kernel_shape=[factor] * 2, strides=[factor] * 2)
        return b.transpose(pooled, functions.TO_CHANNELS_LAST)


def _geometry(layer: ConvLayout) -> dict[str, int]:
    """Attributes of a convolution."""
    padding = layer.kernel_size // 2
    return {"stride": layer.stride, "pad_top": padding, "pad_left": padding, "relu": int(layer.relu)}
