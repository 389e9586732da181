"""Sampling from the posterior: z = mu + exp(logvar / 2) · eps, and the KL divergence of each row, in one pass.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), section 2.4 (the sample) and appendix B (the KL divergence
to N(0, I)). The noise eps is Philox with an explicit seed and offset: the same numbers on the CPU, in Triton's
interpreter and on a GPU. So it is never stored; the gradient computes it again.

The noise is one endless stream for each seed: normal(seed, 0), normal(seed, 1), ... An operator that is called with
`seed` and `offset` gives element i of its row-major output the number normal(seed, offset + i). So a batch may be cut
anywhere: the second part, called with its own offset, has the noise that it had in the whole.

Number k of the stream is lane k % 4 of block k // 4. A block is one Philox4x32-10 call (Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) with counter (block mod 2^32, block div 2^32, 0, 0) and key
(seed mod 2^32, seed div 2^32). Its four words become uniforms u in [0, 1) by Triton's mapping (`uniform`), and two Box-
Muller pairs make the lanes: (u0, u1) lanes 0 and 1, (u2, u3) lanes 2 and 3. Sine and cosine are polynomials instead of
the library's functions, so that a CPU, the interpreter and a GPU agree to a few units in the last place. The Triton
kernels (`vae_edge_kernels.reparameterize`) and the C test follow the NumPy functions here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.registration import kernel_module, register_operator

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LANES = 4
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
LOW_WORD = 0xFFFFFFFF
_LOW = np.uint64(LOW_WORD)
_HALF_WORD = np.uint64(32)
UNIFORM_SCALE = np.float32(4.6566127342e-10)
MIN_UNIFORM = np.float32(1.0e-7)
TWO_PI = np.float32(6.283185307179586)
# Minimax polynomials of sine and cosine on [-pi/4, pi/4], from the Cephes library (sinf.c, S. L. Moshier).
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


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
    eps = torch.from_numpy(normal(seed, offset, mu.numel())).view(mu.shape).to(dtype)
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


# ---- The noise ------------------------------------------------------------------------------------------------------


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int], rounds: int = 10) -> NDArray[np.uint32]:
    """Philox4x32: counter words uint64 [4, ...], each below 2^32, and two key words to random words uint32 [4, ...]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product_0 = c0 * MULTIPLIER_0
        product_1 = c2 * MULTIPLIER_1
        c0 = (product_1 >> _HALF_WORD) ^ c1 ^ np.uint64(k0)
        c2 = (product_0 >> _HALF_WORD) ^ c3 ^ np.uint64(k1)
        c1 = product_1 & _LOW
        c3 = product_0 & _LOW
        k0 = (k0 + WEYL_0) & 0xFFFFFFFF
        k1 = (k1 + WEYL_1) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)


def uniform(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Random words to float32 in [0, 1), by the mapping of Triton's `tl.rand`: the sign folded away, then scaled."""
    signed = words.view(np.int32)
    return np.where(signed < 0, ~signed, signed).astype(np.float32) * UNIFORM_SCALE


def box_muller(u1: NDArray[np.float32], u2: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Two arrays of uniforms to two arrays of independent standard normals, float32 (Box and Muller, 1958)."""
    radius = np.sqrt(np.float32(-2.0) * np.log(np.maximum(u1, MIN_UNIFORM)))

    # Reduce to [-pi/4, pi/4] around the nearest multiple of pi/2.
    nearest = np.floor(np.float32(4.0) * u2 + np.float32(0.5))
    x = (u2 - np.float32(0.25) * nearest) * TWO_PI
    square = x * x
    s0, s1, s2 = map(np.float32, SINE)
    c0, c1, c2 = map(np.float32, COSINE)
    sine = ((s0 * square + s1) * square + s2) * square * x + x
    cosine = ((c0 * square + c1) * square + c2) * square * square - np.float32(0.5) * square + np.float32(1.0)

    # Rotate back by quadrant: swap sine and cosine in the odd ones, then set the signs.
    quadrant = nearest.astype(np.int32)
    odd = (quadrant & 1) == 1
    signed_cosine = np.where(((quadrant + 1) & 2) == 2, -radius, radius)
    signed_sine = np.where((quadrant & 2) == 2, -radius, radius)
    return signed_cosine * np.where(odd, sine, cosine), signed_sine * np.where(odd, cosine, sine)


def normal(seed: int, offset: int, count: int) -> NDArray[np.float32]:
    """Numbers offset, offset + 1, ..., offset + count - 1 of the seed's stream of standard normals: float32 [count].

    Raises:
        ValueError: the seed, the offset or the count is negative, or the seed or the stream's end does not fit 63 bits.
    """
    if min(seed, offset, count) < 0 or seed >= 1 << 63 or offset + count > 1 << 63:
        raise ValueError(f"seed, offset and offset + count must be from 0 to 2^63 - 1; got {seed}, {offset}, {count}.")
    first, end = offset // LANES, -(-(offset + count) // LANES)
    block = np.arange(first, end, dtype=np.uint64)
    zero = np.zeros_like(block)
    counter = np.stack((block & _LOW, block >> _HALF_WORD, zero, zero))
    u = uniform(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)))
    lanes = np.empty((block.size, LANES), dtype=np.float32)
    lanes[:, 0::2], lanes[:, 1::2] = (part.T for part in box_muller(u[0::2], u[1::2]))
    start = offset - first * LANES
    return lanes.reshape(-1)[start : start + count]
