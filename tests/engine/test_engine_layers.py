"""The table of layers: rows as TensorRT-RTX 1.7 and TensorRT 10 write them, and what is concluded from them."""

from __future__ import annotations

from pathlib import Path

from vae_edge.engine.inspection import LayerInfo, explain_precision, fraction_at, parse_layers

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
