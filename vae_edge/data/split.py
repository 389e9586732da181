"""Which images train, which judge: stratified, and the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vae_edge.data.copies import first_alike
from vae_edge.data.numbers import permutation
from vae_edge.data.sets import Dataset, LabelledImages, join
from vae_edge.errors import ConfigError, DataError
from vae_edge.text import normal_form

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

    Images with the same pixels stay together, whatever their classes: they are held out whole, or kept whole where
    that many would be more than the share of their class. No held-out image is therefore among the kept ones.

    Returns:
        (kept, held out), each in the data's own order.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: a class has a single image, or only copies of one.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The share of images held out is above 0 and below 1, but {fraction} came.")
    sizes = np.bincount(data.labels, minlength=len(data.classes))
    for name, size in zip(data.classes, sizes, strict=True):
        if size == 1:
            raise DataError(
                f"Class {name} has a single image, so none can be held out for judging; add images or drop the class."
            )
    shares = np.array([min(max(round(fraction * size), 1), size - 1) if size else 0 for size in sizes.tolist()])
    alike = first_alike(data.images)
    held = np.zeros(len(data), dtype=bool)
    for label, name in enumerate(data.classes):
        members = np.flatnonzero(data.labels == label)
        drawn = members[permutation(len(members), seed, stream=label)]
        _hold(data.labels, alike, held, drawn, shares)
        if len(members) and not held[members].any():
            _hold_one(data.labels, alike, held, drawn, sizes, name)
    return data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))


def _hold(labels: np.ndarray, alike: np.ndarray, held: np.ndarray, drawn: np.ndarray, shares: np.ndarray) -> None:
    """Mark images in the order drawn, each with its copies, until their class has its share; `held` is changed."""
    count = np.bincount(labels[held], minlength=len(shares))
    repeated = set(np.flatnonzero(np.bincount(alike) > 1).tolist())
    for index in drawn.tolist():
        if count[labels[index]] >= shares[labels[index]]:
            return
        if held[index]:
            continue
        group = np.flatnonzero(alike == alike[index]) if int(alike[index]) in repeated else np.array([index])
        more = count + np.bincount(labels[group], minlength=len(shares))
        if (more <= shares).all():
            held[group], count = True, more


def _hold_one(
    labels: np.ndarray, alike: np.ndarray, held: np.ndarray, drawn: np.ndarray, sizes: np.ndarray, name: str
) -> None:
    """Where every image of a class has more copies than its share: mark the one with the fewest, and its copies.

    Raises:
        DataError: nothing would be left to train on.
    """
    count = np.bincount(labels[held], minlength=len(sizes))
    groups = sorted((np.flatnonzero(alike == first) for first in dict.fromkeys(alike[drawn].tolist())), key=len)
    for group in groups:
        more = count + np.bincount(labels[group], minlength=len(sizes))
        if (more[np.unique(labels[group])] < sizes[np.unique(labels[group])]).all():
            held[group] = True
            return
    raise DataError(
        f"The {len(drawn)} images of class {name} are copies of one another, so that none can be held out for judging "
        "that is not trained on as well; add other images or drop the class."
    )


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
    """The same images with labels in the model's order of classes. Names in Unicode's forms C and D are the same.

    Raises:
        DataError: if the data has a class that the model does not know.
    """
    if tuple(data.classes) == tuple(classes):
        return data
    place = {normal_form(name): index for index, name in enumerate(classes)}
    unknown = [name for name in data.classes if normal_form(name) not in place]
    if unknown:
        raise DataError(
            f"the data has classes that the model was not trained on: {', '.join(unknown)}; "
            f"it knows {', '.join(classes)}"
        )
    order = np.array([place[normal_form(name)] for name in data.classes], dtype=np.int64)
    return replace(data, labels=order[data.labels], classes=tuple(classes))
