"""An engine without a driver: the header of TensorRT-RTX engines, and the table of layers in the builder's log."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_edge.engine.inspection import (
    HEADER_BYTES,
    LayerInfo,
    explain_precision,
    fraction_at,
    inspect_engine,
    parse_header,
    parse_layers,
    read_header,
)
from vae_edge.errors import EngineError

# The first 64 bytes of an engine that TensorRT-RTX 1.7.1.116 built for 8.0, 8.6, 8.9 and 12.0; it had 1,024,476 bytes.
KNOWN = bytes.fromhex(
    "76747274 00000000 02000000 00000000 dca10f00 00000000 01070174 76747274"
    "1e000000 00000000 00000000 00000000 00000000 00000000 88460000 00000000"
)
SIZE = 1_024_476


def changed(offset: int, content: bytes) -> bytes:
    return KNOWN[:offset] + content + KNOWN[offset + len(content) :]


def test_a_known_header_says_its_size_version_and_targets() -> None:
    header = parse_header(KNOWN, SIZE)
    assert (header.size, header.version, header.mask) == (SIZE, "1.7.1.116", 0x1E)
    assert header.targets == ("sm_80", "sm_86", "sm_89", "sm_120")
    assert not header.forward_compatible


@pytest.mark.parametrize(
    ("mask", "targets", "forward_compatible"),
    [(0x01, ("sm_75",), False), (0x38, ("sm_89", "sm_120", "sm_121"), False), (0x60, ("sm_121",), True)],
)
def test_each_bit_is_one_architecture(mask: int, targets: tuple[str, ...], forward_compatible: bool) -> None:
    header = parse_header(changed(32, struct.pack("<I", mask)), SIZE)
    assert header.targets == targets
    assert header.forward_compatible == forward_compatible


@pytest.mark.parametrize(
    ("start", "size", "words"),
    [
        (b"", 0, "has 0 bytes, fewer than the 64"),
        (KNOWN[:63], 63, "has 63 bytes, fewer than the 64"),
        (changed(0, b"ONNX"), SIZE, "is no TensorRT-RTX engine"),
        (changed(28, b"\0\0\0\0"), SIZE, "is no TensorRT-RTX engine"),
        (KNOWN, SIZE - 1, "cut short or damaged"),
        (KNOWN, SIZE + 1, "cut short or damaged"),
        (changed(32, b"\0\0\0\0"), SIZE, "capability mask 0x0"),
        (changed(32, b"\xff\xff\0\0"), SIZE, "capability mask 0xffff"),
    ],
)
def test_short_foreign_and_damaged_headers_are_refused(start: bytes, size: int, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        parse_header(start, size, "x.rtx")


def test_files_are_inspected_and_missing_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "classifier.int8.sm_86.rtx"
    path.write_bytes(changed(16, struct.pack("<Q", 100)) + bytes(36))
    assert read_header(path).size == 100
    told = inspect_engine(path)
    assert told.header.targets == ("sm_80", "sm_86", "sm_89", "sm_120")
    assert told.to_json()["kind"] == "tensorrt_rtx"
    assert told.to_json()["bytes"] == 100
    with pytest.raises(EngineError, match=r"missing\.rtx cannot be read \(No such file"):
        read_header(tmp_path / "missing.rtx")
    with pytest.raises(EngineError, match="it is a folder"):
        read_header(tmp_path)


@given(st.binary(max_size=96))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_pass_for_an_engine(content: bytes) -> None:
    with pytest.raises(EngineError):
        parse_header(content[:HEADER_BYTES], len(content))


LOGS = Path(__file__).parent / "logs"
RTX_TABLE = (LOGS / "tensorrt_rtx_1_7_int8.txt").read_text()  # printed by TensorRT-RTX 1.7.1, shortened
FULL_TABLE = (
    LOGS / "tensorrt_10_int8.txt"
).read_text()  # in the form of public logs of TensorRT 10; the names are ours


def by_name(text: str) -> dict[str, LayerInfo]:
    return {layer.name: layer for layer in parse_layers(["noise", text, "more noise"])}


def test_rows_of_tensorrt_rtx_are_read() -> None:
    layers = by_name(RTX_TABLE)
    assert list(layers) == [
        "__mye1133_0_myl0_0", "__myl_CastMulMinMaxRounCastReshReplConc_myl0_1", "conv0_myl0_2", "turn+logits_myl0_8"
    ]  # fmt: skip
    assert layers["conv0_myl0_2"] == LayerInfo("conv0_myl0_2", "correlation", "int8", ("int8",), ("fp32",), True)
    assert layers["turn+logits_myl0_8"].precision == "fp16"
    cast = layers["__myl_CastMulMinMaxRounCastReshReplConc_myl0_1"]
    assert (cast.inputs, cast.outputs, cast.is_compute) == (("uint8",), ("int8",), False)
    assert layers["__mye1133_0_myl0_0"].precision == "none"


def test_rows_of_full_tensorrt_are_read() -> None:
    layers = by_name(FULL_TABLE)
    assert len(layers) == 4
    conv0 = layers["conv0_w + conv0_w_q + conv0 + relu0"]
    assert (conv0.type, conv0.precision, conv0.outputs, conv0.is_compute) == (
        "CaskConvolution",
        "int8",
        ("int8",),
        True,
    )
    assert layers["conv1 + relu1"].precision == "fp16"
    fused = layers["__myl_FcMulAdd_myl0_3"]
    assert (fused.inputs, fused.outputs, fused.is_compute) == (("fp16", "fp16"), ("fp32",), True)
    reformat = layers["Reformatting CopyNode for Input Tensor 0 to conv0 + relu0"]
    assert (reformat.inputs, reformat.outputs, reformat.is_compute) == (("fp32",), ("int8",), False)


def test_only_the_last_table_counts_and_no_table_gives_no_layer() -> None:
    assert len(parse_layers([FULL_TABLE, RTX_TABLE])) == 4
    assert parse_layers([FULL_TABLE, RTX_TABLE])[2].type == "correlation"
    assert parse_layers(["Layers: none", "something else"]) == ()


def test_the_share_counts_convolutions_and_matrix_products_alone() -> None:
    full = parse_layers([FULL_TABLE])
    assert fraction_at(full, "int8") == 1 / 3
    assert fraction_at(full, "fp16") == 2 / 3
    assert fraction_at(parse_layers([RTX_TABLE]), "int8") == 1 / 2
    assert fraction_at((), "int8") is None
    assert fraction_at([LayerInfo("a", "kgen", "fp32")], "fp32") is None


def test_reasons_tell_a_missing_pair_from_an_unused_one() -> None:
    requested = {"conv0": "int8", "conv1": "int8", "logits": "int8 on one input"}
    said = explain_precision(parse_layers([FULL_TABLE]), "int8", requested)
    assert said[0].startswith("'conv1 + relu1' runs in fp16 though the ONNX file asks for int8")
    assert said[1].startswith("'__myl_FcMulAdd_myl0_3' runs in fp16: it is not one node")
    assert said[2].startswith("1 of 4 layers only change the type or the order")
    said = explain_precision(
        parse_layers([RTX_TABLE]), "int8", {"conv0": "int8", "logits": "int8 on one input", "turn": "fp32"}
    )
    assert "no int8 Q/DQ pairs on both of its inputs (it asks for fp32)" in said[0]
    assert said[1].startswith("1 of 2 convolutions and matrix products read int8 but write fp32")


def test_reasons_say_that_the_log_is_silent() -> None:
    assert "unknown" in explain_precision((), "int8", {})[0]


def test_a_layer_survives_the_way_through_json() -> None:
    for layer in parse_layers([FULL_TABLE]):
        assert LayerInfo.from_json(layer.to_json()) == layer
