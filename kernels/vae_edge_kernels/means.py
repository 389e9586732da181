"""Means of feature maps by channel, [N, P, W] to [N, W]: what the rejection score looks at."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels import configurations
from vae_edge_kernels.launching import WIDTHS, columns_for
from vae_edge_kernels.variants import Variant

OPERATOR = "means"


@triton.jit
def means(x_ptr, y_ptr, pixels, channels, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x [N, pixels, channels] to means times `scale`, float32 [N, channels]; N × cdiv(channels, COLUMNS) programs."""
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < channels
    sums = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, pixels, ROWS):
        row = start + tl.arange(0, ROWS)
        x = tl.load(
            x_ptr + (n * pixels + row)[:, None] * channels + column[None, :],
            mask=(row < pixels)[:, None] & known[None, :],
            other=0,
        )
        sums += tl.sum(x.to(tl.float32), 0)
    tl.store(y_ptr + n * channels + column, sums / pixels * scale, mask=known)


def forward(x: Any, y: Any, scale: float) -> None:
    """Launch on the current device and stream.

    Args:
        x: contiguous [N, H, W, C], any floating dtype or int8.
        y: contiguous float32 [N, C], written.
        scale: what one of x counts.
    """
    images, height, width, channels = x.shape
    if images:
        chosen = configurations.choose(OPERATOR, "means", configurations.current_architecture())
        columns = columns_for(channels)
        grid = (images, triton.cdiv(channels, columns))
        means[grid](x, y, height * width, channels, scale, COLUMNS=columns, enable_fp_fusion=True, **chosen)


def variants(architecture: int) -> list[Variant]:
    """What the ahead-of-time compiler makes of this operator: each type and width of tile, for channels that are
    multiples of 16."""
    chosen = configurations.choose(OPERATOR, "means", architecture)
    return [
        Variant(
            name=f"means_{dtype}_{width}",
            operator=OPERATOR,
            function=means,
            types={"x_ptr": f"*{dtype}", "y_ptr": "*fp32", "pixels": "i32", "channels": "i32", "scale": "fp32"},
            constants={"ROWS": chosen["ROWS"], "COLUMNS": width},
            aligned=("x_ptr", "y_ptr", "channels"),
            num_warps=chosen["num_warps"],
            num_stages=chosen["num_stages"],
        )
        for dtype in ("fp16", "i8")
        for width in WIDTHS
    ]
