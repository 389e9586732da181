from pathlib import Path

import numpy as np
import pytest
import torch

from vae_edge.data import Dataset, holdout
from vae_edge.experiments import baselines
from vae_edge.experiments.setup import (
    ExperimentConfig,
    ExperimentSetup,
)
from vae_edge.exporting.onnx_file import run as run_onnx
from vae_edge.model import create_config
from vae_edge.training.checkpoint import Checkpoint
from vae_edge.training.config import TrainConfig
from vae_edge.training.evaluate import predict

TINY = ExperimentConfig(preset="tiny", images_seen=400)


def test_the_small_network_is_small():
    parameters = sum(p.numel() for p in baselines.cnn(create_config("small")).parameters())
    assert 70_000 <= parameters <= 90_000
    assert f"{parameters:,} parameters" in (Path(__file__).parents[2] / "docs" / "compare.md").read_text()


def outputs(model: object, images: np.ndarray) -> np.ndarray:
    import onnx

    return run_onnx(onnx.load_from_string(baselines.onnx_files(model, 28, 1)["decision"]), images)["probabilities"]


@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn-equal"])
def test_a_networks_file_gives_its_probabilities(few_digits: Dataset, name: str):
    setup = ExperimentSetup(few_digits, TINY)
    images = few_digits.train.images[::7]
    network = setup.network(name, 0).eval()
    np.testing.assert_allclose(outputs(network, images), baselines.network_probabilities(network, images), atol=1e-4)
    other = baselines.network_probabilities(setup.network(name, 1), images)
    assert np.abs(outputs(network, images) - other).max() > 1e-3  # the check can fail


def test_our_file_gives_our_probabilities(checkpoint: Checkpoint, few_digits: Dataset):
    images = few_digits.train.images[::7]
    expected = predict(checkpoint.model, images).probabilities
    np.testing.assert_allclose(outputs(checkpoint.model, images), expected, atol=1e-4)


@pytest.mark.parametrize("kept", [range(10), (3, 5), (0, 4, 9)])
def test_files_of_scikit_learn_give_its_numbers(few_digits: Dataset, kept: tuple[int, ...]):
    """With two classes, and with classes that have no images, as well."""
    split = few_digits.train.take(np.flatnonzero(np.isin(few_digits.train.labels, kept)))
    pixels = baselines.flatten(split.images)
    svm, logistic = baselines.fit_svm(split), baselines.fit_logistic(split)
    np.testing.assert_allclose(outputs(logistic, split.images), logistic.predict_proba(pixels), atol=1e-4)
    scores = outputs(svm, split.images)
    decision = svm.decision_function(pixels)
    np.testing.assert_allclose(scores if len(kept) > 2 else scores[:, 1], decision, atol=1e-4)
    np.testing.assert_array_equal(svm.classes_[scores.argmax(1)], svm.predict(pixels))


def test_the_networks_learn(digits: Dataset):
    kept, held = holdout(digits.train, 0.5, 0)
    settings = TrainConfig(rotation="none", batch=64, seed=0)
    torch.manual_seed(0)
    network = baselines.fit_network(baselines.mlp(create_config("tiny")), kept, settings, 200, 0.0)
    assert (baselines.network_probabilities(network, held.images).argmax(1) == held.labels).mean() > 0.85
