"""Memory of the emulated device: global buffers and the shared memory of a program, checked byte by byte.

Every access is checked for bounds, alignment, bytes that were never written, and races. A race is two accesses of one
byte, at least one of them a write, by different warps with nothing between them that orders them: a barrier, a phase of
an mbarrier (`clocks`), or for warps of different programs an acquire of what a release has published (`ordering`).
Copies in flight (`cp.async`) own their bytes until they are waited for; matrices are read through the asynchronous
proxy, which sees what was written before a proxy fence.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.clocks import NOBODY, SEVERAL, Clocks
from vae_edge_kernels.emulator.counting import SECTOR_BYTES
from vae_edge_kernels.emulator.errors import MemoryFault
from vae_edge_kernels.emulator.linking import LOCAL_BASE
from vae_edge_kernels.emulator.ordering import Accesses, Agent

GLOBAL_BASE = 0x7F00_0000_0000  # where the first buffer lies
GUARD = 1 << 20  # bytes between buffers that no pointer reaches


@dataclass
class Owners:
    """Who wrote and read each byte (or cell) last, when, and by which instruction.

    Makers and times are those of `clocks`. Where barriers alone order accesses, of several readers the last time is
    enough. Else `reads` has the time of each one's last read, from the first time on that several have read a byte.
    `rival` is whom the first access of the last race has raced with.
    """

    writer: Array
    written_in: Array
    written_by: Array
    reader: Array
    read_in: Array
    agents: int = 0
    reads: Array | None = None
    rival: int = NOBODY

    @classmethod
    def of(cls, size: int, agents: int = 0) -> Owners:
        """Nobody has touched any byte; the reads of so many agents are told apart."""
        writer, written_in, written_by, reader, read_in = (np.full(size, NOBODY, np.int32) for _ in range(5))
        return cls(writer, written_in, written_by, reader, read_in, agents)

    def _tell_apart(self) -> None:
        if self.agents and self.reads is None:
            self.reads = np.full((self.agents, len(self.reader)), NOBODY, np.int32)
            known = np.flatnonzero(self.reader >= 0)
            self.reads[self.reader[known], known] = self.read_in[known]

    def read(self, index: Array, who: Array, rows: Array, clocks: Array, now: int) -> Array:
        """Note reads of bytes; which of them race with a write.

        Args:
            index: of the bytes [N].
            who: agents [N].
            rows: whose knowledge counts, as rows of `clocks` [N].
            clocks: `Clocks.seen`, or a row of it.
            now: the time.
        """
        raced = self.written_in[index] >= clocks[rows, self.writer[index]]
        if raced.any():
            self.rival = int(self.writer[index][raced][0])
        again = (self.read_in[index] >= clocks[rows, self.reader[index]]) & (self.reader[index] != who)
        if self.agents and again.any():
            self._tell_apart()
        self.reader[index] = np.where(again, SEVERAL, who)
        # two warps that read one byte in one instruction
        different = self.reader[index] != who
        self.reader[index[different]] = SEVERAL
        self.read_in[index] = now
        if self.agents and different.any():
            self._tell_apart()
        if self.reads is not None:
            self.reads[who, index] = now
        return raced

    def write(self, index: Array, who: Array, rows: Array, clocks: Array, now: int, by: int, equal: Array) -> Array:
        """Note writes of bytes by instruction `by`; which of them race with a read or another write.

        Several warps may write one byte by the same instruction if the values are `equal`: what a reduction leaves in
        every warp is stored by each. The other arguments are those of `read`.
        """
        other = self.written_in[index] >= clocks[rows, self.writer[index]]
        shared = other & (self.written_by[index] == by) & equal
        raced = other & ~shared
        late = self.read_in[index] >= clocks[rows, self.reader[index]]
        if self.reads is not None:
            several = self.reader[index] == SEVERAL
            times = self.reads[:, index[several]]
            late[several] = (times >= clocks[rows[several], : len(times)].T).any(0)
        if (raced | late).any():
            self.rival = int(np.where(raced, self.writer[index], self.reader[index])[raced | late][0])
        raced |= late
        self.writer[index] = np.where(shared, SEVERAL, who)
        self.written_in[index], self.written_by[index] = now, by
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
        accesses: who touched which byte, during a launch.
    """

    name: str
    base: int
    data: Array
    defined: Array
    accesses: Accesses | None = None
    sectors: Array | None = None

    def touched(self, inside: Array) -> Array:
        """Which sectors were touched before; from now on all of them are. They count from the one of the base."""
        if self.sectors is None:
            self.sectors = np.zeros(len(self.data) // SECTOR_BYTES + 2, bool)
        before = self.sectors[inside]
        self.sectors[inside] = True
        return before

    def touched_bytes(self) -> int:
        """Bytes of all sectors that were touched."""
        return 0 if self.sectors is None else int(self.sectors.sum()) * SECTOR_BYTES


@dataclass
class GlobalMemory:
    """All buffers, in order of their addresses."""

    buffers: list[Buffer] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    repeated: Counter[str] = field(default_factory=Counter)  # places that store equal values which others have stored

    def add(self, name: str, data: Array, defined: bool = True, offset: int = 0) -> int:
        """Add a buffer; the address of its first byte, which is aligned to 256 bytes plus `offset`."""
        last = self.buffers[-1] if self.buffers else None
        start = GLOBAL_BASE if last is None else last.base + len(last.data) + GUARD
        base = (start + 255) // 256 * 256 + offset
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8).copy()
        self.buffers.append(Buffer(name, base, flat, np.full(len(flat), defined)))
        self.bases.append(base)
        return base

    def begin(self, programs: int) -> None:
        """A launch begins: what was done before is ordered before it."""
        for buffer in self.buffers:
            buffer.accesses = Accesses(len(buffer.data), programs)

    def load(self, addresses: Array, size: int, who: Agent | None, place: str) -> Array:
        """Bytes [N, size], read by one thread each.

        Args:
            addresses: uint64 [N].
            size: of an access.
            who: makes the accesses; None for atomic ones and those that are ordered by themselves.
            place: for messages.

        Raises:
            MemoryFault: an access is out of bounds, misaligned, of unwritten bytes, or a race.
        """
        buffer, offsets = self._check(addresses, size, place, "a read")
        index = spread(offsets, size)
        if not buffer.defined[index].all():
            at = int(index[~buffer.defined[index]][0])
            raise MemoryFault(f"{place}: a read of byte {at} of {buffer.name}, which was never written.")
        if who is not None and buffer.accesses is not None:
            self._refuse(buffer, buffer.accesses.read(index, who), index, who, place, "a read")
        return buffer.data[index]

    def store(self, addresses: Array, values: Array, who: Agent | None, place: str, by: int = 0) -> None:
        """Write bytes [N, size] by instruction `by`, one thread each. The rest is as in `load`."""
        buffer, offsets = self._check(addresses, values.shape[1], place, "a write")
        index = spread(offsets, values.shape[1])
        if who is not None and buffer.accesses is not None:
            raced, repeated = buffer.accesses.write(index, who, by, buffer.data[index] == values)
            if repeated:
                self.repeated[place] += 1
            self._refuse(buffer, raced, index, who, place, "a write")
        buffer.data[index], buffer.defined[index] = values, True
        if (buffer.data[index] != values).any():
            at = int(index[buffer.data[index] != values][0])
            raise MemoryFault(f"{place}: threads write different values to byte {at} of {buffer.name} at once.")

    def note_atomic(self, addresses: Array, size: int, who: Agent, place: str) -> None:
        """Atomic operations, one thread each: they race with what is not atomic. The errors are those of `load`."""
        buffer, offsets = self._check(addresses, size, place, "an atomic update")
        if buffer.accesses is not None:
            index = spread(offsets, size)
            self._refuse(buffer, buffer.accesses.atomic(index, who), index, who, place, "an atomic update")

    def _refuse(self, buffer: Buffer, raced: Array, index: Array, who: Agent, place: str, what: str) -> None:
        if raced.any():
            row, column = (int(i[0]) for i in np.nonzero(raced))
            assert buffer.accesses is not None
            raise MemoryFault(
                f"{place}: {what} of byte {int(index[row, column])} of {buffer.name} by program {who.program}, warp "
                f"{int(who.warps[row])} races with {buffer.accesses.rival}: nothing orders them."
            )

    def find(self, address: int) -> tuple[Buffer, int]:
        """The last buffer that begins at an address or before it, and its base.

        Raises:
            MemoryFault: there is none.
        """
        at = bisect.bisect_right(self.bases, address) - 1
        if at < 0:
            raise MemoryFault(f"The address {address:#x} is in no buffer.")
        return self.buffers[at], self.bases[at]

    def _check(self, addresses: Array, size: int, place: str, what: str) -> tuple[Buffer, Array]:
        """The buffer that all addresses lie in, and their offsets."""
        first = int(addresses[0])
        if not self.bases or first < self.bases[0]:
            raise MemoryFault(f"{place}: {what} of {size} bytes at {first:#x} is in no buffer.")
        buffer, _ = self.find(first)
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


class LocalMemory:
    """The local memory of a program's threads: each has its own at the same addresses."""

    def __init__(self, threads: int, size: int) -> None:
        self.data = np.zeros((threads, size), np.uint8)
        self.defined = np.zeros((threads, size), bool)

    def load(self, addresses: Array, size: int, mask: Array, place: str) -> Array:
        """Bytes [N, size] of the threads of a mask.

        Raises:
            MemoryFault: an access is out of bounds, misaligned or of unwritten bytes.
        """
        where = self._check(addresses, size, mask, place, "a read")
        if not self.defined[where].all():
            raise MemoryFault(f"{place}: a read of local memory that was never written.")
        return self.data[where]

    def store(self, addresses: Array, values: Array, mask: Array, place: str) -> None:
        """Write bytes [N, size]; errors as in `load`."""
        where = self._check(addresses, values.shape[1], mask, place, "a write")
        self.data[where], self.defined[where] = values, True

    def _check(self, addresses: Array, size: int, mask: Array, place: str, what: str) -> tuple[Array, Array]:
        offsets = addresses.astype(np.int64) - LOCAL_BASE
        wrong = (offsets < 0) | (offsets + size > self.data.shape[1])
        if wrong.any():
            raise MemoryFault(
                f"{place}: {what} of {size} bytes at byte {int(offsets[wrong][0])} of local memory, which has "
                f"{self.data.shape[1]}."
            )
        if (offsets % size != 0).any():
            raise MemoryFault(f"{place}: {what} of {size} bytes of local memory is misaligned.")
        return np.flatnonzero(mask)[:, None], spread(offsets, size)


class SharedMemory:
    """The shared memory of one program.

    Attributes:
        held: bytes that nobody may touch: a copy in flight writes them, or a barrier (`mbarrier`) lies there.
        barriers: first bytes of the latter.
    """

    def __init__(self, size: int, clocks: Clocks, *, asynchronous: bool = False) -> None:
        self.clocks = clocks
        self.data = np.zeros(size, np.uint8)
        self.defined = np.zeros(size, bool)
        self.held = np.zeros(size, bool)
        self.barriers: set[int] = set()
        self.owners = Owners.of(size, 2 * clocks.warps if asynchronous else 0)
        self.disagreements: Counter[str] = Counter()  # places that store different values at one address

    def check(self, addresses: Array, size: int, place: str, what: str) -> Array:
        """Offsets of all bytes [N, size].

        Raises:
            MemoryFault: an access is out of bounds, misaligned, or of bytes that are held.
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
        if self.held[index].any():
            at = int(index[self.held[index]][0])
            raise MemoryFault(f"{place}: {what} of byte {at} of shared memory, {self._holder(at)}.")
        return index

    def _holder(self, byte: int) -> str:
        return "where an mbarrier lies" if byte // 8 * 8 in self.barriers else "which a copy in flight writes"

    def load(self, addresses: Array, size: int, warps: Array, place: str) -> Array:
        """Bytes [N, size]."""
        index = self.check(addresses, size, place, "a read")
        if not self.defined[index].all():
            at = int(index[~self.defined[index]][0])
            raise MemoryFault(f"{place}: a read of byte {at} of shared memory, which was never written.")
        flat, who = index.reshape(-1), np.repeat(warps, size)
        raced = self.owners.read(flat, who, who, self.clocks.seen, self.clocks.time)
        self._refuse(raced, flat, who, place, "a read")
        return self.data[index]

    def store(self, addresses: Array, values: Array, warps: Array, place: str, by: int) -> None:
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
        raced = self.owners.write(flat, who, who, self.clocks.seen, self.clocks.time, by, ~late)
        self._refuse(raced, flat, who, place, "a write")

    def begin_copy(self, addresses: Array, size: int, warps: Array, place: str, by: int) -> Array:
        """An asynchronous copy begins: the offsets of its bytes [N, size], which nobody may touch until `end_copy`."""
        index = self.check(addresses, size, place, "an asynchronous copy")
        flat, who = index.reshape(-1), np.repeat(warps, size)
        unequal = np.zeros(len(flat), bool)
        raced = self.owners.write(flat, who, who, self.clocks.seen, self.clocks.time, by, unequal)
        if raced.any():
            raise MemoryFault(
                f"{place}: an asynchronous copy to byte {int(flat[raced][0])} of shared memory races with an access of "
                f"{self._other()}: no barrier lies between."
            )
        self.held[index] = True
        return index

    def end_copy(self, parts: list[tuple[Array, Array]], warp: int) -> None:
        """The copies of a warp have arrived: offsets [N, size], and the bytes that they bring."""
        for index, values in parts:
            self.data[index], self.defined[index], self.held[index] = values, True, False
            self.owners.writer[index], self.owners.written_in[index] = warp, self.clocks.time

    def observe(self, index: Array, warp: int, place: str) -> Array:
        """Bytes that the matrix units read through the asynchronous proxy, for a warp's product.

        Raises:
            MemoryFault: they are out of bounds, unwritten, held, or were written with nothing that orders it.
        """
        if (index >= len(self.data)).any():
            raise MemoryFault(
                f"{place}: a matrix reaches byte {int(index.max())} of shared memory, which has {len(self.data)}."
            )
        writer, written_in = self.owners.writer[index], self.owners.written_in[index]
        for wrong, what in (
            (self.held[index], ""),
            (~self.defined[index], "which was never written"),
            (written_in >= self.clocks.seen[warp, writer], "which another warp has written with no barrier between"),
            (
                written_in >= self.clocks.fenced[warp, writer],
                "which was written with no fence.proxy.async and barrier between",
            ),
        ):
            if wrong.any():
                at = int(index[wrong][0])
                reason = what or self._holder(at)
                raise MemoryFault(f"{place}: a matrix reads byte {at} of shared memory, {reason}.")
        return self.data[index]

    def note_products(self, index: Array, warp: int) -> None:
        """A warp's product in flight reads bytes: until it is waited for, nobody may write them."""
        agent = self.clocks.products(warp)
        flat, rows = index.reshape(-1), np.full(index.size, warp)
        self.owners.read(flat, np.full(index.size, agent), rows, self.clocks.seen, self.clocks.time)

    def hold_barrier(self, address: int, warp: int, place: str, by: int) -> None:
        """An mbarrier is made in eight bytes: from now on nobody else may touch them."""
        index = self.check(np.array([address]), 8, place, "an mbarrier.init")
        self._write_barrier(index.reshape(-1), warp, place, by, "an mbarrier.init")
        self.held[index] = True
        self.barriers.add(address)

    def free_barrier(self, address: int, warp: int, place: str, by: int) -> None:
        """The bytes of an mbarrier are memory again, and hold nothing."""
        self.touch_barrier(address, warp, place)
        index = np.arange(address, address + 8)
        self._write_barrier(index, warp, place, by, "an mbarrier.inval")
        self.held[index], self.defined[index] = False, False
        self.barriers.remove(address)

    def touch_barrier(self, address: int, warp: int, place: str) -> None:
        """A warp arrives at an mbarrier, or asks for its phase.

        Raises:
            MemoryFault: there is none, or nothing orders this after it was made.
        """
        if address not in self.barriers:
            raise MemoryFault(f"{place}: no mbarrier was initialized at byte {address} of shared memory.")
        index, who = np.arange(address, address + 8), np.full(8, warp)
        raced = self.owners.read(index, who, who, self.clocks.seen, self.clocks.time)
        self._refuse(raced, index, who, place, "a read")

    def _write_barrier(self, index: Array, warp: int, place: str, by: int, what: str) -> None:
        who, equal = np.full(len(index), warp), np.zeros(len(index), bool)
        raced = self.owners.write(index, who, who, self.clocks.seen, self.clocks.time, by, equal)
        self._refuse(raced, index, who, place, what)

    def _other(self) -> str:
        """Whom the last access has raced with, for messages."""
        agent = self.owners.rival
        if self.clocks.warps <= agent < 2 * self.clocks.warps:
            return f"a product in flight, issued by warp {agent - self.clocks.warps}"
        return f"warp {agent}" if agent >= 0 else "several warps"

    def _refuse(self, raced: Array, flat: Array, who: Array, place: str, what: str) -> None:
        if raced.any():
            at, by = int(flat[raced][0]), int(who[raced][0])
            raise MemoryFault(
                f"{place}: {what} of byte {at} of shared memory by warp {by} races with {self._other()}: no "
                "barrier lies between."
            )
