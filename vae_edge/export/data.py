"""Which images a bundle's other precisions are calibrated and measured on."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, load_bundle
from vae_edge.data import Dataset, LabelledImages, align_classes, rotated, rotation_range, select_split
from vae_edge.errors import DataError
from vae_edge.export.precision import CALIBRATION_IMAGES
from vae_edge.export.write import quantize_bundle


def training_data(bundle: Bundle) -> dict[str, Any]:
    """What the manifest says of the training data, with defaults for a bundle that says nothing."""
    return {"holdout_fraction": 0.1, "seed": 0, "fingerprint": None, **bundle.manifest["data"]}


def quantize_with(
    path: str | os.PathLike[str], precision: str, dataset: Dataset, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Add a precision to a bundle: calibrated on training images, measured on images that were held out.

    Both are turned as training turned them. Images are held out as training did where these are its images; else the
    test half is measured where there is one, else a part that calibration leaves out.

    Args:
        precision: `fp16` or `int8`.
        dataset: images of the bundle's size and channels.
        force: see `quantize_bundle`.

    Returns:
        as `quantize_bundle`.

    Raises:
        DataError: there are no training images (for int8), or the classes are others than the bundle's.
        ExportError: as `quantize_bundle`.
    """
    bundle = load_bundle(path)
    known = training_data(bundle)
    own = known["fingerprint"] == dataset.fingerprint()
    split = "test" if dataset.test is not None and not own else "validation"
    held = _turned(select_split(dataset, split, known["holdout_fraction"], known["seed"]), bundle, known["seed"] + 1)
    held = align_classes(held, bundle.classes)
    if precision == "fp16":
        calibration = held.take(np.arange(0))
    elif dataset.train is None:
        raise DataError(f"{dataset.source} has no training half: {precision} needs training images for its ranges")
    else:
        kept = select_split(dataset, "train", known["holdout_fraction"], known["seed"])
        chosen = np.random.default_rng(seed).permutation(len(kept))[:CALIBRATION_IMAGES]
        calibration = align_classes(_turned(kept.take(chosen), bundle, seed + 3), bundle.classes)
    return quantize_bundle(path, precision, calibration, held, f"{split} of {dataset.name}", force)


def _turned(images: LabelledImages, bundle: Bundle, seed: int) -> LabelledImages:
    range_deg = rotation_range(str(bundle.rotation))
    return rotated(images, range_deg, seed, bundle.input.fill) if range_deg and len(images) else images
