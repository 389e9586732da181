"""The anomaly score: how unlike the training images an image is, by its reconstruction, features and logits.

First the score (`AnomalyScore`), then how it is fitted (`AnomalyScore.fit` and below), then the statistics it uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = {"reconstruction": 1.0, "features": 2.0, "energy": 1.5, "angle": 1.0}  # of the standardized terms
MAX_COMPONENTS = 48  # principal components of the features
MAX_CLUSTERS_PER_CLASS = 24
IMAGES_PER_CLUSTER = 200
MAX_CLUSTERS_TOTAL = 256  # of all classes together; one a class in any case
RIDGE = 1e-2  # relative to variances of about 1
SHRINKAGE = 60.0  # images' worth of the shared covariance in a cluster's own, and of the mean in the regression
KMEANS_ITERATIONS = 25  # at most
FOLDS = 10  # of the cross-fitted scale
TWO_FOLDS_ABOVE = 10_000  # images; then one image more or less in a cluster no longer matters
CHUNK = 1000  # images scored at a time while fitting


def reconstruction_error(upright: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error [N, 1] of images [N, C, h, w], at the decoder's size, over their own variance.

    Contrast is bounded from below, since an even image has no variance.
    """
    pixels = upright.flatten(1)
    distance = torch.linalg.vector_norm(pixels - reconstruction.flatten(1), dim=1, keepdim=True)
    contrast = torch.linalg.vector_norm(pixels - pixels.mean(1, keepdim=True), dim=1, keepdim=True)
    return (distance / (contrast + math.sqrt(1e-3 * pixels.shape[1]))).square()


class AnomalyScore(nn.Module):
    """Weighted sum of standardized terms; higher is more anomalous. Fitted on training data alone.

    - reconstruction: squared error over the image's own variance, minus the error expected for the image's code and
      class weights. The expectation is a linear regression on training images, capped at its 99.9% quantile there.
    - features (channel means of early feature maps, and mu): distance to the nearest cluster of a class, in principal
      components and in that cluster's own covariance. Lee et al. 2018, eq. 2, has one normal distribution a class and
      one covariance for all.
    - energy: minus the log-sum-exp of the logits (Liu et al. 2020, eq. 4, temperature 1).
    - angle, with an orientation encoder: log(1.001 - angle confidence).

    The fast score leaves the reconstruction out, and with it the decoder.

    Rows of `features` [N, F] are [channel means, mu, class weights, angle term (with an orientation encoder)].

    Buffers, with D components, M terms, and C clusters (found in fitting):
        means [K, Z], whitening [Z, Z]: class means and shared whitening of the codes mu, for sampling new codes.
        projection [F, D + 1], offset [D + 1]: features to white components and the expected error.
        max_expected_error [1, 1]: cap of the expected error.
        nearest [D, C], nearest_offset [C]: squared distance to each cluster's centre, but for a constant.
        cluster_whitening [C, D, D] float16, cluster_offset [C, 1, D]: each cluster's own covariance and mean.
        loc [M], scale [M]: standardization of the terms.
    """

    means: Tensor
    whitening: Tensor
    projection: Tensor
    offset: Tensor
    max_expected_error: Tensor
    nearest: Tensor
    nearest_offset: Tensor
    cluster_whitening: Tensor
    cluster_offset: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, classes: int, latent: int, features: int, angle: bool) -> None:
        super().__init__()
        self.classes, self.latent = classes, latent
        self.terms = tuple(WEIGHTS) if angle else tuple(WEIGHTS)[:-1]
        self.n_regressors = features - int(angle)  # features without the angle term
        self.n_features = self.n_regressors - classes  # features that the clusters describe
        self.components = size = min(MAX_COMPONENTS, self.n_features)
        self.register_buffer("means", torch.zeros(classes, latent))
        self.register_buffer("whitening", torch.eye(latent))
        self.register_buffer("projection", F.pad(torch.eye(features, size), (0, 1)))
        self.register_buffer("offset", torch.zeros(size + 1))
        self.register_buffer("max_expected_error", torch.full((1, 1), math.inf))
        self.register_buffer("nearest", torch.zeros(size, 1))
        self.register_buffer("nearest_offset", torch.zeros(1))
        self.register_buffer("cluster_whitening", torch.eye(size, dtype=torch.float16)[None])
        self.register_buffer("cluster_offset", torch.zeros(1, 1, size))
        self.register_buffer("loc", torch.zeros(len(self.terms)))
        self.register_buffer("scale", torch.ones(len(self.terms)))

    def forward(self, upright: Tensor, reconstruction: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Full score [N] of images [N, C, h, w] in [0, 1], reconstructions, features [N, F] and logits [N, K].

        Images and reconstructions are of the decoder's size.
        """
        return self.combine(self.raw_terms(reconstruction_error(upright, reconstruction), features, logits))

    def score_without_reconstruction(self, features: Tensor, logits: Tensor) -> Tensor:
        """Fast score [N] of features [N, F] and logits [N, K]."""
        return self.combine(torch.cat(self._fast_terms(self._project(features)[0], features, logits), 1))

    def raw_terms(self, error: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """The terms [N, M] before standardization, of errors [N, 1], features [N, F] and logits [N, K]."""
        components, expected = self._project(features)
        expected = torch.minimum(expected, self.max_expected_error)
        return torch.cat([error - expected, *self._fast_terms(components, features, logits)], 1)

    def combine(self, terms: Tensor) -> Tensor:
        """Standardize, weigh and sum the terms [N, M], or all but the first one, to scores [N].

        It is one product, since each operator costs at batch 1.
        """
        first = len(self.terms) - terms.shape[1]
        weights, offsets = self.coefficients()
        return (terms @ weights[first:, None]).squeeze(1) - offsets[first:].sum()

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Factor of each term and the offset to subtract from the product, both [M]."""
        weights = torch.tensor([WEIGHTS[name] for name in self.terms], device=self.scale.device) / self.scale
        return weights, self.loc * weights

    def max_clusters(self) -> int:
        """Clusters that a class may have."""
        return max(1, min(MAX_CLUSTERS_PER_CLASS, MAX_CLUSTERS_TOTAL // self.classes))

    def _fast_terms(self, components: Tensor, features: Tensor, logits: Tensor) -> list[Tensor]:
        angle = [] if self.n_regressors == features.shape[1] else [features[:, self.n_regressors :]]
        return [self._distance(components), -logits.logsumexp(1, keepdim=True), *angle]

    def _project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F] to white components [N, D] and the expected error [N, 1]."""
        projected = features @ self.projection + self.offset
        return projected[:, : self.components], projected[:, self.components :]

    def _distance(self, components: Tensor) -> Tensor:
        """Distance [N, 1] of components [N, D] to the nearest cluster, in the cluster's own standard deviations.

        The nearest one is found in the shared covariance, so that only one cluster's own matrix is read.
        """
        cluster = (components @ self.nearest + self.nearest_offset).argmin(1)
        whitening = self.cluster_whitening.index_select(0, cluster).float()
        white = components[:, None, :] @ whitening - self.cluster_offset.index_select(0, cluster)
        return torch.linalg.vector_norm(white, dim=2)

    def fit(self, codes: Tensor, features: Tensor, errors: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Fit everything on training images.

        The scale of the terms is cross-fitted: each fold is scored by what the other folds gave. An image is nearer to
        clusters that it helped to form, and much nearer where there are few images.

        Args:
            codes: mu, [N, Z].
            features: [N, F].
            errors: of `reconstruction_error`, [N, 1].
            logits: [N, K].
            labels: classes int64 [N].
        """
        self.fit_codes(codes, labels)
        folds = 2 if len(labels) >= TWO_FOLDS_ABOVE else min(FOLDS, len(labels))
        fold = torch.empty_like(labels)
        fold[labels.argsort(stable=True)] = torch.arange(len(labels)) % folds  # stratified by class
        terms = torch.zeros(len(labels), len(self.terms), dtype=torch.float64)
        for k in range(folds):
            others, own = fold != k, fold == k
            self.fit_terms(features[others], errors[others], labels[others])
            terms[own] = self._raw_terms_by_chunk(errors[own], features[own], logits[own])
        self.fit_terms(features, errors, labels)
        self.fit_scale(terms)

    def fit_codes(self, mu: Tensor, labels: Tensor) -> None:
        """Fit class means and the whitening of the shared covariance to codes [N, Z] with labels [N]."""
        mu = mu.double()
        means = _class_means(mu, labels, self.classes)
        self.means.copy_(means)
        self.whitening.copy_(_whitening(_covariance(mu - means[labels], len(mu) - self.classes)))

    def fit_terms(self, features: Tensor, errors: Tensor, labels: Tensor) -> None:
        """Fit clusters and the expected error to features [N, F], errors [N, 1] and labels [N]."""
        self._fit_clusters(features, labels)
        self._fit_expected_error(errors, features)

    def fit_scale(self, terms: Tensor) -> None:
        """Fit loc and scale, median and 10-to-90 range, to the terms [N, M] of known images."""
        low, middle, high = (terms.double().quantile(level, dim=0) for level in (0.1, 0.5, 0.9))
        self.loc.copy_(middle)
        self.scale.copy_(torch.maximum(high - low, 1e-3 * (1.0 + middle.abs())))

    def _fit_clusters(self, features: Tensor, labels: Tensor) -> None:
        """Fit principal components and clusters.

        A class has one cluster for each 200 images, at most 24 (256 over all classes), found by k-means in components
        whitened by the within-class covariance. A cluster's covariance is that of the images nearest to its centre,
        shrunk towards the shared one with the weight of 60 images (Friedman 1989).
        """
        values = features[:, : self.n_features].double()
        mean, deviation = values.mean(0), values.std(0, correction=0) + 1e-4
        scaled = (values - mean) / deviation
        axes = torch.linalg.eigh(scaled.T @ scaled).eigenvectors.flip(1)[:, : self.components]
        reduced = scaled @ axes

        within = reduced - _class_means(reduced, labels, self.classes)[labels]
        shared = _whitening(_covariance(within, len(reduced) - self.classes), ridge=RIDGE)
        white = reduced @ shared

        most = self.max_clusters()
        found = [
            _k_means(white[labels == k], max(1, min(most, int((labels == k).sum()) // IMAGES_PER_CLUSTER)))
            for k in labels.unique().tolist()
        ]
        centres = torch.cat(found)
        cluster = torch.cdist(white, centres).argmin(1)  # an image may be nearest to another class's centre
        used = cluster.unique()
        centres, cluster = centres[used], torch.searchsorted(used, cluster)

        means = _class_means(white, cluster, len(centres))
        centred = white - means[cluster]
        common = _covariance(centred, len(white))
        whitenings = []
        for k in range(len(centres)):
            own = centred[cluster == k]
            mixed = (own.T @ own + SHRINKAGE * common) / (len(own) + SHRINKAGE)
            whitenings.append(_inverse_root(mixed + RIDGE * torch.eye(len(mixed), dtype=mixed.dtype)))

        stored = torch.stack(whitenings).to(self.cluster_whitening)
        projection = (axes / deviation[:, None]) @ shared
        self.projection[:, : self.components] = 0.0
        self.projection[: self.n_features, : self.components] = projection.to(self.projection)
        self.offset[: self.components] = -(mean @ projection).to(self.offset)
        self.nearest = (-2.0 * centres.T).to(self.nearest)
        self.nearest_offset = centres.square().sum(1).to(self.nearest_offset)
        self.cluster_whitening = stored
        self.cluster_offset = (means[:, None, :] @ stored.to(means)).to(self.cluster_offset)

    def _fit_expected_error(self, errors: Tensor, features: Tensor) -> None:
        """Ridge regression of the reconstruction error on mu and class weights, and the cap of what it predicts."""
        used = slice(self.n_features - self.latent, self.n_regressors)
        regressors = features[:, used].double()
        mean, deviation = regressors.mean(0), regressors.std(0, correction=0) + 1e-4
        scaled = (regressors - mean) / deviation
        normal = scaled.T @ scaled + SHRINKAGE * torch.eye(scaled.shape[1], dtype=scaled.dtype)
        error = errors[:, 0].double()
        slope = torch.linalg.solve(normal, scaled.T @ (error - error.mean())) / deviation
        self.projection[:, self.components] = 0.0
        self.projection[used, self.components] = slope.to(self.projection)
        self.offset[self.components] = (error.mean() - mean @ slope).to(self.offset)
        self.max_expected_error.copy_((error.mean() + (regressors - mean) @ slope).quantile(0.999))

    def _raw_terms_by_chunk(self, errors: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """`raw_terms` of many images, on the CPU."""
        device = self.loc.device
        chunks = zip(errors.split(CHUNK), features.split(CHUNK), logits.split(CHUNK), strict=True)
        return torch.cat([self.raw_terms(*(part.to(device) for part in chunk)) for chunk in chunks]).double().cpu()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Resize the buffers to the stored number of clusters."""
        for name, dim in (("nearest", 1), ("nearest_offset", 0), ("cluster_whitening", 0), ("cluster_offset", 0)):
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(stored, Tensor) and stored.ndim == own.ndim:
                shape = list(own.shape)
                shape[dim] = stored.shape[dim]
                setattr(self, name, own.new_zeros(shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _k_means(points: Tensor, count: int) -> Tensor:
    """Centres [count, D] of points [N, D]: k-means++ (Arthur and Vassilvitskii 2007) with seed 0.

    Our own, in float64 and with torch's generator: the same centres from every version of scikit-learn and SciPy.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(len(points), (1,), generator=generator)
    centres = points[first]
    for _ in range(count - 1):
        distance = torch.cdist(points, centres).amin(1).square()
        chosen = torch.multinomial(distance + 1e-12, 1, generator=generator)
        centres = torch.cat([centres, points[chosen]])

    cluster = torch.full((len(points),), -1)
    for _ in range(KMEANS_ITERATIONS):
        before, cluster = cluster, torch.cdist(points, centres).argmin(1)
        if torch.equal(before, cluster):
            break
        sums = torch.zeros_like(centres).index_add_(0, cluster, points)
        sizes = torch.bincount(cluster, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres


def _class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean of each class [K, D]. A class without images gets the mean of one that has some."""
    present = labels.unique().tolist()
    return torch.stack([values[labels == (k if k in present else present[0])].mean(0) for k in range(classes)])


def _covariance(centred: Tensor, count: int) -> Tensor:
    return centred.T @ centred / max(1, count)


def _whitening(covariance: Tensor, ridge: float = 1e-4) -> Tensor:
    """The matrix W with x @ W white for x of this covariance, regularized by a fraction of its mean variance."""
    size = len(covariance)
    regular = covariance + (ridge * covariance.diagonal().mean() + 1e-8) * torch.eye(size, dtype=covariance.dtype)
    return _inverse_root(regular)


def _inverse_root(regular: Tensor) -> Tensor:
    """The matrix W with W @ W.T = covariance⁻¹, of a regular covariance."""
    return torch.linalg.cholesky(torch.linalg.inv(regular))
