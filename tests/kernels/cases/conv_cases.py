"""The convolution kernels against float64 convolutions and the integer reference, over shapes, strides and dtypes.

`test_cases.py` runs this file under the interpreter, and compiled where there is a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from vae_edge_kernels import conv as kernels
from vae_edge_kernels.conv import ConvParams
from where import DEVICE, INTERPRETED, capability, poison

HALF = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# float32 is exact under the interpreter; on a GPU its operands are tf32, of 10 bits
TOLERANCE = {torch.float32: 2e-6 if INTERPRETED else 2e-3, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Shape:
    """A convolution's sizes."""

    images: int
    height: int
    width: int
    channels: int
    outputs: int
    taps: tuple[int, int]
    stride: int
    pads: tuple[int, int]
    seed: int

    @property
    def params(self) -> ConvParams:
        return ConvParams(*self.taps, self.stride, *self.pads)

    def out(self) -> tuple[int, int, int, int]:
        sides = (
            (side + 2 * pad - tap) // self.stride + 1
            for side, pad, tap in zip((self.height, self.width), self.pads, self.taps, strict=True)
        )
        return (self.images, *sides, self.outputs)


@st.composite
def shapes(draw: st.DrawFn, most_channels: int = 33) -> Shape:
    taps = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1)]))
    sides = [draw(st.integers(tap, 8)) for tap in taps]
    return Shape(
        draw(st.integers(0, 2)),
        *sides,
        draw(st.integers(1, most_channels)),
        draw(st.integers(1, 33)),
        taps,
        draw(st.integers(1, 2)),
        (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        draw(st.integers(0, 2**31)),
    )


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def exact(x: Tensor, w: Tensor, shape: Shape) -> Tensor:
    """Float64 sums [N, OH, OW, K] of x [N, H, W, C] and w [R, S, C, K]."""
    image = x.cpu().double().permute(0, 3, 1, 2)
    if image.shape[0] == 0:
        return torch.zeros(shape.out(), dtype=torch.float64)
    sums = F.conv2d(image, w.cpu().double().permute(3, 2, 0, 1), None, shape.stride, shape.pads)
    return sums.permute(0, 2, 3, 1)


@HALF
@given(shapes(), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_a_convolution_is_that_of_float64(shape: Shape, dtype: torch.dtype, relu: bool, has_residual: bool) -> None:
    rows, columns = shape.taps
    x = normal(shape.images, shape.height, shape.width, shape.channels, seed=shape.seed).to(dtype)
    w = normal(rows, columns, shape.channels, shape.outputs, seed=shape.seed + 1)
    w = (w / (rows * columns * shape.channels) ** 0.5).to(dtype)
    bias, residual = normal(shape.outputs, seed=shape.seed + 2), normal(*shape.out(), seed=3).to(dtype)
    expected = exact(x, w, shape) + bias.double() + (residual.double() if has_residual else 0.0)
    expected = expected.relu() if relu else expected
    y = poison(shape.out(), dtype)
    given_residual = residual.to(DEVICE) if has_residual else None
    kernels.conv_forward(x.to(DEVICE), w.to(DEVICE), bias.to(DEVICE), given_residual, y, shape.params, relu)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.cpu().double(), expected, rtol=4 * tolerance, atol=4 * tolerance)


@HALF
@given(shapes(most_channels=3), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_a_first_layer_reads_bytes(shape: Shape, dtype: torch.dtype, relu: bool, bytes_in: bool) -> None:
    rows, columns = shape.taps
    size = (shape.images, shape.height, shape.width, shape.channels)
    x = normal(*size, seed=shape.seed)
    if bytes_in:
        x = (integers(*size, seed=shape.seed).int() + 128).to(torch.uint8)
    w = (normal(rows, columns, shape.channels, shape.outputs, seed=shape.seed + 1) / 3.0).to(dtype)
    bias, scale = normal(shape.outputs, seed=shape.seed + 2), 1.0 / 255.0 if bytes_in else 1.0
    seen = (x.float() * scale).to(dtype)
    expected = exact(seen, w, shape) + bias.double()
    expected = expected.relu() if relu else expected
    y = poison(shape.out(), dtype)
    kernels.stem_conv_forward(x.to(DEVICE), w.to(DEVICE), bias.to(DEVICE), y, shape.params, relu, scale)
    torch.testing.assert_close(y.cpu().double(), expected, rtol=4 * TOLERANCE[dtype], atol=8 * TOLERANCE[dtype])


def dequantized(
    total: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, counts: float
) -> Tensor:
    """Integer sums to values in float32, by NumPy; each product and its addition are rounded once."""
    sums = total.numpy().astype(np.float32).astype(np.float64)
    value = (sums * scale.numpy() + bias.numpy()).astype(np.float32)
    if residual is not None:
        value = (residual.numpy() * np.float64(np.float32(counts)) + value).astype(np.float32)
    return torch.from_numpy(np.where(relu & (value < 0), np.float32(0), value).astype(np.float32))


def rounded(value: Tensor) -> Tensor:
    return torch.from_numpy(np.rint(np.clip(value.numpy(), -128, 127)).astype(np.int8))


@HALF
@given(
    shapes(), st.sampled_from([torch.int8, torch.float16, torch.float32]), st.booleans(), st.booleans(),
    st.sampled_from([0, 1]),
)  # fmt: skip
def test_an_int8_convolution_has_the_bits_of_the_integer_reference(
    shape: Shape, dtype: torch.dtype, relu: bool, has_residual: bool, split_n: int
) -> None:
    rows, columns = shape.taps
    x = integers(shape.images, shape.height, shape.width, shape.channels, seed=shape.seed)
    w = integers(rows, columns, shape.outputs, shape.channels, seed=shape.seed + 1)
    scale = normal(shape.outputs, seed=shape.seed + 2).abs() / (5.0 * rows * columns * shape.channels**0.5)
    bias, residual = 20.0 * normal(shape.outputs, seed=4), integers(*shape.out(), seed=5)
    total = exact(x, w.permute(0, 1, 3, 2), shape)
    value = dequantized(total, scale, bias, residual if has_residual else None, relu, 0.6)
    expected = rounded(value) if dtype == torch.int8 else value.to(dtype)
    y = poison(shape.out(), dtype)
    tensors = (x.to(DEVICE), w.to(DEVICE), scale.to(DEVICE), bias.to(DEVICE))
    given_residual = residual.to(DEVICE) if has_residual else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "use_split_n", lambda architecture: split_n)
        kernels.conv_int8_forward(*tensors, given_residual, y, shape.params, relu, 0.6)
    assert torch.equal(y.cpu(), expected)


@HALF
@given(shapes(most_channels=3), st.sampled_from([torch.uint8, torch.int8, torch.float32]), st.booleans())
def test_a_first_int8_layer_has_the_bits_of_the_integer_reference(
    shape: Shape, given_dtype: torch.dtype, relu: bool
) -> None:
    rows, columns = shape.taps
    size = (shape.images, shape.height, shape.width, shape.channels)
    x, quantize = integers(*size, seed=shape.seed), 0.4983
    if given_dtype == torch.uint8:
        x = (x.int() + 128).to(torch.uint8)
    if given_dtype == torch.float32:
        x, quantize = normal(*size, seed=shape.seed), 60.0
    seen = x if given_dtype == torch.int8 else rounded(x.float() * torch.tensor(quantize))
    w = integers(shape.outputs, rows, columns, shape.channels, seed=shape.seed + 1)
    scale, bias = normal(shape.outputs, seed=2).abs() / 60.0, 50.0 * normal(shape.outputs, seed=3)
    expected = rounded(dequantized(exact(seen, w.permute(1, 2, 3, 0), shape), scale, bias, None, relu, 0.0))
    y = poison(shape.out(), torch.int8)
    tensors = (x.to(DEVICE), w.to(DEVICE), scale.to(DEVICE), bias.to(DEVICE))
    kernels.stem_conv_int8_forward(*tensors, y, shape.params, relu, quantize)
    assert torch.equal(y.cpu(), expected)


def fp8_runs() -> bool:
    return INTERPRETED or capability() >= (8, 9)


@pytest.mark.skipif(not fp8_runs(), reason="needs a GPU with fp8")
@HALF
@given(shapes(), st.booleans(), st.booleans(), st.booleans() if not INTERPRETED else st.just(False))
def test_an_fp8_convolution_is_that_of_float64(shape: Shape, relu: bool, has_residual: bool, fp8_out: bool) -> None:
    """Outputs in fp8 are for a GPU: the interpreter does not round to it as hardware does."""
    fp8 = torch.float8_e4m3fn
    rows, columns = shape.taps
    x = normal(shape.images, shape.height, shape.width, shape.channels, seed=shape.seed).to(fp8)
    w = normal(rows, columns, shape.outputs, shape.channels, seed=shape.seed + 1).to(fp8)
    scale = normal(shape.outputs, seed=2).abs() / (rows * columns * shape.channels) ** 0.5
    bias, residual = normal(shape.outputs, seed=3), normal(*shape.out(), seed=4).to(fp8)
    expected = exact(x.float(), w.float().permute(0, 1, 3, 2), shape) * scale.double() + bias.double()
    expected = expected + (residual.double() * 0.5 if has_residual else 0.0)
    expected = expected.relu() if relu else expected
    y = poison(shape.out(), fp8 if fp8_out else torch.float16)
    counts = 0.25 if fp8_out else 1.0
    tensors = (x.to(DEVICE), w.to(DEVICE), (scale / counts).to(DEVICE), (bias / counts).to(DEVICE))
    given_residual = residual.to(DEVICE) if has_residual else None
    kernels.conv_fp8_forward(*tensors, given_residual, y, shape.params, relu, 0.5 / counts)
    got = y.float().cpu().double() * counts
    torch.testing.assert_close(got, expected, rtol=0.07 if fp8_out else 4e-3, atol=0.01)


def test_a_nan_stays_one_and_int8_is_held_to_its_range() -> None:
    x, w = torch.ones(1, 2, 2, 16), torch.ones(1, 1, 16, 16)
    x[0, 0, 0, 3] = float("nan")
    y = poison((1, 2, 2, 16), torch.float32)
    kernels.conv_forward(x.to(DEVICE), w.to(DEVICE), torch.zeros(16, device=DEVICE), None, y, ConvParams(1, 1), True)
    assert y[0, 0, 0].isnan().all() and not y[0, 1:].isnan().any()
    many = torch.full((1, 1, 2, 32), 127, dtype=torch.int8)
    many[0, 0, 1] = -128
    filter = torch.full((1, 1, 16, 32), 127, dtype=torch.int8)
    out = poison((1, 1, 2, 16), torch.int8)
    ones, zeros = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    tensors = (many.to(DEVICE), filter.to(DEVICE), ones, zeros)
    kernels.conv_int8_forward(*tensors, None, out, ConvParams(1, 1), False, 1.0)
    assert (out[0, 0, 0] == 127).all() and (out[0, 0, 1] == -128).all()
    biases = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5, 1.5, -0.5] + [0.0] * 10)
    for relu in (False, True):
        tensors = (many.to(DEVICE), torch.zeros_like(filter).to(DEVICE), ones, biases.to(DEVICE))
        kernels.conv_int8_forward(
            *tensors, None, out, ConvParams(1, 1), relu, float("nan")
        )  # of no residual: not counted
        assert out[0, 0, 0].tolist() == [0, 127, 0 if relu else -128, 0, 2, 0] + [0] * 10


def test_nothing_is_written_beyond_a_tensor_that_is_not_aligned() -> None:
    memory = poison((1000,), torch.float16)
    y = memory[7 : 7 + 2 * 3 * 3 * 5].view(2, 3, 3, 5)
    x = normal(2 * 3 * 3 * 7 + 1, seed=0).half()[1:].view(2, 3, 3, 7)
    w = normal(3 * 3 * 7 * 5 + 3, seed=1).half()[3:].view(3, 3, 7, 5)
    shape = Shape(2, 3, 3, 7, 5, (3, 3), 1, (1, 1), 0)
    zeros = torch.zeros(5, device=DEVICE)
    kernels.conv_forward(x.to(DEVICE), w.to(DEVICE), zeros, None, y, shape.params, False)
    torch.testing.assert_close(y.cpu().double(), exact(x, w, shape), rtol=4e-3, atol=1e-2)
    assert memory[:7].isnan().all() and memory[7 + y.numel() :].isnan().all()
