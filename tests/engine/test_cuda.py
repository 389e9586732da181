"""The driver's probe: without a driver, with a stand-in driver of known answers, and with a library that is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vae_edge.engine import gpus

STUB = Path(__file__).parent / "stubs" / "cuda_stub.c"
PROBE = """
import json, sys
from vae_edge.engine import gpus
driver = gpus.probe(sys.argv[1])
print(json.dumps([repr(driver), driver.sentence()]))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, STUB], check=True)
    return library


def ask(library: Path, mode: str) -> tuple[str, str]:
    environment = {**os.environ, "VAE_EDGE_STUB_CUDA": mode}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, library], env=environment, capture_output=True, text=True, check=True
    )
    text, sentence = json.loads(run.stdout)
    return text, sentence


def test_without_a_driver_the_probe_says_none_and_why() -> None:
    driver = gpus.probe("libcuda-that-is-not-there.so.1")
    assert driver == gpus.Driver(None, (), driver.problem)
    assert driver.device_count == 0
    assert driver.sentence() == "none: no NVIDIA driver is installed (libcuda-that-is-not-there.so.1 is not there)"


def test_a_library_that_is_no_driver_is_called_so() -> None:
    driver = gpus.probe("libc.so.6")
    assert driver.device_count == 0
    assert "libc.so.6 is not a CUDA driver" in driver.problem


def test_names_capabilities_memory_and_version_come_from_the_driver(stub: Path) -> None:
    driver = gpus.probe(str(stub))
    assert driver.version == (13, 2)
    assert [d.target for d in driver.devices] == ["sm_87", "sm_86"]
    orin, desktop = driver.devices
    told = json.loads(json.dumps(driver.to_json()))
    assert (told["version"], told["devices"][0]["target"]) == ("13.2", "sm_87")
    assert orin == gpus.Device(0, "Orin", (8, 7), 8, 7_990_607_872, True)
    assert desktop == gpus.Device(1, "NVIDIA RTX A2000", (8, 6), 26, 12_884_901_888, False)
    assert driver.sentence() == ("Orin (sm_87, 7.4 GiB), NVIDIA RTX A2000 (sm_86, 12.0 GiB); driver for CUDA 13.2")


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        ("empty", "the driver for CUDA 13.2 is installed, but it sees no GPU"),
        ("broken", "the driver for CUDA 13.2 does not start: error 999, unknown error"),
        ("torn", "the driver does not describe GPU 1: error 101, invalid device ordinal"),
    ],
)
def test_a_driver_that_fails_is_none_with_its_reason(stub: Path, mode: str, problem: str) -> None:
    text, sentence = ask(stub, mode)
    assert "devices=()" in text
    assert sentence == f"none: {problem}"
