"""Instructions of whole warps: shuffles, reductions, and products of matrices in registers.

Threads of whole warps lie in order along the first axis: [warps · 32]. Layouts of fragments: PTX ISA 8.8, "Matrix
fragments for mma.m16n8k16" and the like.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from vae_edge_kernels.emulator.arithmetic import (
    E4M3_VALUES,
    Array,
    from_bf16,
    maximum,
    minimum,
    nan_maximum,
    nan_minimum,
)

LANES = 32
LANE = np.arange(LANES)
ROW, PAIR = LANE >> 2, LANE & 3  # "groupID" and "threadID in group" of the fragments
# Row and column, by lane, of accumulator register r of m16n8.
ACCUMULATOR = [(ROW + 8 * (r >> 1), 2 * PAIR + (r & 1)) for r in range(4)]
# K of mma.m16n8kK by type of element: 256 bits a row.
MMA_K = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32, "u8": 32, "e4m3": 32, "e5m2": 32}
IN_REGISTERS = MMA_K.keys() - {"e5m2"}  # which is known in tensor memory alone


def shuffle(mode: str, value: Array, offset: Array, control: Array) -> tuple[Array, Array]:
    """`shfl.sync`: (value of the source lane, whether it is in range) of b32 values.

    Args:
        control: bits 0 to 4 clamp the source lane; bits 8 to 12 fix bits of it (segments of a warp).
    """
    offset = offset.reshape(-1, LANES).astype(np.int64) & 31
    clamp, segment = control.reshape(-1, LANES).astype(np.int64) & 31, control.reshape(-1, LANES) >> 8 & 31
    segment = segment.astype(np.int64)
    first, last = LANE & segment, (LANE & segment) | (clamp & ~segment)
    if mode == "up":
        source = LANE - offset
        valid = source >= last
    else:
        source = {"bfly": LANE ^ offset, "down": LANE + offset, "idx": first | (offset & ~segment)}[mode]
        valid = source <= last
    source = np.where(valid, source, LANE)
    return np.take_along_axis(value.reshape(-1, LANES), source, 1).reshape(-1), valid.reshape(-1)


REDUCTIONS: dict[str, Any] = {
    "add": np.add, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


FLOAT_REDUCTIONS: dict[str, Any] = {
    "min": minimum, "max": maximum, "min.NaN": nan_minimum, "max.NaN": nan_maximum
}  # fmt: skip


def reduce_warp(operation: str, value: Array) -> Array:
    """`redux.sync` of whole warps: each thread gets the reduction of its warp's values."""
    rows = value.reshape(-1, LANES)
    if value.dtype.kind == "f":
        total = reduce(FLOAT_REDUCTIONS[operation], rows.T)
    else:
        total = REDUCTIONS[operation].reduce(rows, axis=1, dtype=value.dtype)
    return np.repeat(total, LANES)


def unpack(register: Array, kind: str) -> Array:
    """b32 registers [threads] to float64 [threads / 32, 32, elements in a register]."""
    bits = np.ascontiguousarray(register)
    if kind == "f16":
        values = bits.view(np.float16).astype(np.float64)
    elif kind == "bf16":
        values = from_bf16(bits.view(np.uint16)).astype(np.float64)
    elif kind == "tf32":  # the matrix units drop the last 13 bits
        values = (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    elif kind == "e4m3":
        values = E4M3_VALUES[bits.view(np.uint8)]
    elif kind == "e5m2":  # the upper half of a float16
        values = (bits.view(np.uint8).astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float64)
    else:
        values = bits.view(np.int8 if kind == "s8" else np.uint8).astype(np.float64)
    return values.reshape(-1, LANES, values.size // bits.size)


def fragment_a(registers: list[Array], kind: str) -> Array:
    """The four registers of A to float64 [warps, 16, K]."""
    k = MMA_K[kind]
    width = k // 8  # elements in a register
    matrix = np.empty((registers[0].size // LANES, 16, k))
    for index, register in enumerate(registers):
        values = unpack(register, kind)
        for element in range(width):
            matrix[:, ROW + 8 * (index & 1), PAIR * width + element + (k // 2) * (index >> 1)] = values[:, :, element]
    return matrix


def fragment_b(registers: list[Array], kind: str) -> Array:
    """The two registers of B to float64 [warps, K, 8]."""
    k = MMA_K[kind]
    width = k // 8
    matrix = np.empty((registers[0].size // LANES, k, 8))
    for index, register in enumerate(registers):
        values = unpack(register, kind)
        for element in range(width):
            matrix[:, PAIR * width + element + (k // 2) * index, ROW] = values[:, :, element]
    return matrix


def accumulators_to_matrix(registers: list[Array], dtype: Any) -> Array:
    """Accumulators of m16 by n = 2 · len(registers) to float64 [warps, 16, n]."""
    matrix = np.empty((registers[0].size // LANES, 16, 2 * len(registers)))
    for index, register in enumerate(registers):
        row, column = ACCUMULATOR[index & 3]
        matrix[:, row, column + 8 * (index >> 2)] = np.ascontiguousarray(register).view(dtype).reshape(-1, LANES)
    return matrix


def matrix_to_accumulators(matrix: Array, count: int, dtype: Any, *, saturate: bool = False) -> tuple[Array, ...]:
    """The inverse, in bits: each float is rounded once; integers wrap around or saturate."""
    if np.dtype(dtype).kind == "i":
        limits = np.iinfo(dtype)
        held = np.clip(matrix, limits.min, limits.max) if saturate else matrix
        rounded = held.astype(np.int64).astype(dtype)
    else:
        rounded = matrix.astype(dtype)
    registers = []
    for index in range(count):
        row, column = ACCUMULATOR[index & 3]
        part = rounded[:, row, column + 8 * (index >> 2)]
        registers.append(np.ascontiguousarray(part).reshape(-1).view(np.uint32))
    return tuple(registers)


def multiply_matrices(a: list[Array], b: list[Array], c: list[Array], kind: str, dtype: Any, saturate: bool) -> Any:
    """`mma.sync.m16n8kK`: D = A · B + C, a tuple of four registers of bits.

    The sum of floats is computed in float64 and rounded once; tensor cores round more often, in an order of their own.
    Integers are exact.
    """
    total = fragment_a(a, kind) @ fragment_b(b, kind) + accumulators_to_matrix(c, dtype)
    return matrix_to_accumulators(total, 4, dtype, saturate=saturate)
