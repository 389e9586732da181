"""What importing costs, and what it must not bring along."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import pytest


def spent(code: str) -> float:
    """Seconds that a fresh interpreter takes for `code`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@pytest.mark.alone
def test_importing_vae_edge_costs_at_most_half_more_than_importing_numpy() -> None:
    ours, numpys = [], []
    for _ in range(9):
        ours.append(spent("import vae_edge"))
        numpys.append(spent("import numpy"))
    assert statistics.median(ours) <= 1.5 * statistics.median(numpys)


def test_importing_vae_edge_imports_nothing_heavy() -> None:
    heavy = ("torch", "triton", "onnx", "onnxruntime", "openvino", "PIL", "rich", "numpy")
    spent(f"import sys, vae_edge; assert not set({heavy}) & set(sys.modules), sorted(set({heavy}) & set(sys.modules))")


def test_importing_the_runtime_imports_no_engine_and_no_image_library() -> None:
    heavy = ("torch", "triton", "onnx", "onnxruntime", "openvino", "PIL", "rich")
    spent(
        f"import sys; from vae_edge import load; "
        f"assert not set({heavy}) & set(sys.modules), sorted(set({heavy}) & set(sys.modules))"
    )


@pytest.mark.alone
def test_help_answers_within_twice_what_importing_vae_edge_may_cost() -> None:
    helps, numpys = [], []
    for _ in range(9):
        helps.append(spent("from vae_edge.cli import main\ntry: main(['--help'])\nexcept SystemExit: 0"))
        numpys.append(spent("import numpy"))
    assert statistics.median(helps) <= 2 * 1.5 * statistics.median(numpys)
