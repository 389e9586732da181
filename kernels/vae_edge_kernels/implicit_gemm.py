"""Implicit GEMM: a convolution as a matrix product whose left matrix is never stored.

    y[n, oy, ox, k] = sum over r, s, c of x[n, oy * stride + r - pad_top, ox * stride + s - pad_left, c] * w[r, s, c, k]

Write m for the output pixel (n, oy, ox) and j for the summed index (r, s, c): y[m, k] = sum over j of a[m, j] * w[j, k]
is a matrix product. The matrix a ("im2col") repeats each input pixel up to R·S times, so it is never made: a program
loads the part that it needs from x.

    GEMM    convolution                       tile
    M       output pixels, N·OH·OW            BLOCK_M
    N       output channels, K                BLOCK_N
    K       kernel size · channels, R·S·C     BLOCK_K

Tensors are channels-last: x [N, H, W, C], y [N, OH, OW, K]. The convolution kernels (`conv`) and the whole network
(`network`) share what is here.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

OUT_OF_IMAGE = tl.constexpr(-(1 << 24))  # a row above every image, also after any kernel row is added
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def use_split_n(architecture: int | None) -> int:
    """SPLIT_N of `implicit_gemm_mainloop` for 8-bit operands: 1 on sm_80 to sm_89, else 0."""
    return int(architecture is not None and architecture // 10 == 8)


@triton.jit
def divide(value, divisor):
    """Quotient and remainder of whole numbers from 0 on. A GPU divides unsigned integers by fewer instructions."""
    quotient = (value.to(tl.uint32) // tl.cast(divisor, tl.uint32)).to(tl.int32)
    return quotient, value - quotient * divisor


@triton.jit
def output_coords(M, out_height, out_width, BLOCK_M: tl.constexpr):
    """The output pixels of this program: m, n, oy, ox, all [BLOCK_M], and whether m is below M (`row_mask`)."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image_row, ox = divide(m, out_width)
    n, oy = divide(image_row, out_height)
    return m, n, oy, ox, m < M


@triton.constexpr_function
def least(a: int, b: int) -> int:
    """The smaller of two constants."""
    return min(a, b)


@triton.jit
def in_bounds(index, size):
    """0 <= index < size in one comparison: as unsigned, a negative index is larger than every size."""
    return index.to(tl.uint32) < size


@triton.jit
def divide_small(value, divisor):
    """value // divisor for both from 0 to 255, by a product: many values need one division."""
    return (value * (65536 // divisor + 1)) >> 16


@triton.jit
def load_im2col_tile(
    x_ptr, n, oy, ox, row_mask, height, width, in_channels, kernel_h, kernel_w, stride, pad_top, pad_left,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows of the im2col matrix for output pixels n, oy, ox [BLOCK_M]: all R·S·C columns at once, [BLOCK_M, BLOCK_K].

    For few input channels, where R·S·C <= BLOCK_K. Padding, masked rows and columns from R·S·C on are 0.

    It is loaded transposed: the threads of a warp take pixels side by side, whose bytes lie in a few sectors, and each
    computes the coordinates of one of them.
    """
    # Column k of the im2col matrix is the channel k % C of the kernel position k // C. Those beyond the kernel lie far
    # above the image, as masked rows do.
    k = tl.arange(0, BLOCK_K)
    position = divide_small(k, in_channels)
    r = divide_small(position, kernel_w)
    s = position - r * kernel_w
    offset = (r * width + s) * in_channels + (k - position * in_channels)
    r = tl.where(position < kernel_h * kernel_w, r, OUT_OF_IMAGE // 2)
    iy0 = tl.where(row_mask, oy * stride - pad_top, OUT_OF_IMAGE // 2)
    ix0 = ox * stride - pad_left

    mask = in_bounds(iy0[None, :] + r[:, None], height) & in_bounds(ix0[None, :] + s[:, None], width)
    corner = ((n * height + iy0).to(tl.int64) * width + ix0) * in_channels
    return tl.trans(tl.load(x_ptr + corner[None, :] + offset[:, None], mask=mask, other=0))


@triton.jit
def as_dot_operand(x):
    """An operand of `tl.dot`, unchanged; only the interpreter needs a cast.

    Triton's interpreter holds bfloat16 as 16-bit integers, and its `tl.dot` multiplies their bits (seen with 3.9).
    There it becomes float32, which holds every bfloat16.
    """
    if INTERPRETED and x.dtype == tl.bfloat16:
        return x.to(tl.float32)
    return x


@triton.jit
def relu(value, enabled):
    """max(value, 0) where `enabled` is not 0, else value. NaN stays NaN, as in PyTorch."""
    lowest = tl.where(enabled != 0, 0.0, float("-inf"))
    return tl.maximum(value, lowest, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def fma(value, factor, addend):
    """value * factor + addend in float32, rounded once.

    The interpreter's `tl.fma` rounds twice. There the sum is made in float64, as in the references.
    """
    if INTERPRETED:
        return (value.to(tl.float64) * factor + addend).to(tl.float32)
    return tl.fma(value, factor, addend)


@triton.jit
def quantize_int8(value):
    """float32 to int8: nearest, half to even, saturated to -128..127; NaN is 0."""
    value = tl.where(value == value, tl.minimum(tl.maximum(value, -128.0), 127.0), 0.0)  # noqa: PLR0124
    return round_to_int8(value)


@triton.jit
def quantize_relu_int8(value):
    """`quantize_int8` of max(value, 0), in a third of its instructions; NaN is 0 here too."""
    if INTERPRETED:
        value = tl.where(value == value, value, 0.0)  # noqa: PLR0124  # the interpreter's maximum keeps NaN
    return round_to_int8(tl.minimum(tl.maximum(value, 0.0), 127.0))


@triton.jit
def quantize_relu_packed(value):
    """`quantize_relu_int8` of numbers that are not NaN, in half of its instructions.

    Multiplied by 2^-149, the smallest float32, a number is rounded to a whole multiple of it, whose bits are the
    integer; those of a negative number are a large negative integer. Saturated to int8 it is -128, and 0 without its
    highest bit.
    """
    if INTERPRETED:
        return quantize_relu_int8(value)
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 q<4>;
        mul.rn.f32 q0, $1, 0f00000001;
        mul.rn.f32 q1, $2, 0f00000001;
        mul.rn.f32 q2, $3, 0f00000001;
        mul.rn.f32 q3, $4, 0f00000001;
        cvt.pack.sat.s8.s32.b32 q2, q3, q2, 0;
        cvt.pack.sat.s8.s32.b32 q0, q1, q0, q2;
        and.b32 $0, q0, 0x7f7f7f7f;
        }""",
        "=r,r,r,r,r",
        [value],
        dtype=tl.int8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def quantize_pixel(value):
    """`quantize_relu_int8`, but as float32."""
    if INTERPRETED:
        value = tl.where(value == value, value, 0.0)  # noqa: PLR0124  # the interpreter's maximum keeps NaN
    return (tl.minimum(tl.maximum(value, 0.0), 127.0) + 12582912.0) - 12582912.0


@triton.jit
def quantize_to_float(value):
    """`quantize_int8`, but as float32."""
    value = tl.where(value == value, tl.minimum(tl.maximum(value, -128.0), 127.0), 0.0)  # noqa: PLR0124
    return (value + 12582912.0) - 12582912.0


@triton.jit
def round_to_int8(value):
    """float32 from -128 to 127 to int8, half to even.

    1.5 * 2^23 is added: a float32 of this size has no fraction bits, so the addition itself rounds, and its lowest byte
    is the integer.
    """
    return (value + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def implicit_gemm_mainloop(
    x_ptr, w_ptr, n, oy, ox, row_mask, n_start, height, width, in_channels, out_channels,
    kernel_h, kernel_w, stride, pad_top, pad_left,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC_DTYPE: tl.constexpr,
    W_K_MAJOR: tl.constexpr, SPLIT_N: tl.constexpr, KERNEL_ROWS: tl.constexpr,
):  # fmt: skip
    """acc[m, k] = sum over r, s, c of x[n, oy * stride + r - pad_top, ox * stride + s - pad_left, c] * w[r, s, c, k]

    The pixels under a row of the kernel lie side by side in memory, and so do their channels: S·C summed indices. With
    KERNEL_ROWS a step of the loop is BLOCK_K of them, so that few channels fill a matrix instruction too. Without, it
    is BLOCK_K channels of one kernel position: for W_K_MAJOR, where channels are read one by one, the other is dearer.

    Args:
        x_ptr: [N, height, width, in_channels].
        w_ptr: [R, S, in_channels, out_channels], or [R, S, out_channels, in_channels] with W_K_MAJOR: the tensor cores
            read 8-bit operands with the summed index contiguous in both.
        n, oy, ox, row_mask: the output pixels of the tile, [BLOCK_M], as `output_coords` gives them.
        n_start: first output channel of the tile.
        SPLIT_N: 1 for one `tl.dot` each over the even and the odd output channels; the sums are the same. Work-around
            for 8-bit operands on sm_80 to sm_89: with a single dot Triton 3.9 prefetches operands across iterations,
            unpacks them to bytes and packs them again (PRMT). A 64×64 int8 tile on sm_87 takes 290 instructions a
            step with one dot and 125 with two; sm_90 does not need it.

    Returns:
        acc: [BLOCK_M, BLOCK_N] in ACC_DTYPE.
    """
    # Input pixel of kernel position (0, 0). Rows that are masked lie far above the image, so that the bounds check of
    # the loop covers them as well. Along a row elements are counted, not pixels: one comparison covers all channels.
    iy0 = tl.where(row_mask, oy * stride - pad_top, OUT_OF_IMAGE)
    ix0 = ox * stride - pad_left
    element0 = ix0 * in_channels
    row_size = width * in_channels
    w_size = in_channels * out_channels  # of a kernel position
    k = tl.arange(0, BLOCK_K)
    if KERNEL_ROWS:
        depth, columns = kernel_w * in_channels, 1
    else:
        depth, columns = in_channels, kernel_w

    # Pointers of the first step. Every further step adds one scalar to all of them: the next elements are equally far
    # for every pixel. So the loop has no division and no pointer arithmetic per lane.
    corner = (n.to(tl.int64) * height + iy0) * row_size + element0
    x_ptrs = x_ptr + corner[:, None] + k[None, :]

    DOT_N: tl.constexpr = BLOCK_N // 2 if SPLIT_N else BLOCK_N
    offs_n = n_start + tl.arange(0, DOT_N) * (2 if SPLIT_N else 1)
    if W_K_MAJOR:
        w_ptrs = w_ptr + (offs_n * in_channels)[None, :]
        w_stride_n = in_channels
    else:
        w_ptrs = w_ptr + k[:, None] * out_channels + offs_n[None, :]
        w_stride_n = 1

    # With W_K_MAJOR a kernel position's channels do not lie behind those of the one before. Channel and weight of each
    # lane: a step adds to both what BLOCK_K is in kernel positions and channels.
    first_channel = k % in_channels if W_K_MAJOR and KERNEL_ROWS else k
    first_weight = k // in_channels * w_size + first_channel if W_K_MAJOR and KERNEL_ROWS else k
    step_positions = BLOCK_K // in_channels
    step_channels = BLOCK_K - step_positions * in_channels
    channel, weight = first_channel, first_weight

    acc = tl.zeros((BLOCK_M, DOT_N), dtype=ACC_DTYPE)
    acc_odd = tl.zeros((BLOCK_M, DOT_N), dtype=ACC_DTYPE)

    r, s, j = 0, 0, 0
    for _ in range(kernel_h * columns * tl.cdiv(depth, BLOCK_K)):
        # Load BLOCK_K elements of the input pixels under row r of the kernel, or kernel position (r, s).
        k_mask = k < depth - j
        row_in_image = in_bounds(iy0 + r, height)
        if KERNEL_ROWS:
            element = j
            a_mask = row_in_image[:, None] & in_bounds((element0 + j)[:, None] + k[None, :], row_size)
            # Beyond the kernel's row the image's numbers are multiplied by the weights' zeros: the mask matters to NaN.
            if x_ptr.dtype.element_ty != tl.int8:
                a_mask = a_mask & k_mask[None, :]
        else:
            element = s * in_channels + j
            a_mask = (row_in_image & in_bounds(ix0 + s, width))[:, None] & k_mask[None, :]
        a = as_dot_operand(tl.load(x_ptrs + (r * row_size + element), mask=a_mask, other=0.0))

        # Load their weights.
        position = r if KERNEL_ROWS else r * kernel_w + s
        if W_K_MAJOR and KERNEL_ROWS:
            b_ptrs = w_ptrs + weight[:, None]
        elif W_K_MAJOR:
            b_ptrs = w_ptrs + (k + (position * w_size + j))[:, None]
        else:
            b_ptrs = w_ptrs + (position * depth + j) * out_channels
        b_mask = k_mask[:, None] & (offs_n < out_channels)[None, :]
        b = as_dot_operand(tl.load(b_ptrs, mask=b_mask, other=0.0))

        # max_num_imprecise_acc matters for fp8 on sm_90 alone, whose tensor cores sum in fewer bits than float32 has:
        # after this many products their sums are added up in float32.
        acc = tl.dot(a, b, acc, input_precision="tf32", out_dtype=ACC_DTYPE, max_num_imprecise_acc=BLOCK_K)
        if SPLIT_N:
            b_mask = k_mask[:, None] & (offs_n + 1 < out_channels)[None, :]
            b = as_dot_operand(tl.load(b_ptrs + w_stride_n, mask=b_mask, other=0.0))
            acc_odd = tl.dot(a, b, acc_odd, input_precision="tf32", out_dtype=ACC_DTYPE, max_num_imprecise_acc=BLOCK_K)

        # Next elements; behind the last ones the next kernel position or row. multiple_of tells the compiler that j
        # keeps the loads aligned, which it cannot see through tl.where.
        j += BLOCK_K
        ended = j >= depth
        if KERNEL_ROWS:
            r += ended.to(tl.int32)
        else:
            s += ended.to(tl.int32)
            r += (s == kernel_w).to(tl.int32)
            s = tl.where(s == kernel_w, 0, s)
        if W_K_MAJOR and KERNEL_ROWS:
            channel += step_channels
            over = channel >= in_channels
            channel = tl.where(over, channel - in_channels, channel)
            weight += step_positions * w_size + step_channels
            weight = tl.where(over, weight + (w_size - in_channels), weight)
            channel = tl.where(ended, first_channel, channel)
            weight = tl.where(ended, r * kernel_w * w_size + first_weight, weight)
        j = tl.multiple_of(tl.where(ended, 0, j), BLOCK_K)

    if SPLIT_N:
        acc = tl.join(acc, acc_odd).reshape(BLOCK_M, BLOCK_N)  # even and odd channels back in turn
    return acc
