"""A trained PyTorch model over many images: the reference that every exported form is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.model import AngleVAE

BATCH = 500


@dataclass(frozen=True)
class Outputs:
    """Probabilities [N, K], angles [N] in counter-clockwise degrees, scores [N], codes [N, Z], score parts [N, 3]."""

    probabilities: NDArray[np.float32]
    angles_deg: NDArray[np.float32]
    scores: NDArray[np.float32]
    codes: torch.Tensor
    parts: torch.Tensor


def to_floats(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255.0)


@torch.no_grad()
def predict(model: AngleVAE, images: NDArray[np.uint8]) -> Outputs:
    """Run the deterministic pass over uint8 images [N, S, S, C]; the model is put into evaluation mode."""
    model.eval()
    probabilities, angles, scores, codes, parts = [], [], [], [], []
    for start in range(0, len(images), BATCH):
        output = model(to_floats(images[start : start + BATCH]))
        probabilities.append(output.logits.softmax(1))
        angles.append(torch.atan2(output.sin, output.cos))
        measures = (output.upright, output.reconstruction, output.mu, output.logits)
        scores.append(model.score(*measures))
        parts.append(model.score.parts(*measures))
        codes.append(output.mu)
    return Outputs(
        torch.cat(probabilities).numpy(),
        torch.cat(angles).rad2deg().numpy(),
        torch.cat(scores).numpy(),
        torch.cat(codes),
        torch.cat(parts),
    )
