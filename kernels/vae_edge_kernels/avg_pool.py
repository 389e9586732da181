"""Average pooling of feature maps."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import BLOCK_N_CHOICES, KernelSpec, block_n_for, current_architecture, get_config

OPERATOR = "avg_pool"


@triton.jit
def avg_pool_kernel(x_ptr, y_ptr, pixels, channels, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """y[n, c] = scale * mean over p of x[n, p, c]

    x: [N, pixels, channels], any floating dtype or int8.  y: float32 [N, channels].

    Grid: N × cdiv(channels, BLOCK_N). A program walks over the pixels, BLOCK_M at a time.
    """
    n = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = offs_n < channels

    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, pixels, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        x = tl.load(
            x_ptr + (n * pixels + offs_m)[:, None] * channels + offs_n[None, :],
            mask=(offs_m < pixels)[:, None] & n_mask[None, :],
            other=0,
        )
        sums += x.to(tl.float32)

    tl.store(y_ptr + n * channels + offs_n, tl.sum(sums, 0) / pixels * scale, mask=n_mask)


def forward(x: Any, y: Any, scale: float) -> None:
    """Launch `avg_pool_kernel` on the current device and stream.

    Args:
        x: contiguous [N, H, W, C], any floating dtype or int8.
        y: contiguous float32 [N, C]; written.
        scale: quantization scale of x, 1 for floats.
    """
    images, height, width, channels = x.shape
    if images == 0:
        return

    config = get_config(OPERATOR, OPERATOR, current_architecture())
    block_n = block_n_for(channels)
    grid = (images, triton.cdiv(channels, block_n))
    avg_pool_kernel[grid](x, y, height * width, channels, scale, BLOCK_N=block_n, enable_fp_fusion=True, **config)


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes: the dtypes that the network has, for channels that are multiples of 16."""
    config = get_config(OPERATOR, OPERATOR, architecture)
    return [
        KernelSpec(
            name=f"avg_pool_{dtype}_{block_n}",
            operator=OPERATOR,
            function=avg_pool_kernel,
            types={"x_ptr": f"*{dtype}", "y_ptr": "*fp32", "pixels": "i32", "channels": "i32", "scale": "fp32"},
            constants={"BLOCK_M": config["BLOCK_M"], "BLOCK_N": block_n},
            aligned=("x_ptr", "y_ptr", "channels"),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        for dtype in ("fp16", "i8")
        for block_n in BLOCK_N_CHOICES
    ]
