"""What the process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from vae_edge.runtime import available_cpus, backend_version, cpu_model, installed_backends


def test_the_affinity_bounds_the_cpus() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= available_cpus() <= len(before)


def test_the_processor_has_the_name_that_the_kernel_gives_it() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    assert cpu_model() and (not named or named[0] in cpu_model())


def test_versions_are_those_of_the_packages() -> None:
    import onnxruntime
    import openvino

    assert installed_backends(gpu=False) == ("onnxruntime", "openvino")
    assert set(installed_backends()) == {*installed_backends(gpu=False), *installed_backends(gpu=True)}
    assert backend_version("onnxruntime") == onnxruntime.__version__
    assert openvino.__version__.startswith(backend_version("openvino"))
