"""What operators on eight-bit operands share: their arithmetic, how arguments must be, how the kernel is launched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.registration import check_tensor, conv_output_size, kernel_module


def output_shape(
    operator: str,
    operand: torch.dtype,
    outputs: Sequence[torch.dtype],
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
    """The shape [N, OH, OW, K] of the output, once all arguments are known to fit.

    Args:
        operand: dtype that x, weight and residual must have.
        outputs: dtypes that the output may have.

    Raises:
        KernelError: names the operator, the argument, what was expected and what came.
    """
    check_tensor(operator, "x", x, "N H W C", (operand,), x)
    check_tensor(operator, "weight", weight, "R S K C", (operand,), x, (None, None, None, x.shape[3]))
    rows, columns, channels, _ = weight.shape
    check_scale_bias(operator, scale, bias, channels, x)
    if dtype not in outputs:
        names = [str(one).removeprefix("torch.") for one in outputs]
        raise KernelError(f"{operator} gives {', '.join(names[:-1])} or {names[-1]}; dtype is {dtype}.")
    sides = conv_output_size(operator, x.shape[1:3], (rows, columns), stride, (pad_top, pad_left))
    shape = [x.shape[0], *sides, channels]
    if residual is not None:
        check_tensor(operator, "residual", residual, "N OH OW K", (operand,), x, shape)
    return shape


def multiply_add(value: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """value · factor + addend in float32, as a fused multiply-add rounds it, by way of float64.

    The product is exact there. The sum is rounded to float64 first, which changes the result only where it lies nearer
    than that to the middle between two float32 numbers.
    """
    return (value.double() * factor.double() + addend.double()).float()


def check_scale_bias(operator: str, scale: Tensor, bias: Tensor, outputs: int, like: Tensor) -> None:
    """Refuse scales and biases [K] that do not fit.

    Raises:
        KernelError: names the operator and the argument.
    """
    check_tensor(operator, "scale", scale, "K", (torch.float32,), like, (outputs,))
    check_tensor(operator, "bias", bias, "K", (torch.float32,), like, (outputs,))


def launch(
    operator: str,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    y: Tensor,
    stride: int,
    pad_top: int,
    pad_left: int,
    relu: bool,
    residual_scale: float,
) -> Tensor:
    """Launch the kernel of the operator's name; y, which it writes."""
    geometry = kernel_module(operator, "launching").Geometry(*weight.shape[:2], stride, pad_top, pad_left)
    tensors = (x.contiguous(), weight.contiguous(), scale.contiguous(), bias.contiguous())
    given = None if residual is None else residual.contiguous()
    with torch.cuda.device(x.device):
        kernel_module(operator, operator).forward(*tensors, given, y, geometry, relu, residual_scale)
    return y
