"""API-surface test, not "TensorRT tested": the adapter's choices against what three versions' real bindings offer.

TensorRT 10.3, 10.13 and 11.4: their libraries are replaced by stubs in which nothing works, so nothing is built here.

The wheels come by `tests/engine/fetch_bindings.sh FOLDER`; VAE_EDGE_TENSORRT_WHEELS=FOLDER then runs these tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bindings import HERE, VERSIONS, bindings_environment, needs_wheels

pytestmark = needs_wheels

# What NVIDIA's release notes and documents say of each version, by the names that the adapter asks for.
EXPECTED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (True, True, False),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (True, True, True),
    "BuilderFlag.FP16": (True, True, False),
    "BuilderFlag.INT8": (True, True, False),
    "BuilderFlag.TF32": (True, True, True),
    "BuilderFlag.VERSION_COMPATIBLE": (True, True, True),
    "BuilderFlag.REFIT": (True, True, True),
    "BuilderFlag.REFIT_IDENTICAL": (True, True, True),
    "BuilderFlag.STRIP_PLAN": (True, True, True),
    "Refitter.get_missing_weights": (True, True, True),
    "OnnxParserRefitter.get_error": (True, True, True),
    "OnnxParser.supports_model": (True, True, False),
    "OnnxParser.supports_model_v2": (True, True, True),
    "ComputeCapability": (False, False, False),
    "IBuilderConfig.set_compute_capability": (False, False, False),
    "IBuilderConfig.set_timing_cache": (True, True, True),
    "IBuilderConfig.progress_monitor": (True, True, True),
    "ProfilingVerbosity.DETAILED": (True, True, True),
    "HardwareCompatibilityLevel.AMPERE_PLUS": (True, True, True),
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (False, True, True),
    "DeviceType.DLA": (True, True, True),
    "IBuilderConfig.DLA_core": (True, True, True),
    "IGridSampleLayer.interpolation_mode": (True, True, True),
    "IGridSampleLayer.sample_mode": (True, True, True),
    "IGridSampleLayer.align_corners": (True, True, True),
    "InterpolationMode.LINEAR": (True, True, True),
    "SampleMode.FILL": (True, True, True),
}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Give the answer of `api_surface_probe.py` for a version."""
    answers: dict[str, dict[str, Any]] = {}

    def answer(version: str) -> dict[str, Any]:
        if version not in answers:
            answers[version] = _ask(version, tmp_path_factory.mktemp(f"trt{version}"))
        return answers[version]

    return answer


def _ask(version: str, folder: Path) -> dict[str, Any]:
    environment = bindings_environment(version, folder)
    command = [sys.executable, HERE / "api_surface_probe.py", *EXPECTED]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert Path(answer["file"]).is_relative_to(folder), "another TensorRT was imported than the one under test"
    return dict(answer)


versions = pytest.mark.parametrize("version", list(VERSIONS))


@versions
def test_each_version_offers_what_its_documents_say(ask: Callable[[str], dict[str, Any]], version: str) -> None:
    answer = ask(version)
    column = list(VERSIONS).index(version)
    assert (answer["module"], answer["version"]) == ("tensorrt_bindings", version)
    assert answer["features"] == {name: offered[column] for name, offered in EXPECTED.items()}


@versions
def test_networks_are_strongly_typed_and_carry_no_flag_that_is_ignored(
    ask: Callable[[str], dict[str, Any]], version: str
) -> None:
    answer = ask(version)
    assert answer["network_flags"] == ["STRONGLY_TYPED"]
    assert answer["network_bits"] == (
        1 if version.startswith("11") else 2
    )  # 11 took EXPLICIT_BATCH away but kept the bits
    assert ("EXPLICIT_BATCH" in answer["members"]) == (not version.startswith("11"))


@versions
def test_the_configuration_sets_only_what_the_version_has(ask: Callable[[str], dict[str, Any]], version: str) -> None:
    answer = ask(version)
    assert answer["config_calls"] == [
        ["memory", "WORKSPACE", 256 << 20],
        ["set", "profiling_verbosity", "ProfilingVerbosity.DETAILED"],
    ]
    assert answer["everything"][2:] == [
        ["set", "builder_optimization_level", 4],
        ["clear_flag", "TF32", None],
        ["flag", "VERSION_COMPATIBLE", None],
        ["set", "hardware_compatibility_level", "HardwareCompatibilityLevel.AMPERE_PLUS"],
        ["set", "default_device_type", "DeviceType.DLA"],
        ["set", "DLA_core", 0],
        ["flag", "GPU_FALLBACK", None],
        ["flag", "STRIP_PLAN", None],
        ["flag", "REFIT_IDENTICAL", None],
    ]


@versions
def test_a_level_that_only_later_versions_have_is_refused_by_name(
    ask: Callable[[str], dict[str, Any]], version: str
) -> None:
    said = ask(version)["same_compute_capability"]
    if version == "10.3.0":
        assert said.startswith("TensorRT 10.3.0 has no HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY")
    else:
        assert said == ""


@versions
def test_a_builder_that_does_not_start_becomes_a_sentence(ask: Callable[[str], dict[str, Any]], version: str) -> None:
    said = ask(version)["builder"]
    assert said.startswith(f"TensorRT {version} could not start its builder: ")
    assert 'pip install "vae-edge[rtx]"' in said


@versions
def test_logger_and_progress_monitor_derive_from_the_real_classes(
    ask: Callable[[str], dict[str, Any]], version: str
) -> None:
    answer = ask(version)
    assert answer["log"] == [["ERROR", "one line"]]
    assert answer["progress"] == [["Building", 0, 2], ["Building", 1, 2], ["Building", 2, 2]]


@versions
def test_the_signatures_are_those_that_the_builder_calls(ask: Callable[[str], dict[str, Any]], version: str) -> None:
    calls = ask(version)["calls"]
    for call, argument in {
        "Builder.create_network": "flags: int",
        "Builder.build_serialized_network": "config: tensorrt_bindings.tensorrt.IBuilderConfig) -> ",
        "IBuilderConfig.set_memory_pool_limit": "pool_size: int",
        "IBuilderConfig.create_timing_cache": "serialized_timing_cache: ",
        "IBuilderConfig.set_timing_cache": "ignore_mismatch: bool) -> bool",
        "IBuilderConfig.add_optimization_profile": ") -> int",
        "IOptimizationProfile.set_shape": "min: tensorrt_bindings.tensorrt.Dims, opt: ",
        "OnnxParser.parse": "path: str = None) -> bool",
        "OnnxParser.supports_model_v2": "path: str = None) -> bool",
        "ITimingCache.serialize": "IHostMemory",
        "IBuilderConfig.can_run_on_DLA": "ILayer) -> bool",
        "INetworkDefinition.add_cast": "to_type: ",
        "INetworkDefinition.mark_output": "tensor: ",
        "Refitter.__init__": "engine: ",
        "Refitter.refit_cuda_engine": ") -> bool",
        "Refitter.get_missing_weights": "List[str]",
        "OnnxParserRefitter.__init__": "refitter: ",
        "OnnxParserRefitter.refit_from_bytes": "model: ",
    }.items():
        assert argument.lower() in calls[call].lower(), (call, calls[call])
