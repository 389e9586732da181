"""Convolution of fp8 e4m3 by fp8 e4m3 with sums in float32, for sm_89 and later; the tiles are those of
`convolution_int8`, and so is the layout of the weights."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.launching import WIDTHS, Geometry, start_tiles
from vae_edge_kernels.tiles import accumulate, at_least, place
from vae_edge_kernels.variants import ONE_WIDTH, Variant, convolution_variants

OPERATOR = "convolution_fp8"
OUTPUTS = ("fp8", "fp16")
FIRST_ARCHITECTURE = 89


@triton.jit
def convolution_fp8(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr, rows, height, width, channels, out_height, out_width,
    outputs, tap_height, tap_width, stride, pad_top, pad_left, has_residual, relu, residual_scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """x e4m3 [N, height, width, channels] to y [N, out_height, out_width, outputs], e4m3 or float16.

    w is e4m3 [tap_height, tap_width, outputs, channels]; scale and bias are float32 [outputs], in units of
    y, in which one of the residual (e4m3 of y's shape) counts residual_scale. Values are held to ±448 where y is e4m3.
    """
    row, image, oy, ox, inside = place(rows, out_height, out_width, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = accumulate(
        x_ptr, w_ptr, image, oy, ox, inside, tl.program_id(1) * COLUMNS, height, width, channels, outputs,
        tap_height, tap_width, stride, pad_top, pad_left, ROWS, COLUMNS, DEPTH, 1, tl.float32, 1, PAIRED,
    )  # fmt: skip
    known = column < outputs
    there = inside[:, None] & known[None, :]
    value = total * tl.load(scale_ptr + column, mask=known, other=0.0)[None, :]
    value = value + tl.load(bias_ptr + column, mask=known, other=0.0)[None, :]
    where = row.to(tl.int64)[:, None] * outputs + column[None, :]
    residual = tl.load(residual_ptr + where, mask=there & (column < outputs * has_residual)[None, :], other=0.0)
    value = value + residual.to(tl.float32) * residual_scale
    value = at_least(value, relu)
    if y_ptr.dtype.element_ty == tl.float8e4nv:
        value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
    tl.store(y_ptr + where, value.to(y_ptr.dtype.element_ty), mask=there)


def forward(
    x: Any, w: Any, scale: Any, bias: Any, residual: Any | None, y: Any, geometry: Geometry, relu: bool,
    residual_scale: float,
) -> None:  # fmt: skip
    """As `convolution_int8.forward`, with float8_e4m3fn in the place of int8."""
    pointers = (x, w, scale, bias, x if residual is None else residual, y)
    counted = 0.0 if residual is None else residual_scale
    last = (*geometry.arguments(), int(residual is not None), int(relu), counted)
    start_tiles(convolution_fp8, OPERATOR, "convolution", x, pointers, y, last)


def variants(architecture: int) -> list[Variant]:
    """What the ahead-of-time compiler makes of this operator: nothing for architectures without fp8."""
    if architecture < FIRST_ARCHITECTURE:
        return []
    made = []
    for output in OUTPUTS:
        types = {"x_ptr": "fp8", "w_ptr": "fp8", "scale_ptr": "fp32", "bias_ptr": "fp32"}
        types |= {"residual_ptr": "fp8", "y_ptr": output}
        widths = WIDTHS if output == "fp8" else ONE_WIDTH
        made += convolution_variants(
            OPERATOR, "convolution", convolution_fp8, output, types, architecture, widths=widths
        )
    return made
