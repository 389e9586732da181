"""One thread of a straight or branching program, step by step, with Python integers: what the emulator is held against.

A program is a list of steps, which are also its text: nothing here reads PTX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emulator.references import Within, reference, width_of

Operand = str | int
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Step:
    """An instruction, a branch ("bra" to the label that is its only operand), or a label (no opcode).

    Attributes:
        opcode: with all modifiers; "" is a label, whose name is the target.
        targets: registers that it writes; several are a vector; "_" is none.
        operands: registers, or integers as their bits; several of a `mov` are a vector.
        guard: a predicate or None.
        negated: whether the guard is `@!`.
    """

    opcode: str
    targets: tuple[str, ...] = ()
    operands: tuple[Operand, ...] = ()
    guard: str | None = None
    negated: bool = False

    @property
    def text(self) -> str:
        """In PTX."""
        if not self.opcode:
            return f"{self.targets[0]}:"
        guard = "" if self.guard is None else f"@{'!' if self.negated else ''}{self.guard} "
        if self.opcode == "bra":
            return f"{guard}bra {self.operands[0]}"
        made = reference(self.opcode)
        assert made is not None
        kinds = (*made.inputs, *[made.inputs[-1]] * len(self.operands))
        parts = [written(o, k) for o, k in zip(self.operands, kinds, strict=False)]
        vector = self.opcode.startswith("mov") and len(parts) > 1
        sources = f"{{{', '.join(parts)}}}" if vector else ", ".join(parts)
        targets = self.targets[0] if len(self.targets) == 1 else f"{{{', '.join(self.targets)}}}"
        return f"{guard}{self.opcode} {targets}, {sources}"


def written(operand: Operand, kind: str) -> str:
    """An operand as PTX writes it."""
    if isinstance(operand, str):
        return operand
    if kind == "f32":
        return f"0f{operand:08X}"
    if kind == "f64":
        return f"0d{operand:016X}"
    top = 1 << (width_of(kind) - 1)
    if operand & top and operand % 3:
        return str(operand - 2 * top)
    return hex(operand) if operand % 2 else str(operand)


class Thread:
    """The registers of one thread.

    Attributes:
        values: bits by register.
        widths: bits of each register.
    """

    def __init__(self, widths: Mapping[str, int], values: Mapping[str, int]) -> None:
        self.widths, self.values = widths, dict(values)

    def run(self, steps: Sequence[Step]) -> None:
        """All steps, from the first on."""
        labels = {step.targets[0]: number for number, step in enumerate(steps) if not step.opcode}
        at = 0
        for _ in range(MAX_STEPS):
            if at == len(steps):
                return
            step = steps[at]
            at += 1
            if step.guard is not None and bool(self.values[step.guard]) == step.negated:
                continue
            if step.opcode == "bra":
                at = labels[str(step.operands[0])]
            elif step.opcode:
                self.execute(step)
        raise AssertionError("the program does not end")

    def execute(self, step: Step) -> None:
        made = reference(step.opcode)
        assert made is not None, step.opcode
        if step.opcode.startswith("mov.b") and (len(step.targets) > 1 or len(step.operands) > 1):
            self.move_vector(step, made.output)
            return
        bits = [self.read(operand, kind) for operand, kind in zip(step.operands, made.inputs, strict=True)]
        result = made.compute(*bits)
        assert result is not None and not isinstance(result, Within), step
        self.write(step.targets[0], result, made.output)

    def move_vector(self, step: Step, kind: str) -> None:
        """The first register of a vector holds the lowest bits."""
        total = width_of(kind)
        part = total // len(step.operands)
        joined = sum(self.read(o, f"b{part}") << part * n for n, o in enumerate(step.operands))
        part = total // len(step.targets)
        for number, target in enumerate(step.targets):
            self.write(target, joined >> part * number & ((1 << part) - 1), f"b{part}")

    def read(self, operand: Operand, kind: str) -> int:
        """The lower bits of a register that is wider than the type."""
        bits = self.values[operand] if isinstance(operand, str) else operand
        return bits & ((1 << width_of(kind)) - 1)

    def write(self, register: str, bits: int, kind: str) -> None:
        """A register that is wider than the type gets the sign of signed ones, or zeros."""
        if register == "_":
            return
        width, wide = width_of(kind), self.widths[register]
        if kind[0] == "s" and bits >> (width - 1):
            bits |= (1 << wide) - (1 << width)
        self.values[register] = bits
