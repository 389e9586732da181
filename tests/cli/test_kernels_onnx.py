"""`vae-edge kernels onnx`: what it writes, and what it refuses in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from vae_edge.cli import main


@pytest.mark.parametrize("form", ["network", "operators"])
def test_the_classifier_of_a_bundle_is_written_and_compared(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    out = tmp_path / "folder/classifier.onnx"
    words = ["kernels", "onnx", str(bundle), "--out", str(out), "--form", form]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    model = onnx.load(out)
    assert (result["precision"], result["form"], result["bytes"]) == ("int8", form, out.stat().st_size)
    assert set(result["operators"]) == {node.op_type for node in model.graph.node if node.domain}
    assert ("VaeEdgeNetwork" in result["operators"]) == (form == "network")
    assert all(apart["mean"] <= apart["allowed_mean"] for apart in result["differences"].values())

    assert main([*words, "--precision", "fp16", "--inline"]) == 0
    printed = capsys.readouterr().out
    assert "classify, fp16, form" in printed and "operators of ours: none" in printed
    assert "differences from the exact answers" in printed
    assert not onnx.load(out).functions and [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_file_for_plugins_has_no_functions_and_casts_the_image(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plugins.onnx"
    words = ["kernels", "onnx", str(bundle), "--out", str(out), "--image-type", "float16", "--no-functions"]
    assert main(words) == 0
    assert "operators of ours: VaeEdgeNetwork; TensorRT takes plugins" in capsys.readouterr().out
    model = onnx.load(out)
    assert next(node.op_type for node in model.graph.node) == "Cast" and not model.functions
    with pytest.raises(SystemExit):
        main([*words, "--inline"])


def test_a_file_for_the_plugin_in_cpp_carries_its_machine_code(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plugin.onnx"
    words = ["kernels", "onnx", str(bundle), "--out", str(out), "--machine-code", "orin"]
    assert main(words) == 0
    assert "operators of ours: VaeEdgeNetwork; TensorRT takes plugins" in capsys.readouterr().out
    model = onnx.load(out)
    (node,) = (node for node in model.graph.node if node.domain == "vae_edge")
    code = {attribute.name: attribute.s for attribute in node.attribute}["machine_code"]
    assert b"cubin.87" in code and b"cubin.90" not in code
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT8 and not model.functions
    assert main([*words, "--form", "operators"]) == 2
    assert "--machine-code is for --graph classify in the form network" in capsys.readouterr().err


@pytest.mark.parametrize("graph", ["encode", "sample"])
def test_other_graphs_are_of_a_training_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], graph: str
) -> None:
    out = tmp_path / "graph.onnx"
    assert main(["kernels", "onnx", str(run), "--graph", graph, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["inputs"] == [value.name for value in onnx.load(out).graph.input]
    assert result["operators"] == (["VaeEdgeReparameterize"] if graph == "sample" else [])


def test_what_does_not_fit_is_refused_in_a_sentence_and_nothing_is_written(
    run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graph.onnx"
    for words, sentence in (
        ([str(run)], "is not a bundle: it has no manifest.json"),
        ([str(bundle), "--graph", "decode"], "is a bundle, which has no decoder of codes: give --graph decode the"),
        ([str(tmp_path / "nothing")], "is not there: give the folder that `vae-edge export` wrote"),
        ([str(tmp_path / "nothing"), "--graph", "encode"], "is not a folder: expected a training run"),
        ([str(run), "--graph", "sample", "--form", "network"], "takes none of --precision, --form and --image-type"),
        ([str(run), "--graph", "resample", "--inline"], "OpenVINO, for which files are inlined, computes 64-bit"),
    ):
        assert main(["kernels", "onnx", *words, "--out", str(out)]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["kernels", "onnx", str(bundle), "--out", str(tmp_path)]) == 2
    assert "is a folder: expected the name of a file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
