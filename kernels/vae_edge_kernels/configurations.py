"""The launch configurations: one JSON file an operator, read by launchers and ahead-of-time compiler alike.

A file maps each kernel to `default` and to those architectures ("87", "90", ...) that want something else.
"""

from __future__ import annotations

import functools
import json
import os
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
    entries = table(operator)[kernel]
    return entries.get(str(architecture), entries["default"])


def current_architecture() -> int | None:
    """The architecture of the current GPU (87 is sm_87), or None under Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    import triton

    return int(triton.runtime.driver.active.get_current_target().arch)
