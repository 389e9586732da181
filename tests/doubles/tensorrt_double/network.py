"""Networks, their layers and tensors, and the ONNX parser that makes them. Needs the package onnx."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto

from .basics import ENUMS, DataType, Dims, buffer, check_logger
from .building import DTYPES, value_shape
from .personality import HERE, handle, member, offered, only
from .state import STATE

LayerType: Any = ENUMS["LayerType"]
ErrorCode: Any = ENUMS["ErrorCode"]

_OPERATORS = {
    "CONVOLUTION": "Conv", "DECONVOLUTION": "ConvTranspose", "MATRIX_MULTIPLY": "Gemm MatMul",
    "ACTIVATION": "Relu Sigmoid Tanh Clip LeakyRelu Elu Selu Softplus HardSigmoid Gelu Softsign",
    "POOLING": "MaxPool AveragePool", "SOFTMAX": "Softmax LogSoftmax", "CONCATENATION": "Concat",
    "ELEMENTWISE": "Add Sub Mul Div Pow Min Max Equal Greater Less GreaterOrEqual LessOrEqual And Or Mod",
    "SHUFFLE": "Reshape Flatten Transpose Squeeze Unsqueeze DepthToSpace SpaceToDepth",
    "SLICE": "Slice Split Tile Expand Pad", "SHAPE": "Shape Size", "GATHER": "Gather GatherND GatherElements",
    "CAST": "Cast", "QUANTIZE": "QuantizeLinear", "DEQUANTIZE": "DequantizeLinear", "GRID_SAMPLE": "GridSample",
    "REDUCE": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp GlobalMaxPool "
    "GlobalAveragePool",
    "UNARY": "Exp Log Sqrt Abs Neg Sin Cos Tan Asin Acos Atan Floor Ceil Round Erf Not Sign Reciprocal IsNaN IsInf",
    "IDENTITY": "Identity", "CONSTANT": "Constant", "FILL": "ConstantOfShape Range", "SELECT": "Where Trilu",
    "RESIZE": "Resize", "TOPK": "TopK ArgMax ArgMin", "SCALE": "BatchNormalization",
    "NORMALIZATION": "LayerNormalization InstanceNormalization", "EINSUM": "Einsum", "SCATTER": "ScatterND",
}  # fmt: skip
TYPE_OF = {operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()}
_DLA_TYPES = (
    "CONVOLUTION", "DECONVOLUTION", "ACTIVATION", "POOLING", "ELEMENTWISE", "SCALE", "CONCATENATION", "SHUFFLE",
    "REDUCE", "SOFTMAX", "QUANTIZE", "DEQUANTIZE",
)  # fmt: skip


@offered()
class ITensor:
    """A tensor of a network."""

    def __init__(self) -> None:
        raise TypeError("ITensor: No constructor defined!")

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @property
    def shape(self) -> Dims:
        return Dims(self._shape)

    @property
    def dtype(self) -> Any:
        return self._dtype

    @property
    def is_network_input(self) -> bool:
        return self in self._network._inputs

    @property
    def is_network_output(self) -> bool:
        return self in self._network._outputs


@offered()
class ILayer:
    """A layer of a network: one node of the ONNX file."""

    def __init__(self) -> None:
        raise TypeError("ILayer: No constructor defined!")

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @property
    def metadata(self) -> str:
        return f"[ONNX Layer: {self._name}]"

    @property
    def type(self) -> Any:
        return self._type

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self._at(self._inputs, index)

    def get_output(self, index: int) -> ITensor | None:
        return self._at(self._outputs, index)

    def get_output_type(self, index: int) -> Any:
        tensor = self._at(self._outputs, index)
        return tensor.dtype if tensor is not None else DataType.FLOAT

    def _at(self, tensors: list[ITensor], index: int) -> ITensor | None:
        return tensors[index] if 0 <= handle(index, "index") < len(tensors) else None


@offered()
class IGridSampleLayer(ILayer):
    """A grid-sample layer. A network hands it out as ILayer: `layer.__class__ = IGridSampleLayer` shows the rest."""

    @property
    def interpolation_mode(self) -> Any:
        return self._mode

    @interpolation_mode.setter
    def interpolation_mode(self, value: Any) -> None:
        self._mode = member(value, ENUMS["InterpolationMode"], "value")

    @property
    def sample_mode(self) -> Any:
        return self._padding

    @sample_mode.setter
    def sample_mode(self, value: Any) -> None:
        self._padding = member(value, ENUMS["SampleMode"], "value")

    @property
    def align_corners(self) -> bool:
        return self._corners

    @align_corners.setter
    def align_corners(self, value: bool) -> None:
        self._corners = bool(value)


@offered()
class INetworkDefinition:
    """A network. It keeps the ONNX file that it was parsed from."""

    def __init__(self) -> None:
        raise TypeError("INetworkDefinition: No constructor defined!")

    def _setup(self, builder: Any, flags: int) -> None:
        typed = 1 << ENUMS["NetworkDefinitionCreationFlag"].STRONGLY_TYPED.value
        always = typed if HERE.letter in "cr" else 0  # from 11 on there is nothing else
        self._builder, self._flags, self._name = builder, flags | always, "Unnamed Network 0"
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._layers: list[ILayer] = []
        self._proto: onnx.ModelProto | None = None

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @property
    def builder(self) -> Any:
        return self._builder

    @property
    def flags(self) -> int:
        return self._flags

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> flag.value & 1)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_layer(self, index: int) -> ILayer | None:
        return self._layers[index] if 0 <= handle(index, "index") < len(self._layers) else None

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index] if 0 <= handle(index, "index") < len(self._inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[index] if 0 <= handle(index, "index") < len(self._outputs) else None

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, arg0: int, /) -> ILayer:
        return self._layers[handle(arg0, "arg0")]

    def mark_output(self, tensor: ITensor) -> None:
        if tensor in self._outputs:
            say = self._builder.logger.log
            say(ENUMS["ILogger.Severity"].ERROR, f"INetworkDefinition::markOutput: {tensor.name} is an output already")
            return
        self._outputs.append(tensor)

    def unmark_output(self, tensor: ITensor) -> None:
        if tensor in self._outputs:
            self._outputs.remove(tensor)


@offered()
class ParserError:
    """What a parser did not take."""

    def __init__(self) -> None:
        raise TypeError("ParserError: No constructor defined!")

    def code(self) -> Any:
        return self._code

    def desc(self) -> str:
        return self._desc

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 0

    def func(self) -> str:
        return "parseNode"

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return self._node_name

    def node_operator(self) -> str:
        return self._operator


def _error(code: Any, desc: str, node: int = -1, name: str = "", operator: str = "") -> ParserError:
    made: Any = object.__new__(ParserError)
    made._code, made._desc, made._node, made._node_name, made._operator = code, desc, node, name, operator
    return made


@offered()
class OnnxParser:
    """Parses an ONNX file into a network, which the parser does not keep alive."""

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        if not isinstance(network, INetworkDefinition):
            raise TypeError("__init__(): incompatible constructor arguments: network")
        self._held, self._logger = weakref.ref(network), check_logger(logger)
        self._errors: list[ParserError] = []

    @property
    def _network(self) -> INetworkDefinition:
        """The network, while somebody else holds it."""
        network = self._held()
        if network is None:
            STATE.fault("A parser was used whose network nobody held any more: the real process ends with a crash.")
            raise RuntimeError("the network is gone")
        return network

    def _say(self, sentence: str) -> None:
        self._logger.log(ENUMS["ILogger.Severity"].ERROR, sentence)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError | None:
        return self._errors[index] if 0 <= handle(index, "index") < len(self._errors) else None

    def clear_errors(self) -> None:
        self._errors = []

    def supports_operator(self, op_name: str) -> bool:
        return op_name in TYPE_OF

    def parse(self, model: Any, path: str | None = None) -> bool:
        content = buffer(model, "model")
        if self._network._layers:
            self._say("ModelImporter.cpp:1170: Parse was called with a non-empty network definition")
            return False
        proto = self._read(content)
        if proto is None or not self._check(proto):
            return False
        _fill(self._network, proto)
        return True

    @only("ab")
    def supports_model(self, model: Any, path: str | None = None) -> tuple[bool, list[tuple[list[int], bool]]]:
        proto = self._read(buffer(model, "model"))
        taken = proto is not None and self._check(proto)
        count = len(proto.graph.node) if proto is not None else 0
        return taken, [(list(range(count)), taken)]

    def supports_model_v2(self, model: Any, path: str | None = None) -> bool:
        proto = self._read(buffer(model, "model"))
        return proto is not None and self._check(proto)

    def _read(self, content: bytes) -> onnx.ModelProto | None:
        try:
            proto = onnx.load_model_from_string(content)
        except Exception:  # whatever protobuf raises for bytes that are no message
            proto = None
        if proto is None or (content and not proto.HasField("graph")):
            self._refuse(_error(ErrorCode.MODEL_DESERIALIZE_FAILED, _NO_MODEL))
            return None
        return proto

    def _check(self, proto: onnx.ModelProto) -> bool:
        for number, node in enumerate(proto.graph.node):
            if node.op_type not in TYPE_OF:
                known = _is_onnx(node.op_type)
                code, desc = ("UNSUPPORTED_NODE", "false") if known else ("INVALID_NODE", _NO_PLUGIN)
                self._refuse(_error(getattr(ErrorCode, code), desc, number, node.name, node.op_type))
        return not self._errors

    def _refuse(self, error: ParserError) -> None:
        self._errors.append(error)
        self._say(f"ModelImporter.cpp:151: ERROR: {error.code().name}: {error.desc()}")


_NO_MODEL = "Assertion failed: model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model."
_NO_PLUGIN = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'


def _is_onnx(operator: str) -> bool:
    """Whether ONNX itself has an operator."""
    try:
        onnx.defs.get_schema(operator)
    except onnx.defs.SchemaError:
        return False
    return True


# From the ONNX file to the network

_MODES = {"linear": "LINEAR", "bilinear": "LINEAR", "nearest": "NEAREST", "cubic": "CUBIC", "bicubic": "CUBIC"}
_PADDINGS = {"zeros": "FILL", "border": "CLAMP", "reflection": "REFLECT"}
_WORDS = {"LINEAR": "linear", "NEAREST": "nearest", "CUBIC": "cubic"}


def _fill(network: INetworkDefinition, proto: onnx.ModelProto) -> None:
    network._proto = proto
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    weights = {each.name: each for each in proto.graph.initializer}
    values = {each.name: each for each in (*inferred.value_info, *inferred.input, *inferred.output)}
    tensors: dict[str, ITensor] = {}

    def tensor(name: str) -> ITensor:
        if name not in tensors:
            made: Any = object.__new__(ITensor)
            made._name, made._network = name, network
            if name in weights:
                kind, made._shape = weights[name].data_type, list(weights[name].dims)
            elif name in values:
                kind, made._shape = values[name].type.tensor_type.elem_type, value_shape(values[name])
            else:
                kind, made._shape = TensorProto.FLOAT, []
            made._dtype = getattr(DataType, DTYPES.get(kind, "FLOAT"), DataType.FLOAT)
            tensors[name] = made
        return tensors[name]

    for node in proto.graph.node:
        layer: Any = object.__new__(ILayer)
        layer._name, layer._type = node.name or node.output[0], getattr(LayerType, _type_here(node.op_type))
        layer._inputs = [tensor(name) for name in _layer_inputs(node, weights)]
        layer._outputs = [tensor(name) for name in node.output if name]
        if node.op_type == "GridSample":
            _set_grid_sample(layer, node)
        network._layers.append(layer)
    network._inputs += [tensor(each.name) for each in proto.graph.input if each.name not in weights]
    network._outputs += [tensor(each.name) for each in proto.graph.output]


def _type_here(operator: str) -> str:
    own = operator.upper()
    return own if operator in ("Squeeze", "Unsqueeze") and hasattr(LayerType, own) else TYPE_OF[operator]


def _layer_inputs(node: onnx.NodeProto, weights: dict[str, Any]) -> Iterator[str]:
    """Weights of a convolution are no inputs of its layer, unless something computes them; nor are shapes and axes."""
    for place, name in enumerate(node.input):
        if not name or (name in weights and place > 0 and node.op_type in ("Conv", "ConvTranspose", "Reshape")):
            continue
        if name in weights and place == 2 and node.op_type in ("Gemm", "QuantizeLinear", "DequantizeLinear"):
            continue
        yield name


def _set_grid_sample(layer: Any, node: onnx.NodeProto) -> None:
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    mode = _MODES[attributes.get("mode", b"linear").decode()]
    if STATE.nearest_grid_samples:
        mode = "NEAREST"
    layer._mode = getattr(ENUMS["InterpolationMode"], mode)
    layer._padding = getattr(ENUMS["SampleMode"], _PADDINGS[attributes.get("padding_mode", b"zeros").decode()])
    layer._corners = bool(attributes.get("align_corners", 0))


def model_of(network: INetworkDefinition) -> onnx.ModelProto:
    """The ONNX file as the network stands: interpolation as its layers say, and its outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(network._proto or onnx.ModelProto())
    for node, layer in zip(model.graph.node, network._layers, strict=True):
        if node.op_type != "GridSample":
            continue
        state: Any = layer
        kept = [each for each in node.attribute if each.name not in ("mode", "padding_mode", "align_corners")]
        paddings = {member_name: word for word, member_name in _PADDINGS.items()}
        chosen = {
            "mode": _WORDS[state._mode.name],
            "padding_mode": paddings[state._padding.name],
            "align_corners": int(state._corners),
        }
        del node.attribute[:]
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(name, value) for name, value in chosen.items())])
    known = {each.name: each for each in onnx.shape_inference.infer_shapes(model).graph.value_info}
    known.update({each.name: each for each in model.graph.output})
    del model.graph.output[:]
    model.graph.output.extend(known[each.name] for each in network._outputs)
    return model


def dla_takes(layer: ILayer, precision: str) -> bool:
    """Whether a DLA could run a layer: one of these types, in int8 or fp16."""
    return layer.type.name in _DLA_TYPES and precision in ("fp16", "int8")
