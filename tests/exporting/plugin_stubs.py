"""Plugins that compute nothing, for the parser and the builder of TensorRT-RTX: which of our nodes do they take?

    python plugin_stubs.py FILE.onnx

prints JSON: how many layers the parsed network has, how many of them are plugins, and the engine's size in bytes, or 0.
It is a process of its own: the parser looks for `libtensorrt_rtx.so`, which the wheel has under another name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as trt
from vae_edge_kernels.layout import from_json

FLOAT, HALF, INT8 = trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.INT8
TYPES = {1: FLOAT, 3: INT8, 10: HALF}  # by ONNX's number
INTEGERS = ("masked", "stride", "pad_top", "pad_left", "relu", "dtype", "block")
FLOATS = ("scale", "fill", "inv_output_scale", "input_scale", "inv_x_scale", "residual_scale")
Outputs = list[tuple[Any, list[Any]]]  # type and dimensions; None is the batch


def conv(shapes: list[list[int]], given: dict[str, Any], kernel: tuple[int, int], channels: int) -> list[Any]:
    size = [
        (side + 2 * given[pad] - length) // given["stride"] + 1
        for side, pad, length in zip(shapes[0][1:3], ("pad_top", "pad_left"), kernel, strict=True)
    ]
    return [None, *size, channels]


def network(shapes: list[list[int]], given: dict[str, Any]) -> Outputs:
    return [(FLOAT, [None, given["net"].classes]), (FLOAT, [None]), (FLOAT, [None]), (FLOAT, [None, 3])]


def content(shapes: list[list[int]], given: dict[str, Any]) -> Outputs:
    net = given["net"]
    return [(FLOAT, [None, net.classes]), (FLOAT, [None, net.latent + net.classes]), (FLOAT, [None, 2])]


OUTPUTS: dict[str, Callable[[list[list[int]], dict[str, Any]], Outputs]] = {
    "VaeEdgeNetwork": network,
    "VaeEdgeRotate": lambda s, given: [(TYPES[given["dtype"]], [None, *s[0][1:]])],
    "VaeEdgeStemConv": lambda s, given: [(HALF, conv(s, given, (s[1][0], s[1][1]), s[1][3]))],
    "VaeEdgeConv": lambda s, given: [(HALF, conv(s, given, (s[1][0], s[1][1]), s[1][3]))],
    "VaeEdgeStemConvInt8": lambda s, given: [(INT8, conv(s, given, (s[1][1], s[1][2]), s[1][0]))],
    "VaeEdgeConvInt8": lambda s, given: [(TYPES[given["dtype"]], conv(s, given, (s[1][0], s[1][1]), s[1][2]))],
    "VaeEdgeAvgPool": lambda s, given: [(FLOAT, [None, s[0][3]])],
    "VaeEdgeOrientationHead": lambda s, given: [(FLOAT, [None, given["net"].classes]), (FLOAT, [None, 6])],
    "VaeEdgeContentHead": content,
    "VaeEdgeReparameterize": lambda s, given: [(FLOAT, [None, s[0][1]]), (FLOAT, [None])],
    "VaeEdgeReconstructionError": lambda s, given: [(FLOAT, [None])],
}
COUNTS = {"VaeEdgeNetwork": 4, "VaeEdgeOrientationHead": 2, "VaeEdgeContentHead": 3, "VaeEdgeReparameterize": 2}


class Stub(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    def __init__(self, op_type: str, given: dict[str, Any]) -> None:
        for base in Stub.__bases__:
            base.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = op_type, "1", ""
        self.num_outputs = COUNTS.get(op_type, 1)
        self.given = given

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def get_output_data_types(self, types: Any) -> list[Any]:
        shapes = [[1, 1, 1, 1]] * len(types)  # the types do not depend on them
        return [kind for kind, _ in OUTPUTS[self.plugin_name](shapes, self.given)]

    def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
        shapes = [[dim.get_constant_value() if dim.is_constant() else -1 for dim in dims] for dims in inputs]
        outputs = []
        for _, sides in OUTPUTS[self.plugin_name](shapes, self.given):
            dims = trt.DimsExprs(len(sides))
            for index, side in enumerate(sides):
                dims[index] = inputs[0][0] if side is None else builder.constant(side)
            outputs.append(dims)
        return outputs

    def supports_format_combination(self, position: int, described: Any, inputs: int) -> bool:
        return bool(described[position].desc.format == trt.TensorFormat.LINEAR)

    def get_fields_to_serialize(self) -> Any:
        return trt.PluginFieldCollection([])

    def clone(self) -> Stub:
        return Stub(self.plugin_name, self.given)

    def attach_to_context(self, context: Any) -> Stub:
        return self.clone()

    def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
        return 0

    def configure_plugin(self, inputs: Any, outputs: Any) -> None: ...

    def on_shape_change(self, inputs: Any, outputs: Any) -> None: ...

    def enqueue(self, *arguments: Any) -> None: ...

    def set_tactic(self, tactic: int) -> None: ...


class Creator(trt.IPluginCreatorV3One):
    def __init__(self, op_type: str) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = op_type, "1", ""
        kinds = {
            **dict.fromkeys(INTEGERS, trt.PluginFieldType.INT32),
            **dict.fromkeys(FLOATS, trt.PluginFieldType.FLOAT32),
            "layout": trt.PluginFieldType.CHAR,
        }
        self.field_names = trt.PluginFieldCollection([trt.PluginField(name, b"", kind) for name, kind in kinds.items()])

    def create_plugin(self, name: str, fields: Any, phase: Any) -> Stub:
        given: dict[str, Any] = {}
        for field in fields:
            if field.name == "layout":
                given["net"] = from_json(bytes(field.data).decode().rstrip("\0"))
            elif field.name in INTEGERS and len(field.data):
                given[field.name] = int(field.data[0])
        return Stub(self.name, given)


def main(path: str) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    creators = [Creator(name) for name in OUTPUTS]
    for creator in creators:
        trt.get_plugin_registry().register_creator(creator, "")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(path).read_bytes()):
        print(json.dumps({"errors": [parser.get_error(k).desc() for k in range(parser.num_errors)]}))
        return
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    for index in range(network.num_inputs):
        first, *sides = network.get_input(index).shape
        if first == -1:
            profile.set_shape(network.get_input(index).name, [1, *sides], [2, *sides], [8, *sides])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    kinds = [network.get_layer(k).type.name for k in range(network.num_layers)]
    found = {"layers": len(kinds), "plugins": sum("PLUGIN" in kind for kind in kinds)}
    print(json.dumps({**found, "engine": 0 if engine is None else engine.nbytes}))


if __name__ == "__main__":
    main(sys.argv[1])
