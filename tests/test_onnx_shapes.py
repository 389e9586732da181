"""Which ONNX files are given to an engine: those whose shapes are what ONNX itself infers, and bounded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vae_edge.errors import BundleError
from vae_edge.onnx_shapes import check_model
from vae_edge.onnx_sizes import Size

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def build(nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, out: str = "out") -> onnx.ModelProto:
    """A graph from `image` float [N, 2, 8, 8] to `out`."""
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info(out, FLOAT, None)],
        weights,
    )
    graph.output[0].type.tensor_type.shape.SetInParent()
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def one(operator: str, *inputs: str, out: str = "out", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [out], **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


GOOD: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "Conv": (
        [one("Conv", "image", "w", strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2], group=2)],
        {"w": np.ones((4, 1, 3, 2), np.float32)},
    ),
    "Conv same": (
        [one("Conv", "image", "w", auto_pad="SAME_UPPER", strides=[3, 3])], {"w": np.ones((4, 2, 3, 3), "f4")},
    ),
    "ConvTranspose": (
        [one("ConvTranspose", "image", "w", strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2])],
        {"w": np.ones((2, 3, 3, 4), "f4")},
    ),
    "MaxPool": ([one("MaxPool", "image", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)], {}),
    "AveragePool": ([one("AveragePool", "image", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "GlobalAveragePool": ([one("GlobalAveragePool", "image")], {}),
    "MatMul": ([one("MatMul", "image", "w")], {"w": np.ones((2, 8, 5), "f4")}),
    "MatMul by a vector": ([one("MatMul", "image", "w")], {"w": np.ones(8, "f4")}),
    "vector by MatMul": ([one("MatMul", "w", "image")], {"w": np.ones(8, "f4")}),
    "Gemm": ([one("Flatten", "image", out="a"), one("Gemm", "a", "w", transB=1)], {"w": np.ones((7, 128), "f4")}),
    "Flatten at 2": ([one("Flatten", "image", axis=2)], {}),
    "Reshape": ([one("Reshape", "image", "to")], {"to": ints(0, -1, 16)}),
    "Reshape of the batch": ([one("Reshape", "image", "to")], {"to": ints(-1, 64)}),
    "Squeeze": ([one("Unsqueeze", "image", "k", out="a"), one("Squeeze", "a", "k")], {"k": ints(1, 3)}),
    "Transpose": ([one("Transpose", "image", perm=[0, 3, 1, 2])], {}),
    "Concat": ([one("Concat", "image", "image", axis=1)], {}),
    "Slice": (
        [one("Slice", "image", "s", "e", "a", "t")],
        {"s": ints(7, -3), "e": ints(-(2**31), 2**31), "a": ints(2, 3), "t": ints(-2, 1)},
    ),
    "Gather": ([one("Gather", "image", "k", axis=2)], {"k": np.array([[1, 2], [3, 4], [5, 6]])}),
    "Split": ([helper.make_node("Split", ["image", "k"], ["a", "out"], axis=3)], {"k": ints(3, 5)}),
    "Expand": ([one("Expand", "image", "to")], {"to": ints(3, 1, 1, 1, 1)}),
    "Tile": ([one("Tile", "image", "k")], {"k": ints(1, 2, 1, 3)}),
    "Pad": ([one("Pad", "image", "k")], {"k": ints(0, 0, 1, 2, 0, 0, 3, 4)}),
    "Pad of some axes": ([one("Pad", "image", "k", "", "a")], {"k": ints(1, 2), "a": ints(-1)}),
    "Resize by scales": ([one("Resize", "image", "", "k")], {"k": np.array([1, 1, 1.7, 0.5], "f4")}),
    "Resize to sizes": ([one("Resize", "image", "", "", "k", axes=[2, 3])], {"k": ints(11, 3)}),
    "OneHot": (
        [one("ArgMax", "image", out="a", axis=1, keepdims=0), one("OneHot", "a", "d", "v", axis=1)],
        {"d": ints(5), "v": np.array([0, 1], "f4")},
    ),
    "TopK": ([helper.make_node("TopK", ["image", "k"], ["out", "b"], axis=2)], {"k": ints(3)}),
    "DepthToSpace": (
        [one("Concat", "image", "image", out="a", axis=1), one("DepthToSpace", "a", blocksize=2)], {},
    ),
    "SpaceToDepth": ([one("SpaceToDepth", "image", blocksize=2)], {}),
    "ReduceMean": ([one("ReduceMean", "image", "k", keepdims=0)], {"k": ints(-1, 1)}),
    "ReduceSum of all": ([one("ReduceSum", "image")], {}),
    "broadcast": ([one("Add", "image", "w")], {"w": np.ones((5, 1, 2, 1, 8), "f4")}),
    "GridSample": (
        [
            one("Shape", "image", out="s", start=0, end=1),
            one("Concat", "s", "c", out="size", axis=0),
            one("ConstantOfShape", "pose", out="theta0"),
            one("Expand", "theta0", "t", out="theta1"),
            one("Concat", "s", "t", out="t3", axis=0),
            one("Expand", "theta1", "t3", out="theta"),
            one("AffineGrid", "theta", "size", out="grid"),
            one("GridSample", "image", "grid"),
        ],
        {"c": ints(2, 6, 7), "pose": ints(1, 2, 3), "t": ints(2, 3)},
    ),
    "a shape that is computed": (
        [
            one("Shape", "image", out="s"),
            one("Gather", "s", "k", out="batch"),
            one("Mul", "batch", "two", out="twice"),
            one("Unsqueeze", "twice", "k0", out="u"),
            one("Concat", "u", "row", out="to", axis=0),
            one("Reshape", "image", "to"),
        ],
        {"k": np.array(0), "two": np.array(2), "k0": ints(0), "row": ints(64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_shapes_are_those_that_onnx_runtime_gives(name: str) -> None:
    content = build(*GOOD[name]).SerializeToString()
    totals = check_model(content, "the model")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for images in (1, 3):
        if name == "Expand" and images == 3:
            continue
        (out,) = session.run(["out"], {"image": np.ones((images, 2, 8, 8), np.float32)})
        shape = [s if isinstance(s, int) else s.fixed + s.per_image * images for s in totals.shapes["out"]]
        assert list(out.shape) == shape


def test_what_is_exported_and_quantized_is_taken_with_the_shapes_that_onnx_infers(bundle: Path) -> None:
    compared = 0
    for path in sorted(bundle.glob("*.onnx")):
        totals = check_model(path.read_bytes(), str(path))
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        made = {name for node in model.graph.node for name in node.output}
        for value in (*model.graph.value_info, *model.graph.output):
            if value.name not in made:
                continue
            for side, found in zip(value.type.tensor_type.shape.dim, totals.shapes[value.name], strict=True):
                assert not side.dim_value or found == side.dim_value
                assert side.dim_param != "batch" or found == Size(0, 1)
            compared += 1
    assert compared > 500


def loop_body() -> onnx.GraphProto:
    infos = [("i", INT64, []), ("c", TensorProto.BOOL, [])]
    return helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"])],
        "body",
        [helper.make_tensor_value_info(*info) for info in infos],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, [])],
    )


def nested(depth: int) -> onnx.ModelProto:
    body = loop_body()
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["x"], then_branch=body, else_branch=body)
        body = helper.make_graph([node], "b", [], [])
    return build([helper.make_node("If", ["c"], ["out"], then_branch=body, else_branch=body)])


def doubled(times: int) -> onnx.ModelProto:
    names = ["image", *(f"x{k}" for k in range(times - 1)), "out"]
    return build([one("Concat", a, a, out=b, axis=1) for a, b in itertools.pairwise(names)])


def external() -> onnx.ModelProto:
    model = build([one("Add", "image", "w")], {"w": np.ones(8, "f4")})
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    return model


def promising(sides: list[int]) -> onnx.ModelProto:
    model = build([one("Add", "image", "w")], {"w": np.ones(8, "f4")})
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(sides)
    return model


def with_function() -> onnx.ModelProto:
    model = build([one("Relu", "image")])
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [one("Relu", "a", out="b")], opset))
    return model


def with_a_large_input() -> onnx.ModelProto:
    model = build([one("Relu", "image")])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 10**8
    return model


BAD: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "ConstantOfShape of 1e9": (lambda: build([one("ConstantOfShape", "k")], {"k": ints(10**9)}), "1000000000 elements"),
    "ConstantOfShape of three sides": (
        lambda: build([one("ConstantOfShape", "k")], {"k": ints(9999, 9999, 9)}), "elements"),
    "ConstantOfShape whose product is beyond 64 bits": (
        lambda: build([one("ConstantOfShape", "k")], {"k": ints(2**62, 4)}), "elements|is no size"),
    "Expand": (lambda: build([one("Expand", "image", "k")], {"k": ints(10**7, 1, 1, 1, 1)}), "elements"),
    "Tile": (lambda: build([one("Tile", "image", "k")], {"k": ints(1, 10**4, 10**3, 1)}), "elements"),
    "Pad": (lambda: build([one("Pad", "image", "k")], {"k": ints(0, 0, 0, 0, 0, 0, 10**5, 10**5)}), "elements"),
    "Resize": (lambda: build([one("Resize", "image", "", "k")], {"k": np.array([1, 1, 1e4, 1e4], "f4")}), "elements"),
    "Range": (
        lambda: build([one("Range", "a", "b", "c")], {"a": np.array(0), "b": np.array(10**10), "c": np.array(1)}),
        "elements"),
    "OneHot": (
        lambda: build([one("ArgMax", "image", out="a"), one("OneHot", "a", "d", "v")],
                      {"d": ints(10**9), "v": np.array([0, 1], "f4")}), "elements"),
    "doubled thirty times": (lambda: doubled(30), "elements"),
    "an outer product": (
        lambda: build([one("Mul", "a", "b")], {"a": np.ones((9000, 1), "f4"), "b": np.ones((1, 9000), "f4")}),
        "elements"),
    "many large tensors": (
        lambda: build([*(one("ConstantOfShape", "k", out=f"x{n}") for n in range(99)), one("Relu", "x1")],
                      {"k": ints(2**24)}), "together"),
    "the square of the batch": (
        lambda: build([one("Flatten", "image", out="a"), one("Transpose", "a", out="b"), one("MatMul", "a", "b")]),
        "square of the number of images"),
    "too many operations": (
        lambda: build([one("Pad", "image", "k", out="p"), one("Conv", "p", "w", pads=[127] * 4)],
                      {"k": ints(0, 0, 500, 500, 0, 0, 500, 500), "w": np.ones((8, 2, 256, 256), "f4")}), "operations"),
    "a loop": (lambda: build([helper.make_node("Loop", ["n", "c"], ["out"], body=loop_body())]), "graph inside a node"),
    "conditions in conditions": (lambda: nested(12), "graph inside a node"),
    "an operator that draws": (lambda: build([one("RandomNormal", shape=[10**9])]), "not known here"),
    "a shape of the pixels": (lambda: build([one("NonZero", "image")]), "not known here"),
    "a shape that is not constant": (
        lambda: build([one("Cast", "image", out="a", to=INT64), one("ReduceMax", "a", out="b", keepdims=0),
                       one("ConstantOfShape", "b")]), "not constant"),
    "another domain": (lambda: build([one("Gelu", "image", domain="com.microsoft")]), "not ONNX's own"),
    "a function": (with_function, "functions of its own"),
    "external data": (external, "outside the file"),
    "more elements than are stored": (lambda: promising([10**9]), "promises"),
    "sides whose product is beyond 64 bits": (lambda: promising([2**33, 2**33]), "promises"),
    "negative sides": (lambda: promising([-8]), "of type 1 and shape"),
    "an input of a million pixels a side": (
        with_a_large_input, "elements"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_run_within_bounds_is_refused(name: str) -> None:
    make, says = BAD[name]
    with pytest.raises(BundleError, match=says) as caught:
        check_model(make().SerializeToString(), "model.onnx")
    assert str(caught.value).startswith("model.onnx is not a model that is loaded here: ")


def test_bytes_that_readers_could_read_in_two_ways_are_refused() -> None:
    content = build([one("Relu", "image")]).SerializeToString()
    check_model(content, "a")
    graph = onnx.ModelProto()
    graph.graph.node.append(one("Loop", "image", out="x"))
    for more, says in ((graph.SerializeToString(), "the graph occurs twice"), (b"\x3d\0\0\0\0", "wrong kind"),
                       (b"\x3b\x3c", "no Protocol Buffers"), (b"\x3a\xff\xff\xff\x7f", "cut short")):  # fmt: skip
        with pytest.raises(BundleError, match=says):
            check_model(content + more, "a")
