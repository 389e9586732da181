"""Convolution kernels, fused with bias, residual add, ReLU and (for 8 bits) requantization, and their launchers.

Implicit GEMM over channels-last tensors, see `implicit_gemm`. A program computes a tile of BLOCK_M output pixels and
BLOCK_N output channels. Kernel size, stride and padding are arguments, so one compiled kernel serves every layer.

    conv_kernel            fp32 (as tf32), fp16, bf16; float32 accumulator
    conv_int8_kernel       int8 by int8; int32 accumulator; bit for bit the integer reference of `vae_edge.ops.conv`
    conv_fp8_kernel        fp8 e4m3 by fp8 e4m3; float32 accumulator; sm_89 and later
    stem_conv_kernel,      the first layer, 1 or 3 channels of bytes or floats: R·S·C is at most 128, so the whole
    stem_conv_int8_kernel  sum is one step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels import KernelError
from vae_edge_kernels.config import (
    BLOCK_N_CHOICES,
    KernelSpec,
    as_float32,
    block_n_for,
    current_architecture,
    dtype_name,
    get_config,
)
from vae_edge_kernels.implicit_gemm import (
    as_dot_operand,
    fma,
    implicit_gemm_mainloop,
    load_im2col_tile,
    output_coords,
    quantize_int8,
    quantize_pixel,
    quantize_relu_int8,
    quantize_to_float,
    relu,
    use_split_n,
)

OPERATOR = "conv"
MAX_M = 2**31 - 1024  # output pixels of a launch: counted in 32 bits, up to a tile beyond the last one
VECTOR_CHANNELS = 16  # channel counts that are multiples of it are read and written 16 bytes at a time
FP8_MIN_ARCHITECTURE = 89


@triton.jit
def epilogue(
    acc, bias_ptr, residual_ptr, y_ptr, m, row_mask, offs_n, out_channels, has_residual, apply_relu
):  # fmt: skip
    """y[m, k] = relu(acc[m, k] + bias[k] + residual[m, k]), cast to y's dtype.

    bias: float32 [K].  residual: [M, K], read where has_residual is 1.
    """
    mask = row_mask[:, None] & (offs_n < out_channels)[None, :]
    acc += tl.load(bias_ptr + offs_n, mask=offs_n < out_channels, other=0.0)[None, :]

    offsets = m.to(tl.int64)[:, None] * out_channels + offs_n[None, :]
    if has_residual != 0:
        acc += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)

    acc = relu(acc, apply_relu)
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def epilogue_int8(
    acc, scale_ptr, bias_ptr, residual_ptr, y_ptr, m, row_mask, offs_n, out_channels, residual_scale, has_residual,
    apply_relu,
):  # fmt: skip
    """y[m, k] = requantize(relu(acc[m, k] * scale[k] + bias[k] + residual[m, k] * residual_scale))

    acc: int32, or whole float32.  scale, bias: float32 [K], in units of y: scale[k] = s_x * s_w[k] / s_y,
    bias[k] = b[k] / s_y.
    residual: int8 [M, K].  Only an int8 y is rounded; float16 and float32 take the value as it is.

    Each product and its sum is one fma, written out, so that a GPU rounds exactly as the reference does.
    """
    n_mask = offs_n < out_channels
    mask = row_mask[:, None] & n_mask[None, :]
    scale = tl.load(scale_ptr + offs_n, mask=n_mask, other=0.0)
    bias = tl.load(bias_ptr + offs_n, mask=n_mask, other=0.0)
    value = fma(acc.to(tl.float32), scale[None, :], bias[None, :])

    offsets = m.to(tl.int64)[:, None] * out_channels + offs_n[None, :]
    if has_residual != 0:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0)
        value = fma(residual.to(tl.float32), residual_scale, value)

    if y_ptr.dtype.element_ty == tl.int8:
        if apply_relu != 0:
            y = quantize_relu_int8(value)
        else:
            y = quantize_int8(value)
        tl.store(y_ptr + offsets, y, mask=mask)
    else:
        tl.store(y_ptr + offsets, relu(value, apply_relu).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def conv_kernel(
    x_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr, M, height, width, in_channels, out_height, out_width, out_channels,
    kernel_h, kernel_w, stride, pad_top, pad_left, has_residual, apply_relu,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = relu(conv(x, w) + bias + residual)

    x: [N, height, width, in_channels].  w: [kernel_h, kernel_w, in_channels, out_channels].  bias: float32
    [out_channels].  y, residual: [N, out_height, out_width, out_channels], of M = N·OH·OW pixels.

    Grid: cdiv(M, BLOCK_M) × cdiv(out_channels, BLOCK_N).
    """
    m, n, oy, ox, row_mask = output_coords(M, out_height, out_width, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)

    acc = implicit_gemm_mainloop(
        x_ptr, w_ptr, n, oy, ox, row_mask, tl.program_id(1) * BLOCK_N, height, width, in_channels, out_channels,
        kernel_h, kernel_w, stride, pad_top, pad_left, BLOCK_M, BLOCK_N, BLOCK_K, tl.float32, 0, 0, 1,
    )  # fmt: skip

    epilogue(acc, bias_ptr, residual_ptr, y_ptr, m, row_mask, offs_n, out_channels, has_residual, apply_relu)


@triton.jit
def stem_conv_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, M, height, width, in_channels, out_height, out_width, out_channels,
    kernel_h, kernel_w, stride, pad_top, pad_left, apply_relu, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = relu(conv(x * scale, w) + bias), for kernel_h · kernel_w · in_channels <= BLOCK_K.

    x: uint8 or floats, scaled in float32 and then cast to w's dtype. The rest is as in `conv_kernel`.
    """
    m, n, oy, ox, row_mask = output_coords(M, out_height, out_width, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)

    # Load.
    a = load_im2col_tile(
        x_ptr, n, oy, ox, row_mask, height, width, in_channels, kernel_h, kernel_w, stride, pad_top, pad_left, BLOCK_K
    )
    a = (a.to(tl.float32) * scale).to(w_ptr.dtype.element_ty)
    k = tl.arange(0, BLOCK_K)
    w_mask = (k < kernel_h * kernel_w * in_channels)[:, None] & (offs_n < out_channels)[None, :]
    b = tl.load(w_ptr + k[:, None] * out_channels + offs_n[None, :], mask=w_mask, other=0.0)

    # Compute.
    acc = tl.dot(as_dot_operand(a), as_dot_operand(b), input_precision="tf32")

    # Store. There is no residual; any valid pointer stands in for it.
    epilogue(acc, bias_ptr, y_ptr, y_ptr, m, row_mask, offs_n, out_channels, 0, apply_relu)


@triton.jit
def conv_int8_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr, M, height, width, in_channels, out_height, out_width,
    out_channels, kernel_h, kernel_w, stride, pad_top, pad_left, has_residual, apply_relu, residual_scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_N: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
):  # fmt: skip
    """y = requantize(relu(conv(x, w) * scale + bias + residual * residual_scale))

    x: int8 [N, height, width, in_channels].  w: int8 [kernel_h, kernel_w, out_channels, in_channels].  scale, bias:
    float32 [out_channels].  y: int8, float16 or float32 [N, out_height, out_width, out_channels].  residual: int8.

    Grid: cdiv(M, BLOCK_M) × cdiv(out_channels, BLOCK_N).
    """
    m, n, oy, ox, row_mask = output_coords(M, out_height, out_width, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)

    acc = implicit_gemm_mainloop(
        x_ptr, w_ptr, n, oy, ox, row_mask, tl.program_id(1) * BLOCK_N, height, width, in_channels, out_channels,
        kernel_h, kernel_w, stride, pad_top, pad_left, BLOCK_M, BLOCK_N, BLOCK_K, tl.int32, 1, SPLIT_N, KERNEL_ROWS,
    )  # fmt: skip

    epilogue_int8(
        acc, scale_ptr, bias_ptr, residual_ptr, y_ptr, m, row_mask, offs_n, out_channels, residual_scale, has_residual,
        apply_relu,
    )  # fmt: skip


@triton.jit
def stem_conv_int8_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, M, height, width, in_channels, out_height, out_width, out_channels,
    kernel_h, kernel_w, stride, pad_top, pad_left, apply_relu, inv_x_scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = requantize(relu(conv(quantize(x * inv_x_scale), w) * scale + bias)), for R·S·C <= BLOCK_K.

    x: uint8 or floats, quantized on the way; int8 is taken as it is.  w: int8 [out_channels, R·S·C].

    The product is one of float16, which holds every int8, with float32 sums, which hold every sum of 128 products: it
    is exact, and a matrix instruction of int8 is twice as wide.
    """
    m, n, oy, ox, row_mask = output_coords(M, out_height, out_width, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)

    # Load.
    a = load_im2col_tile(
        x_ptr, n, oy, ox, row_mask, height, width, in_channels, kernel_h, kernel_w, stride, pad_top, pad_left, BLOCK_K
    )
    if x_ptr.dtype.element_ty == tl.uint8:
        a = quantize_pixel(a.to(tl.float32) * inv_x_scale)
    elif x_ptr.dtype.element_ty != tl.int8:
        a = quantize_to_float(a.to(tl.float32) * inv_x_scale)
    k = tl.arange(0, BLOCK_K)
    K = kernel_h * kernel_w * in_channels
    w_mask = (k < K)[:, None] & (offs_n < out_channels)[None, :]
    b = tl.load(w_ptr + offs_n[None, :] * K + k[:, None], mask=w_mask, other=0)

    # Compute.
    acc = tl.dot(a.to(tl.float16), b.to(tl.float16))

    # Store. There is no residual; any valid pointer stands in for it.
    epilogue_int8(acc, scale_ptr, bias_ptr, y_ptr, y_ptr, m, row_mask, offs_n, out_channels, 0.0, 0, apply_relu)


@triton.jit
def conv_fp8_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr, M, height, width, in_channels, out_height, out_width,
    out_channels, kernel_h, kernel_w, stride, pad_top, pad_left, has_residual, apply_relu, residual_scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_N: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
):  # fmt: skip
    """y = relu(conv(x, w) * scale + bias + residual * residual_scale), saturated to ±448 where y is fp8.

    x, w, residual: float8_e4m3fn, laid out as in `conv_int8_kernel`.  y: float8_e4m3fn or float16.  scale, bias:
    float32 [out_channels], in units of y.
    """
    m, n, oy, ox, row_mask = output_coords(M, out_height, out_width, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)

    acc = implicit_gemm_mainloop(
        x_ptr, w_ptr, n, oy, ox, row_mask, tl.program_id(1) * BLOCK_N, height, width, in_channels, out_channels,
        kernel_h, kernel_w, stride, pad_top, pad_left, BLOCK_M, BLOCK_N, BLOCK_K, tl.float32, 1, SPLIT_N, KERNEL_ROWS,
    )  # fmt: skip

    n_mask = offs_n < out_channels
    mask = row_mask[:, None] & n_mask[None, :]
    value = acc * tl.load(scale_ptr + offs_n, mask=n_mask, other=0.0)[None, :]
    value = value + tl.load(bias_ptr + offs_n, mask=n_mask, other=0.0)[None, :]

    offsets = m.to(tl.int64)[:, None] * out_channels + offs_n[None, :]
    if has_residual != 0:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0)
        value = value + residual.to(tl.float32) * residual_scale

    value = relu(value, apply_relu)
    if y_ptr.dtype.element_ty == tl.float8e4nv:
        # 448 is the largest e4m3 number. Not tl.clamp: a NaN stays one.
        value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
    tl.store(y_ptr + offsets, value.to(y_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class ConvParams:
    """Kernel size, stride (the same in both directions) and zero padding above and to the left of the image.

    Padding below and to the right follows from the output's size.
    """

    kernel_h: int
    kernel_w: int
    stride: int = 1
    pad_top: int = 0
    pad_left: int = 0

    def arguments(self) -> tuple[int, int, int, int, int]:
        """In the kernels' order."""
        return self.kernel_h, self.kernel_w, self.stride, self.pad_top, self.pad_left

    def stem_block_k(self, in_channels: int) -> int:
        """BLOCK_K that holds the whole sum of a stem: R·S·C, rounded up to a power of two."""
        return max(16, triton.next_power_of_2(self.kernel_h * self.kernel_w * in_channels))


def conv_forward(x: Any, w: Any, bias: Any, residual: Any | None, y: Any, params: ConvParams, relu: bool) -> None:
    """Launch `conv_kernel` on the current device and stream. All tensors are contiguous.

    Args:
        x: [N, H, W, C], float32, float16 or bfloat16.
        w: [R, S, C, K], of x's dtype.
        bias: float32 [K].
        residual: [N, OH, OW, K], of y's dtype, or None.
        y: [N, OH, OW, K], of x's dtype; written.
        params: kernel size, stride and padding.
        relu: whether negative values become 0.
    """
    pointers = (x, w, bias, y if residual is None else residual, y)
    scalars = (*params.arguments(), int(residual is not None), int(relu))
    launch_conv(conv_kernel, "conv", x, pointers, y, scalars)


def stem_conv_forward(x: Any, w: Any, bias: Any, y: Any, params: ConvParams, relu: bool, scale: float) -> None:
    """Launch `stem_conv_kernel`; tensors as for `conv_forward`.

    Args:
        x: [N, H, W, C], uint8 or floating point, multiplied by `scale`.
        w: [R, S, C, K] with R · S · C at most 128.
        bias: float32 [K].
        y: [N, OH, OW, K], of w's dtype; written.
        params: kernel size, stride and padding.
        relu: whether negative values become 0.
        scale: 1/255 for bytes.
    """
    block_k = params.stem_block_k(x.shape[3])
    scalars = (*params.arguments(), int(relu), scale)
    launch_conv(stem_conv_kernel, "stem_conv", w, (x, w, bias, y), y, scalars, BLOCK_K=block_k)


def conv_int8_forward(
    x: Any, w: Any, scale: Any, bias: Any, residual: Any | None, y: Any, params: ConvParams, relu: bool,
    residual_scale: float,
) -> None:  # fmt: skip
    """Launch `conv_int8_kernel` on the current device and stream. All tensors are contiguous.

    Args:
        x: int8 [N, H, W, C].
        w: int8 [R, S, K, C].
        scale: float32 [K], s_x * s_w[k] / s_y.
        bias: float32 [K], in units of y.
        residual: int8 [N, OH, OW, K], or None.
        y: [N, OH, OW, K], int8, float16 or float32; written.
        params: kernel size, stride and padding.
        relu: whether negative values become 0.
        residual_scale: scale of the residual over that of y.
    """
    pointers = (x, w, scale, bias, x if residual is None else residual, y)
    factor = 0.0 if residual is None else as_float32(residual_scale)
    scalars = (*params.arguments(), int(residual is not None), int(relu), factor)
    # No contraction of products and sums by the compiler: each fma is written in the kernel.
    launch_conv(conv_int8_kernel, "conv", x, pointers, y, scalars, enable_fp_fusion=False)


def stem_conv_int8_forward(
    x: Any, w: Any, scale: Any, bias: Any, y: Any, params: ConvParams, relu: bool, inv_x_scale: float
) -> None:
    """Launch `stem_conv_int8_kernel`.

    Args:
        x: [N, H, W, C], int8, or uint8 or floats that are quantized to int8 after multiplication by `inv_x_scale`.
        w: int8 [K, R · S · C] with R · S · C at most 128.
        scale: float32 [K], as for `conv_int8_forward`.
        bias: float32 [K], in units of y.
        y: int8 [N, OH, OW, K]; written.
        params: kernel size, stride and padding.
        relu: whether negative values become 0.
        inv_x_scale: 1 / s_x, and 1/255 of it for bytes.
    """
    block_k = params.stem_block_k(x.shape[3])
    scalars = (*params.arguments(), int(relu), inv_x_scale)
    pointers = (x, w, scale, bias, y)
    launch_conv(
        stem_conv_int8_kernel, "stem_conv", w, pointers, y, scalars, BLOCK_K=block_k, enable_fp_fusion=False
    )  # fmt: skip


def conv_fp8_forward(
    x: Any, w: Any, scale: Any, bias: Any, residual: Any | None, y: Any, params: ConvParams, relu: bool,
    residual_scale: float,
) -> None:  # fmt: skip
    """Launch `conv_fp8_kernel`; as `conv_int8_forward`, with float8_e4m3fn in the place of int8."""
    pointers = (x, w, scale, bias, x if residual is None else residual, y)
    factor = 0.0 if residual is None else residual_scale
    scalars = (*params.arguments(), int(residual is not None), int(relu), factor)
    launch_conv(conv_fp8_kernel, "conv", x, pointers, y, scalars)


def launch_conv(
    function: Any, kernel: str, typed: Any, pointers: tuple[Any, ...], y: Any, scalars: tuple[float, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Launch a convolution kernel over the tiles of y.

    Args:
        function: the `@triton.jit` function.
        kernel: "conv" or "stem_conv", the beginning of the configuration's name.
        typed: the tensor whose dtype is the rest of that name.
        pointers: the kernel's pointers, in order; the first is x [N, H, W, C].
        y: [N, OH, OW, K].
        scalars: the arguments behind the sizes.
        options: constants and launch options that the configuration does not have.

    Raises:
        KernelError: if y has too many pixels.
    """
    x = pointers[0]
    images, out_height, out_width, out_channels = y.shape
    m = images * out_height * out_width
    if m == 0:
        return
    if m > MAX_M:
        name = function.fn.__name__.removesuffix("_kernel")
        raise KernelError(f"{name} makes at most {MAX_M} pixels in one launch; got {m}: split the batch.")

    stem = kernel.startswith("stem")
    vectorized = stem or all(channels % VECTOR_CHANNELS == 0 for channels in (x.shape[3], out_channels))
    key = config_key(f"{kernel}_{dtype_name(typed)}", block_n_for(out_channels), vectorized)
    architecture = current_architecture()
    config = get_config(OPERATOR, key, architecture)
    if "SPLIT_N" in function.arg_names:
        options |= {"SPLIT_N": use_split_n(architecture), "KERNEL_ROWS": int(vectorized)}

    sizes = (m, *x.shape[1:4], out_height, out_width, out_channels)
    grid = (triton.cdiv(m, config["BLOCK_M"]), triton.cdiv(out_channels, config["BLOCK_N"]))
    function[grid](*pointers, *sizes, *scalars, **{**config, "enable_fp_fusion": True, **options})


def config_key(kernel: str, block_n: int, vectorized: bool) -> str:
    """The name of a tile's configuration.

    Channels that are no multiples of 16 are read one by one, which takes many registers: those tiles are smaller.
    """
    return f"{kernel}_{block_n}{'' if vectorized else '_any'}"


AOT_STEM_BLOCK_K = 32  # 3×3 kernels of 1 or 3 channels
AOT_ONE_BLOCK_N = (32,)  # for dtypes that the network itself does not use
_INTEGERS = (
    *("M", "height", "width", "in_channels", "out_height", "out_width", "out_channels"),
    *("kernel_h", "kernel_w", "stride", "pad_top", "pad_left", "has_residual", "apply_relu"),
)
_FLOATS = ("scale", "inv_x_scale", "residual_scale")


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes: every dtype and BLOCK_N, for aligned memory and for any."""
    return [
        *_float_specs(architecture),
        *_int8_specs(architecture),
        *(_fp8_specs(architecture) if architecture >= FP8_MIN_ARCHITECTURE else ()),
    ]


def _float_specs(architecture: int) -> list[KernelSpec]:
    specs = []
    for dtype in ("fp32", "fp16", "bf16"):
        types = {"x_ptr": dtype, "w_ptr": dtype, "bias_ptr": "fp32", "residual_ptr": dtype, "y_ptr": dtype}
        blocks = BLOCK_N_CHOICES if dtype == "fp16" else AOT_ONE_BLOCK_N
        specs += _conv_specs(f"conv_{dtype}", conv_kernel, types, architecture, blocks)
        specs += _stem_specs(f"stem_conv_{dtype}", stem_conv_kernel, {**types, "x_ptr": "u8"}, architecture, blocks)
    return specs


def _int8_specs(architecture: int) -> list[KernelSpec]:
    specs = []
    types = {"x_ptr": "i8", "w_ptr": "i8", "scale_ptr": "fp32", "bias_ptr": "fp32", "residual_ptr": "i8"}
    for output in ("i8", "fp16", "fp32"):
        made = {**types, "y_ptr": output}
        blocks = BLOCK_N_CHOICES if output == "i8" else AOT_ONE_BLOCK_N
        specs += _conv_specs(f"conv_int8_{output}", conv_int8_kernel, made, architecture, blocks, fp_fusion=False)
    stem = {**types, "x_ptr": "u8", "y_ptr": "i8"}
    return specs + _stem_specs("stem_conv_int8_i8", stem_conv_int8_kernel, stem, architecture, fp_fusion=False)


def _fp8_specs(architecture: int) -> list[KernelSpec]:
    specs = []
    types = {"x_ptr": "fp8", "w_ptr": "fp8", "scale_ptr": "fp32", "bias_ptr": "fp32", "residual_ptr": "fp8"}
    for output in ("fp8", "fp16"):
        blocks = BLOCK_N_CHOICES if output == "fp8" else AOT_ONE_BLOCK_N
        specs += _conv_specs(f"conv_fp8_{output}", conv_fp8_kernel, {**types, "y_ptr": output}, architecture, blocks)
    return specs


def _conv_specs(
    name: str, function: Any, types: dict[str, str], architecture: int, blocks: tuple[int, ...] = BLOCK_N_CHOICES,
    fp_fusion: bool = True,
) -> list[KernelSpec]:  # fmt: skip
    """For each BLOCK_N one kernel for any memory, and one for aligned memory and channels."""
    kernel = f"conv_{types['x_ptr']}"
    aligned = ("in_channels", "out_channels", *types)
    return [
        _spec(
            f"{name}_{block_n}{'_aligned' if vectorized else ''}", function, types, architecture,
            config_key(kernel, block_n, vectorized), aligned if vectorized else (), fp_fusion,
        )
        for block_n in blocks
        for vectorized in (False, True)
    ]  # fmt: skip


def _stem_specs(
    name: str, function: Any, types: dict[str, str], architecture: int, blocks: tuple[int, ...] = BLOCK_N_CHOICES,
    fp_fusion: bool = True,
) -> list[KernelSpec]:  # fmt: skip
    """For each BLOCK_N one kernel; all memory but the image's is aligned."""
    kernel = f"stem_conv_{types['w_ptr']}"
    aligned = ("out_channels", *(pointer for pointer in types if pointer != "x_ptr"))
    return [
        _spec(f"{name}_{block_n}_aligned", function, types, architecture, f"{kernel}_{block_n}", aligned, fp_fusion)
        for block_n in blocks
    ]


def _spec(
    name: str, function: Any, types: dict[str, str], architecture: int, key: str, aligned: tuple[str, ...],
    fp_fusion: bool,
) -> KernelSpec:  # fmt: skip
    config = {"BLOCK_K": AOT_STEM_BLOCK_K, **get_config(OPERATOR, key, architecture)}
    constants = {constant: config[constant] for constant in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
    if "SPLIT_N" in function.arg_names:
        constants |= {"SPLIT_N": use_split_n(architecture), "KERNEL_ROWS": int("in_channels" in aligned)}

    names = function.arg_names
    arguments = {argument: f"*{_triton_type(types[argument])}" for argument in names if argument in types}
    arguments |= {argument: "i32" for argument in names if argument in _INTEGERS}
    arguments |= {argument: "fp32" for argument in names if argument in _FLOATS}
    return KernelSpec(
        name=name,
        operator=OPERATOR,
        function=function,
        types=arguments,
        constants=constants,
        aligned=tuple(argument for argument in names if argument in aligned),
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        fp_fusion=fp_fusion,
    )


def _triton_type(name: str) -> str:
    """Triton's name of an element type in a kernel's signature."""
    return {"fp8": "fp8e4nv"}.get(name, name)
