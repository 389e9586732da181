"""The graphs that travel: bytes in, decisions out. Modules for the exporter, nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_edge.model import AngleVAE
from vae_edge.ops.rotate import rotate

OUTPUTS = ("probabilities", "angle", "score")
DOUBTS = ("concentration", "second_angle", "second_share")  # of models with a pose trunk, behind the others
RECONSTRUCTION = ("reconstruction",)


def to_pixels(image: Tensor) -> Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in [0, 1]; cast before the transpose, as TensorRT-RTX asks."""
    return image.to(torch.float32).permute(0, 3, 1, 2) * (1.0 / 255.0)


class ClassifierGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `probabilities` [N, K], `angle` [N] in radians and `score` [N].

    With a pose trunk also, each [N]: `concentration` (0 is any angle, 1 is certain), `second_angle` in radians, and
    `second_share`, the probability of the second angle. `outputs` has the names. With `light`, the score is the one
    without the reconstruction, and the graph has no decoder.
    """

    def __init__(self, model: AngleVAE, light: bool = False) -> None:
        super().__init__()
        self.model, self.light = model, light
        self.outputs = OUTPUTS if model.pose is None else OUTPUTS + DOUBTS

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        output = self.model(to_pixels(image))
        probabilities = self.model.probabilities(output.logits)
        rejection, features, logits = self.model.score, output.features, output.logits
        if self.light:
            score = rejection.light(features, logits)
        else:
            score = rejection(output.upright, output.reconstruction, features, logits)
        pose, doubt = output.pose, output.pose.doubt
        if doubt is None:
            return probabilities, pose.sin, score
        angle = torch.atan2(pose.sin, pose.cos)
        return probabilities, angle, score, doubt.concentration, torch.atan2(doubt.sin, doubt.cos), doubt.share


class ReconstructionGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `reconstruction`, uint8 of the same shape, turned as the image is."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction, as bytes."""
        output = self.model(to_pixels(image))
        drawn = output.reconstruction
        if self.model.pose is not None:
            drawn = rotate(drawn, output.pose.cos, output.pose.sin, self.model.config.fill)
        return (drawn * 255.0).round().clamp(0.0, 255.0).permute(0, 2, 3, 1).to(torch.uint8)
