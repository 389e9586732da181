"""Networks that nobody trained, and images for them: for times, and to compare two ways of computing the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.model import AngleVAE, create_config
from vae_edge.ops.packing import LayerNumbers, QuantizedNetwork, folded


def untrained(preset: str, **changes: object) -> AngleVAE:
    """A network of random weights whose normalization does something, and whose score has as many clusters as training
    may find."""
    torch.manual_seed(0)
    model = AngleVAE(create_config(preset, **changes)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    score = model.score
    count, size = model.config.classes * score.most_clusters(), score.components
    score.nearest = 0.1 * torch.randn(size, count)
    score.nearest_offset = torch.randn(count)
    score.cluster_whitening = torch.eye(size, dtype=torch.float16).repeat(count, 1, 1)
    score.cluster_offset = 0.1 * torch.randn(count, 1, size)
    return model


def in_int8(model: AngleVAE) -> QuantizedNetwork:
    """A network's layers in int8, with scales that nobody calibrated."""
    layers = {}
    for name, layer in folded(model).items():
        axes = tuple(range(1, layer.weight.ndim))
        scale = layer.weight.abs().amax(axes).clamp_min(1e-6) / 127
        weight = (layer.weight / scale.reshape(-1, *(1 for _ in axes))).round().to(torch.int8)
        layers[name] = LayerNumbers(weight, layer.bias, scale, 1 / 127 if name.endswith("layers.0.0") else 0.02)
    return QuantizedNetwork(layers)


def blotches(images: int, side: int, channels: int, seed: int = 0) -> Tensor:
    """Soft patterns uint8 [N, S, S, C], of many brightnesses: images that differ in more than noise."""
    coarse = torch.rand(images, channels, 6, 6, generator=torch.Generator().manual_seed(seed)).square()
    fine = F.interpolate(coarse, size=side, mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
