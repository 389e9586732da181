"""The heads of the network: linear layers, the read-out of the angle, softmax and rejection score, one launch each.

A program takes one image, whose vectors stay in registers; where the numbers lie says a `plan.Plan`, by which the
kernels are specialized. The formulas are those of `vae_edge.model` (network and score). Where layers are int8 their
inputs are rounded to int8 first, and their products are summed in int32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels import plan
from vae_edge_kernels.config import KernelSpec, current_architecture, get_config
from vae_edge_kernels.implicit_gemm import fma, quantize_int8, relu

OPERATOR = "head"
MU, INNER, OUTER, POSE, FIRST = (
    tl.constexpr(number) for number in (plan.MU, plan.INNER, plan.OUTER, plan.POSE, plan.FIRST)
)
WINDOW_BINS = tl.constexpr(2)  # bins on either side of the best one that take part in the read-out of the angle
APART_BINS = tl.constexpr(4)  # a second-best bin is further away from the best one than this


@triton.jit
def arc_tangent(y, x):
    """atan2(y, x) in radians, within 3e-7; 0 for (0, 0)."""
    along, across = tl.abs(x), tl.abs(y)
    larger = tl.maximum(along, across)
    ratio = tl.minimum(along, across) / tl.where(larger > 0.0, larger, 1.0)
    square = ratio * ratio
    angle = -0.004054544955 * square + 0.02186287737
    angle = angle * square - 0.05591221063
    angle = angle * square + 0.09642188823
    angle = angle * square - 0.1390862623
    angle = angle * square + 0.1994656499
    angle = angle * square - 0.3332986073
    angle = (angle * square + 0.9999993356) * ratio
    angle = tl.where(across > along, 1.5707963267948966 - angle, angle)
    angle = tl.where(x < 0.0, 3.141592653589793 - angle, angle)
    return tl.where(y < 0.0, -angle, angle)


@triton.jit
def product_of_memory(x_ptr, weights_ptr, P: tl.constexpr, I: tl.constexpr, column, CHUNK: tl.constexpr):
    """The vector at x_ptr times columns of a layer's weights: float32, as many as `column` has; 0 behind the last."""
    SUM: tl.constexpr = tl.int32 if P.int8 else tl.float32
    total = tl.zeros((column.shape[0],), dtype=SUM)
    for start in range(0, P.linears[I].inputs, CHUNK):
        k = start + tl.arange(0, CHUNK)
        x = tl.load(x_ptr + k, mask=k < P.linears[I].inputs, other=0).to(SUM)
        w = tl.load(
            weights_ptr + P.linears[I].weights + k[:, None] * P.linears[I].stride + column[None, :],
            mask=(k < P.linears[I].inputs)[:, None] & (column < P.linears[I].stride)[None, :],
            other=0,
        )
        total += tl.sum(x[:, None] * w.to(SUM), 0)
    return total.to(tl.float32)


@triton.jit
def product(x, matrix_ptr, rows: tl.constexpr, stride: tl.constexpr, column, known):
    """A vector in registers (zeros behind its first `rows`) times columns of a matrix [rows, stride]: float32.

    Sums are of the vector's type: float32, or int32 where the matrix is int8.
    """
    k = tl.arange(0, x.shape[0])
    w = tl.load(matrix_ptr + k[:, None] * stride + column[None, :], mask=(k < rows)[:, None] & known[None, :], other=0)
    return tl.sum(x[:, None] * w.to(x.dtype), 0).to(tl.float32)


@triton.jit
def rescaled(total, numbers_ptr, P: tl.constexpr, I: tl.constexpr, column, known):
    """A product to the layer's output: scaled where it was one of integers, plus bias."""
    bias = tl.load(numbers_ptr + P.linears[I].bias + column, mask=known, other=0.0)
    if P.int8:
        return fma(total, tl.load(numbers_ptr + P.linears[I].scale + column, mask=known, other=0.0), bias)
    return total + bias


@triton.jit
def rounded(x, numbers_ptr, P: tl.constexpr, I: tl.constexpr):
    """What a layer takes of a vector: int8 values where it is quantized."""
    if P.int8:
        x = quantize_int8(x * tl.load(numbers_ptr + P.linears[I].quantize)).to(tl.int32)
    return x


@triton.jit
def around(share, axis_cos, axis_sin, bin, index, BINS: tl.constexpr):
    """Probability in the window around a bin, and its cosine and sine sums; all are 0 where there is no bin."""
    apart = tl.abs(index - bin)
    apart = tl.minimum(apart, BINS - apart)
    near = tl.where(apart <= WINDOW_BINS, share, 0.0)
    return tl.sum(near, 0), tl.sum(near * axis_cos, 0), tl.sum(near * axis_sin, 0)


@triton.jit
def read_pose(
    features_ptr, weights_ptr, numbers_ptr, P: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Features of the pose trunk to (class logits, cos θ, sin θ, concentration, second cos, sin, share).

    The logits are the first `classes` elements of a vector [SIZE], behind which come those of the angle bins.
    """
    column = tl.arange(0, SIZE)
    known = column < P.classes + P.bins
    logits = product_of_memory(features_ptr, weights_ptr, P, POSE, column, CHUNK)
    logits = rescaled(logits, numbers_ptr, P, POSE, column, known)
    index = column - P.classes
    known = (index >= 0) & (index < P.bins)
    bins = tl.where(known, logits, float("-inf"))
    best = tl.argmax(bins, 0) - P.classes
    share = tl.exp(bins - tl.max(bins, 0))
    share = share / tl.sum(share, 0)
    apart = tl.abs(index - best)
    apart = tl.minimum(apart, P.bins - apart)
    second = tl.argmax(tl.where(known & (apart > APART_BINS), bins, float("-inf")), 0) - P.classes
    axis_cos = tl.load(numbers_ptr + P.axes + index, mask=known, other=0.0)
    axis_sin = tl.load(numbers_ptr + P.axes + P.bins + index, mask=known, other=0.0)
    _, cos, sin = around(share, axis_cos, axis_sin, best, index, P.bins)
    second_share, second_cos, second_sin = around(share, axis_cos, axis_sin, second, index, P.bins)
    all_cos = tl.sum(share * axis_cos, 0)
    all_sin = tl.sum(share * axis_sin, 0)
    length = tl.sqrt(cos * cos + sin * sin + 1e-12)
    concentration = tl.sqrt(all_cos * all_cos + all_sin * all_sin)
    return logits, cos / length, sin / length, concentration, second_cos, second_sin, second_share


@triton.jit
def read_content(
    features_ptr, pose_means_ptr, means_ptr, pose_logits, doubt, weights_ptr, numbers_ptr, whitenings_ptr,
    P: tl.constexpr, CLASSES: tl.constexpr, LATENT: tl.constexpr, HIDDEN: tl.constexpr, TAPS: tl.constexpr,
    COMPONENTS: tl.constexpr, CLUSTERS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Features of the encoder to (probabilities [CLASSES], mu [LATENT], class weights [CLASSES], score but for the
    reconstruction's measure, error to be expected).

    `pose_logits` [CLASSES] are those of the pose trunk; `doubt` is log(1.001 − concentration); both 0 without one.
    The capitals are the sizes of the plan, as powers of two.
    """
    code, klass = tl.arange(0, LATENT), tl.arange(0, CLASSES)
    known_code, known_class = code < P.latent, klass < P.classes
    mu = product_of_memory(features_ptr, weights_ptr, P, MU, code, CHUNK)
    mu = rescaled(mu, numbers_ptr, P, MU, code, known_code)
    inner = tl.arange(0, HIDDEN)
    known = inner < P.hidden
    x = rounded(mu, numbers_ptr, P, INNER)
    if P.int8:
        mu = x.to(tl.float32) * tl.load(numbers_ptr + P.linears[INNER].quantize + 1)
    hidden = product(x, weights_ptr + P.linears[INNER].weights, P.latent, P.linears[INNER].stride, inner, known)
    hidden = relu(rescaled(hidden, numbers_ptr, P, INNER, inner, known), 1)
    x = rounded(hidden, numbers_ptr, P, OUTER)
    logits = product(x, weights_ptr + P.linears[OUTER].weights, P.hidden, P.linears[OUTER].stride, klass, known_class)
    logits = rescaled(logits, numbers_ptr, P, OUTER, klass, known_class) + pose_logits
    logits = tl.where(known_class, logits, float("-inf"))
    largest = tl.max(logits, 0)
    weights = tl.exp(logits - largest)
    total = tl.sum(weights, 0)
    energy = -(largest + tl.log(total))
    weights = weights / total
    probabilities = tl.exp((logits - largest) * tl.load(numbers_ptr + P.temperature))
    probabilities = probabilities / tl.sum(probabilities, 0)
    ACROSS: tl.constexpr = (P.score.components + 16) // 16 * 16
    component = tl.arange(0, COMPONENTS)
    there = component < P.score.components
    last = tl.full((1,), P.score.components, dtype=tl.int32)
    always = last >= 0
    matrix_ptr = numbers_ptr + P.score.project_mu
    white = product(mu, matrix_ptr, P.latent, ACROSS, component, there)
    expected = product(mu, matrix_ptr, P.latent, ACROSS, last, always)
    matrix_ptr = numbers_ptr + P.score.project_classes
    white += product(weights, matrix_ptr, P.classes, ACROSS, component, there)
    expected += product(weights, matrix_ptr, P.classes, ACROSS, last, always)
    tap = tl.arange(0, TAPS)
    means = tl.load(means_ptr + tap, mask=tap < P.tap, other=0.0)
    matrix_ptr = numbers_ptr + P.score.project_tap
    white += product(means, matrix_ptr, P.tap, ACROSS, component, there)
    expected += product(means, matrix_ptr, P.tap, ACROSS, last, always)
    if P.bins > 0:
        means = tl.load(pose_means_ptr + tap, mask=tap < P.pose_tap, other=0.0)
        matrix_ptr = numbers_ptr + P.score.project_pose
        white += product(means, matrix_ptr, P.pose_tap, ACROSS, component, there)
        expected += product(means, matrix_ptr, P.pose_tap, ACROSS, last, always)
    white += tl.load(numbers_ptr + P.score.offset + component, mask=there, other=0.0)
    expected = tl.sum(expected, 0) + tl.load(numbers_ptr + P.score.offset + P.score.components)
    most_expected = tl.load(numbers_ptr + P.score.most_expected)
    expected = tl.where(expected > most_expected, most_expected, expected)
    SQUARE: tl.constexpr = (P.score.components + 15) // 16 * 16
    STRIDE: tl.constexpr = (P.score.clusters + 15) // 16 * 16
    nearest, least = tl.full((), 0, tl.int32), tl.full((), float("inf"), tl.float32)
    for start in range(0, P.score.clusters, CLUSTERS):
        cluster = start + tl.arange(0, CLUSTERS)
        near = cluster < P.score.clusters
        apart = product(white, numbers_ptr + P.score.nearest, P.score.components, STRIDE, cluster, near)
        apart += tl.load(numbers_ptr + P.score.nearest_offset + cluster, mask=near, other=float("inf"))
        nearest = tl.where(tl.min(apart, 0) < least, start + tl.argmin(apart, 0), nearest)
        least = tl.minimum(tl.min(apart, 0), least)
    own_ptr = whitenings_ptr + nearest * P.score.components * SQUARE
    own = product(white, own_ptr, P.score.components, SQUARE, component, there)
    own -= tl.load(numbers_ptr + P.score.cluster_offset + nearest * SQUARE + component, mask=there, other=0.0)
    distance = tl.sqrt(tl.sum(own * own, 0))
    measure_ptr = numbers_ptr + P.score.measures
    score = tl.load(measure_ptr + 1) * distance + tl.load(measure_ptr + 2) * energy
    score += tl.load(measure_ptr + 3) * doubt - tl.load(measure_ptr + 4)
    return probabilities, mu, weights, score, expected


@triton.jit
def pose_head(
    features_ptr, weights_ptr, numbers_ptr, logits_ptr, pose_ptr,
    P: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Features [N, inputs] of the pose trunk to class logits [N, classes] and pose [N, 6], float32; N programs.

    The pose is cos θ, sin θ, θ, concentration, second-best angle, its share.
    """
    n = tl.program_id(0).to(tl.int64)
    logits, cos, sin, concentration, second_cos, second_sin, share = read_pose(
        features_ptr + n * P.linears[POSE].inputs, weights_ptr, numbers_ptr, P, S.pose, CHUNK
    )
    klass = tl.arange(0, S.pose)
    tl.store(logits_ptr + n * P.classes + klass, logits, mask=klass < P.classes)
    pose_ptr += n * 6
    tl.store(pose_ptr, cos)
    tl.store(pose_ptr + 1, sin)
    tl.store(pose_ptr + 2, arc_tangent(sin, cos))
    tl.store(pose_ptr + 3, concentration)
    tl.store(pose_ptr + 4, arc_tangent(second_sin, second_cos))
    tl.store(pose_ptr + 5, share)


@triton.jit
def content_head(
    features_ptr, pose_means_ptr, means_ptr, logits_ptr, pose_ptr, weights_ptr, numbers_ptr, whitenings_ptr,
    probabilities_ptr, code_ptr, score_ptr,
    P: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Features [N, inputs] of the encoder to probabilities [N, classes], code [N, latent + classes] (mu, then class
    weights) and score [N, 2] (but for the reconstruction's measure; the error to be expected), float32; N programs.

    pose_means [N, pose_tap], means [N, tap], logits [N, classes] and pose [N, 6] are float32; without a pose trunk the
    first, third and fourth are not read.
    """
    n = tl.program_id(0).to(tl.int64)
    CLASSES: tl.constexpr = S.classes
    klass = tl.arange(0, CLASSES)
    logits = tl.zeros((CLASSES,), dtype=tl.float32)
    doubt = 0.0
    if P.bins > 0:
        logits = tl.load(logits_ptr + n * P.classes + klass, mask=klass < P.classes, other=0.0)
        doubt = tl.log(1.001 - tl.load(pose_ptr + n * 6 + 3))
    probabilities, mu, class_weights, score, expected = read_content(
        features_ptr + n * P.linears[MU].inputs, pose_means_ptr + n * P.pose_tap, means_ptr + n * P.tap, logits, doubt,
        weights_ptr, numbers_ptr, whitenings_ptr, P, S.classes, S.latent, S.hidden, S.taps, S.components, S.clusters,
        CHUNK,
    )  # fmt: skip
    tl.store(probabilities_ptr + n * P.classes + klass, probabilities, mask=klass < P.classes)
    code = tl.arange(0, S.latent)
    code_ptr += n * (P.latent + P.classes)
    tl.store(code_ptr + code, mu, mask=code < P.latent)
    tl.store(code_ptr + P.latent + klass, class_weights, mask=klass < P.classes)
    tl.store(score_ptr + n * 2, score)
    tl.store(score_ptr + n * 2 + 1, expected)


def pose_forward(given: plan.Plan, features: Any, weights: Any, numbers: Any, logits: Any, pose: Any) -> None:
    """Launch on the current device and stream; all tensors are contiguous.

    Args:
        given: what the network is.
        features: [N, F], float16, or int8 where the network is; the pixels of the last maps, channels next to each
            other.
        weights, numbers: see `plan`.
        logits: float32 [N, K], written.
        pose: float32 [N, 6], written: cos θ, sin θ, θ, concentration, second-best angle, its share.
    """
    if features.shape[0]:
        chosen = get_config(OPERATOR, "pose_head", current_architecture())
        pose_head[(features.shape[0],)](
            features, weights, numbers, logits, pose, P=given, S=plan.sizes(given),
            enable_fp_fusion=not given.int8, **chosen,
        )  # fmt: skip


def content_forward(
    given: plan.Plan, features: Any, pose_means: Any, means: Any, logits: Any, pose: Any,
    weights: Any, numbers: Any, whitenings: Any, probabilities: Any, code: Any, score: Any,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, the last three are written, float32.

    Args:
        given: what the network is.
        features: [N, F] of the encoder, as in `pose_forward`.
        pose_means, means: float32 [N, W], means of the tapped layers.
        logits, pose: as written by `pose_forward`.
        weights, numbers, whitenings: see `plan`.
        probabilities: [N, K].
        code: [N, Z + K]: mu and class weights.
        score: [N, 2]: all of the score but the reconstruction's measure, and the error to be expected.
    """
    if features.shape[0]:
        chosen = get_config(OPERATOR, "content_head", current_architecture())
        content_head[(features.shape[0],)](
            features, pose_means, means, logits, pose, weights, numbers, whitenings, probabilities, code, score,
            P=given, S=plan.sizes(given), enable_fp_fusion=not given.int8, **chosen,
        )  # fmt: skip


def plan_variants(given: plan.Plan, architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes of this operator for a network: its heads."""
    return [
        _variant(function, given, architecture) for function in ([pose_head] if given.bins else []) + [content_head]
    ]


def _variant(function: Any, given: plan.Plan, architecture: int) -> KernelSpec:
    name = function.__name__
    chosen = get_config(OPERATOR, name, architecture)
    types = {pointer: "*fp32" for pointer in function.arg_names if pointer.endswith("_ptr")}
    inner = "*i8" if given.int8 else "*fp16"
    read = {"features_ptr": inner, "weights_ptr": inner, "numbers_ptr": "*fp32", "whitenings_ptr": "*fp16"}
    read = {pointer: kind for pointer, kind in read.items() if pointer in types}
    return KernelSpec(
        name=name,
        operator=OPERATOR,
        function=function,
        types=types | read,
        constants={"P": given, "S": plan.sizes(given), "CHUNK": chosen["CHUNK"]},
        aligned=tuple(read),
        num_warps=chosen["num_warps"],
        num_stages=chosen["num_stages"],
        fp_fusion=not given.int8,
    )
