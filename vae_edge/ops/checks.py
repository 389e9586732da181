"""What the operators ask of their arguments, in sentences that name the operator and the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_edge.errors import KernelError


def expect(
    operator: str,
    name: str,
    tensor: Tensor,
    dims: str,
    dtypes: Sequence[torch.dtype],
    like: Tensor,
    shape: Sequence[int | None] | None = None,
) -> None:
    """Refuse a tensor of another rank, dtype, device or shape.

    Args:
        dims: the names of its dimensions, "N H W C".
        like: the tensor whose device it must be on.
        shape: the sizes that it must have; None for any.

    Raises:
        KernelError: names the operator, the argument, what was expected and what came.
    """
    names = dims.split()
    if tensor.dim() != len(names):
        raise KernelError(f"{operator} expects {name} as [{', '.join(names)}]; got shape {list(tensor.shape)}.")
    if tensor.dtype not in dtypes:
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise KernelError(f"{operator} expects {name} in {known}; got {str(tensor.dtype).removeprefix('torch.')}.")
    if tensor.device != like.device:
        raise KernelError(
            f"{operator} expects all tensors on one device; {name} is on {tensor.device}, another on {like.device}."
        )
    if shape is not None and any(
        want is not None and want != got for want, got in zip(shape, tensor.shape, strict=True)
    ):
        wanted = ", ".join(dim if want is None else str(want) for dim, want in zip(names, shape, strict=True))
        raise KernelError(f"{operator} expects {name} of shape [{wanted}]; got {list(tensor.shape)}.")


def out_sides(
    operator: str,
    sides: Sequence[int],
    taps: Sequence[int],
    stride: int,
    pads: tuple[int, int],
) -> list[int]:
    """Height and width of a convolution's output.

    Raises:
        KernelError: for a stride or a padding that makes no sense, or leaves no output; it names the argument.
    """
    if stride < 1:
        raise KernelError(f"{operator} expects stride of at least 1; got {stride}.")
    if min(pads) < 0:
        raise KernelError(f"{operator} expects padding of at least 0; got {pads[0]} and {pads[1]}.")
    made = [(side + 2 * pad - tap) // stride + 1 for side, tap, pad in zip(sides, taps, pads, strict=True)]
    if any(side + 2 * pad < tap for side, tap, pad in zip(sides, taps, pads, strict=True)):
        raise KernelError(
            f"{operator} expects x at least as large as its filter; x is {sides[0]}×{sides[1]} with padding "
            f"{pads[0]} and {pads[1]}, the filter {taps[0]}×{taps[1]}."
        )
    return made


def launcher(operator: str, module: str) -> Any:
    """A module of `vae_edge_kernels`, imported when a CUDA tensor first asks for it.

    Raises:
        KernelError: if Triton is missing.
    """
    from importlib import import_module

    try:
        return import_module(f"vae_edge_kernels.{module}")
    except ImportError as error:
        raise KernelError(
            f"{operator} needs Triton on CUDA, and it cannot be imported ({error}); install it: pip install triton."
        ) from error
