"""The rejection score: how strange an image is, from its reconstruction, its place among the codes, and its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PARTS = ("reconstruction", "mahalanobis", "energy")


class RejectionScore(nn.Module):
    """The sum of three standardized measures; higher is stranger. Fitted on training data alone.

    - relative reconstruction error: squared error over the image's own variance;
    - Mahalanobis distance of mu to the nearest class mean, one covariance for all classes (Lee et al. 2018, eq. 2);
    - energy: minus the log-sum-exp of the logits (Liu et al. 2020, eq. 4, temperature 1).
    """

    means: Tensor
    whitening: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, classes: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, latent))
        self.register_buffer("whitening", torch.eye(latent))
        self.register_buffer("centre", torch.zeros(len(PARTS)))
        self.register_buffer("spread", torch.ones(len(PARTS)))

    def parts(self, upright: Tensor, reconstruction: Tensor, mu: Tensor, logits: Tensor) -> Tensor:
        """The three measures, [N, 3], before they are standardized."""
        seen = upright.flatten(1)
        error = (seen - reconstruction.flatten(1)).square().sum(1)
        energy_of_image = (seen - seen.mean(1, keepdim=True)).square().sum(1)
        relative = error / (energy_of_image + 1e-3 * seen.shape[1])
        white = mu @ self.whitening
        centres = self.means @ self.whitening
        squared = (white[:, None, :] - centres[None, :, :]).square().sum(2)
        distance = squared.min(1).values.sqrt()
        return torch.stack([relative, distance, -logits.logsumexp(1)], 1)

    def forward(self, upright: Tensor, reconstruction: Tensor, mu: Tensor, logits: Tensor) -> Tensor:
        """Score [N] of images [N, C, S, S] in [0, 1], their reconstructions, codes [N, Z] and logits [N, K]."""
        parts = self.parts(upright, reconstruction, mu, logits)
        return ((parts - self.centre) / self.spread).sum(1)

    def fit_codes(self, mu: Tensor, labels: Tensor) -> None:
        """Class means and the whitening of the shared covariance, from training codes [N, Z] and labels [N]."""
        mu = mu.double()
        classes, latent = self.means.shape
        present = labels.unique().tolist()
        # a class without images takes the place of one that has some, which changes no nearest distance
        filled = [k if k in present else present[0] for k in range(classes)]
        means = torch.stack([mu[labels == k].mean(0) for k in filled])
        centred = mu - means[labels]
        covariance = centred.T @ centred / max(1, len(mu) - classes)
        ridge = 1e-4 * covariance.diagonal().mean() + 1e-8
        precision = torch.linalg.inv(covariance + ridge * torch.eye(latent, dtype=mu.dtype))
        self.means.copy_(means)
        self.whitening.copy_(torch.linalg.cholesky(precision))

    def fit_scale(self, parts: Tensor) -> None:
        """Centre and spread of the measures, from those of the training images, [N, 3]: median and 10-to-90 range."""
        low, middle, high = parts.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=0)
        self.centre.copy_(middle)
        self.spread.copy_(torch.maximum(high - low, 1e-3 * (1.0 + middle.abs())))
