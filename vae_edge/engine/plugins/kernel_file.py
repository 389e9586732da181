"""The kernel of a node as `vae_edge_kernels.aot.plugins` compiled it: what it computes, how it is launched, its code.

Written and read here without Triton. The format is described there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vae_edge.errors import EngineError

PREFIX = b"vae-edge plugin kernel 1\n"
SUFFIX = ".kernel"
DTYPE_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "float32": 4, "int64": 8}
SCRATCH_ALIGNMENT = 256  # bytes
_DEPTH = 16

Dimension = Any
"""A whole number, or an expression of TensorRT with the operators + - * //."""
Expression = int | list[Any]


@dataclass(frozen=True)
class Buffer:
    """An output of a kernel, or memory that it works in: name, NumPy's dtype, shape of expressions."""

    name: str
    dtype: str
    shape: tuple[Expression, ...]


@dataclass(frozen=True)
class Code:
    """A kernel for one architecture.

    Attributes:
        architecture: 87 is sm_87.
        variant: 0 is the configured one; TensorRT may measure the others.
        entry: name of the kernel.
        warps: of a program.
        shared_bytes: of dynamic shared memory.
        grid: programs along each axis, expressions.
        ptx, cubin: the code; one of them may be empty.
    """

    architecture: int
    variant: int
    entry: str
    warps: int
    shared_bytes: int
    grid: tuple[Expression, Expression, Expression]
    ptx: bytes
    cubin: bytes


@dataclass(frozen=True)
class Kernel:
    """A node's kernel. Its arguments: the inputs' addresses, `scalars` as int32, those of outputs and of scratch.

    Attributes:
        operator: type of the node.
        inputs: NumPy's dtypes, in the node's order.
        outputs: in the node's order.
        scratch: memory to work in, written before it is read.
        scalars: expressions.
        codes: for each architecture and variant.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[Buffer, ...]
    scratch: tuple[Buffer, ...]
    scalars: tuple[Expression, ...]
    codes: tuple[Code, ...]

    def for_architecture(self, architecture: int) -> tuple[Code, ...]:
        """The variants for an architecture, the configured one first.

        Raises:
            EngineError: there are none.
        """
        found = tuple(code for code in self.codes if code.architecture == architecture)
        if not found:
            known = ", ".join(sorted({f"sm_{code.architecture}" for code in self.codes}))
            raise EngineError(
                f"The kernel of {self.operator} was compiled for {known}, and the GPU is sm_{architecture}: build the "
                f"engine for sm_{architecture}, or with `--kernels tensorrt`."
            )
        return found

    def scratch_offsets(self, dimension: Callable[[int, int], int]) -> tuple[tuple[int, ...], int]:
        """Where each scratch buffer begins in one block of memory, and the block's size, in bytes."""
        offsets, end = [], 0
        for buffer in self.scratch:
            offsets.append(end)
            size = DTYPE_BYTES[buffer.dtype]
            for side in buffer.shape:
                size *= evaluate(side, dimension)
            end += -(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        return tuple(offsets), end

    def without_ptx(self) -> Kernel:
        """What an engine carries whose kernels are launched from here: the configured variants' machine code."""
        return replace(
            self, codes=tuple(replace(code, ptx=b"") for code in self.codes if code.variant == 0 and code.cubin)
        )

    def to_bytes(self) -> bytes:
        """As a kernel file."""
        codes = []
        for code in self.codes:
            entry = asdict(code)
            del entry["ptx"], entry["cubin"]
            codes.append({**entry, "ptx_bytes": len(code.ptx), "cubin_bytes": len(code.cubin)})
        header = {**asdict(self), "codes": codes}
        return PREFIX + json.dumps(header).encode() + b"\n" + b"".join(code.ptx + code.cubin for code in self.codes)


def read_kernel(content: bytes, name: str) -> Kernel:
    """The inverse of `Kernel.to_bytes`.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        EngineError: it is no kernel file, or not whole.
    """
    try:
        return _read(content)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{name} holds no plugin kernel that this version reads ({type(error).__name__}: {error}): build the "
            "engine again, with `vae-edge build`."
        ) from error


def _read(content: bytes) -> Kernel:
    if not content.startswith(PREFIX):
        raise ValueError(f"it should begin with {PREFIX!r}")
    line, _, rest = content[len(PREFIX) :].partition(b"\n")
    header = json.loads(line)
    codes, at = [], 0
    for entry in header["codes"]:
        sizes = int(entry.pop("ptx_bytes")), int(entry.pop("cubin_bytes"))
        parts = []
        for size in sizes:
            if size < 0 or at + size > len(rest):
                raise ValueError("it is cut short")
            parts.append(rest[at : at + size])
            at += size
        grid = tuple(_checked(side, len(header["inputs"])) for side in entry.pop("grid"))
        if len(grid) != 3:
            raise ValueError("a grid has three sides")
        codes.append(Code(**entry, grid=grid, ptx=parts[0], cubin=parts[1]))
    if at != len(rest):
        raise ValueError("bytes are left over")
    inputs = tuple(header["inputs"])

    def buffers(entries: Sequence[Mapping[str, Any]]) -> tuple[Buffer, ...]:
        return tuple(
            Buffer(each["name"], each["dtype"], tuple(_checked(side, len(inputs)) for side in each["shape"]))
            for each in entries
        )

    outputs, scratch = buffers(header["outputs"]), buffers(header["scratch"])
    unknown = {*inputs, *(each.dtype for each in (*outputs, *scratch))} - set(DTYPE_BYTES)
    if unknown:
        raise ValueError(f"unknown types: {', '.join(sorted(map(str, unknown)))}")
    scalars = tuple(_checked(each, len(inputs)) for each in header["scalars"])
    return Kernel(header["operator"], inputs, outputs, scratch, scalars, tuple(codes))


def _checked(expression: Any, inputs: int, depth: int = 0) -> Expression:
    """An expression that `evaluate` knows."""
    if isinstance(expression, int) and not isinstance(expression, bool):
        return expression
    if not isinstance(expression, list) or len(expression) != 3 or depth > _DEPTH:
        raise ValueError(f"{expression!r} is no expression")
    name, left, right = expression
    if name == "dim":
        if not all(isinstance(each, int) and each >= 0 for each in (left, right)) or left >= inputs:
            raise ValueError(f"{expression!r} is no dimension of an input")
        return [name, left, right]
    if name not in (*_OPERATIONS, "cdiv", "min"):
        raise ValueError(f"{name!r} is no operation")
    return [name, _checked(left, inputs, depth + 1), _checked(right, inputs, depth + 1)]


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "//": lambda left, right: left // right,
}


def evaluate(
    expression: Expression,
    dimension: Callable[[int, int], Dimension],
    constant: Callable[[int], Dimension] = int,
    minimum: Callable[[Dimension, Dimension], Dimension] = min,
) -> Dimension:
    """The value of an expression.

    Args:
        expression: of a kernel file.
        dimension: gives input i's dimension along an axis.
        constant: makes a dimension of a number.
        minimum: of two dimensions.
    """
    if isinstance(expression, int):
        return constant(expression)
    name, left, right = expression
    if name == "dim":
        return dimension(left, right)
    if name == "cdiv":  # of a positive number
        one_less = right - 1 if isinstance(right, int) else ["-", right, 1]
        return evaluate(["//", ["+", left, one_less], right], dimension, constant, minimum)
    values = [evaluate(each, dimension, constant, minimum) for each in (left, right)]
    return minimum(*values) if name == "min" else _OPERATIONS[name](*values)


def read_folder(folder: Path) -> dict[str, Kernel]:
    """The kernels of a folder by their plugins' names, which are the files' without the suffix.

    Raises:
        EngineError: it has none, or one cannot be read.
    """
    kernels = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineError(f"The kernel file {path} cannot be read ({error.strerror}): build again.") from error
        kernels[path.stem] = read_kernel(content, str(path))
    if not kernels:
        raise EngineError(f"There are no kernel files in {folder}: build with `vae-edge build --kernels network`.")
    return kernels
