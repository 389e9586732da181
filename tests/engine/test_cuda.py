"""The driver's probe: without a driver, with the double of one, and with a library that is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from doubles.cuda_library import CudaDouble

from vae_edge.engine import gpus

PROBE = """
import json, sys
from vae_edge.engine import gpus
driver = gpus.probe(sys.argv[1])
print(json.dumps([repr(driver), driver.sentence()]))
"""


TWO_GPUS = {
    "DOUBLE_DEVICES": "2",
    "DOUBLE_NAME": "Orin,NVIDIA RTX A2000",
    "DOUBLE_CC": "87,86",
    "DOUBLE_MULTIPROCESSORS": "8,26",
    "DOUBLE_MEMORY_BYTES": "7990607872,12884901888",  # more than 32 bits hold
}


def ask(cuda: CudaDouble, fail: str) -> tuple[str, str]:
    environment = cuda.environment(**TWO_GPUS, DOUBLE_FAIL=fail)
    command = [sys.executable, "-c", PROBE, "libcuda.so.1"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
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


def test_names_capabilities_memory_and_version_come_from_the_driver(
    cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TWO_GPUS.items():
        monkeypatch.setenv(name, value)
    driver = gpus.probe(str(cuda.library))
    assert driver.version == (13, 2)
    assert [d.target for d in driver.devices] == ["sm_87", "sm_86"]
    orin, desktop = driver.devices
    told = json.loads(json.dumps(driver.to_json()))
    assert (told["version"], told["devices"][0]["target"]) == ("13.2", "sm_87")
    assert orin == gpus.Device(0, "Orin", (8, 7), 8, 7_990_607_872, True)
    assert desktop == gpus.Device(1, "NVIDIA RTX A2000", (8, 6), 26, 12_884_901_888, False)
    assert driver.sentence() == ("Orin (sm_87, 7.4 GiB), NVIDIA RTX A2000 (sm_86, 12.0 GiB); driver for CUDA 13.2")


@pytest.mark.parametrize(
    ("fail", "problem"),
    [
        ("cuInit:0:100", "the driver for CUDA 13.2 is installed, but it sees no GPU"),
        ("cuInit:0:999", "the driver for CUDA 13.2 does not start: error 999, unknown error"),
        ("cuDeviceGet:2:101", "the driver does not describe GPU 1: error 101, invalid device ordinal"),
    ],
)
def test_a_driver_that_fails_is_none_with_its_reason(cuda: CudaDouble, fail: str, problem: str) -> None:
    text, sentence = ask(cuda, fail)
    assert "devices=()" in text
    assert sentence == f"none: {problem}"
