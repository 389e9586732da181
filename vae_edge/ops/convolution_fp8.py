"""Convolution of fp8 e4m3 by fp8 e4m3 with sums in float32, channels last, for GPUs of sm_89 and later.

As `convolution_int8`, with float8_e4m3fn in the place of int8: value = sum · scale + bias (+ residual ·
residual_scale), ReLU, and for fp8 outputs held to ±448 and rounded to the nearest e4m3 number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.eight_bits import launch, output_shape

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
OUTPUTS = (FP8, torch.float16)
FIRST_CAPABILITY = (8, 9)


def convolution_fp8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    residual_scale: float = 1.0,
    dtype: torch.dtype = FP8,
) -> Tensor:
    """Convolve, add, cut off, round.

    Args:
        x: float8_e4m3fn [N, H, W, C].
        weight: float8_e4m3fn [R, S, K, C].
        scale: float32 [K]: the scale of x times that of each channel of the weights, over that of the output.
        bias: float32 [K], over the scale of the output.
        residual: float8_e4m3fn [N, OH, OW, K], times `residual_scale` (over the scale of the output); added before the
            ReLU.
        dtype: of the output: float8_e4m3fn or float16.

    Returns:
        [N, OH, OW, K].

    Raises:
        KernelError: for tensors that do not fit together, or a GPU without fp8; it names the argument.
    """
    sides = (padding[0], padding[1])
    return _convolution(x, weight, scale, bias, residual, stride, *sides, relu, residual_scale, dtype)


@torch.library.custom_op("vae_edge::convolution_fp8", mutates_args=(), device_types="cpu")
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
    image = x.float().permute(0, 3, 1, 2)
    total = F.conv2d(image, weight.float().permute(2, 3, 0, 1), None, stride, (pad_top, pad_left)).permute(0, 2, 3, 1)
    value = total * scale + bias
    if residual is not None:
        value = value + residual.float() * residual_scale
    if relu:
        value = torch.where(value < 0.0, 0.0, value)
    if dtype == FP8:
        value = value.clamp(-LARGEST, LARGEST)
    return value.to(dtype).contiguous()


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
    capability = torch.cuda.get_device_capability(x.device)
    if capability < FIRST_CAPABILITY:
        raise KernelError(
            f"convolution_fp8 needs a GPU of compute capability 8.9 or later; x is on one of "
            f"{capability[0]}.{capability[1]}: use convolution_int8 or convolution there."
        )
    y = x.new_empty(shape, dtype=dtype)
    last = (stride, pad_top, pad_left, relu, residual_scale)
    return launch("convolution_fp8", x, weight, scale, bias, residual, y, *last)


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
    return output_shape("convolution_fp8", FP8, OUTPUTS, x, weight, scale, bias, residual, *sides, dtype)
