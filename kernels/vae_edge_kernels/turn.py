"""Turning a batch of images in one pass: bytes or floats in, turned by an angle each, scaled, cast or quantized out.

Bilinear between pixel centres at half-integer coordinates, `fill` outside the frame: for finite pixels the values of
`torch.nn.functional.grid_sample` (align_corners=False), and those of `vae_edge.ops.turn.turn`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, as_float32, current_architecture, dtype_name, get_config
from vae_edge_kernels.implicit_gemm import in_bounds, quantize_int8

OPERATOR = "turn"
MADE = (("u8", "fp16", False), ("u8", "fp16", True), ("u8", "fp32", False), ("u8", "i8", False))  # ahead of time


@triton.jit
def corner(
    x_ptr, there, y, x, side, scale, fill, inverse, counts,
    WINDOW: tl.constexpr, ROUNDED: tl.constexpr, FILLED: tl.constexpr,
):  # fmt: skip
    """What pixels (y, x) at x_ptr have above `fill`; 0 where they are not there, and less towards the edge of a round
    window. y and x are whole floats."""
    value = tl.load(x_ptr, mask=there, other=0).to(tl.float32) * scale
    if FILLED:
        value -= fill
    if WINDOW:
        down, along = y + 0.5 - 0.5 * side, x + 0.5 - 0.5 * side
        seen = 0.5 * side - tl.sqrt(down * down + along * along)
        value *= tl.minimum(tl.maximum(seen, 0.0), 1.0)
    if ROUNDED:
        if FILLED:
            value += fill
        value = quantize_int8(value * inverse).to(tl.float32) * counts
        if FILLED:
            value -= fill
    if FILLED:
        value = tl.where(there, value, 0.0)
    return value


@triton.jit
def turned(
    x_ptr, row, column, channel, cos, sin, side, channels, scale, fill, inverse, counts,
    WINDOW: tl.constexpr, ROUNDED: tl.constexpr, FILLED: tl.constexpr,
):  # fmt: skip
    """Pixels (row, column: whole floats) of an image [side, side, channels] turned counter-clockwise: float32.

    The image's values are those in memory times `scale`; with ROUNDED they are rounded to int8 first, after
    multiplication by `inverse`, and each of these counts `counts`. With `cos` and minus `sin` of its angle it is
    turned back. Without FILLED, `fill` is taken for 0. Nothing outside the image is read, wherever the pixels are.
    """
    middle = 0.5 * side - 0.5
    across, down = column - middle, row - middle
    x = across * cos + middle - down * sin
    y = across * sin + middle + down * cos
    left, top = tl.floor(x), tl.floor(y)
    right_share, bottom_share = x - left, y - top
    ix, iy = left.to(tl.int32), top.to(tl.int32)
    in_left, in_right = in_bounds(ix, side), in_bounds(ix + 1, side)
    in_top, in_bottom = in_bounds(iy, side), in_bounds(iy + 1, side)
    place = (iy * side + ix) * channels + channel
    lower_ptr = x_ptr + side * channels
    upper_left = corner(
        x_ptr + place, in_top & in_left, top, left, side, scale, fill, inverse, counts, WINDOW, ROUNDED, FILLED
    )
    upper_right = corner(
        x_ptr + channels + place, in_top & in_right, top, left + 1.0, side, scale, fill, inverse, counts, WINDOW,
        ROUNDED, FILLED,
    )  # fmt: skip
    lower_left = corner(
        lower_ptr + place, in_bottom & in_left, top + 1.0, left, side, scale, fill, inverse, counts, WINDOW, ROUNDED,
        FILLED,
    )  # fmt: skip
    lower_right = corner(
        lower_ptr + channels + place, in_bottom & in_right, top + 1.0, left + 1.0, side, scale, fill, inverse, counts,
        WINDOW, ROUNDED, FILLED,
    )  # fmt: skip
    upper = upper_left + (upper_right - upper_left) * right_share
    lower = lower_left + (lower_right - lower_left) * right_share
    value = upper + (lower - upper) * bottom_share
    if FILLED:
        value += fill
    return value


@triton.jit
def turn(
    x_ptr, cos_ptr, sin_ptr, y_ptr, size, side, channels, scale, fill, inverse, counts, quantize,
    ELEMENTS: tl.constexpr, WINDOW: tl.constexpr, ROUNDED: tl.constexpr, FILLED: tl.constexpr,
):  # fmt: skip
    """x [N, side, side, channels] to y of the same shape, turned by the angles of cos and sin, float32 [N].

    `size` is side · side · channels. x is multiplied by `scale`; int8 outputs are multiplied by `quantize` and rounded.
    The grid has N × cdiv(size, ELEMENTS) programs. A whole division leads to a program's first row; from there on
    elements are counted in floats, which is exact in rows of up to 2^20 of them.
    """
    image = tl.program_id(0).to(tl.int64) * size
    first, width = tl.program_id(1) * ELEMENTS, side * channels
    first_row = first // width
    number = (first - first_row * width + tl.arange(0, ELEMENTS)).to(tl.float32) + 0.5
    further = tl.floor(number * (1.0 / width))
    number -= further * width
    column = tl.floor(number * (1.0 / channels))
    channel = (number - column * channels).to(tl.int32)
    cos, sin = tl.load(cos_ptr + tl.program_id(0)), tl.load(sin_ptr + tl.program_id(0))
    value = turned(
        x_ptr + image, first_row + further, column, channel, cos, sin, side, channels, scale, fill, inverse, counts,
        WINDOW, ROUNDED, FILLED,
    )  # fmt: skip
    element = first + tl.arange(0, ELEMENTS)
    if y_ptr.dtype.element_ty == tl.int8:
        tl.store(y_ptr + image + element, quantize_int8(value * quantize), mask=element < size)
    else:
        tl.store(y_ptr + image + element, value.to(y_ptr.dtype.element_ty), mask=element < size)


def forward(
    x: Any, cos: Any, sin: Any, y: Any, scale: float, fill: float = 0.0, quantize: float = 1.0, window: bool = False,
    rounded_to: float = 0.0,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, y is written.

    Args:
        x: [N, S, S, C], uint8, float16 or float32.
        cos, sin: float32 [N], of the angles by which the images are turned, counter-clockwise as displayed.
        y: [N, S, S, C], float16, bfloat16, float32 or int8.
        scale: what x is multiplied by: 1/255 for bytes.
        fill: the value, after `scale`, that comes in from outside the frame.
        quantize: what values are multiplied by before they are rounded to int8.
        window: whether only the circle inscribed in x's frame is seen, and `fill` around it.
        rounded_to: what one of the int8 numbers counts to which the image is rounded before it is turned; 0: it is not.
    """
    images, side, _, channels = x.shape
    if images == 0:
        return
    chosen = get_config(OPERATOR, _entry(dtype_name(y)), current_architecture())
    size = side * side * channels
    grid = (images, triton.cdiv(size, chosen["ELEMENTS"]))
    turn[grid](
        x, cos, sin, y, size, side, channels, scale, fill, as_float32(1.0 / (rounded_to or 1.0)), rounded_to, quantize,
        WINDOW=int(window), ROUNDED=int(rounded_to > 0), FILLED=int(fill != 0.0), enable_fp_fusion=True, **chosen,
    )  # fmt: skip


def _entry(made: str) -> str:
    """The table's entry for a type of output."""
    return "turn_i8" if made == "i8" else "turn"


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes of this operator: from each type to each type, with and without window."""
    table = {made: get_config(OPERATOR, _entry(made), architecture) for _, made, _ in MADE}
    return [
        KernelSpec(
            name=f"turn_{given}_{made}{'_window' if window else ''}{'_aligned' if aligned else ''}",
            operator=OPERATOR,
            function=turn,
            types={"x_ptr": f"*{given}", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "y_ptr": f"*{made}"}
            | {"size": "i32", "side": "i32", "channels": "i32", "scale": "fp32", "fill": "fp32"}
            | {"inverse": "fp32", "counts": "fp32", "quantize": "fp32"},
            constants={"ELEMENTS": table[made]["ELEMENTS"], "WINDOW": int(window), "ROUNDED": 0, "FILLED": 1},
            aligned=("x_ptr", "y_ptr", "size") if aligned else (),
            num_warps=table[made]["num_warps"],
            num_stages=table[made]["num_stages"],
        )
        for given, made, window in MADE
        for aligned in (False, True)
    ]
