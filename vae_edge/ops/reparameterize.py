"""Sampling from the posterior: z = mu + exp(logvar / 2) * eps, and the KL divergence of each row, in one pass.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), section 2.4 (the sample) and appendix B (the KL
divergence to N(0, I)). The noise is Philox by explicit seed and offset, as `vae_edge_kernels.philox_reference`
defines it: the same numbers on the CPU, in Triton's interpreter and on a GPU, so nothing of it is stored: the
gradient makes it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vae_edge_kernels import philox_reference

from vae_edge.errors import KernelError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def reparameterize(mu: Tensor, logvar: Tensor, seed: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Draw one code for each row and give the row's KL divergence to the standard normal.

    Element i of the row-major [N, Z] takes number `offset + i` of the seed's stream of normals; advance `offset` by N
    * Z from one call to the next for fresh noise. The same seed and offset repeat the same codes on every device.

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


@torch.library.custom_op("vae_edge::reparameterize", mutates_args=(), device_types="cpu")
def _forward(mu: Tensor, logvar: Tensor, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    _check_pair(mu, logvar)
    mean, log_variance, eps = _prepare(mu, logvar, seed, offset)
    z = torch.addcmul(mean, torch.exp(log_variance * 0.5), eps)
    kl = (log_variance.exp() + mean.square() - 1.0 - log_variance).sum(dim=1) * 0.5
    return z.to(mu.dtype), kl


@_forward.register_kernel("cuda")
def _forward_cuda(mu: Tensor, logvar: Tensor, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    _check_pair(mu, logvar)
    kernels = _kernels(mu)
    mu, logvar = mu.contiguous(), logvar.contiguous()
    z = torch.empty_like(mu)
    kl = mu.new_empty(mu.shape[0], dtype=torch.float32)
    with torch.cuda.device(mu.device):
        kernels.forward(mu, logvar, z, kl, seed, offset)
    return z, kl


@_forward.register_fake
def _forward_fake(mu: Tensor, logvar: Tensor, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    _check_pair(mu, logvar)
    kl = mu.new_empty(mu.shape[0], dtype=_inner_dtype(mu))
    return torch.empty_like(mu, memory_format=torch.contiguous_format), kl


@torch.library.custom_op("vae_edge::reparameterize_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: int, offset: int
) -> tuple[Tensor, Tensor]:
    _check_pair(mu, logvar)
    _check_gradients(grad_z, grad_kl, mu)
    mean, log_variance, eps = _prepare(mu, logvar, seed, offset)
    grad_sample = grad_z.to(mean.dtype)
    grad_row = grad_kl.to(mean.dtype).unsqueeze(1)
    grad_mu = torch.addcmul(grad_sample, grad_row, mean)
    grad_logvar = (grad_sample * eps * torch.exp(log_variance * 0.5) + grad_row * (log_variance.exp() - 1.0)) * 0.5
    return grad_mu.to(mu.dtype), grad_logvar.to(mu.dtype)


@_backward.register_kernel("cuda")
def _backward_cuda(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: int, offset: int
) -> tuple[Tensor, Tensor]:
    _check_pair(mu, logvar)
    _check_gradients(grad_z, grad_kl, mu)
    kernels = _kernels(mu)
    mu, logvar = mu.contiguous(), logvar.contiguous()
    grad_mu, grad_logvar = torch.empty_like(mu), torch.empty_like(mu)
    grad_z, grad_kl = grad_z.to(mu.dtype).contiguous(), grad_kl.float().contiguous()
    with torch.cuda.device(mu.device):
        kernels.backward(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, seed, offset)
    return grad_mu, grad_logvar


@_backward.register_fake
def _backward_fake(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: int, offset: int
) -> tuple[Tensor, Tensor]:
    empty = torch.empty_like(mu, memory_format=torch.contiguous_format)
    return empty, torch.empty_like(empty)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
    mu, logvar, ctx.seed, ctx.offset = inputs
    ctx.save_for_backward(mu, logvar)


def _differentiate(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor, Tensor, None, None]:
    mu, logvar = ctx.saved_tensors
    grad_mu, grad_logvar = _backward(grad_z, grad_kl, mu, logvar, ctx.seed, ctx.offset)
    return grad_mu, grad_logvar, None, None


_forward.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _prepare(mu: Tensor, logvar: Tensor, seed: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both inputs in the precision of the arithmetic, and their noise: three tensors [N, Z]."""
    inner = _inner_dtype(mu)
    eps = torch.from_numpy(philox_reference.normal(seed, offset, mu.numel())).view(mu.shape).to(inner)
    return mu.to(inner), logvar.to(inner), eps


def _inner_dtype(mu: Tensor) -> torch.dtype:
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def _kernels(mu: Tensor) -> Any:
    """The Triton launcher, imported when a CUDA tensor first asks for it."""
    if mu.dtype == torch.float64:
        raise KernelError(
            "reparameterize takes float32, float16 or bfloat16 on CUDA, but mu is float64; cast it, "
            "or compute on the CPU."
        )
    try:
        from vae_edge_kernels import reparameterize as kernels
    except ImportError as error:
        raise KernelError(
            f"reparameterize needs Triton on CUDA, and it cannot be imported ({error}); "
            "install it with: pip install triton."
        ) from error
    return kernels


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
