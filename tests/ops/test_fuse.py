"""The fused network gives what the exported files give, on real images; and its parts are proper operators."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exact_file import evaluate
from vae_edge_kernels import plan as plans

from vae_edge.data import Dataset, rotated
from vae_edge.errors import ExportError, KernelError
from vae_edge.export.graph import ClassifierGraph
from vae_edge.export.layers import read_layers
from vae_edge.model import AngleVAE, create_config
from vae_edge.ops.fuse import fuse
from vae_edge.ops.network import network
from vae_edge.ops.packing import QuantizedNetwork, pack, plan_of
from vae_edge.training.checkpoint import Checkpoint

COUNT = 1000


@pytest.fixture(scope="module")
def images(digits: Dataset) -> np.ndarray:
    """A thousand real images, turned by any angle."""
    assert digits.test is not None
    return rotated(digits.test.take(np.arange(COUNT))).images


def run_exactly(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """An ONNX file's outputs, each node as it is written: no rewriting, which changes int8 roundings."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Differences of angles, without whole turns."""
    return np.abs((one - other + np.pi) % (2 * np.pi) - np.pi)


def test_the_fused_network_in_fp16_gives_what_the_exported_file_gives(
    checkpoint: Checkpoint, bundle: Path, images: np.ndarray
) -> None:
    expected = run_exactly(bundle / "classifier.fp32.onnx", images)
    probabilities, angle, score, doubts = (t.numpy() for t in fuse(checkpoint.model)(torch.from_numpy(images)))
    # where two classes, or two angles, are as good as each other, half precision may take the other one
    assert (probabilities.argmax(1) == expected["probabilities"].argmax(1)).mean() >= 0.998
    assert np.quantile(np.abs(probabilities - expected["probabilities"]).max(1), 0.98) < 2e-3
    assert np.quantile(apart(angle, expected["angle"]), 0.99) < 2e-3
    assert np.quantile(np.abs(doubts[:, 0] - expected["concentration"]), 0.99) < 5e-3
    assert np.quantile(np.abs(doubts[:, 2] - expected["second_share"]), 0.99) < 5e-3
    spread = np.ptp(np.quantile(expected["score"], [0.1, 0.9]))
    assert np.quantile(np.abs(score - expected["score"]), 0.99) < 0.1 * spread


def logits_of(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The logits of probabilities, less their mean."""
    logits = temperature * np.log(np.maximum(probabilities, 1e-37))
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("angle", ["upright", "turned"])
def test_the_fused_network_in_int8_gives_what_the_quantized_file_gives(
    checkpoint: Checkpoint, bundle: Path, digits: Dataset, images: np.ndarray, angle: str
) -> None:
    assert digits.test is not None
    shown = images if angle == "turned" else digits.test.take(np.arange(COUNT)).images
    file = onnx.load(bundle / "classifier.int8.onnx")
    fused, expected = fuse(checkpoint.model, read_layers(file)), evaluate(file, shown)
    probabilities, angles, score, _ = (t.numpy() for t in fused(torch.from_numpy(shown)))
    logits, wanted = (
        logits_of(p, float(checkpoint.model.temperature)) for p in (probabilities, expected["probabilities"])
    )
    differences = np.abs(logits - wanted).max(1)
    assert (probabilities.argmax(1) == expected["probabilities"].argmax(1)).mean() >= 0.998
    # where no value lies on a tie that float32 cannot decide, all integers are the same
    assert (differences < 1e-4).mean() >= 0.98
    # elsewhere the logits are within what one integer would count if they were int8
    assert (differences <= np.abs(expected["logits"]).max() / 127).mean() >= 0.998
    assert np.quantile(apart(angles, expected["angle"]), 0.99) < 1e-4
    spread = np.ptp(np.quantile(expected["score"], [0.1, 0.9]))
    assert np.quantile(np.abs(score - expected["score"]), 0.99) < 0.02 * spread


def test_a_runtime_gives_nearly_what_the_fused_int8_network_gives(
    checkpoint: Checkpoint, bundle: Path, images: np.ndarray
) -> None:
    """ONNX Runtime convolves dequantized values in float32: more of them fall to the other side of a tie."""
    path = bundle / "classifier.int8.onnx"
    expected = run_exactly(path, images)
    probabilities, angle, *_ = (
        t.numpy() for t in fuse(checkpoint.model, read_layers(onnx.load(path)))(torch.from_numpy(images))
    )
    assert (probabilities.argmax(1) == expected["probabilities"].argmax(1)).mean() >= 0.998
    logits, wanted = (
        logits_of(p, float(checkpoint.model.temperature)) for p in (probabilities, expected["probabilities"])
    )
    assert np.quantile(np.abs(logits - wanted).max(1), 0.95) <= np.abs(wanted).max() / 127
    assert np.quantile(apart(angle, expected["angle"]), 0.99) < 1e-4


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_answers_to_some_images_are_those_to_all(checkpoint: Checkpoint, images: np.ndarray, count: int) -> None:
    fused, few = fuse(checkpoint.model), torch.from_numpy(images[:5])
    for one, other in zip(fused(few[:count]), fused(few), strict=True):
        torch.testing.assert_close(one, other[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize(
    "preset, changes",
    [("tiny", {"pose": False}), ("base", {"classes": 3}), ("small", {"size": 64, "channels": 3, "window": True})],
)
def test_any_shape_of_network_is_fused(preset: str, changes: dict[str, int], light: bool) -> None:
    torch.manual_seed(0)
    model = AngleVAE(create_config(preset, **changes)).eval()
    config = model.config
    images = torch.randint(0, 256, (3, config.size, config.size, config.channels), dtype=torch.uint8)
    with torch.no_grad():
        expected = ClassifierGraph(model, light)(images)
    got = fuse(model, light=light)(images)
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-2, atol=1e-2)


def test_the_network_is_a_proper_operator_and_one_node_of_an_exported_program(checkpoint: Checkpoint) -> None:
    fused = fuse(checkpoint.model)
    images = torch.randint(0, 256, (1, 28, 28, 1), dtype=torch.uint8)
    arguments = (images, fused.weights, fused.numbers, fused.whitenings, fused.text)
    torch.library.opcheck(torch.ops.vae_edge.network.default, arguments)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(fused, (images.repeat(3, 1, 1, 1),), dynamic_shapes=({0: batch},))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "vae_edge" in name] == ["vae_edge.network.default"]


def test_a_plan_survives_its_text_and_a_wrong_text_is_refused(checkpoint: Checkpoint) -> None:
    plan = plan_of(checkpoint.model)
    assert plans.from_text(plans.to_text(plan)) == plan
    fused = fuse(checkpoint.model)
    images = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    for text in ("", "{}", json.dumps({**json.loads(fused.text), "more": 1})):
        with pytest.raises(KernelError, match="no plan of a network"):
            network(images, fused.weights, fused.numbers, fused.whitenings, text)


def test_what_does_not_fit_is_refused_by_name(checkpoint: Checkpoint, bundle: Path) -> None:
    fused = fuse(checkpoint.model)
    images = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    with pytest.raises(KernelError, match="network expects image in uint8; got float32"):
        fused(images.float())
    with pytest.raises(KernelError, match=r"network expects image of shape \[N, 28, 28, 1\]; got \[1, 32, 32, 1\]"):
        fused(torch.zeros(1, 32, 32, 1, dtype=torch.uint8))
    with pytest.raises(KernelError, match="network expects weights in float16; got int8"):
        network(images, fused.weights.to(torch.int8), fused.numbers, fused.whitenings, fused.text)
    with pytest.raises(KernelError, match="network expects programs as a power of two up to 32; got 3"):
        network(images, fused.weights, fused.numbers, fused.whitenings, fused.text, 3)
    with pytest.raises(KernelError, match="fuse expects an AngleVAE; got Linear"):
        fuse(torch.nn.Linear(2, 2))
    layers = read_layers(onnx.load(bundle / "classifier.int8.onnx")).layers
    for name, value in (("input_scale", 0.0), ("input_scale", float("nan")), ("scale", torch.zeros(1))):
        broken = {**layers, "classifier.0": replace(layers["classifier.0"], **{name: value})}
        with pytest.raises(KernelError, match=f"an int8 layer expects {name} above 0"):
            pack(checkpoint.model, QuantizedNetwork(broken))
    with pytest.raises(KernelError, match=r"layer pose\.trunk\.layers\.1\.0 is missing|layer \S+ is missing"):
        pack(checkpoint.model, QuantizedNetwork({}))
    with pytest.raises(ExportError, match="no int8 layers"):
        read_layers(onnx.load(bundle / "classifier.fp32.onnx"))
    with pytest.raises(KernelError, match="the network has 10 classes; got 2 names: a, b"):
        fused.save("never.ve", ["a", "b"], 0.0)
    assert not Path("never.ve").exists()
