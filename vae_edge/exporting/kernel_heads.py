"""The heads of the network as model-local functions: average pool, angle, classes, anomaly score.

They compute what the references in `vae_edge.ops.heads` compute. Where in `weights` and `params` a layer lies is a
constant of the body, which is written for one layout; the node's attribute `layout` is for plugins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import AttributeProto
from vae_edge_kernels.layout import NMS_BINS, WINDOW_BINS, Fc, NetworkLayout, padded, reduced

from vae_edge.exporting.kernel_functions import (
    DOUBLE,
    FLOAT,
    TO_CHANNELS_FIRST,
    TO_CHANNELS_LAST,
    Nodes,
    Ref,
    make_function,
)
from vae_edge.ops.heads import fc_layout


def linear(
    b: Nodes, net: NetworkLayout, index: Fc, x: str, weights: str, params: str, prequantized: bool = False
) -> str:
    """`ops.heads.linear`: a fully connected layer, float32 [N, out_features]."""
    layer = fc_layout(net, index)
    rows, columns = layer.in_features, layer.out_features
    matrix = b.transpose(b.matrix(weights, layer.weights, columns, layer.row_stride, rows), [1, 0])
    bias = b.cut(params, layer.bias, layer.bias + layer.out_features)
    if not net.int8:
        return b.op("Add", b.op("MatMul", b.cast(x, FLOAT), b.cast(matrix, FLOAT)), bias)

    if not prequantized:
        x = b.round_int8(b.op("Mul", x, b.cut(params, layer.input_scale, layer.input_scale + 1)))
    total = b.cast(b.op("MatMul", b.cast(x, DOUBLE), b.cast(matrix, DOUBLE)), FLOAT)  # whole numbers: exact
    return b.fma(total, b.cut(params, layer.scale, layer.scale + layer.out_features), bias)


def atan2(b: Nodes, y: str, x: str) -> str:
    """The angle of (x, y) in −π..π, float32; 0 for (0, 0)."""
    zero, pi = b.const(0.0), b.const(np.pi)
    behind = b.op("Where", b.op("Less", y, zero), b.op("Neg", pi), pi)  # added where x < 0
    nothing = b.op("And", b.op("Equal", x, zero), b.op("Equal", y, zero))
    angle = b.op("Atan", b.op("Div", y, b.op("Where", nothing, b.const(1.0), x)))
    return b.op("Add", angle, b.op("Where", b.op("Less", x, zero), behind, zero))


def avg_pool_function() -> onnx.FunctionProto:
    """`ops.heads.avg_pool`."""

    def write(b: Nodes, x: str) -> str:
        mean = b.op("ReduceMean", b.cast(x, FLOAT), b.ints(1, 2), keepdims=0)
        return b.op("Mul", mean, b.scalar_attribute("scale"))

    return make_function("VaeEdgeAvgPool", ("x",), ("y",), ("scale",), write)


def orientation_head_function(net: NetworkLayout) -> onnx.FunctionProto:
    """`ops.heads.orientation_head`."""

    def write(b: Nodes, features: str, weights: str, params: str) -> tuple[str, str]:
        both = linear(b, net, Fc.ORIENTATION, features, weights, params, prequantized=True)
        if net.pooled:
            bins, logits = both, b.op("Mul", b.cut(both, 0, 1, axis=1), b.const(np.zeros((1, net.classes))))
        else:
            logits = b.cut(both, 0, net.classes, axis=1)
            bins = b.cut(both, net.classes, net.classes + net.bins, axis=1)
        axes = b.reshape(b.cut(params, net.bin_axes, net.bin_axes + 2 * net.bins), 2, net.bins)
        axes = b.transpose(axes, [1, 0])  # [bins, 2]
        index, count = b.const(np.arange(net.bins)[None], np.int64), b.const(net.bins, np.int64)

        def within(bin: str, bins_apart: int) -> str:
            """Whether each bin is so near to one bin [N, 1], around the circle: bool [N, bins]."""
            apart = b.op("Abs", b.op("Sub", index, bin))
            nearest = b.op("Min", apart, b.op("Sub", count, apart))
            return b.op("LessOrEqual", nearest, b.const(bins_apart, np.int64))

        def best(scores: str) -> str:
            return b.op("ArgMax", scores, axis=1, keepdims=1)

        def summed(probability: str) -> tuple[str, str]:
            both_axes = b.op("MatMul", probability, axes)
            return b.cut(both_axes, 0, 1, axis=1), b.cut(both_axes, 1, 2, axis=1)

        def length(x: str, y: str, least: str) -> str:
            return b.op("Sqrt", b.op("Add", b.op("Add", b.op("Mul", x, x), b.op("Mul", y, y)), least))

        probability, first = b.op("Softmax", bins, axis=1), best(bins)
        second = best(b.op("Where", within(first, NMS_BINS), b.const(-np.inf), bins))
        near, near_second = (
            b.op("Mul", probability, b.cast(within(bin, WINDOW_BINS), FLOAT)) for bin in (first, second)
        )
        cos, sin = summed(near)
        norm = length(cos, sin, b.const(1e-12))
        confidence = length(*summed(probability), b.const(0.0))
        second_cos, second_sin = summed(near_second)
        values = (
            b.op("Div", cos, norm),
            b.op("Div", sin, norm),
            atan2(b, sin, cos),
            confidence,
            atan2(b, second_sin, second_cos),
            b.op("ReduceSum", near_second, b.ints(1), keepdims=1),
        )
        return logits, b.op("Concat", *values, axis=1)

    inputs, outputs = ("features", "weights", "params"), ("logits", "orientation")
    return make_function("VaeEdgeOrientationHead", inputs, outputs, ("layout",), write)


CONTENT_INPUTS = (
    "features",
    "orientation_means",
    "feature_means",
    "logits",
    "orientation",
    "weights",
    "params",
    "whitening",
)


def content_head_function(net: NetworkLayout) -> onnx.FunctionProto:
    """`ops.heads.content_head`."""
    score = net.score

    def write(
        b: Nodes,
        features: str,
        orientation_means: str,
        feature_means: str,
        orientation_logits: str,
        orientation: str,
        weights: str,
        params: str,
        whitening: str,
    ) -> tuple[str, str, str]:
        def param(offset: int, count: int = 1) -> str:
            return b.cut(params, offset, offset + count)

        def matrix(offset: int, rows: int, columns: int) -> str:
            return b.matrix(params, offset, rows, padded(columns), columns)

        def read_by(index: Fc, x: str) -> str:
            """x as an int8 layer reads it."""
            at = fc_layout(net, index).input_scale
            return b.fake_quantize(x, param(at), param(at + 1)) if net.int8 else x

        def sums(terms: Sequence[str]) -> str:
            return b.op("Sum", *terms) if len(terms) > 1 else terms[0]

        # Latent mean and classifier.
        mu = linear(b, net, Fc.MU, features, weights, params, prequantized=True)
        means = feature_means
        if net.pooled:
            hidden, means = means, read_by(Fc.CLASSIFIER_LOGITS, means)
        else:
            hidden = b.op("Relu", linear(b, net, Fc.CLASSIFIER_HIDDEN, mu, weights, params))
            mu = read_by(Fc.CLASSIFIER_HIDDEN, mu)
        logits = linear(b, net, Fc.CLASSIFIER_LOGITS, hidden, weights, params)
        if net.bins:
            logits = b.op("Add", logits, orientation_logits)
        if net.second_classifier:
            more = linear(b, net, Fc.SECOND_CLASSIFIER, features, weights, params, prequantized=True)
            logits = b.op("Add", logits, more)
        class_weights = b.op("Softmax", logits, axis=1)
        probabilities = b.op("Softmax", b.op("Mul", logits, param(net.inverse_temperature)), axis=1)

        # Projection to whitened components and, in the last column, the predicted reconstruction error.
        columns = score.components + 1
        regressors = [
            (score.project_features, means, net.feature_channels),
            (score.project_mu, mu, net.latent),
            (score.project_classes, class_weights, net.classes),
        ]
        if net.bins:
            regressors.append((score.project_orientation, orientation_means, net.orientation_feature_channels))
        products = [b.op("MatMul", values, matrix(offset, rows, columns)) for offset, values, rows in regressors]
        projected = sums([param(score.offset, columns), *products])
        components = b.cut(projected, 0, score.components, axis=1)
        expected_error = b.op(
            "Min", b.cut(projected, score.components, columns, axis=1), param(score.max_expected_error)
        )

        # Mahalanobis distance to the nearest cluster.
        distance = b.op("MatMul", components, matrix(score.nearest, score.components, score.clusters))
        distance = b.op("Add", distance, param(score.nearest_offset, score.clusters))
        nearest = b.op("ArgMin", distance, axis=1, keepdims=0)
        whiten = b.cast(b.cut(b.op("Gather", whitening, nearest, axis=0), 0, score.components, axis=2), FLOAT)
        own = b.op("MatMul", b.reshape(components, -1, 1, score.components), whiten)
        own = b.reshape(own, -1, score.components)
        offsets = b.op("Gather", matrix(score.cluster_offset, score.clusters, score.components), nearest, axis=0)
        apart = b.op("ReduceL2", b.op("Sub", own, offsets), b.ints(1), keepdims=1)

        largest = b.op("ReduceMax", logits, b.ints(1), keepdims=1)
        total = b.op("ReduceSum", b.op("Exp", b.op("Sub", logits, largest)), b.ints(1), keepdims=1)
        energy = b.op("Add", largest, b.op("Log", total))
        partial = b.op("Sub", b.op("Mul", param(score.terms + 1), apart), b.op("Mul", param(score.terms + 2), energy))
        partial = b.op("Sub", partial, param(score.terms + 4))
        if net.bins:
            doubt = b.op("Log", b.op("Sub", b.const(1.001), b.cut(orientation, 3, 4, axis=1)))
            partial = b.op("Add", partial, b.op("Mul", param(score.terms + 3), doubt))
        code = b.op("Concat", mu, class_weights, axis=1)
        return probabilities, code, b.op("Concat", partial, expected_error, axis=1)

    return make_function("VaeEdgeContentHead", CONTENT_INPUTS, ("probabilities", "code", "score"), ("layout",), write)


def reconstruction_error_function(net: NetworkLayout) -> onnx.FunctionProto:
    """`ops.heads.reconstruction_error` for images of the decoder's size."""
    height, width = reduced((net.height, net.width), net.reduction)
    count = height * width * net.channels

    def write(b: Nodes, decoded: str, upright: str, score: str, weight: str) -> str:
        blocks = b.transpose(b.cast(decoded, FLOAT), TO_CHANNELS_FIRST)
        image = b.op("DepthToSpace", blocks, mode="CRD", blocksize=Ref("block", AttributeProto.INT))
        image = b.cut(b.cut(image, 0, height, axis=2), 0, width, axis=3)
        pixels = b.reshape(b.transpose(b.op("Sigmoid", image), TO_CHANNELS_LAST), -1, count)
        target = b.reshape(b.cast(upright, FLOAT), -1, count)

        error = b.op("ReduceSumSquare", b.op("Sub", target, pixels), b.ints(1), keepdims=1)
        centred = b.op("Sub", target, b.op("ReduceMean", target, b.ints(1), keepdims=1))
        contrast = b.op("ReduceL2", centred, b.ints(1), keepdims=1)
        contrast = b.op("Add", contrast, b.const((1e-3 * count) ** 0.5))
        relative = b.op("Div", error, b.op("Mul", contrast, contrast))
        excess = b.op("Sub", relative, b.cut(score, 1, 2, axis=1))
        return b.reshape(b.op("Add", b.cut(score, 0, 1, axis=1), b.op("Mul", weight, excess)), -1)

    inputs = ("decoded", "upright", "score", "weight")
    return make_function("VaeEdgeReconstructionError", inputs, ("total",), ("block",), write)
