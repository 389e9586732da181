"""Models for the TensorRT plugin: what the container of code has, what changes in the model, what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from vae_edge_kernels.layout import NetworkLayout, to_json
from vae_edge_kernels.layout_builder import make_layout

from vae_edge.errors import EngineError, ExportError
from vae_edge.exporting import plugin_code
from vae_edge.exporting.plugin_code import make_plugin_model

pytest.importorskip("triton", reason="needs Triton, which compiles the kernel")
OUTPUTS = ("probabilities", "angle", "score", "uncertainty")
INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8


def small_layout(int8: bool = False) -> NetworkLayout:
    return make_layout(
        size=(28, 30), channels=1, classes=3, bins=0, latent=4, hidden=4, fill=0.0, circular_mask=False, orientation=(),
        encoder=[(16, 1), (16, 2), (16, 1), (16, 2), (16, 1), (16, 2)], feature_layer=2, components=4, clusters=3,
        decoder=None, reduction=1, int8=int8,
    )  # fmt: skip


def make_model(*layouts: str, image: str = "image", others: Any = ()) -> onnx.ModelProto:
    """A graph of one `VaeEdgeNetwork` node for each layout, all on the same image; weights are inputs here."""
    nodes, outputs, inputs = list(others), [], [helper.make_tensor_value_info("image", UINT8, ["batch", 28, 30, 1])]
    for number, layout in enumerate(layouts):
        constants = [f"{name}{number}" for name in ("weights", "params", "whitening")]
        answers = [f"{name}{number}" for name in OUTPUTS]
        nodes.append(
            helper.make_node(
                "VaeEdgeNetwork", [image, *constants], answers, name=f"node{number}", domain="vae_edge", layout=layout
            )
        )
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in constants]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in answers]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("vae_edge", 1)]
    return helper.make_model(helper.make_graph(nodes, "graph", inputs, outputs), opset_imports=opsets)


def code_of(node: onnx.NodeProto) -> bytes:
    (found,) = [attribute.s for attribute in node.attribute if attribute.name == "machine_code"]
    return bytes(found)


def read_container(content: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """Description and tensors of a container, read by hand; its digest is checked."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    digest = header["__metadata__"].pop("sha256")
    assert header.pop("__metadata__") == {"format": "vae-edge-code-1"}
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    tensors = {name: content[8 + size :][slice(*line["data_offsets"])] for name, line in header.items()}
    lines = tensors.pop("about").decode().splitlines()
    return dict(line.split("=", 1) for line in lines), tensors


@pytest.mark.parametrize("int8", [False, True])
def test_the_container_has_the_layouts_sizes_and_code_for_each_gpu(int8: bool) -> None:
    net = small_layout(int8)
    made = make_plugin_model(make_model(to_json(net)), ["orin", "sm_86"])
    about, tensors = read_container(code_of(made.graph.node[0]))

    entries = {key: about.pop(key).split() for key in ("kernel.86", "kernel.87")}
    assert about == {
        "side": "28",
        "width": "30",
        "channels": "1",
        "classes": "3",
        "area_bytes": str(net.activation_size * (1 if int8 else 2)),
        "floats": str(net.workspace_size),
        "weights_bytes": str(net.weights_size * (1 if int8 else 2)),
        "numbers_bytes": str(4 * net.params_size),
        "whitenings_bytes": str(2 * 3 * 4 * 16),
        "int8": str(int(int8)),
        "layout_sha256": hashlib.sha256(to_json(net).encode()).hexdigest(),
    }
    assert sorted(tensors) == ["cubin.86", "cubin.87"]
    for architecture in (86, 87):
        entry, warps, shared, ctas = entries[f"kernel.{architecture}"]
        assert (entry, ctas) == ("network", "1") and int(warps) in (4, 8, 16) and 0 < int(shared) < 100 << 10
        assert f".text.{entry}".encode() in tensors[f"cubin.{architecture}"]


def test_the_image_becomes_int8_and_the_model_that_was_given_stays() -> None:
    model = make_model(to_json(small_layout()))
    model.functions.append(
        helper.make_function("vae_edge", "VaeEdgeNetwork", ["image"], ["angle"], [], [helper.make_opsetid("", 20)])
    )
    before = model.SerializeToString()
    made = make_plugin_model(model, "orin")
    assert model.SerializeToString() == before
    assert made.graph.input[0].type.tensor_type.elem_type == INT8 and not made.functions
    assert [attribute.name for attribute in made.graph.node[0].attribute] == ["layout", "machine_code"]

    # Once more, for another GPU: the code is replaced.
    again = make_plugin_model(made, "sm_86")
    assert "kernel.87" not in read_container(code_of(again.graph.node[0]))[0]
    assert len(again.graph.node[0].attribute) == 2


def test_nodes_of_one_layout_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def pack(layout: str, architectures: tuple[int, ...], _progress: Any) -> bytes:
        asked.append((layout, architectures))
        return layout[-20:].encode()

    monkeypatch.setattr(plugin_code, "pack_machine_code", pack)
    one, other = to_json(small_layout()), to_json(small_layout(int8=True))
    made = make_plugin_model(make_model(one, other, one), "orin")
    assert asked == [(one, (87,)), (other, (87,))]
    assert [code_of(node) for node in made.graph.node] == [text[-20:].encode() for text in (one, other, one)]


LAYOUT = to_json(small_layout())
IDENTITY = [helper.make_node("Identity", ["image"], ["copy"])]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (make_model(), ExportError, "the model has no node VaeEdgeNetwork"),
        (make_model(LAYOUT, image="copy", others=IDENTITY), ExportError, "must be an input of the graph"),
        (make_model(LAYOUT, others=IDENTITY), ExportError, "that no other node reads"),
        (make_model("no JSON"), EngineError, "the network of node 'node0' does not compile"),
        (make_model("{}"), EngineError, "the network of node 'node0' does not compile"),
    ],
)
def test_models_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto, error: type[Exception], words: str
) -> None:
    def no_compiler(*_arguments: Any, **_options: Any) -> dict[str, Any]:
        return {"kernels": []}

    monkeypatch.setattr("vae_edge_kernels.aot.compile_all", no_compiler)
    with pytest.raises(error, match=words):
        make_plugin_model(model, "orin")


def test_a_node_without_a_layout_is_refused() -> None:
    model = make_model(LAYOUT)
    del model.graph.node[0].attribute[:]
    with pytest.raises(ExportError, match="node 'node0' has no attribute 'layout'"):
        make_plugin_model(model, "orin")


def test_an_image_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_code, "pack_machine_code", lambda *_: b"")
    model = make_model(LAYOUT)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(ExportError, match="must be UINT8; it is FLOAT"):
        make_plugin_model(model, "orin")


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("sm_12345", "'sm_12345' is not the name of an architecture"),
        ("t4", "No model for the plugin can be made for sm_75"),
    ],
)
def test_a_gpu_for_which_nothing_is_compiled_is_refused(targets: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        make_plugin_model(make_model(LAYOUT), targets)
