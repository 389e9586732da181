"""What an operator tells the ahead-of-time compiler about one kernel that it should make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel with its types and constants fixed, ready to be compiled.

    Attributes:
        name: unique in the native library, `<operator>_<kernel>_<dtype>[_quads]`.
        operator: the operator's name, as in `configs/`.
        function: the `@triton.jit` function.
        types: Triton's type of each argument that stays an argument, in any order: "*fp16", "i32", "fp32", ...
        constants: value of each `tl.constexpr` argument.
        aligned: names of pointers that the caller promises to be multiples of 16 bytes.
        num_warps: warps of a program.
        num_stages: stages of the software pipeline.
    """

    name: str
    operator: str
    function: Any
    types: dict[str, str]
    constants: dict[str, int]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
