"""Tensor memory and `tcgen05`: layouts against the tables of CUTLASS, small programs against NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from emulator.programs import execute, program
from emulator.tensor_programs import (
    A_AT,
    ALLOCATE,
    BARRIER,
    COMMIT,
    DEALLOCATE,
    OWN_LANES,
    REGISTERS,
    WAIT_LOADS,
    Case,
    run,
    stored,
    vector,
)
from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.tensor_memory import Product, fragment, matrix_descriptor

# Copy traits of CUTLASS: bits of a row, and (extents, strides in bits) of the thread and of the register, lowest first.
TRAITS = {
    "16x64b": (64, ((2, 512), (2, 32), (8, 64)), ()),
    "16x128b": (128, ((4, 32), (8, 128)), ((2, 1024),)),
    "16x256b": (256, ((4, 64), (8, 256)), ((2, 32), (2, 2048))),
}


def offset(number: int, modes: Sequence[tuple[int, int]]) -> int:
    """Where the number's part in each mode leads to."""
    total = 0
    for extent, stride in modes:
        total += number % extent * stride
        number //= extent
    return total


@pytest.mark.parametrize("shape", TRAITS)
def test_fragments_are_those_of_the_copy_traits(shape: str) -> None:
    row_bits, threads, registers = TRAITS[shape]
    count = int(np.prod([extent for extent, _ in registers])) if registers else 1
    lanes, columns = fragment(shape, 2, 0)
    assert lanes.shape == (32, 2 * count)
    for thread in range(32):
        for register in range(2 * count):
            bit = offset(thread, threads) + offset(register % count, registers)
            assert lanes[thread, register] == bit // row_bits
            assert columns[thread, register] == bit % row_bits // 32 + register // count * row_bits // 32


def test_a_fragment_covers_each_cell_once() -> None:
    for shape, rows, split in (("32x32b", 32, 0), ("16x32bx2", 16, 4), ("16x64b", 16, 0), ("16x256b", 16, 0)):
        lanes, columns = fragment(shape, 4, split)
        cells = {(int(lane), int(column)) for lane, column in zip(lanes.flat, columns.flat, strict=True)}
        assert len(cells) == lanes.size and {lane for lane, _ in cells} == set(range(rows))


def test_a_matrix_descriptor_is_taken_apart() -> None:
    found = matrix_descriptor(0x4000404000080123)  # 128-byte swizzle, as Triton makes it
    assert (found.start, found.leading, found.stride, found.width) == (0x1230, 128, 1024, 128)
    assert matrix_descriptor(0xC000401000000000).width == 32 and matrix_descriptor(1 << 46).width == 16
    for wrong in (0, 1 << 46 | 1 << 61, 1 << 46 | 1 << 49, 1 << 46 | 1 << 52, 1 << 46 | 1 << 15):
        with pytest.raises(PtxError, match="not known"):
            matrix_descriptor(wrong)


def test_an_instruction_descriptor_is_taken_apart() -> None:
    assert Product.of(0x8110010, "f16") == Product("f16", "f16", "f32", 128, 64, False, True, 1)
    assert Product.of(0x4080490, "f16") == Product("bf16", "bf16", "f32", 64, 32, False, False, 1)
    assert Product.of(0x8110010 | 1 << 13, "f16").sign == -1 and Product.of(0x8110010 | 3 << 13, "f16").sign == 1
    with pytest.raises(PtxError, match="not known"):
        Product.of(0x8110010 | 1 << 2, "f16")  # sparse
    with pytest.raises(PtxError, match="not known"):
        Product.of(0x8110010, "tf32")
    with pytest.raises(PtxError, match="not allowed"):
        Product.of(0x8110010 & ~(31 << 24) | 2 << 24, "f16")  # 32 rows


CASES = {
    "f16": Case(),
    "64 rows": Case(rows=64),
    "bf16": Case(code=1),
    "tf32": Case("tf32", 2, 4),
    "e4m3": Case("f8f6f4", 0, 1),
    "e5m2": Case("f8f6f4", 1, 1, rows=64),
    "negated": Case(negated=True),
    "float16 sums": Case(sums=0),
    "32-byte swizzle": Case(width=32),
    "A transposed": Case(transposed=(True, False)),
    "both transposed": Case(transposed=(True, True)),
    "both transposed, 32-byte swizzle": Case(transposed=(True, True), width=32),
    "both transposed, 64-byte swizzle": Case(transposed=(True, True), width=64),
    "both transposed, 128-byte swizzle": Case(transposed=(True, True), width=128),
    "both transposed, 8 bits": Case("f8f6f4", 0, 1, transposed=(True, True)),
    "both transposed, 8 bits, 128-byte swizzle": Case("f8f6f4", 0, 1, transposed=(True, True), width=128),
}


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("name", CASES)
def test_a_product_is_numpys(name: str, seed: int | None) -> None:
    case = CASES[name]
    made, expected = run(case.body(), case, seed)
    np.testing.assert_array_equal(made, expected)


def test_products_add_up_and_a_may_lie_in_tensor_memory() -> None:
    """The first product reads A from shared memory, the second the same A from tensor memory, through registers."""
    case, column = Case(), 16
    body = case.body()
    at = body.index("ld.shared.b32 %tm, [%base]") + 1
    body[at:at] = [
        "mul.lo.u32 %from, %tid, 16",  # a thread's row of A lies in two parts
        "add.s32 %from, %from, %base",
        *(f"ld.shared.b32 %d{n}, [%from+{A_AT + n // 4 * 2048 + n % 4 * 4}]" for n in range(8)),
        *OWN_LANES,
        f"add.s32 %mine, %mine, {column}",
        f"tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine], {vector(8)}",
        "tcgen05.wait::st.sync.aligned",
        BARRIER,
    ]
    at = body.index(COMMIT)
    body[at:at] = [
        f"add.s32 %from, %tm, {column}",
        "setp.eq.u32 %yes, %tid, %tid",
        f"@%first tcgen05.mma.cta_group::1.kind::f16 [%tm], [%from], %db, {case.instruction()}, %yes",
    ]
    made, expected = run(body, case)
    np.testing.assert_array_equal(made, 2 * expected)


ROUND_TRIPS = {"32x32b.x8": 8, "16x32bx2.x4": 4, "16x64b.x4": 4, "16x128b.x2": 4, "16x256b.x1": 4}  # registers


@pytest.mark.parametrize("shape", ROUND_TRIPS)
def test_what_is_stored_in_a_shape_lies_where_its_fragment_says(shape: str) -> None:
    count, split = ROUND_TRIPS[shape], ", 4" if "x2." in shape else ""
    store = f"tcgen05.st.sync.aligned.{shape}.b32 [%mine]{split}, {vector(count)}"
    body = [
        *ALLOCATE,
        BARRIER,
        "ld.shared.b32 %tm, [%base]",
        *OWN_LANES,
        *(f"mad.lo.u32 %d{n}, %tid, 64, {n}" for n in range(count)),
        store,
        *([] if shape.startswith("32") else ["add.s32 %mine, %mine, 1048576", store]),  # from lane 16 on
        "tcgen05.wait::st.sync.aligned",
        *OWN_LANES,
        f"tcgen05.ld.sync.aligned.32x32b.x8.b32 {vector(8, 16)}, [%mine]",
        WAIT_LOADS,
        *(f"mov.b32 %d{n}, %d{n + 16}" for n in range(8)),
        *stored(8, 0),
        BARRIER,
        DEALLOCATE,
    ]
    (made,) = execute(program(body, REGISTERS, 1, 128), [], [np.zeros((128, 8), np.uint32)])
    lanes, columns = fragment(shape.split(".", maxsplit=1)[0], int(shape.rsplit("x", maxsplit=1)[-1]), 4)
    expected = np.zeros((4, 32, 8), np.uint32)
    thread = np.arange(32)[:, None]
    for warp in range(4):
        for half in (0,) if shape.startswith("32") else (0, 16):
            expected[warp, lanes + half, columns] = (32 * warp + thread) * 64 + np.arange(count)
    np.testing.assert_array_equal(made, expected.reshape(128, 8))


def test_halves_are_packed_and_rows_are_reduced() -> None:
    numbers = np.array([3.0, -7.0, 9.0, 0.5], np.float32).view(np.uint32)
    body = [
        *ALLOCATE,
        BARRIER,
        "ld.shared.b32 %tm, [%base]",
        *OWN_LANES,
        *(f"mov.b32 %d{n}, {bits}" for n, bits in enumerate(numbers)),
        "mov.b32 %d4, 0x22221111",
        f"tcgen05.st.sync.aligned.32x32b.x4.b32 [%mine], {vector(4)}",
        "tcgen05.st.sync.aligned.32x32b.x1.unpack::16b.b32 [%mine+8], {%d4}",
        "tcgen05.wait::st.sync.aligned",
        f"tcgen05.ld.red.sync.aligned.32x32b.x4.max.f32 {vector(4, 8)}, {{%d0}}, [%mine]",
        f"tcgen05.ld.red.sync.aligned.32x32b.x4.min.f32 {vector(4, 12)}, {{%d1}}, [%mine]",
        "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%d2, %d3}, [%mine+8]",
        "tcgen05.ld.sync.aligned.32x32b.x1.pack::16b.b32 {%d4}, [%mine+8]",
        WAIT_LOADS,
        *stored(5, 0),
        BARRIER,
        DEALLOCATE,
    ]
    (made,) = execute(program(body, REGISTERS, 1, 128), [], [np.zeros((128, 5), np.uint32)])
    assert (made[:, :2].copy().view(np.float32) == [9, -7]).all()
    assert (made[:, 2:] == [0x1111, 0x2222, 0x22221111]).all()
