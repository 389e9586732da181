"""Pseudo-random numbers that are the same in every version of NumPy: splits and fixed angles must not move.

Images with exactly the same pixels: folders from the field are full of them, and none may both train and judge.

Which images train, which judge: stratified, and the same in every run.

A few labels a class, and the other images without theirs: what learning from few labels is tried on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vae_edge.data.dataset import Dataset, LabelledImages, join
from vae_edge.errors import ConfigError, DataError
from vae_edge.text import normal_form


def random_bits(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood, 2014) by counter: uint64 [count], the same for the same seed and stream."""
    key = _mix(np.array([seed % 2**64], dtype=np.uint64)) ^ _mix(np.array([~stream % 2**64], dtype=np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(_mix(key) + steps)


def uniform(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Float64 [count], uniform in [0, 1)."""
    return (random_bits(count, seed, stream) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """The integers below count, int64 [count], in a random order."""
    return np.argsort(random_bits(count, seed, stream), kind="stable")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64; arithmetic is modulo 2^64, which NumPy's arrays do silently."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def digests(images: np.ndarray) -> list[bytes]:
    """BLAKE2b (RFC 7693) of each image's pixels, 128 bits; images of one shape, uint8 [N, H, W, C]."""
    rows = np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def first_alike(images: np.ndarray) -> np.ndarray:
    """For each image, the index of the first one with the same pixels: int64 [N], `arange(N)` where all differ."""
    seen: dict[bytes, int] = {}
    found = (seen.setdefault(digest, index) for index, digest in enumerate(digests(images)))
    return np.fromiter(found, np.int64, len(images))


def count_copies(data: LabelledImages) -> int:
    """How many images repeat an earlier one pixel by pixel, of whichever class."""
    return int((first_alike(data.images) != np.arange(len(data))).sum())


def leaked(held: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Which of the images `held` [N, H, W, C] are, pixel by pixel, among those to be trained on: bool [N]."""
    known = set(digests(trained_on))
    return np.array([digest in known for digest in digests(held)], dtype=bool)


def check_apart(kept: LabelledImages, held: LabelledImages, unlabelled: np.ndarray | None = None) -> None:
    """Check that no held-out image is trained on as well, under a label or (`unlabelled`, [M, H, W, C]) without one.

    Raises:
        DataError: some are; it says how many, and names the first.
    """
    for what, images in (("images to train on", kept.images), ("unlabelled images to train on", unlabelled)):
        if images is None:
            continue
        found = np.flatnonzero(leaked(held.images, images))
        if len(found):
            raise DataError(
                f"{len(found)} of the {len(held)} held-out images are also among the {what}, the first of them number "
                f"{found[0]} (class {held.classes[int(held.labels[found[0]])]}): what is measured on them would say "
                "nothing of images that are new. Take the copies out of one side."
            )


def apart_from(images: np.ndarray, judges: np.ndarray) -> np.ndarray:
    """Images [M, H, W, C] less those that are copies of ones that judge, [N, H, W, C]; itself where none are."""
    copies = leaked(images, judges)
    return images[~copies] if copies.any() else images


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


_STREAM = 1 << 32
"""Draws of labels begin at this stream of numbers, so that they have nothing to do with what is held out."""


@dataclass(frozen=True)
class FewLabels:
    """Images that keep their labels, and those that lost them; both in the data's own order."""

    labelled: LabelledImages
    unlabelled: np.ndarray
    """uint8 [M, H, W, C]; M is 0 where every image kept its label."""
    unlabelled_angles_deg: np.ndarray | None
    """float32 [M], how far each of them is turned; None where it is not known."""


def draw_labels(data: LabelledImages, per_class: int, seed: int) -> FewLabels:
    """Keep the labels of `per_class` images of each class: the same ones for the same seed on any machine.

    More labels of the same seed hold the fewer ones. Classes without any image are passed over.

    Raises:
        ConfigError: fewer than one label a class.
        DataError: a class has fewer images than labels are asked.
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
        kept[members[permutation(len(members), seed, stream=_STREAM + label)[:per_class]]] = True
    angles = None if data.angles_deg is None else data.angles_deg[~kept]
    return FewLabels(data.take(np.flatnonzero(kept)), data.images[~kept], angles)
