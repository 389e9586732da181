"""The loss: reconstruction + β · KL + γ · cross-entropy + δ · angle, each term apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import ConfigError
from vae_edge.model.network import Output

REFERENCE_PIXELS = 28 * 28
BIN_SPREAD_DEG = 6.0  # width of the target around the true angle


@dataclass(frozen=True)
class LossWeights:
    """β of the KL divergence, γ of the cross-entropy, δ of the angle's term; label smoothing of the cross-entropy."""

    beta: float = 1.0
    gamma: float = 100.0
    delta: float = 50.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse weights that no loss can have."""
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0 or (name == "gamma" and value == 0):
                raise ConfigError(
                    f"{name} {value}: expected a finite number, {'above' if name == 'gamma' else 'at least'} 0"
                )


def angle_targets(angle_rad: Tensor, bins: int) -> Tensor:
    """A von Mises distribution around each angle [N] over the bins: [N, bins], rows sum to 1."""
    centres = torch.arange(bins, device=angle_rad.device) * (2 * math.pi / bins)
    kappa = 1.0 / math.radians(BIN_SPREAD_DEG) ** 2
    return (kappa * (angle_rad[:, None] - centres[None, :]).cos()).softmax(1)


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information, in nats, of two labellings whose joint probabilities are [K, K], made symmetric first.

    Ji, Henriques and Vedaldi, "Invariant information clustering" (2019), eq. 3: it is greatest where both say the same
    of an image and all classes are said equally often.
    """
    joint = ((joint + joint.T) / 2).clamp_min(1e-6)
    apart = joint.sum(0).log()[None, :] + joint.sum(1).log()[:, None]
    return (joint * (joint.log() - apart)).sum()


def losses(
    output: Output,
    labels: Tensor,
    angle_rad: Tensor | None,
    weights: LossWeights,
    trust: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of one batch, means over images in nats, and their weighted sum under `total`.

    The reconstruction is the Bernoulli negative log-likelihood of the upright image under the decoder's logits, minus
    the image's own entropy (so that a perfect copy costs 0), scaled to 28×28 pixels of one channel: the balance of the
    terms does not depend on the image's size. The pose trunk's own class logits are trained at half weight.

    `labels` are classes [N]; `trust` [N] weighs each image's label (None: 1 each).
    """
    target = output.upright.float()
    pixels = target[0].numel()
    copy_cost = -(torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)).sum()
    fit = F.binary_cross_entropy_with_logits(output.reconstruction.float(), target, reduction="sum")
    reconstruction = (fit - copy_cost) / len(target) * (REFERENCE_PIXELS / pixels)
    assert output.kl is not None
    kl = output.kl.mean()

    def classify(logits: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float(), labels, label_smoothing=weights.smoothing, reduction="none")
        return each.mean() if trust is None else (trust * each).mean()

    classes = classify(output.logits)
    terms = {"reconstruction": reconstruction, "kl": kl, "classes": classes}
    total = reconstruction + weights.beta * kl + weights.gamma * classes
    pose = output.pose
    if pose.bins is not None and pose.logits is not None and angle_rad is not None:
        soft = angle_targets(angle_rad, pose.bins.shape[1])
        terms["angle"] = F.cross_entropy(pose.bins.float(), soft)
        terms["pose_classes"] = classify(pose.logits)
        total = total + weights.delta * terms["angle"] + 0.5 * weights.gamma * terms["pose_classes"]
    terms["total"] = total / weights.gamma
    return terms
