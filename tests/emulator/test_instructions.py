"""Every instruction that computes on registers, executed in a program, against its reference bit by bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from emulator import exact
from emulator.programs import element, execute, program
from emulator.references import Reference, reference, width_of
from vae_edge_kernels.emulator.instructions import OPERATIONS

PAIRS, TRIPLES, RANDOM = 400, 300, 400  # cases of two and three edge values, and random ones, for each instruction
COUNTS = (0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 40, 47, 63, 64, 65, 127, 255, 256, 257, 288, 1 << 31, (1 << 32) - 1)
FLOATS = {"f16": exact.F16, "bf16": exact.BF16, "f32": exact.F32, "f64": exact.F64}
SHIFTS = ("shl", "shr", "shf", "bfe")


def of_floats(form: exact.Format, *values: float) -> list[int]:
    return [exact.bits_of(exact.Fraction(v) if v else v, form) for v in values]


def edges(kind: str) -> list[int]:
    """Values at which something changes."""
    if kind == "pred":
        return [0, 1]
    if kind == "e4m3x2":
        return [0x0000, 0x8001, 0x7F7E, 0xFFFE, 0x0708, 0x8887, 0x0F10, 0x3839]
    if kind.endswith("x2"):
        half = width_of(kind) // 2
        ones = edges(kind[:-2])
        return [low | high << half for low, high in zip(ones, ones[5:] + ones[:5], strict=True)]
    if kind in FLOATS:
        form = FLOATS[kind]
        one = form.fraction_bits
        positive = [
            0,
            1,  # the least subnormal
            (1 << one) - 1,  # the largest subnormal
            1 << one,  # the least normal
            form.infinity - 1,
            form.infinity,
            form.infinity | 1 << (one - 1),  # quiet NaN
            form.infinity | 1,  # signalling NaN
            *of_floats(form, 1.0, 0.5, 1.5),
            of_floats(form, 1.0)[0] + 1,
        ]
        return [bits | sign for sign in (0, 1 << (form.width - 1)) for bits in positive]
    width = width_of(kind)
    top = 1 << (width - 1)
    pattern = int.from_bytes(b"\xc3\x5a\x96\x0f\x81\x7e\x3c\xa5"[: width // 8], "little")
    return [0, 1, 2, 3, 5, 127, top >> 1, top - 1, top, top + 1, 2 * top - 5, 2 * top - 2, 2 * top - 1, pattern]


def conversion_edges(opcode: str) -> list[int]:
    """Ties and limits of what an instruction rounds."""
    *mods, target, source = opcode.split(".")[1:]
    if source not in FLOATS or (target == "f64" and not mods):
        return []
    form = FLOATS[source]
    halves = [n + half for n in (-3, -2, -1, 0, 1, 2) for half in (0.25, 0.5, 0.75)]
    limits = [float(sign * 2**n) for n in (7, 8, 15, 16, 31, 32, 33) for sign in (1, -1)]
    values = [*halves, *limits, 448.0, 464.0, 465.0, 480.0, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9, 65504.0, 65520.0, 65519.0]
    near = of_floats(form, *values)
    return [bits for code in near for bits in (code - 1, code, code + 1) if 0 <= bits < 1 << form.width]


def random_float(rng: random.Random, form: exact.Format, dropped: int = 0) -> int:
    """Any bits; or an exponent near that of 1, often with a short significand; or a tie of the `dropped` last bits."""
    bits = rng.getrandbits(form.width)
    way = rng.randrange(4)
    if way == 0:
        return bits
    bias = (1 << (form.exponent_bits - 1)) - 1
    reach = min(bias - 1, 14 if dropped else 6)
    bits &= ~(((1 << form.exponent_bits) - 1) << form.fraction_bits)
    bits |= bias + rng.randint(-reach, reach) << form.fraction_bits
    if way == 1:
        keep = form.fraction_bits - rng.randrange(form.fraction_bits)
        bits = bits >> keep << keep
    if way == 2 and dropped:
        bits = (bits >> dropped << dropped | 1 << (dropped - 1)) + rng.choice((-1, 0, 0, 1))
    return bits


DROPPED = {"f16": 13, "f16x2": 13, "tf32": 13, "bf16": 16, "bf16x2": 16, "e4m3x2": 20, "f32": 29}


def random_value(rng: random.Random, kind: str, opcode: str) -> int:
    if kind == "pred":
        return rng.getrandbits(1)
    if kind.endswith("x2") and kind != "e4m3x2":
        half = width_of(kind) // 2
        return random_value(rng, kind[:-2], opcode) | random_value(rng, kind[:-2], opcode) << half
    if kind in FLOATS:
        parts = opcode.split(".")
        dropped = DROPPED.get(parts[-2], 0) if parts[0] == "cvt" else 0
        return random_float(rng, FLOATS[kind], dropped if dropped < FLOATS[kind].fraction_bits else 0)
    width = width_of(kind)
    value = rng.getrandbits(rng.randint(1, width))
    return value if rng.getrandbits(1) else value ^ ((1 << width) - 1)


def cases(opcode: str, inputs: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Bits of the operands."""
    rng = random.Random(opcode)  # the same in every run
    shifts = opcode.startswith(SHIFTS)
    is_count = [shifts and kind == "u32" and n > 0 for n, kind in enumerate(inputs)]
    pools = [list(COUNTS) if count else edges(kind) for kind, count in zip(inputs, is_count, strict=True)]
    if opcode.startswith("cvt"):
        pools = [pool + conversion_edges(opcode) for pool in pools]
    every = list(itertools.product(*pools))
    most = {1: len(every), 2: max(PAIRS, len(pools[0]))}.get(len(inputs), TRIPLES)
    chosen = every if len(every) <= most else rng.sample(every, most)
    for _ in range(RANDOM):
        chosen.append(
            tuple(
                rng.randrange(70) if count else random_value(rng, kind, opcode)
                for kind, count in zip(inputs, is_count, strict=True)
            )
        )
    if "fma" in opcode and inputs[2] in FLOATS:
        chosen += cancelling(rng, inputs)
    return chosen


def cancelling(rng: random.Random, inputs: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """Sums near -a · b, which show what was rounded before."""
    forms = [FLOATS[kind] for kind in inputs]
    for _ in range(100):
        a, b = (random_float(rng, form) for form in forms[:2])
        product = exact.multiply(exact.number(a, forms[0]), exact.number(b, forms[1]))
        c = exact.bits_of(exact.negate(product), forms[2])
        yield a, b, max(0, min((1 << forms[2].width) - 1, c + rng.choice((-1, 0, 0, 1))))
        tie = rng.getrandbits(forms[2].fraction_bits) | 1 << (forms[2].width - 2)  # a · b is below its last bit
        yield a, b, tie


def register_width(kind: str) -> int:
    return {1: 1, 8: 16}.get(width_of(kind), width_of(kind))


def run(opcode: str, inputs: tuple[str, ...], output: str, columns: list[list[int]], immediate: str = "") -> list[int]:
    """The results of an instruction; the threads' operands are the columns."""
    threads = -len(columns[0]) % 32 + len(columns[0])
    registers, body, buffers = ["b64 %place"], [], []
    names = []
    for n, (kind, column) in enumerate(zip(inputs, columns, strict=True)):
        size = max(width_of(kind), 8) // 8
        buffers.append(np.array(column + [0] * (threads - len(column)), f"u{size}"))
        body += element("%place", n, size)
        names.append(f"%in{n}")
        if kind == "pred":
            registers += ["pred %in" + str(n), f"b16 %raw{n}"]
            body += [f"ld.global.u8 %raw{n}, [%place]", f"setp.ne.b16 %in{n}, %raw{n}, 0"]
        else:
            registers.append(f"b{register_width(kind)} %in{n}")
            body.append(f"ld.global.b{8 * size} %in{n}, [%place]")
    width = max(width_of(output), 8)
    size = max(register_width(output), 16) // 8
    body += [f"{opcode} %out, {', '.join(names)}{immediate}", *element("%place", len(inputs), size)]
    if output == "pred":
        registers += ["pred %out", "b16 %made"]
        body += ["selp.b16 %made, 1, 0, %out", "st.global.b16 [%place], %made"]
    else:
        registers.append(f"b{8 * size} %out")
        body.append(f"st.global.b{8 * size} [%place], %out")
    text = program(body, registers, len(inputs) + 1, threads)
    (made,) = execute(text, buffers, [np.zeros(threads, f"u{size}")])
    results = [int(value) for value in made[: len(columns[0])]]
    if width == 8:  # extended to the register's 16 bits by the type's sign
        for value in results:
            assert value >> 8 == (0xFF if output[0] == "s" and value & 0x80 else 0)
        return [value & 0xFF for value in results]
    return results


def hold(opcode: str, wanted: Reference, given: list[tuple[int, ...]], immediate: tuple[int, ...] = ()) -> None:
    columns = [list(column) for column in zip(*given, strict=True)]
    inputs = wanted.inputs[: len(columns)]
    text = "".join(f", {value}" for value in immediate)
    for operands, got in zip(given, run(opcode, inputs, wanted.output, columns, text), strict=True):
        if not wanted.holds(got, *operands, *immediate):
            told = ", ".join(f"{value:#x}" for value in (*operands, *immediate))
            wish = wanted.compute(*operands, *immediate)
            raise AssertionError(
                f"{opcode} {told}: {got:#x} came, {hex(wish) if isinstance(wish, int) else wish} holds"
            )


def test_every_instruction_has_a_reference_with_the_types_of_its_operands() -> None:
    for opcode, operation in OPERATIONS.items():
        wanted = reference(opcode)
        assert wanted is not None, f"{opcode} has no reference"
        assert (operation.inputs, operation.output) == (wanted.inputs, wanted.output), opcode


@pytest.mark.parametrize("opcode", sorted(set(OPERATIONS) - {"lop3.b32"}))
def test_an_instruction_gives_what_its_reference_gives(opcode: str) -> None:
    wanted = reference(opcode)
    assert wanted is not None
    hold(opcode, wanted, cases(opcode, wanted.inputs))


def test_lop3_looks_up_all_tables() -> None:
    wanted = reference("lop3.b32")
    assert wanted is not None
    given = [(0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA), *cases("lop3", ("b32", "b32", "b32"))[-31:]]
    for table in range(256):
        hold("lop3.b32", wanted, given, (table,))


@pytest.mark.parametrize("opcode", [name for name, operation in OPERATIONS.items() if operation.one_more])
def test_min_and_max_of_three(opcode: str) -> None:
    wanted = reference(opcode)
    assert wanted is not None

    def compute(a: int, b: int, c: int) -> int:
        first = wanted.compute(a, b)
        last = wanted.compute(first, c)
        assert isinstance(last, int)
        return last

    three = Reference(("f32", "f32", "f32"), "f32", compute)
    hold(opcode, three, cases(f"{opcode} of three", three.inputs))


# Worked out by hand, or examples of the ISA: the references too must give them.
BY_HAND: list[tuple[str, tuple[int, ...], int]] = [
    ("prmt.b32", (0x33221180, 0x77665544, 0x7770), 0x77777780),
    ("prmt.b32", (0x33221180, 0x77665544, 0x0008), 0x808080FF),
    ("bfe.u32", (0xABCD, 4, 8), 0xBC),
    ("bfe.s32", (0xABCD, 4, 8), 0xFFFFFFBC),
    ("bfe.s32", (0x80000000, 40, 1), 0xFFFFFFFF),
    ("bfe.s32", (0x80000000, 40, 0), 0),
    ("shl.b32", (1, 32), 0),
    ("shl.b16", (0xFFFF, 4), 0xFFF0),
    ("shr.s32", (0x80000000, 40), 0xFFFFFFFF),
    ("shr.u32", (0x80000000, 40), 0),
    ("shf.l.wrap.b32", (0x11111111, 0x22222222, 8), 0x22222211),
    ("shf.l.clamp.b32", (0x11111111, 0x22222222, 40), 0x11111111),
    ("shf.r.wrap.b32", (0x11111111, 0x22222222, 40), 0x22111111),
    ("shf.r.clamp.b32", (0x11111111, 0x22222222, 40), 0x22222222),
    ("dp4a.s32.s32", (0xFF020304, 0x01010101, 10), 18),
    ("dp4a.u32.u32", (0xFF020304, 0x01010101, 10), 274),
    ("dp4a.s32.u32", (0xFF000000, 0xFF000000, 0), 0xFFFFFF01),
    ("mul.hi.u32", (0x80000000, 2), 1),
    ("mul.hi.s32", (0xFFFFFFFF, 1), 0xFFFFFFFF),
    ("mul.wide.s16", (0x8000, 0x8000), 0x40000000),
    ("mad.wide.s32", (0xFFFFFFFF, 2, 5), 3),
    ("mad.wide.u32", (0xFFFFFFFF, 2, 5), 0x200000003),
    ("div.s32", (0xFFFFFFF9, 2), 0xFFFFFFFD),
    ("rem.s32", (0xFFFFFFF9, 2), 0xFFFFFFFF),
    ("div.s32", (0x80000000, 0xFFFFFFFF), 0x80000000),
    ("cvt.rni.s32.f32", (0x40200000,), 2),  # 2.5
    ("cvt.rni.s32.f32", (0x40600000,), 4),  # 3.5
    ("cvt.rmi.s32.f32", (0xC0200000,), 0xFFFFFFFD),  # -2.5
    ("cvt.rpi.s32.f32", (0xC0200000,), 0xFFFFFFFE),
    ("cvt.rzi.s16.f32", (0x501502F9,), 0x7FFF),  # 1e10
    ("cvt.rzi.u8.f32", (0xC0200000,), 0),
    ("cvt.rzi.s32.f32", (0x7FC00000,), 0),  # NaN
    ("cvt.u32.s8", (0x80,), 0xFFFFFF80),
    ("cvt.s32.u8", (0x80,), 0x80),
    ("cvt.pack.sat.s8.s32.b32", (300, 0xFFFFFFFE, 0x11112222), 0x22227FFE),  # 127 and -2
    ("cvt.pack.sat.s8.s32.b32", (0x80000000, 5, 0), 0x8005),  # -128 and 5
    ("cvt.rn.f32.s32", (0x01000001,), 0x4B800000),  # 2^24 + 1, a tie
    ("cvt.rn.f32.s32", (0x01000003,), 0x4B800002),
    ("cvt.rn.f16x2.f32", (0x3F800000, 0x40000000), 0x3C004000),  # the first operand is the upper half
    ("cvt.rn.f16.f32", (0x477FF000,), 0x7C00),  # 65520, a tie that overflows
    ("cvt.rn.bf16.f32", (0x3F808000,), 0x3F80),  # to even
    ("cvt.rn.bf16.f32", (0x3F818000,), 0x3F82),
    ("cvt.rna.tf32.f32", (0x3F801000,), 0x3F802000),  # away from zero
    ("cvt.rna.tf32.f32", (0x3F800FFF,), 0x3F800000),
    ("cvt.rn.satfinite.e4m3x2.f32", (0x3F800000, 0xC6000000), 0x38FE),  # 1 and -8192
    ("cvt.rn.satfinite.e4m3x2.f32", (0x7FC00000, 0x3B800000), 0x7F02),  # NaN and 2^-8
    ("cvt.rn.f16x2.e4m3x2", (0x3801,), 0x3C001800),  # 1 and 2^-9
    ("cvt.rni.ftz.f32.f32", (0x80000001,), 0x80000000),
    ("cvt.rpi.f32.f32", (0x00000001,), 0x3F800000),
    ("cvt.rpi.ftz.f32.f32", (0x00000001,), 0),
    # 2^-24 · (1 - 2^-46) on 1 + 2^-23 is below a tie on which float64 falls
    ("fma.rn.f32", (0x33800001, 0x3F7FFFFE, 0x3F800001), 0x3F800001),
    ("fma.rn.f32", (0x3F800800, 0x39800000, 0x3F800000), 0x3F800800),  # 1 + 2^-12 + 2^-24, a tie
    ("fma.rn.f32", (0x3F800000, 0xBF800000, 0x3F800000), 0),  # 0 of a difference is positive
    ("mul.ftz.f32", (0x80400000, 0x3F800000), 0x80000000),
    ("min.f32", (0, 0x80000000), 0x80000000),
    ("max.f32", (0x80000000, 0), 0),
    ("max.f32", (0x7FC00000, 0xFF800000), 0xFF800000),
    ("max.f32", (0xFF800000, 0x7FC00000), 0xFF800000),
    ("max.NaN.f32", (0x7FC00000, 0xFF800000), 0x7FFFFFFF),
    ("max.NaN.f32", (0x80000000, 0), 0),
    ("min.NaN.f16x2", (0x7E003C00, 0x3C004000), 0x7FFF3C00),
    ("setp.lt.f32", (0x7FC00000, 0x3F800000), 0),
    ("setp.ltu.f32", (0x7FC00000, 0x3F800000), 1),
    ("setp.ne.f32", (0x7FC00000, 0x7FC00000), 0),
    ("setp.neu.f32", (0x7FC00000, 0x7FC00000), 1),
    ("setp.eq.f32", (0x80000000, 0), 1),
    ("setp.eq.f32", (0x00000001, 0), 0),
    ("setp.eq.ftz.f32", (0x00000001, 0), 1),
    ("setp.num.f32", (0x7FC00000, 0), 0),
    ("setp.nan.f32", (0x7FC00000, 0), 1),
    ("setp.lt.s32", (0xFFFFFFFF, 0), 1),
    ("setp.lo.u32", (0xFFFFFFFF, 0), 0),
    ("div.approx.f32", (0x40000000, 0x7E800000), 0x01000000),  # 2 / 2^126
    ("div.approx.f32", (0x40000000, 0x7E800001), 0),  # a divisor just beyond 2^126
    ("div.full.f32", (0x7E800000, 0x7E800000), 0x3F800000),
]


@pytest.mark.parametrize(("opcode", "operands", "answer"), BY_HAND)
def test_answers_worked_out_by_hand(opcode: str, operands: tuple[int, ...], answer: int) -> None:
    wanted = reference(opcode)
    assert wanted is not None
    assert wanted.holds(answer, *operands)
    assert run(opcode, wanted.inputs, wanted.output, [[value] for value in operands]) == [answer]


def test_the_table_of_lop3_is_the_function_of_f0_cc_aa() -> None:
    """(a & b) ^ c is 0xF0 & 0xCC ^ 0xAA, as the ISA says."""
    a, b, c = 0x12345678, 0x9ABCDEF0, 0x0F1E2D3C
    columns = [[a], [b], [c]]
    assert run("lop3.b32", ("b32",) * 3, "b32", columns, f", {0xF0 & 0xCC ^ 0xAA}") == [a & b ^ c]
