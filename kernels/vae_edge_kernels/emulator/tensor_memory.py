"""Tensor memory of sm_100 and sm_110: 128 lanes by 512 columns of 32 bits, allocated by columns and checked by cell.

Here are the memory, the cells that loads and stores of each shape touch, and the descriptors of `tcgen05.mma`. PTX ISA
9.0, "TensorCore 5th Generation Family Instructions"; fragments also after the copy traits and descriptors of CUTLASS
(`copy_traits_sm100.hpp`, `mma_sm100_desc.hpp`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.clocks import Clocks
from vae_edge_kernels.emulator.errors import Deadlock, MemoryFault, PtxError
from vae_edge_kernels.emulator.memory import Owners
from vae_edge_kernels.emulator.warpgroups import Descriptor
from vae_edge_kernels.emulator.warps import LANE, LANES

ROWS, COLUMNS = 128, 512  # "lanes" and columns
LEAST = 32  # columns of an allocation
SHAPES = {"32x32b": 1, "16x32bx2": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4}  # registers of one repetition
SWIZZLE_BYTES = {0: 16, 2: 128, 4: 64, 6: 32}  # by the matrix descriptor's layout
KINDS = {  # of `tcgen05.mma`: types of A and B, and of D, by their codes
    "f16": ({0: "f16", 1: "bf16"}, {0: "f16", 1: "f32"}),
    "tf32": ({2: "tf32"}, {1: "f32"}),
    "f8f6f4": ({0: "e4m3", 1: "e5m2"}, {0: "f16", 1: "f32"}),
}


class TensorMemory:
    """The tensor memory of one program."""

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks
        self.data = np.zeros(ROWS * COLUMNS, np.uint32)
        self.defined = np.zeros(ROWS * COLUMNS, bool)
        self.usable = np.zeros(COLUMNS, bool)
        self.allocations: dict[int, int] = {}  # first column to columns
        self.permitted = True
        self.owners = Owners.of(ROWS * COLUMNS, clocks.columns)

    def allocate(self, columns: int, place: str, rng: np.random.Generator | None) -> int:
        """The first of as many free columns; with a generator any that fit.

        Raises:
            MemoryFault: the number is not allowed, or the permit was given up.
            Deadlock: there are not as many.
        """
        if columns < LEAST or columns > COLUMNS or columns & columns - 1:
            raise MemoryFault(f"{place}: {columns} columns of tensor memory; a power of two from {LEAST} is expected.")
        if not self.permitted:
            raise MemoryFault(f"{place}: an allocation of tensor memory after tcgen05.relinquish_alloc_permit.")
        starts = range(0, COLUMNS - columns + 1, LEAST)
        free = [start for start in starts if not self.usable[start : start + columns].any()]
        if not free:
            raise Deadlock(f"{place}: an allocation waits for {columns} columns of tensor memory that nobody frees.")
        start = free[0] if rng is None else int(rng.choice(free))
        self.usable[start : start + columns] = True
        self.allocations[start] = columns
        return start

    def free(self, address: int, columns: int, warp: int, place: str, by: int) -> None:
        """The inverse; nothing may be in flight there.

        Raises:
            MemoryFault: nothing was allocated like this, or something there is not ordered before.
        """
        if self.allocations.get(address) != columns:
            raise MemoryFault(f"{place}: {columns} columns at {address:#x} of tensor memory were not allocated.")
        cells = (np.arange(ROWS)[:, None] * COLUMNS + np.arange(address, address + columns)).reshape(-1)
        self._note_write(cells, warp, self.clocks.seen[warp], place, by, "a dealloc")
        self.defined[cells] = False
        self.usable[address : address + columns] = False
        del self.allocations[address]

    def end(self, place: str) -> None:
        """Raises: MemoryFault: the program ends with columns that nobody has freed."""
        if self.allocations:
            start, columns = next(iter(self.allocations.items()))
            raise MemoryFault(
                f"{place}: the program ends with {columns} columns of tensor memory from {start} on that no "
                "tcgen05.dealloc has freed."
            )

    def cells(self, lanes: Array, columns: Array, place: str, what: str) -> Array:
        """Numbers of cells, of the shape of the arguments.

        Raises:
            MemoryFault: some are not allocated.
        """
        inside = (columns >= 0) & (columns < COLUMNS) & (lanes >= 0) & (lanes < ROWS)
        inside &= self.usable[np.clip(columns, 0, COLUMNS - 1)]
        if not inside.all():
            lane, column = (int(np.broadcast_to(part, inside.shape)[~inside][0]) for part in (lanes, columns))
            raise MemoryFault(
                f"{place}: {what} of lane {lane}, column {column} of tensor memory, which is not allocated."
            )
        return lanes * COLUMNS + columns

    def load(self, cells: Array, agent: int, row: Array, place: str, what: str = "a read") -> Array:
        """Words of cells, read by a agent; `row` is what it has seen.

        Raises:
            MemoryFault: they were never written, or by what was not waited for.
        """
        flat = cells.reshape(-1)
        if not self.defined[flat].all():
            unwritten = self._name(int(flat[~self.defined[flat]][0]))
            raise MemoryFault(f"{place}: {what} of {unwritten}, which was never written.")
        who, rows = np.full(len(flat), agent), np.zeros(len(flat), np.int64)
        raced = self.owners.read(flat, who, rows, row[None], self.clocks.time)
        if raced.any():
            at = int(flat[raced][0])
            self._refuse(at, int(self.owners.writer[at]), place, what)
        return self.data[cells]

    def store(self, cells: Array, values: Array, agent: int, row: Array, place: str, by: int) -> None:
        """Words to cells by instruction `by`; the rest is as in `load`."""
        self._note_write(cells.reshape(-1), agent, row, place, by, "a write")
        self.data[cells], self.defined[cells] = values, True

    def _note_write(self, flat: Array, agent: int, row: Array, place: str, by: int, what: str) -> None:
        reader, writer = self.owners.reader[flat], self.owners.writer[flat]
        agent_before = np.where(self.owners.read_in[flat] >= row[reader], reader, writer)
        who, rows, equal = np.full(len(flat), agent), np.zeros(len(flat), np.int64), np.zeros(len(flat), bool)
        raced = self.owners.write(flat, who, rows, row[None], self.clocks.time, by, equal)
        if raced.any():
            self._refuse(int(flat[raced][0]), int(agent_before[raced][0]), place, what)

    def _name(self, cell: int) -> str:
        return f"lane {cell // COLUMNS}, column {cell % COLUMNS} of tensor memory"

    def _refuse(self, cell: int, agent: int, place: str, what: str) -> None:
        other = describe(agent, self.clocks.warps)
        raise MemoryFault(f"{place}: {what} of {self._name(cell)} races with {other}.")


def describe(agent: int, warps: int) -> str:
    """Who made an access to tensor memory, and what it would have had to wait for."""
    kind, warp = divmod(agent, warps)
    if agent < 0:
        return "accesses of several: nothing orders them"
    if kind == 1:
        return f"a product that warp {warp} has issued: its tcgen05.commit was not waited for"
    if kind in (2, 3):
        name = "ld" if kind == 2 else "st"
        return f"a tcgen05.{name} of warp {warp}: no tcgen05.wait::{name} and barrier lie between"
    return f"warp {warp}: no barrier lies between"


def fragment(shape: str, repetitions: int, split: int) -> tuple[Array, Array]:
    """Lanes and columns [32, registers] of a warp's load or store, from its address.

    Args:
        shape: of `SHAPES`.
        repetitions: "x32" is 32.
        split: columns to the second half of 16x32bx2, which the upper lanes of the warp take.
    """
    register = np.arange(SHAPES[shape] * repetitions)[None, :]
    lane = LANE[:, None]
    zeros = np.zeros((LANES, register.shape[1]), np.int64)
    if shape == "32x32b":
        return lane + zeros, register + zeros
    if shape == "16x32bx2":
        return lane % 16 + zeros, register + lane // 16 * split + zeros
    if shape == "16x64b":
        return lane // 4 + 8 * (lane % 2) + zeros, lane // 2 % 2 + 2 * register + zeros
    if shape == "16x128b":
        return lane // 4 + 8 * (register % 2) + zeros, lane % 4 + 4 * (register // 2) + zeros
    return lane // 4 + 8 * (register // 2 % 2) + zeros, 2 * (lane % 4) + register % 2 + 8 * (register // 4) + zeros


def matrix_descriptor(bits: int) -> Descriptor:
    """A matrix in shared memory from its 64 bits.

    Raises:
        PtxError: a field has a value that is not known.
    """
    layout = bits >> 61 & 7
    if layout not in SWIZZLE_BYTES or bits >> 46 & 7 != 1 or bits >> 49 & 0xFFF or bits & 0xC000C000:
        raise PtxError(f"The matrix descriptor {bits:#x} is not known.")
    start, leading, stride = ((bits >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    return Descriptor(start, leading, stride, SWIZZLE_BYTES[layout])


@dataclass(frozen=True)
class Product:
    """What an instruction descriptor asks of `tcgen05.mma`.

    Attributes:
        a, b, d: types of the elements.
        m, n: rows and columns of D.
        transposed_a, transposed_b: whether M or N lies along the contiguous axis.
        sign: of the products, 1 or -1.
    """

    a: str
    b: str
    d: str
    m: int
    n: int
    transposed_a: bool
    transposed_b: bool
    sign: int

    @classmethod
    def of(cls, bits: int, kind: str) -> Product:
        """From the 32 bits.

        Raises:
            PtxError: a field has a value that is not known.
        """
        factors, sums = KINDS[kind]
        a, b, d = factors.get(bits >> 7 & 7), factors.get(bits >> 10 & 7), sums.get(bits >> 4 & 3)
        m, n = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
        unknown = bits & 0b1111 or bits >> 6 & 1 or bits >> 23 & 1 or bits >> 29
        if a is None or b is None or d is None or unknown or (kind == "f16" and a != b):
            raise PtxError(f"The instruction descriptor {bits:#x} of kind {kind} is not known.")
        if m not in (64, 128) or not 8 <= n <= 256 or n % (8 if m == 64 else 16):
            raise PtxError(f"The instruction descriptor {bits:#x} asks for {m} by {n}, which is not allowed.")
        negated = (bits >> 13 & 1) ^ (bits >> 14 & 1)
        return cls(a, b, d, m, n, bool(bits >> 15 & 1), bool(bits >> 16 & 1), -1 if negated else 1)

    def lanes(self, first: int) -> Array:
        """The lane of each row of A and D [M]: with 64 rows, 16 of each warp's 32 lanes.

        Raises:
            PtxError: they cannot begin at this lane.
        """
        if first not in ((0,) if self.m == ROWS else (0, 16)):
            raise PtxError(f"A product of {self.m} rows cannot begin at lane {first} of tensor memory.")
        row = np.arange(self.m)
        return row if self.m == ROWS else first + row // 16 * LANES + row % 16
