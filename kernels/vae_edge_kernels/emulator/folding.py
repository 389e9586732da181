"""Which instructions of PTX the assembler makes no machine instructions of.

Registers of PTX are as many as one likes, so that it moves values that the assembler only renames. Triton writes zeros
into what a load is about to write, and adds constant offsets to addresses by instructions of their own, where a load
has room for 24 bits of offset. Parameters lie in constant memory, which most instructions read like a register.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vae_edge_kernels.emulator.operands import SPECIAL, registers_in
from vae_edge_kernels.emulator.parser import Instruction

NAMES = ("nop", "cvta", "ld.param", "st.param")
MAX_OFFSET = 1 << 23  # of a load or a store: 24 bits, signed
NUMBER = re.compile(r"-?\d+$")
ACCESS = re.compile(r"(ld|st)\.(global|shared|local)\b")


def folded(instructions: Sequence[Instruction]) -> list[bool]:
    """Whether each instruction is one that the assembler renames or folds into others."""
    needed: set[str] = set()  # registers that are read otherwise than as the address of an access
    for instruction in instructions:
        if instruction.guard is not None:
            needed.add(instruction.guard)
        for position, operand in enumerate(instruction.operands):
            is_address = operand.startswith("[") and ACCESS.match(instruction.opcode)
            is_written = position == 0 and not instruction.opcode.startswith("st.")
            if not is_address and not is_written:
                needed.update(registers_in(operand))
    return [_is_folded(instruction, needed) for instruction in instructions]


def _is_folded(instruction: Instruction, needed: set[str]) -> bool:
    opcode, operands = instruction.opcode, instruction.operands
    if opcode.startswith("mov."):
        return not any(SPECIAL.match(operand) for operand in operands[1:])
    if opcode == "add.s64" and NUMBER.match(operands[2]) and abs(int(operands[2])) < MAX_OFFSET:
        return not needed & set(registers_in(operands[0]))
    return opcode.startswith(NAMES)
