"""Photographs without an even background: trained turned, they are seen through a round window, in the graph too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vae_edge.data import Dataset, LabelledImages
from vae_edge.export.onnx_file import ClassifierGraph, run, to_onnx
from vae_edge.model import AngleVAE
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import plan


def photographs(even: bool) -> Dataset:
    """Forty colour images of two classes, of noise to the corners or of a square on black."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    if even:
        images[:, :8] = images[:, 24:] = images[:, :, :8] = images[:, :, 24:] = 0
    data = LabelledImages(images, np.arange(40) % 2, ("a", "b"))
    return Dataset("photographs", "photographs", data, None)


@pytest.mark.parametrize(
    ("even", "rotation", "window"),
    [(False, "full", True), (False, "30", True), (False, "none", False), (True, "full", False)],
)
def test_the_window_is_for_turned_images_without_an_even_background(even: bool, rotation: str, window: bool):
    assert plan(photographs(even), "tiny", TrainConfig(rotation=rotation)).model.circular_mask is window


def test_the_exported_graph_does_not_look_at_the_corners():
    torch.manual_seed(0)
    config = plan(photographs(False), "tiny", TrainConfig()).model
    graph = ClassifierGraph(AngleVAE(config).eval())
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    line = np.arange(32) - 15.5
    other = np.where((np.hypot(line[:, None], line[None, :]) >= 16)[..., None], 255 - images, images)
    model = to_onnx(graph, 32, 3, graph.outputs, {})
    here, there = run(model, images), run(model, other.astype(np.uint8))
    for name in graph.outputs:
        np.testing.assert_allclose(here[name], there[name], atol=1e-5)
