"""Matrix products whose operands go from memory straight into the registers of the matrix instructions.

Usually `tl.load` spreads a tile over the threads so that its accesses coalesce, and shared memory takes it to the
threads that the matrix instruction wants it in: a store, a barrier and a load for each operand. A product does not
depend on the order of its summed index, though, nor the memory on the order of a tile's rows. So the tiles here are
ordered such that each thread loads, 16 bytes at once, just what it multiplies. No shared memory, no barriers: the warps
of a program do not wait for one another.

`mma.m16n8k16` (PTX ISA, "Matrix fragments"): of an operand, thread 4 · g + t of a warp holds rows g and g + 8 at the
summed indices 2t, 2t + 1, 2t + 8 and 2t + 9, in pairs of 32 bits; m16n8k32 holds four bytes for each two here. A
thread that has loaded VECTOR neighbours of row g takes them for these. Both operands do, so that the sum is the same.

    tile     as it is loaded: [GROUPS · WARPS · 8, 4 · VECTOR]; row i belongs to warp i // 8 % WARPS
    operand  as `tl.dot` takes it: [WARPS, GROUPS · 8, 4 · VECTOR], or transposed on the right
    sums     of `tl.dot`: [WARPS, rows, columns], a product of its own for each warp

Whatever the compiler makes of it, the answers are right. It takes no shared memory where VECTOR is what one access
loads, and the tile's rows are loaded in order: `tests/emulator/test_budgets.py` holds the counts.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vector_range(VECTOR: tl.constexpr):
    """0 to 4 · VECTOR − 1 for the columns of a tile: one access loads VECTOR of them, not more."""
    return tl.max_contiguous(tl.arange(0, 4 * VECTOR), VECTOR)


@triton.jit
def tile_warp(index, WARPS: tl.constexpr):
    """The warp that loads a row of a tile."""
    return index // 8 % WARPS


@triton.jit
def tile_row(index, WARPS: tl.constexpr):
    """A row's place among its warp's."""
    return index // (8 * WARPS) * 8 + index % 8


@triton.jit
def left_operand(tile, GROUPS: tl.constexpr, WARPS: tl.constexpr, VECTOR: tl.constexpr):
    """A tile as `tl.dot`'s left operand."""
    PACK: tl.constexpr = 32 // tile.dtype.primitive_bitwidth
    tile = tile.reshape(GROUPS, WARPS, 8, 4, VECTOR // (2 * PACK), 2, PACK)
    return tile.permute(1, 0, 2, 4, 5, 3, 6).reshape(WARPS, GROUPS * 8, 4 * VECTOR)


@triton.jit
def right_operand(tile, GROUPS: tl.constexpr, WARPS: tl.constexpr, VECTOR: tl.constexpr):
    """A tile whose rows are columns of `tl.dot`'s right operand."""
    return left_operand(tile, GROUPS, WARPS, VECTOR).permute(0, 2, 1)


@triton.jit
def interleaved_column(index, BLOCK_N: tl.constexpr, WARPS: tl.constexpr):
    """Which of its warp's BLOCK_N columns a row of a right operand's tile is.

    A thread holds columns 2t and 2t + 1 of each eight sums. In this order they are neighbours, which it stores at once.
    """
    group, lane = index // (8 * WARPS), index % 8
    return lane // 2 * (BLOCK_N // 4) + group * 2 + lane % 2


@triton.jit
def sums_to_tile(sums, ROW_GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, WARPS: tl.constexpr):
    """Sums [WARPS, ROW_GROUPS · 8, BLOCK_N] as a tile [ROW_GROUPS · WARPS · 8, BLOCK_N], its columns in order again.

    The left operand's tile was loaded in order, the right one's as `interleaved_column` says.
    """
    sums = sums.reshape(WARPS, ROW_GROUPS, 8, BLOCK_N // 8, 4, 2)
    return sums.permute(1, 0, 2, 4, 3, 5).reshape(ROW_GROUPS * WARPS * 8, BLOCK_N)
