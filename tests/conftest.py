"""One small network, trained once on real digits, exported and quantized, for every test that needs a real one.

PyTorch is imported where it is used: the tests of the device's rooms run without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from doubles.cuda_library import CudaDouble, build_cuda_double, have_compiler

from vae_edge.data import Dataset, load_dataset

if TYPE_CHECKING:
    from doubles.loading import TensorRTDouble

    from vae_edge.training.checkpoint import Checkpoint

EPOCHS = 24


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of decoded images for these tests, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("VAE_EDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def few_digits(digits: Dataset) -> Dataset:
    """Forty images of each class: enough to run every line, too few to learn."""
    chosen = np.concatenate([np.flatnonzero(digits.train.labels == k)[:40] for k in range(10)])
    return Dataset("few digits", "digits", digits.train.take(chosen), None)


@pytest.fixture(scope="session")
def run(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run of the preset `tiny` on turned digits."""
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.data import make_run_config, make_splits
    from vae_edge.training.trainer import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = TrainConfig(epochs=EPOCHS, batch=128)
    splits = make_splits(digits, settings)
    train(splits, make_run_config(digits, splits, "tiny", settings), folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Checkpoint:
    from vae_edge.training.checkpoint import load_checkpoint

    return load_checkpoint(run)


@pytest.fixture(scope="session")
def bundle(run: Path, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's bundle with fp32, fp16 and int8. Tests that change it copy it first."""
    from vae_edge.api import export
    from vae_edge.exporting import quantize_bundle_from_dataset

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export(run, folder)
    for precision in ("fp16", "int8"):
        quantize_bundle_from_dataset(folder, precision, digits)
    return folder


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> CudaDouble:
    """The double of the CUDA driver, built once."""
    if not have_compiler():
        pytest.skip("needs a C compiler for the double of the CUDA driver")
    return build_cuda_double(tmp_path_factory.mktemp("cuda_double"))


@pytest.fixture
def cuda(cuda_library: CudaDouble) -> Iterator[CudaDouble]:
    """The double of the CUDA driver, as freshly loaded (see `doubles`)."""
    cuda_library.reset()
    yield cuda_library
    cuda_library.reset()


@pytest.fixture
def use_tensorrt(cuda: CudaDouble) -> Iterator[Callable[[str], TensorRTDouble]]:
    """Give the double of a version of TensorRT, which is what `import tensorrt` gives from then on."""
    pytest.importorskip("onnxruntime")
    from doubles.loading import load_tensorrt

    with ExitStack() as stack:

        def use(version: str) -> TensorRTDouble:
            double = load_tensorrt(version)
            stack.enter_context(double.installed(cuda.library))
            return double

        yield use
