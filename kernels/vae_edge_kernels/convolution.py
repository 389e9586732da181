"""Convolution, fused with bias, residual add and ReLU: implicit GEMM over channels-last tensors, in floating point.

A program makes a tile of ROWS output pixels × COLUMNS output channels. It walks over the taps and, within a tap, over
the input channels in steps of DEPTH: one matrix product a step, accumulated in float32. The geometry (taps, stride,
padding) is arguments, so that one kernel serves every layer.

The first layer, with 1 or 3 channels, has a kernel of its own: there all taps and channels together are one step.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.launching import WIDTHS, Geometry, start_tiles
from vae_edge_kernels.tiles import accumulate, at_least, gather, operand, place
from vae_edge_kernels.variants import ONE_WIDTH, Variant, convolution_variants, first_convolution_variants

OPERATOR = "convolution"
DTYPES = ("fp32", "fp16", "bf16")


@triton.jit
def finish(total, bias_ptr, residual_ptr, y_ptr, row, inside, column, outputs, has_residual, relu):
    """Bias (float32 [outputs]), residual [rows, outputs] where there is one, ReLU, and the store. A NaN stays one."""
    there = inside[:, None] & (column < outputs)[None, :]
    total += tl.load(bias_ptr + column, mask=column < outputs, other=0.0)[None, :]
    where = row.to(tl.int64)[:, None] * outputs + column[None, :]
    total += tl.load(residual_ptr + where, mask=there & (column < outputs * has_residual)[None, :], other=0.0).to(
        tl.float32
    )
    total = at_least(total, relu)
    tl.store(y_ptr + where, total.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def convolution(
    x_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr, rows, height, width, channels, out_height, out_width, outputs,
    tap_height, tap_width, stride, pad_top, pad_left, has_residual, relu,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x [N, height, width, channels] to y [N, out_height, out_width, outputs], `rows` output pixels in all.

    w is [tap_height, tap_width, channels, outputs]; bias float32 [outputs]; residual is of y's shape, and read where
    has_residual is 1. The grid has cdiv(rows, ROWS) × cdiv(outputs, COLUMNS) programs.
    """
    row, image, oy, ox, inside = place(rows, out_height, out_width, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = accumulate(
        x_ptr, w_ptr, image, oy, ox, inside, tl.program_id(1) * COLUMNS, height, width, channels, outputs,
        tap_height, tap_width, stride, pad_top, pad_left, ROWS, COLUMNS, DEPTH, 1, tl.float32, 0, 0,
    )  # fmt: skip
    finish(total, bias_ptr, residual_ptr, y_ptr, row, inside, column, outputs, has_residual, relu)


@triton.jit
def first_convolution(
    x_ptr, w_ptr, bias_ptr, y_ptr, rows, height, width, channels, out_height, out_width, outputs,
    tap_height, tap_width, stride, pad_top, pad_left, relu, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`convolution` of few channels, where tap_height · tap_width · channels is at most DEPTH.

    x may be bytes: it is multiplied by `scale` in float32 and then cast to w's type.
    """
    row, image, oy, ox, inside = place(rows, out_height, out_width, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = gather(
        x_ptr, image, oy, ox, inside, height, width, channels, tap_height, tap_width, stride, pad_top, pad_left, DEPTH
    )
    x = (x.to(tl.float32) * scale).to(w_ptr.dtype.element_ty)
    k = tl.arange(0, DEPTH)
    known = (k < tap_height * tap_width * channels)[:, None] & (column < outputs)[None, :]
    w = tl.load(w_ptr + k[:, None] * outputs + column[None, :], mask=known, other=0.0)
    total = tl.dot(operand(x), operand(w), input_precision="tf32")
    finish(total, bias_ptr, y_ptr, y_ptr, row, inside, column, outputs, 0, relu)


def forward(x: Any, w: Any, bias: Any, residual: Any | None, y: Any, geometry: Geometry, relu: bool) -> None:
    """Launch on the current device and stream; all tensors are contiguous, y is written.

    Args:
        x: [N, H, W, C], float32, float16 or bfloat16.
        w: [R, S, C, K] of x's dtype.
        bias: float32 [K].
        residual: [N, OH, OW, K] of y's dtype, or None.
        y: [N, OH, OW, K], of x's dtype.
        geometry: taps, stride and padding.
        relu: whether negative values become 0.
    """
    pointers = (x, w, bias, y if residual is None else residual, y)
    last = (*geometry.arguments(), int(residual is not None), int(relu))
    start_tiles(convolution, OPERATOR, "convolution", x, pointers, y, last)


def first_forward(x: Any, w: Any, bias: Any, y: Any, geometry: Geometry, relu: bool, scale: float) -> None:
    """The same for x of few channels, uint8 or floating point, which is multiplied by `scale`; no residual.

    w is [R, S, C, K] with R · S · C at most 128, and y is of its dtype.
    """
    depth = geometry.depth(x.shape[3])
    last = (*geometry.arguments(), int(relu), scale)
    start_tiles(first_convolution, OPERATOR, "first_convolution", w, (x, w, bias, y), y, last, DEPTH=depth)


def variants(architecture: int) -> list[Variant]:
    """What the ahead-of-time compiler makes of this operator: each dtype and width of tile, aligned and not."""
    made = []
    for dtype in DTYPES:
        types = {"x_ptr": dtype, "w_ptr": dtype, "bias_ptr": "fp32", "residual_ptr": dtype, "y_ptr": dtype}
        widths = WIDTHS if dtype == "fp16" else ONE_WIDTH
        made += convolution_variants(OPERATOR, "convolution", convolution, dtype, types, architecture, widths=widths)
        first = {**types, "x_ptr": "u8"}
        made += first_convolution_variants(OPERATOR, first_convolution, dtype, first, architecture, widths=widths)
    return made
