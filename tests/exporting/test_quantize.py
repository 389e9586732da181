"""int8: biases are corrected to the means of fp32, and images that are nearly alike calibrate too."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_export import model_of

from vae_edge.data import Dataset
from vae_edge.errors import ExportError
from vae_edge.exporting.onnx_file import ClassifierGraph, run, to_onnx
from vae_edge.exporting.quantize import BIAS_IMAGES, channel_means, convert, correct_biases
from vae_edge.model import AngleVAE, create_config


def biases_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The biases of a model's layers, by the name of the layer's output."""
    values = {initializer.name: initializer for initializer in model.graph.initializer}
    return {
        node.output[0]: numpy_helper.to_array(values[node.input[2]])
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2
    }


def test_biases_that_were_moved_come_back(bundle: Path, digits: Dataset):
    model, moved = model_of(bundle, "fp32"), model_of(bundle, "fp32")
    given = biases_of(model)
    rng = np.random.default_rng(0)
    for initializer in moved.graph.initializer:
        if initializer.dims and any(
            initializer.name in node.input[2:] for node in moved.graph.node if node.op_type in ("Conv", "Gemm")
        ):
            values = numpy_helper.to_array(initializer)
            shifted = values + 0.05 * rng.normal(size=values.shape).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(shifted, initializer.name))
    assert max(np.abs(biases_of(moved)[name] - given[name]).max() for name in given) > 0.1
    correct_biases(moved, model, digits.train.images[:128])
    for name, values in biases_of(moved).items():
        np.testing.assert_allclose(values, given[name], atol=1e-4)


def test_the_layers_of_an_int8_model_have_the_means_of_fp32(bundle: Path, digits: Dataset):
    fp32 = model_of(bundle, "fp32")
    images = digits.train.images[:512]
    int8 = convert(fp32, "int8", images)["any"]
    names = list(biases_of(fp32))
    assert names and set(names) <= set(biases_of(int8))
    used = images[:BIAS_IMAGES]
    expected, found = channel_means(fp32, names, used), channel_means(int8, names, used)
    for name in names:
        size = np.abs(expected[name]).mean()
        assert np.abs(found[name] - expected[name]).mean() < 0.005 * size, name


def test_images_that_differ_in_one_pixel_calibrate():
    torch.manual_seed(0)
    graph = ClassifierGraph(AngleVAE(create_config("tiny")).eval())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 28, 28, 1), dtype=np.uint8).repeat(64, 0)
    images[np.arange(64), np.arange(64) % 28, 5] ^= 1
    model = to_onnx(graph, 28, 1, graph.outputs, {})
    fine, coarse = run(model, images), run(convert(model, "int8", images)["any"], images)
    np.testing.assert_allclose(coarse["probabilities"], fine["probabilities"], atol=0.05)


def test_activations_that_do_not_vary_are_refused_in_a_sentence():
    model = AngleVAE(create_config("tiny", orientation=False)).eval()
    norm = model.encoder.layers[3][1]
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(1e-42)
    graph = ClassifierGraph(model, "fast")
    exported = to_onnx(graph, 28, 1, graph.outputs, {})
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 1), dtype=np.uint8)
    with pytest.raises(ExportError, match=r"hardly vary over the calibration images.*train it longer"):
        convert(exported, "int8", images)
