"""The GPU's name, as NVIDIA's own tool answers; a script stands in for it where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from vae_edge.benchmarking.measure import gpu_name


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("echo 'NVIDIA Jetson Orin'; echo 'a second one'", "NVIDIA Jetson Orin"),
        ("echo 'no devices were found'; exit 6", None),
        ("true", None),
    ],
)
def test_the_gpu_is_named_only_where_a_driver_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str | None
) -> None:
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has a GPU of its own")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu_name() == name
