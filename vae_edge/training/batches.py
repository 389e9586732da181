"""What one step sees: images chosen from the pools, changed at random, with what is known of their classes.

Every random number comes from the seed and the number of the step, for the whole batch; a process keeps its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.data.augment import affine_augment
from vae_edge.errors import ConfigError
from vae_edge.model.network import POSE_NOISE_DEG
from vae_edge.training.checkpoint import RunConfig
from vae_edge.training.parallel import share_of
from vae_edge.training.pools import Pool
from vae_edge.training.predict import floats

LABELLED_SHARE = 0.25  # of a batch at least, where images without labels are trained on beside labelled ones
RAMP = 0.1  # share of the steps over which pseudo-labels come to their full weight

Classify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images float [N, C, S, S] turned by `angles_rad` [N]; classes [N]; the weight [N] that each label has.

    `class_weights` [N, K] is what the decoder is told; `error_rad` [N] is added to the angle found. `stretches` are
    (images, row in the whole batch) of the parts that follow each other in the batch of all processes.
    """

    images: Tensor
    labels: Tensor
    angles_rad: Tensor
    class_weights: Tensor
    trust: Tensor | None
    error_rad: Tensor
    stretches: tuple[tuple[int, int], ...]
    unlabelled: int  # how many of the images, the last ones, have a guess of the averaged model for their class


@dataclass(frozen=True)
class Mixture:
    """How many images of each kind a step takes, over all processes."""

    labelled: int
    unlabelled: int = 0
    generated: int = 0

    @property
    def total(self) -> int:
        """Images a step."""
        return self.labelled + self.unlabelled + self.generated


def mix(batch: int, labelled_images: int, unlabelled_images: int, generated: float, processes: int) -> Mixture:
    """Share a batch out: labelled and unlabelled as many as there are of each, but a quarter at least labelled.

    Of the labelled, a share is generated.

    Raises:
        ConfigError: if the batch is too small to have one of each kind on every process.
    """
    unlabelled = unlabelled_images > 0
    share = max(LABELLED_SHARE, labelled_images / (labelled_images + unlabelled_images))
    most = batch - processes if unlabelled else batch
    labelled = min(most, round(batch * share / processes) * processes)
    drawn = round(labelled * generated / processes) * processes
    mixture = Mixture(labelled - drawn, batch - labelled, drawn)
    wanted = [mixture.labelled] + [mixture.unlabelled] * unlabelled + [mixture.generated] * bool(generated)
    if min(wanted) < 1 or any(count % processes for count in wanted):
        raise ConfigError(
            f"a batch of {batch} images, {mixture.labelled} of them labelled, {mixture.unlabelled} unlabelled and "
            f"{mixture.generated} generated, does not give each of {processes} processes one of each kind and as many "
            "as the others: give another --batch, a multiple of the processes"
        )
    return mixture


def draw_batch(
    pools: dict[str, Pool],
    mixture: Mixture,
    step: int,
    config: RunConfig,
    ramp: float,
    rank: int,
    processes: int,
    classify: Classify,
) -> Batch:
    """One process's share of the batch of a step.

    Args:
        pools: `labelled`, and `unlabelled` and `generated` where the mixture has some.
        ramp: from 0 to 1, how much pseudo-labels count by now.
        classify: images [N, C, S, S] to probabilities [N, K], for pseudo-labels.
    """
    settings, fill = config.training, config.model.fill
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    changes = settings.augmentation(config.data["trained_on"], config.data["unlabelled"])
    error = torch.randn(mixture.total, generator=generator) * math.radians(POSE_NOISE_DEG)
    certain = mixture.labelled + mixture.generated
    parts: list[tuple[Tensor, ...]] = []
    stretches: list[tuple[int, int]] = []
    row = 0
    for name, count in (
        ("labelled", mixture.labelled),
        ("generated", mixture.generated),
        ("unlabelled", mixture.unlabelled),
    ):
        if not count:
            continue
        mine = share_of(count, rank, processes)
        chosen, labels, known = pools[name].take(step, count, mine)
        pixels, place = floats(chosen), (mine.start, count)
        images, angles = affine_augment(
            pixels, generator, **changes, mirror=settings.mirror, fill=fill, known_rad=known, part=place
        )
        if name == "unlabelled":
            gentle = changes["rotation_deg"] * (0.5 if settings.rotation == "none" else 1.0)
            seen, _ = affine_augment(pixels, generator, gentle, fill=fill, part=place)
            weights = classify(seen)
            sure, labels = weights.max(1)
            believed = (sure >= settings.confidence).float()
            trust = believed * (settings.unlabelled * ramp * mixture.total / mixture.unlabelled)
        else:
            weights = F.one_hot(labels, config.model.classes).float()
            trust = torch.full_like(weights[:, 0], mixture.total / certain)
        parts.append((images, labels, angles, weights, trust, error[row + mine.start : row + mine.stop].to(images)))
        stretches.append((len(labels), row + mine.start))
        row += count
    unlabelled = stretches[-1][0] if mixture.unlabelled else 0
    images, labels, angles, weights, trust, error = (torch.cat(column) for column in zip(*parts, strict=True))
    return Batch(
        images, labels, angles, weights, trust if mixture.unlabelled else None, error, tuple(stretches), unlabelled
    )
