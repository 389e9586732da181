"""Instructions of whole warps: products of matrices, shuffles and reductions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.emulator.arithmetic import DTYPES, Array
from vae_edge_kernels.emulator.errors import Deadlock, MemoryFault, PtxError
from vae_edge_kernels.emulator.operands import Handler, Operands, parts_of, place_of
from vae_edge_kernels.emulator.parser import Instruction
from vae_edge_kernels.emulator.warpgroups import Descriptor, operand_addresses, rows_of_registers, to_floats
from vae_edge_kernels.emulator.warpgroups import multiply as multiply_group
from vae_edge_kernels.emulator.warps import IN_REGISTERS, LANES, MMA_K, multiply_matrices, reduce_warp, shuffle

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Program

GROUP = 4  # warps of a `wgmma`
MMA = re.compile(
    r"mma\.sync\.aligned\.m16n8k(?P<k>\d+)\.row\.col(?P<sat>\.satfinite)?\.(?P<d>f32|s32|f16)\.(?P<a>\w+)\.(?P<b>\w+)\.(?P<c>\w+)$"
)
WGMMA = re.compile(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k(?P<k>\d+)\.(?P<d>f32|s32)\.(?P<a>\w+)\.(?P<b>\w+)$"
)
SHUFFLE = re.compile(r"shfl\.sync\.(?P<mode>bfly|idx|up|down)\.b32$")
REDUX = re.compile(
    r"redux\.sync\.(?:(?P<name>add|min|max)\.(?P<kind>u32|s32)|(?P<bits>and|or|xor)\.b32"
    r"|(?P<float>min|max)(?P<nan>\.NaN)?\.f32)$"  # of floats: sm_100
)


def check_whole_warps(mask: Array, place: str) -> None:
    """Raises: Deadlock: threads of a warp are missing."""
    rows = mask.reshape(-1, LANES)
    if (rows.any(1) != rows.all(1)).any():
        raise Deadlock(f"{place}: threads of a warp are missing that the instruction waits for.")


def product(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`mma.sync`."""
    place = place_of(instruction)
    kinds = {match.group("a"), match.group("b")}
    if len(kinds) != 1 or match.group("a") not in IN_REGISTERS or int(match.group("k")) != MMA_K[match.group("a")]:
        raise PtxError(f"{place}: {match.group(0)} is not known.")
    if match.group("d") != match.group("c") or match.group("d") not in ("f32", "s32"):
        raise PtxError(f"{place}: {match.group(0)} is not known.")
    kind, dtype, saturate = match.group("a"), DTYPES[match.group("d")], bool(match.group("sat"))
    parts = [parts_of(operand) for operand in instruction.operands]
    if [len(part) for part in parts] != [4, 4, 2, 4]:
        raise PtxError(f"{place}: the operands of {match.group(0)} are not 4, 4, 2 and 4 registers.")
    writers = [operands.writer(name, "b32") for name in parts[0]]
    readers = [[operands.reader(name, "b32") for name in part] for part in parts[1:]]

    def multiply(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        a, b, c = ([read(program)[mask] for read in part] for part in readers)
        program.device.counts.add("products", int(mask.sum()) // LANES, instruction.source)
        for write, values in zip(writers, multiply_matrices(a, b, c, kind, dtype, saturate), strict=True):
            full = np.zeros(operands.threads, np.uint32)
            full[mask] = values
            write(program, mask, full)

    return multiply


def group_product(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`wgmma.mma_async`. The product is made at once; until it was waited for, what it read must not change."""
    place, texts = place_of(instruction), instruction.operands
    kind, n, dtype = match.group("a"), int(match.group("n")), DTYPES[match.group("d")]
    if kind != match.group("b") or kind not in IN_REGISTERS or int(match.group("k")) != MMA_K[kind]:
        raise PtxError(f"{place}: {match.group(0)} is not known.")
    names = parts_of(texts[0])
    in_registers = texts[1].startswith("{")
    immediates = [int(text, 0) for text in texts[4:]]
    transposes = immediates[2:] if in_registers or len(immediates) < 4 else immediates[2:4]
    if len(names) != n // 2 or immediates[:2] not in ([], [1, 1]) or len(immediates) > (3 if in_registers else 4):
        raise PtxError(f"{place}: the operands of {match.group(0)} are not known: {texts[1:]}.")
    transpose_b = bool(transposes and transposes[-1])
    transpose_a = bool(len(transposes) == 2 and transposes[0])
    writers, before = [operands.writer(name, "b32") for name in names], [operands.reader(name, "b32") for name in names]
    a_parts = [operands.reader(part, "b32") for part in parts_of(texts[1])] if in_registers else []
    a_descriptor = None if in_registers else operands.reader(texts[1], "b64")
    b_descriptor, accumulate = operands.reader(texts[2], "b64"), operands.reader(texts[3], "pred")

    def matrix(program: Program, described: Array, rows: int, transposed: bool, warp: int) -> Array:
        if (described != described[0]).any():
            raise PtxError(f"{place}: the warps of a group have different matrix descriptors.")
        where = operand_addresses(Descriptor.of(int(described[0])), rows, kind, transposed)
        raw = program.shared.observe(where.reshape(-1), warp, place)
        program.products.append((where.reshape(-1), raw))
        return to_floats(raw.reshape(where.shape), kind)

    def multiply(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        program.device.counts.add("products", int(mask.sum()) // LANES, instruction.source)
        threads = np.flatnonzero(mask).reshape(-1, GROUP * LANES)
        results = [np.zeros(operands.threads, np.uint32) for _ in names]
        for group in threads:
            if a_descriptor is None:
                a = rows_of_registers([read(program)[group] for read in a_parts], kind)
            else:
                a = matrix(program, a_descriptor(program)[group], 64, transpose_a, group[0] // LANES)
            b = matrix(program, b_descriptor(program)[group], n, transpose_b, group[0] // LANES)
            keep = accumulate(program)[group[0]]
            held = [read(program)[group] * np.uint32(keep) for read in before]
            for result, values in zip(results, multiply_group(a, b, held, dtype), strict=True):
                result[group] = values
        for write, result in zip(writers, results, strict=True):
            write(program, mask, result)

    return multiply


def wait_for_products(instruction: Instruction, operands: Operands) -> Handler:
    """`wgmma.wait_group`, of all groups at once: which of them a read belongs to is not followed."""
    del operands
    place = place_of(instruction)

    def wait(program: Program, mask: Array) -> None:
        del mask
        for index, values in program.products:
            if (program.shared.data[index] != values).any():
                raise MemoryFault(f"{place}: shared memory was changed while a product of matrices read it.")
        program.products.clear()

    return wait


def exchange(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`shfl.sync`."""
    place, texts, mode = place_of(instruction), instruction.operands, match.group("mode")
    names = texts[0].split("|")
    if len(texts) != 5 or texts[4] not in ("-1", "0xffffffff", "0xFFFFFFFF"):
        raise PtxError(f"{place}: shuffles of whole warps alone are known, not {texts}.")
    write = operands.writer(names[0], "b32")
    also = operands.writer(names[1], "pred") if len(names) == 2 else None
    read, offset, control = (
        operands.reader(text, kind) for text, kind in zip(texts[1:4], ("b32", "u32", "u32"), strict=True)
    )

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        program.device.counts.add("shuffles", int(mask.sum()) // LANES, instruction.source)
        values, valid = shuffle(mode, read(program), offset(program), control(program))
        write(program, mask, values)
        if also is not None:
            also(program, mask, valid)

    return run


def reduction(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`redux.sync`."""
    place, texts = place_of(instruction), instruction.operands
    kind, name = match.group("kind") or "b32", match.group("name") or match.group("bits")
    if match.group("float"):
        kind, name = "f32", match.group("float") + (match.group("nan") or "")
    read, write = operands.reader(texts[1], kind), operands.writer(texts[0], kind)

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        program.device.counts.add("shuffles", int(mask.sum()) // LANES, instruction.source)
        write(program, mask, reduce_warp(name, read(program)))

    return run
