"""Instructions of whole warps, in programs, against loops over lanes and registers after the text of the PTX ISA."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from emulator import exact
from emulator.programs import Array, element, execute, program
from emulator.references import read, reference
from vae_edge_kernels.emulator.errors import PtxError

LANES, THREADS = 32, 64  # two warps, so that they can be mixed up


def of_registers(
    body: list[str], inputs: list[list[int]], results: int, extra: tuple[str, ...] = ()
) -> list[list[int]]:
    """Run statements on the 32-bit registers `%i<n>`, given by thread; what the registers `%o<n>` hold at the end."""
    registers = ["b64 %place", f"b32 %i<{len(inputs)}>", f"b32 %o<{results}>", *extra]
    loads = [line for n in range(len(inputs)) for line in (*element("%place", n, 4), f"ld.global.b32 %i{n}, [%place]")]
    stores = [
        line
        for n in range(results)
        for line in (*element("%place", len(inputs) + n, 4), f"st.global.b32 [%place], %o{n}")
    ]
    text = program([*loads, *body, *stores], registers, len(inputs) + results, THREADS)
    arrays: list[Array] = [np.array(column, np.uint32) for column in inputs]
    made = execute(text, arrays, [np.zeros(THREADS, np.uint32) for _ in range(results)])
    return [[int(value) for value in column] for column in made]


# ------------------------------------------------------------------------------------------------------ shuffles


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The source lane and whether it is in range: the ISA's pseudocode."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    last = (lane & segment) | (clamp & ~segment)
    first = lane & segment
    if mode == "up":
        source, valid = lane - b, lane - b >= last
    else:
        source = {"down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~segment)}[mode]
        valid = source <= last
    return (source if valid else lane), valid


# What Triton emits (31, and 0 for `up`), and the segments of CUDA's `width`.
CONTROLS = [(mode, (32 - width) << 8 | (0 if mode == "up" else 31)) for mode in ("bfly", "idx", "up", "down")
            for width in (32, 16, 8, 4, 2)]  # fmt: skip


@pytest.mark.parametrize(("mode", "control"), CONTROLS)
def test_a_shuffle_takes_the_lane_of_the_isa(mode: str, control: int) -> None:
    rng = random.Random(control)
    values = [rng.getrandbits(32) for _ in range(THREADS)]
    offsets = [[n] * THREADS for n in range(34)]
    if mode in ("idx", "bfly"):  # each lane may ask for another one
        offsets.append([rng.randrange(40) for _ in range(THREADS)])
    body = []
    for n in range(len(offsets)):
        body += [f"shfl.sync.{mode}.b32 %o{2 * n}|%p0, %i0, %i{n + 1}, {control}, -1"]
        body += [f"selp.b32 %o{2 * n + 1}, 1, 0, %p0"]
    made = of_registers(body, [values, *offsets], 2 * len(offsets), ("pred %p<1>",))
    for n, column in enumerate(offsets):
        for thread in range(THREADS):
            source, valid = shuffled(mode, thread % LANES, column[thread], control)
            assert made[2 * n][thread] == values[thread // LANES * LANES + source], (column[thread], thread)
            assert made[2 * n + 1][thread] == valid, (column[thread], thread)


def test_an_immediate_distance_and_control() -> None:
    values = list(range(100, 100 + THREADS))
    (made,) = of_registers(["shfl.sync.bfly.b32 %o0, %i0, 16, 31, -1"], [values], 1)
    assert made == [100 + (thread ^ 16) for thread in range(THREADS)]
    with pytest.raises(PtxError, match="whole warps alone"):
        of_registers(["shfl.sync.bfly.b32 %o0, %i0, 16, 31, 65535"], [values], 1)


REDUCTIONS: dict[str, Callable[[int, int], int]] = {
    **{f"add.{kind}": lambda a, b: a + b for kind in ("u32", "s32")},
    **{f"min.{kind}": min for kind in ("u32", "s32")},
    **{f"max.{kind}": max for kind in ("u32", "s32")},
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_a_reduction_stays_within_its_warp(name: str) -> None:
    rng = random.Random(name)
    kind = name.split(".")[1]
    sparse = [0xFFFFFFFF ^ 1 << rng.randrange(32) for _ in range(THREADS)]
    many = [rng.getrandbits(32) for _ in range(THREADS)]
    for values in (many, sparse, [1 << rng.randrange(32) for _ in range(THREADS)]):
        (made,) = of_registers([f"redux.sync.{name} %o0, %i0, -1"], [values], 1)
        for warp in range(2):
            mine = [read(kind, value) for value in values[32 * warp : 32 * warp + 32]]
            total = mine[0]
            for value in mine[1:]:
                total = REDUCTIONS[name](total, value)
            assert made[32 * warp : 32 * warp + 32] == [total & 0xFFFFFFFF] * 32


@pytest.mark.parametrize("name", ["min", "max", "min.NaN", "max.NaN"])
def test_floats_are_reduced_as_min_and_max_do(name: str) -> None:
    rng = random.Random(name)
    special = [0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000]
    pairwise = reference(f"{name}.f32")
    assert pairwise is not None
    for values in (
        [rng.getrandbits(32) for _ in range(THREADS)],
        [rng.choice(special[:2]) for _ in range(THREADS)],
        [rng.choice(special) for _ in range(THREADS)],
    ):
        (made,) = of_registers([f"redux.sync.{name}.f32 %o0, %i0, -1"], [values], 1)
        for warp in range(2):
            total = values[32 * warp]
            for value in values[32 * warp + 1 : 32 * warp + 32]:
                total = int(pairwise.compute(total, value))
            assert made[32 * warp : 32 * warp + 32] == [total] * 32


# ------------------------------------------------------------------------------------------- products of matrices

Layout = Callable[[int, int, int], tuple[int, int]]


def a_of_16(group: int, thread: int, i: int) -> tuple[int, int]:
    """Row and column of element i of A, m16n8k16."""
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (0 if i < 4 else 8)


def b_of_16(group: int, thread: int, i: int) -> tuple[int, int]:
    return thread * 2 + (i & 1) + (0 if i < 2 else 8), group


def a_of_8(group: int, thread: int, i: int) -> tuple[int, int]:
    """m16n8k8 of tf32."""
    return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)


def b_of_8(group: int, thread: int, i: int) -> tuple[int, int]:
    return (thread if i == 0 else thread + 4), group


def a_of_32(group: int, thread: int, i: int) -> tuple[int, int]:
    """m16n8k32 of 8 bits."""
    row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (0 if i < 8 else 16)


def b_of_32(group: int, thread: int, i: int) -> tuple[int, int]:
    return thread * 4 + (i & 3) + (0 if i < 4 else 16), group


def accumulator(group: int, thread: int, i: int) -> tuple[int, int]:
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


LAYOUTS: dict[int, tuple[Layout, Layout]] = {16: (a_of_16, b_of_16), 8: (a_of_8, b_of_8), 32: (a_of_32, b_of_32)}
# K, bits of an element, and its opcode behind "mma.sync.aligned.m16n8k<K>.row.col".
PRODUCTS = {
    "f16": (16, 16, "f32.f16.f16.f32"),
    "bf16": (16, 16, "f32.bf16.bf16.f32"),
    "tf32": (8, 32, "f32.tf32.tf32.f32"),
    "e4m3": (32, 8, "f32.e4m3.e4m3.f32"),
    "s8": (32, 8, "s32.s8.s8.s32"),
    "s8.satfinite": (32, 8, "satfinite.s32.s8.s8.s32"),
    "u8": (32, 8, "s32.u8.u8.s32"),
    "u8.satfinite": (32, 8, "satfinite.s32.u8.u8.s32"),
}
Matrix = list[list[int]]


def distributed(matrices: list[Matrix], layout: Layout, count: int, bits: int) -> list[list[int]]:
    """The registers of all threads: `count` elements each, the first in the lowest bits."""
    per = 32 // bits
    registers = [[0] * THREADS for _ in range(count // per)]
    for thread in range(THREADS):
        for i in range(count):
            row, column = layout(thread % LANES // 4, thread % 4, i)
            registers[i // per][thread] |= matrices[thread // LANES][row][column] << bits * (i % per)
    return registers


def form_of(kind: str) -> exact.Format:
    return exact.TF32 if kind == "tf32" else exact.FORMATS[kind]


def element_of(rng: random.Random, kind: str) -> int:
    """Bits of a finite element, near enough to 1 that float64 holds every sum exactly."""
    if kind in ("s8", "u8"):
        return rng.choice((rng.getrandbits(8), 0x80, 0x7F, 0xFF, 0))
    if kind == "e4m3":
        return rng.choice([code for code in range(256) if code & 127 != 127])
    form = form_of(kind)
    bias = (1 << (form.exponent_bits - 1)) - 1
    bits = rng.getrandbits(1) << form.exponent_bits | bias + rng.randint(-4, 4)
    bits = bits << form.fraction_bits | rng.getrandbits(form.fraction_bits)
    return bits << 13 | rng.getrandbits(13) if kind == "tf32" else bits  # which the matrix units drop


def meaning(kind: str, bits: int) -> exact.Number:
    if kind in ("s8", "u8"):
        return Fraction(bits - 256 * (kind == "s8" and bits > 127)) or 0.0
    return exact.number(bits >> 13 if kind == "tf32" else bits, form_of(kind))


def entry(name: str, row: list[int], column: list[int], before: int) -> int:
    """Bits of an element of D = A · B + C: the exact sum, rounded once."""
    kind, _, saturated = name.partition(".")
    integers = kind in ("s8", "u8")
    total: exact.Number = (Fraction(read("s32", before)) or 0.0) if integers else exact.number(before, exact.F32)
    for x, y in zip(row, column, strict=True):
        total = exact.add(total, exact.multiply(meaning(kind, x), meaning(kind, y)))
    if not integers:
        return exact.bits_of(total, exact.F32)
    whole = int(total)
    return (max(-(2**31), min(2**31 - 1, whole)) if saturated else whole) & 0xFFFFFFFF


def multiplied(name: str, a: list[Matrix], b: list[Matrix], c: list[Matrix]) -> list[list[int]]:
    """The four registers of D of all threads."""
    k, bits, opcode = PRODUCTS[name]
    inputs = [
        *distributed(a, LAYOUTS[k][0], 128 // bits, bits),
        *distributed(b, LAYOUTS[k][1], 64 // bits, bits),
        *distributed(c, accumulator, 4, 32),
    ]
    vectors = [f"{{{', '.join(f'%i{n}' for n in part)}}}" for part in (range(4), range(4, 6), range(6, 10))]
    body = [f"mma.sync.aligned.m16n8k{k}.row.col.{opcode} {{%o0, %o1, %o2, %o3}}, {', '.join(vectors)}"]
    return of_registers(body, inputs, 4)


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_the_product_of_fragments_is_that_of_the_matrices(name: str) -> None:
    rng = random.Random(name)
    k, kind = PRODUCTS[name][0], name.partition(".")[0]
    for extreme in (False, True):
        a, b = (
            [[[element_of(rng, kind) for _ in range(columns)] for _ in range(rows)] for _ in range(2)]
            for rows, columns in ((16, k), (k, 8))
        )
        c = [
            [[element_of(rng, "f32") if kind not in ("s8", "u8") else rng.getrandbits(20) for _ in range(8)]
             for _ in range(16)]
            for _ in range(2)
        ]  # fmt: skip
        if extreme and kind in ("s8", "u8"):
            ends = (0x7FFFFFFF, 0x80000000, 0x7FFF0000, 0x8000FFFF)
            c = [[[rng.choice(ends) for _ in range(8)] for _ in range(16)] for _ in range(2)]
        elif extreme:  # an infinity and a NaN in one row and one column each
            unit = 13 if kind == "tf32" else 0
            infinity, nan = form_of(kind).infinity << unit, form_of(kind).nan << unit  # of e4m3 both are NaN
            a[0][3][1], a[1][5][k - 1], b[0][2][4], b[1][0][7] = infinity, nan, nan, infinity
        made = multiplied(name, a, b, c)
        for thread in range(THREADS):
            warp = thread // LANES
            for i in range(4):
                row, column = accumulator(thread % LANES // 4, thread % 4, i)
                wanted = entry(name, a[warp][row], [line[column] for line in b[warp]], c[warp][row][column])
                got = made[i][thread]
                numbers = [exact.number(bits, exact.F32) for bits in (got, wanted)]
                nans = kind not in ("s8", "u8") and all(exact.is_nan(x) for x in numbers)
                assert got == wanted or nans, f"row {row}, column {column}: {got:#x} came, {wanted:#x} holds"


@pytest.mark.parametrize(
    "opcode",
    [
        "m16n8k8.row.col.f32.f16.f16.f32",
        "m16n8k16.row.col.f16.f16.f16.f16",
        "m16n8k32.row.col.s32.s8.u8.s32",
        "m16n8k32.row.col.f32.e5m2.e5m2.f32",
    ],
)
def test_a_product_that_is_not_known_is_refused(opcode: str) -> None:
    body = [f"mma.sync.aligned.{opcode} {{%o0, %o1, %o2, %o3}}, {{%i0, %i0, %i0, %i0}}, {{%i0, %i0}}, "
            "{%i0, %i0, %i0, %i0}"]  # fmt: skip
    with pytest.raises(PtxError, match=r"mma\.sync"):
        of_registers(body, [[0] * THREADS], 4)


# ------------------------------------------------------------------------------------- matrices in shared memory

ROWS = 80  # of 16 bytes, in shared memory, of each warp
CASES = [(count, transposed) for count in (1, 2, 4) for transposed in (False, True)]


def places(rng: random.Random, count: int) -> list[int]:
    """Bytes of shared memory that the lanes point at; those of lanes that are not asked are nowhere."""
    found = []
    for warp in range(2):
        rows = rng.sample(range(ROWS), 8 * count)
        found += [16 * (ROWS * warp + row) for row in rows] + [0xFFFFFFF0] * (LANES - 8 * count)
    return found


def held(thread: int, transposed: bool) -> list[tuple[int, int]]:
    """Row and column of the two elements of a matrix in a thread's register."""
    row, column = thread % LANES // 4, thread % 4 * 2
    return [(column, row), (column + 1, row)] if transposed else [(row, column), (row, column + 1)]


def opcode_of(what: str, count: int, transposed: bool) -> str:
    return f"{what}.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"


def copies(to_shared: bool, buffer: int) -> list[str]:
    """Statements that copy a buffer to shared memory or back: thread by thread, 40 bytes each."""
    words = 2 * ROWS * 16 // THREADS // 4
    body = [f"mul.lo.s32 %word, %tid, {4 * words}", "mov.b32 %smem, global_smem", "add.s32 %smem, %smem, %word"]
    body += ["cvt.u64.u32 %place, %word", f"add.s64 %place, %place, %at{buffer}"]
    for n in range(words):
        one, other = f"global.b32 %value, [%place+{4 * n}]", f"shared.b32 %value, [%smem+{4 * n}]"
        store = (f"st.shared.b32 [%smem+{4 * n}], %value", f"st.global.b32 [%place+{4 * n}], %value")
        body += [f"ld.{one if to_shared else other}", store[0 if to_shared else 1]]
    return body


SHARED_REGISTERS = ["b64 %place", "b32 %word", "b32 %smem", "b32 %value", "b32 %row", "b32 %o<4>"]


@pytest.mark.parametrize(("count", "transposed"), CASES)
def test_ldmatrix_gives_each_thread_two_elements_of_a_row_or_column(count: int, transposed: bool) -> None:
    rng = random.Random(count)
    where = places(rng, count)
    memory = [rng.getrandbits(16) for _ in range(2 * ROWS * 8)]
    names = ", ".join(f"%o{n}" for n in range(count))
    body = [*copies(True, 0), "bar.sync 0", *element("%place", 1, 4), "ld.global.b32 %row, [%place]"]
    body += ["mov.b32 %smem, global_smem", "add.s32 %row, %row, %smem"]
    body += [f"{opcode_of('ldmatrix', count, transposed)} {{{names}}}, [%row]"]
    for n in range(count):
        body += [*element("%place", 2 + n, 4), f"st.global.b32 [%place], %o{n}"]
    text = program(body, SHARED_REGISTERS, 2 + count, THREADS)
    given: list[Array] = [np.array(memory, np.uint16), np.array(where, np.uint32)]
    made = execute(text, given, [np.zeros(THREADS, np.uint32) for _ in range(count)])
    for matrix in range(count):
        for thread in range(THREADS):
            parts = []
            for row, column in held(thread, transposed):
                start = where[thread // LANES * LANES + 8 * matrix + row]
                parts.append(memory[start // 2 + column])
            assert made[matrix][thread] == parts[0] | parts[1] << 16


@pytest.mark.parametrize(("count", "transposed"), CASES)
def test_stmatrix_is_the_inverse_of_ldmatrix(count: int, transposed: bool) -> None:
    rng = random.Random(count)
    where = places(rng, count)
    memory = [rng.getrandbits(16) for _ in range(2 * ROWS * 8)]
    given = [[rng.getrandbits(32) for _ in range(THREADS)] for _ in range(count)]
    names = ", ".join(f"%o{n}" for n in range(count))
    body = [*copies(True, 0), "bar.sync 0", *element("%place", 1, 4), "ld.global.b32 %row, [%place]"]
    for n in range(count):
        body += [*element("%place", 2 + n, 4), f"ld.global.b32 %o{n}, [%place]"]
    body += ["mov.b32 %smem, global_smem", "add.s32 %row, %row, %smem"]
    body += [f"{opcode_of('stmatrix', count, transposed)} [%row], {{{names}}}", "bar.sync 0", *copies(False, 2 + count)]
    text = program(body, SHARED_REGISTERS, 3 + count, THREADS)
    inputs: list[Array] = [np.array(memory, np.uint16), np.array(where, np.uint32)]
    inputs += [np.array(column, np.uint32) for column in given]
    (made,) = execute(text, inputs, [np.zeros(len(memory), np.uint16)])
    for matrix in range(count):
        for thread in range(THREADS):
            for part, (row, column) in enumerate(held(thread, transposed)):
                start = where[thread // LANES * LANES + 8 * matrix + row]
                memory[start // 2 + column] = given[matrix][thread] >> 16 * part & 0xFFFF
    assert made.tolist() == memory
