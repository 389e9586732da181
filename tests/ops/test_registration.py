from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vae_edge.errors import KernelError
from vae_edge.ops.registration import check_tensor, register_operator


class ScaledRows(NamedTuple):
    x: Tensor
    factor: float
    bias: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def check(self) -> None:
        check_tensor("scaled_rows", "x", self.x, "N C", (torch.float32,), self.x)

    def outputs(self) -> tuple[Tensor, Tensor]:
        self.check()
        return self.x.new_empty(self.x.shape, dtype=self.dtype), self.x.new_empty(self.x.shape[0])

    def reference(self) -> tuple[Tensor, Tensor]:
        y = self.x * self.factor
        if self.bias is not None:
            y = y + self.bias
        return y.to(self.dtype), self.x.sum(1)


class CopyInto(NamedTuple):
    x: Tensor
    y: Tensor

    def check(self) -> None:
        check_tensor("copy_into", "y", self.y, "N C", (torch.float32,), self.x, self.x.shape)

    def outputs(self) -> None:
        self.check()

    def reference(self) -> None:
        self.y.copy_(self.x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.factor = inputs[1]


def _backward(ctx: Any, grad_y: Tensor, grad_sum: Tensor) -> tuple[Tensor, None, None, None]:
    return grad_y * ctx.factor + grad_sum[:, None], None, None, None


scaled_rows = register_operator("test_scaled_rows", ScaledRows, backward=_backward, setup_context=_keep)
copy_into = register_operator("test_copy_into", CopyInto, mutates=("y",))


def test_the_fields_are_the_schema() -> None:
    schema = str(torch.ops.vae_edge.test_scaled_rows.default._schema)
    assert schema == (
        "vae_edge::test_scaled_rows(Tensor x, float factor, Tensor? bias=None, ScalarType dtype=6) -> (Tensor, Tensor)"
    )


def test_it_passes_opcheck() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.vae_edge.test_scaled_rows.default, (x, 2.0))
    torch.library.opcheck(torch.ops.vae_edge.test_scaled_rows.default, (x.detach(), 2.0, torch.ones(4), torch.float16))
    torch.library.opcheck(torch.ops.vae_edge.test_copy_into.default, (x.detach(), torch.zeros(3, 4)))


def test_arguments_go_by_position_or_by_name_and_have_their_defaults() -> None:
    x = torch.ones(2, 3)
    by_position, _ = scaled_rows(x, 2.0)
    by_name, _ = scaled_rows(x=x, factor=2.0, dtype=torch.float16)
    assert by_position.dtype == torch.float32 and by_name.dtype == torch.float16
    assert torch.equal(by_position, torch.full((2, 3), 2.0))


def test_the_gradient_is_the_one_given() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    y, sums = scaled_rows(x, 5.0)
    (y.sum() + sums.sum()).backward()
    assert torch.equal(x.grad, torch.full((2, 3), 6.0))


def test_an_operator_may_write_an_argument() -> None:
    y = torch.zeros(2, 3)
    assert copy_into(torch.ones(2, 3), y) is None
    assert torch.equal(y, torch.ones(2, 3))


@pytest.mark.parametrize("fake", [False, True])
def test_arguments_are_checked_on_the_cpu_and_when_traced(fake: bool) -> None:
    mode = FakeTensorMode() if fake else torch.no_grad()
    with mode, pytest.raises(KernelError, match=r"scaled_rows expects x as \[N, C\]; got shape \[2\]"):
        scaled_rows(torch.ones(2), 1.0)
