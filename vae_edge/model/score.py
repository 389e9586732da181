"""The rejection score: how strange an image is, from its reconstruction, its features, and its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PARTS = ("reconstruction", "features", "energy")
LIGHT = ("features", "energy")  # what needs no decoder
COMPONENTS = 48  # principal components of the features, at most
SHRINKAGE = 50.0  # images' worth of the shared covariance in each class's own


class RejectionScore(nn.Module):
    """The sum of three standardized measures; higher is stranger. Fitted on training data alone.

    - relative reconstruction error: squared error over the image's own variance;
    - distance of the features (means of early feature maps, and mu) to the nearest class, each class a normal
      distribution with a covariance of its own (Lee et al. 2018, eq. 2, has one for all), in principal components;
    - energy: minus the log-sum-exp of the logits (Liu et al. 2020, eq. 4, temperature 1).

    The light score leaves the first out, and with it the decoder.

    Beside these, `means` [K, Z] and `whitening` [Z, Z] describe the codes mu of each class, for drawing new ones.
    """

    means: Tensor
    whitening: Tensor
    feature_mean: Tensor
    projection: Tensor
    class_whitening: Tensor
    class_centres: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, classes: int, latent: int, features: int) -> None:
        super().__init__()
        self.classes, self.components = classes, min(COMPONENTS, features)
        wide = classes * self.components
        self.register_buffer("means", torch.zeros(classes, latent))
        self.register_buffer("whitening", torch.eye(latent))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("projection", torch.eye(features, self.components))
        self.register_buffer("class_whitening", torch.eye(self.components).repeat(1, classes))
        self.register_buffer("class_centres", torch.zeros(wide))
        self.register_buffer("centre", torch.zeros(len(PARTS)))
        self.register_buffer("spread", torch.ones(len(PARTS)))

    def distance(self, features: Tensor) -> Tensor:
        """Distance [N] of features [N, F] to the nearest class, in its own standard deviations."""
        reduced = (features - self.feature_mean) @ self.projection
        white = reduced @ self.class_whitening - self.class_centres
        squared = white.square().reshape(-1, self.classes, self.components).sum(2)
        return squared.amin(1).sqrt()

    @staticmethod
    def reconstruction_error(upright: Tensor, reconstruction: Tensor) -> Tensor:
        """Squared error [N] of images [N, C, S, S] over their own variance."""
        seen = upright.flatten(1)
        error = (seen - reconstruction.flatten(1)).square().sum(1)
        variance = (seen - seen.mean(1, keepdim=True)).square().sum(1)
        return error / (variance + 1e-3 * seen.shape[1])

    def parts(self, upright: Tensor, reconstruction: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """The three measures, [N, 3], before they are standardized."""
        error = self.reconstruction_error(upright, reconstruction)
        return torch.stack([error, self.distance(features), -logits.logsumexp(1)], 1)

    def forward(self, upright: Tensor, reconstruction: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Score [N] of images [N, C, S, S] in [0, 1], their reconstructions, features [N, F] and logits [N, K]."""
        parts = self.parts(upright, reconstruction, features, logits)
        return ((parts - self.centre) / self.spread).sum(1)

    def light(self, features: Tensor, logits: Tensor) -> Tensor:
        """The score [N] without the reconstruction, from features [N, F] and logits [N, K]."""
        parts = torch.stack([self.distance(features), -logits.logsumexp(1)], 1)
        return ((parts - self.centre[1:]) / self.spread[1:]).sum(1)

    def fit_codes(self, mu: Tensor, labels: Tensor) -> None:
        """Class means and the whitening of the shared covariance, from training codes [N, Z] and labels [N]."""
        mu = mu.double()
        means = _class_means(mu, labels, self.classes)
        self.means.copy_(means)
        self.whitening.copy_(_whitening(_covariance(mu - means[labels], len(mu) - self.classes)))

    def fit_features(self, features: Tensor, labels: Tensor) -> None:
        """Principal components, and each class's normal distribution, from training features [N, F], labels [N].

        Each class's covariance is drawn towards the shared one by as much as 50 images would weigh (Friedman 1989).
        """
        features = features.double()
        mean, deviation = features.mean(0), features.std(0) + 1e-4
        axes = torch.linalg.svd((features - mean) / deviation, full_matrices=False).Vh[: self.components].T
        projection = torch.zeros(features.shape[1], self.components, dtype=torch.float64)
        projection[:, : axes.shape[1]] = axes / deviation[:, None]
        reduced = (features - mean) @ projection
        means = _class_means(reduced, labels, self.classes)
        centred = reduced - means[labels]
        shared = _covariance(centred, len(reduced) - self.classes)
        whitenings = []
        for k in range(self.classes):
            own = centred[labels == k]
            mixed = (own.T @ own + SHRINKAGE * shared) / (len(own) + SHRINKAGE)
            whitenings.append(_whitening(mixed, ridge=1e-2))
        self.feature_mean.copy_(mean)
        self.projection.copy_(projection)
        self.class_whitening.copy_(torch.cat(whitenings, 1))
        self.class_centres.copy_(torch.cat([means[k] @ whitening for k, whitening in enumerate(whitenings)]))

    def fit_scale(self, parts: Tensor) -> None:
        """Centre and spread of the measures, from those of the training images, [N, 3]: median and 10-to-90 range."""
        low, middle, high = parts.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=0)
        self.centre.copy_(middle)
        self.spread.copy_(torch.maximum(high - low, 1e-3 * (1.0 + middle.abs())))


def _class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean of each class [K, D]; one without images takes the place of one that has some."""
    present = labels.unique().tolist()
    return torch.stack([values[labels == (k if k in present else present[0])].mean(0) for k in range(classes)])


def _covariance(centred: Tensor, count: int) -> Tensor:
    return centred.T @ centred / max(1, count)


def _whitening(covariance: Tensor, ridge: float = 1e-4) -> Tensor:
    """The matrix W with x @ W white for x of this covariance, which a share of its mean variance makes regular."""
    size = len(covariance)
    regular = covariance + (ridge * covariance.diagonal().mean() + 1e-8) * torch.eye(size, dtype=covariance.dtype)
    return torch.linalg.cholesky(torch.linalg.inv(regular))
