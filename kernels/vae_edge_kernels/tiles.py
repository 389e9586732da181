"""What the convolution kernels share: where a tile's pixels lie, and where their taps do. A tap of a pixel is one
element of the filter's window over it."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def place(rows, out_height, out_width, ROWS: tl.constexpr):
    """This program's output pixels: their numbers, images, y, x [ROWS], and whether they are there."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    across = row // out_width
    return row, across // out_height, across % out_height, row % out_width, row < rows


@triton.jit
def tap_pixels(
    image, oy, ox, inside, row_tap, column_tap, height, width, stride, pad_top, pad_left, UPSAMPLING: tl.constexpr,
):  # fmt: skip
    """Where a tap of each output pixel lies in x, in pixels (int64), and whether it is within the frame.

    `height` and `width` are those of x as it is stored; each of its pixels stands for UPSAMPLING × UPSAMPLING.
    """
    iy = oy * stride + row_tap - pad_top
    ix = ox * stride + column_tap - pad_left
    ok = inside & (iy >= 0) & (iy < height * UPSAMPLING) & (ix >= 0) & (ix < width * UPSAMPLING)
    return (image * height + iy // UPSAMPLING).to(tl.int64) * width + ix // UPSAMPLING, ok


@triton.jit
def gather(
    x_ptr, image, oy, ox, inside, height, width, channels, tap_height, tap_width, stride, pad_top, pad_left,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """All taps and channels of each output pixel side by side, [ROWS, DEPTH], with zeros behind the last one."""
    k = tl.arange(0, DEPTH)
    tap = k // channels
    pixel, ok = tap_pixels(
        image[:, None], oy[:, None], ox[:, None], inside[:, None], (tap // tap_width)[None, :],
        (tap % tap_width)[None, :], height, width, stride, pad_top, pad_left, 1,
    )  # fmt: skip
    ok = ok & (tap < tap_height * tap_width)[None, :]
    return tl.load(x_ptr + pixel * channels + (k % channels)[None, :], mask=ok, other=0)


@triton.jit
def operand(x):
    """A matrix product's operand. The interpreter multiplies the bits of bfloat16 as integers; there it is float32."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return x.to(tl.float32)
    return x


@triton.jit
def at_least(value, relu):
    """The value, or 0 where `relu` is 1 and the value is below; a NaN stays one."""
    least = tl.where(relu != 0, 0.0, float("-inf"))
    return tl.where(value < least, least, value)


@triton.jit
def round_to_int8(value):
    """Float32 to int8, the nearest even, saturated at -128 and 127; a NaN is 0.

    Adding 1.5 · 2^23 leaves no bits behind the point of a small number: the addition itself rounds.
    """
    value = tl.where(value == value, tl.minimum(tl.maximum(value, -128.0), 127.0), 0.0)  # noqa: PLR0124
    return ((value + 12582912.0) - 12582912.0).to(tl.int8)
