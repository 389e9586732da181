"""What follows the convolutions: fully connected heads, decoded angle, softmax, anomaly score.

`orientation_head` and `content_head` are specialized by the layout of the network, NET (`layout.NetworkLayout`), which
says where in the weight buffer and in params everything is; PAD (`tiling.PaddedSizes`) has the lengths of the vectors.
One program takes one image, and the image's vectors stay in its registers. The formulas are those of `vae_edge.model`
(network and score). An int8 layer quantizes its input first and sums its products in int32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels import layout
from vae_edge_kernels.config import KernelSpec, current_architecture, get_config
from vae_edge_kernels.fragments import right_operand, tile_row, tile_warp, vector_range
from vae_edge_kernels.implicit_gemm import fma, least, quantize_int8, relu
from vae_edge_kernels.layout import Fc, NetworkLayout
from vae_edge_kernels.tiling import padded_sizes, with_warps

OPERATOR = "heads"

# What a kernel reads of a module must be a constexpr.
MU = tl.constexpr(int(Fc.MU))
CLASSIFIER_HIDDEN = tl.constexpr(int(Fc.CLASSIFIER_HIDDEN))
CLASSIFIER_LOGITS = tl.constexpr(int(Fc.CLASSIFIER_LOGITS))
ORIENTATION = tl.constexpr(int(Fc.ORIENTATION))
SECOND_CLASSIFIER = tl.constexpr(int(Fc.SECOND_CLASSIFIER))
WINDOW_BINS = tl.constexpr(layout.WINDOW_BINS)
NMS_BINS = tl.constexpr(layout.NMS_BINS)
AHEAD_REGISTERS = tl.constexpr(32)  # of a thread, for operands that are loaded ahead


@triton.jit
def atan2(y, x):
    """atan2(y, x) in radians, within 3e-7; 0 for (0, 0). Triton has none.

    A polynomial of degree 15 in min(|x|, |y|) / max(|x|, |y|), which is at most 1, then the octant.
    """
    abs_x, abs_y = tl.abs(x), tl.abs(y)
    larger = tl.maximum(abs_x, abs_y)
    ratio = tl.minimum(abs_x, abs_y) / tl.where(larger > 0.0, larger, 1.0)
    square = ratio * ratio
    angle = -0.004054544955 * square + 0.02186287737
    angle = angle * square - 0.05591221063
    angle = angle * square + 0.09642188823
    angle = angle * square - 0.1390862623
    angle = angle * square + 0.1994656499
    angle = angle * square - 0.3332986073
    angle = (angle * square + 0.9999993356) * ratio

    angle = tl.where(abs_y > abs_x, 1.5707963267948966 - angle, angle)
    angle = tl.where(x < 0.0, 3.141592653589793 - angle, angle)
    return tl.where(y < 0.0, -angle, angle)


@triton.jit
def add_steps(
    sums, x_ptrs, w_ptrs, STEP: tl.constexpr, COUNT: tl.constexpr, WARPS: tl.constexpr, SIZE: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Add the products of COUNT steps of `vecmat_global`: all are loaded before the first is used."""
    xs, ws = (), ()
    for i in tl.static_range(COUNT):
        xs = xs + (right_operand(tl.load(x_ptrs + i * STEP), 1, WARPS, 2, VECTOR // 4),)  # type: ignore[assignment]  # noqa: RUF005
        ws = ws + (right_operand(tl.load(w_ptrs + i * STEP), SIZE // 8, WARPS, 2, VECTOR // 4).permute(0, 2, 1),)  # type: ignore[assignment]  # noqa: RUF005
    for i in tl.static_range(COUNT):
        sums = tl.dot(ws[i], xs[i], sums, out_dtype=sums.dtype)
    return sums


@triton.jit
def vecmat_global(x_ptr, weights_ptr, NET: tl.constexpr, I: tl.constexpr, SIZE: tl.constexpr):
    """y[j] = sum over k of x[k] · w[j, k] for the outputs j of fully connected layer I, float32 [SIZE]; beyond the
    last, that of the last.

    x: [in_features] in global memory. The outputs are rows of a product of matrices, whose eight columns are all alike;
    each warp sums over its share of the inputs. See `fragments`.
    """
    WARPS: tl.constexpr = NET.warps
    IN_FEATURES: tl.constexpr = NET.linears[I].in_features
    STRIDE: tl.constexpr = NET.linears[I].row_stride
    VECTOR: tl.constexpr = 16 if NET.int8 else 8
    CHUNK: tl.constexpr = 4 * VECTOR
    k = vector_range(4, VECTOR)
    index = tl.arange(0, SIZE * WARPS)
    out = tl.minimum(tile_row(index, WARPS), NET.linears[I].out_features - 1)
    w_start = tile_warp(index, WARPS) * CHUNK
    w_ptrs = weights_ptr + NET.linears[I].weights + (out * STRIDE + w_start)[:, None] + k[None, :]
    x_start = tile_warp(tl.arange(0, 8 * WARPS), WARPS) * CHUNK
    x_ptrs = x_ptr + x_start[:, None] + k[None, :]

    sums = tl.zeros((WARPS, SIZE, 8), dtype=tl.int32 if NET.int8 else tl.float32)
    STEP: tl.constexpr = CHUNK * WARPS
    STEPS: tl.constexpr = IN_FEATURES // STEP
    AHEAD: tl.constexpr = least(4, AHEAD_REGISTERS // (SIZE // 2 + 4) + 1)
    for start in range(0, STEPS // AHEAD * AHEAD * STEP, AHEAD * STEP):
        sums = add_steps(sums, x_ptrs + start, w_ptrs + start, STEP, AHEAD, WARPS, SIZE, VECTOR)
    LEFT: tl.constexpr = STEPS % AHEAD
    if LEFT > 0:
        start = (STEPS - LEFT) * STEP
        sums = add_steps(sums, x_ptrs + start, w_ptrs + start, STEP, LEFT, WARPS, SIZE, VECTOR)
    REST: tl.constexpr = IN_FEATURES % STEP
    if REST > 0:
        x_mask, w_mask = x_start[:, None] + k[None, :] < REST, w_start[:, None] + k[None, :] < REST
        x = tl.load(x_ptrs + (IN_FEATURES - REST), mask=x_mask, other=0)
        w = tl.load(w_ptrs + (IN_FEATURES - REST), mask=w_mask, other=0)
        x = right_operand(x, 1, WARPS, 2, VECTOR // 4)
        w = right_operand(w, SIZE // 8, WARPS, 2, VECTOR // 4).permute(0, 2, 1)
        sums = tl.dot(w, x, sums, out_dtype=sums.dtype)
    return tl.sum(tl.max(sums, 2), 0).to(tl.float32)


@triton.jit
def sum_of_products(x, w, NET: tl.constexpr):
    """y[k] = sum over c of x[c] · w[c, k], each product rounded by itself.

    Two threads that exchange their products and add them must get the same bits, since either may be the one whose sum
    is stored. So no product may become one fma with the addition: int8 networks are compiled without that, and in
    others the fma with 0 prevents it.
    """
    if NET.int8:
        products = x[:, None] * w
    else:
        products = fma(x[:, None], w, 0.0)
    return tl.sum(products, 0)


@triton.jit
def vecmat_fc(x, weights_ptr, NET: tl.constexpr, I: tl.constexpr, column):
    """The same of a vector x in registers, zeros beyond in_features, as float32, or int32 for int8 weights."""
    k = tl.arange(0, x.shape[0])
    offset = k[:, None] + column[None, :] * NET.linears[I].row_stride
    mask = (k < NET.linears[I].row_stride)[:, None] & (column < NET.linears[I].out_features)[None, :]
    w = tl.load(weights_ptr + NET.linears[I].weights + offset, mask=mask, other=0)
    return sum_of_products(x, w.to(x.dtype), NET).to(tl.float32)


@triton.jit
def vecmat(x, matrix_ptr, NET: tl.constexpr, rows: tl.constexpr, row_stride: tl.constexpr, column, column_mask):
    """y[k] = sum over c of x[c] · m[c, k] for some columns k of a matrix [rows, row_stride], float32.

    x: a vector in registers, float32, zeros beyond `rows`.
    """
    k = tl.arange(0, x.shape[0])
    mask = (k < rows)[:, None] & column_mask[None, :]
    w = tl.load(matrix_ptr + k[:, None] * row_stride + column[None, :], mask=mask, other=0)
    return sum_of_products(x, w.to(tl.float32), NET)


@triton.jit
def dequant_bias(acc, params_ptr, NET: tl.constexpr, I: tl.constexpr, column, column_mask):
    """The output of fully connected layer I from its sums of products: acc · scale + bias (int8), or acc + bias."""
    bias = tl.load(params_ptr + NET.linears[I].bias + column, mask=column_mask, other=0.0)
    if NET.int8:
        scale = tl.load(params_ptr + NET.linears[I].scale + column, mask=column_mask, other=0.0)
        return fma(acc, scale, bias)
    return acc + bias


@triton.jit
def quantize(x, params_ptr, NET: tl.constexpr, I: tl.constexpr):
    """The input of fully connected layer I: round(x / s_x) as int32 where it is int8, else x."""
    if NET.int8:
        x = quantize_int8(x * tl.load(params_ptr + NET.linears[I].input_scale)).to(tl.int32)
    return x


@triton.jit
def window(probability, center, bin, BINS: tl.constexpr):
    """p of the bins at most WINDOW_BINS away from `center`, around the circle, and 0 of the others."""
    distance = tl.abs(bin - center)
    distance = tl.minimum(distance, BINS - distance)
    return tl.where(distance <= WINDOW_BINS, probability, 0.0)


@triton.jit
def add_seven(a0, a1, a2, a3, a4, a5, a6, b0, b1, b2, b3, b4, b5, b6):
    """Combines seven sums of one `tl.reduce`, which shares the barriers among them."""
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6


@triton.jit
def nearer(distance, index, other_distance, other_index):
    """Of two clusters the nearer one, or the first, for `tl.reduce`."""
    other = (other_distance < distance) | ((other_distance == distance) & (other_index < index))
    return tl.where(other, other_distance, distance), tl.where(other, other_index, index)


@triton.jit
def decode_angle(
    features_ptr, weights_ptr, params_ptr, NET: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Orientation features to (class logits, cos θ, sin θ, confidence, second cos, second sin, second probability).

        p = softmax(bins),   (cos θ, sin θ) = sum over the best bin's window of p · axis, of length 1
        confidence = |sum over all bins of p · axis|                the mean resultant length
        second = the same sum around the best bin at least NMS_BINS + 1 away; its probability is the window's

    The class logits are the first `classes` elements of a vector [SIZE]; behind them are those of the bins. With
    NET.pooled there are those of the bins alone, and the class logits are 0.
    """
    column = tl.arange(0, SIZE)
    FIRST_BIN: tl.constexpr = 0 if NET.pooled else NET.classes
    column_mask = column < FIRST_BIN + NET.bins
    logits = vecmat_global(features_ptr, weights_ptr, NET, ORIENTATION, SIZE)
    logits = dequant_bias(logits, params_ptr, NET, ORIENTATION, column, column_mask)

    # Softmax over the bins, in place behind the class logits.
    bin = column - FIRST_BIN
    is_bin = (bin >= 0) & (bin < NET.bins)
    bin_logits = tl.where(is_bin, logits, float("-inf"))
    best = tl.argmax(bin_logits, 0) - FIRST_BIN
    probability = tl.exp(bin_logits - tl.max(bin_logits, 0))
    probability = probability / tl.sum(probability, 0)

    # The runner-up, with non-maximum suppression.
    distance = tl.abs(bin - best)
    distance = tl.minimum(distance, NET.bins - distance)
    second = tl.argmax(tl.where(is_bin & (distance > NMS_BINS), bin_logits, float("-inf")), 0) - FIRST_BIN

    axis_cos = tl.load(params_ptr + NET.bin_axes + bin, mask=is_bin, other=0.0)
    axis_sin = tl.load(params_ptr + NET.bin_axes + NET.bins + bin, mask=is_bin, other=0.0)
    near, near_second = window(probability, best, bin, NET.bins), window(probability, second, bin, NET.bins)
    cos, sin, second_probability, second_cos, second_sin, all_cos, all_sin = tl.reduce(
        (
            near * axis_cos, near * axis_sin, near_second, near_second * axis_cos, near_second * axis_sin,
            probability * axis_cos, probability * axis_sin,
        ),
        0, add_seven,
    )  # fmt: skip

    length = tl.sqrt(cos * cos + sin * sin + 1e-12)
    confidence = tl.sqrt(all_cos * all_cos + all_sin * all_sin)
    if NET.pooled:
        logits = tl.zeros((SIZE,), dtype=tl.float32)
    return logits, cos / length, sin / length, confidence, second_cos, second_sin, second_probability


@triton.jit
def load_regressors(orientation_means_ptr, feature_means_ptr, code_ptr, params_ptr, row, NET: tl.constexpr):
    """Rows of [orientation feature means, feature means, mu, class weights], float32; 0 beyond the last.

    The projection's rows are in this order, one behind the other (`layout.ScoreLayout`).
    """
    FEATURES: tl.constexpr = NET.orientation_feature_channels
    CODE: tl.constexpr = FEATURES + NET.feature_channels
    is_code = (row >= CODE) & (row < CODE + NET.latent + NET.classes)
    means = tl.load(feature_means_ptr + row - FEATURES, mask=(row >= FEATURES) & (row < CODE), other=0.0)
    if NET.int8 and NET.pooled:  # as the classifier reads them
        scale = tl.load(params_ptr + NET.linears[CLASSIFIER_LOGITS].input_scale + 1)
        means = quantize(means, params_ptr, NET, CLASSIFIER_LOGITS).to(tl.float32) * scale
    means += tl.load(code_ptr + row - CODE, mask=is_code, other=0.0)
    if FEATURES > 0:
        means += tl.load(orientation_means_ptr + row, mask=row < FEATURES, other=0.0)
    return means


@triton.jit
def classify_and_score(
    features_ptr, orientation_means_ptr, feature_means_ptr, code_ptr, orientation_logits, uncertainty, weights_ptr,
    params_ptr, whitening_ptr, NET: tl.constexpr, CLASSES: tl.constexpr, LATENT: tl.constexpr, HIDDEN: tl.constexpr,
    FEATURES: tl.constexpr, COMPONENTS: tl.constexpr, CLUSTERS: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """Features of the encoder to (probabilities [CLASSES], partial score, predicted reconstruction error), and to
    code_ptr, where mu and the class weights are stored.

        mu     = features · W_mu + b
        logits = relu(mu · W_1 + b_1) · W_2 + b_2 + orientation_logits    (NET.pooled: feature means · W_2 + b_2 + …)
               + features · W_3 + b_3 with NET.second_classifier
        class weights = softmax(logits),   probabilities = softmax(logits / temperature)
        z, predicted error = [both feature means, mu, class weights] · projection + offset
        partial score = w_1 · |whitened(z)| + w_2 · energy + w_3 · uncertainty − constant

    The partial score is all of the anomaly score but the reconstruction term. `orientation_logits` [CLASSES] come
    from the orientation head; `uncertainty` is log(1.001 − angle confidence); both are 0 without one. The capitals are
    the lengths of the vectors, powers of two.
    """
    REGRESSORS: tl.constexpr = NET.orientation_feature_channels + NET.feature_channels + NET.latent + NET.classes
    code, klass = tl.arange(0, LATENT), tl.arange(0, CLASSES)
    code_mask, class_mask = code < NET.latent, klass < NET.classes

    # Single parameters first: each would be waited for where it is needed. Vectors would change threads, by barriers.
    inverse_temperature = tl.load(params_ptr + NET.inverse_temperature)
    component = tl.arange(0, COMPONENTS)
    component_mask = component < NET.score.components
    error = tl.load(params_ptr + NET.score.offset + NET.score.components)
    max_error = tl.load(params_ptr + NET.score.max_expected_error)
    terms_ptr = params_ptr + NET.score.terms
    distance_weight, energy_weight = tl.load(terms_ptr + 1), tl.load(terms_ptr + 2)
    uncertainty_weight, constant = tl.load(terms_ptr + 3), tl.load(terms_ptr + 4)

    # Latent mean. What the classifier of an int8 network reads, mu or the feature means, is quantized for all readers.
    mu = vecmat_global(features_ptr, weights_ptr, NET, MU, LATENT)
    mu = dequant_bias(mu, params_ptr, NET, MU, code, code_mask)
    channel = tl.arange(0, FEATURES)
    if NET.pooled:
        means = tl.load(feature_means_ptr + channel, mask=channel < NET.feature_channels, other=0.0)
        x = quantize(means, params_ptr, NET, CLASSIFIER_LOGITS)
    else:
        hidden_column = tl.arange(0, HIDDEN)
        hidden_mask = hidden_column < NET.hidden
        x = quantize(mu, params_ptr, NET, CLASSIFIER_HIDDEN)
        if NET.int8:
            mu = x.to(tl.float32) * tl.load(params_ptr + NET.linears[CLASSIFIER_HIDDEN].input_scale + 1)
        hidden = vecmat_fc(x, weights_ptr, NET, CLASSIFIER_HIDDEN, hidden_column)
        hidden = relu(dequant_bias(hidden, params_ptr, NET, CLASSIFIER_HIDDEN, hidden_column, hidden_mask), 1)
        x = quantize(hidden, params_ptr, NET, CLASSIFIER_LOGITS)
    logits = vecmat_fc(x, weights_ptr, NET, CLASSIFIER_LOGITS, klass)
    logits = dequant_bias(logits, params_ptr, NET, CLASSIFIER_LOGITS, klass, class_mask) + orientation_logits
    if NET.second_classifier:
        second = vecmat_global(features_ptr, weights_ptr, NET, SECOND_CLASSIFIER, CLASSES)
        logits += dequant_bias(second, params_ptr, NET, SECOND_CLASSIFIER, klass, class_mask)

    # Two softmaxes of the same logits, and their energy −logsumexp (Liu et al. 2020).
    logits = tl.where(class_mask, logits, float("-inf"))
    largest = tl.max(logits, 0)
    class_weights = tl.exp(logits - largest)
    total = tl.sum(class_weights, 0)
    energy = -(largest + tl.log(total))
    class_weights = class_weights / total
    probabilities = tl.exp((logits - largest) * inverse_temperature)
    probabilities = probabilities / tl.sum(probabilities, 0)

    # Projection of the regressors to whitened components, and to the predicted error. That is the matrix' last column,
    # which is read alone: a vector of components + 1 would be twice as long where components are a power of two.
    tl.store(code_ptr + code, mu, mask=code_mask)
    tl.store(code_ptr + NET.latent + klass, class_weights, mask=class_mask)
    tl.debug_barrier()
    ROW_STRIDE: tl.constexpr = (NET.score.components + 16) // 16 * 16
    z = tl.load(params_ptr + NET.score.offset + component, mask=component_mask, other=0.0)
    products = tl.zeros((BLOCK_FC, COMPONENTS), dtype=tl.float32)
    error_products = tl.zeros((BLOCK_FC,), dtype=tl.float32)
    for start in tl.static_range(0, REGRESSORS, BLOCK_FC):
        row = start + tl.arange(0, BLOCK_FC)
        x = load_regressors(orientation_means_ptr, feature_means_ptr, code_ptr, params_ptr, row, NET)
        row_ptr = params_ptr + NET.score.project_orientation + row * ROW_STRIDE
        mask = (row < REGRESSORS)[:, None] & component_mask[None, :]
        products += x[:, None] * tl.load(row_ptr[:, None] + component[None, :], mask=mask, other=0.0)
        error_products += x * tl.load(row_ptr + NET.score.components, mask=row < REGRESSORS, other=0.0)
    z += tl.sum(products, 0)
    error += tl.sum(error_products, 0)
    error = tl.where(error > max_error, max_error, error)

    # Nearest cluster: of CLUSTERS at a time, and then of the nearest among every CLUSTERS-th.
    NEAREST_STRIDE: tl.constexpr = (NET.score.clusters + 15) // 16 * 16
    nearest, smallest = tl.zeros((CLUSTERS,), tl.int32), tl.full((CLUSTERS,), float("inf"), tl.float32)
    for start in range(0, NET.score.clusters, CLUSTERS):
        cluster = start + tl.arange(0, CLUSTERS)
        cluster_mask = cluster < NET.score.clusters
        distance = tl.load(params_ptr + NET.score.nearest_offset + cluster, mask=cluster_mask, other=float("inf"))
        distance += vecmat(
            z, params_ptr + NET.score.nearest, NET, NET.score.components, NEAREST_STRIDE, cluster, cluster_mask
        )
        nearest = tl.where(distance < smallest, cluster, nearest)
        smallest = tl.minimum(distance, smallest)
    smallest, nearest = tl.reduce((smallest, nearest), 0, nearer)

    # Mahalanobis distance to it: the norm after the cluster's own whitening.
    SQUARE: tl.constexpr = (NET.score.components + 15) // 16 * 16
    own_ptr = whitening_ptr + nearest * NET.score.components * SQUARE
    center_ptr = params_ptr + NET.score.cluster_offset + nearest * SQUARE
    center = tl.load(center_ptr + component, mask=component_mask, other=0.0)
    own = vecmat(z, own_ptr, NET, NET.score.components, SQUARE, component, component_mask) - center
    distance = tl.sqrt(tl.sum(own * own, 0))

    score = distance_weight * distance + energy_weight * energy
    score += uncertainty_weight * uncertainty - constant
    return probabilities, score, error


@triton.jit
def orientation_head(
    features_ptr, weights_ptr, params_ptr, logits_ptr, orientation_ptr, NET: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """features [N, in_features] to class logits [N, classes] and orientation [N, 6], float32. Grid: (N,).

    The orientation is cos θ, sin θ, θ, angle confidence, second angle, second angle probability.
    """
    n = tl.program_id(0).to(tl.int64)
    logits, cos, sin, confidence, second_cos, second_sin, second_probability = decode_angle(
        features_ptr + n * NET.linears[ORIENTATION].in_features, weights_ptr, params_ptr, NET, PAD.orientation
    )

    klass = tl.arange(0, PAD.orientation)
    tl.store(logits_ptr + n * NET.classes + klass, logits, mask=klass < NET.classes)
    orientation_ptr += n * 6
    tl.store(orientation_ptr, cos)
    tl.store(orientation_ptr + 1, sin)
    tl.store(orientation_ptr + 2, atan2(sin, cos))
    tl.store(orientation_ptr + 3, confidence)
    tl.store(orientation_ptr + 4, atan2(second_sin, second_cos))
    tl.store(orientation_ptr + 5, second_probability)


@triton.jit
def content_head(
    features_ptr, orientation_means_ptr, feature_means_ptr, logits_ptr, orientation_ptr, weights_ptr, params_ptr,
    whitening_ptr, probabilities_ptr, code_ptr, score_ptr,
    NET: tl.constexpr, PAD: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """features [N, in_features] to probabilities [N, classes], code [N, latent + classes] (mu, then class weights) and
    score [N, 2] (partial score, predicted reconstruction error), float32. Grid: (N,).

    orientation_means, feature_means: average pools of the feature layers, [N, channels].  logits, orientation: outputs
    of `orientation_head`.  Without an orientation encoder its means, logits and orientation are not read.
    """
    n = tl.program_id(0).to(tl.int64)
    CLASSES: tl.constexpr = PAD.classes
    klass = tl.arange(0, CLASSES)
    logits = tl.zeros((CLASSES,), dtype=tl.float32)
    uncertainty = 0.0
    if NET.bins > 0:
        logits = tl.load(logits_ptr + n * NET.classes + klass, mask=klass < NET.classes, other=0.0)
        uncertainty = tl.log(1.001 - tl.load(orientation_ptr + n * 6 + 3))

    probabilities, score, error = classify_and_score(
        features_ptr + n * NET.linears[MU].in_features, orientation_means_ptr + n * NET.orientation_feature_channels,
        feature_means_ptr + n * NET.feature_channels, code_ptr + n * (NET.latent + NET.classes), logits, uncertainty,
        weights_ptr, params_ptr, whitening_ptr, NET, PAD.classes, PAD.latent, PAD.hidden, PAD.features,
        PAD.components, PAD.clusters, BLOCK_FC,
    )  # fmt: skip

    tl.store(probabilities_ptr + n * NET.classes + klass, probabilities, mask=klass < NET.classes)
    tl.store(score_ptr + n * 2, score)
    tl.store(score_ptr + n * 2 + 1, error)


def orientation_forward(
    net: NetworkLayout, features: Any, weights: Any, params: Any, logits: Any, orientation: Any
) -> None:
    """Launch `orientation_head` on the current device and stream; all tensors are contiguous.

    Args:
        net: the network's layout.
        features: [N, F], float16 or int8: the last feature maps of the orientation encoder, [h, w, C] flattened.
        weights, params: see `layout`.
        logits: float32 [N, K], written.
        orientation: float32 [N, 6], written: cos θ, sin θ, θ, angle confidence, second angle, second angle probability.
    """
    if features.shape[0]:
        config = get_config(OPERATOR, "orientation_head", current_architecture())
        orientation_head[(features.shape[0],)](
            features, weights, params, logits, orientation, NET=with_warps(net, config["num_warps"]),
            PAD=padded_sizes(net), enable_fp_fusion=not net.int8, **config,
        )  # fmt: skip


def content_forward(
    net: NetworkLayout, features: Any, orientation_means: Any, feature_means: Any, logits: Any, orientation: Any,
    weights: Any, params: Any, whitening: Any, probabilities: Any, code: Any, score: Any,
) -> None:  # fmt: skip
    """Launch `content_head` on the current device and stream; all tensors are contiguous, the last three are written.

    Args:
        net: the network's layout.
        features: [N, F] of the encoder, as in `orientation_forward`.
        orientation_means, feature_means: float32 [N, C], average pools of the feature layers.
        logits, orientation: as `orientation_forward` wrote them.
        weights, params, whitening: see `layout`.
        probabilities: float32 [N, K].
        code: float32 [N, Z + K]: mu, then class weights.
        score: float32 [N, 2]: partial score, predicted reconstruction error.
    """
    if features.shape[0]:
        config = get_config(OPERATOR, "content_head", current_architecture())
        content_head[(features.shape[0],)](
            features, orientation_means, feature_means, logits, orientation, weights, params, whitening,
            probabilities, code, score, NET=with_warps(net, config["num_warps"]),
            PAD=padded_sizes(net), enable_fp_fusion=not net.int8, **config,
        )  # fmt: skip


def network_variants(net: NetworkLayout, architecture: int) -> list[KernelSpec]:
    """The heads of a network, for the ahead-of-time compiler."""
    heads = [orientation_head, content_head] if net.bins else [content_head]
    return [_variant(head, net, architecture) for head in heads]


def _variant(function: Any, net: NetworkLayout, architecture: int) -> KernelSpec:
    name = function.__name__
    config = get_config(OPERATOR, name, architecture)
    types = {pointer: "*fp32" for pointer in function.arg_names if pointer.endswith("_ptr")}
    activation = "*i8" if net.int8 else "*fp16"
    read = {"features_ptr": activation, "weights_ptr": activation, "params_ptr": "*fp32", "whitening_ptr": "*fp16"}
    read = {pointer: kind for pointer, kind in read.items() if pointer in types}
    return KernelSpec(
        name=name,
        operator=OPERATOR,
        function=function,
        types=types | read,
        constants={
            "NET": with_warps(net, config["num_warps"]),
            "PAD": padded_sizes(net),
            **{name: value for name, value in config.items() if name == "BLOCK_FC"},
        },
        aligned=tuple(read),
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        fp_fusion=not net.int8,
    )
