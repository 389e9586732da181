"""A trained PyTorch model over many images: the reference that every exported form is compared with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.model import AngleVAE
from vae_edge.model.score import reconstruction_error

BATCH = 500


@dataclass(frozen=True)
class Outputs:
    """Probabilities [N, K], angles [N] in counter-clockwise degrees, scores [N], whole and light.

    Also codes [N, Z], and what the score is made of: features [N, F] and reconstruction errors [N, 1].

    `logits` [N, K] are raw, without temperature. Of a model with a pose trunk also, [N]: how sure the angle is (0 to
    1), the second-best angle in degrees, and its probability.
    """

    probabilities: NDArray[np.float32]
    angles_deg: NDArray[np.float32]
    scores: NDArray[np.float32]
    light_scores: NDArray[np.float32]
    codes: torch.Tensor
    features: torch.Tensor
    errors: torch.Tensor
    logits: NDArray[np.float32]
    concentrations: NDArray[np.float32] | None = None
    second_angles_deg: NDArray[np.float32] | None = None
    second_shares: NDArray[np.float32] | None = None


def floats(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


def to_floats(images: NDArray[np.uint8]) -> torch.Tensor:
    """As `floats`, of an array."""
    return floats(torch.from_numpy(np.ascontiguousarray(images)))


@torch.no_grad()
def predict(model: AngleVAE, images: NDArray[np.uint8]) -> Outputs:
    """Run the deterministic pass over uint8 images [N, S, S, C] on the model's device; its mode becomes evaluation."""
    model.eval()
    device = model.temperature.device
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for start in range(0, len(images), BATCH):
        output = model(to_floats(images[start : start + BATCH]).to(device))
        errors = reconstruction_error(output.upright, output.reconstruction)
        parts = model.score.parts(errors, output.features, output.logits)
        found["probabilities"].append(model.probabilities(output.logits))
        found["angles_deg"].append(torch.atan2(output.pose.sin, output.pose.cos).rad2deg())
        found["scores"].append(model.score.total(parts))
        found["light_scores"].append(model.score.total(parts[:, 1:]))
        found["codes"].append(output.mu)
        found["features"].append(output.features)
        found["errors"].append(errors)
        found["logits"].append(output.logits)
        doubt = output.pose.doubt
        if doubt is not None:
            found["concentrations"].append(doubt.concentration)
            found["second_angles_deg"].append(torch.atan2(doubt.sin, doubt.cos).rad2deg())
            found["second_shares"].append(doubt.share)
    joined: dict[str, Any] = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    tensors = {name: joined.pop(name) for name in ("codes", "features", "errors")}
    return Outputs(**tensors, **{name: value.numpy() for name, value in joined.items()})
