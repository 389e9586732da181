"""The whole network in one launch: a program takes an image from its bytes to the answer.

Pose trunk, angle, turning back, encoder, head, decoder and score follow one another in one program, written from the
building blocks of the single operators and specialized by a `plan.Plan`. Activations go through a scratch buffer that
is small enough to stay in the cache; between layers the program's threads wait for one another.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, current_architecture, get_config
from vae_edge_kernels.head import FIRST, arc_tangent, product, read_content, read_pose, rescaled, rounded
from vae_edge_kernels.implicit_gemm import (
    as_dot_operand,
    fma,
    implicit_gemm_mainloop,
    load_im2col_tile,
    quantize_int8,
    relu,
    use_split_n,
)
from vae_edge_kernels.plan import Plan, sizes, tiled
from vae_edge_kernels.turn import turned

OPERATOR = "network"


@triton.jit
def values(total, numbers_ptr, P: tl.constexpr, I: tl.constexpr, column, known):
    """A layer's sums [ROWS, COLUMNS] to its outputs, float32."""
    bias = tl.load(numbers_ptr + P.layers[I].bias + column, mask=known, other=0.0)[None, :]
    if P.int8:
        scale = tl.load(numbers_ptr + P.layers[I].scale + column, mask=known, other=0.0)
        total = fma(total.to(tl.float32), scale[None, :], bias)
    else:
        total = total + bias
    if P.layers[I].relu:
        total = relu(total, 1)
    return total


@triton.jit
def keep(value, target_ptr, P: tl.constexpr, I: tl.constexpr, row, column, known):
    """Store a tile of a layer's output, rounded where the network is int8."""
    where = row[:, None] * P.layers[I].outputs + column[None, :]
    there = (row < P.layers[I].out_side * P.layers[I].out_side)[:, None] & known[None, :]
    if P.int8:
        value = quantize_int8(value)
    tl.store(target_ptr + where, value.to(target_ptr.dtype.element_ty), mask=there)


@triton.jit
def as_kept(value, numbers_ptr, P: tl.constexpr, I: tl.constexpr):
    """What the next layer takes a tile of a layer's output for."""
    if P.int8:
        value = quantize_int8(value).to(tl.float32) * tl.load(numbers_ptr + P.layers[I].output_scale)
    return value


@triton.jit
def row_zero(numbers_ptr, P: tl.constexpr):
    """0, read from memory: rows counted from it are not known to be those of another layer, whose indices the compiler
    would otherwise keep in registers until they are wanted again."""
    return tl.multiple_of(tl.load(numbers_ptr + P.zero).to(tl.int32), 16)


@triton.jit
def meet(meeting_ptr, P: tl.constexpr):
    """Wait until all threads of the image's programs have come here; they see what the others have stored.

    The number at meeting_ptr counts arrivals and is never set back: it goes on from launch to launch, and may overflow.
    """
    tl.debug_barrier()
    if P.programs > 1:
        came = tl.atomic_add(meeting_ptr, 1, sem="acq_rel", scope="gpu")
        goal = (came | (P.programs - 1)) + 1
        while goal - tl.atomic_add(meeting_ptr, 0, sem="relaxed", scope="gpu") > 0:
            pass
        tl.atomic_add(meeting_ptr, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


@triton.jit
def first_layer(x_ptr, target_ptr, weights_ptr, numbers_ptr, scale, part, P: tl.constexpr, I: tl.constexpr):
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
        for start in range(part * ROWS, SIDE * SIDE, ROWS * P.programs):
            row = zero + start + tl.arange(0, ROWS)
            x = load_im2col_tile(
                x_ptr, row * 0, row // SIDE, row % SIDE, row < SIDE * SIDE, P.layers[I].side, P.layers[I].side,
                P.layers[I].inputs, TAPS, TAPS, P.layers[I].stride, TAPS // 2, TAPS // 2, DEPTH,
            ).to(tl.float32)  # fmt: skip
            if P.int8:
                total = tl.dot(quantize_int8(x * scale), w, out_dtype=tl.int32)
            else:
                total = tl.dot(as_dot_operand((x * scale).to(w.dtype)), as_dot_operand(w), input_precision="tf32")
            value = values(total, numbers_ptr, P, I, column, known)
            keep(value, target_ptr, P, I, row, column, known)


@triton.jit
def tile(source_ptr, weights_ptr, P: tl.constexpr, I: tl.constexpr, row, first):
    """A layer's outputs' sums at pixels `row` and channels from `first` on of the image at source_ptr."""
    SIDE: tl.constexpr = P.layers[I].out_side
    TAPS: tl.constexpr = P.layers[I].taps
    image, oy, ox, inside = row * 0, row // SIDE, row % SIDE, row < SIDE * SIDE
    return implicit_gemm_mainloop(
        source_ptr, weights_ptr + P.layers[I].weights, image, oy, ox, inside, first, P.layers[I].side,
        P.layers[I].side, P.layers[I].inputs, P.layers[I].outputs, TAPS, TAPS, P.layers[I].stride, TAPS // 2,
        TAPS // 2, P.layers[I].rows, P.layers[I].columns, P.layers[I].depth, tl.int32 if P.int8 else tl.float32,
        1 if P.int8 else 0, P.paired,
    )  # fmt: skip


@triton.jit
def layer(source_ptr, target_ptr, sums_ptr, weights_ptr, numbers_ptr, part, P: tl.constexpr, I: tl.constexpr):
    """A convolution of one image from one area to the other; of a tapped layer also the sums by channel of each of its
    tiles, [tiles of rows, outputs]."""
    PIXELS: tl.constexpr = P.layers[I].out_side * P.layers[I].out_side
    ROWS: tl.constexpr = P.layers[I].rows
    COLUMNS: tl.constexpr = P.layers[I].columns
    OUTPUTS: tl.constexpr = P.layers[I].outputs
    ACROSS: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    DOWN: tl.constexpr = (PIXELS + ROWS - 1) // ROWS
    zero = row_zero(numbers_ptr, P)
    for number in range(part, DOWN * ACROSS, P.programs):
        first = zero + number % ACROSS * COLUMNS
        row = zero + number // ACROSS * ROWS + tl.arange(0, ROWS)
        column = first + tl.arange(0, COLUMNS)
        known = column < OUTPUTS
        value = values(tile(source_ptr, weights_ptr, P, I, row, first), numbers_ptr, P, I, column, known)
        keep(value, target_ptr, P, I, row, column, known)
        if P.layers[I].tap:
            value = tl.where((row < PIXELS)[:, None], as_kept(value, numbers_ptr, P, I), 0.0)
            tl.store(sums_ptr + number // ACROSS * OUTPUTS + column, tl.sum(value, 0), mask=known)


@triton.jit
def look(image_ptr, floats_ptr, numbers_ptr, part, P: tl.constexpr, ELEMENTS: tl.constexpr, ROUNDED: tl.constexpr):
    """The image turned back by the angle whose cosine and sine are in `pose`, and seen through the window."""
    SIZE: tl.constexpr = P.side * P.side * P.channels
    scale = 1.0 / 255.0
    cos, sin = tl.load(floats_ptr + P.scratch.pose), tl.load(floats_ptr + P.scratch.pose + 1)
    inverse, counts = 1.0, 1.0
    if ROUNDED:
        inverse = tl.load(numbers_ptr + P.quantize_image)
        counts = tl.load(numbers_ptr + P.quantize_image + 1)
    for start in range(part * ELEMENTS, SIZE, ELEMENTS * P.programs):
        element = start + tl.arange(0, ELEMENTS)
        if P.bins > 0:
            pixel = element // P.channels
            row, column = (pixel // P.side).to(tl.float32), (pixel % P.side).to(tl.float32)
            seen = turned(
                image_ptr, row, column, element % P.channels, cos, -sin, P.side, P.channels, scale, P.fill, inverse,
                counts, P.window, ROUNDED, P.fill != 0.0,
            )  # fmt: skip
        else:
            seen = tl.load(image_ptr + element, mask=element < SIZE, other=0).to(tl.float32) * scale
        tl.store(floats_ptr + P.scratch.upright + element, seen, mask=element < SIZE)


@triton.jit
def know_pose(
    features_ptr, floats_ptr, angle_ptr, doubts_ptr, weights_ptr, numbers_ptr, part, P: tl.constexpr, S: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The pose trunk's features to class logits, cosine and sine of the angle, and doubts. Every program makes them."""
    logits, cos, sin, concentration, second_cos, second_sin, share = read_pose(
        features_ptr, weights_ptr, numbers_ptr, P, S.pose, CHUNK
    )
    klass = tl.arange(0, S.pose)
    tl.store(floats_ptr + P.scratch.logits + klass, logits, mask=klass < P.classes)
    tl.store(floats_ptr + P.scratch.pose, cos)
    tl.store(floats_ptr + P.scratch.pose + 1, sin)
    tl.store(floats_ptr + P.scratch.pose + 2, tl.log(1.001 - concentration))
    here = part == 0
    tl.store(angle_ptr, arc_tangent(sin, cos), mask=here)
    tl.store(doubts_ptr, concentration, mask=here)
    tl.store(doubts_ptr + 1, arc_tangent(second_sin, second_cos), mask=here)
    tl.store(doubts_ptr + 2, share, mask=here)


@triton.jit
def know_no_pose(floats_ptr, angle_ptr, doubts_ptr, part, P: tl.constexpr, S: tl.constexpr):
    """What stands in the place of a pose: upright, with nothing to say about it."""
    CLASSES: tl.constexpr = S.classes
    klass = tl.arange(0, CLASSES)
    tl.store(floats_ptr + P.scratch.logits + klass, tl.zeros((CLASSES,), dtype=tl.float32), mask=klass < P.classes)
    tl.store(floats_ptr + P.scratch.pose, 1.0)
    tl.store(floats_ptr + P.scratch.pose + 1, 0.0)
    tl.store(floats_ptr + P.scratch.pose + 2, 0.0)
    here = part == 0
    tl.store(angle_ptr, 0.0, mask=here)
    for i in tl.static_range(3):
        tl.store(doubts_ptr + i, 0.0, mask=here)


@triton.jit
def add_sums(sums_ptr, means_ptr, P: tl.constexpr, S: tl.constexpr, FROM: tl.constexpr, COUNT: tl.constexpr):
    """The means by channel of a trunk's tapped layer, from the sums of its tiles."""
    TAPS: tl.constexpr = S.taps
    channel = tl.arange(0, TAPS)
    for i in tl.static_range(FROM, FROM + COUNT):
        if P.layers[i].tap:
            PIXELS: tl.constexpr = P.layers[i].out_side * P.layers[i].out_side
            total = tl.zeros((TAPS,), dtype=tl.float32)
            for down in range(0, (PIXELS + P.layers[i].rows - 1) // P.layers[i].rows):
                at = down * P.layers[i].outputs + channel
                total += tl.load(sums_ptr + at, mask=channel < P.layers[i].outputs, other=0.0)
            tl.store(means_ptr + channel, total * (1.0 / PIXELS), mask=channel < P.layers[i].outputs)


@triton.jit
def know_content(
    features_ptr, floats_ptr, probabilities_ptr, score_ptr, weights_ptr, numbers_ptr, whitenings_ptr, part,
    P: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The encoder's features to probabilities, and score but for the reconstruction; and for it mu, the classes'
    weights and the error to be expected. Every program makes them."""
    add_sums(floats_ptr + P.scratch.pose_sums, floats_ptr + P.scratch.pose_means, P, S, 0, P.pose_layers)
    add_sums(floats_ptr + P.scratch.sums, floats_ptr + P.scratch.means, P, S, P.pose_layers, P.trunk_layers)
    tl.debug_barrier()
    klass, code = tl.arange(0, S.classes), tl.arange(0, S.latent)
    logits = tl.load(floats_ptr + P.scratch.logits + klass, mask=klass < P.classes, other=0.0)
    doubt = tl.load(floats_ptr + P.scratch.pose + 2)
    probabilities, mu, class_weights, score, expected = read_content(
        features_ptr, floats_ptr + P.scratch.pose_means, floats_ptr + P.scratch.means, logits, doubt, weights_ptr,
        numbers_ptr, whitenings_ptr, P, S.classes, S.latent, S.hidden, S.taps, S.components, S.clusters, CHUNK,
    )  # fmt: skip
    tl.store(probabilities_ptr + klass, probabilities, mask=klass < P.classes * (1 - part))
    if P.score.light:
        tl.store(score_ptr, score, mask=part == 0)
    else:
        tl.store(floats_ptr + P.scratch.code + code, mu, mask=code < P.latent)
        tl.store(floats_ptr + P.scratch.code + P.latent + klass, class_weights, mask=klass < P.classes)
        tl.store(floats_ptr + P.scratch.parts, score)
        tl.store(floats_ptr + P.scratch.parts + 1, expected)


@triton.jit
def draw_grid(
    floats_ptr, area_ptr, weights_ptr, numbers_ptr, part, P: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr
):
    """The decoder's linear layer: mu and the classes' weights to the grid that its convolutions go on from."""
    code, klass = tl.arange(0, S.latent), tl.arange(0, S.classes)
    mu = tl.load(floats_ptr + P.scratch.code + code, mask=code < P.latent, other=0.0)
    weights = tl.load(floats_ptr + P.scratch.code + P.latent + klass, mask=klass < P.classes, other=0.0)
    mu, weights = rounded(mu, numbers_ptr, P, FIRST), rounded(weights, numbers_ptr, P, FIRST)
    first_ptr = weights_ptr + P.linears[FIRST].weights
    for start in range(part * CHUNK, P.linears[FIRST].outputs, CHUNK * P.programs):
        column = start + tl.arange(0, CHUNK)
        known = column < P.linears[FIRST].outputs
        x = product(mu, first_ptr, P.latent, P.linears[FIRST].stride, column, known)
        code_rows = P.latent * P.linears[FIRST].stride
        x += product(weights, first_ptr + code_rows, P.classes, P.linears[FIRST].stride, column, known)
        x = relu(rescaled(x, numbers_ptr, P, FIRST, column, known), 1)
        if P.int8:
            x = quantize_int8(x)
        tl.store(area_ptr + column, x.to(area_ptr.dtype.element_ty), mask=known)


@triton.jit
def compare(floats_ptr, area_ptr, weights_ptr, numbers_ptr, part, P: tl.constexpr, I: tl.constexpr):
    """The decoder's last layer, against the upright image: this program's part of the squared error."""
    CELLS: tl.constexpr = P.grid * P.grid
    ROWS: tl.constexpr = P.layers[I].rows
    COLUMNS: tl.constexpr = P.layers[I].columns
    OUTPUTS: tl.constexpr = P.layers[I].outputs
    BLOCK: tl.constexpr = P.block
    ACROSS: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    DOWN: tl.constexpr = (CELLS + ROWS - 1) // ROWS
    apart = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    zero = row_zero(numbers_ptr, P)
    for number in range(part, DOWN * ACROSS, P.programs):
        first = zero + number % ACROSS * COLUMNS
        row = zero + number // ACROSS * ROWS + tl.arange(0, ROWS)
        column = first + tl.arange(0, COLUMNS)
        known = column < OUTPUTS
        total = tile(area_ptr, weights_ptr, P, I, row, first)
        drawn = 1.0 / (1.0 + tl.exp(-values(total, numbers_ptr, P, I, column, known)))
        y = (row // P.grid * BLOCK)[:, None] + (column // BLOCK % BLOCK)[None, :]
        x = (row % P.grid * BLOCK)[:, None] + (column % BLOCK)[None, :]
        there = (row < CELLS)[:, None] & known[None, :] & (y < P.side) & (x < P.side)
        where = (y * P.side + x) * P.channels + (column // (BLOCK * BLOCK))[None, :]
        seen = tl.load(floats_ptr + P.scratch.upright + where, mask=there, other=0.0)
        apart += tl.where(there, (seen - drawn) * (seen - drawn), 0.0)
    tl.store(floats_ptr + P.scratch.errors + part, tl.sum(tl.sum(apart, 1), 0))


@triton.jit
def judge(floats_ptr, numbers_ptr, score_ptr, part, P: tl.constexpr, ELEMENTS: tl.constexpr):
    """The whole score, once all parts of the error are there: see `vae_edge.model.score`."""
    SIZE: tl.constexpr = P.side * P.side * P.channels
    total = tl.zeros((ELEMENTS,), dtype=tl.float32)
    for start in range(0, SIZE, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)
        total += tl.load(floats_ptr + P.scratch.upright + element, mask=element < SIZE, other=0.0)
    mean = tl.sum(total, 0) / SIZE
    total = tl.zeros((ELEMENTS,), dtype=tl.float32)
    for start in range(0, SIZE, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)
        seen = tl.load(floats_ptr + P.scratch.upright + element, mask=element < SIZE, other=0.0)
        total += tl.where(element < SIZE, (seen - mean) * (seen - mean), 0.0)
    root = tl.sqrt(tl.sum(total, 0)) + tl.sqrt(0.001 * SIZE)
    apart = 0.0
    PROGRAMS: tl.constexpr = P.programs
    for i in tl.static_range(PROGRAMS):
        apart += tl.load(floats_ptr + P.scratch.errors + i)
    error = apart / (root * root) - tl.load(floats_ptr + P.scratch.parts + 1)
    score = tl.load(floats_ptr + P.scratch.parts) + tl.load(numbers_ptr + P.score.measures) * error
    tl.store(score_ptr, score, mask=part == 0)


# The same as functions of their own in the machine code.
first_layer_apart = triton.jit(first_layer.fn, noinline=True)
layer_apart = triton.jit(layer.fn, noinline=True)
look_apart = triton.jit(look.fn, noinline=True)
know_pose_apart = triton.jit(know_pose.fn, noinline=True)
know_content_apart = triton.jit(know_content.fn, noinline=True)
draw_grid_apart = triton.jit(draw_grid.fn, noinline=True)
compare_apart = triton.jit(compare.fn, noinline=True)
judge_apart = triton.jit(judge.fn, noinline=True)


@triton.jit
def trunk(
    x_ptr, area_ptr, sums_ptr, weights_ptr, numbers_ptr, meeting_ptr, scale, part, P: tl.constexpr,
    FROM: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """A trunk's layers, back and forth between the two areas, from pixels at x_ptr; the features' address."""
    first: tl.constexpr = first_layer_apart if P.calls else first_layer
    next: tl.constexpr = layer_apart if P.calls else layer
    first(x_ptr, area_ptr, weights_ptr, numbers_ptr, scale, part, P, FROM)
    meet(meeting_ptr, P)
    for i in tl.static_range(1, COUNT):
        source_ptr, target_ptr = area_ptr + (i - 1) % 2 * P.area, area_ptr + i % 2 * P.area
        next(source_ptr, target_ptr, sums_ptr, weights_ptr, numbers_ptr, part, P, FROM + i)
        meet(meeting_ptr, P)
    return area_ptr + (COUNT - 1) % 2 * P.area


@triton.jit
def classify(
    image_ptr, weights_ptr, numbers_ptr, whitenings_ptr, area_ptr, floats_ptr, meeting_ptr,
    probabilities_ptr, angle_ptr, score_ptr, doubts_ptr, part,
    P: tl.constexpr, S: tl.constexpr, ELEMENTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One image, all pointers at what is its own."""
    look_: tl.constexpr = look_apart if P.calls else look
    pose_: tl.constexpr = know_pose_apart if P.calls else know_pose
    content_: tl.constexpr = know_content_apart if P.calls else know_content
    upright_ptr = floats_ptr + P.scratch.upright
    if P.bins == 0 or P.window:
        know_no_pose(floats_ptr, angle_ptr, doubts_ptr, part, P, S)
    if P.bins > 0:
        scale = 1.0 / 255.0
        seen_ptr = image_ptr
        if P.window:
            tl.debug_barrier()
            look_(image_ptr, floats_ptr, numbers_ptr, part, P, ELEMENTS, False)
            scale = 1.0
            seen_ptr = upright_ptr
            meet(meeting_ptr, P)
        if P.int8:
            scale *= tl.load(numbers_ptr + P.quantize_image)
        features_ptr = trunk(
            seen_ptr, area_ptr, floats_ptr + P.scratch.pose_sums, weights_ptr, numbers_ptr, meeting_ptr, scale, part,
            P, 0, P.pose_layers,
        )  # fmt: skip
        pose_(features_ptr, floats_ptr, angle_ptr, doubts_ptr, weights_ptr, numbers_ptr, part, P, S, CHUNK)
    tl.debug_barrier()
    look_(image_ptr, floats_ptr, numbers_ptr, part, P, ELEMENTS, P.int8 and P.bins > 0)
    meet(meeting_ptr, P)
    upright_scale = 1.0
    if P.int8:
        upright_scale = tl.load(numbers_ptr + P.quantize_upright)
    features_ptr = trunk(
        upright_ptr, area_ptr, floats_ptr + P.scratch.sums, weights_ptr, numbers_ptr, meeting_ptr, upright_scale, part,
        P, P.pose_layers, P.trunk_layers,
    )  # fmt: skip
    content_(
        features_ptr, floats_ptr, probabilities_ptr, score_ptr, weights_ptr, numbers_ptr, whitenings_ptr, part,
        P, S, CHUNK,
    )  # fmt: skip
    if not P.score.light:
        grid_: tl.constexpr = draw_grid_apart if P.calls else draw_grid
        layer_: tl.constexpr = layer_apart if P.calls else layer
        compare_: tl.constexpr = compare_apart if P.calls else compare
        judge_: tl.constexpr = judge_apart if P.calls else judge
        middle: tl.constexpr = P.pose_layers + P.trunk_layers
        meet(meeting_ptr, P)
        grid_(floats_ptr, area_ptr, weights_ptr, numbers_ptr, part, P, S, CHUNK)
        meet(meeting_ptr, P)
        drawn_ptr = area_ptr + P.area
        layer_(area_ptr, drawn_ptr, floats_ptr, weights_ptr, numbers_ptr, part, P, middle)
        meet(meeting_ptr, P)
        compare_(floats_ptr, drawn_ptr, weights_ptr, numbers_ptr, part, P, middle + 1)
        meet(meeting_ptr, P)
        judge_(floats_ptr, numbers_ptr, score_ptr, part, P, ELEMENTS)


@triton.jit(do_not_specialize=["images"])
def network(
    image_ptr, weights_ptr, numbers_ptr, whitenings_ptr, areas_ptr, floats_ptr, meetings_ptr,
    probabilities_ptr, angle_ptr, score_ptr, doubts_ptr, images,
    P: tl.constexpr, S: tl.constexpr, ELEMENTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """image uint8 [N, side, side, channels] to probabilities [N, classes], angle [N] in radians, score [N] and doubts
    [N, 3] (concentration, second angle, its share), float32.

    The grid has places × P.programs programs. Those of one place work on the same image and then on the one that is so
    many places further on; where they are more than one they must all be on the GPU at the same time.

    With P.calls each step is a function of its own in the machine code. Without, the compiler keeps what steps have in
    common in registers from one to the other: twice as many, and spills. Where the matrix units have a memory of their
    own (sm_100, sm_110) it compiles no such functions with float16 tiles of 64 rows or more, which would use it.

    Args:
        weights_ptr, numbers_ptr, whitenings_ptr: what the plan P names places of.
        areas_ptr: scratch, [places, 2, area], of the weights' type.
        floats_ptr: scratch, float32 [places, floats].
        meetings_ptr: int32 [places], zeros before the first launch; read with more than one program alone.
        images: N.
        S: sizes of the vectors, powers of two.
    """
    SIZE: tl.constexpr = P.side * P.side * P.channels
    place, part = tl.program_id(0), tl.program_id(1)
    far = place.to(tl.int64)
    area_ptr, place_ptr = areas_ptr + far * 2 * P.area, floats_ptr + far * P.floats
    for image in range(place, images, tl.num_programs(0)):
        n = far * 0 + image
        classify(
            image_ptr + n * SIZE, weights_ptr, numbers_ptr, whitenings_ptr, area_ptr, place_ptr, meetings_ptr + place,
            probabilities_ptr + n * P.classes, angle_ptr + n, score_ptr + n, doubts_ptr + n * 3, part,
            P, S, ELEMENTS, CHUNK,
        )  # fmt: skip
        meet(meetings_ptr + place, P)


def forward(
    plan: Plan, image: Any, weights: Any, numbers: Any, whitenings: Any, areas: Any, floats: Any, meetings: Any,
    probabilities: Any, angle: Any, score: Any, doubts: Any, programs: int = 1,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, the last seven are written.

    Args:
        plan: what the network is.
        image: uint8 [N, S, S, C].
        weights: float16 or int8 [plan.weights_size].
        numbers: float32 [plan.numbers_size].
        whitenings: float16 [clusters, components, padded(components)].
        areas: scratch of the weights' dtype, [places, 2, plan.area]: so many images are worked on at a time.
        floats: scratch float32, [places, plan.floats].
        meetings: int32 [places], zeros when it is used for the first time; looked at with more than one program alone.
        probabilities: float32 [N, K].
        angle, score: float32 [N].
        doubts: float32 [N, 3]: concentration, second angle, its share; zeros without a pose trunk.
        programs: that work on an image together, a power of two. There must be room on the GPU for those of all places.
    """
    if image.shape[0] == 0:
        return
    tiles, chosen = configured(plan, current_architecture(), programs)
    together = {"launch_cooperative_grid": True} if programs > 1 else {}
    network[(min(image.shape[0], areas.shape[0]), programs)](
        image, weights, numbers, whitenings, areas, floats, meetings, probabilities, angle, score, doubts,
        image.shape[0], P=tiles, S=sizes(plan), enable_fp_fusion=not plan.int8, **together, **chosen,
    )  # fmt: skip


def configured(plan: Plan, architecture: int | None, programs: int = 1) -> tuple[Plan, dict[str, int]]:
    """The plan with its tiles, and what else the kernel's configuration on an architecture says."""
    kernel = f"{'int8' if plan.int8 else 'fp16'}{'_spread' if programs > 1 else ''}"
    chosen = dict(get_config(OPERATOR, kernel, architecture))
    rows, columns, depth, size, calls = (chosen.pop(name) for name in ("ROWS", "COLUMNS", "DEPTH", "TILE", "CALLS"))
    pairs = use_split_n(architecture) if plan.int8 else 0
    return tiled(plan, rows, columns, depth, size, calls, pairs, programs), chosen


def variant(plan: Plan, architecture: int, programs: int = 1) -> KernelSpec:
    """The network of a plan for the ahead-of-time compiler. Images and answers may lie anywhere."""
    tiles, chosen = configured(plan, architecture, programs)
    activations = "*i8" if plan.int8 else "*fp16"
    types = {name: "*fp32" for name in network.arg_names if name.endswith("_ptr")}
    types |= {"image_ptr": "*u8", "weights_ptr": activations, "areas_ptr": activations, "whitenings_ptr": "*fp16"}
    types |= {"meetings_ptr": "*i32", "images": "i32"}
    return KernelSpec(
        name="network" if programs == 1 else "network_spread",
        operator=OPERATOR,
        function=network,
        types=types,
        constants={"P": tiles, "S": sizes(plan), "ELEMENTS": chosen["ELEMENTS"], "CHUNK": chosen["CHUNK"]},
        aligned=("weights_ptr", "numbers_ptr", "whitenings_ptr", "areas_ptr", "floats_ptr"),
        num_warps=chosen["num_warps"],
        num_stages=chosen["num_stages"],
        fp_fusion=not plan.int8,
    )
