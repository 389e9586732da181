"""What the assembler makes no instruction of, what a volatile load sees, and what the first-level cache keeps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from emulator.programs import execute, program
from vae_edge_kernels.emulator.folding import folded
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.operands import registers_in
from vae_edge_kernels.emulator.parser import parse
from vae_edge_kernels.emulator.timing import L1_PROGRAMS, MODELS

REGISTERS = ["b64 %rd<8>", "b32 %r<8>", "pred %p"]


def folded_of(body: list[str]) -> list[bool]:
    """Of the statements of a body; before them are one parameter's load and the number of the thread."""
    instructions = parse(program(body, REGISTERS, 1, 32)).entry.instructions
    return folded(instructions)[2 : 2 + len(body)]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("mov.u32 %r1, 0x0", True),
        ("mov.b32 %r1, %r2", True),
        ("mov.u32 %r1, %ctaid.x", False),
        ("mov.u32 %r1, %tid.x", False),
        ("add.s32 %r1, %r1, 4", False),
        ("add.s64 %rd1, %at0, 64", True),  # nobody reads it
        ("add.s64 %rd1, %at0, 16777216", False),  # too far for a load's offset
        ("add.s64 %rd1, %at0, %rd2", False),
    ],
)
def test_moves_and_constant_offsets_are_folded(statement: str, expected: bool) -> None:
    assert folded_of([statement]) == [expected]


def test_an_offset_that_is_no_address_alone_is_not_folded() -> None:
    address = ["add.s64 %rd1, %at0, 64", "ld.global.b32 %r1, [%rd1 + 0]", "st.global.b32 [%rd1], %r1"]
    assert folded_of(address) == [True, False, False]
    assert folded_of([*address, "add.s64 %rd2, %rd1, %rd3"])[0] is False
    assert folded_of([*address, "st.global.b64 [%at0], %rd1"])[0] is False
    assert folded_of(["setp.eq.s32 %p, %r1, 0", "@%p add.s64 %rd1, %at0, 64"]) == [False, True]


def test_registers_of_called_functions_have_their_prefix() -> None:
    assert registers_in("{ 12_$%r1, 12_$7_$%r2 }") == ["12_$%r1", "12_$7_$%r2"]
    assert registers_in("[ 12_$%rd3 + 16 ]") == ["12_$%rd3"]
    assert registers_in("[%rd3]") == ["%rd3"]


def test_parameters_are_folded() -> None:
    assert folded(parse(program([], [], 1, 32)).entry.instructions) == [True, False, False]


def test_a_volatile_load_is_a_load() -> None:
    body = ["ld.volatile.global.b32 %r1, [%at0 + 0]", "st.global.b32 [%at1], %r1"]
    (made,) = execute(program(body, REGISTERS, 2, 32), [np.array([7], np.uint32)], [np.zeros(1, np.uint32)])
    assert made.tolist() == [7]


def fetched(body: list[str], l1_bytes: int) -> int:
    """Sectors that a program of one warp fetches from the second-level cache."""
    model = dataclasses.replace(MODELS["orin"], l1_bytes=l1_bytes)
    device = Device(parse(program(body, REGISTERS, 1, 32)), 0, None, model)
    device.launch((1, 1, 1), [device.memory.add("x", np.zeros(1 << 14, np.uint8))])
    return device.counts.totals["sectors fetched"]


def test_the_first_level_cache_keeps_what_was_used_last() -> None:
    """Each load touches 4 sectors: 32 threads, 4 bytes each."""
    rows = [["mul.wide.u32 %rd1, %tid, 4", "add.s64 %rd2, %rd1, %at0"]]
    loads = [f"ld.global.b32 %r1, [%rd2 + {1024 * place}]" for place in (0, 1, 2, 0)]
    assert fetched([*rows[0], *loads], L1_PROGRAMS * 12 * 32) == 12  # the last one is there
    assert fetched([*rows[0], *loads], L1_PROGRAMS * 4 * 32) == 16  # two others came in between
    again = ["ld.volatile.global.b32 %r1, [%rd2 + 0]"] * 2
    assert fetched([*rows[0], *again], 1 << 20) == 8  # past the cache


@pytest.mark.parametrize(("value", "told"), [("%tid", True), ("7", False)])
def test_threads_that_store_different_values_at_one_shared_address_are_told(value: str, told: bool) -> None:
    body = ["mov.u32 %r1, global_smem", f"mov.u32 %r2, {value}", "st.shared.b32 [%r1 + 0], %r2"]
    device = Device(parse(program(body, REGISTERS, 1, 32)), 64)
    device.launch((1, 1, 1), [device.memory.add("x", np.zeros(4, np.uint8))])
    assert bool(device.disagreements) is told
