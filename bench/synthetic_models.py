"""Untrained networks and synthetic images, for timing and for comparing two ways of computing the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.model import AngleVAE, create_config
from vae_edge.model.score import reconstruction_error
from vae_edge.ops.packing import LayerParams, QuantizedNetwork, fold_batchnorm
from vae_edge.spec import Size, height_and_width

GAIN = 3.0  # of the last layers' weights, so that outputs differ from image to image
PIXEL = 1 / 126  # the scale of int8 pixels; with 1/127 grey, 0.5, would be a tie
COUNT = 200  # images that normalization and score have seen


def untrained(preset: str, **changes: object) -> AngleVAE:
    """A network with random weights, whose normalization and anomaly score are fitted to blotches.

    The score has as many clusters as training may find. Every part of the network makes a difference to its outputs.
    """
    torch.manual_seed(0)
    model = AngleVAE(create_config(preset, **changes))
    config = model.config
    images = blotches(COUNT, config.size, config.channels).permute(0, 3, 1, 2) / 255
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.momentum = None  # of all that it sees
    classifier = [layer for layer in model.classifier.modules() if isinstance(layer, torch.nn.Linear)]
    last = [model.mu, *classifier, model.decoder.first, model.decoder.last]
    if model.orientation is not None:
        last += [model.orientation.angle_bins]
        last += [] if model.orientation.classifier is None else [model.orientation.classifier]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(GAIN)
            layer.bias.normal_()
        model.train()(images)
        output = model.eval()(images)
        errors = reconstruction_error(output.target, output.reconstruction)
        labels = torch.arange(COUNT) % config.classes
        model.score.fit(output.mu, output.features, errors, output.logits, labels)
    _fill_clusters(model)
    return model


def _fill_clusters(model: AngleVAE) -> None:
    """Fill the score up to its largest number of clusters with slightly changed copies."""
    score = model.score
    chosen = torch.arange(model.config.classes * score.max_clusters()) % len(score.cluster_whitening)
    score.nearest = score.nearest[:, chosen] + 0.01 * torch.randn(len(score.nearest), len(chosen))
    score.nearest_offset = score.nearest_offset[chosen] + 10.0 * torch.randn(len(chosen))
    score.cluster_whitening = score.cluster_whitening[chosen]
    score.cluster_offset = score.cluster_offset[chosen]


def quantized(model: AngleVAE) -> QuantizedNetwork:
    """A network's layers in int8, with scales that are not calibrated."""
    layers = {}
    for name, layer in fold_batchnorm(model.for_export()).items():
        axes = tuple(range(1, layer.weight.ndim))
        scale = layer.weight.abs().amax(axes).clamp_min(1e-6) / 127
        weight = (layer.weight / scale.reshape(-1, *(1 for _ in axes))).round().to(torch.int8)
        layers[name] = LayerParams(weight, layer.bias, scale, PIXEL if name.endswith("layers.0.0") else 0.02)
    return QuantizedNetwork(layers)


def blotches(images: int, size: Size, channels: int, seed: int = 0) -> Tensor:
    """Images of soft blotches, uint8 [N, H, W, C], which differ in more than noise."""
    coarse = torch.rand(images, channels, 6, 6, generator=torch.Generator().manual_seed(seed)).square()
    fine = F.interpolate(coarse, size=height_and_width(size), mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
