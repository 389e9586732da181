"""Split a data set reproducibly and without leakage: holdout, test split, exact duplicates, label subsets.

Splits are stratified, and the same in every run and on any machine: their random numbers do not depend on NumPy's
version. Exact duplicates, common in real folders, never stand on both sides of a split.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vae_edge.data.dataset import Dataset, LabelledImages, join
from vae_edge.errors import ConfigError, DataError
from vae_edge.text import normal_form

log = logging.getLogger(__name__)


SPLITS = ("train", "validation", "test", "all", "auto")

_LABEL_STREAM = 1 << 32
"""First random stream of `subsample_labels`, so that it is independent of what is held out."""


def random_bits(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Counter-based SplitMix64 (Steele, Lea and Flood, 2014): uint64 [count], determined by seed and stream."""
    key = _mix(np.array([seed % 2**64], dtype=np.uint64)) ^ _mix(np.array([~stream % 2**64], dtype=np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(_mix(key) + steps)


def uniform(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Float64 [count], uniform in [0, 1)."""
    return (random_bits(count, seed, stream) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """A random permutation of range(count), int64 [count]."""
    return np.argsort(random_bits(count, seed, stream), kind="stable")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64. NumPy's array arithmetic is modulo 2^64, as it should be."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def digests(images: np.ndarray) -> list[bytes]:
    """BLAKE2b (RFC 7693) with 128 bits of each image of uint8 [N, H, W, C]."""
    rows = np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def duplicate_groups(images: np.ndarray) -> np.ndarray:
    """For each image, the index of the first image with the same pixels: int64 [N]. `arange(N)` if all differ."""
    seen: dict[bytes, int] = {}
    found = (seen.setdefault(digest, index) for index, digest in enumerate(digests(images)))
    return np.fromiter(found, np.int64, len(images))


def count_duplicates(data: LabelledImages) -> int:
    """Number of images that repeat an earlier one pixel by pixel, of any class."""
    return int((duplicate_groups(data.images) != np.arange(len(data))).sum())


def duplicates_of(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the images [N, H, W, C] also occur, pixel by pixel, among the others [M, H, W, C]: bool [N]."""
    known = set(digests(others))
    return np.array([digest in known for digest in digests(images)], dtype=bool)


def check_no_leakage(train: LabelledImages, held_out: LabelledImages, unlabelled: np.ndarray | None = None) -> None:
    """Check that no held-out image is also trained on, with a label or without (`unlabelled`, uint8 [M, H, W, C]).

    Raises:
        DataError: some are. It says how many, and names the first.
    """
    for what, images in (("images to train on", train.images), ("unlabelled images to train on", unlabelled)):
        if images is None:
            continue
        leaked = np.flatnonzero(duplicates_of(held_out.images, images))
        if len(leaked):
            raise DataError(
                f"{len(leaked)} of the {len(held_out)} held-out images are also among the {what}, the first of them "
                f"number {leaked[0]} (class {held_out.classes[int(held_out.labels[leaked[0]])]}): results on them say "
                "nothing about new images. Remove the duplicates from one side."
            )


def drop_duplicates_of(images: np.ndarray, test_images: np.ndarray) -> np.ndarray:
    """Remove images [M, H, W, C] that also occur in the test images [N, H, W, C]. The array itself if none do."""
    duplicates = duplicates_of(images, test_images)
    return images[~duplicates] if duplicates.any() else images


def check_trainable(data: LabelledImages) -> None:
    """Check that there are images of at least two classes.

    Raises:
        DataError: no images, or fewer than two classes that have any.
    """
    if not len(data):
        raise DataError("There are no images to train on.")
    present = np.unique(data.labels)
    if len(present) < 2:
        raise DataError(
            f"All {len(data)} images are of one class ({data.classes[int(present[0])]}); "
            "a classifier needs images of at least two."
        )


def holdout(data: LabelledImages, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Stratified holdout: the same fraction of each class, at least one image; the same images for the same seed.

    Duplicates stay together, whatever their classes: a group is held out as a whole, or kept as a whole if it exceeds
    the quota of a class. So no held-out image is among the kept ones.

    Returns:
        (kept, held out), each in the data's order.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: a class has a single image, or only duplicates of one.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The fraction of images held out is above 0 and below 1, but {fraction} came.")
    sizes = np.bincount(data.labels, minlength=len(data.classes))
    for name, size in zip(data.classes, sizes, strict=True):
        if size == 1:
            raise DataError(
                f"Class {name} has a single image, so none can be held out for testing; add images or drop the class."
            )
    quotas = np.array([min(max(round(fraction * size), 1), size - 1) if size else 0 for size in sizes.tolist()])
    groups = duplicate_groups(data.images)
    held_out = np.zeros(len(data), dtype=bool)
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        order = members[permutation(len(members), seed, stream=label)]
        _assign_groups(data.labels, groups, held_out, order, quotas)
        if len(members) and not held_out[members].any():
            _assign_smallest_group(data.labels, groups, held_out, order, sizes, name)
    return data.take(np.flatnonzero(~held_out)), data.take(np.flatnonzero(held_out))


def _assign_groups(
    labels: np.ndarray, groups: np.ndarray, held_out: np.ndarray, order: np.ndarray, quotas: np.ndarray
) -> None:
    """Hold out images in this order, each with its duplicates, up to the quota of their class. Changes `held_out`."""
    count = np.bincount(labels[held_out], minlength=len(quotas))
    repeated = set(np.flatnonzero(np.bincount(groups) > 1).tolist())
    for index in order.tolist():
        if count[labels[index]] >= quotas[labels[index]]:
            return
        if held_out[index]:
            continue
        group = np.flatnonzero(groups == groups[index]) if int(groups[index]) in repeated else np.array([index])
        new_count = count + np.bincount(labels[group], minlength=len(quotas))
        if (new_count <= quotas).all():
            held_out[group], count = True, new_count


def _assign_smallest_group(
    labels: np.ndarray, groups: np.ndarray, held_out: np.ndarray, order: np.ndarray, sizes: np.ndarray, name: str
) -> None:
    """Fallback if every duplicate group of a class exceeds its quota: hold out the smallest group.

    Raises:
        DataError: nothing would be left to train on.
    """
    count = np.bincount(labels[held_out], minlength=len(sizes))
    of_class = (np.flatnonzero(groups == first) for first in dict.fromkeys(groups[order].tolist()))
    for group in sorted(of_class, key=len):
        new_count = count + np.bincount(labels[group], minlength=len(sizes))
        if (new_count[np.unique(labels[group])] < sizes[np.unique(labels[group])]).all():
            held_out[group] = True
            return
    raise DataError(
        f"The {len(order)} images of class {name} are duplicates of one another, so that none can be held out for "
        "testing that is not trained on as well; add other images or drop the class."
    )


def select_split(dataset: Dataset, split: str, fraction: float, seed: int) -> LabelledImages:
    """Select the images of one split.

    Args:
        dataset: the data set, which holds a train split, a test split or both.
        split: `train` (the train split without what is held out), `validation` (what is held out of it), `test`,
            `all` (both splits in full), or `auto` (`test` if there is one, else `validation`).
        fraction: the fraction of the train split that is held out.
        seed: chooses the images that are held out.

    Raises:
        ConfigError: an unknown split, or a wrong fraction.
        DataError: the split is not there, or a class has a single image.
    """
    if split not in SPLITS:
        raise ConfigError(f"A split is one of {', '.join(SPLITS)}, but {split!r} came.")
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split == "all":
        return join([data for data in (dataset.train, dataset.test) if data is not None])
    needed = dataset.test if split == "test" else dataset.train
    if needed is None:
        missing, others = ("test", "train or validation") if split == "test" else ("train", "test")
        raise DataError(f"{dataset.source} has no {missing} split, which --split {split} needs; take {others}.")
    if split == "test":
        return needed
    kept, held_out = holdout(needed, fraction, seed)
    return kept if split == "train" else held_out


def align_classes(data: LabelledImages, classes: Sequence[str]) -> LabelledImages:
    """Reorder the labels to the model's classes. Names are compared in Unicode's normal form C.

    Raises:
        DataError: the data has a class that the model does not know.
    """
    if tuple(data.classes) == tuple(classes):
        return data
    position = {normal_form(name): index for index, name in enumerate(classes)}
    unknown = [name for name in data.classes if normal_form(name) not in position]
    if unknown:
        raise DataError(
            f"the data has classes that the model was not trained on: {', '.join(unknown)}; "
            f"it knows {', '.join(classes)}"
        )
    order = np.array([position[normal_form(name)] for name in data.classes], dtype=np.int64)
    return replace(data, labels=order[data.labels], classes=tuple(classes))


@dataclass(frozen=True)
class LabelSubset:
    """Images with labels, and images whose labels were dropped; both in the data's order."""

    labelled: LabelledImages
    unlabelled: np.ndarray
    """uint8 [M, H, W, C]; M is 0 if every image kept its label."""
    unlabelled_angles_deg: np.ndarray | None
    """float32 [M], rotation of the unlabelled images in degrees. None: unknown."""


def subsample_labels(data: LabelledImages, per_class: int, seed: int) -> LabelSubset:
    """Keep the labels of `per_class` images of each class: the same ones for the same seed on any machine.

    With the same seed, a larger subset contains the smaller ones. Classes without images are skipped.

    Raises:
        ConfigError: fewer than one label a class.
        DataError: a class has fewer images than the labels asked for.
    """
    if per_class < 1:
        raise ConfigError(f"{per_class} labels a class: expected at least 1.")
    kept = np.zeros(len(data), dtype=bool)
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        if 0 < len(members) < per_class:
            raise DataError(
                f"{per_class} labels a class are asked for, but class {name} has {len(members)} images to train on; "
                "ask for fewer, or add images."
            )
        kept[members[permutation(len(members), seed, stream=_LABEL_STREAM + label)[:per_class]]] = True
    angles = None if data.angles_deg is None else data.angles_deg[~kept]
    return LabelSubset(data.take(np.flatnonzero(kept)), data.images[~kept], angles)


def resolve_split(split: str, dataset: Dataset, trained_on: str, model: object) -> str:
    """What `auto` stands for; a warning where the images that `model` was trained on cannot be told from others.

    `trained_on` is the fingerprint of the data set of the training.
    """
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split in ("validation", "train") and dataset.fingerprint() != trained_on:
        log.info(
            "%s was not trained on exactly these images: its %s split cannot be told, so images that it was trained on "
            "may be among the ones measured",
            model,
            split,
        )
    return split
