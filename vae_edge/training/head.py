"""Which head classifies a data set's images better: one that knows places, or one that pools (`ModelConfig.head`).

A character photographed on any ground is told by what is where in the frame; a material or a landscape by what is
there at all, wherever. Both may have backgrounds that vary, so the background does not tell. What tells is how much a
linear classifier gains from places: features of random patches of the images (Coates, Lee and Ng, "An analysis of
single-layer networks in unsupervised feature learning", 2011) are pooled over the whole image, and over the cells of a
grid, and both classify images that they were not fitted on. It takes seconds.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.data import LabelledImages
from vae_edge.ops.rotate import rotate

PROBED_IMAGES, MIN_PROBED_IMAGES = 2000, 200
FITTED = 0.75  # fraction of them that the linear classifiers are fitted on
SHORTER_SIDE = 32  # pixels that the images are reduced to
PATCH, PATCHES, FILTERS = 6, 5000, 64  # side of a patch; patches that are whitened; those that become filters
GRIDS = (2, 4)
CONTRAST = 10 / 255  # a patch's contrast below this counts as none
WHITENING = 0.1  # added to the eigenvalues of the patches' covariance
THRESHOLD = 0.5  # of a filter's response, below which it is 0
RIDGES = (0.01, 0.1, 1.0, 10.0)  # for each feature; the best counts
MIN_RATIO = 0.95  # accuracy without places relative to that with places, from which on they are not needed
BATCH = 100


def choose_head(train: LabelledImages, fill: float, seed: int) -> str:
    """`pooled` where features pooled over the whole image classify about as well as those of a grid's cells.

    Args:
        train: labelled training images. Of fewer than 200 nothing can be said: `pooled`, which has fewer weights.
        fill: the pixel value outside the frame of a rotated image, 0 to 1.
        seed: of the images and patches that are drawn.
    """
    if len(train) < MIN_PROBED_IMAGES:
        return "pooled"
    pooled, placed = probe_accuracies(train, fill, seed)
    return "pooled" if pooled >= MIN_RATIO * placed else "code"


def probe_accuracies(train: LabelledImages, fill: float, seed: int) -> tuple[float, float]:
    """Accuracy, 0 to 1, of linear classifiers without places and with places, on images that they did not see."""
    draw = np.random.default_rng(seed)
    chosen = train.take(draw.permutation(len(train))[:PROBED_IMAGES]).in_memory()
    images = torch.from_numpy(chosen.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(chosen.labels).long()
    if chosen.angles_deg is not None:
        angle = torch.from_numpy(np.radians(chosen.angles_deg)).float()
        images = rotate(images, angle.cos(), -angle.sin(), fill)
    scale = SHORTER_SIDE / min(images.shape[2:])
    if scale < 1:
        height, width = (max(SHORTER_SIDE, round(scale * side)) for side in images.shape[2:])
        images = F.interpolate(images, size=(height, width), mode="area")

    filters = _patch_filters(images, draw)
    fitted = round(FITTED * len(images))

    def accuracy(grid: int) -> float:
        features = torch.cat([_features(part, filters, grid) for part in images.split(BATCH)])
        return _linear_accuracy(features, labels, fitted, len(train.classes))

    return accuracy(1), max(accuracy(grid) for grid in GRIDS)


def _patch_filters(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Random patches of images [N, C, H, W], whitened, as filters [F, C, PATCH, PATCH]."""
    patches = F.unfold(images[: 4 * BATCH], PATCH, stride=PATCH // 2).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(1, keepdim=True)
    variance = patches.pow(2).mean(1)
    contrasty = torch.nonzero(variance > CONTRAST**2)[:, 0]
    if len(contrasty) == 0:  # even images: all patches are alike, whatever is taken
        contrasty = torch.arange(len(patches))
    contrasty = contrasty[torch.from_numpy(draw.permutation(len(contrasty))[:PATCHES])]
    patches = patches[contrasty] / (variance[contrasty, None] + CONTRAST**2).sqrt()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    whitening = vectors @ torch.diag((values.clamp_min(0) + WHITENING).rsqrt()) @ vectors.T
    filters = F.normalize(patches[:FILTERS] @ whitening, dim=1) @ whitening
    filters = filters - filters.mean(1, keepdim=True)  # so that a patch's mean need not be subtracted
    return filters.reshape(-1, images.shape[1], PATCH, PATCH)


def _features(images: Tensor, filters: Tensor, grid: int) -> Tensor:
    """Images [N, C, H, W] to features [N, 2 · F · grid²]: the filters' responses of either sign, pooled."""
    ones = torch.full((1, *filters.shape[1:]), 1 / filters[0].numel())
    mean, square = F.conv2d(images, ones), F.conv2d(images * images, ones)
    responses = F.conv2d(images, filters) / ((square - mean * mean).clamp_min(0) + CONTRAST**2).sqrt()
    signed = torch.cat([F.relu(responses - THRESHOLD), F.relu(-responses - THRESHOLD)], 1)
    return F.adaptive_avg_pool2d(signed, grid).flatten(1)


def _linear_accuracy(features: Tensor, labels: Tensor, fitted: int, classes: int) -> float:
    """Accuracy on the images after the first `fitted` of ridge regression on these, with the best of the ridges."""
    fit = features[:fitted]
    scaled = ((features - fit.mean(0)) / (fit.std(0) + 1e-4)).double()
    scaled = torch.cat([scaled, torch.ones(len(scaled), 1, dtype=torch.float64)], 1)
    targets = F.one_hot(labels[:fitted], classes).double() * 2 - 1
    gram, products = scaled[:fitted].T @ scaled[:fitted], scaled[:fitted].T @ targets
    best = 0.0
    for ridge in RIDGES:
        weights = torch.linalg.solve(gram + ridge * features.shape[1] * torch.eye(len(gram)).double(), products)
        right = (scaled[fitted:] @ weights).argmax(1) == labels[fitted:]
        best = max(best, float(right.double().mean()))
    return best
