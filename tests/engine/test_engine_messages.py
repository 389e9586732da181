"""What TensorRT reports becomes a sentence: the texts are those that TensorRT-RTX 1.7.1 and its parser printed."""

# ruff: noqa: E501  (the texts stand here as they were printed)
from __future__ import annotations

import pytest

from vae_edge.engine.tensorrt import Log, describe_errors


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
    assert log.warnings() == ["a WARNING"]
