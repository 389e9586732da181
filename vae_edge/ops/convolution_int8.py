"""Convolution of int8 by int8, with bias, residual add, ReLU and requantization in one operator, channels last.

Sums are exact int32. What follows them is float32: value = sum · scale + bias, rounded once, likewise + residual ·
residual_scale, then ReLU, and for int8 outputs the nearest integer, half to even, held to −128 to 127. Scales and bias
are in units of the output, so that nothing is left to divide by. Kernel (`vae_edge_kernels.convolution_int8`) and
reference agree to the last bit (see `eight_bits.multiply_add`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.convolution import MOST_FIRST
from vae_edge.ops.eight_bits import check_scale_bias, launch, multiply_add, output_shape
from vae_edge.ops.registration import check_tensor, conv_output_size, kernel_module

OUTPUTS = (torch.int8, torch.float16, torch.float32)


def convolution_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    residual_scale: float = 1.0,
    dtype: torch.dtype = torch.int8,
) -> Tensor:
    """Convolve integers, add, cut off, round.

    Args:
        x: int8 [N, H, W, C].
        weight: int8 [R, S, K, C].
        scale: float32 [K]: what one of x counts times what one of each channel of the weights counts, over what one of
            the output counts.
        bias: float32 [K], over what one of the output counts.
        residual: int8 [N, OH, OW, K], one of which counts `residual_scale` in the output; added before the ReLU.
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0.
        dtype: of the output: int8, float16 or float32.

    Returns:
        [N, OH, OW, K].

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    sides = (padding[0], padding[1])
    return _convolution(x, weight, scale, bias, residual, stride, *sides, relu, residual_scale, dtype)


@torch.library.custom_op("vae_edge::convolution_int8", mutates_args=(), device_types="cpu")
def _convolution(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    residual_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    _shape(x, weight, scale, bias, residual, stride, pad_top, pad_left, dtype)
    total = integer_sums(x, weight.permute(2, 3, 0, 1), stride, pad_top, pad_left)
    return finished(total, scale, bias, residual, relu, residual_scale, dtype)


@_convolution.register_kernel("cuda")
def _convolution_cuda(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    residual_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    shape = _shape(x, weight, scale, bias, residual, stride, pad_top, pad_left, dtype)
    y = x.new_empty(shape, dtype=dtype)
    last = (stride, pad_top, pad_left, relu, residual_scale)
    return launch("convolution_int8", x, weight, scale, bias, residual, y, *last)


@_convolution.register_fake
def _convolution_fake(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    residual_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    shape = _shape(x, weight, scale, bias, residual, stride, pad_top, pad_left, dtype)
    return x.new_empty(shape, dtype=dtype)


def first_convolution_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    quantize: float = 1.0,
) -> Tensor:
    """The same of an image of few channels, whose values are multiplied by `quantize` and rounded to int8 first.

    Args:
        x: [N, H, W, C], uint8, float32 or float16; int8 is taken as it is.
        weight: int8 [K, R, S, C] with R · S · C at most 128.
        scale, bias: float32 [K], as for `convolution_int8`.
        quantize: for bytes 1 / 255 over what one of the int8 inputs counts.

    Returns:
        int8 [N, OH, OW, K].

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return _first(x, weight, scale, bias, stride, padding[0], padding[1], relu, quantize)


@torch.library.custom_op("vae_edge::first_convolution_int8", mutates_args=(), device_types="cpu")
def _first(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    quantize: float,
) -> Tensor:
    _first_shape(x, weight, scale, bias, stride, pad_top, pad_left)
    seen = x if x.dtype == torch.int8 else to_int8(x.float() * torch.tensor(quantize, dtype=torch.float32))
    total = integer_sums(seen, weight.permute(0, 3, 1, 2), stride, pad_top, pad_left)
    return finished(total, scale, bias, None, relu, 0.0, torch.int8)


@_first.register_kernel("cuda")
def _first_cuda(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    quantize: float,
) -> Tensor:
    y = x.new_empty(_first_shape(x, weight, scale, bias, stride, pad_top, pad_left), dtype=torch.int8)
    geometry = kernel_module("first_convolution_int8", "launching").Geometry(
        *weight.shape[1:3], stride, pad_top, pad_left
    )
    tensors = (x.contiguous(), weight.contiguous(), scale.contiguous(), bias.contiguous())
    with torch.cuda.device(x.device):
        kernel_module("first_convolution_int8", "convolution_int8").first_forward(*tensors, y, geometry, relu, quantize)
    return y


@_first.register_fake
def _first_fake(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    quantize: float,
) -> Tensor:
    return x.new_empty(_first_shape(x, weight, scale, bias, stride, pad_top, pad_left), dtype=torch.int8)


def integer_sums(x: Tensor, weight: Tensor, stride: int, pad_top: int, pad_left: int) -> Tensor:
    """Sums of products of int8 x [N, H, W, C] and weight [K, C, R, S], exact, as float64 [N, OH, OW, K]."""
    image = x.double().permute(0, 3, 1, 2)
    return F.conv2d(image, weight.double(), None, stride, (pad_top, pad_left)).permute(0, 2, 3, 1)


def finished(
    total: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    residual_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Sums [N, OH, OW, K] to outputs, by the operations of the kernel one after the other."""
    value = multiply_add(total.float(), scale, bias)
    if residual is not None:
        value = multiply_add(residual.float(), torch.tensor(residual_scale, dtype=torch.float32), value)
    if relu:
        value = torch.where(value < 0.0, 0.0, value)
    if dtype == torch.int8:
        return to_int8(value).contiguous()
    return value.to(dtype).contiguous()


def to_int8(value: Tensor) -> Tensor:
    """Float32 to int8: the nearest, half to even, held to −128 to 127; a NaN is 0."""
    return value.nan_to_num(0.0, 127.0, -128.0).clamp(-128.0, 127.0).round().to(torch.int8)


def _shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    dtype: torch.dtype,
) -> list[int]:
    sides = (stride, pad_top, pad_left)
    return output_shape("convolution_int8", torch.int8, OUTPUTS, x, weight, scale, bias, residual, *sides, dtype)


def _first_shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int,
    pad_top: int,
    pad_left: int,
) -> list[int]:
    operator = "first_convolution_int8"
    check_tensor(operator, "x", x, "N H W C", (torch.uint8, torch.int8, torch.float32, torch.float16), x)
    check_tensor(operator, "weight", weight, "K R S C", (torch.int8,), x, (None, None, None, x.shape[3]))
    outputs, rows, columns, channels = weight.shape
    if rows * columns * channels > MOST_FIRST:
        raise KernelError(f"{operator} expects R · S · C of at most {MOST_FIRST}; got {rows} · {columns} · {channels}.")
    check_scale_bias(operator, scale, bias, outputs, x)
    sides = conv_output_size(operator, x.shape[1:3], (rows, columns), stride, (pad_top, pad_left))
    return [x.shape[0], *sides, outputs]
