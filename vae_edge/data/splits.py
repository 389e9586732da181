"""Split a data set reproducibly and without leakage: holdout, test split, exact duplicates, label subsets.

Splits are stratified, and the same in every run and on any machine: their random numbers do not depend on NumPy's
version. Exact duplicates, common in real folders, never stand on both sides of a split. Where images have groups
(`vae_edge.data.groups`), whole groups are held out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vae_edge.data.dataset import Dataset, LabelledImages, join
from vae_edge.data.group_holdout import hold_out_groups
from vae_edge.data.groups import group_images
from vae_edge.data.images import digests, select
from vae_edge.data.random_numbers import permutation
from vae_edge.errors import ConfigError, DataError
from vae_edge.text import normal_form

log = logging.getLogger(__name__)


SPLITS = ("train", "validation", "test", "all", "auto")

_LABEL_STREAM = 1 << 32
"""First random stream of `subsample_labels`, so that it is independent of what is held out."""


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
    return select(images, ~duplicates) if duplicates.any() else images


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

    Duplicates stay together, whatever their classes: they are held out as a whole, or kept as a whole if they exceed
    the quota of a class. So no held-out image is among the kept ones.

    Where the images have groups, whole groups are held out instead (`vae_edge.data.group_holdout`). Then duplicates of
    kept images are left out of what is held out.

    Returns:
        (kept, held out), each in the data's order.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: a class has a single image, or only duplicates of one; as `hold_out_groups`.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The fraction of images held out is above 0 and below 1, but {fraction} came.")
    if data.groups is not None:
        chosen = hold_out_groups(data, fraction, seed)
        kept, held = data.take(np.flatnonzero(~chosen)), data.take(np.flatnonzero(chosen))
        return kept, without_duplicates_of(held, kept, "the images of other groups")
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


def without_duplicates_of(held: LabelledImages, kept: LabelledImages, what: str) -> LabelledImages:
    """The images that do not repeat a kept one pixel by pixel, of any class.

    Raises:
        DataError: none is left of a class; `what` says what they repeat.
    """
    repeated = duplicates_of(held.images, kept.images)
    if not repeated.any():
        return held
    left = held.take(np.flatnonzero(~repeated))
    gone = sorted(set(held.labels.tolist()) - set(left.labels.tolist()))
    if gone:
        raise DataError(
            f"All held-out images of {', '.join(held.classes[label] for label in gone[:10])} are exact duplicates of "
            f"{what}, so that they say nothing about new images; hold out others, or add some."
        )
    return left


def own_validation(dataset: Dataset) -> LabelledImages:
    """The validation split that a data set brings, without duplicates of its train split.

    Raises:
        DataError: all images of a class are such duplicates.
    """
    assert dataset.validation is not None
    if dataset.train is None:
        return dataset.validation
    return without_duplicates_of(dataset.validation, dataset.train, "the images to train on")


def select_split(dataset: Dataset, split: str, fraction: float, seed: int) -> LabelledImages:
    """Select the images of one split.

    Args:
        dataset: the data set, which holds a train split, a test split or both.
        split: `train` (the train split without what is held out), `validation` (the validation split, or without one
            what is held out of the train split), `test`, `all` (every split in full), or `auto` (`test` if there is
            one, else `validation`).
        fraction: the fraction of the train split that is held out where there is no validation split.
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
        return join(list(dataset.splits.values()))
    if split == "validation" and dataset.validation is not None:
        return own_validation(dataset)
    needed = dataset.test if split == "test" else dataset.train
    if needed is None:
        missing = "test" if split == "test" else "train"
        raise DataError(
            f"{dataset.source} has no {missing} split, which --split {split} needs; take {' or '.join(dataset.splits)}."
        )
    if split == "test" or dataset.validation is not None:
        return needed
    kept, held_out = holdout(needed, fraction, seed)
    return kept if split == "train" else held_out


def select_trained_split(dataset: Dataset, split: str, trained_on: Mapping[str, Any]) -> LabelledImages:
    """As `select_split`, where what is held out is what training held out.

    Args:
        dataset: the data set.
        split: as `select_split`.
        trained_on: what a run or a bundle says of its data (`vae_edge.training.config.TrainingData`, as JSON): the
            fraction and the seed of what was held out; whether that was a validation split of its own; the groups.

    Raises:
        ConfigError, DataError: as `select_split`; training held out a validation split, or whole groups, and this data
            set does not say which.
    """
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split in ("train", "validation") and dataset.validation is None and dataset.train is not None:
        if trained_on.get("own_validation") and split == "train":
            return dataset.train
        if trained_on.get("own_validation"):
            raise DataError(
                f"Training held out no image of the train split of {dataset.source}, but a validation split of its "
                "own, which is not there: name its folder with --val, or take --split test or all."
            )
        group_by = trained_on.get("group_by")
        if group_by and dataset.train.groups is None:
            try:
                dataset = group_images(dataset, str(group_by))
            except DataError as error:
                raise DataError(
                    f"Training held out whole groups by {group_by}, which cannot be told here: {error} Name them with "
                    "--group-by, or take --split test or all."
                ) from error
    return select_split(dataset, split, trained_on["holdout_fraction"], trained_on["seed"])


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
    return LabelSubset(data.take(np.flatnonzero(kept)), select(data.images, ~kept), angles)


def describe_split(dataset: Dataset, split: str, images: LabelledImages, trained_on: str | None = None) -> str:
    """A clause that says which images a split is: `select_split` with the same arguments gave them.

    `trained_on` is the fingerprint of the data set of the training; None: of this one.
    """
    count = f"{len(images)} images"
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split == "all":
        return f"the {count} of all splits ({', '.join(dataset.splits)})"
    if split == "test" or dataset.validation is not None:
        return f"the {count} of the {split} split"
    assert dataset.train is not None  # as `select_split` checked
    kept = split == "train"
    if trained_on is None or dataset.fingerprint() == trained_on:
        which = "did not hold out" if kept else "held out"
    else:  # another data set: the same rule, not the same images
        which = "would not hold out" if kept else "would hold out"
    of = f"the {count} of the train split that training {which}"
    if images.groups is None:
        return of
    return f"{of}, of the groups {', '.join(sorted(set(images.groups.tolist())))}"


def resolve_split(split: str, dataset: Dataset, trained_on: str, model: object) -> str:
    """What `auto` stands for; a warning where the images that `model` was trained on cannot be told from others.

    `trained_on` is the fingerprint of the data set of the training.
    """
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split in ("validation", "train") and dataset.fingerprint() != trained_on:
        log.info(
            "%s was not trained on exactly these images: some that it was trained on may be among those measured. If "
            "it was trained on none of them, the split `all` measures all of them",
            model,
        )
    return split
