"""Training and inference see one distribution: what is learnt of augmented images holds for images as they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from prepared import prepare
from scipy.ndimage import gaussian_filter

from vae_edge.data import Dataset, LabelledImages
from vae_edge.training.checkpoint import load_checkpoint
from vae_edge.training.config import TrainConfig
from vae_edge.training.evaluate import predict
from vae_edge.training.trainer import train

BLUR_PX = (0.0, 0.6, 1.2)
COUNT, SIZE = 240, 32


def grains() -> LabelledImages:
    """Noise about any colour, equally strong, whose classes differ in how far it is blurred."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % len(BLUR_PX)
    images = np.empty((COUNT, SIZE, SIZE, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        grain = gaussian_filter(rng.normal(size=(SIZE, SIZE)), BLUR_PX[label], mode="wrap")
        image[:] = (rng.uniform(90, 160, 3) + 25 * grain[..., None] / grain.std()).clip(0, 255)
    return LabelledImages(images, labels, ("sharp", "soft", "blurred"))


@pytest.mark.parametrize(("augment", "sharp_images_too"), [("auto", True), ("light", False)])
def test_training_images_as_they_are_are_as_right_as_the_training_loss_says(
    augment: str, sharp_images_too: bool, tmp_path: Path
) -> None:
    """exp(-cross-entropy) is at most the mean probability of the right class. `light` resamples every image."""
    settings = TrainConfig(rotation="none", epochs=40, augment=augment)
    splits, config = prepare(Dataset("grains", "grains", grains(), None), settings)
    train(splits, config, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])

    right = (
        predict(load_checkpoint(tmp_path / "run").model, splits.train.images).logits.argmax(1) == splits.train.labels
    )
    of_class = np.array([right[splits.train.labels == k].mean() for k in range(len(BLUR_PX))])
    assert last["classes"] < 0.6
    assert (of_class.min() >= math.exp(-last["classes"])) == sharp_images_too, of_class
