"""Models of large images and of images that are not square, from training over int8 to a network file and engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from vae_edge import api
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.data import Dataset
from vae_edge.data.dataset import LabelledImages
from vae_edge.engine.build import build_bundle_engine
from vae_edge.engine.inspection import inspect_engine
from vae_edge.engine.network_file import read_network_file
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.exporting import quantize_bundle_from_dataset
from vae_edge.exporting.network_file import build_bundle_network
from vae_edge.runtime import load
from vae_edge.spec import Size, height_and_width
from vae_edge.training.config import TrainConfig

SIZES = [pytest.param(((96, 64), 3), id="96x64"), pytest.param((224, 1), id="224")]
pytestmark = pytest.mark.slow


def bars(count: int, size: Size, channels: int) -> LabelledImages:
    """Upright and lying bars on noise."""
    rng = np.random.default_rng(0)
    height, width = height_and_width(size)
    images = rng.integers(0, 60, (count, height, width, channels), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        long, short = min(height, width) // 2, min(height, width) // 6
        tall, wide = (long, short) if label else (short, long)
        top, left = rng.integers(0, height - tall), rng.integers(0, width - wide)
        image[top : top + tall, left : left + wide] = 220
    return LabelledImages(images, labels, ("lying", "upright"))


@pytest.fixture(scope="module", params=SIZES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Dataset]:
    """A bundle with fp32 and int8 files of a network that was trained for a few steps, and its images."""
    size, channels = request.param
    folder = tmp_path_factory.mktemp("sizes")
    dataset = Dataset("bars", "bars", bars(48, size, channels), bars(16, size, channels))
    settings = TrainConfig(epochs=1, batch=16, rotation="20")
    run = api.train(dataset, folder / "run", settings, preset="tiny")
    api.export(run.path, folder / "bundle")
    quantize_bundle_from_dataset(folder / "bundle", "int8", dataset, force=True)
    return load_bundle(folder / "bundle"), dataset


@pytest.fixture
def made_sizes(made: tuple[Bundle, Dataset]) -> tuple[Bundle, tuple[int, int, int]]:
    bundle, dataset = made
    assert dataset.train is not None
    return bundle, dataset.train.images.shape[1:]


def test_every_graph_takes_images_of_the_size(made_sizes: tuple[Bundle, tuple[int, int, int]]) -> None:
    bundle, shape = made_sizes
    assert bundle.input.shape == shape
    for entry in bundle.models:
        model = onnx.load(bundle.file(entry))
        (image,) = model.graph.input
        assert tuple(side.dim_value for side in image.type.tensor_type.shape.dim[1:]) == shape
        if entry.role == "reconstruction":
            (output,) = model.graph.output
            assert tuple(side.dim_value for side in output.type.tensor_type.shape.dim[1:]) == shape


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_runtime_classifies_and_reconstructs_them(
    made: tuple[Bundle, Dataset], tmp_path: Path, precision: str
) -> None:
    bundle, dataset = made
    assert dataset.test is not None
    images = dataset.test.images[:3]
    file = tmp_path / "large.png"
    large = np.kron(images[0], np.ones((4, 4, 1), np.uint8))
    Image.fromarray(large[..., 0] if large.shape[-1] == 1 else large).save(file)
    with load(bundle.path, "onnxruntime", precision) as classifier:
        found = classifier(images)
        assert found.probabilities.shape == (3, 2) and np.isfinite(found.scores).all()
        assert classifier.reconstruct(images).shape == images.shape
        drawn = classifier([file, Image.open(file)])  # four times as large: what is seen is nearly the array
        np.testing.assert_allclose(drawn.probabilities[0], found.probabilities[0], atol=0.05)
        assert np.array_equal(drawn.probabilities[0], drawn.probabilities[1])


def test_a_network_file_is_made_and_says_the_size(made_sizes: tuple[Bundle, tuple[int, int, int]]) -> None:
    """The CPU reference of the kernels gives the int8 file's answers, or nothing is built."""
    bundle, shape = made_sizes
    built = build_bundle_network(bundle.path, ["orin"])
    assert built.precision == "int8" and built.target == "sm_87"
    found = read_network_file(bundle.path / built.file)
    assert found.to_json()["image"] == list(shape) and found.size == load_bundle(bundle.path).input.size


def test_tensorrt_rtx_builds_engines_of_them(made: tuple[Bundle, Dataset]) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason='pip install "vae-edge[rtx]"', exc_type=ImportError)
    bundle, _ = made
    for role, precision in (("classifier", "int8"), ("reconstruction", "fp32")):
        built = build_bundle_engine(bundle.path, BuildConfig(precision, role=role, targets=("sm_89",)))
        added = next(e for e in load_bundle(bundle.path).models if e.role == role and e.format == "tensorrt_rtx")
        assert inspect_engine(bundle.path / added.file).header.targets == ("sm_89",), built
