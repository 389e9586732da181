"""What the operands of an instruction are: registers, immediates, special registers and addresses.

A reader gives an operand's value in all threads of a program; a writer sets a register in the threads of a mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.emulator.arithmetic import DTYPES, Array
from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.linking import Linked
from vae_edge_kernels.emulator.parser import Instruction
from vae_edge_kernels.emulator.warps import LANES

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Program

Reader = Callable[["Program"], Array]
Writer = Callable[["Program", Array, Array], None]
Handler = Callable[["Program", Array], None]

UNSIGNED = {1: np.dtype(bool), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])$|%(laneid|warpid)$")


def bits_of(text: str) -> int | None:
    """The value of an immediate, as written; floats as their bits."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text) or re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0) if NUMBER.match(text) else None


def parts_of(operand: str) -> list[str]:
    """The registers of a vector, or the operand itself."""
    return [part.strip() for part in operand.strip("{} ").split(",")] if operand.startswith("{") else [operand]


def place_of(instruction: Instruction) -> str:
    """Where an instruction stands, for messages."""
    return f"PTX line {instruction.line}" + (f" ({instruction.source})" if instruction.source else "")


def registers_in(operand: str) -> list[str]:
    """The names in an operand that may be registers, whether it is a vector, an address or one alone.

    Those of a called function have `linking`'s prefix.
    """
    return re.findall(r"(?:\d+_\$)*%?[A-Za-z_$][\w$@]*", operand)


class Operands:
    """Readers and writers of the operands of a module's instructions.

    Attributes:
        linked: the entry with what it calls.
        threads: of a program.
    """

    def __init__(self, linked: Linked, threads: int) -> None:
        self.linked, self.threads = linked, threads
        self._zeros = np.zeros(threads, np.uint64)

    def reader(self, operand: str, kind: str) -> Reader:
        """An operand's value in all threads, of a PTX type.

        Raises:
            PtxError: it is not known.
        """
        dtype, count = DTYPES[kind], self.threads
        if operand in self.linked.registers:
            if kind == "pred" or UNSIGNED[self.linked.registers[operand]].itemsize == dtype.itemsize:
                return lambda program: program.registers[operand].view(dtype)
            narrow = np.dtype(f"u{dtype.itemsize}")  # the lower bytes of a wider register
            return lambda program: program.registers[operand].astype(narrow).view(dtype)
        special = SPECIAL.match(operand)
        if special:
            return lambda program: _special(program, special).astype(dtype)
        if operand in self.linked.variables:
            fixed = np.full(count, self.linked.variables[operand]).astype(dtype)
            return lambda program: fixed
        value = bits_of(operand)
        if value is None:
            raise PtxError(f"The operand {operand!r} is not known.")
        if kind == "pred":
            fixed = np.full(count, bool(value))
        elif kind == "f32" and operand[:2].lower() != "0f":
            raise PtxError(f"The operand {operand!r} is no float.")
        else:
            unsigned = np.dtype(f"u{dtype.itemsize}")
            fixed = np.full(count, value & (256**dtype.itemsize - 1), unsigned).view(dtype)
        return lambda program: fixed

    def writer(self, operand: str, kind: str) -> Writer:
        """Write values of a PTX type to a register, in the threads of a mask.

        Raises:
            PtxError: the register was not declared, or is too narrow.
        """
        if operand == "_":
            return lambda program, mask, values: None
        bits = self.linked.registers.get(operand)
        if bits is None:
            raise PtxError(f"The register {operand!r} was not declared.")
        target, dtype = UNSIGNED[bits], DTYPES[kind]
        if bits == 1:

            def write(program: Program, mask: Array, values: Array) -> None:
                program.registers[operand][mask] = values[mask]
        elif target.itemsize == dtype.itemsize:

            def write(program: Program, mask: Array, values: Array) -> None:
                typed = np.ascontiguousarray(values.astype(dtype, copy=False)).view(target)
                program.registers[operand][mask] = typed[mask]
        elif target.itemsize > dtype.itemsize:  # extended by the value's sign
            wide = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{target.itemsize}")

            def write(program: Program, mask: Array, values: Array) -> None:
                typed = values.astype(dtype, copy=False)
                if dtype.kind == "f":
                    typed = typed.view(np.dtype(f"u{dtype.itemsize}"))
                program.registers[operand][mask] = typed.astype(wide).view(target)[mask]
        else:
            raise PtxError(f"A value of type {kind} does not fit into {operand!r}.")
        return write

    def address(self, operand: str, place: str) -> Reader:
        """The address that "[%rd1+16]" stands for, in all threads, uint64.

        Raises:
            PtxError: the operand is no address.
        """
        match = ADDRESS.match(operand)
        if match is None:
            raise PtxError(f"{place}: {operand!r} is no address.")
        base, offset = match.group(1), int(match.group(2) or "0", 0)
        if base in self.linked.variables:
            fixed = np.full(self.threads, self.linked.variables[base] + offset, np.uint64)
            return lambda program: fixed
        bits = self.linked.registers.get(base)
        if bits is None:
            raise PtxError(f"{place}: {operand!r} is no address.")
        read = self.reader(base, f"u{bits}")
        return lambda program: (read(program).astype(np.int64) + offset).view(np.uint64)


def _special(program: Program, match: re.Match[str]) -> Array:
    axis = {"x": 0, "y": 1, "z": 2}.get(match.group(2) or "x", 0)
    ids = np.arange(program.device.threads)
    if match.group(3):
        return ids % LANES if match.group(3) == "laneid" else ids // LANES
    values = {
        "tid": ids if axis == 0 else np.zeros_like(ids),
        "ntid": np.full_like(ids, program.device.threads if axis == 0 else 1),
        "ctaid": np.full_like(ids, program.number[axis]),
        "nctaid": np.full_like(ids, program.device.grid[axis]),
    }
    return values[match.group(1)]
