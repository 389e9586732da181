"""The formats of floats, of the emulator and of its references, against those of torch and of C.

The instructions themselves are held against references in `test_instructions`.
"""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from emulator import exact
from vae_edge_kernels.emulator import arithmetic as ar

RNG = np.random.default_rng(1)
X = np.concatenate([RNG.standard_normal(4000) * 10.0 ** RNG.integers(-4, 4, 4000), [0.0, -0.0]]).astype(np.float32)


def test_conversions_are_those_of_torch() -> None:
    expected = torch.from_numpy(X).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(ar.to_bf16(X), expected)
    held = np.clip(X, -448, 448)
    e4m3 = torch.from_numpy(held).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(ar.to_e4m3(X), e4m3)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    np.testing.assert_array_equal(ar.E4M3_VALUES, values)


def test_the_references_of_narrow_formats_are_those_of_torch() -> None:
    held = torch.from_numpy(np.clip(X, -448, 448))
    for dtype, form in ((torch.bfloat16, exact.BF16), (torch.float8_e4m3fn, exact.E4M3)):
        bits = held.to(dtype).view(torch.int16 if form.width == 16 else torch.uint8).numpy()
        for x, wanted in zip(held.tolist(), bits.tolist(), strict=True):
            assert exact.bits_of(Fraction(x) if x else x, form) == wanted % (1 << form.width)


@pytest.mark.parametrize(("code", "form"), [("e", exact.F16), ("f", exact.F32), ("d", exact.F64)])
def test_the_references_of_ieee_formats_are_those_of_struct(code: str, form: exact.Format) -> None:
    rng = random.Random(code)
    for _ in range(4000):
        bits = rng.getrandbits(form.width)
        (value,) = struct.unpack(f"<{code}", bits.to_bytes(form.width // 8, "little"))
        mine = exact.number(bits, form)
        assert float(mine) == value or (math.isnan(mine) and math.isnan(value))
        if not math.isnan(value):
            assert exact.bits_of(mine, form) == bits
        x = math.ldexp(rng.uniform(-1, 1), rng.randint(-30, 15))
        rounded = int.from_bytes(struct.pack(f"<{code}", x), "little")
        assert exact.bits_of(Fraction(x), form) == rounded
