"""The rejection score: how strange an image is, from its reconstruction, its features, and its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PARTS = ("reconstruction", "features", "energy")
LIGHT = ("features", "energy")  # what needs no decoder
COMPONENTS = 32  # principal components of the features, at most
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
    feature_whitening: Tensor
    feature_offset: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, classes: int, latent: int, features: int) -> None:
        super().__init__()
        self.classes, self.components = classes, min(COMPONENTS, features)
        self.register_buffer("means", torch.zeros(classes, latent))
        self.register_buffer("whitening", torch.eye(latent))
        self.register_buffer("feature_whitening", torch.eye(features, self.components).repeat(1, classes))
        self.register_buffer("feature_offset", torch.zeros(classes * self.components))
        self.register_buffer("centre", torch.zeros(len(PARTS)))
        self.register_buffer("spread", torch.ones(len(PARTS)))

    def distance(self, features: Tensor) -> Tensor:
        """Distance [N, 1] of features [N, F] to the nearest class, in its own standard deviations."""
        white = features @ self.feature_whitening - self.feature_offset
        squared = white.square().reshape(-1, self.classes, self.components).sum(2)
        return squared.amin(1, keepdim=True).sqrt()

    @staticmethod
    def reconstruction_error(upright: Tensor, reconstruction: Tensor) -> Tensor:
        """Squared error [N, 1] of images [N, C, S, S] over their own variance."""
        seen = upright.flatten(1)
        apart = seen - reconstruction.flatten(1)
        centred = seen - seen.mean(1, keepdim=True)
        return _squared_length(apart) / (_squared_length(centred) + 1e-3 * seen.shape[1])

    def parts(self, upright: Tensor, reconstruction: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """The three measures, [N, 3], before they are standardized."""
        error = self.reconstruction_error(upright, reconstruction)
        return torch.cat([error, self._light_parts(features, logits)], 1)

    def _light_parts(self, features: Tensor, logits: Tensor) -> Tensor:
        return torch.cat([self.distance(features), -logits.logsumexp(1, keepdim=True)], 1)

    def forward(self, upright: Tensor, reconstruction: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Score [N] of images [N, C, S, S] in [0, 1], their reconstructions, features [N, F] and logits [N, K]."""
        return self._sum(self.parts(upright, reconstruction, features, logits), 0)

    def light(self, features: Tensor, logits: Tensor) -> Tensor:
        """The score [N] without the reconstruction, from features [N, F] and logits [N, K]."""
        return self._sum(self._light_parts(features, logits), 1)

    def _sum(self, parts: Tensor, first: int) -> Tensor:
        """The standardized measures from `first` on, summed: one product, since each operator costs at batch 1."""
        weights = 1.0 / self.spread[first:]
        return (parts @ weights[:, None]).squeeze(1) - (self.centre[first:] * weights).sum()

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
        all_classes = torch.cat(whitenings, 1)
        offsets = [(mean @ projection + means[k]) @ whitening for k, whitening in enumerate(whitenings)]
        self.feature_whitening.copy_(projection @ all_classes)
        self.feature_offset.copy_(torch.cat(offsets))

    def fit_scale(self, parts: Tensor) -> None:
        """Centre and spread of the measures, from those of the training images, [N, 3]: median and 10-to-90 range."""
        low, middle, high = parts.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=0)
        self.centre.copy_(middle)
        self.spread.copy_(torch.maximum(high - low, 1e-3 * (1.0 + middle.abs())))


def _squared_length(rows: Tensor) -> Tensor:
    """Sum of squares [N, 1] of rows [N, D]; by the norm, which is one operator of the exported graph."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True).square()


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
