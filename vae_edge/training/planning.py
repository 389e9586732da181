"""Before the first step: what a run is fixed to, and which images it trains on, watches and holds out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.data import (
    Dataset,
    LabelledImages,
    apart_from,
    check_apart,
    check_trainable,
    count_copies,
    draw_labels,
    holdout,
)
from vae_edge.data.copies import leaked
from vae_edge.errors import ConfigError, DataError
from vae_edge.images import InputSpec, measure_input
from vae_edge.model import create_config
from vae_edge.training.checkpoint import RunConfig
from vae_edge.training.config import TrainConfig
from vae_edge.training.symmetry import ALIKE, ambiguous_classes, mirrored_alike

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
        few = draw_labels(kept, training.labels_per_class, training.seed)
        kept, unlabelled, angles = few.labelled, few.unlabelled, few.unlabelled_angles_deg
    if dataset.unlabelled is not None:
        others = apart_from(dataset.unlabelled, held.images)
        if dataset.test is not None:
            others = apart_from(others, dataset.test.images)
        others = others if watched is None else apart_from(others, watched.images)
        if angles is not None:  # images that came without labels came without angles as well: they count as upright
            angles = np.concatenate([angles, np.zeros(len(others), np.float32)])
        unlabelled = np.concatenate([unlabelled, others])
    if training.labels_only:
        unlabelled, angles = unlabelled[:0], None
    check_apart(kept, held, unlabelled)
    return Material(kept, unlabelled, angles, held, watched)


def _input(dataset: Dataset, images: NDArray[np.uint8]) -> InputSpec:
    """What the model takes: measured on its images; how files become such images is as the data set was loaded."""
    spec, loaded = measure_input(images), dataset.input
    if loaded is None:
        return spec
    return replace(spec, fit=loaded.fit, ink=spec.ink if loaded.ink is None else loaded.ink, depth=loaded.depth)


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
        "copies": count_copies(dataset.train),
        "also_tested": 0 if dataset.test is None else int(leaked(dataset.test.images, kept.images).sum()),
        "holdout_fraction": training.holdout,
        "seed": training.seed,
        "ambiguous": ambiguous_classes(kept) if model.pose and upright else [],
        "unlike_mirrored": [name for name, share in mirrored.items() if share < ALIKE],
        "absent": [name for k, name in enumerate(kept.classes) if not (kept.labels == k).any()],
    }
    return RunConfig(model, training, tuple(dataset.classes), spec, data)
