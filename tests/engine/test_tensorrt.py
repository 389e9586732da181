"""Finding TensorRT, a build's configuration, and TensorRT's messages as advice. Nothing here needs TensorRT."""

# ruff: noqa: E501  (TensorRT's texts stand here as they were printed)
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vae_edge.engine.build import build_engine
from vae_edge.engine.tensorrt import BuildConfig, Log, describe_errors, discover, open_adapter, usable
from vae_edge.errors import EngineError

MODULES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)  # as Python marks a module that must not be imported


def test_where_none_is_installed_each_sentence_says_what_to_install(nothing_installed: None) -> None:
    assert discover() == []
    with pytest.raises(EngineError) as error:
        open_adapter()
    said = str(error.value)
    assert said.startswith("Neither TensorRT nor TensorRT-RTX is installed.")
    assert "JetPack" in said
    assert "python3 -m venv --system-site-packages" in said
    assert "pip install tensorrt" in said
    assert 'pip install "vae-edge[rtx]"' in said
    with pytest.raises(EngineError) as error:
        open_adapter("tensorrt")
    assert "JetPack" in str(error.value)
    assert "vae-edge[rtx]" not in str(error.value)
    with pytest.raises(EngineError) as error:
        open_adapter("tensorrt_rtx")
    assert "JetPack" not in str(error.value)
    assert 'pip install "vae-edge[rtx]"' in str(error.value)


def test_a_build_without_tensorrt_says_what_to_install(nothing_installed: None, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"anything")
    with pytest.raises(EngineError, match=r"Neither TensorRT nor TensorRT-RTX is installed.*vae-edge\[rtx\]"):
        build_engine(model, BuildConfig("fp32", targets=("sm_86",)))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(EngineError, match="'trt' is unknown: choose auto, tensorrt or tensorrt_rtx"):
        open_adapter("trt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10: cannot open"),
        ("raise OSError('undefined symbol: cudaFoo')", "OSError: undefined symbol: cudaFoo"),
        ("__version__ = '10.3.0'", "it has no Builder"),
    ],
)
def test_a_broken_installation_is_told_from_a_missing_one(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
for name in ("tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
    sys.modules[name] = None
from vae_edge.engine.tensorrt import open_adapter, usable
from vae_edge.errors import EngineError
assert usable() == []
try:
    open_adapter()
except EngineError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("The module tensorrt cannot be used: ")
    assert words in run.stdout


def test_what_is_available_imports_and_has_a_version() -> None:
    for installation in usable():
        assert installation.module in MODULES
        assert installation.version[0].isdigit()
        assert not installation.problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "int4"}, "'int4' is unknown: choose one of fp32, fp16, int8, fp8"),
        ({"precision": "INT8"}, "'INT8' is unknown"),
        ({"role": "decoder"}, "'decoder' is unknown"),
        ({"targets": ("sm_101",)}, "Use sm_110"),
        ({"batch": (1, 8)}, "three whole numbers"),
        ({"batch": (1, 8.0, 64)}, "three whole numbers"),
        ({"batch": (True, 8, 64)}, "three whole numbers"),
        ({"batch": (0, 8, 64)}, "from at least 1"),
        ({"batch": (1, 65, 64)}, "should rise"),
        ({"batch": (1, 1, 65_537)}, "at most 65536"),
        ({"workspace_bytes": 1000}, "at least 1 MiB"),
        ({"workspace_bytes": 1e9}, "at least 1 MiB"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"optimization_level": -1}, "0 to 5"),
        ({"hardware_compatibility": "all"}, "'all' is unknown"),
        ({"dla_core": -1}, "0 or more"),
        ({"dla_core": 0}, r"one fixed batch.*\(8, 8, 8\)"),
        ({"kind": "trt"}, "'trt' is unknown: choose auto, tensorrt or tensorrt_rtx"),
    ],
)
def test_values_that_no_tensorrt_takes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        BuildConfig(**{"precision": "int8", **changes})


def test_a_good_configuration_passes_and_survives_the_way_through_json() -> None:
    config = BuildConfig("fp16", batch=(8, 8, 8), targets=("sm_87",), optimization_level=0, dla_core=1)
    assert BuildConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_manifest_keeps_no_path_of_this_machine() -> None:
    kept = BuildConfig("fp16", timing_cache="/home/somebody/cache").for_manifest()
    assert kept["timing_cache"] is True and kept["batch"] == [1, 8, 64] and "kind" not in kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "(deserializeOnnxModel): MODEL_DESERIALIZE_FAILED: Assertion failed: model->ParseFromCodedStream(&codedInput): "
            "Failed to parse the ONNX model.",
            "no ONNX model, or it is cut short",
        ),
        (
            "node 'tr' (Transpose): Invalid Node - tr\nITensor::getDimensions: Error Code 4: API Usage Error (tr: first input "
            "has type UInt8 but must have type Float, Half",
            "the node 'tr' reads the uint8 image as it is: cast it",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot compile "
            "operation 'an_gemm' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/optimizer/x.cpp:2012)",
            "'an_gemm' is fp32, which TensorRT-RTX does not run on sm_75",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm86, "
            "because the model contains HW-specific datatypes: fp8_e4m3. In compileGraph at /_src/optimizer/x.cpp:2012)",
            "sm86 has no fp8_e4m3 arithmetic",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: libnvinfer_lean.so.1: "
            "libnvinfer_lean.so.1: cannot open shared object file: No such file or directory In Impl at /_src/x.cpp:305)",
            "libnvinfer_lean.so.1 is not installed",
        ),
        ("CUDA initialization failure with error: 35", "found no GPU that it can use"),
        (
            'INVALID_NODE: creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
            "no plugin brings",
        ),
        (
            "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)",
            "memory did not suffice",
        ),
    ],
)
def test_known_errors_become_advice(text: str, words: str) -> None:
    assert words in describe_errors([text])
    assert words in describe_errors(["", "something before", text])


def test_an_unknown_error_is_quoted_without_its_source_line() -> None:
    said = describe_errors(
        ["IBuilder::build: Error Code 9: Internal Error (weird thing In x at /_src/optimizer/y.cpp:12)"]
    )
    assert said == 'TensorRT says: "Internal Error (weird thing"'


def test_no_error_at_all_is_said() -> None:
    assert describe_errors([]) == "TensorRT gave no reason"


def test_a_log_keeps_order_and_hands_each_message_on() -> None:
    seen: list[tuple[str, str]] = []
    log = Log(sink=lambda severity, text: seen.append((severity, text)))
    for severity in ("VERBOSE", "WARNING", "INTERNAL_ERROR", "WARNING", "ERROR"):
        log.add(severity, f"a {severity}")
    assert seen == log.messages
    assert log.errors() == ["a INTERNAL_ERROR", "a ERROR"]
