"""The data of a run: its splits, its run config, the images in memory, and the batch of each step.

Every random number comes from the seed and the step, for the full batch; a process keeps its shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
from vae_edge.data.groups import MAX_NAMED, rule_to_store
from vae_edge.data.images import ImageView, as_view, concatenate, select
from vae_edge.data.splits import duplicates_of, own_validation
from vae_edge.errors import ConfigError, DataError
from vae_edge.model import create_config
from vae_edge.model.network import ANGLE_NOISE_DEG
from vae_edge.preprocess import InputSpec, measure_input
from vae_edge.progress import phase
from vae_edge.spec import as_size
from vae_edge.training.augment import Augmentation, augment
from vae_edge.training.config import RunConfig, TrainConfig, TrainingData
from vae_edge.training.distributed import shard_slice
from vae_edge.training.head import choose_head

MIN_IMAGES = 16
MAX_GROUPS_STORED = 100  # names of held-out groups that a run keeps
VAL_FRACTION = 0.1  # of the labelled training images: validation images of early stopping
VAL_SEED = 7919  # added to the run's seed, so that the validation split does not depend on the held-out one


@dataclass(frozen=True)
class DataSplits:
    """The images of a run. No image is in two of these, but for `val` where the data set brings a validation split.

    Attributes:
        train: labelled training images.
        unlabelled: training images without labels, uint8 [N, S, S, C].
        unlabelled_angles_deg: their angles [N]; None: upright.
        held_out: images that set temperature and thresholds, and that the run's figures are measured on.
        val: validation images of early stopping; None without early stopping. With a validation split of the data
            set's own these are the held-out images.
    """

    train: LabelledImages
    unlabelled: NDArray[np.uint8]
    unlabelled_angles_deg: NDArray[np.float32] | None
    held_out: LabelledImages
    val: LabelledImages | None


def make_splits(dataset: Dataset, settings: TrainConfig) -> DataSplits:
    """Split the training images into labelled train, unlabelled train, held-out and validation images.

    Raises:
        DataError: if there is nothing to train on, too few images or labels, or a held-out image is trained on.
    """
    if dataset.train is None:
        raise DataError(f"{dataset.source} has no training half; give a data set with training images to train on")
    check_trainable(dataset.train)
    if dataset.validation is not None:
        train, held_out = dataset.train, own_validation(dataset)
    else:
        train, held_out = holdout(dataset.train, settings.holdout, settings.seed)
    if len(train) < MIN_IMAGES:
        raise DataError(f"{len(train)} images to train on (others are held out): at least {MIN_IMAGES} are needed")

    val = held_out if settings.patience is not None and dataset.validation is not None else None
    if settings.patience is not None and val is None:
        try:
            train, val = holdout(train, VAL_FRACTION, settings.seed + VAL_SEED)
        except DataError as error:
            one = "image of each class" if train.groups is None else "group"
            raise DataError(f"--patience takes one more {one} for validation: {error}") from error

    unlabelled, angles = select(train.images, slice(0)), None
    if settings.labels_per_class is not None:
        few = subsample_labels(train, settings.labels_per_class, settings.seed)
        train, unlabelled, angles = few.labelled, few.unlabelled, few.unlabelled_angles_deg
    if dataset.unlabelled is not None:
        others = drop_duplicates_of(dataset.unlabelled, held_out.images)
        if dataset.test is not None:
            others = drop_duplicates_of(others, dataset.test.images)
        if val is not None:
            others = drop_duplicates_of(others, val.images)
        if angles is not None:  # images that came without labels came without angles as well: they count as upright
            angles = np.concatenate([angles, np.zeros(len(others), np.float32)])
        unlabelled = concatenate([unlabelled, others])
    if settings.labels_only:
        unlabelled, angles = select(unlabelled, slice(0)), None

    check_no_leakage(train, held_out, unlabelled)
    return DataSplits(train, unlabelled, angles, held_out, val)


def make_run_config(
    dataset: Dataset, splits: DataSplits, preset: str, settings: TrainConfig, **overrides: Any
) -> RunConfig:
    """Fix the configuration of a run.

    Images without a background in common get the head that classifies them better (`vae_edge.training.head`). What is
    always upright and in colour gets a second classifier beside that of the code.

    Args:
        dataset: the data set.
        splits: of `make_splits(dataset, settings)`.
        preset: of the network.
        settings: of training.
        overrides: fields of `ModelConfig` that shall differ from the preset.

    Raises:
        ConfigError: if the preset or an override is wrong.
    """
    train = splits.train
    spec = _input_spec(dataset, concatenate([train.images, splits.unlabelled]))
    orientation = settings.rotation != "none"
    shape = {
        "classes": len(dataset.classes),
        "size": as_size(*train.images.shape[1:3]),
        "channels": train.images.shape[3],
        "orientation": orientation,
        "fill": spec.fill / 255,
        "circular_mask": orientation and spec.background == "none",
        "head": "code",
    }
    if overrides.get("backbone") is not None:
        shape["head"] = "pooled"
    elif spec.background == "none" and "head" not in overrides:
        with phase("measuring which head suits the images"):
            shape["head"] = choose_head(train, spec.fill / 255, settings.seed)
    if shape["head"] == "code" and not orientation and shape["channels"] == 3:
        shape["head"] = "code+pooled"
    model = create_config(preset, **{**shape, **overrides})
    if settings.synthetic_ratio and np.bincount(train.labels).max() < 2:
        raise ConfigError(
            f"synthetic_ratio {settings.synthetic_ratio}: images are generated between two of a class, but no class "
            "has two labelled training images"
        )
    mirrored = flip_invariance(train, settings.seed) if settings.mirror else {}
    assert dataset.train is not None
    groups = () if dataset.train.groups is None else tuple(sorted(set(dataset.train.groups.tolist())))
    held_out_groups = () if splits.held_out.groups is None else tuple(sorted(set(splits.held_out.groups.tolist())))
    data = TrainingData(
        name=dataset.name,
        fingerprint=dataset.fingerprint(),
        trained_on=len(train),
        unlabelled=len(splits.unlabelled),
        val=len(splits.val) if splits.val is not None else 0,
        held_out=len(splits.held_out),
        duplicates=count_duplicates(dataset.train),
        in_test=0 if dataset.test is None else int(duplicates_of(dataset.test.images, train.images).sum()),
        holdout_fraction=settings.holdout,
        seed=settings.seed,
        ambiguous=(),
        unlike_mirrored=tuple(name for name, fraction in mirrored.items() if fraction < MIN_ALIKE),
        absent=tuple(name for k, name in enumerate(train.classes) if not (train.labels == k).any()),
        own_validation=dataset.validation is not None,
        group_by=rule_to_store(settings.group_by),
        groups=len(groups),
        held_out_groups=len(held_out_groups),
        held_out_group_names=held_out_groups[:MAX_GROUPS_STORED],
    )
    return RunConfig(model, settings, tuple(dataset.classes), spec, data)


def _input_spec(dataset: Dataset, images: NDArray[np.uint8]) -> InputSpec:
    """The model's input, measured on its images. How files become such images is as the data set was loaded."""
    spec, loaded = measure_input(images), dataset.input
    if loaded is None:
        return spec
    return replace(
        spec,
        fit=loaded.fit,
        foreground_ratio=spec.foreground_ratio if loaded.foreground_ratio is None else loaded.foreground_ratio,
        depth=loaded.depth,
        alpha_background=loaded.alpha_background,
    )


LABELLED, UNLABELLED, GENERATED = 0, 1, 2  # streams of the samplers, one for each in-memory data set


class InfiniteShuffleSampler:
    """Concatenated random permutations of range(size), addressable by position.

    A permutation depends on the seed, the stream and its number alone.
    """

    def __init__(self, size: int, seed: int, stream: int) -> None:
        self.size, self.seed, self.stream = size, seed, stream
        self._cache: dict[int, NDArray[np.int64]] = {}

    def take(self, first: int, count: int) -> Tensor:
        """int64 [count]: positions `first` to `first + count`."""
        passes = range(first // self.size, (first + count - 1) // self.size + 1)
        self._cache = {number: self._permutation(number) for number in passes}
        joined = np.concatenate([self._cache[number] for number in passes])
        start = first - passes.start * self.size
        return torch.from_numpy(joined[start : start + count])

    def _permutation(self, number: int) -> NDArray[np.int64]:
        if number in self._cache:
            return self._cache[number]
        return np.random.default_rng([self.seed, self.stream, number]).permutation(self.size)


@dataclass
class InMemoryDataset:
    """Images on the training device, or in a file, and the sampler that picks each step's.

    Attributes:
        images: uint8 [N, S, S, C]; a view of a file is read batch by batch.
        labels: int64 [N], all 0 for unlabelled images.
        angles_rad: known angles float32 [N].
        sampler: of the images' indices.
        class_weights: what a label of each class counts in the loss, float32 [K]; None: all the same.
    """

    images: Tensor | ImageView
    labels: Tensor
    angles_rad: Tensor
    sampler: InfiniteShuffleSampler
    class_weights: Tensor | None = None

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        angles_deg: NDArray[np.float32] | None,
        seed: int,
        stream: int,
        device: torch.device,
        class_balance: float = 0.0,
    ) -> InMemoryDataset:
        """Put arrays on the device. Without angles the images are upright. `class_balance` is of `TrainConfig`."""
        count = len(images)
        known_labels = np.zeros(count, np.int64) if labels is None else labels
        angles = np.zeros(count, np.float32) if angles_deg is None else np.deg2rad(angles_deg)
        view = as_view(images)
        return cls(
            torch.from_numpy(np.ascontiguousarray(images)).to(device) if view is None else view,
            torch.from_numpy(known_labels).to(device),
            torch.from_numpy(angles.astype(np.float32)).to(device),
            InfiniteShuffleSampler(count, seed, stream),
            balanced_weights(labels, class_balance).to(device) if labels is not None and class_balance else None,
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def get_batch(self, step: int, size: int, local: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and angles of one process's part, `local`, of the `size` images of a step."""
        chosen = self.sampler.take(step * size, size)[local]
        device = self.labels.device
        if isinstance(self.images, ImageView):
            images = torch.from_numpy(self.images[chosen.numpy()]).to(device)
        else:
            images = self.images[chosen.to(device)]
        return images, self.labels[chosen.to(device)], self.angles_rad[chosen.to(device)]


def balanced_weights(labels: NDArray[np.int64], balance: float) -> Tensor:
    """What a label of each class counts, float32 [K]: in proportion to its images' number to the power of -balance.

    The mean over the labels is 1.
    """
    counts = np.maximum(np.bincount(labels), 1).astype(np.float64)
    weights = counts**-balance
    return torch.from_numpy((weights / weights[labels].mean()).astype(np.float32))


MIN_LABELLED_FRACTION = 0.25  # of a batch that has unlabelled images too


@dataclass(frozen=True)
class BatchComposition:
    """Images of each kind in a step's batch, over all processes."""

    labelled: int
    unlabelled: int = 0
    generated: int = 0

    @property
    def total(self) -> int:
        """Images a step."""
        return self.labelled + self.unlabelled + self.generated


def compose_batch(
    batch: int, labelled_images: int, unlabelled_images: int, synthetic_ratio: float, processes: int
) -> BatchComposition:
    """Divide a batch in proportion to the labelled and unlabelled images, at least a quarter of it labelled.

    `synthetic_ratio` of the labelled part is generated images.

    Raises:
        ConfigError: if the batch is too small for one image of each kind on every process.
    """
    unlabelled = unlabelled_images > 0
    fraction = max(MIN_LABELLED_FRACTION, labelled_images / (labelled_images + unlabelled_images))
    most = batch - processes if unlabelled else batch
    labelled = min(most, round(batch * fraction / processes) * processes)
    generated = round(labelled * synthetic_ratio / processes) * processes
    composition = BatchComposition(labelled - generated, batch - labelled, generated)

    required = [composition.labelled]
    required += [composition.unlabelled] if unlabelled else []
    required += [composition.generated] if synthetic_ratio else []
    if min(required) < 1 or any(count % processes for count in required):
        raise ConfigError(
            f"a batch of {batch} images, {composition.labelled} of them labelled, {composition.unlabelled} unlabelled "
            f"and {composition.generated} generated, does not give each of {processes} processes one of each kind and "
            "as many as the others: give another --batch, a multiple of the processes"
        )
    return composition


@dataclass(frozen=True)
class Batch:
    """One process's shard of a step's batch. The unlabelled images are the last ones.

    Attributes:
        images: float [N, C, S, S], rotated by `angles_rad`.
        labels: classes int64 [N].
        angles_rad: true angles float [N].
        class_weights: the decoder's class weights [N, K].
        sample_weight: weight of each label in the loss [N]; None: 1 each.
        angle_noise: noise added to the predicted angle [N], radians.
        segments: (length, offset in the full batch) of consecutive rows.
        unlabelled: number of images whose label is a pseudo-label.
    """

    images: Tensor
    labels: Tensor
    angles_rad: Tensor
    class_weights: Tensor
    sample_weight: Tensor | None
    angle_noise: Tensor
    segments: tuple[tuple[int, int], ...]
    unlabelled: int


def build_batch(
    datasets: Mapping[str, InMemoryDataset],
    composition: BatchComposition,
    step: int,
    config: RunConfig,
    ramp: float,
    rank: int,
    processes: int,
    classify: Callable[[Tensor], Tensor],
) -> Batch:
    """Build one process's shard of the batch of a step.

    Args:
        datasets: `labelled`; `unlabelled` and `generated` where the composition has some.
        composition: of the full batch.
        step: number of the step.
        config: of the run.
        ramp: weight of the pseudo-labels at this step, from 0 to 1.
        rank: of this process.
        processes: number of processes.
        classify: images [N, C, S, S] to probabilities [N, K], for pseudo-labels.
    """
    settings, fill = config.training, config.model.fill
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    augmentation = settings.augmentation(
        config.data.trained_on, config.data.unlabelled, config.input.background, config.model.channels
    )
    noise = torch.randn(composition.total, generator=generator) * math.radians(ANGLE_NOISE_DEG)
    certain = composition.labelled + composition.generated
    counts = {
        "labelled": composition.labelled,
        "generated": composition.generated,
        "unlabelled": composition.unlabelled,
    }

    balance = datasets["labelled"].class_weights
    columns: list[tuple[Tensor, ...]] = []
    segments: list[tuple[int, int]] = []
    row = 0  # of the full batch
    for kind, count in counts.items():
        if not count:
            continue
        local = shard_slice(count, rank, processes)
        chosen, labels, known = datasets[kind].get_batch(step, count, local)
        pixels, shard = to_float(chosen), (local.start, count)
        images, angles = augment(pixels, augmentation, generator, fill=fill, base_angle_rad=known, shard=shard)
        if kind == "unlabelled":  # FixMatch: the label of a weakly augmented view, where it is confident
            weak_deg = augmentation.rotation_deg * (0.5 if settings.rotation == "none" else 1.0)
            weak, _ = augment(pixels, Augmentation(rotation_deg=weak_deg), generator, fill=fill, shard=shard)
            class_weights = classify(weak)
            confidence, labels = class_weights.max(1)
            accepted = (confidence >= settings.pseudo_label_threshold).float()
            # the loss is a mean over the full batch, of which these are only some
            weight = settings.pseudo_label_weight * ramp * composition.total / composition.unlabelled
            sample_weight = accepted * weight
        else:
            class_weights = F.one_hot(labels, config.model.classes).float()
            sample_weight = torch.full_like(class_weights[:, 0], composition.total / certain)
            if balance is not None:
                sample_weight = sample_weight * balance[labels]
        local_noise = noise[row + local.start : row + local.stop].to(images)
        columns.append((images, labels, angles, class_weights, sample_weight, local_noise))
        segments.append((len(labels), row + local.start))
        row += count

    images, labels, angles, class_weights, sample_weight, angle_noise = (
        torch.cat(column) for column in zip(*columns, strict=True)
    )
    return Batch(
        images=images,
        labels=labels,
        angles_rad=angles,
        class_weights=class_weights,
        sample_weight=sample_weight if composition.unlabelled or balance is not None else None,
        angle_noise=angle_noise,
        segments=tuple(segments),
        unlabelled=segments[-1][0] if composition.unlabelled else 0,
    )


def to_float(images: Tensor | NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
    return tensor.permute(0, 3, 1, 2).float().div_(255.0)


N_QUERIES = 150  # mirrored images of each class
N_OWN, MIN_OWN = 800, 10  # images of one class that its mirrored ones are compared with
NEAR_FRACTION = 0.9  # of upright images count as near to their nearest neighbour
MAX_COMPARED_PX = 28  # a side of the images that are compared; larger ones would take minutes and tell no more
MIN_ALIKE = 0.5  # fraction of changed images that must be as near, for the class to look the same


def flip_invariance(data: LabelledImages, seed: int = 0) -> dict[str, float]:
    """For each class, the fraction of its images that still look like the class when mirrored left to right.

    A mirrored image must have a nearest neighbour among the other images of its class (cosine, over shifts of one
    pixel) as near as 90% of the class's images have. So 0.9 is the most to expect. Classes with fewer than 10 images
    are left out.

    Args:
        data: images uint8 [N, S, S, C].
        seed: which images are compared.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    found = {}
    for label, name in enumerate(data.classes):
        own = order[data.labels[order] == label][:N_OWN]
        if len(own) < MIN_OWN:
            continue
        reference = _unit_norm(data.images[own])
        images, rows = reference[:N_QUERIES], reference.reshape(len(own), -1)
        original = _nearest(images, rows, exclude_self=True)
        mirrored = _nearest(images[:, :, ::-1], rows, exclude_self=True)
        found[name] = round(float((mirrored >= np.quantile(original, 1 - NEAR_FRACTION)).mean()), 3)
    return found


def _unit_norm(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [N, H, W, C] as vectors of length 1 [N, h, w, C]; those beyond 28 pixels as means of square blocks."""
    count, height, width, channels = images.shape
    block = -(-max(height, width) // MAX_COMPARED_PX)
    if block == 1:
        pixels = images.astype(np.float32)
    else:
        rows, columns = height // block, width // block
        top, left = height % block // 2, width % block // 2
        kept = images[:, top : top + rows * block, left : left + columns * block]
        pixels = kept.reshape(count, rows, block, columns, block, channels).mean((2, 4), dtype=np.float32)
    return pixels / (np.linalg.norm(pixels.reshape(count, -1), axis=1)[:, None, None, None] + 1e-6)


def _nearest(
    images: NDArray[np.float32], reference: NDArray[np.float32], exclude_self: bool = False
) -> NDArray[np.float32]:
    """Cosine similarity of each image to its nearest reference, the best over shifts of at most one pixel.

    With `exclude_self` the images are the first references, and none is compared with itself.
    """
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    best = np.full(len(images), -1, np.float32)
    for shift in shifts:
        similar = np.roll(images, shift, (1, 2)).reshape(len(images), -1) @ reference.T
        if exclude_self:
            np.fill_diagonal(similar, -1)
        best = np.maximum(best, similar.max(1))
    return best


def describe_run(dataset: Dataset, config: RunConfig) -> Iterator[str]:
    """What is about to be trained, and what of the data a user should know."""
    data, training = config.data, config.training
    shown = data.trained_on + data.unlabelled
    network = config.model.preset if config.model.backbone is None else config.model.backbone
    yield (
        f"training {network} on {data.trained_on} images of {dataset.name} ({data.held_out} held "
        f"out), {len(config.classes)} classes, rotation {training.rotation}, {training.epochs_for(shown)} epochs"
    )
    yield from dataset.notes
    if data.own_validation:
        yield (
            f"the {data.held_out} images of the validation split set early stopping, temperature and threshold; none "
            "of the train split is held out"
        )
    elif data.groups:
        names = ", ".join(data.held_out_group_names[:MAX_NAMED])
        more = ", …" if data.held_out_groups > MAX_NAMED else ""
        yield f"held out: {data.held_out_groups} of {data.groups} groups ({names}{more}), {data.held_out} images"
    if data.unlabelled:
        yield f"{data.unlabelled} images without labels are learnt from as well"
    if data.unlike_mirrored:
        names = ", ".join(data.unlike_mirrored)
        yield f"--mirror: mirrored images of {names} look like none of their class; is mirroring right there?"
    if data.duplicates:
        yield f"{data.duplicates} images are exact duplicates; the duplicates of an image are all in one split"
    if data.in_test:
        yield f"{data.in_test} images of the test split are training images too: figures on it are too good"
    if config.input.background == "none" and config.model.backbone is None:
        told = "what is in them, wherever it is" if config.model.pooled else "what is where in the frame"
        yield f"the images have no even background: the classifier goes by {told} (head {config.model.head})"
    if config.model.circular_mask:
        yield "the images have no even background: pixels outside the inscribed circle are set to 0"
