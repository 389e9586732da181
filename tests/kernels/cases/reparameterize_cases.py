"""Sampling with its KL divergence, and its noise, against the CPU's operator and the NumPy reference.

`test_cases.py` runs this file under the interpreter, and compiled where there is a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from vae_edge_kernels import reparameterize as kernels
from where import DEVICE, INTERPRETED, capability, poison

from vae_edge.ops import reparameterize as reference
from vae_edge.ops.reparameterize import reparameterize

BACKWARD = torch.ops.vae_edge.reparameterize_backward.default
COUNT = 256
SEED = 2**40 + 12345
# rows, columns, offset: in quads and not, less than a tile and more, beyond 32 bits
SHAPES = [(1, 1, 0), (5, 3, 3), (17, 32, 4), (3, 40, 2**33 + 8), (2, 37, 1), (16, 36, 6), (33, 4, 0)]


@triton.jit
def _tritons_own(words_ptr, uniform_ptr, normal_ptr, seed, first, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    number = first + i.to(tl.int64)
    w0, w1, w2, w3 = tl.randint4x(seed, number)
    tl.store(words_ptr + i, w0.to(tl.int32, bitcast=True))
    tl.store(words_ptr + COUNT + i, w1.to(tl.int32, bitcast=True))
    tl.store(words_ptr + 2 * COUNT + i, w2.to(tl.int32, bitcast=True))
    tl.store(words_ptr + 3 * COUNT + i, w3.to(tl.int32, bitcast=True))
    tl.store(uniform_ptr + i, tl.rand(seed, number))
    tl.store(normal_ptr + i, tl.randn(seed, number))


@triton.jit
def _ours(single_ptr, quads_ptr, seed, first, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(single_ptr + i, kernels.randn(seed, first + i.to(tl.int64)))
    block = (first >> 2) + tl.arange(0, COUNT // 4).to(tl.int64)[None, :]
    tl.store(quads_ptr + i[None, :], kernels.randn4x(seed, block))


def words_of(seed: int, first: int) -> np.ndarray:
    block = np.arange(first, first + COUNT, dtype=np.uint64)
    counter = np.stack((block & np.uint64(0xFFFFFFFF), block >> np.uint64(32), block * 0, block * 0))
    return reference.philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


@pytest.mark.parametrize("first", [0, 7, 2**32 - 100])
def test_the_reference_has_the_bits_of_tritons_philox(first: int) -> None:
    words = poison((4, COUNT), torch.int32)
    uniform, normal = poison((COUNT,), torch.float32), poison((COUNT,), torch.float32)
    _tritons_own[(1,)](words, uniform, normal, SEED, first, COUNT=COUNT)
    expected = words_of(SEED, first)
    assert np.array_equal(words.cpu().numpy().view(np.uint32), expected)
    assert np.array_equal(uniform.cpu().numpy(), reference.uniform(expected[0]))
    lane0 = reference.normal(SEED, 4 * first, 4 * COUNT)[::4]
    np.testing.assert_allclose(normal.cpu().numpy(), lane0, rtol=0, atol=5e-6)


@pytest.mark.parametrize("first", [0, 4, 2**34 - 128])
def test_both_ways_of_drawing_give_the_numbers_of_the_reference(first: int) -> None:
    single, quads = poison((COUNT,), torch.float32), poison((COUNT,), torch.float32)
    _ours[(1,)](single, quads, SEED, first, COUNT=COUNT)
    expected = reference.normal(SEED, first, COUNT)
    np.testing.assert_allclose(single.cpu().numpy(), expected, rtol=0, atol=1e-6)
    if INTERPRETED or capability() < (10, 0):
        assert torch.equal(single, quads)
    else:  # two numbers at once there (`mul.f32x2`), which become no fma with a sum: another last bit now and then
        torch.testing.assert_close(single, quads, rtol=2.4e-7, atol=1.2e-7)


def posterior(rows: int, columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    return [t.to(dtype).contiguous() for t in torch.randn(3, rows, columns, generator=generator)]


@pytest.mark.parametrize("rows, columns, offset", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_forward_equals_the_operator_on_the_cpu(rows: int, columns: int, offset: int, dtype: torch.dtype) -> None:
    mu, logvar, _ = posterior(rows, columns, dtype)
    z, kl = poison(mu.shape, dtype), poison((rows,), torch.float32)
    kernels.forward(mu.to(DEVICE), logvar.to(DEVICE), z, kl, SEED, offset)
    expected_z, expected_kl = reparameterize(mu, logvar, SEED, offset)
    torch.testing.assert_close(z.cpu(), expected_z, **tolerance(dtype))
    torch.testing.assert_close(kl.cpu(), expected_kl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows, columns, offset", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_backward_equals_the_operator_on_the_cpu(rows: int, columns: int, offset: int, dtype: torch.dtype) -> None:
    mu, logvar, grad_z = posterior(rows, columns, dtype)
    grad_kl = torch.linspace(-1.0, 2.0, rows)
    got = poison(mu.shape, dtype), poison(mu.shape, dtype)
    kernels.backward(*(tensor.to(DEVICE) for tensor in (grad_z, grad_kl, mu, logvar)), *got, SEED, offset)
    expected = BACKWARD(grad_z, grad_kl, mu, logvar, SEED, offset)
    torch.testing.assert_close(tuple(tensor.cpu() for tensor in got), tuple(expected), **tolerance(dtype))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """bfloat16 is truncated by the interpreter and rounded by hardware: one unit in the last place is allowed there.

    The exponential of a GPU is not that of a CPU, by some units.
    """
    return {
        torch.float32: {"rtol": 2e-6, "atol": 2e-6} if INTERPRETED else {"rtol": 1e-5, "atol": 1e-5},
        torch.float16: {"rtol": 1e-3, "atol": 1e-5},
        torch.bfloat16: {"rtol": 1e-2, "atol": 1e-5},
    }[dtype]


def test_nothing_is_written_beyond_the_tensors() -> None:
    mu, logvar, _ = posterior(5, 3, torch.float32)
    z, kl = torch.full((64,), 7.0, device=DEVICE), torch.full((32,), 7.0, device=DEVICE)
    kernels.forward(mu.to(DEVICE), logvar.to(DEVICE), z[:15].view(5, 3), kl[:5], 1, 0)
    assert (z[15:] == 7.0).all() and (kl[5:] == 7.0).all()
    assert not (z[:15] == 7.0).any()


def test_a_batch_of_none_launches_nothing() -> None:
    empty, kl = torch.empty(0, 8, device=DEVICE), torch.full((4,), 7.0, device=DEVICE)
    kernels.forward(empty, empty, empty, kl[:0], 1, 0)
    assert (kl == 7.0).all()
