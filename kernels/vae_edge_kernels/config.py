"""How a kernel is configured: its tuned launch configuration, and the specializations that are compiled ahead of time.

`configs/<operator>.json` maps each kernel to its launch configuration: `default`, and an entry for each architecture
("87", "90", ...) that wants another one. Launchers and the ahead-of-time compiler read the same files; `bench/tune.py`
writes them. Each file also holds the operator's resource budgets (`analysis.sass`).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "configs"
BLOCK_N_CHOICES = (16, 32, 64)  # output channels of a tile
DTYPE_NAMES = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "i8",
    "uint8": "u8",
    "float8_e4m3fn": "fp8",
}

_overrides: dict[tuple[str, str], dict[str, int]] = {}
_recorders: list[set[tuple[str, str]]] = []


@dataclass(frozen=True)
class KernelSpec:
    """One specialization of a kernel for the ahead-of-time compiler: all types and constants are fixed.

    Attributes:
        name: unique in the native library: operator, dtypes, BLOCK_N, and `aligned` where that is assumed.
        operator: the name of its file in `configs/`.
        function: the `@triton.jit` function.
        types: Triton's type of each argument that stays an argument, in any order: "*fp16", "i32", "fp32", ...
        constants: value of each `tl.constexpr` argument.
        aligned: names of pointers and integers that the caller promises to be multiples of 16 (bytes, elements).
        num_warps: warps of a program.
        num_stages: stages of the software pipeline.
        fp_fusion: whether a product and a sum may become one fma, which rounds once.
    """

    name: str
    operator: str
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    fp_fusion: bool = True


@functools.cache
def load_configs(operator: str) -> dict[str, dict[str, dict[str, int]]]:
    """All launch configurations of one operator: kernel to architecture to constants.

    Raises:
        FileNotFoundError: if the operator has no file.
    """
    text = (FOLDER / f"{operator}.json").read_text(encoding="utf-8")
    kernels: dict[str, dict[str, dict[str, int]]] = json.loads(text)["kernels"]
    return kernels


def get_config(operator: str, kernel: str, architecture: int | None) -> dict[str, int]:
    """The launch configuration of a kernel: the architecture's own (87 is sm_87) if there is one, else the default."""
    for recorder in _recorders:
        recorder.add((operator, kernel))
    if (operator, kernel) in _overrides:
        return _overrides[operator, kernel]

    entries = load_configs(operator)[kernel]
    return entries.get(str(architecture), entries["default"])


@contextmanager
def override_config(operator: str, kernel: str, config: dict[str, int]) -> Iterator[None]:
    """Use this configuration for a kernel, whatever its file says, in all threads; for the tuner."""
    before = dict(_overrides)
    _overrides[operator, kernel] = config
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


@contextmanager
def record_config_keys() -> Iterator[set[tuple[str, str]]]:
    """Collect the (operator, kernel) keys that launchers ask for within the block; for the tuner."""
    keys: set[tuple[str, str]] = set()
    _recorders.append(keys)
    try:
        yield keys
    finally:
        _recorders.remove(keys)


def write_config(operator: str, kernel: str, architecture: int, config: dict[str, int], measured_on: str) -> None:
    """Store a configuration for one architecture in an operator's file, with the device on which it was measured.

    Raises:
        KeyError: if the file has no such kernel.
    """
    path = FOLDER / f"{operator}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["kernels"][kernel][str(architecture)] = config
    content["measured_on"] = sorted({*content["measured_on"], measured_on})

    # One kernel and one budget a line, so that a diff shows what was tuned.
    kernels = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in content["kernels"].items())
    lists = [
        f'  "{name}": [\n' + ",\n".join(f"    {json.dumps(budget)}" for budget in content[name]) + "\n  ]"
        for name in ("dynamic_budgets", "budgets")
        if name in content
    ]
    text = (
        f'{{\n  "schema": {content["schema"]},\n  "measured_on": {json.dumps(content["measured_on"])},\n'
        f'  "kernels": {{\n{kernels}\n  }},\n' + ",\n".join(lists) + "\n}\n"
    )

    # Renaming is atomic: a launcher never reads half a file.
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    load_configs.cache_clear()


def current_architecture() -> int | None:
    """The architecture of the current GPU (87 is sm_87), or None under Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None

    import triton

    return int(triton.runtime.driver.active.get_current_target().arch)


def block_n_for(channels: int) -> int:
    """BLOCK_N for this many output channels: the smallest choice that holds them all, else the largest."""
    return next((block_n for block_n in BLOCK_N_CHOICES if block_n >= channels), BLOCK_N_CHOICES[-1])


def dtype_name(tensor: Any) -> str:
    """Triton's name of a tensor's dtype, as the configurations spell it: fp32, fp16, bf16, i8, u8, fp8.

    Raises:
        KeyError: for any other dtype.
    """
    return DTYPE_NAMES[str(tensor.dtype).rpartition(".")[2]]


def as_float32(value: float) -> float:
    """The nearest float32. A compiled kernel rounds its scalar arguments to it; the interpreter does not."""
    import numpy as np

    return float(np.float32(value))
