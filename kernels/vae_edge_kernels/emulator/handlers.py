"""What each instruction does to a program: the choice among all instructions, and those of registers and control."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.emulator import memory_handlers as memory
from vae_edge_kernels.emulator import tensor_handlers as tensor
from vae_edge_kernels.emulator import warp_handlers as warp
from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.instructions import OPERATIONS
from vae_edge_kernels.emulator.operands import UNSIGNED, Handler, Operands, parts_of, place_of
from vae_edge_kernels.emulator.parser import Instruction
from vae_edge_kernels.emulator.warps import LANES

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Program

CARRY = re.compile(r"(?P<what>mad|add)(?P<takes>c?)(?:\.(?P<half>lo|hi))?(?P<gives>\.cc)?\.u32$")
BY_PATTERN: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Instruction, Operands], Handler]], ...] = (
    (memory.ACCESS, memory.access),
    (memory.MATRICES, memory.matrices),
    (memory.ASYNC_COPY, memory.async_copy),
    (memory.ATOMIC, memory.atomic),
    (warp.MMA, warp.product),
    (warp.WGMMA, warp.group_product),
    (warp.SHUFFLE, warp.exchange),
    (warp.REDUX, warp.reduction),
    *tensor.BY_PATTERN,
)
NOTHING = re.compile(
    r"(?:nop$|bar\.warp\.sync$|(?:fence|membar|prefetch|griddepcontrol|discard)[.\w:]*$"
    r"|wgmma\.(?:fence|commit_group)\.sync\.aligned$|tcgen05\.fence::(?:before|after)_thread_sync$)"
)


def compile_instruction(instruction: Instruction, operands: Operands) -> Handler:
    """What an instruction does.

    Raises:
        PtxError: it is not known.
    """
    opcode = instruction.opcode
    if opcode in OPERATIONS:
        return _compute(instruction, operands)
    for pattern, build in (*BY_PATTERN, (CARRY, _carry)):
        match = pattern.match(opcode)
        if match:
            return build(match, instruction, operands)
    if opcode in BY_NAME:
        return BY_NAME[opcode](instruction, operands)
    if NOTHING.match(opcode):
        return lambda program, mask: None
    raise PtxError(f"{place_of(instruction)}: the emulator does not know the instruction {instruction.text!r}.")


def _compute(instruction: Instruction, operands: Operands) -> Handler:
    """An instruction of the table."""
    operation, texts = OPERATIONS[instruction.opcode], instruction.operands
    inputs = operation.inputs
    if operation.one_more and len(texts) == 2 + len(inputs):
        inputs = (*inputs, inputs[-1])
    if len(texts) != 1 + len(inputs):
        raise PtxError(f"{place_of(instruction)}: {instruction.text!r} has {len(texts)} operands.")
    if instruction.opcode.startswith("mov.b") and any(text.startswith("{") for text in texts):
        return _pack(texts, operands)
    readers = [operands.reader(text, kind) for text, kind in zip(texts[1:], inputs, strict=True)]
    write, compute = operands.writer(texts[0], operation.output), operation.compute

    def run(program: Program, mask: Array) -> None:
        with np.errstate(all="ignore"):
            write(program, mask, compute(*(read(program) for read in readers)))

    return run


def _carry(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """Sums of 32 bits that set the carry of each thread, or add it."""
    multiplies, half = match.group("what") == "mad", match.group("half")
    texts = instruction.operands
    if len(texts) != (4 if multiplies else 3):
        raise PtxError(f"{place_of(instruction)}: {instruction.text!r} has {len(texts)} operands.")
    readers, write = [operands.reader(text, "u32") for text in texts[1:]], operands.writer(texts[0], "u32")

    def run(program: Program, mask: Array) -> None:
        a, b, *c = (read(program).astype(np.uint64) for read in readers)
        if multiplies:
            product = a * b
            first, second = (product >> np.uint64(32) if half == "hi" else product & np.uint64(0xFFFFFFFF)), c[0]
        else:
            first, second = a, b
        total = first + second + (program.carry.astype(np.uint64) if match.group("takes") else np.uint64(0))
        write(program, mask, total.astype(np.uint32))
        if match.group("gives"):
            program.carry[mask] = (total >> np.uint64(32))[mask] > 0

    return run


def _pack(texts: tuple[str, ...], operands: Operands) -> Handler:
    """`mov.b` between a register and a vector of narrower ones."""
    left, right = (parts_of(text) for text in texts)
    if len(left) == 1:
        total = operands.linked.registers[left[0]]
        width = total // len(right)
        readers = [operands.reader(part, f"b{width}") for part in right]
        write = operands.writer(left[0], f"b{total}")

        def pack(program: Program, mask: Array) -> None:
            joined = np.stack([read(program) for read in readers], 1)
            write(program, mask, np.ascontiguousarray(joined).view(UNSIGNED[total]).reshape(-1))

        return pack
    bits = operands.linked.registers.get(right[0])
    if bits is None:
        raise PtxError(f"{texts[1]!r} cannot be taken apart.")
    width = bits // len(left)
    read, writers = operands.reader(right[0], f"b{bits}"), [operands.writer(part, f"b{width}") for part in left]

    def unpack(program: Program, mask: Array) -> None:
        parts = np.ascontiguousarray(read(program)).view(UNSIGNED[width]).reshape(-1, len(left))
        for number, write in enumerate(writers):
            write(program, mask, np.ascontiguousarray(parts[:, number]))

    return unpack


def _branch(instruction: Instruction, operands: Operands) -> Handler:
    target = operands.linked.labels.get(instruction.operands[0])
    place = place_of(instruction)

    def branch(program: Program, mask: Array) -> None:
        if target is None:
            raise PtxError(f"{place}: there is no label {instruction.operands[0]}.")
        program.pc[mask] = target

    return branch


def _barrier(instruction: Instruction, operands: Operands) -> Handler:
    place = place_of(instruction)
    if instruction.operands not in (("0",), ("0", str(operands.threads))):
        raise PtxError(f"{place}: the barrier {instruction.operands} is not known.")

    def wait(program: Program, mask: Array) -> None:
        warp.check_whole_warps(mask, place)
        program.waiting |= mask.reshape(-1, LANES).any(1)
        if (program.waiting | program.done.reshape(-1, LANES).all(1)).all():
            program.open_barrier(instruction.source)

    return wait


def _end(instruction: Instruction, operands: Operands) -> Handler:
    del operands
    place = place_of(instruction)

    def end(program: Program, mask: Array) -> None:
        program.done |= mask
        if program.finished and program.tensor is not None:
            program.tensor.end(place)

    return end


BY_NAME: dict[str, Callable[[Instruction, Operands], Handler]] = {
    "bra": _branch,
    "bra.uni": _branch,
    "bar.sync": _barrier,
    "barrier.sync": _barrier,
    "ret": _end,
    "exit": _end,
    "cp.async.commit_group": memory.commit_copies,
    "cp.async.wait_group": memory.wait_for_copies,
    "fence.proxy.async": memory.proxy_fence,
    "fence.proxy.async.shared::cta": memory.proxy_fence,
    "wgmma.wait_group.sync.aligned": warp.wait_for_products,
}
