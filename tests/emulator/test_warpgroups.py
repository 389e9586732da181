"""The layouts of `wgmma`'s operands, against the tables of the PTX ISA."""

from __future__ import annotations

import numpy as np
import pytest
from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.warpgroups import Descriptor, multiply, operand_addresses, to_floats


def test_a_descriptor_is_taken_apart() -> None:
    found = Descriptor.of(1 << 62 | 64 << 32 | 1 << 16 | 0x1234)
    assert found == Descriptor(start=0x12340, leading=16, stride=1024, width=128)
    with pytest.raises(PtxError, match="base offset"):
        Descriptor.of(1 << 49)


def test_without_a_swizzle_core_matrices_of_eight_rows_lie_apart_by_both_offsets() -> None:
    addresses = operand_addresses(Descriptor(0, 128, 256, 16), 16, "f16", False)[..., 0]
    assert addresses[0].tolist() == [*range(0, 16, 2), *range(128, 144, 2)]  # two core matrices along K
    assert addresses[1, 0] == 16 and addresses[8, 0] == 256


@pytest.mark.parametrize(("width", "pieces"), [(128, 8), (64, 4), (32, 2)])
def test_a_swizzle_exchanges_pieces_of_16_bytes_within_a_row(width: int, pieces: int) -> None:
    descriptor = Descriptor(0, 16, 8 * width, width)
    whole = descriptor.addresses(16, width)
    assert sorted(whole.reshape(-1).tolist()) == list(range(16 * width))
    assert (whole // width == np.arange(16)[:, None]).all()
    for row in range(16):
        number = row * width // 128 % pieces  # what the hardware takes of the address
        assert whole[row, 0] == row * width + 16 * number


def test_a_transposed_operand_has_its_rows_along_the_bytes() -> None:
    addresses = operand_addresses(Descriptor(0, 4096, 1024, 128), 64, "f16", True)
    assert addresses.shape == (64, 16, 2)
    assert addresses[0, 1, 0] == 128 + 16 and addresses[1, 0, 0] == 2 and addresses[0, 8, 0] == 1024
    with pytest.raises(PtxError, match="s8 cannot be transposed"):
        operand_addresses(Descriptor(0, 16, 1024, 128), 64, "s8", True)


@pytest.mark.parametrize("kind", ["f16", "s8"])
def test_a_product_is_numpys(kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = (24, 16) if kind == "f16" else (24, 32)
    b = rng.integers(-8, 8, shape)
    raw = b.astype(np.float16 if kind == "f16" else np.int8)
    assert (to_floats(raw.view(np.uint8).reshape(*shape, -1), kind) == b).all()
    a, dtype = rng.integers(-8, 8, (64, shape[1])).astype(float), np.float32 if kind == "f16" else np.int32
    before = [np.full(128, 3, dtype).view(np.uint32) for _ in range(12)]
    made = np.stack(multiply(a, b.astype(float), before, dtype), 1).view(dtype)
    expected = a @ b.T + 3
    lane, register = np.arange(128)[:, None], np.arange(12)[None, :]
    row = lane // 32 * 16 + lane % 32 // 4 + 8 * (register >> 1 & 1)
    column = register // 4 * 8 + lane % 4 * 2 + (register & 1)
    assert (made == expected[row, column]).all()
