"""Memory of the emulated device: global buffers and the shared memory of a program, checked byte by byte.

Every access is checked for bounds, alignment and bytes that were never written; those of shared memory for races too. A
race is two accesses of one byte, at least one of them a write, by different warps with no barrier between them. Copies
in flight (`cp.async`) own their bytes until they are waited for. Races in global memory are not looked for.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.errors import MemoryFault

GLOBAL_BASE = 0x7F00_0000_0000  # where the first buffer lies
GUARD = 1 << 20  # bytes between buffers that no pointer reaches
NOBODY, SEVERAL = -1, -2


@dataclass
class Owners:
    """Who wrote and read each byte last, in which interval between barriers, and by which instruction."""

    writer: Array
    written_in: Array
    written_by: Array
    reader: Array
    read_in: Array

    @classmethod
    def of(cls, size: int) -> Owners:
        """Nobody has touched any byte."""
        return cls(*(np.full(size, NOBODY, np.int32) for _ in range(5)))

    def read(self, index: Array, who: Array, interval: Array) -> Array:
        """Note reads of bytes; which of them race with a write."""
        raced = (self.written_in[index] == interval) & (self.writer[index] != who)
        again = (self.read_in[index] == interval) & (self.reader[index] != who) & (self.reader[index] != NOBODY)
        self.reader[index] = np.where(again, SEVERAL, who)
        # two warps that read one byte in one instruction
        different = self.reader[index] != who
        self.reader[index[different]] = SEVERAL
        self.read_in[index] = interval
        return raced

    def write(self, index: Array, who: Array, interval: Array, by: int, equal: Array) -> Array:
        """Note writes of bytes; which of them race with a read or another write.

        Several warps may write one byte by the same instruction if the values are `equal`: what a reduction leaves in
        every warp is stored by each.
        """
        other = (self.written_in[index] == interval) & (self.writer[index] != who)
        shared = other & (self.written_by[index] == by) & equal
        raced = other & ~shared
        raced |= (self.read_in[index] == interval) & (self.reader[index] != who)
        self.writer[index] = np.where(shared, SEVERAL, who)
        self.written_in[index], self.written_by[index] = interval, by
        different = (self.writer[index] != who) & ~shared  # two warps in one instruction
        self.writer[index[different]] = SEVERAL
        return raced


@dataclass
class Buffer:
    """A buffer of global memory.

    Attributes:
        name: for messages.
        base: its first address.
        data: uint8 [size].
        defined: which bytes were written, by the host or by a kernel.
    """

    name: str
    base: int
    data: Array
    defined: Array


@dataclass
class GlobalMemory:
    """All buffers, in order of their addresses."""

    buffers: list[Buffer] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)

    def add(self, name: str, data: Array, defined: bool = True, offset: int = 0) -> int:
        """Add a buffer; the address of its first byte, which is aligned to 256 bytes plus `offset`."""
        last = self.buffers[-1] if self.buffers else None
        start = GLOBAL_BASE if last is None else last.base + len(last.data) + GUARD
        base = (start + 255) // 256 * 256 + offset
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8).copy()
        self.buffers.append(Buffer(name, base, flat, np.full(len(flat), defined)))
        self.bases.append(base)
        return base

    def find(self, addresses: Array, size: int, place: str, what: str) -> tuple[Buffer, Array]:
        """The buffer that all addresses lie in, and their offsets.

        Raises:
            MemoryFault: an access is out of bounds, misaligned, or of several buffers.
        """
        first = int(addresses[0])
        at = bisect.bisect_right(self.bases, first) - 1
        if at < 0:
            raise MemoryFault(f"{place}: {what} of {size} bytes at {first:#x} is in no buffer.")
        buffer = self.buffers[at]
        offsets = addresses.astype(np.int64) - buffer.base
        beyond = (offsets < 0) | (offsets + size > len(buffer.data))
        if beyond.any():
            raise MemoryFault(
                f"{place}: {what} of {size} bytes at byte {int(offsets[beyond][0])} of {buffer.name}, which has "
                f"{len(buffer.data)}."
            )
        misaligned = addresses % np.uint64(size) != 0
        if misaligned.any():
            raise MemoryFault(
                f"{place}: {what} of {size} bytes at byte {int(offsets[misaligned][0])} of {buffer.name} is misaligned."
            )
        return buffer, offsets


def spread(offsets: Array, size: int) -> Array:
    """Offsets [N] to those of all bytes [N, size]."""
    return offsets[:, None] + np.arange(size)


class SharedMemory:
    """The shared memory of one program."""

    def __init__(self, size: int) -> None:
        self.data = np.zeros(size, np.uint8)
        self.defined = np.zeros(size, bool)
        self.in_flight = np.zeros(size, bool)
        self.owners = Owners.of(size)
        self.disagreements: Counter[str] = Counter()  # places that store different values at one address

    def check(self, addresses: Array, size: int, place: str, what: str) -> Array:
        """Offsets of all bytes [N, size].

        Raises:
            MemoryFault: an access is out of bounds, misaligned, or of bytes that a copy in flight writes.
        """
        offsets = addresses.astype(np.int64)
        beyond = offsets + size > len(self.data)
        if beyond.any():
            raise MemoryFault(
                f"{place}: {what} of {size} bytes at byte {int(offsets[beyond][0])} of shared memory, which has "
                f"{len(self.data)}."
            )
        misaligned = offsets % size != 0
        if misaligned.any():
            raise MemoryFault(
                f"{place}: {what} of {size} bytes at byte {int(offsets[misaligned][0])} of shared memory is misaligned."
            )
        index = spread(offsets, size)
        if self.in_flight[index].any():
            at = int(index[self.in_flight[index]][0])
            raise MemoryFault(f"{place}: {what} of byte {at} of shared memory, which a copy in flight writes.")
        return index

    def load(self, addresses: Array, size: int, warps: Array, interval: int, place: str) -> Array:
        """Bytes [N, size]."""
        index = self.check(addresses, size, place, "a read")
        if not self.defined[index].all():
            at = int(index[~self.defined[index]][0])
            raise MemoryFault(f"{place}: a read of byte {at} of shared memory, which was never written.")
        flat, who = index.reshape(-1), np.repeat(warps, size)
        raced = self.owners.read(flat, who, np.full(len(flat), interval, np.int32))
        self._refuse(raced, flat, who, place, "a read")
        return self.data[index]

    def store(self, addresses: Array, values: Array, warps: Array, interval: int, place: str, by: int) -> None:
        """Write bytes [N, size] by instruction `by`. Different values at one address are counted in `disagreements`."""
        index = self.check(addresses, values.shape[1], place, "a write")
        flat, who, given = index.reshape(-1), np.repeat(warps, values.shape[1]), values.reshape(-1)
        before = self.data[flat]
        self.data[flat], self.defined[flat] = given, True
        disagree = self.data[flat] != given
        if disagree.any():
            self.disagreements[place] += 1
        # another warp's value of the same instruction, which came in an earlier step
        late = (self.owners.written_by[flat] == by) & (before != given)
        raced = self.owners.write(flat, who, np.full(len(flat), interval, np.int32), by, ~late)
        self._refuse(raced, flat, who, place, "a write")

    def observe(self, index: Array, interval: int, place: str) -> Array:
        """Bytes that the matrix units read through the asynchronous proxy.

        Raises:
            MemoryFault: they are out of bounds, unwritten, in flight, or were written since the last barrier.
        """
        if (index >= len(self.data)).any():
            raise MemoryFault(
                f"{place}: a matrix reaches byte {int(index.max())} of shared memory, which has {len(self.data)}."
            )
        for wrong, what in (
            (self.in_flight[index], "which a copy in flight writes"),
            (~self.defined[index], "which was never written"),
            (self.owners.written_in[index] == interval, "which was written since the last barrier"),
        ):
            if wrong.any():
                raise MemoryFault(f"{place}: a matrix reads byte {int(index[wrong][0])} of shared memory, {what}.")
        return self.data[index]

    def _refuse(self, raced: Array, flat: Array, who: Array, place: str, what: str) -> None:
        if raced.any():
            at, by = int(flat[raced][0]), int(who[raced][0])
            raise MemoryFault(
                f"{place}: {what} of byte {at} of shared memory by warp {by} races with warp "
                f"{int(self.owners.writer[at])}: no barrier lies between."
            )
