from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

CASES = Path(__file__).with_name("interpreter_cases.py")
NAMES = [
    line.removeprefix("def ").split("(")[0] for line in CASES.read_text().splitlines() if line.startswith("def test_")
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Messages of failures by the name of the test, from one run of the cases under the interpreter."""
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = found.setdefault(case.attrib["name"].split("[")[0], [])
        failures += [child.text or child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    return found


def test_every_case_was_run(outcomes: dict[str, list[str]]) -> None:
    assert sorted(outcomes) == sorted(NAMES)
    assert len(NAMES) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_under_the_interpreter(name: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[name] == []
