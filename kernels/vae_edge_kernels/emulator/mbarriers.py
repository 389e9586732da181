"""`mbarrier`: barriers in shared memory that count arrivals, of threads and of what goes on asynchronously.

A phase ends when all its arrivals have come; whoever waits for it has then seen what they have published (`clocks`).
What goes on by itself arrives as late as it can: when a warp asks for it a second time. With a seed it may also arrive
at once. PTX ISA 9.0, "Parallel Synchronization and Communication Instructions: mbarrier".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.clocks import Seen
from vae_edge_kernels.emulator.errors import Deadlock, MemoryFault, PtxError
from vae_edge_kernels.emulator.operands import Handler, Operands, place_of
from vae_edge_kernels.emulator.parser import Instruction
from vae_edge_kernels.emulator.warps import LANES

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Program

SPACE = r"(?:\.shared(?:::cta)?)?\.b64$"
INIT = re.compile(r"mbarrier\.init" + SPACE)
INVAL = re.compile(r"mbarrier\.inval" + SPACE)
ARRIVE = re.compile(r"mbarrier\.arrive(?:\.release\.cta)?" + SPACE)
WAIT = re.compile(r"mbarrier\.(?:try|test)_wait\.parity(?:\.acquire\.cta)?" + SPACE)
MAX_COUNT = (1 << 20) - 1  # of arrivals
POLLS = 100  # of every warp in vain, after which a deadlock is found


@dataclass
class Barrier:
    """One mbarrier.

    Attributes:
        count: arrivals that a phase takes.
        missing: arrivals that the current phase waits for.
        phase: how many have ended.
        gathered: what has been published so far.
        published: what had been when the last phase ended.
        at: the last arrival, in modelled cycles.
    """

    count: int
    missing: int
    gathered: Seen
    published: Seen
    phase: int = 0
    at: float = 0.0


@dataclass(frozen=True)
class Commit:
    """An arrival that comes when what went on before has ended (`tcgen05.commit`); `at` is in modelled cycles."""

    address: int
    published: Seen
    at: float


def arrive(program: Program, address: int, published: Seen, at: float, place: str, count: int = 1) -> None:
    """Arrivals at a barrier, with what they publish."""
    barrier = program.barriers[address]
    if count > barrier.missing:
        raise MemoryFault(
            f"{place}: {count} more arrivals at the mbarrier at byte {address}, whose phase {barrier.phase} waits for "
            f"{barrier.missing}."
        )
    barrier.gathered.join(published)
    barrier.missing -= count
    barrier.at = max(barrier.at, at)
    if not barrier.missing:
        barrier.phase, barrier.missing = barrier.phase + 1, barrier.count
        barrier.published.join(barrier.gathered)
    program.polls[:] = 0


def complete_commit(program: Program, place: str) -> None:
    """The oldest commit arrives."""
    commit = program.commits.popleft()
    arrive(program, commit.address, commit.published, commit.at, place)


def commit(program: Program, address: int, published: Seen, at: float, place: str) -> None:
    """An arrival that is to come by itself."""
    program.commits.append(Commit(address, published, at))
    rng = program.device.rng
    if rng is not None and rng.integers(2):
        while program.commits:
            complete_commit(program, place)


def _places(program: Program, mask: Array, addresses: Array) -> list[tuple[int, int, Array]]:
    """(warp, address, threads) of each warp and each address that its threads name."""
    threads = np.flatnonzero(mask)
    pairs = {(int(warp), int(at)) for warp, at in zip(program.warp[threads], addresses[threads], strict=True)}
    return [
        (warp, at, threads[(program.warp[threads] == warp) & (addresses[threads] == at)]) for warp, at in sorted(pairs)
    ]


def init(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`mbarrier.init`."""
    del match
    place = place_of(instruction)
    pointer, wanted = operands.address(instruction.operands[0], place), operands.reader(instruction.operands[1], "u32")

    def run(program: Program, mask: Array) -> None:
        for warp, address, threads in _places(program, mask, pointer(program)):
            count = int(wanted(program)[threads[0]])
            if not 1 <= count <= MAX_COUNT:
                raise MemoryFault(f"{place}: an mbarrier for {count} arrivals.")
            program.shared.hold_barrier(address, warp, place, instruction.line)
            nothing = program.clocks.nothing
            program.barriers[address] = Barrier(count, count, nothing(), nothing())

    return run


def inval(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`mbarrier.inval`."""
    del match
    place = place_of(instruction)
    pointer = operands.address(instruction.operands[0], place)

    def run(program: Program, mask: Array) -> None:
        for warp, address, _ in _places(program, mask, pointer(program)):
            program.shared.free_barrier(address, warp, place, instruction.line)
            if any(commit.address == address for commit in program.commits):
                raise MemoryFault(f"{place}: a commit is still to arrive at the mbarrier at byte {address}.")
            del program.barriers[address]

    return run


def arrival(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`mbarrier.arrive`: each thread arrives. The state that it returns is not known."""
    place, texts = place_of(instruction), instruction.operands
    if texts[0] != "_":
        raise PtxError(f"{place}: the state of {match.group(0)} is not known; write _ for it.")
    pointer = operands.address(texts[1], place)
    wanted = operands.reader(texts[2] if len(texts) == 3 else "1", "u32")

    def run(program: Program, mask: Array) -> None:
        for warp, address, threads in _places(program, mask, pointer(program)):
            program.shared.touch_barrier(address, warp, place)
            at = 0.0 if program.board is None else float(program.board.now[warp])
            published = program.clocks.publish(warp)
            for count in wanted(program)[threads]:
                arrive(program, address, published, at, place, int(count))

    return run


def wait(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`mbarrier.try_wait.parity` and `test_wait`: whether the phase of a parity has ended."""
    place, texts = place_of(instruction), instruction.operands
    if len(texts) not in (3, 4):
        raise PtxError(f"{place}: {match.group(0)} has {len(texts)} operands.")
    write, pointer = operands.writer(texts[0], "pred"), operands.address(texts[1], place)
    parity = operands.reader(texts[2], "u32")

    def run(program: Program, mask: Array) -> None:
        ended = np.zeros(operands.threads, bool)
        for warp, address, threads in _places(program, mask, pointer(program)):
            program.shared.touch_barrier(address, warp, place)
            for value in np.unique(parity(program)[threads]):
                passed = _ended(program, warp, address, int(value), place)
                ended[threads[parity(program)[threads] == value]] = passed
        write(program, mask, ended)
        _check_deadlock(program, place)

    return run


def _ended(program: Program, warp: int, address: int, parity: int, place: str) -> bool:
    """Whether the phase has ended; then the warp has seen what it published."""
    barrier = program.barriers[address]
    # The first question always comes too early for what goes on by itself: who does not ask again is found.
    while (
        program.polls[warp]
        and barrier.phase & 1 == parity & 1
        and any(commit.address == address for commit in program.commits)
    ):
        complete_commit(program, place)
    if barrier.phase & 1 == parity & 1:
        program.polls[warp] += 1
        return False
    program.polls[warp] = 0
    program.clocks.learn(warp, barrier.published)
    if program.board is not None:
        program.board.now[warp] = max(program.board.now[warp], barrier.at)
    return True


def _check_deadlock(program: Program, place: str) -> None:
    """Raises: Deadlock: every warp waits, and nothing is left to come."""
    ended = program.done.reshape(-1, LANES).all(1)
    if (ended | program.waiting | (program.polls > POLLS)).all() and not ended.all():
        missing = ", ".join(
            f"{barrier.missing} of {barrier.count} at byte {address} (phase {barrier.phase})"
            for address, barrier in sorted(program.barriers.items())
        )
        warps = ", ".join(str(warp) for warp in np.flatnonzero(program.polls > POLLS))
        raise Deadlock(f"{place}: warps {warps} wait for a phase of an mbarrier that never ends. Missing: {missing}.")
