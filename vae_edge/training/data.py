"""Which classes look the same when turned or mirrored, read off the training images.

Where a class looks the same when turned, the orientation cannot be told; where it looks the same when mirrored,
mirrored images are images of that class as well.

Before the first step: what a run is fixed to, and which images it trains on, watches and holds out.

The images of a run, in memory on the training device, and which of them each step takes.

What one step sees: images chosen from the pools, changed at random, with what is known of their classes.

Every random number comes from the seed and the number of the step, for the whole batch; a process keeps its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.data import (
    Dataset,
    LabelledImages,
    check_no_leakage,
    check_trainable,
    count_duplicates,
    drop_duplicates_of,
    holdout,
    subsample_labels,
)
from vae_edge.data.augment import affine_augment
from vae_edge.data.splits import duplicates_of
from vae_edge.errors import ConfigError, DataError
from vae_edge.model import create_config
from vae_edge.model.network import POSE_NOISE_DEG
from vae_edge.preprocess import InputSpec, measure_input
from vae_edge.training.checkpoint import RunConfig
from vae_edge.training.config import TrainConfig
from vae_edge.training.distributed import share_of

REFERENCES, QUERIES = 4000, 150  # training images compared with; images of each class that are turned
AS_NEAR = 0.9  # share of upright images that count as near to their nearest neighbour
ALL_QUERIES = 2000  # and of all classes together
OWN, LEAST_OWN = 800, 10  # images of one class that its mirrored ones are compared with
ALIKE = 0.5  # share of turned images that must be as near, for a class to be ambiguous


def ambiguous_classes(data: LabelledImages, seed: int = 0) -> list[str]:
    """Names of classes most of whose images, turned by half a turn, pass for upright training images of some class.

    A turned image passes when its nearest neighbour (cosine, over shifts of one pixel) is as near as that of 90% of
    the class's own upright images. Images: uint8 [N, S, S, C], upright. Classes with fewer than 5 images are left out.
    """
    counts = np.bincount(data.labels, minlength=len(data.classes))
    order = np.random.default_rng(seed).permutation(len(data))
    queries = {
        name: order[data.labels[order] == k][: min(QUERIES, ALL_QUERIES // len(data.classes), counts[k] // 5)]
        for k, name in enumerate(data.classes)
    }
    used = np.concatenate(list(queries.values()))
    rest = order[~np.isin(order, used)][:REFERENCES]
    if len(rest) == 0:
        return []
    reference = _normalized(data.images[rest]).reshape(len(rest), -1)
    found = []
    for name, chosen in queries.items():
        if len(chosen) == 0:
            continue
        images = _normalized(data.images[chosen])
        upright, turned = _nearest(images, reference), _nearest(images[:, ::-1, ::-1], reference)
        if (turned >= np.quantile(upright, 1 - AS_NEAR)).mean() >= ALIKE:
            found.append(name)
    return found


def mirrored_alike(data: LabelledImages, seed: int = 0) -> dict[str, float]:
    """For each class the share of its images that pass for training images of that class when mirrored left to right.

    A mirrored image passes when its nearest neighbour among the other images of its class (cosine, over shifts of one
    pixel) is as near as that of 90% of the class's images as they are: 0.9 is what a mirror that changes nothing
    gives, less chance. Images: uint8 [N, S, S, C]. Classes with fewer than 10 images are left out.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    found = {}
    for label, name in enumerate(data.classes):
        own = order[data.labels[order] == label][:OWN]
        if len(own) < LEAST_OWN:
            continue
        reference = _normalized(data.images[own])
        images, rows = reference[:QUERIES], reference.reshape(len(own), -1)
        as_they_are = _nearest(images, rows, but_themselves=True)
        mirrored = _nearest(images[:, :, ::-1], rows, but_themselves=True)
        found[name] = round(float((mirrored >= np.quantile(as_they_are, 1 - AS_NEAR)).mean()), 3)
    return found


def _normalized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = images.astype(np.float32)
    return pixels / (np.linalg.norm(pixels.reshape(len(pixels), -1), axis=1)[:, None, None, None] + 1e-6)


def _nearest(
    images: NDArray[np.float32], reference: NDArray[np.float32], but_themselves: bool = False
) -> NDArray[np.float32]:
    """Cosine similarity of each image to its nearest reference, best over shifts of at most one pixel.

    `but_themselves`: the images are the first references, and none is compared with itself.
    """
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    best = np.full(len(images), -1, np.float32)
    for shift in shifts:
        similar = np.roll(images, shift, (1, 2)).reshape(len(images), -1) @ reference.T
        if but_themselves:
            np.fill_diagonal(similar, -1)
        best = np.maximum(best, similar.max(1))
    return best


LEAST_IMAGES = 16
WATCHED = 0.1  # share of the labelled training images that early stopping sets aside to watch
WATCH_SEED = 7919  # added to the run's, so that what is watched has nothing to do with what is held out


@dataclass(frozen=True)
class Material:
    """The images of a run. What is held out, and what is watched, is in none of the other parts."""

    labelled: LabelledImages
    unlabelled: NDArray[np.uint8]
    unlabelled_angles_deg: NDArray[np.float32] | None
    held: LabelledImages
    watched: LabelledImages | None


def sort_out(dataset: Dataset, training: TrainConfig) -> Material:
    """Hold out, take labels away where only some are wanted, add the images that came without, set aside to watch.

    Raises:
        DataError: if there is nothing to train on, too few images or labels, or a held-out image is trained on as well.
    """
    if dataset.train is None:
        raise DataError(f"{dataset.source} has no training half; give a data set with training images to train on")
    check_trainable(dataset.train)
    kept, held = holdout(dataset.train, training.holdout, training.seed)
    if len(kept) < LEAST_IMAGES:
        raise DataError(f"{len(kept)} images to train on (others are held out): at least {LEAST_IMAGES} are needed")
    watched = None
    if training.patience is not None:
        try:
            kept, watched = holdout(kept, WATCHED, training.seed + WATCH_SEED)
        except DataError as error:
            raise DataError(f"--patience sets one more image of each class aside, to watch: {error}") from error
    unlabelled, angles = kept.images[:0], None
    if training.labels_per_class is not None:
        few = subsample_labels(kept, training.labels_per_class, training.seed)
        kept, unlabelled, angles = few.labelled, few.unlabelled, few.unlabelled_angles_deg
    if dataset.unlabelled is not None:
        others = drop_duplicates_of(dataset.unlabelled, held.images)
        if dataset.test is not None:
            others = drop_duplicates_of(others, dataset.test.images)
        others = others if watched is None else drop_duplicates_of(others, watched.images)
        if angles is not None:  # images that came without labels came without angles as well: they count as upright
            angles = np.concatenate([angles, np.zeros(len(others), np.float32)])
        unlabelled = np.concatenate([unlabelled, others])
    if training.labels_only:
        unlabelled, angles = unlabelled[:0], None
    check_no_leakage(kept, held, unlabelled)
    return Material(kept, unlabelled, angles, held, watched)


def _input(dataset: Dataset, images: NDArray[np.uint8]) -> InputSpec:
    """What the model takes: measured on its images; how files become such images is as the data set was loaded."""
    spec, loaded = measure_input(images), dataset.input
    if loaded is None:
        return spec
    return replace(
        spec,
        fit=loaded.fit,
        foreground_ratio=spec.foreground_ratio if loaded.foreground_ratio is None else loaded.foreground_ratio,
        depth=loaded.depth,
    )


def plan(dataset: Dataset, preset: str, training: TrainConfig, **overrides: Any) -> RunConfig:
    """The configuration of a run on the training half of a data set.

    Raises:
        DataError: if there is nothing to train on.
        ConfigError: if the preset or an override is wrong.
    """
    material = sort_out(dataset, training)
    kept = material.labelled
    spec = _input(dataset, np.concatenate([kept.images, material.unlabelled]))
    pose = training.rotation != "none"
    model = create_config(
        preset,
        **{
            "classes": len(dataset.classes),
            "size": kept.images.shape[1],
            "channels": kept.images.shape[3],
            "pose": pose,
            "fill": spec.fill / 255,
            "window": pose and spec.background == "none",
            **overrides,
        },
    )
    upright = kept.angles_deg is None
    lone = [name for k, name in enumerate(kept.classes) if (kept.labels == k).sum() == 1]
    if training.generated and lone:
        raise ConfigError(
            f"generated {training.generated}: images are drawn between two of a class, "
            f"but there is one labelled training image of {', '.join(lone)}"
        )
    mirrored = mirrored_alike(kept, training.seed) if training.mirror else {}
    assert dataset.train is not None
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "trained_on": len(kept),
        "unlabelled": len(material.unlabelled),
        "watched": len(material.watched) if material.watched is not None else 0,
        "held_out": len(material.held),
        "copies": count_duplicates(dataset.train),
        "also_tested": 0 if dataset.test is None else int(duplicates_of(dataset.test.images, kept.images).sum()),
        "holdout_fraction": training.holdout,
        "seed": training.seed,
        "ambiguous": ambiguous_classes(kept) if model.pose and upright else [],
        "unlike_mirrored": [name for name, share in mirrored.items() if share < ALIKE],
        "absent": [name for k, name in enumerate(kept.classes) if not (kept.labels == k).any()],
    }
    return RunConfig(model, training, tuple(dataset.classes), spec, data)


LABELLED, UNLABELLED, GENERATED = 0, 1, 2  # streams of random orders, one for each pool


class Rows:
    """An endless row of random orders of `size` things, one after the other; any stretch of it can be asked for.

    The order of each pass comes from the seed, the stream and the number of the pass alone.
    """

    def __init__(self, size: int, seed: int, stream: int) -> None:
        self.size, self.seed, self.stream = size, seed, stream
        self._passes: dict[int, NDArray[np.int64]] = {}

    def take(self, first: int, count: int) -> Tensor:
        """int64 [count]: the places `first` to `first + count` of the row."""
        passes = range(first // self.size, (first + count - 1) // self.size + 1)
        self._passes = {number: self._passes.get(number, self._order(number)) for number in passes}
        joined = np.concatenate([self._passes[number] for number in passes])
        start = first - passes.start * self.size
        return torch.from_numpy(joined[start : start + count])

    def _order(self, number: int) -> NDArray[np.int64]:
        if number in self._passes:
            return self._passes[number]
        return np.random.default_rng([self.seed, self.stream, number]).permutation(self.size)


@dataclass
class Pool:
    """Images uint8 [N, S, S, C], labels int64 [N] (all 0 where there are none), known angles float32 [N] in radians."""

    images: Tensor
    labels: Tensor
    angles_rad: Tensor
    rows: Rows

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        angles_deg: NDArray[np.float32] | None,
        seed: int,
        stream: int,
        device: torch.device,
    ) -> Pool:
        """Arrays put on the device. Without angles the images are upright."""
        count = len(images)
        there = np.zeros(count, np.int64) if labels is None else labels
        angles = np.zeros(count, np.float32) if angles_deg is None else np.deg2rad(angles_deg)
        return cls(
            torch.from_numpy(np.ascontiguousarray(images)).to(device),
            torch.from_numpy(there).to(device),
            torch.from_numpy(angles.astype(np.float32)).to(device),
            Rows(count, seed, stream),
        )

    @classmethod
    def labelled(cls, data: LabelledImages, seed: int, stream: int, device: torch.device) -> Pool:
        """Labelled images put on the device."""
        return cls.of(data.images, data.labels, data.angles_deg, seed, stream, device)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def take(self, step: int, count: int, mine: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and angles of one process's share of the `count` images of a step."""
        chosen = self.rows.take(step * count, count)[mine].to(self.images.device)
        return self.images[chosen], self.labels[chosen], self.angles_rad[chosen]


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
            pixels, generator, **changes, mirror=settings.mirror, fill=fill, base_angle_rad=known, shard=place
        )
        if name == "unlabelled":
            gentle = changes["rotation_deg"] * (0.5 if settings.rotation == "none" else 1.0)
            seen, _ = affine_augment(pixels, generator, gentle, fill=fill, shard=place)
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


def floats(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


def to_floats(images: NDArray[np.uint8]) -> torch.Tensor:
    """As `floats`, of an array."""
    return floats(torch.from_numpy(np.ascontiguousarray(images)))
