"""The heads of the network as operators for a whole batch: decoded angle, classes and anomaly score.

The formulas are those of `vae_edge.model` (network and score). The `layout` that they take is the JSON of a
`vae_edge_kernels.layout.NetworkLayout`: it says where in `weights` and `params` a layer is. On CUDA the Triton kernels
of `vae_edge_kernels.heads` compute them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from vae_edge_kernels.layout import NMS_BINS, WINDOW_BINS, Fc, LinearLayout, NetworkLayout, from_json, padded, reduced

from vae_edge.errors import KernelError
from vae_edge.ops.conv import fma, quantize_int8
from vae_edge.ops.registration import check_tensor, kernel_module, register_operator

ORIENTATION_VALUES = 6  # cos θ, sin θ, θ, angle confidence, second angle, second angle probability
FLOAT32 = (torch.float32,)


# ---- Layouts --------------------------------------------------------------------------------------------------------


def parse_layout(text: str) -> NetworkLayout:
    """The layout that `vae_edge_kernels.layout.to_json` wrote.

    Raises:
        KernelError: the text is not the JSON of a layout.
    """
    try:
        return from_json(text)
    except ValueError as error:
        raise KernelError(f"this is no layout of a network: {error}") from error


def fc_layout(net: NetworkLayout, index: Fc) -> LinearLayout:
    """A fully connected layer of a network.

    Raises:
        KernelError: the network has no such layer.
    """
    found = net.linears[index]
    if found is None:
        raise KernelError(f"the network has no fully connected layer {index.name}: its layout was made without")
    return found


def check_buffers(operator: str, net: NetworkLayout, weights: Tensor, params: Tensor, like: Tensor) -> None:
    """Refuse weights and params of another type or size than the layout says."""
    dtype = torch.int8 if net.int8 else torch.float16
    check_tensor(operator, "weights", weights, "W", (dtype,), like, (net.weights_size,))
    check_tensor(operator, "params", params, "W", FLOAT32, like, (net.params_size,))


def check_whitening(operator: str, net: NetworkLayout, whitening: Tensor, like: Tensor) -> None:
    """Refuse whitening matrices of another type or size than the layout says."""
    score = net.score
    shape = (score.clusters, score.components, padded(score.components))
    check_tensor(operator, "whitening", whitening, "M D D", (torch.float16,), like, shape)


def _check_features(operator: str, net: NetworkLayout, features: Tensor, index: Fc) -> None:
    dtype = torch.int8 if net.int8 else torch.float16
    check_tensor(operator, "features", features, "N F", (dtype,), features, (None, fc_layout(net, index).in_features))


# ---- Fully connected layers on packed weights -----------------------------------------------------------------------


def linear(
    x: Tensor, weights: Tensor, params: Tensor, net: NetworkLayout, index: Fc, prequantized: bool = False
) -> Tensor:
    """A fully connected layer, float32 [N, out_features]; with `prequantized` an int8 layer's x is int8 already."""
    layer = fc_layout(net, index)
    matrix = fc_matrix(weights, net, index)
    bias = params[layer.bias : layer.bias + layer.out_features]
    if not net.int8:
        return x.float() @ matrix.float() + bias

    # Sums of int8 products are whole numbers below 2^53: exact in float64, whatever the order.
    quantized = x if prequantized else quantize_int8(x * params[layer.input_scale])
    total = (quantized.double() @ matrix.double()).float()
    return fma(total, params[layer.scale : layer.scale + layer.out_features], bias)


def fc_matrix(weights: Tensor, net: NetworkLayout, index: Fc) -> Tensor:
    """The matrix of a fully connected layer, a view [in_features, out_features]."""
    layer = fc_layout(net, index)
    stored = weights[layer.weights : layer.weights + layer.out_features * layer.row_stride]
    return stored.reshape(layer.out_features, -1)[:, : layer.in_features].T


def fake_quantize(x: Tensor, params: Tensor, layer: LinearLayout) -> Tensor:
    """x as an int8 layer reads it: quantized and dequantized."""
    return quantize_int8(x * params[layer.input_scale]).float() * params[layer.input_scale + 1]


# ---- Average pool ---------------------------------------------------------------------------------------------------


class _AvgPool(NamedTuple):
    """Feature maps [N, H, W, C] to their means over H and W, times `scale`: float32 [N, C]."""

    x: Tensor
    scale: float

    def check(self) -> None:
        dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
        check_tensor("avg_pool", "x", self.x, "N H W C", dtypes, self.x)
        if self.x.shape[1] * self.x.shape[2] == 0:
            raise KernelError(f"avg_pool expects maps of at least one pixel; got {list(self.x.shape)}.")

    def outputs(self) -> Tensor:
        self.check()
        return self.x.new_empty((self.x.shape[0], self.x.shape[3]), dtype=torch.float32)

    def reference(self) -> Tensor:
        return self.x.float().mean((1, 2)) * self.scale

    def launch(self, y: Tensor) -> None:
        kernel_module("avg_pool", "avg_pool").forward(self.x.contiguous(), y, self.scale)


avg_pool = register_operator("avg_pool", _AvgPool)


# ---- Orientation ----------------------------------------------------------------------------------------------------


class _OrientationHead(NamedTuple):
    """Features [N, F] of the orientation encoder to class logits [N, K] and orientation [N, 6], float32.

    The orientation is cos θ, sin θ, θ in radians, angle confidence, second angle, second angle probability. Where the
    classifier is pooled the class logits are 0.
    """

    features: Tensor
    weights: Tensor
    params: Tensor
    layout: str

    def check(self) -> NetworkLayout:
        net = parse_layout(self.layout)
        _check_features("orientation_head", net, self.features, Fc.ORIENTATION)
        check_buffers("orientation_head", net, self.weights, self.params, self.features)
        return net

    def outputs(self) -> tuple[Tensor, Tensor]:
        net, n = self.check(), self.features.shape[0]
        return self.params.new_empty((n, net.classes)), self.params.new_empty((n, ORIENTATION_VALUES))

    def reference(self) -> tuple[Tensor, Tensor]:
        net = parse_layout(self.layout)
        both = linear(self.features, self.weights, self.params, net, Fc.ORIENTATION, prequantized=True)
        if net.pooled:
            logits, bins = both.new_zeros((len(both), net.classes)), both
        else:
            logits, bins = both[:, : net.classes].contiguous(), both[:, net.classes :]
        axes = self.params[net.bin_axes : net.bin_axes + 2 * net.bins].reshape(2, -1)
        index = torch.arange(net.bins, device=bins.device)

        def distance(bin: Tensor) -> Tensor:
            """Of every bin to one bin of each image, around the circle: [N, bins]."""
            apart = (index[None, :] - bin[:, None]).abs()
            return torch.minimum(apart, net.bins - apart)

        # The best bin, and the best one outside its neighbourhood (non-maximum suppression).
        probability, best = bins.softmax(1), bins.argmax(1)
        second = bins.masked_fill(distance(best) <= NMS_BINS, -torch.inf).argmax(1)
        near, near_second = ((probability * (distance(bin) <= WINDOW_BINS)) for bin in (best, second))

        cos, sin = near @ axes[0], near @ axes[1]
        length = (cos * cos + sin * sin + 1e-12).sqrt()
        confidence = torch.hypot(probability @ axes[0], probability @ axes[1])
        second_angle = torch.atan2(near_second @ axes[1], near_second @ axes[0])
        values = (cos / length, sin / length, torch.atan2(sin, cos), confidence, second_angle, near_second.sum(1))
        return logits, torch.stack(values, 1)

    def launch(self, logits: Tensor, orientation: Tensor) -> None:
        kernel_module("orientation_head", "heads").orientation_forward(
            parse_layout(self.layout),
            self.features.contiguous(),
            self.weights.contiguous(),
            self.params.contiguous(),
            logits,
            orientation,
        )


orientation_head = register_operator("orientation_head", _OrientationHead)


# ---- Classes and score ----------------------------------------------------------------------------------------------


class _ContentHead(NamedTuple):
    """Features [N, F] of the encoder to probabilities [N, K], code [N, Z + K] and score [N, 2], float32.

    The code is the latent mean and, behind it, the class weights. The score is all of it but the reconstruction term,
    and the predicted reconstruction error. `orientation_means` and `feature_means` are the average pools of the feature
    layers, float32 [N, C]; `logits` [N, K] and `orientation` [N, 6] come from `orientation_head`.
    """

    features: Tensor
    orientation_means: Tensor
    feature_means: Tensor
    logits: Tensor
    orientation: Tensor
    weights: Tensor
    params: Tensor
    whitening: Tensor
    layout: str

    def check(self) -> NetworkLayout:
        operator, net, features = "content_head", parse_layout(self.layout), self.features
        n = features.shape[0]
        _check_features(operator, net, features, Fc.MU)
        check_tensor(operator, "feature_means", self.feature_means, "N W", FLOAT32, features, (n, net.feature_channels))
        if net.bins:
            shape = (n, net.orientation_feature_channels)
            check_tensor(operator, "orientation_means", self.orientation_means, "N W", FLOAT32, features, shape)
            check_tensor(operator, "logits", self.logits, "N K", FLOAT32, features, (n, net.classes))
            check_tensor(operator, "orientation", self.orientation, "N P", FLOAT32, features, (n, ORIENTATION_VALUES))
        check_buffers(operator, net, self.weights, self.params, features)
        check_whitening(operator, net, self.whitening, features)
        return net

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        net, n = self.check(), self.features.shape[0]
        return (
            self.params.new_empty((n, net.classes)),
            self.params.new_empty((n, net.latent + net.classes)),
            self.params.new_empty((n, 2)),
        )

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        net, params = parse_layout(self.layout), self.params
        score = net.score

        def matrix(offset: int, rows: int, columns: int) -> Tensor:
            return params[offset : offset + rows * padded(columns)].reshape(rows, -1)[:, :columns]

        # Latent mean and classifier.
        mu = linear(self.features, self.weights, params, net, Fc.MU, prequantized=True)
        means = self.feature_means
        if net.pooled:
            hidden = means
            if net.int8:
                means = fake_quantize(means, params, fc_layout(net, Fc.CLASSIFIER_LOGITS))
        else:
            hidden = linear(mu, self.weights, params, net, Fc.CLASSIFIER_HIDDEN).relu()
            if net.int8:
                mu = fake_quantize(mu, params, fc_layout(net, Fc.CLASSIFIER_HIDDEN))
        logits = linear(hidden, self.weights, params, net, Fc.CLASSIFIER_LOGITS) + (self.logits if net.bins else 0.0)
        if net.second_classifier:
            logits = logits + linear(self.features, self.weights, params, net, Fc.SECOND_CLASSIFIER, prequantized=True)
        class_weights = logits.softmax(1)
        probabilities = (logits * params[net.inverse_temperature]).softmax(1)

        # Projection to whitened components and, in the last column, the predicted reconstruction error.
        columns = score.components + 1
        projected = params[score.offset : score.offset + columns]
        regressors = [
            (score.project_features, means),
            (score.project_mu, mu),
            (score.project_classes, class_weights),
        ]
        regressors += [(score.project_orientation, self.orientation_means)] if net.bins else []
        for offset, values in regressors:
            projected = projected + values @ matrix(offset, values.shape[1], columns)
        components = projected[:, :-1]
        expected_error = torch.minimum(projected[:, -1], params[score.max_expected_error])

        # Mahalanobis distance to the nearest cluster.
        nearest_offset = params[score.nearest_offset : score.nearest_offset + score.clusters]
        distance = components @ matrix(score.nearest, score.components, score.clusters) + nearest_offset
        nearest = distance.argmin(1)
        own = (components[:, None, :] @ self.whitening[nearest, :, : score.components].float()).squeeze(1)
        own = own - matrix(score.cluster_offset, score.clusters, score.components)[nearest]

        terms = params[score.terms : score.terms + 5]
        partial = terms[1] * torch.linalg.vector_norm(own, dim=1) - terms[2] * logits.logsumexp(1) - terms[4]
        if net.bins:
            partial = partial + terms[3] * (1.001 - self.orientation[:, 3]).log()
        return probabilities, torch.cat([mu, class_weights], 1), torch.stack([partial, expected_error], 1)

    def launch(self, probabilities: Tensor, code: Tensor, score: Tensor) -> None:
        tensors = [tensor.contiguous() for tensor in self[:8]]
        kernel_module("content_head", "heads").content_forward(
            parse_layout(self.layout), *tensors, probabilities, code, score
        )


content_head = register_operator("content_head", _ContentHead)


# ---- Reconstruction error -------------------------------------------------------------------------------------------


class _ReconstructionError(NamedTuple):
    """The full anomaly score, float32 [N], from the decoder's output.

    Fields:
        decoded: logits [N, rows, columns, C · block²].
        upright: the derotated image at the decoder's size [N, H, W, C].
        score: float32 [N, 2], as `content_head` gives it.
        weight: float32 [1], of the reconstruction term.
        block: pixels that a cell of the grid becomes in either direction.
    """

    decoded: Tensor
    upright: Tensor
    score: Tensor
    weight: Tensor
    block: int

    def check(self) -> None:
        operator, floats = "reconstruction_error", (torch.float32, torch.float16)
        check_tensor(operator, "upright", self.upright, "N H W C", floats, self.decoded)
        n, height, width, channels = self.upright.shape
        rows, columns = reduced((height, width), self.block)
        shape = (n, rows, columns, channels * self.block * self.block)
        check_tensor(operator, "decoded", self.decoded, "N G G P", floats, self.decoded, shape)
        check_tensor(operator, "score", self.score, "N S", FLOAT32, self.decoded, (n, 2))
        check_tensor(operator, "weight", self.weight, "M", FLOAT32, self.decoded, (1,))

    def outputs(self) -> Tensor:
        self.check()
        return self.score.new_empty(self.score.shape[0])

    def reference(self) -> Tensor:
        height, width = self.upright.shape[1:3]
        shuffled = F.pixel_shuffle(self.decoded.float().permute(0, 3, 1, 2), self.block)
        pixels = shuffled[:, :, :height, :width].sigmoid().permute(0, 2, 3, 1).flatten(1)
        upright = self.upright.float().flatten(1)

        error = (upright - pixels).square().sum(1)
        contrast = torch.linalg.vector_norm(upright - upright.mean(1, keepdim=True), dim=1)
        contrast = contrast + (1e-3 * upright.shape[1]) ** 0.5
        return self.score[:, 0] + self.weight * (error / contrast.square() - self.score[:, 1])

    def launch(self, total: Tensor) -> None:
        tensors = [tensor.contiguous() for tensor in self[:4]]
        kernel_module("reconstruction_error", "reconstruction_error").forward(*tensors, total, self.block)


reconstruction_error = register_operator("reconstruction_error", _ReconstructionError)
