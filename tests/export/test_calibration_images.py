"""Calibration images that are nearly alike: only what is quantized needs a range."""

from __future__ import annotations

import numpy as np
import torch

from vae_edge.export.onnx_file import ClassifierGraph, run, to_onnx
from vae_edge.export.quantize import convert
from vae_edge.model import AngleVAE, create_config


def test_images_that_differ_in_one_pixel_calibrate():
    torch.manual_seed(0)
    graph = ClassifierGraph(AngleVAE(create_config("tiny")).eval())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 28, 28, 1), dtype=np.uint8).repeat(64, 0)
    images[np.arange(64), np.arange(64) % 28, 5] ^= 1
    model = to_onnx(graph, 28, 1, graph.outputs, {})
    fine, coarse = run(model, images), run(convert(model, "int8", images)["any"], images)
    np.testing.assert_allclose(coarse["probabilities"], fine["probabilities"], atol=0.05)
