"""The convolutions, the rotation and the heads as operators: schemas, fakes, and refusals that name the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.conv import conv, conv_fp8, conv_int8, stem_conv, stem_conv_int8
from vae_edge.ops.heads import avg_pool, reconstruction_error
from vae_edge.ops.rotate import rotate, rotate_pixels

OPS = torch.ops.vae_edge
FP8 = torch.float8_e4m3fn


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


EIGHT = (floats(4).abs(), floats(4), None, 1, 1, 1, True, 0.5)
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "conv": (
        OPS.conv,
        (floats(2, 5, 4, 3), floats(3, 3, 3, 4), floats(4), floats(2, 5, 4, 4), 1, 1, 1, True),
    ),
    "conv without residual": (
        OPS.conv,
        (floats(2, 5, 4, 3).half(), floats(1, 1, 3, 4).half(), floats(4), None, 1, 0, 0, False),
    ),
    "stem_conv": (
        OPS.stem_conv,
        (whole(2, 5, 4, 1).view(torch.uint8), floats(3, 3, 1, 4).half(), floats(4), 2, 1, 1, True, 1 / 255),
    ),
    "conv_int8": (OPS.conv_int8, (whole(2, 5, 4, 3), whole(3, 3, 4, 3), *EIGHT, torch.int8)),
    "conv_int8 to half": (OPS.conv_int8, (whole(2, 5, 4, 3), whole(3, 3, 4, 3), *EIGHT, torch.float16)),
    "stem_conv_int8": (
        OPS.stem_conv_int8,
        (floats(2, 5, 4, 1), whole(4, 3, 3, 1), floats(4).abs(), floats(4), 1, 1, 1, True, 50.0),
    ),
    "conv_fp8": (
        OPS.conv_fp8,
        (floats(2, 5, 4, 3).to(FP8), floats(3, 3, 4, 3).to(FP8), *EIGHT, torch.float16),
    ),
    "rotate_pixels": (
        OPS.rotate_pixels,
        (
            whole(2, 6, 6, 3).view(torch.uint8),
            floats(2).cos(),
            floats(2).sin(),
            1 / 255,
            0.5,
            True,
            torch.int8,
            127.0,
            0.01,
        ),
    ),
    "avg_pool": (OPS.avg_pool, (whole(2, 5, 4, 3), 0.5)),
    "reconstruction_error": (
        OPS.reconstruction_error,
        (floats(2, 2, 2, 16), floats(2, 7, 7, 1).sigmoid(), floats(2, 2), floats(1), 4),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_passes_opcheck(name: str) -> None:
    operator, arguments = CALLS[name]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    if FP8 in (argument.dtype for argument in arguments if isinstance(argument, Tensor)):
        checks = checks[1:3]  # the others compute with copies of the arguments, which PyTorch cannot for fp8
    torch.library.opcheck(operator.default, arguments, test_utils=checks)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 5]), st.integers(1, 2), st.integers(0, 2),
    st.booleans(),
)  # fmt: skip
def test_a_convolution_is_that_of_pytorch(
    channels: int, outputs: int, taps: int, stride: int, pad: int, relu: bool
) -> None:
    x, weight, bias = floats(2, 6, 7, channels), floats(taps, taps, channels, outputs, seed=1), floats(outputs, seed=2)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(3, 2, 0, 1), bias, stride, pad).permute(0, 2, 3, 1)
    got = conv(x, weight, bias, None, stride, (pad, pad), relu)
    torch.testing.assert_close(got, expected.relu() if relu else expected)


def test_an_int8_convolution_of_scaled_numbers_is_near_that_of_the_numbers() -> None:
    x, weight, bias = floats(2, 6, 6, 16), floats(3, 3, 16, 8, seed=1) / 12, floats(8, seed=2)
    x_scale, w_scale = x.abs().max() / 127, weight.abs().amax((0, 1, 2)) / 127
    rounded = (weight / w_scale).round().to(torch.int8).permute(0, 1, 3, 2).contiguous()
    got = conv_int8(
        (x / x_scale).round().to(torch.int8),
        rounded,
        x_scale * w_scale,
        bias,
        None,
        1,
        (1, 1),
        True,
        dtype=torch.float32,
    )
    expected = conv(x, weight, bias, None, 1, (1, 1), True)
    assert (got - expected).abs().max() < 0.05
    integers = (x / x_scale).round().to(torch.int8)
    bytes_out = conv_int8(integers, rounded, x_scale * w_scale / 0.03, bias / 0.03, None, 1, (1, 1), True)
    assert torch.equal(bytes_out, (got / 0.03).clamp(-128, 127).round().to(torch.int8))


def test_pixels_are_turned_counter_clockwise_as_displayed() -> None:
    image = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    image[0, 13:15, 20:27] = 255  # a stroke to the right
    quarter = torch.tensor([torch.pi / 2])
    turned = rotate_pixels(image, quarter.cos(), quarter.sin(), dtype=torch.float32)
    assert turned[0, 1:8, 13:15].min() > 0.99 and turned.sum() == pytest.approx(14, abs=1e-3)  # now it points up
    angle = floats(3)
    images = whole(3, 28, 28, 3).view(torch.uint8)
    expected = rotate((images.float() / 255).permute(0, 3, 1, 2), angle.cos(), angle.sin(), 0.25).permute(0, 2, 3, 1)
    got = rotate_pixels(images, angle.cos(), angle.sin(), fill=0.25, dtype=torch.float32)
    torch.testing.assert_close(got, expected)


X, W, B = floats(1, 4, 4, 3), floats(3, 3, 3, 4), floats(4)
I, V = whole(1, 4, 4, 3), whole(3, 3, 4, 3)
S = floats(4).abs()
COS = torch.ones(1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: conv(X[0], W, B), r"conv expects x as \[N, H, W, C\]; got shape \[4, 4, 3\]"),
        (lambda: conv(X.double(), W, B), "conv expects x in float32 or float16 or bfloat16; got float64"),
        (lambda: conv(X, W.half(), B), "conv expects weight in float32; got float16"),
        (lambda: conv(X, W[:, :, :2], B), r"weight of shape \[R, S, 3, K\]; got \[3, 3, 2, 4\]"),
        (lambda: conv(X, W, B[:2]), r"conv expects bias of shape \[4\]; got \[2\]"),
        (lambda: conv(X, W, B, X), r"conv expects residual of shape \[1, 2, 2, 4\]"),
        (lambda: conv(X, W, B, None, 0), "conv expects stride of at least 1; got 0"),
        (lambda: conv(X, W, B, None, 1, (-1, 0)), "padding of at least 0; got -1 and 0"),
        (lambda: conv(X[:, :2], W, B), "at least as large as its filter"),
        (lambda: conv(X, W.to("meta"), B), "all tensors on one device; weight is on meta"),
        (lambda: stem_conv(floats(1, 9, 9, 15), floats(3, 3, 15, 4), B), r"at most 128; got 3 · 3 · 15"),
        (lambda: conv_int8(X, V, S, B), "conv_int8 expects x in int8; got float32"),
        (lambda: conv_int8(I, V, S[:3], B), r"conv_int8 expects scale of shape \[4\]; got \[3\]"),
        (lambda: conv_int8(I, V, S, B, dtype=torch.int32), "gives int8, float16 or float32"),
        (lambda: stem_conv_int8(I, whole(4, 3, 3, 2), S, B), r"weight of shape \[K, R, S, 3\]"),
        (lambda: conv_fp8(I, V, S, B), "conv_fp8 expects x in float8_e4m3fn; got int8"),
        (lambda: rotate_pixels(X, COS, COS, dtype=torch.int32), "rotate_pixels gives float16"),
        (lambda: rotate_pixels(X[0], COS, COS), "rotate_pixels expects x as"),
        (lambda: rotate_pixels(torch.zeros(1, 1, 1, (1 << 20) + 1), COS, COS), "at most 1,048,576 elements in a row"),
        (lambda: rotate_pixels(X, floats(2), COS), r"rotate_pixels expects cos of shape \[1\]; got \[2\]"),
        (lambda: avg_pool(X[0], 1.0), "avg_pool expects x as"),
        (lambda: reconstruction_error(X, X, floats(1, 2), B, 4), "reconstruction_error expects decoded of shape"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: Any, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        call()
