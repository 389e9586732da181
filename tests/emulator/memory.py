"""Memory of the emulated device: global buffers and the shared memory of a program, checked byte by byte.

Every access is checked for bounds, alignment, bytes that were never written, and races. A race is two accesses of one
byte, at least one of them a write, by different warps of a program with no barrier between them, or by different
programs with no synchronization between them. Copies in flight (`cp.async`) own their bytes until they are waited for.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np

from .arithmetic import Array
from .errors import MemoryFault

GLOBAL_BASE = 0x7F00_0000_0000  # where the first buffer lies
GUARD = 1 << 20  # bytes between buffers that no pointer reaches
NOBODY, SEVERAL = -1, -2


def _where(place: str, source: str) -> str:
    return f"{place} ({source})" if source else place


@dataclass
class Owners:
    """Who wrote and read each byte last, and in which interval between barriers."""

    writer: Array
    written_in: Array
    reader: Array
    read_in: Array

    @classmethod
    def of(cls, size: int) -> Owners:
        """Nobody has touched any byte."""
        return cls(*(np.full(size, NOBODY, np.int32) for _ in range(4)))

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

    def write(self, index: Array, who: Array, interval: Array) -> Array:
        """Note writes of bytes; which of them race with a read or another write."""
        raced = (self.written_in[index] == interval) & (self.writer[index] != who)
        raced |= (self.read_in[index] == interval) & (self.reader[index] != who)
        self.writer[index], self.written_in[index] = who, interval
        raced |= self.writer[index] != who  # two warps in one instruction
        return raced


@dataclass
class Buffer:
    """A buffer of global memory.

    Attributes:
        name: for messages.
        base: its first address.
        data: uint8 [size].
        defined: which bytes were written, by the host or by a kernel.
        owners: of races between programs.
    """

    name: str
    base: int
    data: Array
    defined: Array
    owners: Owners


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
        self.buffers.append(Buffer(name, base, flat, np.full(len(flat), defined), Owners.of(len(flat))))
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
        self._judge(self.owners.read, index, warps, interval, place, "a read")
        return self.data[index]

    def store(self, addresses: Array, values: Array, warps: Array, interval: int, place: str) -> None:
        """Write bytes [N, size]."""
        index = self.check(addresses, values.shape[1], place, "a write")
        self._judge(self.owners.write, index, warps, interval, place, "a write")
        self.data[index], self.defined[index] = values, True

    def _judge(self, note: object, index: Array, warps: Array, interval: int, place: str, what: str) -> None:
        assert callable(note)
        who = np.repeat(warps, index.shape[1])
        flat = index.reshape(-1)
        raced = note(flat, who, np.full(len(flat), interval, np.int32))
        if raced.any():
            at, by = int(flat[raced][0]), int(who[raced][0])
            raise MemoryFault(
                f"{place}: {what} of byte {at} of shared memory by warp {by} races with warp "
                f"{int(self.owners.writer[at])}: no barrier lies between."
            )
