"""Functions inlined: an entry and all that it calls as one list of instructions.

Triton compiles each step of a network as a function that is called from one place or a few. What a call passes goes by
the caller's names, and the registers and labels of each copy have a prefix of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.parser import Function, Instruction, Module

MAX_DEPTH = 32  # of calls
LOCAL_BASE = 0x6F00_0000_0000  # address of local memory: the same in every thread


@dataclass
class Linked:
    """An entry with its functions inlined.

    Attributes:
        instructions: in order; `ret` of an inlined function is a `bra`.
        labels: unique names to indices.
        registers: unique names to bits.
        params: of the entry, (name, type).
        variables: addresses of the variables in shared and local memory, by unique name.
        local_size: bytes of local memory of a thread.
    """

    instructions: list[Instruction]
    labels: dict[str, int]
    registers: dict[str, int]
    params: list[tuple[str, str]]
    variables: dict[str, int] = field(default_factory=dict)
    local_size: int = 0


def link(module: Module) -> Linked:
    """Inline every call of the entry."""
    linked = Linked([], {}, {}, [(param.name, param.type) for param in module.entry.params])
    if module.shared is not None:
        linked.variables[module.shared] = 0
    _inline(module, module.entry, "", linked, {}, 0)
    return linked


NAME = re.compile(r"%?[A-Za-z_$][\w$]*(?:@\d+)?")


def _inline(
    module: Module, function: Function, prefix: str, linked: Linked, params: dict[str, str], depth: int
) -> None:
    """Append a function's instructions, its names with a prefix; its parameters go by the caller's names."""
    if depth > MAX_DEPTH:
        raise PtxError(f"{function.name} calls itself.")
    own = set(function.registers) | set(function.labels) | set(function.locals)
    own |= {param.name for param in (*function.params, *function.results)} - set(params)

    def rename(text: str) -> str:
        def one(match: re.Match[str]) -> str:
            name = match.group(0)
            return params.get(name) or (prefix + name if name in own or name.startswith("param") else name)

        return NAME.sub(one, text) if prefix else text

    for name, bits in function.registers.items():
        linked.registers[prefix + name] = bits
    for name, (size, alignment) in function.locals.items():
        start = -(-linked.local_size // alignment) * alignment
        linked.variables[prefix + name] = LOCAL_BASE + start
        linked.local_size = start + size
    by_place: dict[int, list[str]] = {}
    for name, place in function.labels.items():
        by_place.setdefault(place, []).append(name)
    for index, instruction in enumerate(function.instructions):
        for name in by_place.get(index, ()):
            linked.labels[prefix + name] = len(linked.instructions)
        guard = None if instruction.guard is None else prefix + instruction.guard
        if instruction.opcode == "call.uni":
            results, name, arguments = _call(instruction)
            called = module.functions.get(name)
            if called is None or guard is not None:
                raise PtxError(f"Line {instruction.line}: {instruction.text!r} calls what is not there.")
            inner = f"{prefix}{len(linked.instructions)}:".replace(":", "_$")
            given = [rename(argument) for argument in (*results, *arguments)]
            wanted = [param.name for param in (*called.results, *called.params)]
            if len(given) != len(wanted):
                raise PtxError(f"Line {instruction.line}: {instruction.text!r} has {len(given)} arguments.")
            start = len(linked.instructions)
            linked.instructions.append(replace(instruction, opcode="nop", operands=(), guard=None))
            _inline(module, called, inner, linked, dict(zip(wanted, given, strict=True)), depth + 1)
            end = f"{inner}end"
            linked.labels[end] = len(linked.instructions)
            for place in range(start, len(linked.instructions)):
                at = linked.instructions[place]
                if at.opcode == "ret" and at.operands == (inner,):
                    linked.instructions[place] = replace(at, opcode="bra", operands=(end,))
        elif instruction.opcode == "ret" and prefix:
            linked.instructions.append(replace(instruction, operands=(prefix,), guard=guard))
        else:
            operands = tuple(rename(operand) for operand in instruction.operands)
            linked.instructions.append(replace(instruction, operands=operands, guard=guard))
    for name in by_place.get(len(function.instructions), ()):
        linked.labels[prefix + name] = len(linked.instructions)


def _call(instruction: Instruction) -> tuple[list[str], str, list[str]]:
    """ "call.uni (r), f, (a, b)" to (results, name, arguments)."""
    operands = list(instruction.operands)
    results = operands.pop(0)[1:-1].split(",") if operands[0].startswith("(") else []
    name = operands.pop(0)
    arguments = operands.pop(0)[1:-1].split(",") if operands else []
    if operands:
        raise PtxError(f"Line {instruction.line}: the call {instruction.text!r} is not known.")
    strip = lambda names: [name.strip() for name in names if name.strip()]  # noqa: E731
    return strip(results), name, strip(arguments)
