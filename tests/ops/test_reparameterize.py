from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vae_edge.errors import KernelError
from vae_edge.ops.reparameterize import reparameterize

FORWARD = torch.ops.vae_edge.reparameterize.default
BACKWARD = torch.ops.vae_edge.reparameterize_backward.default


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10, word by word as the paper writes it: the independent reference."""
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(high >> 32) ^ c[1] ^ k[0], high & 0xFFFFFFFF, (low >> 32) ^ c[3] ^ k[1], low & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def normal(seed: int, number: int) -> float:
    """One number of the stream, with the standard library's logarithm, sine and cosine."""
    block = number // 4
    words = philox([block & 0xFFFFFFFF, block >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])
    folded = [(word ^ 0xFFFFFFFF) if word >> 31 else word for word in words]
    u1, u2 = (float(np.float32(word) * np.float32(4.6566127342e-10)) for word in folded[number % 4 // 2 * 2 :][:2])
    radius = math.sqrt(-2.0 * math.log(max(u1, 1e-7)))
    return radius * (math.sin if number % 2 else math.cos)(2.0 * math.pi * u2)


def posterior(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    mu, logvar = torch.randn(2, rows, columns, generator=generator)
    return mu.to(device, dtype), logvar.to(device, dtype)


def noise(seed: int, offset: int, rows: int, columns: int) -> Tensor:
    return torch.tensor([normal(seed, offset + i) for i in range(rows * columns)]).view(rows, columns)


def test_philox_gives_the_known_answers_of_random123() -> None:
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("seed, offset", [(0, 0), (7, 3), (2**63 - 1, 5), (2**40 + 1, 2**34 + 2)])
def test_z_is_mu_plus_the_deviation_times_the_noise_of_seed_and_offset(seed: int, offset: int) -> None:
    mu, logvar = posterior(6, 5)
    z, _ = reparameterize(mu, logvar, seed, offset)
    torch.testing.assert_close(z, mu + logvar.exp().sqrt() * noise(seed, offset, 6, 5), rtol=1e-5, atol=2e-6)


def test_kl_equals_the_divergence_that_torch_computes() -> None:
    mu, logvar = posterior(50, 24, torch.float64)
    _, kl = reparameterize(mu, logvar, 1, 0)
    deviation = logvar.exp().sqrt()
    expected = kl_divergence(Normal(mu, deviation), Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-12)


def test_kl_is_zero_for_the_standard_normal_itself() -> None:
    _, kl = reparameterize(torch.zeros(3, 8), torch.zeros(3, 8), 5, 0)
    assert kl.tolist() == [0.0, 0.0, 0.0]


def test_the_noise_is_standard_normal_and_uncorrelated() -> None:
    z, _ = reparameterize(torch.zeros(1000, 200), torch.zeros(1000, 200), 11, 0)
    eps = z.flatten().double()
    assert abs(eps.mean()) < 0.01
    assert abs(eps.var() - 1.0) < 0.015
    assert abs((eps**4).mean() - 3.0) < 0.1
    for lag in (1, 2, 3, 4, 200):
        assert abs((eps[lag:] * eps[:-lag]).mean()) < 0.01


def test_the_same_seed_and_offset_repeat_and_others_differ() -> None:
    mu, logvar = posterior(9, 4)
    z = reparameterize(mu, logvar, 3, 8)[0]
    assert torch.equal(z, reparameterize(mu, logvar, 3, 8)[0])
    assert not torch.isclose(z, reparameterize(mu, logvar, 4, 8)[0]).any()
    assert not torch.isclose(z, reparameterize(mu, logvar, 3, 8 + 36)[0]).any()


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_batch_may_be_cut_anywhere_and_keeps_its_noise(cut: int) -> None:
    mu, logvar = posterior(11, 7)
    whole = reparameterize(mu, logvar, 3, 2)
    first = reparameterize(mu[:cut], logvar[:cut], 3, 2)
    second = reparameterize(mu[cut:], logvar[cut:], 3, 2 + cut * 7)
    for one, a, b in zip(whole, first, second, strict=True):
        torch.testing.assert_close(one, torch.cat([a, b]), rtol=1e-6, atol=1e-6)


def test_gradients_equal_numerical_ones() -> None:
    mu, logvar = (t.requires_grad_() for t in posterior(4, 6, torch.float64))
    assert torch.autograd.gradcheck(lambda m, v: reparameterize(m, v, 9, 3), (mu, logvar))


def test_gradients_equal_those_of_plain_torch() -> None:
    mu, logvar = (t.requires_grad_() for t in posterior(8, 16))
    z, kl = reparameterize(mu, logvar, 2, 1)
    (z.sin().sum() + 0.3 * kl.sum()).backward()
    a, b = (t.detach().clone().requires_grad_() for t in (mu, logvar))
    plain = a + torch.exp(0.5 * b) * noise(2, 1, 8, 16)
    (plain.sin().sum() - 0.15 * (1 + b - a**2 - b.exp()).sum()).backward()
    torch.testing.assert_close(mu.grad, a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_only_mu_and_logvar_are_kept_for_the_gradient() -> None:
    kept: list[Tensor] = []
    mu, logvar = (t.requires_grad_() for t in posterior(8, 16))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        reparameterize(mu, logvar, 2, 1)
    assert sorted(t.data_ptr() for t in kept) == sorted([mu.data_ptr(), logvar.data_ptr()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    mu, logvar = (t.requires_grad_() for t in posterior(16, 12, dtype))
    z, kl = reparameterize(mu, logvar, 5, 0)
    wide, wide_kl = reparameterize(mu.detach().float(), logvar.detach().float(), 5, 0)
    assert (z.dtype, kl.dtype) == (dtype, torch.float32)
    assert torch.equal(z, wide.to(dtype))
    assert torch.equal(kl, wide_kl)
    (z.float().sum() + kl.sum()).backward()
    assert mu.grad is not None and mu.grad.dtype == dtype


def test_rows_that_are_not_contiguous_and_batches_of_none_are_taken() -> None:
    mu, logvar = posterior(8, 10)
    a = reparameterize(mu.t(), logvar.t(), 1, 0)
    b = reparameterize(mu.t().contiguous(), logvar.t().contiguous(), 1, 0)
    torch.testing.assert_close(a, b)
    z, kl = reparameterize(mu[:0], logvar[:0], 1, 0)
    assert (z.shape, kl.shape) == ((0, 10), (0,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_accepts_both_operators(dtype: torch.dtype) -> None:
    mu, logvar = (t.requires_grad_() for t in posterior(5, 8, dtype))
    torch.library.opcheck(FORWARD, (mu, logvar, 7, 3))
    z, kl = FORWARD(mu.detach(), logvar.detach(), 7, 3)
    torch.library.opcheck(BACKWARD, (z, kl, mu.detach(), logvar.detach(), 7, 3))


def test_export_keeps_one_node_with_a_dynamic_batch() -> None:
    class Sample(torch.nn.Module):
        def forward(self, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
            return reparameterize(mu, logvar, 7, 3)

    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(Sample(), posterior(4, 6), dynamic_shapes=({0: batch}, {0: batch}))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function" and "getitem" not in node.name]
    assert calls == [FORWARD]
    mu, logvar = posterior(9, 6)
    torch.testing.assert_close(program.module()(mu, logvar), reparameterize(mu, logvar, 7, 3))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mu": torch.zeros(3)}, "one shape"),
        ({"mu": torch.zeros(3, 5)}, r"got \[3, 5\] and \[3, 4\]"),
        ({"mu": torch.zeros(3, 0), "logvar": torch.zeros(3, 0)}, "Z at least 1"),
        ({"mu": torch.zeros(3, 4, dtype=torch.int32)}, "torch.int32"),
        ({"mu": torch.zeros(3, 4, dtype=torch.float64)}, "one dtype"),
        ({"mu": torch.zeros(3, 4, device="meta")}, "meta and cpu"),
        ({"seed": -1}, "seed from 0"),
        ({"seed": 2**63}, "seed from 0"),
        ({"seed": 1.5}, "float"),
        ({"offset": 2**62 + 1}, "offset from 0"),
        ({"offset": True}, "bool"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(change: dict[str, object], words: str) -> None:
    right: dict[str, object] = {"mu": torch.zeros(3, 4), "logvar": torch.zeros(3, 4), "seed": 0, "offset": 0}
    with pytest.raises(KernelError, match=words):
        reparameterize(**{**right, **change})  # type: ignore[arg-type]


def test_gradients_of_a_wrong_shape_are_refused() -> None:
    mu, logvar = posterior(3, 4)
    with pytest.raises(KernelError, match=r"grad_kl \[3\]"):
        BACKWARD(mu, torch.zeros(4), mu, logvar, 0, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rows, columns, offset", [(1, 1, 0), (257, 32, 8), (100, 37, 3), (64, 128, 5)])
def test_cuda_equals_the_cpu_reference(rows: int, columns: int, offset: int) -> None:
    results = []
    for device in ("cpu", "cuda"):
        mu, logvar = (t.requires_grad_() for t in posterior(rows, columns, device=device))
        z, kl = reparameterize(mu, logvar, 3, offset)
        (z.sin().sum() + kl.sum()).backward()
        results.append([t.detach().cpu() for t in (z, kl, mu.grad, logvar.grad)])  # type: ignore[union-attr]
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-5)
