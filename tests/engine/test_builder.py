"""GridSample: what the file asks for, and what a parser made of it, which is set right or refused."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from vae_edge.engine.builder import GridSample, fix_grid_samples, requested_grid_samples
from vae_edge.engine.tensorrt import Log, open_adapter
from vae_edge.errors import EngineError

PATH = Path("model.onnx")


class InterpolationMode(enum.Enum):
    NEAREST, LINEAR, CUBIC = range(3)


class SampleMode(enum.Enum):
    STRICT_BOUNDS, WRAP, CLAMP, FILL, REFLECT = range(5)


class IGridSampleLayer:
    interpolation_mode: InterpolationMode
    sample_mode: SampleMode
    align_corners: bool


MODULE = SimpleNamespace(InterpolationMode=InterpolationMode, SampleMode=SampleMode, IGridSampleLayer=IGridSampleLayer)


class Layer:
    """A layer as a network gives it: without its own attributes, until its class is set."""

    def __init__(self, kind: str = "GRID_SAMPLE", **values: Any) -> None:
        self.type = SimpleNamespace(name=kind)
        hidden = {
            "interpolation_mode": InterpolationMode.LINEAR,
            "sample_mode": SampleMode.FILL,
            "align_corners": False,
        }
        self.hidden = {**hidden, **values}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "__class__":
            for key, held in self.hidden.items():
                object.__setattr__(self, key, held)


class Stubborn(IGridSampleLayer):
    """A layer that takes a new mode and keeps the old one."""

    type = SimpleNamespace(name="GRID_SAMPLE")
    sample_mode = SampleMode.FILL
    align_corners = False

    @property
    def interpolation_mode(self) -> InterpolationMode:  # type: ignore[override]
        return InterpolationMode.NEAREST

    @interpolation_mode.setter
    def interpolation_mode(self, value: InterpolationMode) -> None:
        self.asked = value


def network(*layers: Any) -> Any:
    return SimpleNamespace(num_layers=len(layers), get_layer=lambda k: layers[k])


def model(*nodes: dict[str, Any], opset: int = 20) -> bytes:
    """A model with GridSample nodes, one behind the other."""
    made, tensor = [], "image"
    for k, attributes in enumerate(nodes):
        made.append(helper.make_node("GridSample", [tensor, "grid"], [f"y{k}"], name=f"sample{k}", **attributes))
        made.append(helper.make_node("Relu", [f"y{k}"], [f"z{k}"], name=f"relu{k}", doc_string="GridSample"))
        tensor = f"z{k}"
    value = helper.make_tensor_value_info
    inputs = [value("image", TensorProto.FLOAT, ["n", 1, 4, 4]), value("grid", TensorProto.FLOAT, ["n", 4, 4, 2])]
    graph = helper.make_graph(made, "g", inputs, [value(tensor, TensorProto.FLOAT, ["n", 1, 4, 4])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def test_what_the_nodes_ask_is_what_onnx_says() -> None:
    found = requested_grid_samples(
        model({}, {"mode": "nearest", "padding_mode": "border"}, {"mode": "cubic", "align_corners": 1})
    )
    assert found == [
        GridSample("sample0", "LINEAR", "FILL", False),
        GridSample("sample1", "NEAREST", "CLAMP", False),
        GridSample("sample2", "CUBIC", "FILL", True),
    ]
    old = requested_grid_samples(
        model({"mode": "bilinear", "padding_mode": "reflection", "align_corners": 0}, opset=16)
    )
    assert old == [GridSample("sample0", "LINEAR", "REFLECT", False)]
    assert requested_grid_samples(model()) == []


def test_the_exported_graph_asks_for_linear_and_the_default_padding(bundle: Path) -> None:
    path = bundle / "classifier.fp32.onnx"
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == "GridSample"]
    assert requested_grid_samples(path.read_bytes()) == [GridSample(node.name, "LINEAR", "FILL", False)]


@pytest.mark.parametrize("keep", [-1, -7, 40])
def test_a_model_cut_short_is_refused(keep: int) -> None:
    with pytest.raises(EngineError, match="damaged or cut short"):
        requested_grid_samples(model({"mode": "linear"})[:keep])


def test_a_mode_that_onnx_does_not_know_is_refused() -> None:
    with pytest.raises(EngineError, match="'sample0' has the mode 'round'"):
        requested_grid_samples(model({"mode": "round"}))


def test_a_layer_that_was_read_as_nearest_is_set_to_linear() -> None:
    layer = Layer(interpolation_mode=InterpolationMode.NEAREST)
    said = fix_grid_samples(
        MODULE, network(Layer("RELU"), layer), requested_grid_samples(model({})), PATH, "TensorRT 10.1"
    )
    assert layer.interpolation_mode is InterpolationMode.LINEAR
    assert said == [
        "TensorRT 10.1 read the GridSample 'sample0' with interpolation_mode NEAREST; it was set to LINEAR, which the "
        "file asks for."
    ]


@pytest.mark.parametrize(("name", "wrong"), [("sample_mode", SampleMode.CLAMP), ("align_corners", True)])
def test_padding_and_corners_are_set_as_well(name: str, wrong: Any) -> None:
    layer, right = Layer(**{name: wrong}), Layer()
    said = fix_grid_samples(MODULE, network(right, layer), requested_grid_samples(model({}, {})), PATH, "TensorRT")
    assert len(said) == 1 and f"'sample1' with {name}" in said[0]
    assert getattr(layer, name) == getattr(right, name)


def test_a_layer_that_is_right_is_left_alone() -> None:
    assert (
        fix_grid_samples(MODULE, network(Layer()), requested_grid_samples(model({"mode": "linear"})), PATH, "TensorRT")
        == []
    )


def test_what_cannot_be_set_or_told_is_refused() -> None:
    with pytest.raises(
        EngineError, match="interpolation_mode NEAREST where the file asks for LINEAR, and it cannot be"
    ):
        fix_grid_samples(MODULE, network(Stubborn()), requested_grid_samples(model({})), PATH, "TensorRT 10.1")
    with pytest.raises(EngineError, match=r"made 0 grid-sample layers of the 1 GridSample nodes of model\.onnx"):
        fix_grid_samples(MODULE, network(Layer("RELU")), requested_grid_samples(model({})), PATH, "TensorRT 10.1")


def test_the_real_parsers_layers_are_set_through_a_fresh_network() -> None:
    """With TensorRT-RTX 1.5 the parser itself reads NEAREST; with later ones the fault is made here."""
    module = pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    adapter = open_adapter("tensorrt_rtx")
    builder, logger = adapter.builder(Log())
    parsed = builder.create_network(adapter.network_flags())
    parser = module.OnnxParser(parsed, logger)
    content = model({"mode": "linear"}, {"mode": "nearest", "padding_mode": "border"}, {"mode": "cubic"})
    assert parser.parse(content, "model.onnx")

    def read() -> list[tuple[str, str]]:
        found = []
        for k in range(parsed.num_layers):
            layer = parsed.get_layer(k)
            if layer.type.name == "GRID_SAMPLE":
                layer.__class__ = module.IGridSampleLayer
                found.append((layer.interpolation_mode.name, layer.sample_mode.name))
        return found

    first = next(k for k in range(parsed.num_layers) if parsed.get_layer(k).type.name == "GRID_SAMPLE")
    layer = parsed.get_layer(first)
    layer.__class__ = module.IGridSampleLayer
    layer.interpolation_mode = module.InterpolationMode.NEAREST
    said = fix_grid_samples(module, parsed, requested_grid_samples(content), PATH, adapter.name)
    assert any("'sample0' with interpolation_mode NEAREST; it was set to LINEAR" in sentence for sentence in said)
    assert read() == [("LINEAR", "FILL"), ("NEAREST", "CLAMP"), ("CUBIC", "FILL")]
