"""Convolution with bias, residual add and ReLU in one operator, channels last, in floating point.

Tensors are [N, H, W, C], and weights lie as the kernel reads them: [R, S, C, K]. Sums are float32 whatever the tensors
hold. On CUDA the Triton kernels `vae_edge_kernels.convolution` and `upsample_convolution` compute it; there float32
factors are rounded to tf32 (10 bits) first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.registration import check_tensor, conv_output_size, kernel_module

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_FIRST = 128  # taps · channels of a first layer


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    upsampling: int = 1,
) -> Tensor:
    """Convolve, add, cut off.

    Args:
        x: [N, H, W, C], float32, float16 or bfloat16.
        weight: [R, S, C, K], of x's dtype.
        bias: float32 [K].
        residual: [N, OH, OW, K], of x's dtype, added before the ReLU.
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0; NaN stays NaN.
        upsampling: 1, or 2 for x drawn twice as large (nearest) before it is convolved.

    Returns:
        [N, OH, OW, K], of x's dtype.

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return _convolution(x, weight, bias, residual, stride, padding[0], padding[1], relu, upsampling)


@torch.library.custom_op("vae_edge::convolution", mutates_args=(), device_types="cpu")
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    upsampling: int,
) -> Tensor:
    _shape("convolution", x, weight, bias, residual, stride, pad_top, pad_left, upsampling)
    return reference(x, weight, bias, residual, stride, pad_top, pad_left, relu, upsampling).to(x.dtype)


@_convolution.register_kernel("cuda")
def _convolution_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    upsampling: int,
) -> Tensor:
    shape = _shape("convolution", x, weight, bias, residual, stride, pad_top, pad_left, upsampling)
    kernels = kernel_module("convolution", "convolution" if upsampling == 1 else "upsample_convolution")
    geometry = kernel_module("convolution", "launching").Geometry(*weight.shape[:2], stride, pad_top, pad_left)
    y = x.new_empty(shape)
    given = None if residual is None else residual.contiguous()
    with torch.cuda.device(x.device):
        kernels.forward(x.contiguous(), weight.contiguous(), bias.contiguous(), given, y, geometry, relu)
    return y


@_convolution.register_fake
def _convolution_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    upsampling: int,
) -> Tensor:
    return x.new_empty(_shape("convolution", x, weight, bias, residual, stride, pad_top, pad_left, upsampling))


def first_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """`convolution` of an image of few channels: bytes or floats, multiplied by `scale` and cast as the weights first.

    Args:
        x: [N, H, W, C], uint8, float32 or float16.
        weight: [R, S, C, K] with R · S · C at most 128.
        scale: 1/255 for bytes.

    Returns:
        [N, OH, OW, K], of the weights' dtype.

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return _first(x, weight, bias, stride, padding[0], padding[1], relu, scale)


@torch.library.custom_op("vae_edge::first_convolution", mutates_args=(), device_types="cpu")
def _first(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, pad_top: int, pad_left: int, relu: bool, scale: float
) -> Tensor:
    _first_shape(x, weight, bias, stride, pad_top, pad_left)
    seen = (x.float() * scale).to(weight.dtype)
    return reference(seen, weight, bias, None, stride, pad_top, pad_left, relu, 1).to(weight.dtype)


@_first.register_kernel("cuda")
def _first_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, pad_top: int, pad_left: int, relu: bool, scale: float
) -> Tensor:
    y = weight.new_empty(_first_shape(x, weight, bias, stride, pad_top, pad_left))
    geometry = kernel_module("first_convolution", "launching").Geometry(*weight.shape[:2], stride, pad_top, pad_left)
    with torch.cuda.device(x.device):
        kernel_module("first_convolution", "convolution").first_forward(
            x.contiguous(), weight.contiguous(), bias.contiguous(), y, geometry, relu, scale
        )
    return y


@_first.register_fake
def _first_fake(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, pad_top: int, pad_left: int, relu: bool, scale: float
) -> Tensor:
    return weight.new_empty(_first_shape(x, weight, bias, stride, pad_top, pad_left))


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    upsampling: int,
) -> Tensor:
    """The values in float32, [N, OH, OW, K]."""
    image = x.float().permute(0, 3, 1, 2)
    if upsampling > 1:
        image = F.interpolate(image, scale_factor=upsampling, mode="nearest")
    y = F.conv2d(image, weight.float().permute(3, 2, 0, 1), bias, stride, (pad_top, pad_left)).permute(0, 2, 3, 1)
    if residual is not None:
        y = y + residual.float()
    return (y.relu() if relu else y).contiguous()


def _shape(
    operator: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    upsampling: int,
) -> list[int]:
    """The output's shape, when everything fits."""
    check_tensor(operator, "x", x, "N H W C", DTYPES, x)
    check_tensor(operator, "weight", weight, "R S C K", (x.dtype,), x, (None, None, x.shape[3], None))
    check_tensor(operator, "bias", bias, "K", (torch.float32,), x, (weight.shape[3],))
    if upsampling not in (1, 2):
        raise KernelError(f"{operator} expects upsampling of 1 or 2; got {upsampling}.")
    rows, columns, _, outputs = weight.shape
    seen = [side * upsampling for side in x.shape[1:3]]
    sides = conv_output_size(operator, seen, (rows, columns), stride, (pad_top, pad_left))
    shape = [x.shape[0], *sides, outputs]
    if residual is not None:
        check_tensor(operator, "residual", residual, "N OH OW K", (x.dtype,), x, shape)
    return shape


def _first_shape(x: Tensor, weight: Tensor, bias: Tensor, stride: int, pad_top: int, pad_left: int) -> list[int]:
    operator = "first_convolution"
    check_tensor(operator, "x", x, "N H W C", (torch.uint8, torch.float32, torch.float16), x)
    check_tensor(operator, "weight", weight, "R S C K", DTYPES, x, (None, None, x.shape[3], None))
    check_tensor(operator, "bias", bias, "K", (torch.float32,), x, (weight.shape[3],))
    rows, columns, channels, outputs = weight.shape
    if rows * columns * channels > MOST_FIRST:
        raise KernelError(
            f"{operator} expects R · S · C of at most {MOST_FIRST}; got {rows} · {columns} · {channels}: "
            "use convolution for images of many channels."
        )
    sides = conv_output_size(operator, x.shape[1:3], (rows, columns), stride, (pad_top, pad_left))
    return [x.shape[0], *sides, outputs]
