"""Convolution of an image of twice the side, without making it: each pixel of x stands for 2×2 (nearest), which are
read where they are needed. For decoders; everything else is as in `convolution`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.convolution import finish
from vae_edge_kernels.launching import Geometry, start_tiles
from vae_edge_kernels.tiles import accumulate, place
from vae_edge_kernels.variants import ONE_WIDTH, Variant, convolution_variants

OPERATOR = "upsample_convolution"
AHEAD_OF_TIME = ("fp16",)


@triton.jit
def upsample_convolution(
    x_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr, rows, height, width, channels, out_height, out_width, outputs,
    tap_height, tap_width, stride, pad_top, pad_left, has_residual, relu,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`convolution` of x [N, height, width, channels] drawn 2 · height × 2 · width."""
    row, image, oy, ox, inside = place(rows, out_height, out_width, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = accumulate(
        x_ptr, w_ptr, image, oy, ox, inside, tl.program_id(1) * COLUMNS, height, width, channels, outputs,
        tap_height, tap_width, stride, pad_top, pad_left, ROWS, COLUMNS, DEPTH, 2, tl.float32, 0, 0,
    )  # fmt: skip
    finish(total, bias_ptr, residual_ptr, y_ptr, row, inside, column, outputs, has_residual, relu)


def forward(x: Any, w: Any, bias: Any, residual: Any | None, y: Any, geometry: Geometry, relu: bool) -> None:
    """As `convolution.forward`; `geometry` counts in pixels of the larger image."""
    pointers = (x, w, bias, y if residual is None else residual, y)
    last = (*geometry.arguments(), int(residual is not None), int(relu))
    start_tiles(upsample_convolution, OPERATOR, "upsample_convolution", x, pointers, y, last)


def variants(architecture: int) -> list[Variant]:
    """What the ahead-of-time compiler makes of this operator."""
    made = []
    for dtype in AHEAD_OF_TIME:
        types = {"x_ptr": dtype, "w_ptr": dtype, "bias_ptr": "fp32", "residual_ptr": dtype, "y_ptr": dtype}
        made += convolution_variants(
            OPERATOR, "upsample_convolution", upsample_convolution, dtype, types, architecture, widths=ONE_WIDTH
        )
    return made
