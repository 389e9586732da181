from __future__ import annotations

from dataclasses import replace

import numpy as np

from vae_edge.data import Dataset, LabelledImages
from vae_edge.training.data import flip_invariance


def drawn(count: int = 400) -> LabelledImages:
    """Tees, which a mirror leaves alone; Ls, which it turns into no L; and hooks that open to either side."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    labels = np.arange(count) % 4
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        y, ink = rng.integers(4, 9), rng.integers(150, 255)
        image[y : y + 14, 13:15] = ink
        if label == 0:
            image[y : y + 2, 8:20] = ink
        else:
            to_the_right = label == 1 or (label == 2 and index % 8 < 4)
            image[y + 12 : y + 14, slice(13, 22) if to_the_right else slice(6, 15)] = ink
    return LabelledImages(images, labels.astype(np.int64), ("tee", "L", "either side", "mirrored L"))


def test_a_class_passes_mirrored_only_where_its_own_images_look_so() -> None:
    share = flip_invariance(drawn())
    assert share["tee"] > 0.75 and share["either side"] > 0.75
    assert share["L"] == 0 and share["mirrored L"] == 0  # each is an image of the other class


def test_classes_of_a_few_images_are_left_out_and_a_seed_repeats(few_digits: Dataset) -> None:
    data = drawn(36)
    assert flip_invariance(data) == {}
    relabelled = replace(few_digits.train, labels=few_digits.train.labels + 1, classes=("none", *few_digits.classes))
    share = flip_invariance(relabelled, seed=3)
    assert "none" not in share and set(share) == set("0123456789")
    assert share == flip_invariance(relabelled, seed=3)
    assert share["8"] > share["7"]
