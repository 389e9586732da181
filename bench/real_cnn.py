"""The rival on real pictures: a plain CNN of 170,000 weights, as one writes it in thirty lines of PyTorch.

It sees the same batches, augmented by the same function, for as many processor seconds as our model trained.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vae_edge.errors import DataError
from vae_edge.training.checkpoint import RunConfig
from vae_edge.training.config import warmup_cosine_lr
from vae_edge.training.data import LABELLED, DataSplits, InMemoryDataset, build_batch, compose_batch, to_float
from vae_edge.training.trainer import Progress, fast_bf16

WIDTHS = (24, 48, 96, 128)
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 4e-3, 0.02, 0.15
PREDICT_BATCH = 250
SHRINKAGE = 1e-3  # of the features' covariance towards its mean variance


class PlainCNN(nn.Module):
    """Four blocks of convolution, normalization, ReLU and pooling, the mean over all places, and a linear layer."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths), widths, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to features [N, widths[-1]]."""
        return self.blocks(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W], 0 to 1, to logits [N, K]."""
        return self.classifier(self.features(images))


def widths_for(parameters: int, channels: int, classes: int) -> tuple[int, ...]:
    """`WIDTHS` times the factor that brings the network closest to a number of parameters, in multiples of 4."""

    def scaled(factor: int) -> tuple[int, ...]:
        return tuple(max(4, round(width * factor / 32 / 4) * 4) for width in WIDTHS)

    def distance(factor: int) -> int:
        network = PlainCNN(channels, classes, scaled(factor))
        return abs(sum(parameter.numel() for parameter in network.parameters()) - parameters)

    return scaled(min(range(4, 161), key=distance))


def train_cnn(
    splits: DataSplits,
    config: RunConfig,
    seconds: float,
    progress: Progress | None = None,
    widths: tuple[int, ...] = WIDTHS,
) -> tuple[PlainCNN, int]:
    """Train with AdamW on a one-cycle learning rate until the processor seconds are over.

    Args:
        splits, config: of our run: its training images, batches and augmentation are taken.
        seconds: of all threads of this process.
        progress: called after each step with (milliseconds, milliseconds in all, {"total": loss}).
        widths: output channels of the blocks.

    Returns:
        the network in evaluation mode, and the number of steps.
    """
    settings = config.training
    torch.manual_seed(settings.seed)
    network = PlainCNN(config.model.channels, config.model.classes, widths).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    train, bf16 = splits.train, settings.bf16 if settings.bf16 is not None else fast_bf16()
    images = InMemoryDataset.from_arrays(
        *(train.images, train.labels, train.angles_deg, settings.seed, LABELLED, torch.device("cpu"))
    )
    composition = compose_batch(settings.batch_for(len(train)), len(train), 0, 0.0, 1)

    network.train()
    began, step, elapsed = time.process_time(), 0, 0.0
    while elapsed < seconds:
        batch = build_batch({"labelled": images}, composition, step, config, 0.0, 0, 1, network)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(batch.images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), batch.labels)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(round(1e3 * elapsed), round(1e3 * seconds), LEARNING_RATE, WARMUP)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step, elapsed = step + 1, time.process_time() - began
        if progress is not None:
            progress(round(1e3 * elapsed), round(1e3 * seconds), {"total": float(loss.detach())})
    return network.eval(), step


@torch.no_grad()
def outputs_of(network: PlainCNN, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits [N, K] and features [N, D] of images uint8 [N, H, W, C]."""
    features = [network.features(to_float(images[i : i + PREDICT_BATCH])) for i in range(0, len(images), PREDICT_BATCH)]
    joined = torch.cat(features)
    return network.classifier(joined).double().numpy(), joined.double().numpy()


class Mahalanobis:
    """Distance of features to the nearest class mean, in a covariance that all classes share (Lee et al. 2018).

    Raises:
        DataError: a class has no image.
    """

    def __init__(self, features: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> None:
        if len(np.unique(labels)) < classes:
            raise DataError(f"{classes} classes have a mean each, but only {len(np.unique(labels))} have images.")
        self.means = np.stack([features[labels == k].mean(0) for k in range(classes)])
        centred = features - self.means[labels]
        covariance = centred.T @ centred / len(features)
        variance = float(np.trace(covariance)) / len(covariance)
        self.precision = np.linalg.inv(covariance + SHRINKAGE * variance * np.eye(len(covariance)))

    def scores(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared distances [N] of features [N, D]."""
        offsets = features[:, None] - self.means[None]
        distances: NDArray[Any] = np.einsum("nkf,fg,nkg->nk", offsets, self.precision, offsets, optimize=True)
        return distances.min(1)
