"""Whole programs: random ones against an interpreter of single threads, and branches with known answers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
from emulator.programs import Array, element, execute, program
from emulator.references import reference, same_nans, width_of
from emulator.scalar import Operand, Step, Thread
from vae_edge_kernels.emulator.errors import Deadlock
from vae_edge_kernels.emulator.instructions import OPERATIONS

PROGRAMS, THREADS = 60, 64
FAMILIES = {"b16": "%h", "b32": "%r", "b64": "%d", "f32": "%f", "pred": "%p"}
COUNT = 6  # registers of each family
COUNTERS = 8
# What a program is made of. Results of 16-bit and 64-bit floats are left out: a NaN's bits are open.
NAMES = (
    *("add", "sub", "mul", "mad", "div", "rem", "min", "max", "neg", "abs"),
    *("and", "or", "xor", "not", "shl", "shr", "shf", "bfe", "prmt", "lop3", "dp4a"),
    *("mov", "selp", "setp", "cvt"),
)
KINDS = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "f32", "pred")
SPECIALS = {"%tid.x": "tid", "%laneid": "laneid", "%ntid.x": "ntid", "%ctaid.x": "ctaid"}
VECTORS = (("b64", "b32", 2), ("b32", "b16", 2), ("b64", "b16", 4))


def family(kind: str) -> str:
    """The registers that hold a type."""
    return kind if kind in ("f32", "pred") else f"b{max(width_of(kind), 16)}"


def usable() -> list[str]:
    """Opcodes whose results have bits that the ISA fixes."""
    found = []
    for opcode, operation in OPERATIONS.items():
        known = all(kind in KINDS for kind in (*operation.inputs, operation.output))
        if known and opcode.split(".")[0] in NAMES and not {"approx", "full"} & set(opcode.split(".")):
            found.append(opcode)
    return sorted(found)


class Writer:
    """A random program."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.steps: list[Step] = []
        self.labels = 0
        self.counters = iter(range(COUNTERS))
        by_name: dict[str, list[str]] = {}
        for opcode in usable():
            by_name.setdefault(opcode.split(".")[0], []).append(opcode)
        self.opcodes = by_name

    def register(self, kind: str) -> str:
        name = FAMILIES[family(kind)]
        return f"{name}{self.rng.randrange(COUNT)}"

    def guard(self) -> tuple[str | None, bool]:
        rng = self.rng
        return (self.register("pred") if rng.random() < 0.3 else None), bool(rng.getrandbits(1))

    def immediate(self, kind: str) -> int:
        width = width_of(kind)
        if kind == "f32":
            return self.rng.choice((0x3F800000, 0xBF000000, 0x42F70000, 0, 0x80000000, 0x7F800000, 0x4B000001))
        value = self.rng.getrandbits(self.rng.randint(1, width))
        return value if self.rng.getrandbits(1) else (1 << width) - 1 - value

    def operand(self, opcode: str, kind: str, number: int) -> Operand:
        """A register, or an immediate."""
        rng, name = self.rng, opcode.partition(".")[0]
        if opcode == "lop3.b32" and number == 3:
            return rng.randrange(256)
        if name == "rem" and number == 1:  # by zero it is open
            return self.immediate(kind) or 7
        if kind == "pred" or (name != "mov" and rng.random() < 0.75) or (name == "mov" and rng.random() < 0.5):
            if name == "cvt" and family(kind) in ("b16", "b32") and rng.random() < 0.3:
                return self.register("b32")  # may be wider than the type
            return self.register(kind)
        if kind == "u32" and number and name in ("shl", "shr", "shf", "bfe") and rng.random() < 0.8:
            return rng.randrange(70)
        return self.immediate(kind)

    def instruction(self) -> Step:
        rng = self.rng
        guard, negated = self.guard()
        draw = rng.random()
        if draw < 0.08:
            whole, part, count = rng.choice(VECTORS)
            parts: list[str] = rng.sample([f"{FAMILIES[part]}{n}" for n in range(COUNT)], count)
            if rng.getrandbits(1):
                return Step(f"mov.{whole}", (self.register(whole),), tuple(parts), guard, negated)
            if rng.random() < 0.3:
                parts[rng.randrange(count)] = "_"
            return Step(f"mov.{whole}", tuple(parts), (self.register(whole),), guard, negated)
        if draw < 0.12:
            return Step("mov.u32", (self.register("u32"),), (rng.choice(list(SPECIALS)),), guard, negated)
        name = rng.choice(list(self.opcodes))
        opcode = rng.choice(self.opcodes[name])
        made = reference(opcode)
        assert made is not None
        operands = tuple(self.operand(opcode, kind, number) for number, kind in enumerate(made.inputs))
        output = made.output
        if name == "cvt" and family(output) == "b16" and rng.random() < 0.3:
            output = "b32"  # a wider register is extended
        return Step(opcode, (self.register(output),), operands, guard, negated)

    def label(self) -> str:
        self.labels += 1
        return f"$L_{self.labels}"

    def block(self, length: int, depth: int) -> None:
        """Instructions, and among them skipped parts, alternatives and loops."""
        rng = self.rng
        while length > 0:
            kind = rng.random()
            inner = rng.randint(1, 6)
            if depth == 0 or kind > 0.16:
                self.steps.append(self.instruction())
                length -= 1
                continue
            length -= inner
            first, last = self.label(), self.label()
            if kind < 0.1:
                self.steps.append(Step("bra", (), (first,), self.register("pred"), bool(rng.getrandbits(1))))
                self.block(inner, depth - 1)
                self.steps.append(Step("bra", (), (last,)))
                self.steps.append(Step("", (first,)))
                if kind < 0.05:
                    self.block(inner, depth - 1)
                self.steps.append(Step("", (last,)))
            elif (counter := next(self.counters, None)) is not None:
                register, again = f"%k{counter}", f"%q{counter}"
                self.steps.append(Step("and.b32", (register,), (self.register("b32"), 3)))
                self.steps.append(Step("", (first,)))
                self.block(inner, depth - 1)
                self.steps.append(Step("add.s32", (register,), (register, 0xFFFFFFFF)))
                self.steps.append(Step("setp.ge.s32", (again,), (register, 0)))
                self.steps.append(Step("bra", (), (first,), again))


def starting_values(rng: random.Random, kind: str) -> list[int]:
    """Of one register, in all threads."""
    if kind == "f32":
        small = [0x4B000000 + rng.randrange(256), 0x3F800000, 0xC0490FDB, 0x7F800000, 1, 0x80000000]
        return [rng.choice((rng.getrandbits(32), *small)) for _ in range(THREADS)]
    width = width_of(kind)
    return [rng.getrandbits(rng.randint(1, width)) ^ rng.choice((0, (1 << width) - 1)) for _ in range(THREADS)]


def on_the_emulator(steps: list[Step], start: dict[str, list[int]], seed: int | None) -> dict[str, list[int]]:
    """The registers of all threads after a program; predicates come and go as 16-bit integers."""
    kinds = {name: kind for kind, prefix in FAMILIES.items() for name in start if name.startswith(prefix)}
    sizes = {name: 2 if kind == "pred" else width_of(kind) // 8 for name, kind in kinds.items()}
    registers = [f"{kind} {prefix}<{COUNT}>" for kind, prefix in FAMILIES.items()]
    registers += ["b64 %place", "b16 %truth", f"b32 %k<{COUNTERS}>", f"pred %q<{COUNTERS}>"]
    loads, stores = [], []
    for number, (name, kind) in enumerate(kinds.items()):
        size, truth = sizes[name], kind == "pred"
        held = "%truth" if truth else name
        loads += [*element("%place", number, size), f"ld.global.b{8 * size} {held}, [%place]"]
        loads += [f"setp.ne.b16 {name}, %truth, 0"] if truth else []
        stores += element("%place", number + len(kinds), size)
        stores += [f"selp.b16 %truth, 1, 0, {name}"] if truth else []
        stores += [f"st.global.b{8 * size} [%place], {held}"]
    body = [*loads, *(step.text for step in steps), *stores]
    text = program(body, registers, 2 * len(kinds), THREADS)
    inputs = [np.array(start[name], f"u{sizes[name]}") for name in kinds]
    made = execute(text, inputs, [np.zeros_like(data) for data in inputs], seed)
    return {name: values.tolist() for name, values in zip(kinds, made, strict=True)}


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_a_random_program_leaves_in_every_thread_what_it_leaves_in_one(seed: int) -> None:
    writer = Writer(seed)
    writer.block(writer.rng.randint(30, 60), 2 if seed % 2 else 0)
    start = {
        f"{prefix}{number}": starting_values(writer.rng, kind)
        for kind, prefix in FAMILIES.items()
        for number in range(COUNT)
    }
    got = on_the_emulator(writer.steps, start, None if seed % 3 else seed)
    widths = {name: width_of(kind) for kind, prefix in FAMILIES.items() for name in start if name.startswith(prefix)}
    widths |= {f"%k{n}": 32 for n in range(COUNTERS)} | {f"%q{n}": 1 for n in range(COUNTERS)}
    for tid in range(THREADS):
        specials = {"%tid.x": tid, "%laneid": tid % 32, "%ntid.x": THREADS, "%ctaid.x": 0}
        thread = Thread(widths, {name: values[tid] for name, values in start.items()} | specials)
        thread.run(writer.steps)
        for name, values in got.items():
            wanted = thread.values[name]
            same = values[tid] == wanted or (name.startswith("%f") and same_nans("f32", values[tid], wanted))
            assert same, f"{name} of thread {tid}: {values[tid]:#x} came, {wanted:#x} holds"


def test_random_programs_use_most_instructions() -> None:
    used: set[str] = set()
    for seed in range(PROGRAMS):
        writer = Writer(seed)
        writer.block(writer.rng.randint(30, 60), 2 if seed % 2 else 0)
        used |= {step.opcode for step in writer.steps}
    assert {opcode.split(".")[0] for opcode in used} >= {*NAMES, "bra"}
    assert len(used & set(usable())) > 200


# -------------------------------------------------------------------------------------------- branches and loops


def of_threads(body: list[str], registers: list[str], given: Array, seed: int | None) -> list[int]:
    """`%x` begins with each thread's value; `%y` at the end."""
    threads = len(given)
    around = [*element("%place", 0, 4), "ld.global.b32 %x, [%place]", *body]
    around += [*element("%place", 1, 4), "st.global.b32 [%place], %y"]
    text = program(around, ["b64 %place", "b32 %x", "b32 %y", *registers], 2, threads)
    (made,) = execute(text, [given.astype(np.uint32)], [np.zeros(threads, np.uint32)], seed)
    return [int(value) for value in made]


COLLATZ = [
    "mov.b32 %y, 0",
    "$L_again:",
    "setp.le.u32 %p0, %x, 1",
    "@%p0 bra $L_done",
    "and.b32 %bit, %x, 1",
    "setp.eq.b32 %p1, %bit, 0",
    "@%p1 bra $L_even",
    "mad.lo.s32 %x, %x, 3, 1",
    "bra $L_next",
    "$L_even:",
    "shr.u32 %x, %x, 1",
    "$L_next:",
    "add.s32 %y, %y, 1",
    "bra.uni $L_again",
    "$L_done:",
]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_threads_of_a_warp_go_around_a_loop_as_often_as_each_must(seed: int | None) -> None:
    def steps(x: int) -> int:
        count = 0
        while x > 1:
            x, count = (x // 2 if x % 2 == 0 else 3 * x + 1), count + 1
        return count

    given = np.arange(1, 97)
    assert of_threads(COLLATZ, ["b32 %bit", "pred %p<2>"], given, seed) == [steps(int(x)) for x in given]


EUCLID = [
    "mov.b32 %y, 720",
    "$L_again:",
    "setp.eq.b32 %p0, %x, 0",
    "@%p0 bra $L_done",
    "rem.u32 %rest, %y, %x",
    "mov.b32 %y, %x",
    "mov.b32 %x, %rest",
    "bra $L_again",
    "$L_done:",
]


@pytest.mark.parametrize("seed", [None, 0])
def test_threads_leave_a_loop_one_by_one(seed: int | None) -> None:
    given = np.arange(64) * 7
    assert of_threads(EUCLID, ["b32 %rest", "pred %p<1>"], given, seed) == [math.gcd(720, int(x)) for x in given]


NESTED = [
    "setp.lt.s32 %p0, %x, 0",
    "@%p0 bra $L_minus",
    "setp.gt.u32 %p1, %x, 20",
    "@!%p1 bra $L_small",
    "mov.b32 %y, 3",
    "bra $L_end",
    "$L_small:",
    "setp.eq.b32 %p2, %x, 5",
    "@%p2 mov.b32 %y, 5",
    "@!%p2 mov.b32 %y, 2",
    "bra $L_end",
    "$L_minus:",
    "mov.b32 %y, 1",
    "setp.lt.s32 %p1, %x, -4",
    "@%p1 ret",
    "$L_end:",
]


def test_alternatives_within_alternatives_meet_again() -> None:
    def choose(x: int) -> int:
        return 1 if x < 0 else 3 if x > 20 else 5 if x == 5 else 2

    given = np.arange(-4, 60)
    made = of_threads(NESTED, ["pred %p<3>"], given.astype(np.int32).view(np.uint32), None)
    assert made == [choose(int(x)) for x in given]


def test_a_thread_that_ends_early_stores_nothing_more() -> None:
    given = np.arange(-8, 56).astype(np.int32).view(np.uint32)
    with pytest.raises(AssertionError, match="output 0 was not written everywhere"):
        of_threads(NESTED, ["pred %p<3>"], given, None)


def diverged(statement: str) -> Iterator[str]:
    yield "setp.lt.u32 %p0, %x, 7"
    yield "mov.b32 %y, 0"
    yield "@%p0 bra $L_end"
    yield statement
    yield "$L_end:"


@pytest.mark.parametrize("statement", ["shfl.sync.bfly.b32 %y, %x, 1, 31, -1", "redux.sync.add.s32 %y, %x, -1"])
def test_an_instruction_of_the_whole_warp_is_refused_where_threads_are_elsewhere(statement: str) -> None:
    assert len(of_threads(list(diverged(statement)), ["pred %p<1>"], np.arange(64) + 7, None)) == 64
    with pytest.raises(Deadlock, match="threads of a warp are missing"):
        of_threads(list(diverged(statement)), ["pred %p<1>"], np.arange(64), None)
