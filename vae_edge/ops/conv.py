"""Convolutions with bias, residual add, ReLU and requantization in one operator: floats, int8 and fp8.

Tensors are channels-last, [N, H, W, C]; weights lie as the kernels read them. On CUDA the Triton kernels of
`vae_edge_kernels.conv` compute it, on a CPU the references here.

    conv            float32, float16, bfloat16; float32 sums. CUDA rounds float32 factors to tf32 (10 bits).
    conv_int8       int8 by int8; exact int32 sums. Kernel and reference agree to the last bit.
    conv_fp8        fp8 e4m3 by fp8 e4m3; float32 sums. sm_89 and later.
    stem_conv,      the first layer: bytes or floats of few channels.
    stem_conv_int8
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.registration import check_tensor, kernel_module, register_operator

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest e4m3 number
FP8_MIN_CAPABILITY = (8, 9)
INT8_OUTPUTS = (torch.int8, torch.float16, torch.float32)
FP8_OUTPUTS = (FP8, torch.float16)
MAX_STEM_K = 128  # R · S · C of a stem, whose sum is one step of the kernel


# --- floating point ---


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
) -> Tensor:
    """relu(conv(x, weight) + bias + residual)

    Args:
        x: [N, H, W, C], float32, float16 or bfloat16.
        weight: [R, S, C, K], of x's dtype.
        bias: float32 [K].
        residual: [N, OH, OW, K], of x's dtype.
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0; NaN stays NaN.

    Returns:
        [N, OH, OW, K], of x's dtype.

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return cast(Tensor, conv_op(x, weight, bias, residual, stride, padding[0], padding[1], relu))


class Conv(NamedTuple):
    """Arguments of `torch.ops.vae_edge.conv`, see `conv`."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    stride: int
    pad_top: int
    pad_left: int
    relu: bool

    def check(self) -> list[int]:
        """The output's shape, once everything fits."""
        x, weight = self.x, self.weight
        check_tensor("conv", "x", x, "N H W C", FLOATS, x)
        check_tensor("conv", "weight", weight, "R S C K", (x.dtype,), x, (None, None, x.shape[3], None))
        check_tensor("conv", "bias", self.bias, "K", (torch.float32,), x, (weight.shape[3],))
        size = conv_output_size("conv", x.shape[1:3], weight.shape[:2], self.stride, (self.pad_top, self.pad_left))
        shape = [x.shape[0], *size, weight.shape[3]]
        if self.residual is not None:
            check_tensor("conv", "residual", self.residual, "N OH OW K", (x.dtype,), x, shape)
        return shape

    def outputs(self) -> Tensor:
        """Uninitialized output."""
        return self.x.new_empty(self.check())

    def reference(self) -> Tensor:
        """In float32."""
        y = _float_conv(self.x, self.weight, self.bias, self.stride, self.pad_top, self.pad_left)
        if self.residual is not None:
            y = y + self.residual.float()
        return (y.relu() if self.relu else y).contiguous().to(self.x.dtype)

    def launch(self, y: Tensor) -> None:
        """Launch the kernel."""
        kernels = kernel_module("conv", "conv")
        params = kernels.ConvParams(*self.weight.shape[:2], self.stride, self.pad_top, self.pad_left)
        tensors = (self.x.contiguous(), self.weight.contiguous(), self.bias.contiguous(), _contiguous(self.residual))
        kernels.conv_forward(*tensors, y, params, self.relu)


conv_op = register_operator("conv", Conv)


def stem_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """relu(conv(x * scale, weight) + bias) of an image of few channels.

    Args:
        x: [N, H, W, C], uint8, float32 or float16; scaled in float32, then cast to the weights' dtype.
        weight: [R, S, C, K] with R · S · C at most 128.
        bias: float32 [K].
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0; NaN stays NaN.
        scale: 1/255 for bytes.

    Returns:
        [N, OH, OW, K], of the weights' dtype.

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return cast(Tensor, stem_conv_op(x, weight, bias, stride, padding[0], padding[1], relu, scale))


class StemConv(NamedTuple):
    """Arguments of `torch.ops.vae_edge.stem_conv`, see `stem_conv`."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    stride: int
    pad_top: int
    pad_left: int
    relu: bool
    scale: float

    def check(self) -> list[int]:
        """The output's shape, once everything fits."""
        name, x, weight = "stem_conv", self.x, self.weight
        check_tensor(name, "x", x, "N H W C", (torch.uint8, torch.float32, torch.float16), x)
        check_tensor(name, "weight", weight, "R S C K", FLOATS, x, (None, None, x.shape[3], None))
        check_tensor(name, "bias", self.bias, "K", (torch.float32,), x, (weight.shape[3],))
        kernel_h, kernel_w, channels, out_channels = weight.shape
        if kernel_h * kernel_w * channels > MAX_STEM_K:
            raise KernelError(
                f"{name} expects R · S · C of at most {MAX_STEM_K}; got {kernel_h} · {kernel_w} · {channels}: "
                "use conv for images of many channels."
            )
        size = conv_output_size(name, x.shape[1:3], weight.shape[:2], self.stride, (self.pad_top, self.pad_left))
        return [x.shape[0], *size, out_channels]

    def outputs(self) -> Tensor:
        """Uninitialized output."""
        return self.weight.new_empty(self.check())

    def reference(self) -> Tensor:
        """In float32, after x was rounded to the weights' dtype."""
        x = (self.x.float() * self.scale).to(self.weight.dtype)
        y = _float_conv(x, self.weight, self.bias, self.stride, self.pad_top, self.pad_left)
        return (y.relu() if self.relu else y).contiguous().to(self.weight.dtype)

    def launch(self, y: Tensor) -> None:
        """Launch the kernel."""
        kernels = kernel_module("stem_conv", "conv")
        params = kernels.ConvParams(*self.weight.shape[:2], self.stride, self.pad_top, self.pad_left)
        tensors = (self.x.contiguous(), self.weight.contiguous(), self.bias.contiguous())
        kernels.stem_conv_forward(*tensors, y, params, self.relu, self.scale)


stem_conv_op = register_operator("stem_conv", StemConv)


def _float_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad_top: int, pad_left: int) -> Tensor:
    """Convolution of x [N, H, W, C] and weight [R, S, C, K] in float32, [N, OH, OW, K]."""
    image, kernel = x.float().permute(0, 3, 1, 2), weight.float().permute(3, 2, 0, 1)
    return F.conv2d(image, kernel, bias, stride, (pad_top, pad_left)).permute(0, 2, 3, 1)


# --- int8 ---


def conv_int8(
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
    """requantize(relu(conv(x, weight) * scale + bias + residual * residual_scale))

    Sums are exact int32. Behind them each product and its addition is one fma in float32. Scales and bias are in units
    of the output, so that nothing is left to divide by.

    Args:
        x: int8 [N, H, W, C].
        weight: int8 [R, S, K, C].
        scale: requantization scale s_x · s_w[k] / s_y, float32 [K].
        bias: b[k] / s_y, float32 [K].
        residual: int8 [N, OH, OW, K].
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0.
        residual_scale: scale of the residual over s_y.
        dtype: of the output: int8 (half to even, saturated), float16 or float32.

    Returns:
        [N, OH, OW, K].

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    tensors = (x, weight, scale, bias, residual)
    return cast(Tensor, conv_int8_op(*tensors, stride, padding[0], padding[1], relu, residual_scale, dtype))


class ConvInt8(NamedTuple):
    """Arguments of `torch.ops.vae_edge.conv_int8`, see `conv_int8`."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor
    residual: Tensor | None
    stride: int
    pad_top: int
    pad_left: int
    relu: bool
    residual_scale: float
    dtype: torch.dtype

    def check(self) -> list[int]:
        """The output's shape, once everything fits."""
        return _check_quantized("conv_int8", self, torch.int8, INT8_OUTPUTS)

    def outputs(self) -> Tensor:
        """Uninitialized output."""
        return self.x.new_empty(self.check(), dtype=self.dtype)

    def reference(self) -> Tensor:
        """The bits of the kernel."""
        acc = int32_conv(self.x, self.weight.permute(2, 3, 0, 1), self.stride, self.pad_top, self.pad_left)
        return requantize(acc, self.scale, self.bias, self.residual, self.relu, self.residual_scale, self.dtype)

    def launch(self, y: Tensor) -> None:
        """Launch the kernel."""
        _launch_quantized("conv_int8", self, y)


conv_int8_op = register_operator("conv_int8", ConvInt8)


def stem_conv_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    inv_x_scale: float = 1.0,
) -> Tensor:
    """requantize(relu(conv(quantize(x * inv_x_scale), weight) * scale + bias)) of an image of few channels.

    Args:
        x: [N, H, W, C], uint8, float32 or float16; int8 is taken as it is.
        weight: int8 [K, R, S, C] with R · S · C at most 128.
        scale: float32 [K], as for `conv_int8`.
        bias: float32 [K], as for `conv_int8`.
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0.
        inv_x_scale: 1 / s_x, for bytes 1 / (255 · s_x).

    Returns:
        int8 [N, OH, OW, K].

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return cast(Tensor, stem_conv_int8_op(x, weight, scale, bias, stride, *padding, relu, inv_x_scale))


class StemConvInt8(NamedTuple):
    """Arguments of `torch.ops.vae_edge.stem_conv_int8`, see `stem_conv_int8`."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor
    stride: int
    pad_top: int
    pad_left: int
    relu: bool
    inv_x_scale: float

    def check(self) -> list[int]:
        """The output's shape, once everything fits."""
        name, x, weight = "stem_conv_int8", self.x, self.weight
        check_tensor(name, "x", x, "N H W C", (torch.uint8, torch.int8, torch.float32, torch.float16), x)
        check_tensor(name, "weight", weight, "K R S C", (torch.int8,), x, (None, None, None, x.shape[3]))
        out_channels, kernel_h, kernel_w, channels = weight.shape
        if kernel_h * kernel_w * channels > MAX_STEM_K:
            raise KernelError(
                f"{name} expects R · S · C of at most {MAX_STEM_K}; got {kernel_h} · {kernel_w} · {channels}."
            )
        check_scale_bias(name, self.scale, self.bias, out_channels, x)
        size = conv_output_size(name, x.shape[1:3], weight.shape[1:3], self.stride, (self.pad_top, self.pad_left))
        return [x.shape[0], *size, out_channels]

    def outputs(self) -> Tensor:
        """Uninitialized output."""
        return self.x.new_empty(self.check(), dtype=torch.int8)

    def reference(self) -> Tensor:
        """The bits of the kernel."""
        x = self.x
        if x.dtype != torch.int8:
            x = quantize_int8(x.float() * torch.tensor(self.inv_x_scale, dtype=torch.float32))
        acc = int32_conv(x, self.weight.permute(0, 3, 1, 2), self.stride, self.pad_top, self.pad_left)
        return requantize(acc, self.scale, self.bias, None, self.relu, 0.0, torch.int8)

    def launch(self, y: Tensor) -> None:
        """Launch the kernel."""
        kernels = kernel_module("stem_conv_int8", "conv")
        params = kernels.ConvParams(*self.weight.shape[1:3], self.stride, self.pad_top, self.pad_left)
        tensors = (tensor.contiguous() for tensor in (self.x, self.weight, self.scale, self.bias))
        kernels.stem_conv_int8_forward(*tensors, y, params, self.relu, self.inv_x_scale)


stem_conv_int8_op = register_operator("stem_conv_int8", StemConvInt8)


def int32_conv(x: Tensor, weight: Tensor, stride: int, pad_top: int, pad_left: int) -> Tensor:
    """Exact integer sums of int8 x [N, H, W, C] and weight [K, C, R, S], held in float64 [N, OH, OW, K]."""
    image = x.double().permute(0, 3, 1, 2)
    return F.conv2d(image, weight.double(), None, stride, (pad_top, pad_left)).permute(0, 2, 3, 1)


def requantize(
    acc: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    residual_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Sums [N, OH, OW, K] to outputs, operation for operation as the kernel's epilogue."""
    value = fma(acc.float(), scale, bias)
    if residual is not None:
        value = fma(residual.float(), torch.tensor(residual_scale, dtype=torch.float32), value)
    if relu:
        value = torch.where(value < 0.0, 0.0, value)
    if dtype == torch.int8:
        return quantize_int8(value).contiguous()
    return value.to(dtype).contiguous()


def fma(value: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """value * factor + addend in float32, rounded once, by way of float64.

    The product is exact there. The sum is rounded to float64 first, which changes the float32 result only if it lies
    closer than that to the middle between two float32 numbers.
    """
    return (value.double() * factor.double() + addend.double()).float()


def quantize_int8(value: Tensor) -> Tensor:
    """float32 to int8: nearest, half to even, saturated to −128..127; NaN is 0."""
    return value.nan_to_num(0.0, 127.0, -128.0).clamp(-128.0, 127.0).round().to(torch.int8)


# --- fp8 ---


def conv_fp8(
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
    """`conv_int8` with float8_e4m3fn in the place of int8; an fp8 output is saturated to ±448.

    Args:
        x: float8_e4m3fn [N, H, W, C].
        weight: float8_e4m3fn [R, S, K, C].
        scale: s_x · s_w[k] / s_y, float32 [K].
        bias: b[k] / s_y, float32 [K].
        residual: float8_e4m3fn [N, OH, OW, K].
        stride: of both directions.
        padding: zeros above and below, and on either side.
        relu: whether negative values become 0.
        residual_scale: scale of the residual over s_y.
        dtype: of the output: float8_e4m3fn or float16.

    Returns:
        [N, OH, OW, K].

    Raises:
        KernelError: for tensors that do not fit together, or a GPU without fp8; it names the argument.
    """
    tensors = (x, weight, scale, bias, residual)
    return cast(Tensor, conv_fp8_op(*tensors, stride, padding[0], padding[1], relu, residual_scale, dtype))


class ConvFp8(NamedTuple):
    """Arguments of `torch.ops.vae_edge.conv_fp8`, see `conv_fp8`."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor
    residual: Tensor | None
    stride: int
    pad_top: int
    pad_left: int
    relu: bool
    residual_scale: float
    dtype: torch.dtype

    def check(self) -> list[int]:
        """The output's shape, once everything fits."""
        return _check_quantized("conv_fp8", self, FP8, FP8_OUTPUTS)

    def outputs(self) -> Tensor:
        """Uninitialized output."""
        return self.x.new_empty(self.check(), dtype=self.dtype)

    def reference(self) -> Tensor:
        """In float32."""
        weight = self.weight.permute(0, 1, 3, 2)
        value = _float_conv(self.x, weight, None, self.stride, self.pad_top, self.pad_left) * self.scale + self.bias
        if self.residual is not None:
            value = value + self.residual.float() * self.residual_scale
        if self.relu:
            value = torch.where(value < 0.0, 0.0, value)
        if self.dtype == FP8:
            value = value.clamp(-FP8_MAX, FP8_MAX)
        return value.to(self.dtype).contiguous()

    def launch(self, y: Tensor) -> None:
        """Launch the kernel, on a GPU that has fp8."""
        major, minor = torch.cuda.get_device_capability(self.x.device)
        if (major, minor) < FP8_MIN_CAPABILITY:
            raise KernelError(
                f"conv_fp8 needs a GPU of compute capability 8.9 or later; x is on one of {major}.{minor}: "
                "use conv_int8 or conv there."
            )
        _launch_quantized("conv_fp8", self, y)


conv_fp8_op = register_operator("conv_fp8", ConvFp8)


# --- what int8 and fp8 share ---


def _check_quantized(
    name: str, given: ConvInt8 | ConvFp8, operand: torch.dtype, outputs: Sequence[torch.dtype]
) -> list[int]:
    """The shape [N, OH, OW, K] of the output, once everything fits.

    Args:
        name: of the operator.
        given: its arguments.
        operand: dtype that x, weight and residual must have.
        outputs: dtypes that the output may have.

    Raises:
        KernelError: names the operator, the argument, what was expected and what came.
    """
    x, weight = given.x, given.weight
    check_tensor(name, "x", x, "N H W C", (operand,), x)
    check_tensor(name, "weight", weight, "R S K C", (operand,), x, (None, None, None, x.shape[3]))
    kernel_h, kernel_w, out_channels, _ = weight.shape
    check_scale_bias(name, given.scale, given.bias, out_channels, x)
    if given.dtype not in outputs:
        names = [str(dtype).removeprefix("torch.") for dtype in outputs]
        raise KernelError(f"{name} gives {', '.join(names[:-1])} or {names[-1]}; dtype is {given.dtype}.")

    pads = (given.pad_top, given.pad_left)
    size = conv_output_size(name, x.shape[1:3], (kernel_h, kernel_w), given.stride, pads)
    shape = [x.shape[0], *size, out_channels]
    if given.residual is not None:
        check_tensor(name, "residual", given.residual, "N OH OW K", (operand,), x, shape)
    return shape


def _launch_quantized(name: str, given: ConvInt8 | ConvFp8, y: Tensor) -> None:
    kernels = kernel_module(name, "conv")
    params = kernels.ConvParams(*given.weight.shape[:2], given.stride, given.pad_top, given.pad_left)
    tensors = (tensor.contiguous() for tensor in (given.x, given.weight, given.scale, given.bias))
    forward = getattr(kernels, f"{name}_forward")
    forward(*tensors, _contiguous(given.residual), y, params, given.relu, given.residual_scale)


def check_scale_bias(operator: str, scale: Tensor, bias: Tensor, channels: int, like: Tensor) -> None:
    """Refuse scales and biases that are not float32 [K] for `channels` output channels.

    Raises:
        KernelError: names the operator and the argument.
    """
    check_tensor(operator, "scale", scale, "K", (torch.float32,), like, (channels,))
    check_tensor(operator, "bias", bias, "K", (torch.float32,), like, (channels,))


def conv_output_size(
    operator: str,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: int,
    padding: tuple[int, int],
) -> list[int]:
    """Height and width of a convolution's output.

    Args:
        operator: named in the error.
        size: height and width of the input.
        kernel_size: R and S.
        stride: of both directions.
        padding: zeros above and below, and on either side.

    Raises:
        KernelError: for a stride or a padding that makes no sense, or leaves no output; it names the argument.
    """
    if stride < 1:
        raise KernelError(f"{operator} expects stride of at least 1; got {stride}.")
    if min(padding) < 0:
        raise KernelError(f"{operator} expects padding of at least 0; got {padding[0]} and {padding[1]}.")

    if any(side + 2 * pad < kernel for side, kernel, pad in zip(size, kernel_size, padding, strict=True)):
        raise KernelError(
            f"{operator} expects x at least as large as its filter; x is {size[0]}×{size[1]} with padding "
            f"{padding[0]} and {padding[1]}, the filter {kernel_size[0]}×{kernel_size[1]}."
        )
    return [
        (side + 2 * pad - kernel) // stride + 1 for side, kernel, pad in zip(size, kernel_size, padding, strict=True)
    ]


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
