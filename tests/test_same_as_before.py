"""bench/equal_files.py: names alone may differ; a number that differs is noticed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import equal_files

del sys.path[0]


def write_model(path: Path, factor: float = 2.0, name: str = "y", operator: str = "Mul") -> Path:
    """(x · factor) transposed; `name` is in the names of everything but the input."""
    nodes = [
        helper.make_node(operator, ["x", f"factor_{name}"], [f"product_{name}"], f"first_{name}"),
        helper.make_node("Transpose", [f"product_{name}"], [name], perm=[1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, "n"])],
        [numpy_helper.from_array(np.array([factor], np.float32), f"factor_{name}")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_graphs_that_differ_in_names_alone_are_equal(tmp_path: Path) -> None:
    ours, theirs = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", name="z")
    (nodes, names), (others, renamed) = equal_files.graph(ours), equal_files.graph(theirs)
    assert equal_files.first_difference(nodes, others) == ""
    assert (names, renamed) == (["y"], ["z"])


@pytest.mark.parametrize("change", [{"factor": 2.0000002}, {"operator": "Add"}])
def test_a_graph_of_another_number_or_node_is_not_equal(tmp_path: Path, change: dict) -> None:
    ours, theirs = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", **change)
    assert equal_files.first_difference(equal_files.graph(ours)[0], equal_files.graph(theirs)[0])
    image = np.ones((5, 3), np.float32)
    answers = [equal_files.outputs(path, image, 5)[0] for path in (ours, theirs)]
    assert answers[0].shape == (3, 5) and not np.array_equal(*answers)


def test_tensors_are_compared_without_their_names(tmp_path: Path) -> None:
    one, two = torch.arange(3.0), torch.zeros(2, dtype=torch.float16)
    for name, tensors in (
        ("ours", {"a": one, "b": two}),
        ("renamed", {"x": two.clone(), "y": one.clone()}),
        ("other", {"a": one + 1e-7, "b": two}),
    ):
        save_file(tensors, tmp_path / name, {"vae_edge": '{"step": 3, "seconds": 4.5, "sums": {"total": 0.5}}'})
    ours, renamed, other = (equal_files.tensors(tmp_path / name) for name in ("ours", "renamed", "other"))
    assert ours.total() == 2 and equal_files.differences(ours, renamed) == ""
    assert equal_files.differences(ours, other) == "1 only before, 1 only after"
    assert [*equal_files.leaves(equal_files.metadata(tmp_path / "ours"))] == [3, 0.5]


@pytest.mark.parametrize(
    "change, difference",
    [
        (lambda found: found, ""),
        (lambda found: {**found, "list": [1, 2.5]}, "number 1 of 3: 2 before, 2.5 after"),
        (lambda found: {**found, "more": 4}, "3 before, 4 after"),
        (lambda found: {**found, "wall_seconds": 4, "bytes": 5}, ""),
    ],
)
def test_the_first_number_that_differs_is_named(change: Callable[[dict], dict], difference: str) -> None:
    before = {"list": [1, 2], "text": "a", "inner": {"value": 3, "seconds": 9}}
    numbers, others = ([*equal_files.leaves(one, ("bytes",))] for one in (before, change(before)))
    assert equal_files.first_difference(numbers, others) == difference
