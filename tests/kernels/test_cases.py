"""The cases of the kernels, under Triton's interpreter, and compiled where there is a GPU.

Each file of cases runs in a process of its own: the interpreter is chosen when the kernels are imported, and other
tests need the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"  # whose networks the cases use
FILES = sorted((Path(__file__).parent / "cases").glob("*_cases.py"))
NAMES = [
    (path.stem, line.removeprefix("def ").split("(")[0])
    for path in FILES
    for line in path.read_text().splitlines()
    if line.startswith("def test_")
]
SLOW = ("sizes_cases",)  # the interpreter takes its time for a large image


def cases(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow) if values[0] in SLOW else values


@cache
def outcomes(stem: str, interpreted: bool, folder: Path) -> dict[str, list[str]]:
    """Messages of failures by the name of the test, from one run of a file of cases."""
    report = folder / f"{stem}-{interpreted}.xml"
    path = next(path for path in FILES if path.stem == stem)
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(path.parent), str(BENCH), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = found.setdefault(case.attrib["name"].split("[")[0], [])
        bad = ("failure", "error", "skipped") if interpreted else ("failure", "error")
        failures += [child.text or child.tag for child in case if child.tag in bad]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize(("stem",), [cases(stem) for stem in sorted({stem for stem, _ in NAMES})])
def test_every_case_was_run(stem: str, folder: Path) -> None:
    assert sorted(outcomes(stem, True, folder)) == sorted(name for other, name in NAMES if other == stem)


@pytest.mark.parametrize("stem, name", [cases(*each) for each in NAMES])
def test_under_the_interpreter(stem: str, name: str, folder: Path) -> None:
    assert outcomes(stem, True, folder)[name] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("stem, name", [cases(*each) for each in NAMES])
def test_compiled(stem: str, name: str, folder: Path) -> None:
    assert outcomes(stem, False, folder)[name] == []
