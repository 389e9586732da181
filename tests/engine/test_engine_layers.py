"""The builder's table of layers: rows as TensorRT-RTX 1.7 and as TensorRT 10 write them, and what is concluded from them."""

from __future__ import annotations

from vae_edge.engine.layers import LayerInfo, parse_layers, reasons, share

# Rows that TensorRT-RTX 1.7.1 printed for an int8 graph (shortened: fewer constants).
RTX_TABLE = """Layers:
Name: __mye1133_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:\x20
Name: __myl_CastMulMinMaxRounCastReshReplConc_myl0_1, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [-1,28,28,1], Strides: [784,28,1,1], StrideOrder: [3,2,1,0], Datatype: UInt8, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye5044_const-lit-in_myl0, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __mye2457c0_before_bias.1_16_myl0, Dimensions: [-1,4,28,28], Strides: [3136,1,112,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: __myl_Cast_0x12, StreamId: 0, Metadata: [ONNX Layer: a0_Q]
Name: conv0_myl0_2, LayerType: correlation, Inputs: [ { Name: __mye2457c0_before_bias.1_16_myl0, Dimensions: [-1,4,28,28], Strides: [3136,1,112,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye4354_dconst_myl0, Dimensions: [16,4,3,3], Strides: [36,1,12,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: alpha, Dimensions: [], Strides: [], StrideOrder: [], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_17_myl0, Dimensions: [-1,16,28,28], Strides: [12544,1,448,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: conv0]
Name: turn+logits_myl0_8, LayerType: gemm, Inputs: [ { Name: q8, Dimensions: [-1,32], Strides: [32,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: out, Dimensions: [-1,12], Strides: [12,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: sm80_xmma_gemm, StreamId: 0, Metadata: [ONNX Layer: logits]

I/O Tensors:
 Name: image, IOMode: Input, DataType: UInt8, Dimensions: [-1,28,28,1], LayerType: nonsense, Location: Device
"""

# Rows in the form in which TensorRT 10 on a GPU writes them (form taken from public logs; names are ours).
FULL_TABLE = """Layers:
Name: Reformatting CopyNode for Input Tensor 0 to conv0 + relu0, LayerType: Reformat, Inputs: [ { Name: (Unnamed Layer* 9) [Shuffle]_output, Location: Device, Dimensions: [8,1,28,28], Format/Datatype: Row major linear FP32 }], Outputs: [ { Name: Reformatted Input Tensor 0 to conv0 + relu0, Location: Device, Dimensions: [8,1,28,28], Format/Datatype: Row major Int8 format }], ParameterType: Reformat, Origin: QDQ, TacticValue: 0x00000000000003ea, StreamId: 0, Metadata:\x20
Name: conv0_w + conv0_w_q + conv0 + relu0, LayerType: CaskConvolution, Inputs: [ { Name: Reformatted Input Tensor 0 to conv0 + relu0, Location: Device, Dimensions: [8,1,28,28], Format/Datatype: Row major Int8 format }], Outputs: [ { Name: conv0_relu, Location: Device, Dimensions: [8,16,28,28], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], ParameterType: Convolution, Kernel: [3,3], PaddingMode: kEXPLICIT_ROUND_DOWN, Weights: {"Type": "Int8", "Count": 144}, Bias: {"Type": "Float", "Count": 16}, HasReLU: 1, Activation: RELU, TacticName: ampere_first_layer, TacticValue: 0x9ae0c0d2fb3a01e5, StreamId: 0, Metadata: [ONNX Layer: conv0]
Name: conv1 + relu1, LayerType: CaskConvolution, Inputs: [ { Name: conv0_relu, Location: Device, Dimensions: [8,16,28,28], Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], Outputs: [ { Name: conv1_relu, Location: Device, Dimensions: [8,32,14,14], Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], ParameterType: Convolution, Kernel: [3,3], Weights: {"Type": "Half", "Count": 4608}, StreamId: 0, Metadata: [ONNX Layer: conv1]
Name: __myl_FcMulAdd_myl0_3, LayerType: kgen, Inputs: [ { Name: flat, Location: Device, Dimensions: [8,32], Format/Datatype: Half }, { Name: w, Location: Device, Dimensions: [32,10], Format/Datatype: Half }], Outputs: [ { Name: logits, Location: Device, Dimensions: [8,10], Format/Datatype: Float }], TacticName: __myl_FcMulAdd_0x1, StreamId: 0, Metadata: [ONNX Layer: logits]
"""


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
    assert (cast.inputs, cast.outputs, cast.heavy) == (("uint8",), ("int8",), False)
    assert layers["__mye1133_0_myl0_0"].precision == "none"


def test_rows_of_full_tensorrt_are_read() -> None:
    layers = by_name(FULL_TABLE)
    assert len(layers) == 4
    conv0 = layers["conv0_w + conv0_w_q + conv0 + relu0"]
    assert (conv0.type, conv0.precision, conv0.outputs, conv0.heavy) == ("CaskConvolution", "int8", ("int8",), True)
    assert layers["conv1 + relu1"].precision == "fp16"
    fused = layers["__myl_FcMulAdd_myl0_3"]
    assert (fused.inputs, fused.outputs, fused.heavy) == (("fp16", "fp16"), ("fp32",), True)
    reformat = layers["Reformatting CopyNode for Input Tensor 0 to conv0 + relu0"]
    assert (reformat.inputs, reformat.outputs, reformat.heavy) == (("fp32",), ("int8",), False)


def test_only_the_last_table_counts_and_no_table_gives_no_layer() -> None:
    assert len(parse_layers([FULL_TABLE, RTX_TABLE])) == 4
    assert parse_layers([FULL_TABLE, RTX_TABLE])[2].type == "correlation"
    assert parse_layers(["Layers: none", "something else"]) == ()


def test_the_share_counts_convolutions_and_matrix_products_alone() -> None:
    full = parse_layers([FULL_TABLE])
    assert share(full, "int8") == 1 / 3
    assert share(full, "fp16") == 2 / 3
    assert share(parse_layers([RTX_TABLE]), "int8") == 1 / 2
    assert share((), "int8") is None
    assert share([LayerInfo("a", "kgen", "fp32")], "fp32") is None


def test_reasons_tell_a_missing_pair_from_an_unused_one() -> None:
    asked = {"conv0": "int8", "conv1": "int8", "logits": "int8 on one input"}
    said = reasons(parse_layers([FULL_TABLE]), "int8", asked)
    assert said[0].startswith("'conv1 + relu1' runs in fp16 though the ONNX file asks for int8")
    assert said[1].startswith("'__myl_FcMulAdd_myl0_3' runs in fp16: it is not one node")
    assert said[2].startswith("1 of 4 layers only change the type or the order")
    said = reasons(parse_layers([RTX_TABLE]), "int8", {"conv0": "int8", "logits": "int8 on one input", "turn": "fp32"})
    assert "no int8 Q/DQ pairs on both of its inputs (it asks for fp32)" in said[0]
    assert said[1].startswith("1 of 2 convolutions and matrix products read int8 but write fp32")


def test_reasons_say_that_the_log_is_silent() -> None:
    assert "unknown" in reasons((), "int8", {})[0]


def test_a_layer_survives_the_way_through_json() -> None:
    for layer in parse_layers([FULL_TABLE]):
        assert LayerInfo.from_json(layer.to_json()) == layer
