"""Convolution of int8 by int8 with sums in int32, fused with bias, residual add, ReLU and requantization.

The tiles are those of `convolution`. The integers are exact; what follows them is float32, in fused multiply-adds
that are written as such, so that the results are those of the integer reference to the last bit.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.launching import WIDTHS, Geometry, as_float32, start_tiles
from vae_edge_kernels.tiles import accumulate, at_least, gather, multiply_add, place, round_to_int8
from vae_edge_kernels.variants import ONE_WIDTH, Variant, convolution_variants, first_convolution_variants

OPERATOR = "convolution_int8"
OUTPUTS = ("i8", "fp16", "fp32")


@triton.jit
def finish(
    total, scale_ptr, bias_ptr, residual_ptr, y_ptr, row, inside, column, outputs, residual_scale, has_residual, relu,
):  # fmt: skip
    """Sums · scale [outputs] + bias [outputs] + int8 residual · residual_scale, ReLU; to int8 it is rounded."""
    known = column < outputs
    there = inside[:, None] & known[None, :]
    scale = tl.load(scale_ptr + column, mask=known, other=0.0)
    bias = tl.load(bias_ptr + column, mask=known, other=0.0)
    value = multiply_add(total.to(tl.float32), scale[None, :], bias[None, :])
    where = row.to(tl.int64)[:, None] * outputs + column[None, :]
    residual = tl.load(residual_ptr + where, mask=there & (column < outputs * has_residual)[None, :], other=0.0)
    value = multiply_add(residual.to(tl.float32), residual_scale, value)
    value = at_least(value, relu)
    if y_ptr.dtype.element_ty == tl.int8:
        tl.store(y_ptr + where, round_to_int8(value), mask=there)
    else:
        tl.store(y_ptr + where, value.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def convolution_int8(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr, rows, height, width, channels, out_height, out_width,
    outputs, tap_height, tap_width, stride, pad_top, pad_left, has_residual, relu, residual_scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """x int8 [N, height, width, channels] to y [N, out_height, out_width, outputs], int8, float16 or float32.

    w is int8 [tap_height, tap_width, outputs, channels]; scale and bias are float32 [outputs]; residual is int8 of y's
    shape. The grid has cdiv(rows, ROWS) × cdiv(outputs, COLUMNS) programs.
    """
    row, image, oy, ox, inside = place(rows, out_height, out_width, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = accumulate(
        x_ptr, w_ptr, image, oy, ox, inside, tl.program_id(1) * COLUMNS, height, width, channels, outputs,
        tap_height, tap_width, stride, pad_top, pad_left, ROWS, COLUMNS, DEPTH, 1, tl.int32, 1, PAIRED,
    )  # fmt: skip
    finish(
        total, scale_ptr, bias_ptr, residual_ptr, y_ptr, row, inside, column, outputs, residual_scale, has_residual,
        relu,
    )  # fmt: skip


@triton.jit
def first_convolution_int8(
    x_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, rows, height, width, channels, out_height, out_width, outputs,
    tap_height, tap_width, stride, pad_top, pad_left, relu, quantize,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The same of few channels, where tap_height · tap_width · channels is at most DEPTH; w is [outputs, taps].

    Bytes (uint8) and floats are multiplied by `quantize` and rounded to int8 first; int8 is taken as it is.
    """
    row, image, oy, ox, inside = place(rows, out_height, out_width, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = gather(
        x_ptr, image, oy, ox, inside, height, width, channels, tap_height, tap_width, stride, pad_top, pad_left, DEPTH
    )
    if x_ptr.dtype.element_ty != tl.int8:
        x = round_to_int8(x.to(tl.float32) * quantize)
    k = tl.arange(0, DEPTH)
    taps = tap_height * tap_width * channels
    known = (k < taps)[:, None] & (column < outputs)[None, :]
    w = tl.load(w_ptr + column[None, :] * taps + k[:, None], mask=known, other=0)
    total = tl.dot(x, w, out_dtype=tl.int32)
    finish(total, scale_ptr, bias_ptr, y_ptr, y_ptr, row, inside, column, outputs, 0.0, 0, relu)


def forward(
    x: Any, w: Any, scale: Any, bias: Any, residual: Any | None, y: Any, geometry: Geometry, relu: bool,
    residual_scale: float,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, y is written.

    Args:
        x: int8 [N, H, W, C].
        w: int8 [R, S, K, C].
        scale: float32 [K]: what one of the sums counts in y.
        bias: float32 [K].
        residual: int8 [N, OH, OW, K], or None; one of it counts `residual_scale` in y.
        y: [N, OH, OW, K], int8, float16 or float32.
        geometry: taps, stride and padding.
        relu: whether negative values become 0.
    """
    pointers = (x, w, scale, bias, x if residual is None else residual, y)
    counted = 0.0 if residual is None else as_float32(residual_scale)
    last = (*geometry.arguments(), int(residual is not None), int(relu), counted)
    start_tiles(convolution_int8, OPERATOR, "convolution", x, pointers, y, last, enable_fp_fusion=False)


def first_forward(
    x: Any, w: Any, scale: Any, bias: Any, y: Any, geometry: Geometry, relu: bool, quantize: float
) -> None:
    """The same for x of few channels: int8, or uint8 or floats that become int8 after multiplication by `quantize`.

    w is int8 [K, R · S · C] with R · S · C at most 128; no residual.
    """
    last = (*geometry.arguments(), int(relu), quantize)
    depth = geometry.depth(x.shape[3], least=32)
    start_tiles(
        first_convolution_int8, OPERATOR, "first_convolution", w, (x, w, scale, bias, y), y, last,
        DEPTH=depth, enable_fp_fusion=False,
    )  # fmt: skip


def variants(architecture: int) -> list[Variant]:
    """What the ahead-of-time compiler makes of this operator: each type of output."""
    made = []
    for output in OUTPUTS:
        types = {"x_ptr": "i8", "w_ptr": "i8", "scale_ptr": "fp32", "bias_ptr": "fp32"}
        types |= {"residual_ptr": "i8", "y_ptr": output}
        made += convolution_variants(
            OPERATOR, "convolution", convolution_int8, output, types, architecture, fp_fusion=False,
            widths=WIDTHS if output == "i8" else ONE_WIDTH,
        )  # fmt: skip
    first = {**types, "x_ptr": "u8", "y_ptr": "i8"}
    made += first_convolution_variants(OPERATOR, first_convolution_int8, "i8", first, architecture, fp_fusion=False)
    return made
