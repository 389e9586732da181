"""The whole network in one launch: a program takes an image from its bytes to the answer.

Pose trunk, angle, turning back, encoder, head, decoder and score follow one another in one program, written from the
building blocks of the single operators and specialized by a `plan.Plan`. Activations go through a scratch buffer that
is small enough to stay in the cache; between layers the program's threads wait for one another.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels import configurations, convolution, convolution_int8
from vae_edge_kernels.head import FIRST, arc_tangent, product, read_content, read_pose, rescaled, rounded
from vae_edge_kernels.plan import Plan, sizes, tiled
from vae_edge_kernels.tiles import at_least, gather, operand, round_to_int8
from vae_edge_kernels.turn import turned
from vae_edge_kernels.variants import Variant

OPERATOR = "network"


@triton.jit
def values(total, numbers_ptr, P: tl.constexpr, I: tl.constexpr, column, known):
    """A layer's sums [ROWS, COLUMNS] to its outputs, float32."""
    if P.int8:
        total = total.to(tl.float32) * tl.load(numbers_ptr + P.layers[I].scale + column, mask=known, other=0.0)[None, :]
    total = total + tl.load(numbers_ptr + P.layers[I].bias + column, mask=known, other=0.0)[None, :]
    if P.layers[I].relu:
        total = at_least(total, 1)
    return total


@triton.jit
def keep(value, target_ptr, numbers_ptr, P: tl.constexpr, I: tl.constexpr, row, column, known):
    """Store a tile of a layer's output, rounded where the network is int8."""
    where = row[:, None] * P.layers[I].outputs + column[None, :]
    there = (row < P.layers[I].out_side * P.layers[I].out_side)[:, None] & known[None, :]
    if P.int8:
        value = round_to_int8(value * tl.load(numbers_ptr + P.layers[I].quantize))
    tl.store(target_ptr + where, value.to(target_ptr.dtype.element_ty), mask=there)


@triton.jit
def as_kept(value, numbers_ptr, P: tl.constexpr, I: tl.constexpr):
    """What the next layer takes a tile of a layer's output for."""
    if P.int8:
        quantize_ptr = numbers_ptr + P.layers[I].quantize
        value = round_to_int8(value * tl.load(quantize_ptr)).to(tl.float32) * tl.load(quantize_ptr + 1)
    return value


@triton.jit
def row_zero(numbers_ptr, P: tl.constexpr):
    """0, read from memory: rows counted from it are not known to be those of another layer, whose indices the compiler
    would otherwise keep in registers until they are wanted again."""
    return tl.multiple_of(tl.load(numbers_ptr + P.zero).to(tl.int32), 16)


@triton.jit
def first_layer(x_ptr, target_ptr, weights_ptr, numbers_ptr, scale, P: tl.constexpr, I: tl.constexpr):
    """The layer that reads pixels [side, side, few], bytes or floats, after multiplication by `scale`."""
    SIDE: tl.constexpr = P.layers[I].out_side
    ROWS: tl.constexpr = P.layers[I].rows
    COLUMNS: tl.constexpr = P.layers[I].columns
    DEPTH: tl.constexpr = P.layers[I].depth
    TAPS: tl.constexpr = P.layers[I].taps
    SUMMED: tl.constexpr = TAPS * TAPS * P.layers[I].inputs
    OUTPUTS: tl.constexpr = P.layers[I].outputs
    zero = row_zero(numbers_ptr, P)
    k = zero + tl.arange(0, DEPTH)
    for first in tl.static_range(0, OUTPUTS, COLUMNS):
        column = zero + first + tl.arange(0, COLUMNS)
        known = column < P.layers[I].outputs
        there = (k < SUMMED)[:, None] & known[None, :]
        w_ptr = weights_ptr + P.layers[I].weights
        if P.int8:
            w = tl.load(w_ptr + column[None, :] * SUMMED + k[:, None], mask=there, other=0)
        else:
            w = tl.load(w_ptr + k[:, None] * P.layers[I].outputs + column[None, :], mask=there, other=0.0)
        for start in range(0, SIDE * SIDE, ROWS):
            row = zero + start + tl.arange(0, ROWS)
            x = gather(
                x_ptr, row * 0, row // SIDE, row % SIDE, row < SIDE * SIDE, P.layers[I].side, P.layers[I].side,
                P.layers[I].inputs, TAPS, TAPS, P.layers[I].stride, TAPS // 2, TAPS // 2, DEPTH,
            ).to(tl.float32)  # fmt: skip
            if P.int8:
                total = tl.dot(round_to_int8(x * scale), w, out_dtype=tl.int32)
            else:
                total = tl.dot(operand((x * scale).to(w.dtype)), operand(w), input_precision="tf32")
            value = values(total, numbers_ptr, P, I, column, known)
            keep(value, target_ptr, numbers_ptr, P, I, row, column, known)
    tl.debug_barrier()


@triton.jit
def tile(source_ptr, weights_ptr, P: tl.constexpr, I: tl.constexpr, row, column):
    """A layer's outputs' sums at pixels `row` and channels `column` of the image at source_ptr."""
    SIDE: tl.constexpr = P.layers[I].out_side
    TAPS: tl.constexpr = P.layers[I].taps
    image, oy, ox, inside = row * 0, row // SIDE, row % SIDE, row < SIDE * SIDE
    if P.int8:
        total = convolution_int8.accumulate(
            source_ptr, weights_ptr + P.layers[I].weights, image, oy, ox, inside, column, P.layers[I].side,
            P.layers[I].side, P.layers[I].inputs, P.layers[I].outputs, TAPS, TAPS, P.layers[I].stride, TAPS // 2,
            TAPS // 2, P.layers[I].rows, P.layers[I].columns, P.layers[I].depth, tl.int32,
        )  # fmt: skip
    else:
        total = convolution.accumulate(
            source_ptr, weights_ptr + P.layers[I].weights, image, oy, ox, inside, column, P.layers[I].side,
            P.layers[I].side, P.layers[I].inputs, P.layers[I].outputs, TAPS, TAPS, P.layers[I].stride, TAPS // 2,
            TAPS // 2, P.layers[I].rows, P.layers[I].columns, P.layers[I].depth, 1,
        )  # fmt: skip
    return total


@triton.jit
def layer(source_ptr, target_ptr, means_ptr, weights_ptr, numbers_ptr, P: tl.constexpr, I: tl.constexpr):
    """A convolution of one image from one area to the other; of a tapped layer also its outputs' means by channel."""
    PIXELS: tl.constexpr = P.layers[I].out_side * P.layers[I].out_side
    ROWS: tl.constexpr = P.layers[I].rows
    COLUMNS: tl.constexpr = P.layers[I].columns
    OUTPUTS: tl.constexpr = P.layers[I].outputs
    zero = row_zero(numbers_ptr, P)
    for first in tl.static_range(0, OUTPUTS, COLUMNS):
        column = zero + first + tl.arange(0, COLUMNS)
        known = column < OUTPUTS
        sums = tl.zeros((COLUMNS,), dtype=tl.float32)
        for start in range(0, PIXELS, ROWS):
            row = zero + start + tl.arange(0, ROWS)
            value = values(tile(source_ptr, weights_ptr, P, I, row, column), numbers_ptr, P, I, column, known)
            keep(value, target_ptr, numbers_ptr, P, I, row, column, known)
            if P.layers[I].tap:
                value = as_kept(value, numbers_ptr, P, I)
                sums += tl.sum(tl.where((row < PIXELS)[:, None], value, 0.0), 0)
        if P.layers[I].tap:
            tl.store(means_ptr + column, sums * (1.0 / PIXELS), mask=known)
    tl.debug_barrier()


@triton.jit(noinline=True)
def call_first_layer(x_ptr, target_ptr, weights_ptr, numbers_ptr, scale, P: tl.constexpr, I: tl.constexpr):
    """`first_layer` as a function of its own in the machine code."""
    first_layer(x_ptr, target_ptr, weights_ptr, numbers_ptr, scale, P, I)


@triton.jit(noinline=True)
def call_layer(source_ptr, target_ptr, means_ptr, weights_ptr, numbers_ptr, P: tl.constexpr, I: tl.constexpr):
    """`layer` as a function of its own in the machine code."""
    layer(source_ptr, target_ptr, means_ptr, weights_ptr, numbers_ptr, P, I)


@triton.jit
def trunk(
    x_ptr, area_ptr, means_ptr, weights_ptr, numbers_ptr, scale, P: tl.constexpr, CALLS: tl.constexpr,
    FROM: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """A trunk's layers, back and forth between the two areas, from pixels at x_ptr; the features' address.

    With CALLS each layer is a function of its own. Without, the compiler keeps what two trunks of one shape have in
    common in registers from the first to the second: twice as many, and spills. Where the matrix units have a memory of
    their own (sm_100, sm_110) it compiles no such functions.
    """
    if CALLS:
        call_first_layer(x_ptr, area_ptr, weights_ptr, numbers_ptr, scale, P, FROM)
    else:
        first_layer(x_ptr, area_ptr, weights_ptr, numbers_ptr, scale, P, FROM)
    for i in tl.static_range(1, COUNT):
        source_ptr, target_ptr = area_ptr + (i - 1) % 2 * P.area, area_ptr + i % 2 * P.area
        if CALLS:
            call_layer(source_ptr, target_ptr, means_ptr, weights_ptr, numbers_ptr, P, FROM + i)
        else:
            layer(source_ptr, target_ptr, means_ptr, weights_ptr, numbers_ptr, P, FROM + i)
    return area_ptr + (COUNT - 1) % 2 * P.area


@triton.jit
def error_of_reconstruction(
    mu, class_weights, upright_ptr, area_ptr, weights_ptr, numbers_ptr, P: tl.constexpr, CHUNK: tl.constexpr
):
    """The decoder's image against the upright one: squared error over the variance, see `vae_edge.model.score`."""
    CELLS: tl.constexpr = P.grid * P.grid
    mu, class_weights = rounded(mu, numbers_ptr, P, FIRST), rounded(class_weights, numbers_ptr, P, FIRST)
    first_ptr = weights_ptr + P.linears[FIRST].weights
    middle: tl.constexpr = P.pose_layers + P.trunk_layers
    last: tl.constexpr = middle + 1
    for start in range(0, P.linears[FIRST].outputs, CHUNK):
        column = start + tl.arange(0, CHUNK)
        known = column < P.linears[FIRST].outputs
        x = product(mu, first_ptr, P.latent, P.linears[FIRST].stride, column, known)
        code_rows = P.latent * P.linears[FIRST].stride
        x += product(class_weights, first_ptr + code_rows, P.classes, P.linears[FIRST].stride, column, known)
        x = at_least(rescaled(x, numbers_ptr, P, FIRST, column, known), 1)
        if P.int8:
            x = round_to_int8(x * tl.load(numbers_ptr + P.quantize_grid))
        tl.store(area_ptr + column, x.to(area_ptr.dtype.element_ty), mask=known)
    tl.debug_barrier()
    layer(area_ptr, area_ptr + P.area, area_ptr, weights_ptr, numbers_ptr, P, middle)
    ROWS: tl.constexpr = P.layers[last].rows
    COLUMNS: tl.constexpr = P.layers[last].columns
    BLOCK: tl.constexpr = P.block
    SIZE: tl.constexpr = P.side * P.side * P.channels
    apart = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    brightness = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    OUTPUTS: tl.constexpr = P.layers[last].outputs
    zero = row_zero(numbers_ptr, P)
    for first in tl.static_range(0, OUTPUTS, COLUMNS):
        column = zero + first + tl.arange(0, COLUMNS)
        known = column < OUTPUTS
        for start in range(0, CELLS, ROWS):
            row = zero + start + tl.arange(0, ROWS)
            total = tile(area_ptr + P.area, weights_ptr, P, last, row, column)
            drawn = 1.0 / (1.0 + tl.exp(-values(total, numbers_ptr, P, last, column, known)))
            y = (row // P.grid * BLOCK)[:, None] + (column // BLOCK % BLOCK)[None, :]
            x = (row % P.grid * BLOCK)[:, None] + (column % BLOCK)[None, :]
            there = (row < CELLS)[:, None] & known[None, :] & (y < P.side) & (x < P.side)
            where = (y * P.side + x) * P.channels + (column // (BLOCK * BLOCK))[None, :]
            seen = tl.load(upright_ptr + where, mask=there, other=0.0)
            apart += tl.where(there, (seen - drawn) * (seen - drawn), 0.0)
            brightness += seen
    mean = tl.sum(tl.sum(brightness, 1), 0) / SIZE
    contrast = 0.0
    for start in range(0, SIZE, 1024):
        element = start + tl.arange(0, 1024)
        seen = tl.load(upright_ptr + element, mask=element < SIZE, other=0.0)
        contrast += tl.sum(tl.where(element < SIZE, (seen - mean) * (seen - mean), 0.0), 0)
    root = tl.sqrt(contrast) + tl.sqrt(0.001 * SIZE)
    return tl.sum(tl.sum(apart, 1), 0) / (root * root)


@triton.jit
def network(
    image_ptr, weights_ptr, numbers_ptr, whitenings_ptr, areas_ptr, floats_ptr,
    probabilities_ptr, angle_ptr, score_ptr, doubts_ptr,
    P: tl.constexpr, S: tl.constexpr, ELEMENTS: tl.constexpr, CHUNK: tl.constexpr,
    CALLS: tl.constexpr,
):  # fmt: skip
    """image uint8 [N, side, side, channels] to probabilities [N, classes], angle [N] in radians, score [N] and doubts
    [N, 3] (concentration, second angle, its share), float32. The grid has N programs.

    Args:
        weights_ptr, numbers_ptr, whitenings_ptr: what the plan P names places of.
        areas_ptr: scratch, [N, 2, area], of the weights' type.
        floats_ptr: scratch, float32 [N, floats].
        S: sizes of the vectors, powers of two.
    """
    n = tl.program_id(0).to(tl.int64)
    SIZE: tl.constexpr = P.side * P.side * P.channels
    PIXELS: tl.constexpr = (SIZE + 15) // 16 * 16
    POSE_TAPS: tl.constexpr = (P.pose_tap + 15) // 16 * 16
    image_ptr += n * SIZE
    area_ptr = areas_ptr + n * 2 * P.area
    pixels_ptr = floats_ptr + n * P.floats
    pose_means_ptr = pixels_ptr + PIXELS
    means_ptr = pose_means_ptr + POSE_TAPS
    klass = tl.arange(0, S.classes)
    logits = tl.zeros((S.classes,), dtype=tl.float32)
    doubt = 0.0
    scale = 1.0 / 255.0
    if P.bins > 0:
        inverse, counts = 1.0, 1.0
        if P.int8:
            inverse = tl.load(numbers_ptr + P.quantize_image)
            counts = tl.load(numbers_ptr + P.quantize_image + 1)
        if P.window:
            for start in range(0, SIZE, ELEMENTS):
                element = start + tl.arange(0, ELEMENTS)
                seen = turned(
                    image_ptr,
                    element,
                    1.0,
                    0.0,
                    P.side,
                    P.channels,
                    scale,
                    P.fill,
                    1.0,
                    1.0,
                    element < SIZE,
                    True,
                    False,
                )
                tl.store(pixels_ptr + element, seen, mask=element < SIZE)
            tl.debug_barrier()
            given_ptr = pixels_ptr
            given_scale = 1.0
        else:
            given_ptr = image_ptr
            given_scale = scale
        if P.int8:
            given_scale *= inverse
        features_ptr = trunk(
            given_ptr, area_ptr, pose_means_ptr, weights_ptr, numbers_ptr, given_scale, P, CALLS, 0, P.pose_layers
        )
        logits, cos, sin, concentration, second_cos, second_sin, share = read_pose(
            features_ptr, weights_ptr, numbers_ptr, P, S.classes, S.bins, CHUNK
        )
        doubt = tl.log(1.001 - concentration)
        tl.store(angle_ptr + n, arc_tangent(sin, cos))
        tl.store(doubts_ptr + n * 3, concentration)
        tl.store(doubts_ptr + n * 3 + 1, arc_tangent(second_sin, second_cos))
        tl.store(doubts_ptr + n * 3 + 2, share)
        tl.debug_barrier()
        for start in range(0, SIZE, ELEMENTS):
            element = start + tl.arange(0, ELEMENTS)
            upright = turned(
                image_ptr,
                element,
                cos,
                -sin,
                P.side,
                P.channels,
                scale,
                P.fill,
                inverse,
                counts,
                element < SIZE,
                P.window,
                P.int8,
            )
            tl.store(pixels_ptr + element, upright, mask=element < SIZE)
    else:
        tl.store(angle_ptr + n, 0.0)
        for i in tl.static_range(3):
            tl.store(doubts_ptr + n * 3 + i, 0.0)
        for start in range(0, SIZE, ELEMENTS):
            element = start + tl.arange(0, ELEMENTS)
            pixel = tl.load(image_ptr + element, mask=element < SIZE, other=0).to(tl.float32) * scale
            tl.store(pixels_ptr + element, pixel, mask=element < SIZE)
    tl.debug_barrier()
    pixel_scale = 1.0
    if P.int8:
        pixel_scale = tl.load(numbers_ptr + P.quantize_upright)
    features_ptr = trunk(
        pixels_ptr, area_ptr, means_ptr, weights_ptr, numbers_ptr, pixel_scale, P, CALLS, P.pose_layers, P.trunk_layers
    )
    probabilities, mu, class_weights, score, expected = read_content(
        features_ptr, pose_means_ptr, means_ptr, logits, doubt, weights_ptr, numbers_ptr, whitenings_ptr, P,
        S.classes, S.latent, S.hidden, S.taps, S.components, S.clusters, CHUNK,
    )  # fmt: skip
    tl.store(probabilities_ptr + n * P.classes + klass, probabilities, mask=klass < P.classes)
    if not P.score.light:
        tl.debug_barrier()
        error = error_of_reconstruction(mu, class_weights, pixels_ptr, area_ptr, weights_ptr, numbers_ptr, P, CHUNK)
        score += tl.load(numbers_ptr + P.score.measures) * (error - expected)
    tl.store(score_ptr + n, score)


def forward(
    plan: Plan, image: Any, weights: Any, numbers: Any, whitenings: Any, areas: Any, floats: Any,
    probabilities: Any, angle: Any, score: Any, doubts: Any,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, the last six are written.

    Args:
        plan: what the network is.
        image: uint8 [N, S, S, C].
        weights: float16 or int8 [plan.weights_size].
        numbers: float32 [plan.numbers_size].
        whitenings: float16 [clusters, components, padded(components)].
        areas: scratch of the weights' dtype, at least [N, 2, plan.area].
        floats: scratch float32, at least [N, plan.floats].
        probabilities: float32 [N, K].
        angle, score: float32 [N].
        doubts: float32 [N, 3]: concentration, second angle, its share; zeros without a pose trunk.
    """
    if image.shape[0] == 0:
        return
    kernel = "int8" if plan.int8 else "fp16"
    chosen = dict(configurations.choose(OPERATOR, kernel, configurations.current_architecture()))
    tiles = tiled(plan, chosen.pop("ROWS"), chosen.pop("COLUMNS"), chosen.pop("DEPTH"))
    network[(image.shape[0],)](
        image, weights, numbers, whitenings, areas, floats, probabilities, angle, score, doubts,
        P=tiles, S=sizes(plan), enable_fp_fusion=not plan.int8, **chosen,
    )  # fmt: skip


def variant(plan: Plan, architecture: int) -> Variant:
    """The network of a plan for the ahead-of-time compiler. Images and answers may lie anywhere."""
    chosen = dict(configurations.choose(OPERATOR, "int8" if plan.int8 else "fp16", architecture))
    tiles = tiled(plan, chosen.pop("ROWS"), chosen.pop("COLUMNS"), chosen.pop("DEPTH"))
    activations = "*i8" if plan.int8 else "*fp16"
    types = {name: "*fp32" for name in network.arg_names if name.endswith("_ptr")}
    types |= {"image_ptr": "*u8", "weights_ptr": activations, "areas_ptr": activations, "whitenings_ptr": "*fp16"}
    return Variant(
        name="network",
        operator=OPERATOR,
        function=network,
        types=types,
        constants={"P": tiles, "S": sizes(plan), **{name: chosen[name] for name in ("ELEMENTS", "CHUNK", "CALLS")}},
        aligned=("weights_ptr", "numbers_ptr", "whitenings_ptr", "areas_ptr", "floats_ptr"),
        num_warps=chosen["num_warps"],
        num_stages=chosen["num_stages"],
        fp_fusion=not plan.int8,
    )
