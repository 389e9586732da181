"""`wgmma`: products of matrices by groups of four warps, whose operands lie in shared memory.

PTX ISA 8.8, "Asynchronous warpgroup level matrix instructions": layout of the descriptor, of the operands that it names
and of the swizzles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.warps import (
    LANES,
    MMA_K,
    accumulators_to_matrix,
    fragment_a,
    matrix_to_accumulators,
    unpack,
)

WARPS = 4
ROWS = 64  # of A and D
SWIZZLE_BYTES = {0: 16, 1: 128, 2: 64, 3: 32}  # by the descriptor's layout


@dataclass(frozen=True)
class Descriptor:
    """A matrix in shared memory, in bytes.

    Attributes:
        start: its first address.
        leading: offset between parts along the row of a part ("leading dimension byte offset").
        stride: offset between groups of eight rows ("stride dimension byte offset").
        width: bytes of a row of a part: 16 without a swizzle, else 32, 64 or 128.
    """

    start: int
    leading: int
    stride: int
    width: int

    @classmethod
    def of(cls, bits: int) -> Descriptor:
        """From the 64 bits.

        Raises:
            PtxError: it has a base offset, or a layout that is not known.
        """
        layout = bits >> 62 & 3
        if bits >> 49 & 7:
            raise PtxError(f"The matrix descriptor {bits:#x} has a base offset, which is not known.")
        return cls((bits & 0x3FFF) << 4, (bits >> 16 & 0x3FFF) << 4, (bits >> 32 & 0x3FFF) << 4, SWIZZLE_BYTES[layout])

    def addresses(self, rows: int, row_bytes: int) -> Array:
        """Addresses [rows, row_bytes] of a matrix whose rows are contiguous within a part.

        Eight rows follow one another at `width` bytes; a swizzle exchanges 16-byte pieces by the number of the row,
        which it takes from the address.
        """
        row, byte = np.arange(rows)[:, None], np.arange(row_bytes)[None, :]
        part, within = byte // self.width, byte % self.width
        address = self.start + row // 8 * self.stride + part * self.leading + row % 8 * self.width + within
        pieces = self.width // 16
        return address ^ ((address >> 7 & (pieces - 1)) << 4) if pieces > 1 else address


def operand_addresses(
    descriptor: Descriptor, rows: int, kind: str, transposed: bool, *, any_bytes: bool = False
) -> Array:
    """Addresses [rows, K, bytes of an element] of A or of Bᵀ.

    Args:
        descriptor: of the matrix.
        rows: M or N.
        kind: of its elements.
        transposed: whether the rows of M or N lie along the contiguous axis, which 16-bit elements alone may do.
        any_bytes: whether 8-bit elements may, too (`tcgen05`).
    """
    k = MMA_K[kind]
    size = 32 // k
    if not transposed:
        return descriptor.addresses(rows, k * size).reshape(rows, k, size)
    if size != 2 and not (any_bytes and size == 1):
        raise PtxError(f"A matrix of {kind} cannot be transposed.")
    if descriptor.width == 16:  # without a swizzle the two offsets change their roles (CUTLASS, "MN-major INTERLEAVE")
        descriptor = replace(descriptor, leading=descriptor.stride, stride=descriptor.leading)
    return descriptor.addresses(k, rows * size).reshape(k, rows, size).swapaxes(0, 1)


def to_floats(raw: Array, kind: str) -> Array:
    """Bytes [rows, K, size] to float64 [rows, K]."""
    rows, k, size = raw.shape
    words = np.ascontiguousarray(raw).reshape(rows * k * size).view(np.uint32)
    missing = -len(words) % LANES
    values = unpack(np.concatenate([words, np.zeros(missing, np.uint32)]), kind)
    return values.reshape(-1)[: rows * k].reshape(rows, k)


def rows_of_registers(registers: list[Array], kind: str) -> Array:
    """A in registers of a group of warps: float64 [64, K]."""
    return fragment_a(registers, kind).reshape(ROWS, -1)


def multiply(a: Array, b: Array, accumulators: list[Array], dtype: object) -> tuple[Array, ...]:
    """D = A · B + C of one group: A [64, K], Bᵀ [N, K]; accumulators, and the result, are registers of bits."""
    before = accumulators_to_matrix(accumulators, dtype).reshape(ROWS, -1)
    total = (a @ b.T + before).reshape(WARPS, ROWS // WARPS, -1)
    return matrix_to_accumulators(total, len(accumulators), dtype)
