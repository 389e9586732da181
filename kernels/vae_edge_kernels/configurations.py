"""The launch configurations: one JSON file an operator, read by launchers and ahead-of-time compiler alike.

A file maps each kernel to `default` and to those architectures ("87", "90", ...) that want something else.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent / "configs"


@functools.cache
def table(operator: str) -> dict[str, dict[str, dict[str, int]]]:
    """The whole table of one operator: kernel to architecture to constants.

    Raises:
        FileNotFoundError: if the operator has no table.
    """
    kernels: dict[str, dict[str, dict[str, int]]] = json.loads(
        (FOLDER / f"{operator}.json").read_text(encoding="utf-8")
    )["kernels"]
    return kernels


def choose(operator: str, kernel: str, architecture: int | None) -> dict[str, int]:
    """The configuration of a kernel on an architecture (87 is sm_87): its own where it has one, else the default."""
    if (operator, kernel) in _tried:
        return _tried[operator, kernel]
    entries = table(operator)[kernel]
    return entries.get(str(architecture), entries["default"])


_tried: dict[tuple[str, str], dict[str, int]] = {}


@contextmanager
def trying(operator: str, kernel: str, configuration: dict[str, int]) -> Iterator[None]:
    """Choose this configuration for a kernel, whatever the table says, in all threads; for the tuner."""
    before = dict(_tried)
    _tried[operator, kernel] = configuration
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)


def write(operator: str, kernel: str, architecture: int, configuration: dict[str, int], measured_on: str) -> None:
    """Put a configuration into an operator's file, for one architecture, and say on which device it was measured.

    Raises:
        KeyError: if the file has no such kernel.
    """
    path = FOLDER / f"{operator}.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["kernels"][kernel][str(architecture)] = configuration
    whole["measured_on"] = sorted({*whole["measured_on"], measured_on})
    kernels = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in whole["kernels"].items())
    budgets = ",\n".join(f"    {json.dumps(budget)}" for budget in whole["budgets"])
    text = (
        f'{{\n  "schema": {whole["schema"]},\n  "measured_on": {json.dumps(whole["measured_on"])},\n'
        f'  "kernels": {{\n{kernels}\n  }},\n  "budgets": [\n{budgets}\n  ]\n}}\n'
    )

    temporary = path.with_name(f".{path.name}.part")  # the file is whole at every moment
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    table.cache_clear()


def current_architecture() -> int | None:
    """The architecture of the current GPU (87 is sm_87), or None under Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    import triton

    return int(triton.runtime.driver.active.get_current_target().arch)
