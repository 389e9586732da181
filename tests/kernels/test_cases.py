"""The cases of the kernels, under Triton's interpreter, compiled for an emulated GPU, and compiled where there is one.

Each file of cases runs in a process of its own: the interpreter is chosen when the kernels are imported, and other
tests need the compiler.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
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
EMULATED = [  # architecture, file, and which of its cases
    *((architecture, "conv_cases", "") for architecture in (87, 90, 110, 120)),
    (87, "reparameterize_cases", ""),
    (87, "network_cases", "not several_ctas"),
    (87, "network_cases", "several_ctas and changes0"),
    (110, "network_cases", "rotated or atan2 or means or reconstruction or heads"),
    *(  # by `make test-compiled` alone
        pytest.param(architecture, stem, selected, marks=pytest.mark.exhaustive)
        for architecture in (90, 110, 120)
        for stem, selected in (
            ("reparameterize_cases", ""),
            ("network_cases", "not several_ctas"),
            ("network_cases", "several_ctas and changes0"),
        )
    ),
    pytest.param(110, "conv_cases", "", marks=pytest.mark.exhaustive),
]
UNKNOWN = re.compile("PtxError: ")
OF_TRITON = (3, 9)  # what the emulator knows; earlier ones emit other instructions
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
    return failures_of(command, environment, report, ("failure", "error", "skipped")[: 3 if interpreted else 2])


def failures_of(
    command: list[str], environment: dict[str, str], report: Path, bad: tuple[str, ...]
) -> dict[str, list[str]]:
    """What a run of cases says of each test that is bad."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = found.setdefault(case.attrib["name"].split("[")[0], [])
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


def triton_version() -> tuple[int, int]:
    """(0, 0) without Triton."""
    try:
        major, minor = metadata.version("triton").split(".")[:2]
    except metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(triton_version() < OF_TRITON, reason="the emulator knows what Triton 3.9 emits")
@pytest.mark.parametrize("architecture, stem, selected", EMULATED)
def test_compiled_for_an_emulated_gpu(architecture: int, stem: str, selected: str, tmp_path: Path) -> None:
    path = next(path for path in FILES if path.stem == stem)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "EMULATED_ARCHITECTURE": str(architecture)}
    folders = [str(path.parents[2]), str(path.parent), str(BENCH), environment.get("PYTHONPATH", "")]
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "emulator.launches"]
    command += ["-k", selected, f"--junitxml={tmp_path / 'report.xml'}", str(path)]
    found = failures_of(command, environment, tmp_path / "report.xml", ("failure", "error"))
    failed = {name: failures for name, failures in found.items() if failures}
    unknown = {name for name, failures in failed.items() if all(UNKNOWN.search(each) for each in failures)}
    if architecture >= 100 and failed and failed.keys() == unknown:
        pytest.xfail(f"unchecked, of instructions that the emulator does not know: {', '.join(sorted(unknown))}")
    assert found and not failed
