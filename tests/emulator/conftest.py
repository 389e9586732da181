"""The scripts of bench/ are imported as modules; without Triton nothing is compiled."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))

NEED_TRITON = (
    "test_budgets.py",
    "test_checks.py",
    "test_compiled.py",
    "test_mutants.py",
    "test_plugin_kernels.py",
    "test_tensor_kernels.py",
)
collect_ignore = [] if find_spec("triton") else [*NEED_TRITON]
