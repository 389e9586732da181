"""Against loops over the formulas of the PTX ISA, lane by lane."""

from __future__ import annotations

import numpy as np
import pytest
from vae_edge_kernels.emulator import warps

RNG = np.random.default_rng(2)
ELEMENTS = {"f16": (np.float16, 2), "s8": (np.int8, 4), "u8": (np.uint8, 4)}


@pytest.mark.parametrize("kind", sorted(ELEMENTS))
def test_the_product_of_fragments_is_that_of_the_matrices(kind: str) -> None:
    dtype, width = ELEMENTS[kind]
    k = width * 8
    a, b = RNG.integers(0, 100, (16, k)).astype(dtype), RNG.integers(0, 100, (k, 8)).astype(dtype)
    total = np.int32 if kind != "f16" else np.float32
    c = RNG.integers(-50, 50, (16, 8)).astype(total)
    # Element i of a thread's A, B and C: the formulas of the ISA, one lane at a time.
    pack_a, pack_b, pack_c = (
        np.zeros((n, 32, w), t) for n, w, t in ((4, width, dtype), (2, width, dtype), (4, 1, total))
    )
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(4 * width):
            row = group + (8 if (i // width) % 2 else 0)
            pack_a[i // width, lane, i % width] = a[row, thread * width + i % width + (k // 2 if i >= 2 * width else 0)]
        for i in range(2 * width):
            pack_b[i // width, lane, i % width] = b[thread * width + i % width + (k // 2 if i >= width else 0), group]
        for i in range(4):
            pack_c[i, lane, 0] = c[group + (8 if i >= 2 else 0), thread * 2 + i % 2]
    registers = [[part.reshape(-1).view(np.uint32) for part in pack] for pack in (pack_a, pack_b, pack_c)]
    d = warps.multiply_matrices(*registers, kind, total, False)
    expected = a.astype(np.int64) @ b.astype(np.int64) + c
    for lane in range(32):
        for i in range(4):
            assert d[i].view(total)[lane] == expected[lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2]


@pytest.mark.parametrize("mode, control", [("bfly", 31), ("idx", 31), ("down", 31), ("up", 0), ("bfly", 31 | 16 << 8)])
def test_a_shuffle_takes_the_lane_of_the_isa(mode: str, control: int) -> None:
    value = np.arange(32, dtype=np.uint32) + 100
    for distance in (0, 1, 5, 16):
        got, valid = warps.shuffle(mode, value, np.full(32, distance, np.uint32), np.full(32, control, np.uint32))
        for lane in range(32):
            segment, clamp = control >> 8 & 31, control & 31
            last = (lane & segment) | (clamp & ~segment)
            source = {"bfly": lane ^ distance, "down": lane + distance, "up": lane - distance}.get(
                mode, (lane & segment) | (distance & ~segment)
            )
            inside = source >= last if mode == "up" else source <= last
            assert bool(valid[lane]) == inside
            assert got[lane] == value[source if inside else lane]


def test_a_reduction_stays_within_its_warp() -> None:
    value = RNG.integers(-1000, 1000, 64).astype(np.int32)
    expected = np.repeat(value.reshape(2, 32).sum(1), 32)
    np.testing.assert_array_equal(warps.reduce_warp("add", value), expected)
