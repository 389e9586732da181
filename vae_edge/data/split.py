"""Which images train, which judge: stratified, and the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vae_edge.data.numbers import permutation
from vae_edge.data.sets import Dataset, LabelledImages, join
from vae_edge.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test", "all", "auto")


def check_trainable(data: LabelledImages) -> None:
    """Check that there is something to tell apart.

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
    """Hold out the same share of each class, at least one image of it; the same images for the same seed.

    Returns:
        (kept, held out), each in the data's own order.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: a class has a single image.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The share of images held out is above 0 and below 1, but {fraction} came.")
    held = np.zeros(len(data), dtype=bool)
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        if len(members) == 1:
            raise DataError(
                f"Class {name} has a single image, so none can be held out for judging; add images or drop the class."
            )
        if len(members):
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            held[members[permutation(len(members), seed, stream=label)[:count]]] = True
    return data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))


def select_split(dataset: Dataset, split: str, fraction: float, seed: int) -> LabelledImages:
    """Choose images of a data set.

    Args:
        dataset: what was loaded.
        split: `train` (the training half less what is held out), `validation` (what is held out of it), `test` (the
            test half), `all` (both halves whole), or `auto` (`test` where there is one, else `validation`).
        fraction: the share of the training half that is held out.
        seed: chooses the images that are held out.

    Raises:
        ConfigError: an unknown split, or a wrong fraction.
        DataError: the half that is needed is not there, or a class has a single image.
    """
    if split not in SPLITS:
        raise ConfigError(f"A split is one of {', '.join(SPLITS)}, but {split!r} came.")
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split == "all":
        return join([half for half in (dataset.train, dataset.test) if half is not None])
    needed = dataset.test if split == "test" else dataset.train
    if needed is None:
        missing, there = ("test", "train or validation") if split == "test" else ("training", "test")
        raise DataError(f"{dataset.source} has no {missing} half, which split {split} needs; take split {there}.")
    if split == "test":
        return needed
    kept, held = holdout(needed, fraction, seed)
    return kept if split == "train" else held


def align_classes(data: LabelledImages, classes: Sequence[str]) -> LabelledImages:
    """The same images with labels in the model's order of classes.

    Raises:
        DataError: if the data has a class that the model does not know.
    """
    if tuple(data.classes) == tuple(classes):
        return data
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        raise DataError(
            f"the data has classes that the model was not trained on: {', '.join(unknown)}; "
            f"it knows {', '.join(classes)}"
        )
    order = np.array([list(classes).index(name) for name in data.classes], dtype=np.int64)
    return replace(data, labels=order[data.labels], classes=tuple(classes))
