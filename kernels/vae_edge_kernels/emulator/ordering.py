"""Which accesses of global memory are ordered: vector clocks of programs, and who touched each byte.

Within a program its warps are ordered by `clocks`, whose time also stamps what programs do. A warp knows of every other
program up to which time its accesses are ordered before its own; it learns that by acquiring an address that the other
program has released, and the warps of its program learn it at their next barrier. After: Flanagan and Freund,
"FastTrack: Efficient and Precise Dynamic Race Detection" (2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.clocks import NOBODY, SEVERAL

MAX_PROGRAMS = 64  # whose reads are told apart; of more, a write after reads by several programs is not judged


@dataclass(frozen=True)
class Agent:
    """Who makes accesses: some warps of one program.

    Attributes:
        program: its number in the grid.
        time: of the program.
        warps: of each access [N].
        known: by warp and program, the time before which that program's accesses are ordered before this warp's.
        seen: the same of the warps of its own program (`clocks.Clocks.seen`).
    """

    program: int
    time: int
    warps: Array
    known: Array
    seen: Array


class Accesses:
    """Who wrote and who read each byte of a buffer last; `rival` says whom the last race was with."""

    def __init__(self, size: int, programs: int) -> None:
        self.size, self.programs = size, programs
        self.writer = _Last(size)
        self.reader = _Last(size)
        self.by = np.zeros(size, np.int32)  # the instruction that wrote
        self.reads: Array | None = None  # time of each program's last read, once several have read
        self.atomics: _Last | None = None  # the last atomic operation, once there was one
        self.rival = ""

    def read(self, index: Array, who: Agent) -> Array:
        """Note reads of bytes [N, size]; which of them race with a write."""
        raced = self._judge(
            index, (self.writer.unordered(index, who), self.writer, "the write"), self._atomic(index, who)
        )
        before = self.reader.program[index]
        others = (before != who.program) & (before != NOBODY)
        if self.reads is None and others.any() and self.programs <= MAX_PROGRAMS:
            self.reads = np.full((self.programs, self.size), NOBODY, np.int32)
            known = self.reader.program >= 0
            self.reads[self.reader.program[known], np.flatnonzero(known)] = self.reader.time[known]
        if self.reads is not None:
            self.reads[who.program, index] = who.time
        self.reader.note(index, who)
        self.reader.program[index[others]] = SEVERAL
        return raced

    def write(self, index: Array, who: Agent, by: int, equal: Array) -> tuple[Array, bool]:
        """Note writes of bytes [N, size] by instruction `by`; which race, and whether any repeat another warp's.

        Several warps may write one byte by the same instruction if the values are `equal`: what a reduction leaves in
        every warp, or a program in each of its copies, is stored by each.
        """
        raced = self.writer.unordered(index, who)
        repeats = raced & equal & (self.by[index] == by)
        raced = self._judge(
            index,
            (raced & ~repeats, self.writer, "the write"),
            (self._read(index, who), self.reader, "the read"),
            self._atomic(index, who),
        )
        self.writer.note(index, who)
        self.by[index] = by
        return raced, bool(repeats.any())

    def atomic(self, index: Array, who: Agent) -> Array:
        """Note atomic operations on bytes [N, size]; which of them race with a read or write that is not atomic."""
        raced = self._judge(
            index,
            (self.writer.unordered(index, who), self.writer, "the write"),
            (self._read(index, who), self.reader, "the read"),
        )
        if self.atomics is None:
            self.atomics = _Last(self.size)
        self.atomics.note(index, who)
        return raced

    def _judge(self, index: Array, *sides: tuple[Array, _Last, str]) -> Array:
        """Bytes that race with any side; of the first one, `rival` gets the access that was there before."""
        raced = np.any([side[0] for side in sides], axis=0)
        if raced.any():
            last, what = next((last, what) for late, last, what in sides if late[raced][0])
            self.rival = last.describe(int(index[raced][0]), what)
        return np.asarray(raced)

    def _atomic(self, index: Array, who: Agent) -> tuple[Array, _Last, str]:
        """Bytes whose last atomic operation is not ordered before this access."""
        if self.atomics is None:
            return np.zeros(index.shape, bool), self.writer, ""
        return self.atomics.unordered(index, who), self.atomics, "the atomic update"

    def _read(self, index: Array, who: Agent) -> Array:
        """Bytes of which a read is not ordered before this access."""
        raced = self.reader.unordered(index, who)
        if self.reads is not None:
            several = index[self.reader.program[index] == SEVERAL]
            if len(several):
                latest = self.reads[:, several]  # [programs, bytes]
                known = who.known[who.warps[0]][:, None]
                late = (latest >= known) & (latest != NOBODY)
                late[who.program] = False
                raced[self.reader.program[index] == SEVERAL] |= late.any(0)
        return raced


class _Last:
    """The last access of each byte: program, warp (or `SEVERAL`), time."""

    def __init__(self, size: int) -> None:
        self.program = np.full(size, NOBODY, np.int32)
        self.warp = np.full(size, NOBODY, np.int32)
        self.time = np.zeros(size, np.int32)

    def unordered(self, index: Array, who: Agent) -> Array:
        """Bytes [N, size] whose last access is not ordered before one by these warps."""
        program, warps = self.program[index], who.warps[:, None]
        own = (program == who.program) & (self.time[index] >= who.seen[warps, self.warp[index]])
        foreign = (program >= 0) & (program != who.program)
        if foreign.any():
            foreign &= self.time[index] >= who.known[warps, np.maximum(program, 0)]
        return own | foreign

    def describe(self, byte: int, verb: str) -> str:
        """The last access of a byte, for messages."""
        program, warp = int(self.program[byte]), int(self.warp[byte])
        if program == SEVERAL:
            return f"{verb}s of several programs"
        return f"{verb} by program {program}" + (f", warp {warp}" if warp >= 0 else "")

    def note(self, index: Array, who: Agent) -> None:
        """These warps access bytes [N, size]; several warps of one program that nothing orders are `SEVERAL`."""
        warps = np.broadcast_to(who.warps[:, None], index.shape)
        again = (self.program[index] == who.program) & (self.time[index] >= who.seen[warps, self.warp[index]])
        self.warp[index] = np.where(again, SEVERAL, warps)
        different = self.warp[index] != np.where(again, SEVERAL, warps)  # two warps in one instruction
        self.warp[index[different]] = SEVERAL
        self.program[index], self.time[index] = who.program, who.time
