"""The GPU's name, as NVIDIA's own tool answers (a script stands in for it), and what a Jetson adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from jetson_trees import read_tree

from vae_edge import jetson
from vae_edge.benchmarking import measure
from vae_edge.benchmarking.measure import describe_machine, gpu_name


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


def test_a_measurement_on_a_jetson_says_power_mode_clocks_and_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_jetson(gpu_name: str) -> object:
        asked.append(gpu_name)
        return read_tree("agx-orin-jetpack-7.2")

    monkeypatch.setattr(measure, "gpu_name", lambda: "Orin (nvgpu)")
    monkeypatch.setattr(jetson, "read_jetson", read_jetson)
    assert describe_machine()["jetson"] == {
        "module": "Jetson AGX Orin 64 GB",
        "super": False,
        "jetpack": "7.2",
        "l4t": "39.2.0",
        "power_mode": "MAXN",
        "strongest_power_mode": "MAXN",
        "clocks_pinned": True,
    }
    assert asked == ["Orin (nvgpu)"]


def test_a_measurement_elsewhere_says_nothing_of_a_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "read_jetson", lambda gpu_name: None)
    assert "jetson" not in describe_machine()
