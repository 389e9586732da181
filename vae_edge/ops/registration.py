"""How an operator is registered with PyTorch, and how it checks its arguments.

`register_operator` makes a `torch.library` operator of one class. The class is a NamedTuple: its fields are the
operator's schema, stated once, and its methods are the CPU reference, the CUDA launch and the outputs of both.

    class AvgPool(NamedTuple):
        x: Tensor  # [N, H, W, C]
        scale: float

        def check(self) -> None: ...  # raises KernelError
        def outputs(self) -> Tensor: ...  # checks, then allocates [N, C]
        def reference(self) -> Tensor: ...  # on the CPU, in PyTorch
        def launch(self, y: Tensor) -> None: ...  # on CUDA, a Triton kernel

    avg_pool = register_operator("avg_pool", AvgPool)
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vae_edge.errors import KernelError


class Operator(Protocol):
    """What `register_operator` asks of a class. Its fields are the arguments, the first of them a tensor."""

    def check(self) -> Any:
        """Refuse arguments that do not fit together. May return what `outputs` needs, a shape for example.

        Raises:
            KernelError: names the operator, the argument, what was expected and what came.
        """

    def outputs(self) -> Any:
        """Check, then allocate the outputs: one tensor, a tuple of tensors, or None if arguments are written.

        They are uninitialized and alias no argument. It also runs on fake tensors, for `torch.compile` and export.
        """

    def reference(self) -> Any:
        """The result on the CPU. Its return annotation is the return type in the operator's schema."""

    def launch(self, *outputs: Any) -> None:
        """Launch the CUDA kernel, which writes `outputs`. The device of the first argument is the current one."""


def register_operator(
    name: str,
    arguments: type[Any],
    *,
    mutates: Iterable[str] = (),
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> torch.library.CustomOpDef:
    """Register schema, CPU reference, CUDA kernel, fake and gradient of `torch.ops.vae_edge.<name>`.

    Args:
        name: of the operator.
        arguments: a NamedTuple with the methods of `Operator`.
        mutates: names of the arguments that the operator writes.
        backward: `backward(ctx, *grad_outputs)`, as `torch.library.register_autograd` takes it.
        setup_context: `setup_context(ctx, inputs, output)`, which keeps what `backward` needs.

    Returns:
        The operator. It is called with the fields of `arguments`, by position or by name.
    """

    def cpu(*values: Any) -> Any:
        given = arguments(*values)
        given.check()
        return given.reference()

    def cuda(*values: Any) -> Any:
        given = arguments(*values)
        outputs = given.outputs()
        with torch.cuda.device(given[0].device):
            given.launch(*_as_tuple(outputs))
        return outputs

    def fake(*values: Any) -> Any:
        return arguments(*values).outputs()

    mutates_args = tuple(mutates)
    operator = torch.library.custom_op(
        f"vae_edge::{name}",
        cpu,
        mutates_args=mutates_args,
        device_types="cpu",
        schema=_schema(arguments, mutates_args),
    )
    operator.register_kernel("cuda")(cuda)
    operator.register_fake(fake)
    if backward is not None:
        operator.register_autograd(backward, setup_context=setup_context)
    return operator


def _schema(arguments: type[Any], mutates_args: tuple[str, ...]) -> str:
    """The operator's schema, which PyTorch infers from a function with the fields of `arguments` as parameters."""
    types = typing.get_type_hints(arguments)
    parameters = [
        inspect.Parameter(
            field,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=types[field],
            default=arguments._field_defaults.get(field, inspect.Parameter.empty),
        )
        for field in arguments._fields
    ]
    result = typing.get_type_hints(arguments.reference)["return"]

    def prototype() -> None: ...

    prototype.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=None if result is type(None) else result
    )
    return torch.library.infer_schema(prototype, mutates_args=mutates_args)


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    if outputs is None:
        return ()
    return outputs if isinstance(outputs, tuple) else (outputs,)


@functools.cache
def kernel_module(operator: str, module: str) -> Any:
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


def check_tensor(
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
        operator: named in the error.
        name: of the argument.
        tensor: its value.
        dims: the names of its dimensions, "N H W C".
        dtypes: those that it may have.
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


def conv_output_size(
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
