"""What a network makes of images, as pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_edge.data import Dataset, rotate_dataset
from vae_edge.errors import DataError
from vae_edge.training.checkpoint import Checkpoint, load_samples
from vae_edge.training.generate import derotate, reconstruct, sample_per_class, traverse


def test_images_derotated_by_the_true_angle_are_upright_again(checkpoint: Checkpoint, digits: Dataset) -> None:
    assert digits.test is not None
    upright = digits.test.take(np.arange(50))
    turned = rotate_dataset(upright, 180, seed=5)
    assert turned.angles_deg is not None

    def likeness(images: np.ndarray) -> float:
        return float(np.corrcoef(images.ravel().astype(float), upright.images.ravel())[0, 1])

    assert likeness(derotate(checkpoint.model, turned.images, turned.angles_deg)) > 0.9  # blurred twice
    assert likeness(derotate(checkpoint.model, turned.images, -turned.angles_deg)) < 0.6  # the other way round
    np.testing.assert_array_equal(derotate(checkpoint.model, turned.images, None), turned.images)


def test_reconstructions_do_not_depend_on_the_batch(checkpoint: Checkpoint, digits: Dataset) -> None:
    assert digits.test is not None
    images = digits.test.images[:3]
    together = reconstruct(checkpoint.model, images)
    assert together.shape == images.shape and together.dtype == np.uint8
    one = np.concatenate([reconstruct(checkpoint.model, images[k : k + 1]) for k in range(3)])
    assert np.abs(together.astype(int) - one).max() <= 1
    assert len(reconstruct(checkpoint.model, images[:0])) == 0


def test_a_traversal_goes_through_the_mean_along_the_directions_of_the_covariance(checkpoint: Checkpoint) -> None:
    latent = checkpoint.config.model.latent
    codes = torch.randn(200, latent, generator=torch.Generator().manual_seed(0)) * 0.1
    codes[:, 3] *= 20
    codes[:, 5] *= 10
    pictures, shares = traverse(checkpoint.model, codes, 4, (-2.0, 0.0, 2.0))
    values, vectors = np.linalg.eigh(np.cov(codes.double().numpy().T))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), atol=1e-9)

    def decode(code: np.ndarray) -> np.ndarray:
        onehot = torch.zeros(1, 10)
        onehot[0, 4] = 1
        with torch.no_grad():
            logits = checkpoint.model.decoder(torch.from_numpy(code)[None].float(), onehot)
        return logits.sigmoid()[0, 0].numpy() * 255

    mean = codes.double().mean(0).numpy()
    for d in range(2):
        axis = vectors[:, -1 - d]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        for t, deviation in enumerate((-2, 0, 2)):
            expected = decode(mean + deviation * np.sqrt(values[-1 - d]) * axis)
            assert np.abs(pictures[d, t, ..., 0] - expected).max() <= 1


def test_a_traversal_needs_three_codes(checkpoint: Checkpoint) -> None:
    with pytest.raises(DataError, match=r"2 codes of class 4: .* at least three"):
        traverse(checkpoint.model, torch.zeros(2, checkpoint.config.model.latent), 4, (0.0,))


def test_a_class_that_is_not_recognized_leaves_the_others(checkpoint: Checkpoint, run: Path) -> None:
    samples = load_samples(run)
    swapped = replace(samples, codes=samples.codes.clone())
    swapped.codes[samples.code_labels == 8] = 50.0  # far from anything that decodes to an 8
    drawn = sample_per_class(checkpoint.model, checkpoint.config.classes, 4, swapped, absent=["3"])
    assert set(drawn.missing) >= {"3", "8"} and "none of 4" in drawn.missing["8"]
    assert "no training images" in drawn.missing["3"]
    assert set(drawn.images) == set(checkpoint.config.classes) - set(drawn.missing) and "1" in drawn.images
    assert all(images.shape[1:] == (28, 28, 1) and 1 <= len(images) <= 4 for images in drawn.images.values())
