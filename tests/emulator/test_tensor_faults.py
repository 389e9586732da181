"""Faults planted into programs of tensor memory and of mbarriers: each is found, and said at its line."""

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
    INVALIDATE,
    OWN_LANES,
    PROXY_FENCE,
    WAIT,
    WAIT_LOADS,
    Case,
    run,
)
from vae_edge_kernels.emulator.errors import Deadlock, EmulatorError, MemoryFault, PtxError

INIT = "@%first mbarrier.init.shared::cta.b64 [%bar], 1"
NEW_SUMS = "setp.ne.u32 %yes, %tid, %tid"
PRODUCT, INSTRUCTION = Case().product()[-1], Case().instruction()
UNWAITED = "its tcgen05.commit was not waited for"
Fault = tuple[dict[str, list[str]], type[EmulatorError], str]
FAULTS: dict[str, Fault] = {  # what becomes of statements of a right program, and what is said of it
    "no proxy fence": ({PROXY_FENCE: []}, MemoryFault, "with no fence.proxy.async"),
    "the fence comes first": ({PROXY_FENCE: [], INIT: [INIT, PROXY_FENCE]}, MemoryFault, "with no fence.proxy.async"),
    "no barrier": ({BARRIER: []}, MemoryFault, "races with|no mbarrier|never written"),
    "no wait": ({text: [] for text in WAIT[1:]}, MemoryFault, f"a product that warp 0 has issued: {UNWAITED}"),
    "the other phase": ({WAIT[1]: [WAIT[1].removesuffix("0") + "1"]}, MemoryFault, UNWAITED),
    "no commit": ({COMMIT: []}, Deadlock, r"warps 0, 1, 2, 3 wait for a phase .* Missing: 1 of 1 at byte 8"),
    "an mbarrier for two": ({INIT: [INIT.removesuffix("1") + "2"]}, Deadlock, "Missing: 1 of 2"),
    "an mbarrier for none": ({INIT: [INIT.removesuffix("1") + "0"]}, MemoryFault, "an mbarrier for 0 arrivals"),
    "no mbarrier": ({INIT: []}, MemoryFault, "no mbarrier was initialized at byte 8"),
    "one warp waits": (
        {WAIT[1]: [f"@%warp0 {WAIT[1]}"], NEW_SUMS: [NEW_SUMS, "setp.eq.u32 %done, %tid, %tid"]},
        MemoryFault,
        "lane 32, .* " + UNWAITED,
    ),
    "lanes of another warp": (
        {OWN_LANES[2]: ["add.s32 %mine, %tm, 2097152"]},
        MemoryFault,
        "from lane 32 on by warp 0, whose lanes are 0 to 31",
    ),
    "out of the allocation": (
        {OWN_LANES[2]: [OWN_LANES[2], "add.s32 %mine, %mine, 24"]},
        MemoryFault,
        "lane 0, column 32 of tensor memory, which is not allocated",
    ),
    "never written": (
        {OWN_LANES[2]: [OWN_LANES[2], "add.s32 %mine, %mine, 8"]},
        MemoryFault,
        "lane 0, column 16 of tensor memory, which was never written",
    ),
    "sums of nothing": ({NEW_SUMS: ["setp.eq.u32 %yes, %tid, %tid"]}, MemoryFault, "which was never written"),
    "not deallocated": ({DEALLOCATE: []}, MemoryFault, "ends with 32 columns of tensor memory from 0 on"),
    "deallocated before the product has ended": (
        {COMMIT: [COMMIT, BARRIER, DEALLOCATE], DEALLOCATE: []},
        MemoryFault,
        "a dealloc of lane 0, column 0 .*" + UNWAITED,
    ),
    "deallocated before the loads have ended": (
        {WAIT_LOADS: [BARRIER, DEALLOCATE, WAIT_LOADS], DEALLOCATE: []},
        MemoryFault,
        "a tcgen05.ld of warp 0: no tcgen05.wait::ld and barrier",
    ),
    "deallocated before others have waited": (
        {WAIT_LOADS: [WAIT_LOADS, DEALLOCATE], DEALLOCATE: []},
        MemoryFault,
        "a dealloc of lane 32, column 0 .* a tcgen05.ld of warp 1",
    ),
    "another number of columns is deallocated": (
        {DEALLOCATE: [DEALLOCATE.removesuffix("32") + "64"]},
        MemoryFault,
        "64 columns at 0x0 of tensor memory were not allocated",
    ),
    "registers are used too early": (
        {WAIT_LOADS: ["mov.b32 %v0, %d3", WAIT_LOADS]},
        MemoryFault,
        "the register %d3 of warp 0 is used before tcgen05.wait::ld",
    ),
    "24 columns": ({ALLOCATE[4]: [ALLOCATE[4].removesuffix("32") + "24"]}, MemoryFault, "24 columns of tensor memory"),
    "allocated after the permit was given up": (
        {PROXY_FENCE: [PROXY_FENCE, ALLOCATE[4]]},
        MemoryFault,
        "after tcgen05.relinquish_alloc_permit",
    ),
    "too much is allocated": (
        {ALLOCATE[5]: [ALLOCATE[4].replace("], 32", "+4], 512")]},
        Deadlock,
        "waits for 512 columns of tensor memory that nobody frees",
    ),
    "A is overwritten": (
        {COMMIT: [COMMIT, f"@%first st.shared.b32 [%base+{A_AT}], %tid"]},
        MemoryFault,
        "races with a product in flight, issued by warp 0",
    ),
    "the commit comes first": ({COMMIT: [], NEW_SUMS: [NEW_SUMS, COMMIT]}, MemoryFault, UNWAITED),
    "the commit is another thread's": (
        {COMMIT: ["setp.eq.u32 %yes, %tid, 1", COMMIT.replace("%first", "%yes")]},
        MemoryFault,
        UNWAITED,
    ),
    "the mbarrier is read": ({COMMIT: [COMMIT, "ld.shared.b32 %v0, [%bar]"]}, MemoryFault, "where an mbarrier lies"),
    "an mbarrier in use is removed": (
        {COMMIT: [COMMIT, INVALIDATE], INVALIDATE: []},
        MemoryFault,
        "a commit is still to arrive at the mbarrier at byte 8",
    ),
    "an odd shape": (
        {PRODUCT: [PRODUCT.replace(str(INSTRUCTION), str(INSTRUCTION & ~(31 << 24) | 2 << 24))]},
        PtxError,
        "asks for 32 by 16, which is not allowed",
    ),
    "half a warp loads": (
        {WAIT_LOADS: ["and.b32 %lane, %tid, 16", "setp.eq.u32 %yes, %lane, 0", f"@%yes {WAIT_LOADS}"]},
        Deadlock,
        "threads of a warp are missing",
    ),
}


def changed(body: Sequence[str], changes: dict[str, list[str]]) -> list[str]:
    return [statement for each in body for statement in changes.get(each, [each])]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    changes, error, message = FAULTS[name]
    case = Case()
    body = changed(case.body(), changes)
    assert body != case.body()
    with pytest.raises(error, match=message) as found:
        run(body, case)
    assert str(found.value).startswith("PTX line ")


# ------------------------------------------------------------------------------------------- mbarriers among threads

# Warps 0 and 1 write shared memory and arrive; warp 2 waits and adds what it reads; warp 3 does neither.
HANDED_OVER = [
    "mov.b32 %base, global_smem",
    "shr.u32 %warp, %tid, 5",
    "setp.eq.u32 %first, %tid, 0",
    "setp.lt.u32 %writes, %warp, 2",
    "setp.eq.u32 %reads, %warp, 2",
    "@%first mbarrier.init.shared::cta.b64 [%base], 64",
    "bar.sync 0",
    "shl.b32 %at, %tid, 2",
    "add.s32 %at, %at, %base",
    "@%writes st.shared.b32 [%at+64], %tid",
    "@%writes mbarrier.arrive.shared::cta.b64 _, [%base]",
    "@!%reads bra DONE",
    "LOOP:",
    "mbarrier.try_wait.parity.shared::cta.b64 %ended, [%base], 0",
    "@!%ended bra LOOP",
    "and.b32 %at, %at, -129",  # warp 2 reads what the threads of warps 0 and 1 have written
    "and.b32 %lane, %tid, 31",
    "shl.b32 %at, %lane, 2",
    "add.s32 %at, %at, %base",
    "ld.shared.b32 %x, [%at+64]",
    "ld.shared.b32 %y, [%at+192]",
    "add.s32 %x, %x, %y",
    "cvt.u64.u32 %g, %at",
    "mul.wide.u32 %g, %lane, 4",
    "add.s64 %g, %g, %at0",
    "st.global.b32 [%g], %x",
    "DONE:",
]
MBARRIER_REGISTERS = (
    "b32 %base, %warp, %at, %lane, %x, %y",
    "b64 %g",
    "pred %first, %writes, %reads, %ended",
)
ARRIVE = HANDED_OVER[10]
MBARRIER_FAULTS: dict[str, Fault] = {
    "no arrival": ({ARRIVE: []}, Deadlock, "warps 2 wait for .* Missing: 64 of 64 at byte 0"),
    "one warp too few arrives": ({ARRIVE: [ARRIVE.replace("%writes", "%first")]}, Deadlock, "Missing: 63 of 64"),
    "too many arrive": (
        {ARRIVE: [f"{ARRIVE}, 65"]},
        MemoryFault,
        "65 more arrivals at the mbarrier at byte 0, whose phase 0 waits for 64",
    ),
    "the arrival comes before the write": (
        {HANDED_OVER[9]: [ARRIVE], ARRIVE: [HANDED_OVER[9]]},
        MemoryFault,
        "races with warp [01]",
    ),
    "no wait": ({text: [] for text in HANDED_OVER[13:15]}, MemoryFault, "by warp 2 races with warp 0"),
    "the other phase": (
        {HANDED_OVER[13]: [HANDED_OVER[13].removesuffix("0") + "1"]},
        EmulatorError,
        "by warp 2 races|warps 2 wait for a phase",
    ),
    "no barrier behind the init": ({"bar.sync 0": []}, MemoryFault, "races with warp 0"),
}


def handed_over(changes: dict[str, list[str]], seed: int | None = None) -> list[int]:
    body = changed(HANDED_OVER, changes)
    text = program(body, MBARRIER_REGISTERS, 1, 128)
    (made,) = execute(text, [], [np.zeros(32, np.uint32)], seed)
    found: list[int] = made.tolist()
    return found


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_an_mbarrier_hands_memory_over_to_who_waits(seed: int | None) -> None:
    assert handed_over({}, seed) == [2 * lane + 32 for lane in range(32)]


@pytest.mark.parametrize("name", MBARRIER_FAULTS)
def test_a_fault_with_an_mbarrier_is_found(name: str) -> None:
    changes, error, message = MBARRIER_FAULTS[name]
    with pytest.raises(error, match=message):
        handed_over(changes)


@pytest.mark.parametrize("waits", [True, False])
def test_an_mbarrier_orders_global_memory_too(waits: bool) -> None:
    """Each thread of warps 0 and 1 writes its element of a buffer, which warp 2 reads."""
    in_global = {
        "@%writes st.shared.b32 [%at+64], %tid": [
            "mul.wide.u32 %g, %tid, 4",
            "add.s64 %g, %g, %at1",
            "@%writes st.global.b32 [%g], %tid",
        ],
        "ld.shared.b32 %x, [%at+64]": [
            "mul.wide.u32 %g, %lane, 4",
            "add.s64 %g, %g, %at1",
            "ld.global.b32 %x, [%g]",
            "ld.global.b32 %y, [%g+128]",
        ],
        "ld.shared.b32 %y, [%at+192]": [],
    }
    if not waits:
        in_global |= {text: [] for text in HANDED_OVER[13:15]}
    text = program(changed(HANDED_OVER, in_global), MBARRIER_REGISTERS, 2, 128)
    buffers = [np.zeros(32, np.uint32), np.zeros(64, np.uint32)]
    if waits:
        assert execute(text, [], buffers, 1)[0].tolist() == [2 * lane + 32 for lane in range(32)]
        return
    with pytest.raises(MemoryFault, match="by program 0, warp 2 races with the write by program 0, warp 0"):
        execute(text, [], buffers)
