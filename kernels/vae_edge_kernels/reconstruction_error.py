"""What the decoder drew compared with the image: sigmoid, blocks to pixels, squared error, and the score in one pass.

A program takes one image. The error is the squared difference over the image's own variance; see
`vae_edge.model.score.reconstruction_error`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels import configurations
from vae_edge_kernels.variants import Variant

OPERATOR = "reconstruction_error"


@triton.jit
def reconstruction_error(
    drawn_ptr, upright_ptr, score_ptr, measure_ptr, total_ptr, grid, block, side, channels, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Drawn logits [N, grid, grid, channels · block · block] and upright pixels [N, side, side, channels] to the score.

    score, float32 [N, 2], is what the score is without the reconstruction, and the error to be expected; `measure` the
    weight of the difference. The total, float32 [N], is score + measure · (error − expected).
    """
    n = tl.program_id(0).to(tl.int64)
    size = side * side * channels
    cell = channels * block * block
    upright_ptr += n * size
    drawn_ptr += n * grid * grid * cell
    apart, brightness = 0.0, 0.0
    for start in range(0, size, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)
        there = element < size
        channel, pixel = element % channels, element // channels
        y, x = pixel // side, pixel % side
        inside = channel * block * block + y % block * block + x % block
        logit = tl.load(drawn_ptr + (y // block * grid + x // block) * cell + inside, mask=there, other=0.0)
        drawn = 1.0 / (1.0 + tl.exp(-logit.to(tl.float32)))
        seen = tl.load(upright_ptr + element, mask=there, other=0.0).to(tl.float32)
        apart += tl.sum(tl.where(there, (seen - drawn) * (seen - drawn), 0.0), 0)
        brightness += tl.sum(seen, 0)
    mean = brightness / size
    contrast = 0.0
    for start in range(0, size, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)
        seen = tl.load(upright_ptr + element, mask=element < size, other=0.0).to(tl.float32)
        contrast += tl.sum(tl.where(element < size, (seen - mean) * (seen - mean), 0.0), 0)
    root = tl.sqrt(contrast) + tl.sqrt(0.001 * size)
    error = apart / (root * root)
    known, expected = tl.load(score_ptr + n * 2), tl.load(score_ptr + n * 2 + 1)
    tl.store(total_ptr + n, known + tl.load(measure_ptr) * (error - expected))


def forward(drawn: Any, upright: Any, score: Any, measure: Any, total: Any, block: int) -> None:
    """Launch on the current device and stream; all tensors are contiguous.

    Args:
        drawn: logits [N, G, G, C · B · B], any floating dtype.
        upright: pixels [N, S, S, C], any floating dtype.
        score: float32 [N, 2]; measure: float32 [1]; see the kernel.
        total: float32 [N], written.
        block: B, pixels that a cell of the grid becomes in either direction.
    """
    images, side, _, channels = upright.shape
    if images:
        chosen = configurations.choose(OPERATOR, "reconstruction_error", configurations.current_architecture())
        reconstruction_error[(images,)](
            drawn, upright, score, measure, total, drawn.shape[1], block, side, channels,
            enable_fp_fusion=True, **chosen,
        )  # fmt: skip


def variants(architecture: int) -> list[Variant]:
    """What the ahead-of-time compiler makes of this operator: for each type that the network draws in."""
    chosen = configurations.choose(OPERATOR, "reconstruction_error", architecture)
    names = reconstruction_error.arg_names
    return [
        Variant(
            name=f"reconstruction_error_{dtype}",
            operator=OPERATOR,
            function=reconstruction_error,
            types={name: "*fp32" for name in names if name.endswith("_ptr")}
            | {"drawn_ptr": f"*{dtype}", "upright_ptr": f"*{dtype}"}
            | dict.fromkeys(("grid", "block", "side", "channels"), "i32"),
            constants={"ELEMENTS": chosen["ELEMENTS"]},
            aligned=("drawn_ptr",),
            num_warps=chosen["num_warps"],
            num_stages=chosen["num_stages"],
        )
        for dtype in ("fp16", "fp32")
    ]
