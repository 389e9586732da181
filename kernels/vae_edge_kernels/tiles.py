"""What the convolution kernels share: where a tile's pixels lie, where their taps do, and the sum over them. A tap of a
pixel is one element of the filter's window over it."""

from __future__ import annotations

import os

import triton
import triton.language as tl

NOWHERE = tl.constexpr(-(1 << 24))  # a row of pixels above every image
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def place(rows, out_height, out_width, ROWS: tl.constexpr):
    """This program's output pixels: their numbers, images, y, x [ROWS], and whether they are there."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    across = row // out_width
    return row, across // out_height, across % out_height, row % out_width, row < rows


@triton.jit
def within(place, size):
    """Whether 0 <= place < size, in one comparison."""
    return place.to(tl.uint32) < size


@triton.jit
def gather(
    x_ptr, image, oy, ox, inside, height, width, channels, tap_height, tap_width, stride, pad_top, pad_left,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """All taps and channels of each output pixel side by side, [ROWS, DEPTH], with zeros behind the last one."""
    k = tl.arange(0, DEPTH)
    tap = k // channels
    iy = (oy * stride - pad_top)[:, None] + (tap // tap_width)[None, :]
    ix = (ox * stride - pad_left)[:, None] + (tap % tap_width)[None, :]
    ok = inside[:, None] & within(iy, height) & within(ix, width) & (tap < tap_height * tap_width)[None, :]
    pixel = (image[:, None] * height + iy).to(tl.int64) * width + ix
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
def multiply_add(value, factor, addend):
    """value · factor + addend in float32, rounded once; in the interpreter by way of float64, as in the references."""
    if INTERPRETED:
        return (value.to(tl.float64) * factor + addend).to(tl.float32)
    return tl.fma(value, factor, addend)


@triton.jit
def round_to_int8(value):
    """Float32 to int8, the nearest even, saturated at -128 and 127; a NaN is 0.

    Adding 1.5 · 2^23 leaves no bits behind the point of a small number: the addition itself rounds.
    """
    value = tl.where(value == value, tl.minimum(tl.maximum(value, -128.0), 127.0), 0.0)  # noqa: PLR0124
    return ((value + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def accumulate(
    x_ptr, w_ptr, image, oy, ox, inside, first, height, width, channels, outputs,
    tap_height, tap_width, stride, pad_top, pad_left,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, UPSAMPLING: tl.constexpr, SUM: tl.constexpr,
    DEPTH_FIRST: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """The convolution at output pixels `image`, `oy`, `ox` [ROWS] and channels from `first` on [COLUMNS], of type SUM.

    Addresses are counted on from step to step: to the next tap or channels it is equally far from every pixel.

    Args:
        x_ptr: [N, height, width, channels], each of whose pixels stands for UPSAMPLING × UPSAMPLING.
        w_ptr: [taps, channels, outputs], or with DEPTH_FIRST [taps, outputs, channels]: the matrix units take eight-bit
            operands with the summed dimension running fastest in both.
        PAIRED: 1 for a product each of even and odd columns; the sums are the same. For a single product of eight-bit
            operands the compiler makes, for sm_80 to sm_89, a loop that takes them apart into bytes and joins these
            again: more than half of its instructions.
    """
    top = tl.where(inside, oy * stride - pad_top, NOWHERE)
    left = ox * stride - pad_left
    k = tl.arange(0, DEPTH)
    if UPSAMPLING == 1:
        corner = (image.to(tl.int64) * height + top) * width + left
        x_ptrs = x_ptr + corner[:, None] * channels + k[None, :]
    EACH: tl.constexpr = COLUMNS // 2 if PAIRED else COLUMNS
    column = first + tl.arange(0, EACH) * (2 if PAIRED else 1)
    if DEPTH_FIRST:
        w_ptrs = w_ptr + column[None, :] * channels + k[:, None]
        next_column = channels
        next_depth = 1
    else:
        w_ptrs = w_ptr + k[:, None] * outputs + column[None, :]
        next_column = 1
        next_depth = outputs
    total = tl.zeros((ROWS, EACH), dtype=SUM)
    other = tl.zeros((ROWS, EACH), dtype=SUM)
    tap_row, tap_column, channel = 0, 0, 0
    for _ in range(tap_height * tap_width * tl.cdiv(channels, DEPTH)):
        y, x = top + tap_row, left + tap_column
        tap = tap_row * tap_width + tap_column
        known = k < channels - channel
        ok = within(y, height * UPSAMPLING) & within(x, width * UPSAMPLING)
        if UPSAMPLING == 1:
            seen_ptrs = x_ptrs + ((tap_row * width + tap_column) * channels + channel)
        else:
            pixel = (image.to(tl.int64) * height + y // UPSAMPLING) * width + x // UPSAMPLING
            seen_ptrs = x_ptr + pixel[:, None] * channels + (channel + k)[None, :]
        seen = operand(tl.load(seen_ptrs, mask=ok[:, None] & known[None, :], other=0.0))
        weight_ptrs = w_ptrs + (tap * channels * outputs + channel * next_depth)
        there = known[:, None] & (column < outputs)[None, :]
        weight = operand(tl.load(weight_ptrs, mask=there, other=0.0))
        total = tl.dot(seen, weight, total, input_precision="tf32", out_dtype=SUM, max_num_imprecise_acc=DEPTH)
        if PAIRED:
            there = known[:, None] & (column + 1 < outputs)[None, :]
            weight = operand(tl.load(weight_ptrs + next_column, mask=there, other=0.0))
            other = tl.dot(seen, weight, other, input_precision="tf32", out_dtype=SUM, max_num_imprecise_acc=DEPTH)
        channel += DEPTH
        channel = tl.multiple_of(tl.where(channel < channels, channel, 0), DEPTH)
        tap_column += (channel == 0).to(tl.int32)
        tap_row += (tap_column == tap_width).to(tl.int32)
        tap_column = tl.where(tap_column == tap_width, 0, tap_column)
    if PAIRED:
        total = tl.join(total, other).reshape(ROWS, COLUMNS)
    return total
