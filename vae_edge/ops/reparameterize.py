"""Sampling from the posterior: z = mu + exp(logvar / 2) · eps, and the KL divergence of each row, in one pass.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), section 2.4 (the sample) and appendix B (the KL divergence
to N(0, I)). The noise eps is Philox with an explicit seed and offset, as `vae_edge_kernels.philox_reference` defines
it: the same numbers on the CPU, in Triton's interpreter and on a GPU. So it is never stored; the gradient computes it
again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from vae_edge_kernels import philox_reference

from vae_edge.errors import KernelError
from vae_edge.ops.registration import kernel_module, register_operator

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def reparameterize(mu: Tensor, logvar: Tensor, seed: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Sample one code for each row, and compute the row's KL divergence to the standard normal.

    Element i of the row-major [N, Z] takes number `offset + i` of the seed's stream of normals. Advance `offset` by
    N · Z from one call to the next for fresh noise. The same seed and offset repeat the same codes on every device.

    Args:
        mu: means, [N, Z], float32, float64, float16 or bfloat16.
        logvar: logarithms of the variances, of the same shape, dtype and device.
        seed: 0 to 2^63 - 1.
        offset: 0 to 2^62, in elements.

    Returns:
        z, [N, Z], of mu's dtype; and kl, [N], in nats: float64 for float64, else float32. Both carry gradients.

    Raises:
        KernelError: if the tensors do not have one shape [N, Z], one supported dtype and one device, or if seed or
        offset is out of range.
    """
    _check_pair(mu, logvar)
    _check_integer("seed", seed, 2**63 - 1)
    _check_integer("offset", offset, 2**62)
    return _forward(mu, logvar, seed, offset)


class _Backward(NamedTuple):
    """The gradients of mu and logvar, each [N, Z], from those of z [N, Z] and kl [N]."""

    grad_z: Tensor
    grad_kl: Tensor
    mu: Tensor
    logvar: Tensor
    seed: int
    offset: int

    def check(self) -> None:
        _check_pair(self.mu, self.logvar)
        _check_gradients(self.grad_z, self.grad_kl, self.mu)

    def outputs(self) -> tuple[Tensor, Tensor]:
        self.check()
        grad_mu = torch.empty_like(self.mu, memory_format=torch.contiguous_format)
        return grad_mu, torch.empty_like(grad_mu)

    def reference(self) -> tuple[Tensor, Tensor]:
        mu, logvar, eps = _prepare(self.mu, self.logvar, self.seed, self.offset)
        grad_z = self.grad_z.to(mu.dtype)
        grad_kl = self.grad_kl.to(mu.dtype).unsqueeze(1)
        grad_mu = torch.addcmul(grad_z, grad_kl, mu)
        grad_logvar = (grad_z * eps * torch.exp(logvar * 0.5) + grad_kl * (logvar.exp() - 1.0)) * 0.5
        return grad_mu.to(self.mu.dtype), grad_logvar.to(self.mu.dtype)

    def launch(self, grad_mu: Tensor, grad_logvar: Tensor) -> None:
        _kernels(self.mu).backward(
            self.grad_z.to(self.mu.dtype).contiguous(),
            self.grad_kl.float().contiguous(),
            self.mu.contiguous(),
            self.logvar.contiguous(),
            grad_mu,
            grad_logvar,
            self.seed,
            self.offset,
        )


_backward = register_operator("reparameterize_backward", _Backward)


def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
    """Keep what `backward` needs. The noise is not kept: it is computed again from seed and offset."""
    mu, logvar, ctx.seed, ctx.offset = inputs
    ctx.save_for_backward(mu, logvar)


def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor, Tensor, None, None]:
    """The gradients of mu and logvar; seed and offset have none."""
    mu, logvar = ctx.saved_tensors
    grad_mu, grad_logvar = _backward(grad_z, grad_kl, mu, logvar, ctx.seed, ctx.offset)
    return grad_mu, grad_logvar, None, None


class _Forward(NamedTuple):
    """z [N, Z] of mu's dtype, and kl [N]; see `reparameterize`."""

    mu: Tensor
    logvar: Tensor
    seed: int
    offset: int

    def check(self) -> None:
        _check_pair(self.mu, self.logvar)

    def outputs(self) -> tuple[Tensor, Tensor]:
        self.check()
        kl = self.mu.new_empty(self.mu.shape[0], dtype=_arithmetic_dtype(self.mu))
        return torch.empty_like(self.mu, memory_format=torch.contiguous_format), kl

    def reference(self) -> tuple[Tensor, Tensor]:
        mu, logvar, eps = _prepare(self.mu, self.logvar, self.seed, self.offset)
        z = torch.addcmul(mu, torch.exp(logvar * 0.5), eps)
        kl = (logvar.exp() + mu.square() - 1.0 - logvar).sum(dim=1) * 0.5
        return z.to(self.mu.dtype), kl

    def launch(self, z: Tensor, kl: Tensor) -> None:
        _kernels(self.mu).forward(self.mu.contiguous(), self.logvar.contiguous(), z, kl, self.seed, self.offset)


_forward = register_operator("reparameterize", _Forward, setup_context=setup_context, backward=backward)


def _prepare(mu: Tensor, logvar: Tensor, seed: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """mu and logvar in the dtype of the arithmetic, and their noise: three tensors [N, Z]."""
    dtype = _arithmetic_dtype(mu)
    eps = torch.from_numpy(philox_reference.normal(seed, offset, mu.numel())).view(mu.shape).to(dtype)
    return mu.to(dtype), logvar.to(dtype), eps


def _arithmetic_dtype(mu: Tensor) -> torch.dtype:
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def _kernels(mu: Tensor) -> Any:
    """The Triton launcher."""
    if mu.dtype == torch.float64:
        raise KernelError(
            "reparameterize takes float32, float16 or bfloat16 on CUDA, but mu is float64; cast it, "
            "or compute on the CPU."
        )
    return kernel_module("reparameterize", "reparameterize")


def _check_pair(mu: Tensor, logvar: Tensor) -> None:
    if mu.dim() != 2 or logvar.dim() != 2 or mu.shape != logvar.shape or mu.shape[1] == 0:
        raise KernelError(
            "reparameterize expects mu and logvar of one shape [N, Z] with Z at least 1; "
            f"got {list(mu.shape)} and {list(logvar.shape)}."
        )
    if mu.dtype not in DTYPES or logvar.dtype != mu.dtype:
        raise KernelError(
            "reparameterize expects mu and logvar of one dtype (float32, float64, float16 or bfloat16); "
            f"got {mu.dtype} and {logvar.dtype}; cast them with .to()."
        )
    if mu.device != logvar.device:
        raise KernelError(
            f"reparameterize expects mu and logvar on one device; got {mu.device} and {logvar.device}; "
            "move one with .to()."
        )


def _check_gradients(grad_z: Tensor, grad_kl: Tensor, mu: Tensor) -> None:
    if grad_z.shape != mu.shape or grad_kl.shape != mu.shape[:1]:
        raise KernelError(
            f"reparameterize's gradient expects grad_z {list(mu.shape)} and grad_kl [{mu.shape[0]}]; "
            f"got {list(grad_z.shape)} and {list(grad_kl.shape)}."
        )


def _check_integer(name: str, value: int, largest: int) -> None:
    if isinstance(value, torch.SymInt):
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise KernelError(f"reparameterize expects {name} as a Python int; got {type(value).__name__}.")
    if not 0 <= value <= largest:
        raise KernelError(f"reparameterize expects {name} from 0 to {largest}; got {value}.")
