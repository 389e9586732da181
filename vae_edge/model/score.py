"""The rejection score: how strange an image is, from its reconstruction, its features, and its logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = {"reconstruction": 1.0, "features": 2.0, "energy": 1.5, "angle": 1.0}  # of the standardized measures
COMPONENTS = 48  # principal components of the features, at most
CLUSTERS = 24  # of one class, at most,
CLUSTER_IMAGES = 200  # and one for each so many of its images
ALL_CLUSTERS = 256  # of all classes together, where there are not more classes
RIDGE = 1e-2  # of variances that are about 1
SHRINKAGE = 60.0  # images' worth of the shared covariance in each cluster's own, and of the mean in a regression
ROUNDS = 25  # of k-means, at most
FOLDS, MANY = 10, 10_000  # of the images for the scale; two, where there are many
CHUNK = 1000  # images scored at a time while fitting


class RejectionScore(nn.Module):
    """The weighted sum of standardized measures; higher is stranger. Fitted on training data alone.

    - reconstruction: squared error over the image's own variance, less what is expected of an image of its code and
      class weights, by linear regression on training images, but no more than is expected of 99.9% of these;
    - features (means of early feature maps, and mu): in principal components, the distance to the nearest cluster of
      a class in that cluster's own covariance (Lee et al. 2018, eq. 2, has one normal distribution a class, and one
      covariance for all);
    - energy: minus the log-sum-exp of the logits (Liu et al. 2020, eq. 4, temperature 1);
    - angle, with a pose trunk: the doubt about it, the logarithm of what its concentration lacks to 1.

    The light score leaves the first out, and with it the decoder.

    `features` [N, F] are rows of [means of maps, mu, class weights, doubt about the angle where there is one]. How many
    clusters there are is found in fitting. Beside these, `means` [K, Z] and `whitening` [Z, Z] describe the codes mu of
    each class, for drawing new ones.
    """

    means: Tensor
    whitening: Tensor
    projection: Tensor
    offset: Tensor
    most_expected: Tensor
    nearest: Tensor
    nearest_offset: Tensor
    cluster_whitening: Tensor
    cluster_offset: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, classes: int, latent: int, features: int, angle: bool) -> None:
        super().__init__()
        self.classes, self.latent = classes, latent
        self.measures = tuple(WEIGHTS) if angle else tuple(WEIGHTS)[:-1]
        self.told = features - int(angle)  # of the features, those before the doubt about the angle
        self.seen = self.told - classes  # those whose distribution is looked at
        self.components = size = min(COMPONENTS, self.seen)
        self.register_buffer("means", torch.zeros(classes, latent))
        self.register_buffer("whitening", torch.eye(latent))
        self.register_buffer("projection", F.pad(torch.eye(features, size), (0, 1)))  # the last column: errors expected
        self.register_buffer("offset", torch.zeros(size + 1))
        self.register_buffer("most_expected", torch.full((1, 1), math.inf))
        self.register_buffer("nearest", torch.zeros(size, 1))
        self.register_buffer("nearest_offset", torch.zeros(1))
        self.register_buffer("cluster_whitening", torch.eye(size, dtype=torch.float16)[None])
        self.register_buffer("cluster_offset", torch.zeros(1, 1, size))
        self.register_buffer("centre", torch.zeros(len(self.measures)))
        self.register_buffer("spread", torch.ones(len(self.measures)))

    def parts(self, error: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """The measures [N, M], before they are standardized, of errors [N, 1], features [N, F] and logits [N, K]."""
        components, expected = self._project(features)
        expected = torch.minimum(expected, self.most_expected)
        return torch.cat([error - expected, *self._light_parts(components, features, logits)], 1)

    def forward(self, upright: Tensor, reconstruction: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Score [N] of images [N, C, S, S] in [0, 1], their reconstructions, features [N, F] and logits [N, K]."""
        return self.total(self.parts(reconstruction_error(upright, reconstruction), features, logits))

    def light(self, features: Tensor, logits: Tensor) -> Tensor:
        """The score [N] without the reconstruction, from features [N, F] and logits [N, K]."""
        return self.total(torch.cat(self._light_parts(self._project(features)[0], features, logits), 1))

    def _light_parts(self, components: Tensor, features: Tensor, logits: Tensor) -> list[Tensor]:
        doubt = [] if self.told == features.shape[1] else [features[:, self.told :]]
        return [self._distance(components), -logits.logsumexp(1, keepdim=True), *doubt]

    def total(self, parts: Tensor) -> Tensor:
        """The measures [N, M] standardized, weighted and summed, [N]; or those without the first one.

        One product, since each operator costs at batch 1.
        """
        first = len(self.measures) - parts.shape[1]
        weights, offsets = self.coefficients()
        return (parts @ weights[first:, None]).squeeze(1) - offsets[first:].sum()

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """What each measure is multiplied by, and what is then taken off for it, both [M]."""
        weights = torch.tensor([WEIGHTS[name] for name in self.measures], device=self.spread.device) / self.spread
        return weights, self.centre * weights

    def _project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F] to white components [N, D], and the error to be expected [N, 1]."""
        projected = features @ self.projection + self.offset
        return projected[:, : self.components], projected[:, self.components :]

    def _distance(self, components: Tensor) -> Tensor:
        """Distance [N, 1] of components [N, D] to the nearest cluster, in its own standard deviations.

        The nearest one is found in the covariance shared by all, so that one cluster's own matrix is read and not all.
        """
        cluster = (components @ self.nearest + self.nearest_offset).argmin(1)
        whitening = self.cluster_whitening.index_select(0, cluster).float()
        white = components[:, None, :] @ whitening - self.cluster_offset.index_select(0, cluster)
        return torch.linalg.vector_norm(white, dim=2)

    def fit(self, codes: Tensor, features: Tensor, errors: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Fit everything on training images.

        The scale of the measures is cross-fitted: each part of the images is measured by what the other parts gave,
        since an image is nearer to clusters that it is itself a part of. Where there are few, it is much nearer.

        Args:
            codes: mu, [N, Z].
            features: [N, F].
            errors: as of `reconstruction_error`, [N, 1].
            logits: [N, K].
            labels: classes int64 [N].
        """
        self.fit_codes(codes, labels)
        folds = 2 if len(labels) >= MANY else min(FOLDS, len(labels))
        fold = torch.empty_like(labels)
        fold[labels.argsort(stable=True)] = torch.arange(len(labels)) % folds  # a share of each class
        parts = torch.zeros(len(labels), len(self.measures), dtype=torch.float64)
        for k in range(folds):
            others, own = fold != k, fold == k
            self.fit_measures(features[others], errors[others], labels[others])
            parts[own] = self._parts_by_chunk(errors[own], features[own], logits[own])
        self.fit_measures(features, errors, labels)
        self.fit_scale(parts)

    def fit_codes(self, mu: Tensor, labels: Tensor) -> None:
        """Class means and the whitening of the shared covariance, from training codes [N, Z] and labels [N]."""
        mu = mu.double()
        means = _class_means(mu, labels, self.classes)
        self.means.copy_(means)
        self.whitening.copy_(_whitening(_covariance(mu - means[labels], len(mu) - self.classes)))

    def fit_measures(self, features: Tensor, errors: Tensor, labels: Tensor) -> None:
        """Clusters, and the error to be expected, from features [N, F], errors [N, 1] and labels [N]."""
        self._fit_clusters(features, labels)
        self._fit_errors(errors, features)

    def most_clusters(self) -> int:
        """Clusters that a class may have."""
        return max(1, min(CLUSTERS, ALL_CLUSTERS // self.classes))

    def _fit_clusters(self, features: Tensor, labels: Tensor) -> None:
        """Principal components and clusters.

        A class has one cluster for each 200 images, at most 24 (and 256 in all classes), found by k-means in components
        that the covariance within classes makes white. Each cluster's covariance is that of the images nearest to its
        centre, drawn towards the shared one by as much as 60 images would weigh (Friedman 1989).
        """
        seen = features[:, : self.seen].double()
        mean, deviation = seen.mean(0), seen.std(0, correction=0) + 1e-4
        scaled = (seen - mean) / deviation
        axes = torch.linalg.eigh(scaled.T @ scaled).eigenvectors.flip(1)[:, : self.components]
        reduced = scaled @ axes
        within = reduced - _class_means(reduced, labels, self.classes)[labels]
        shared = _whitening(_covariance(within, len(reduced) - self.classes), ridge=RIDGE)
        white = reduced @ shared
        most = self.most_clusters()
        found = [
            _k_means(white[labels == k], max(1, min(most, int((labels == k).sum()) // CLUSTER_IMAGES)))
            for k in labels.unique().tolist()
        ]
        centres = torch.cat(found)
        belongs = torch.cdist(white, centres).argmin(1)
        taken = belongs.unique()
        centres, belongs = centres[taken], torch.searchsorted(taken, belongs)
        means = _class_means(white, belongs, len(centres))
        centred = white - means[belongs]
        common = _covariance(centred, len(white))
        whitenings = []
        for k in range(len(centres)):
            own = centred[belongs == k]
            mixed = (own.T @ own + SHRINKAGE * common) / (len(own) + SHRINKAGE)
            whitenings.append(_inverse_root(mixed + RIDGE * torch.eye(len(mixed), dtype=mixed.dtype)))
        stored = torch.stack(whitenings).to(self.cluster_whitening)
        projection = (axes / deviation[:, None]) @ shared
        self.projection[:, : self.components] = 0.0
        self.projection[: self.seen, : self.components] = projection.to(self.projection)
        self.offset[: self.components] = -(mean @ projection).to(self.offset)
        self.nearest = (-2.0 * centres.T).to(self.nearest)
        self.nearest_offset = centres.square().sum(1).to(self.nearest_offset)
        self.cluster_whitening = stored
        self.cluster_offset = (means[:, None, :] @ stored.to(means)).to(self.cluster_offset)

    def _fit_errors(self, errors: Tensor, features: Tensor) -> None:
        """What error is to be expected of an image: ridge regression, and no more than nearly all images had."""
        given = features[:, self.seen - self.latent : self.told].double()
        mean, deviation = given.mean(0), given.std(0, correction=0) + 1e-4
        scaled = (given - mean) / deviation
        normal = scaled.T @ scaled + SHRINKAGE * torch.eye(scaled.shape[1], dtype=scaled.dtype)
        error = errors[:, 0].double()
        slope = torch.linalg.solve(normal, scaled.T @ (error - error.mean())) / deviation
        self.projection[:, self.components] = 0.0
        self.projection[self.seen - self.latent : self.told, self.components] = slope.to(self.projection)
        self.offset[self.components] = (error.mean() - mean @ slope).to(self.offset)
        self.most_expected.copy_((error.mean() + (given - mean) @ slope).quantile(0.999))

    def _parts_by_chunk(self, errors: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """`parts` of many images, on the CPU."""
        device = self.centre.device
        chunks = zip(errors.split(CHUNK), features.split(CHUNK), logits.split(CHUNK), strict=True)
        return torch.cat([self.parts(*(given.to(device) for given in chunk)) for chunk in chunks]).double().cpu()

    def fit_scale(self, parts: Tensor) -> None:
        """Centre and spread of the measures: median and 10-to-90 range of those of known images, [N, M]."""
        low, middle, high = (parts.double().quantile(share, dim=0) for share in (0.1, 0.5, 0.9))
        self.centre.copy_(middle)
        self.spread.copy_(torch.maximum(high - low, 1e-3 * (1.0 + middle.abs())))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for as many clusters as the stored score has."""
        for name, dim in (("nearest", 1), ("nearest_offset", 0), ("cluster_whitening", 0), ("cluster_offset", 0)):
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(stored, Tensor) and stored.ndim == own.ndim:
                shape = list(own.shape)
                shape[dim] = stored.shape[dim]
                setattr(self, name, own.new_zeros(shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def reconstruction_error(upright: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error [N, 1] of images [N, C, S, S] over their own variance, which an even image has too little of."""
    seen = upright.flatten(1)
    apart = torch.linalg.vector_norm(seen - reconstruction.flatten(1), dim=1, keepdim=True)
    contrast = torch.linalg.vector_norm(seen - seen.mean(1, keepdim=True), dim=1, keepdim=True)
    return (apart / (contrast + math.sqrt(1e-3 * seen.shape[1]))).square()


def _k_means(points: Tensor, count: int) -> Tensor:
    """Centres [count, D] of points [N, D], the first ones drawn far apart (Arthur and Vassilvitskii 2007), seed 0."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(len(points), (1,), generator=generator)
    centres = points[first]
    for _ in range(count - 1):
        apart = torch.cdist(points, centres).amin(1).square()
        drawn = torch.multinomial(apart + 1e-12, 1, generator=generator)
        centres = torch.cat([centres, points[drawn]])
    belongs = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        before, belongs = belongs, torch.cdist(points, centres).argmin(1)
        if torch.equal(before, belongs):
            break
        sums = torch.zeros_like(centres).index_add_(0, belongs, points)
        sizes = torch.bincount(belongs, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres


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
    return _inverse_root(regular)


def _inverse_root(regular: Tensor) -> Tensor:
    """The matrix W with W @ W.T the inverse of a regular covariance."""
    return torch.linalg.cholesky(torch.linalg.inv(regular))
