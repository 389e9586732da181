"""Graphs of a training run beside the classifier: codes, images of codes, and images drawn inside the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from stub_builds import build

from vae_edge.data import Dataset
from vae_edge.errors import ExportError
from vae_edge.exporting.kernel_file import write_kernel_graph
from vae_edge.exporting.kernel_functions import DOMAIN
from vae_edge.exporting.kernel_graph import finish
from vae_edge.exporting.kernel_sampling import SAMPLING_FUNCTIONS, Graph, sampling_graph
from vae_edge.exporting.onnx_file import get_metadata, open_session
from vae_edge.model import AngleVAE, create_config
from vae_edge.onnx_graph import read_graph
from vae_edge.ops.reparameterize import normal, philox4x32, reparameterize
from vae_edge.ops.rotate import rotate

Run = Callable[..., dict[str, np.ndarray]]


def runner(model: onnx.ModelProto) -> Run:
    """The graph on ONNX Runtime: its outputs by name, of inputs by name."""
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]

    def run(**inputs: object) -> dict[str, np.ndarray]:
        given = {name: np.asarray(value) for name, value in inputs.items()}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def function_runner(op_type: str, inputs: dict[str, tuple[int, list]], outputs: dict[str, tuple[int, list]]) -> Run:
    """One of our operators by its function."""
    values = [
        [helper.make_tensor_value_info(name, *about) for name, about in each.items()] for each in (inputs, outputs)
    ]
    node = helper.make_node(op_type, list(inputs), list(outputs), domain=DOMAIN)
    return runner(finish(helper.make_graph([node], "operator", *values), SAMPLING_FUNCTIONS, {}))


@pytest.fixture(scope="module")
def model() -> AngleVAE:
    """A network with random weights, codes of whose classes lie apart."""
    torch.manual_seed(0)
    made = AngleVAE(create_config("tiny", classes=3)).eval()
    made.score.means = torch.randn(3, made.config.latent) * 2
    made.score.whitening = torch.eye(made.config.latent) + 0.1 * torch.randn(made.config.latent, made.config.latent)
    torch.nn.init.normal_(made.logvar.weight, std=0.05)
    torch.nn.init.normal_(made.decoder.last.weight, std=1.0)
    return made


# ---- The noise ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def philox() -> Run:
    one = (TensorProto.INT64, [1])
    return function_runner(
        "VaeEdgePhilox",
        {"block": (TensorProto.INT64, ["b"]), "seed": one},
        {"words": (TensorProto.INT64, [4, "b"])},
    )


def test_philox_gives_the_known_answer_of_random123(philox: Run) -> None:
    (words,) = philox(block=[0], seed=[0])["words"].T
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("seed", [1, 0xFFFFFFFF, 1 << 32, 0x123456789ABCDEF, 2**63 - 1])
def test_philox_has_the_bits_of_the_reference(philox: Run, seed: int) -> None:
    random = np.random.default_rng(0).integers(0, 2**61, 1000)
    block = np.concatenate([random, [0, 1, 2**32 - 1, 2**32, 2**61 - 1]])
    low, zero = np.uint64(0xFFFFFFFF), np.zeros(len(block), np.uint64)
    counter = np.stack([block.astype(np.uint64) & low, block.astype(np.uint64) >> np.uint64(32), zero, zero])
    expected = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    np.testing.assert_array_equal(philox(block=block, seed=[seed])["words"], expected)


@pytest.fixture(scope="module")
def sampler() -> Run:
    floats, one = (TensorProto.FLOAT, ["n", "z"]), (TensorProto.INT64, [1])
    return function_runner(
        "VaeEdgeReparameterize",
        {"mu": floats, "logvar": floats, "seed": one, "offset": one},
        {"z": floats, "kl": (TensorProto.FLOAT, ["n"])},
    )


@pytest.mark.parametrize("seed, offset", [(0, 0), (3, 1), (7, 6), (2**63 - 1, 2**62 - 3)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 16)])
def test_codes_are_those_of_the_operator(sampler: Run, shape: tuple[int, int], seed: int, offset: int) -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(shape), torch.randn(shape)
    found = sampler(mu=mu, logvar=logvar, seed=[seed], offset=[offset])
    z, kl = reparameterize(mu, logvar, seed, offset)
    np.testing.assert_allclose(found["z"], z, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found["kl"], kl, rtol=2e-6, atol=2e-6)


def test_one_session_draws_anew_and_a_batch_may_be_cut_anywhere(sampler: Run) -> None:
    zeros = np.zeros((6, 5), np.float32)
    whole, again, other, later = (
        sampler(mu=zeros, logvar=zeros, seed=[seed], offset=[offset])["z"]
        for seed, offset in ((1, 0), (1, 0), (2, 0), (1, 30))
    )
    np.testing.assert_array_equal(whole, again)
    assert np.abs(whole - other).min() > 0 and np.abs(whole - later).min() > 0
    np.testing.assert_allclose(whole.reshape(-1), normal(1, 0, 30), rtol=2e-6, atol=1e-6)
    part = sampler(mu=zeros[:2], logvar=zeros[:2], seed=[1], offset=[20])["z"]
    np.testing.assert_array_equal(part, whole[4:])
    many = sampler(mu=np.zeros((2000, 10), np.float32), logvar=np.zeros((2000, 10), np.float32), seed=[5], offset=[0])
    assert abs(many["z"].mean()) < 0.02 and abs(many["z"].std() - 1) < 0.02


# ---- The graphs -----------------------------------------------------------------------------------------------------


def decoded(model: AngleVAE, z: torch.Tensor, weights: torch.Tensor, angle: torch.Tensor) -> np.ndarray:
    """Images uint8 [N, H, W, C], by PyTorch."""
    with torch.no_grad():
        upright = model.decode(z, weights)
    images = rotate(upright, angle.cos(), angle.sin(), model.config.fill)
    return (images.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


def assert_images(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.uint8 and found.shape == expected.shape and expected.std() > 5
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_encode_gives_the_posterior(model: AngleVAE) -> None:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (5, 28, 28, 1), dtype=torch.uint8)
    graph = sampling_graph(model, "encode")
    found = runner(graph)(image=images)
    with torch.no_grad():
        output = model(images.permute(0, 3, 1, 2) / 255.0)
    np.testing.assert_allclose(found["mu"], output.mu, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["logvar"], output.logvar.clamp(-10, 5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["class_weights"], output.logits.softmax(1), atol=1e-5)
    angle = torch.atan2(output.orientation.sin, output.orientation.cos)
    np.testing.assert_allclose(np.cos(found["angle"] - angle.numpy()), 1.0, atol=1e-5)
    assert not graph.functions and read_graph(graph.SerializeToString(), "encode").nodes


def test_decode_takes_a_code_a_class_and_an_angle(model: AngleVAE) -> None:
    torch.manual_seed(1)
    z, weights, angle = torch.randn(5, model.config.latent), torch.eye(3)[[0, 1, 2, 0, 1]], torch.randn(5)
    found = runner(sampling_graph(model, "decode"))(z=z, class_weights=weights, angle=angle)
    assert_images(found["generated"], decoded(model, z, weights, angle))
    one = runner(sampling_graph(model, "decode"))(z=z[:1], class_weights=weights[:1], angle=angle[:1])
    assert_images(one["generated"], found["generated"][:1])


def test_sample_draws_around_the_class_s_mean(model: AngleVAE) -> None:
    labels, angle, latent = torch.tensor([2, 0, 1, 2]), torch.tensor([0.0, 1.0, -2.0, 0.5]), model.config.latent
    run = runner(sampling_graph(model, "sample", {"classes": ["a", "b", "c"]}))
    found = run(label=labels, angle=angle, temperature=np.float32([0.7]), seed=[9], offset=[3])
    eps = torch.from_numpy(normal(9, 3, 4 * latent).reshape(4, latent))
    codes = model.score.means[labels] + 0.7 * eps @ torch.linalg.inv(model.score.whitening)
    assert_images(found["generated"], decoded(model, codes, torch.eye(3)[labels], angle))

    means = run(label=labels, angle=angle, temperature=np.float32([0]), seed=[9], offset=[3])["generated"]
    assert_images(means, decoded(model, model.score.means[labels], torch.eye(3)[labels], angle))
    again = run(label=labels, angle=angle, temperature=np.float32([0.7]), seed=[10], offset=[3])["generated"]
    assert np.abs(again.astype(int) - found["generated"]).max() > 20


def test_resample_draws_from_an_image_s_posterior(model: AngleVAE) -> None:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (3, 28, 28, 1), dtype=torch.uint8)
    posterior = runner(sampling_graph(model, "encode"))(image=images)
    mu, logvar, weights, angle = (torch.from_numpy(posterior[name]) for name in posterior)
    z, _ = reparameterize(mu, logvar, 5, 2)
    found = runner(sampling_graph(model, "resample"))(image=images, seed=[5], offset=[2])
    assert_images(found["generated"], decoded(model, z, weights, angle))


def test_an_image_of_any_form_is_encoded_and_drawn() -> None:
    torch.manual_seed(0)
    config = create_config("tiny", size=(65, 98), channels=3, orientation=False, classes=2)
    other = AngleVAE(config).eval()
    images = torch.randint(0, 256, (2, 65, 98, 3), dtype=torch.uint8)
    assert not runner(sampling_graph(other, "encode"))(image=images)["angle"].any()
    assert runner(sampling_graph(other, "resample"))(image=images, seed=[0], offset=[0])["generated"].shape == (
        2,
        65,
        98,
        3,
    )


def test_a_trained_network_draws_digits_that_it_recognizes(run: Path, digits: Dataset, tmp_path: Path) -> None:
    from vae_edge.training.checkpoint import load_checkpoint

    trained = load_checkpoint(run).model
    labels = np.repeat(np.arange(10), 20)
    graph = sampling_graph(trained, "sample", {"classes": list(digits.classes)})
    write_kernel_graph(graph, tmp_path / "sample.onnx")
    draw = runner(onnx.load(tmp_path / "sample.onnx"))
    images = draw(label=labels, angle=np.zeros(200, np.float32), temperature=np.float32([0.7]), seed=[0], offset=[0])[
        "generated"
    ]
    with torch.no_grad():
        logits = trained(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0).logits
    assert (logits.argmax(1).numpy() == labels).mean() > 0.7
    assert get_metadata(graph)["role"] == "sample" and get_metadata(graph)["classes"] == list(digits.classes)


@pytest.mark.parametrize("graph", ["sample", "resample"])
def test_tensorrt_rtx_takes_a_plugin_for_the_sampler(model: AngleVAE, tmp_path: Path, graph: Graph) -> None:
    """It builds an engine whose seed and offset are inputs; nothing is run."""
    pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"',
        exc_type=ImportError,
    )
    found = build(sampling_graph(model, graph), tmp_path)
    assert found["plugins"] == 1 and found["engine"] > 10_000


def test_operators_have_names_of_their_own_and_an_unknown_graph_is_refused(model: AngleVAE) -> None:
    assert all(name.startswith("VaeEdge") and not onnx.defs.has(name) for name in SAMPLING_FUNCTIONS)
    graph = sampling_graph(model, "sample")
    assert [node.op_type for node in graph.graph.node if node.domain] == ["VaeEdgeReparameterize"]
    with pytest.raises(ExportError, match="no graph 'classify' of a training run: choose of encode, decode"):
        sampling_graph(model, "classify")
