"""Matrix products whose operands go from memory straight into the registers of the matrix instructions.

Usually `tl.load` spreads a tile over the threads so that its accesses coalesce, and shared memory takes it to the
threads that the matrix instruction wants it in: a store, a barrier and a load for each operand. A product does not
depend on the order of its summed index, though, nor the memory on the order of a tile's rows. So the tiles here are
ordered such that each thread loads, 16 bytes at once, just what it multiplies. No shared memory, no barriers: the warps
of a program do not wait for one another.

`mma.m16n8k16` (PTX ISA, "Matrix fragments"): thread 4 · g + t of a warp holds
    of the right operand, column g at the summed indices 2t, 2t + 1, 2t + 8 and 2t + 9, in two registers;
    of the left one, the same of row g and of row g + 8, in four;
    of the sums, rows g and g + 8 at columns 2t and 2t + 1.
m16n8k32 holds four bytes for each two elements here. A thread that has loaded neighbours of column g takes them for
these summed indices, whatever they are; the left operand, the weights, is stored so that its order is the same, with
what a thread needs in one piece. So inputs are columns, and outputs rows.

    PACK    elements in 32 bits: 2 in float16, 4 in int8
    MIXED   the left operand becomes float16 of int8: Triton takes a thread's neighbours for summed indices side by
            side then
    STEPS   matrix instructions, one behind the other, that a thread's neighbours are for: 2 of 16 bytes, 1 of 8
    x tile  [GROUPS · WARPS · 8, 8 · STEPS · PACK], a row for each column of the product; row i is warp i // 8 % WARPS's
    w tile  [STEPS · J · WARPS · 8, 16 · PACK], for 16 · J rows of the product
    sums    [WARPS, 16 · J, GROUPS · 8], a product of its own for each warp

Whatever the compiler makes of it, the answers are right. That it takes no shared memory is held by the budgets of
barriers and wavefronts (`tests/emulator/test_budgets.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vector_range(LANES: tl.constexpr, VECTOR: tl.constexpr):
    """0 to LANES · VECTOR − 1 for the columns of a tile: one access loads VECTOR of them, not more."""
    return tl.max_contiguous(tl.arange(0, LANES * VECTOR), VECTOR)


@triton.jit
def tile_warp(index, WARPS: tl.constexpr):
    """The warp that loads a row of a tile."""
    return index // 8 % WARPS


@triton.jit
def tile_row(index, WARPS: tl.constexpr):
    """A row's place among its warp's."""
    return index // (8 * WARPS) * 8 + index % 8


@triton.jit
def right_operand(
    tile, GROUPS: tl.constexpr, WARPS: tl.constexpr, STEPS: tl.constexpr, PACK: tl.constexpr,
    MIXED: tl.constexpr = False,
):  # fmt: skip
    """An x tile as `tl.dot`'s right operand, [WARPS, 8 · STEPS · PACK, GROUPS · 8]."""
    tile = tile.reshape(GROUPS, WARPS, 8, 4, STEPS, 2, PACK)
    tile = tile.permute(1, 4, 3, 5, 6, 0, 2) if MIXED else tile.permute(1, 4, 5, 3, 6, 0, 2)
    return tile.reshape(WARPS, 8 * STEPS * PACK, GROUPS * 8)


@triton.jit
def summed_index(STEPS: tl.constexpr, PACK: tl.constexpr):
    """Which column of a tile the summed index of an operand is, [8 · STEPS · PACK]."""
    index = tl.arange(0, 8 * STEPS * PACK)
    step, half, thread = index // (8 * PACK), index // (4 * PACK) % 2, index // PACK % 4
    return (thread * STEPS + step) * (2 * PACK) + half * PACK + index % PACK


@triton.jit
def left_operand(
    tile, J: tl.constexpr, WARPS: tl.constexpr, STEPS: tl.constexpr, PACK: tl.constexpr, MIXED: tl.constexpr = False
):
    """A w tile as `tl.dot`'s left operand, [WARPS, 16 · J, 8 · STEPS · PACK]. It lies in memory as
    [STEPS, J, g, t, half of the summed indices, half of the rows, PACK].
    """
    tile = tile.reshape(STEPS, J, WARPS, 8, 4, 2, 2, PACK)
    tile = tile.permute(2, 1, 6, 3, 0, 4, 5, 7) if MIXED else tile.permute(2, 1, 6, 3, 0, 5, 4, 7)
    return tile.reshape(WARPS, 16 * J, 8 * STEPS * PACK)


@triton.jit
def row_channel(J: tl.constexpr):
    """Which output channel a row of the product is, [16 · J].

    A thread's 2 · J rows are neighbours in memory in this order, so that it stores them at once.
    """
    row = tl.arange(0, 16 * J)
    return row % 8 * (2 * J) + row // 16 * 2 + row // 8 % 2


@triton.jit
def sums_to_tile(sums, J: tl.constexpr, GROUPS: tl.constexpr, WARPS: tl.constexpr):
    """Sums as a tile [GROUPS · WARPS · 8, 16 · J] whose rows are columns of the product, as `tile_row` says, and whose
    columns are output channels in order.
    """
    sums = sums.reshape(WARPS, J, 2, 8, GROUPS, 8).permute(4, 0, 5, 3, 1, 2)
    return sums.reshape(GROUPS * WARPS * 8, 16 * J)
