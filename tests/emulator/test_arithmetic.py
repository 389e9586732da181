"""Against Python's exact fractions and integers, torch's conversions, and answers worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from vae_edge_kernels.emulator import arithmetic as ar

RNG = np.random.default_rng(1)


def test_a_fused_product_and_sum_is_rounded_once() -> None:
    a, b = RNG.standard_normal((2, 4000)).astype(np.float32)
    c = (-(a.astype(np.float64) * b) * (1 + RNG.choice([0, 2.0**-24, 2.0**-40], 4000))).astype(np.float32)
    got = ar.fused_multiply_add(a, b, c, np.float32)
    for x, y, z, result in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(result)) - exact)
        for other in (np.nextafter(result, np.float32(np.inf)), np.nextafter(result, np.float32(-np.inf))):
            assert error <= abs(Fraction(float(other)) - exact)


def test_a_tie_of_the_double_rounding_goes_the_right_way() -> None:
    one = np.array([1.0], np.float32)  # 1 + 2^-24 + 2^-60: above the tie, so up; float64 alone would fall on the tie
    tie = np.array([1 + 2.0**-12], np.float32), np.array([2.0**-12], np.float32)
    exact = ar.fused_multiply_add(tie[0], tie[1], one, np.float32)
    assert exact[0] == np.float32(float(Fraction(1) + Fraction(1, 2**12) + Fraction(1, 2**24)))
    tiny = np.array([2.0**-60], np.float32)
    assert ar.fused_multiply_add(tiny, one, np.array([1.0], np.float32), np.float32)[0] == 1


def test_conversions_are_those_of_torch() -> None:
    x = np.concatenate([RNG.standard_normal(4000) * 10.0 ** RNG.integers(-4, 4, 4000), [0.0, -0.0]]).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(ar.to_bf16(x), expected)
    held = np.clip(x, -448, 448)
    e4m3 = torch.from_numpy(held).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(ar.to_e4m3(x), e4m3)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    np.testing.assert_array_equal(ar.E4M3_VALUES, values)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int16, np.int64])
def test_integers_divide_and_multiply_as_in_c(dtype: type) -> None:
    limits = np.iinfo(dtype)
    a, b = RNG.integers(limits.min, limits.max, (2, 500), dtype=dtype)
    b[:250] = RNG.integers(1, 9, 250)
    a, b = a[b != 0], b[b != 0]
    quotient = [abs(int(x)) // abs(int(y)) * (-1 if (x < 0) != (y < 0) else 1) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(ar.divide(a, b), np.array(quotient, dtype))
    rest = [int(x) - q * int(y) for x, y, q in zip(a, b, quotient, strict=True)]
    np.testing.assert_array_equal(ar.remainder(a, b), np.array(rest, dtype))
    bits = a.dtype.itemsize * 8
    high = np.array([(int(x) * int(y)) >> bits for x, y in zip(a, b, strict=True)], dtype)
    np.testing.assert_array_equal(ar.multiply_high(a, b), high)


def test_bits_are_those_worked_out_by_hand() -> None:
    def u(*values: int) -> np.ndarray:
        return np.array(values, np.uint32)

    a, b = u(0x33221180), u(0x77665544)
    assert ar.permute_bytes(a, b, u(0x7770))[0] == 0x77777780
    assert ar.permute_bytes(a, b, u(0x0008))[0] == 0x808080FF
    assert ar.extract_bits(u(0xABCD), u(4), u(8))[0] == 0xBC
    assert ar.extract_bits(u(0xABCD).view(np.int32), u(4), u(8))[0] == -0x44
    assert ar.shift_left(u(1), u(32))[0] == 0
    assert ar.shift_right(u(0x80000000).view(np.int32), u(40))[0] == -1
    assert ar.lop3(u(0xF0), u(0xCC), u(0xAA), u(0x96))[0] == 0x96
    assert ar.funnel_shift(u(0x11111111), u(0x22222222), u(8), left=True, wrap=True)[0] == 0x22222211
    assert ar.dp4a(u(0xFF020304), u(0x01010101), u(10), np.int8, np.int8)[0] == 18


def test_floats_become_integers_saturated() -> None:
    x = np.array([2.5, -2.5, 1e10, -1e10, np.nan, np.inf], np.float32)
    assert ar.float_to_integer(x, np.int16, "rzi").tolist() == [2, -2, 32767, -32768, 0, 32767]
    assert ar.float_to_integer(x[:2], np.int32, "rni").tolist() == [2, -2]
    assert ar.float_to_integer(x[:2], np.int32, "rmi").tolist() == [2, -3]


def test_comparisons_with_nan() -> None:
    a, b = np.array([1.0, np.nan], np.float32), np.array([2.0, 2.0], np.float32)
    expected = {"lt": [1, 0], "ltu": [1, 1], "ne": [1, 0], "neu": [1, 1], "num": [1, 0], "nan": [0, 1], "gtu": [0, 1]}
    for name, answer in expected.items():
        assert ar.compare(name, a, b).tolist() == [bool(value) for value in answer], name
