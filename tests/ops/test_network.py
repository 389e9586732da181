"""The fused network gives what the exported files give, on real images; and its parts are proper operators."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from vae_edge_kernels.layout import from_json, to_json

from vae_edge.data import Dataset, rotate_dataset
from vae_edge.errors import ExportError, KernelError
from vae_edge.exporting.onnx_file import ClassifierGraph
from vae_edge.exporting.quantize import read_qdq_layers
from vae_edge.model import AngleVAE, create_config
from vae_edge.ops.network import fuse, network
from vae_edge.ops.packing import QuantizedNetwork, ScoreMode, network_layout, pack
from vae_edge.training.checkpoint import Checkpoint

BENCH = Path(__file__).parents[2] / "bench"
COUNT = 1000


@pytest.fixture(scope="module")
def images(digits: Dataset) -> np.ndarray:
    """A thousand real images, turned by any angle."""
    assert digits.test is not None
    return rotate_dataset(digits.test.take(np.arange(COUNT))).images


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """bench/fused.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        import fused

        yield fused


def test_the_fused_network_in_fp16_gives_what_the_exported_file_gives(
    checkpoint: Checkpoint, bundle: Path, images: np.ndarray, script: ModuleType
) -> None:
    expected, found = script.run(bundle / "classifier.fp32.onnx", images), script.fused(checkpoint.model, images)
    apart = script.difference(found, expected, float(checkpoint.model.temperature))
    # where two classes, or two angles, are as good as each other, half precision may take the other one
    assert apart.labels >= 0.998 * COUNT
    assert np.quantile(apart.probabilities, 0.98) < 2e-3
    assert np.quantile(apart.angles, 0.99) < 2e-3
    assert np.quantile(np.abs(found["angle_confidence"] - expected["angle_confidence"]), 0.99) < 5e-3
    assert np.quantile(np.abs(found["second_angle_probability"] - expected["second_angle_probability"]), 0.99) < 5e-3
    assert np.quantile(apart.scores, 0.99) < 0.1 * apart.score_range


@pytest.mark.parametrize("angle", ["upright", "rotated"])
def test_the_fused_network_in_int8_gives_what_the_quantized_file_gives(
    checkpoint: Checkpoint, bundle: Path, digits: Dataset, images: np.ndarray, angle: str, script: ModuleType
) -> None:
    assert digits.test is not None
    shown = images if angle == "rotated" else digits.test.take(np.arange(COUNT)).images
    file = onnx.load(bundle / "classifier.int8.onnx")
    found, expected = script.fused(checkpoint.model, shown, file), script.evaluate(file, shown)
    apart = script.difference(found, expected, float(checkpoint.model.temperature))
    assert apart.labels >= 0.998 * COUNT
    # where no value lies on a tie that float32 cannot decide, all integers are the same
    assert (apart.logits <= script.SAME).mean() >= 0.97
    assert (apart.logits <= apart.step).mean() >= 0.995
    assert np.quantile(apart.angles, 0.97) < 1e-4 and np.quantile(apart.angles, 0.99) < 0.02
    assert np.quantile(apart.scores, 0.99) < 0.02 * apart.score_range


def test_a_runtime_gives_nearly_what_the_fused_int8_network_gives(
    checkpoint: Checkpoint, bundle: Path, images: np.ndarray, script: ModuleType
) -> None:
    """ONNX Runtime convolves dequantized values in float32: more of them fall to the other side of a tie."""
    path = bundle / "classifier.int8.onnx"
    found, expected = script.fused(checkpoint.model, images, onnx.load(path)), script.run(path, images)
    apart = script.difference(found, expected, float(checkpoint.model.temperature))
    assert apart.labels >= 0.998 * COUNT
    assert np.quantile(apart.logits, 0.95) <= apart.step
    assert np.quantile(apart.angles, 0.99) < 2e-3


def test_the_comparison_is_printed(
    run: Path, bundle: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fused.py", str(run), str(bundle), "--images", "20"])
    assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(sys, "argv", ["fused.py", str(run), str(run)])
    assert script.main() == 2
    assert "missing: " in capsys.readouterr().err
    assert [line.split(":")[0] for line in lines] == ["upright"] * 3 + ["rotated"] * 3
    assert all(" of 20 labels the same" in line for line in lines)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_answers_to_some_images_are_those_to_all(checkpoint: Checkpoint, images: np.ndarray, count: int) -> None:
    fused, few = fuse(checkpoint.model), torch.from_numpy(images[:5])
    for one, other in zip(fused(few[:count]), fused(few), strict=True):
        torch.testing.assert_close(one, other[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", ["full", "fast"])
@pytest.mark.parametrize(
    "preset, changes",
    [
        ("tiny", {"orientation": False}),
        ("base", {"classes": 3}),
        ("small", {"size": 64, "channels": 3, "circular_mask": True}),
        ("small", {"size": (65, 98), "channels": 3, "circular_mask": True}),
        ("tiny", {"size": 224, "channels": 3}),
        ("tiny", {"head": "pooled"}),
        ("tiny", {"head": "code+pooled"}),
        ("small", {"size": 64, "channels": 3, "head": "code+pooled", "orientation": False}),
        ("small", {"size": (65, 98), "channels": 3, "head": "pooled"}),
    ],
)
def test_any_shape_of_network_is_fused(preset: str, changes: dict[str, int], score: ScoreMode) -> None:
    torch.manual_seed(0)
    model = AngleVAE(create_config(preset, **changes)).eval()
    config = model.config
    images = torch.randint(0, 256, (3, config.height, config.width, config.channels), dtype=torch.uint8)
    with torch.no_grad():
        expected = ClassifierGraph(model, score)(images)
    got = fuse(model, score=score)(images)
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-2, atol=1e-2)


def test_the_network_is_a_proper_operator_and_one_node_of_an_exported_program(checkpoint: Checkpoint) -> None:
    fused = fuse(checkpoint.model)
    images = torch.randint(0, 256, (1, 28, 28, 1), dtype=torch.uint8)
    arguments = (images, fused.weights, fused.params, fused.whitening, fused.layout_json)
    torch.library.opcheck(torch.ops.vae_edge.network.default, arguments)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(fused, (images.repeat(3, 1, 1, 1),), dynamic_shapes=({0: batch},))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "vae_edge" in name] == ["vae_edge.network.default"]


def test_a_layout_survives_its_json_and_other_text_is_refused(checkpoint: Checkpoint) -> None:
    net = network_layout(checkpoint.model)
    assert from_json(to_json(net)) == net
    fused = fuse(checkpoint.model)
    images = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    for text in ("", "{}", json.dumps({**json.loads(fused.layout_json), "more": 1})):
        with pytest.raises(KernelError, match="no layout of a network"):
            network(images, fused.weights, fused.params, fused.whitening, text)


def test_what_does_not_fit_is_refused_by_name(checkpoint: Checkpoint, bundle: Path) -> None:
    fused = fuse(checkpoint.model)
    images = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    with pytest.raises(KernelError, match="network expects image in uint8; got float32"):
        fused(images.float())
    with pytest.raises(KernelError, match=r"network expects image of shape \[N, 28, 28, 1\]; got \[1, 32, 32, 1\]"):
        fused(torch.zeros(1, 32, 32, 1, dtype=torch.uint8))
    with pytest.raises(KernelError, match="network expects weights in float16; got int8"):
        network(images, fused.weights.to(torch.int8), fused.params, fused.whitening, fused.layout_json)
    with pytest.raises(KernelError, match="network expects ctas_per_image as a power of two up to 32; got 3"):
        network(images, fused.weights, fused.params, fused.whitening, fused.layout_json, 3)
    with pytest.raises(KernelError, match="fuse expects an AngleVAE; got Linear"):
        fuse(torch.nn.Linear(2, 2))
    layers = read_qdq_layers(onnx.load(bundle / "classifier.int8.onnx")).layers
    for name, value in (
        ("input_scale", 0.0),
        ("input_scale", float("nan")),
        ("input_scale", 1e-40),
        ("input_scale", 1e39),
        ("scale", torch.zeros(1)),
    ):
        broken = {**layers, "classifier.0": replace(layers["classifier.0"], **{name: value})}
        with pytest.raises(KernelError, match=f"an int8 layer expects {name} above 0"):
            pack(checkpoint.model, QuantizedNetwork(broken))
    with pytest.raises(KernelError, match=r"layer orientation\.backbone\.layers\.1\.0 is missing|layer \S+ is missing"):
        pack(checkpoint.model, QuantizedNetwork({}))
    with pytest.raises(ExportError, match="no int8 layers"):
        read_qdq_layers(onnx.load(bundle / "classifier.fp32.onnx"))
    with pytest.raises(KernelError, match=r"the network has 10 classes; got 2 names: \['a', 'b'\]"):
        fused.save("never.ve", ["a", "b"], 0.0)
    assert not Path("never.ve").exists()
