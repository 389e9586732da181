"""The graphs that `vae_edge.exporting` writes, from random weights: TensorRT-RTX takes them in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vae_edge.engine.build import BuildConfig, build_engine
from vae_edge.engine.gpus import parse_targets

pytest.importorskip(
    "tensorrt_rtx_bindings", reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"', exc_type=ImportError
)
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from vae_edge.exporting.onnx_file import ClassifierGraph, ReconstructionGraph, to_onnx
    from vae_edge.exporting.quantize import convert
    from vae_edge.model import AngleVAE
    from vae_edge.model.config import create_config

    torch.manual_seed(0)
    model = AngleVAE(create_config("tiny", size=28, channels=1, classes=10)).eval()
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), dtype=np.uint8)
    classifier = ClassifierGraph(model).eval()
    graph: Any = to_onnx(classifier, 28, 1, classifier.outputs, {})
    graphs = {
        "fp32": graph,
        "fp16": convert(graph, "fp16", images)["any"],
        "int8": convert(graph, "int8", images)["any"],
        "reconstruction": to_onnx(ReconstructionGraph(model).eval(), 28, 1, ("reconstruction",), {}),
    }
    folder = tmp_path_factory.mktemp("exported")
    for name, proto in graphs.items():
        onnx.save(proto, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in graphs}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_exported_classifier_builds_and_most_of_it_runs_in_its_precision(
    exported: dict[str, Path], precision: str
) -> None:
    result = build_engine(exported[precision], BuildConfig(precision, targets=parse_targets("sm_80+86+89+120+121")))
    assert result.fraction is not None
    assert result.fraction > 0.8, result.reasons  # but for what is read off the bins and the score's distances
    told = [reason for reason in result.reasons if " runs in " in reason]
    assert len(told) == sum(layer.is_compute and layer.precision != precision for layer in result.layers)


def test_the_exported_reconstruction_builds(exported: dict[str, Path]) -> None:
    assert build_engine(
        exported["reconstruction"], BuildConfig("fp32", targets=parse_targets("sm_86"), role="reconstruction")
    ).engine
