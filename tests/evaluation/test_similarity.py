from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vae_edge.evaluation.similarity import MAX_HELD_OUT, NearCopies, near_copies


def pictures(count: int, seed: int, side: int = 64) -> np.ndarray:
    """Smooth random colour pictures, no two alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC)) for each in coarse]
    )


def changed(image: np.ndarray, how: str) -> np.ndarray:
    picture = Image.fromarray(image)
    if how == "mirrored":
        return image[:, ::-1]
    if how == "dimmed":
        return (image * 0.6 + 20).astype(np.uint8)
    if how == "resized":
        return np.asarray(picture.resize((40, 40)).resize((64, 64), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("how", ["mirrored", "dimmed", "resized", "compressed"])
def test_the_same_picture_in_another_form_is_found(how: str) -> None:
    train, others = pictures(60, 0), pictures(30, 1)
    copies = np.stack([changed(image, how) for image in train[:10]])
    assert near_copies(np.concatenate([others, copies]), train) == NearCopies(40, 10)


def test_other_pictures_and_even_ones_are_not(digits) -> None:
    assert near_copies(pictures(40, 2), pictures(80, 3)) == NearCopies(40, 0)
    even = np.full((5, 64, 64, 3), 77, np.uint8)
    assert near_copies(even, even) == NearCopies(0, 0) and NearCopies(0, 0).fraction == 0
    found = near_copies(digits.test.images, digits.train.images)  # many digits are drawn nearly alike
    assert found.compared == MAX_HELD_OUT and found.fraction < 0.01
