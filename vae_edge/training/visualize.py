"""What a network makes of images, as pictures: derotated, reconstructed, decoded along a latent traversal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.errors import DataError
from vae_edge.model import AngleVAE
from vae_edge.ops.rotate import rotate
from vae_edge.training.checkpoint import RunSamples
from vae_edge.training.data import to_float
from vae_edge.training.evaluate import BATCH
from vae_edge.training.generate import generate


@torch.no_grad()
def derotate(model: AngleVAE, images: NDArray[np.uint8], angles_deg: NDArray[np.floating] | None) -> NDArray[np.uint8]:
    """Images uint8 [N, S, S, C] as the encoder sees them: masked, and rotated clockwise by the predicted angles [N].

    Without angles they are not rotated.
    """
    pixels = model.apply_mask(to_float(images))
    if angles_deg is not None:
        angles = torch.from_numpy(np.deg2rad(np.asarray(angles_deg, np.float64))).float()
        pixels = rotate(pixels, angles.cos(), -angles.sin(), model.config.fill)
    return _to_uint8(pixels)


@torch.no_grad()
def reconstruct(model: AngleVAE, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The decoder's images of uint8 [N, S, S, C]: upright, of the same shape."""
    model.eval()
    parts = [
        _to_uint8(model(to_float(images[start : start + BATCH])).reconstruction)
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts) if parts else images[:0]


@torch.no_grad()
def traverse(
    model: AngleVAE, codes: Tensor, label: int, deviations: Sequence[float], directions: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Latent traversal: decode a class's mean code, moved along the principal directions of the class's codes.

    A direction's sign is free. Its largest entry is made positive, for the same picture on any machine.

    Args:
        model: trained.
        codes: [M, Z], of images of the class, M at least 3.
        label: the decoder's class.
        deviations: distances from the mean, in standard deviations of the codes along the direction.
        directions: number of directions, those with the greatest variance first.

    Returns:
        uint8 [directions, steps, S, S, C], and each direction's fraction of the codes' variance.

    Raises:
        DataError: fewer than three codes.
    """
    if len(codes) < 3:
        raise DataError(f"{len(codes)} codes of class {label}: principal directions need at least three; add images")
    values = codes.double()
    mean = values.mean(0)
    _, lengths, axes = torch.linalg.svd(values - mean, full_matrices=False)
    std = lengths / (len(values) - 1) ** 0.5
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    steps = torch.tensor(list(deviations), dtype=torch.float64)
    moves = (axes * largest.sign() * std[:, None])[:directions]
    moved = (mean + steps[None, :, None] * moves[:, None, :]).float()

    onehot = F.one_hot(torch.tensor([label]), model.config.classes).float().expand(moved[..., 0].numel(), -1)
    model.eval()
    pictures = _to_uint8(model.decoder(moved.flatten(0, 1), onehot).sigmoid())
    fractions = (lengths.square() / lengths.square().sum().clamp_min(1e-30))[:directions]
    return pictures.reshape(*moved.shape[:2], *pictures.shape[1:]), fractions.numpy()


@dataclass(frozen=True)
class Samples:
    """Generated images uint8 [n, S, S, C] by class; and for each class without any, a sentence why."""

    images: Mapping[str, NDArray[np.uint8]]
    missing: Mapping[str, str]


def sample_per_class(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    stored: RunSamples | None = None,
    absent: Sequence[str] = (),
    angles_deg: Sequence[float] = (0.0,),
    seed: int = 0,
) -> Samples:
    """Generate images class by class, so that a class that the model does not recognize does not stop the others.

    `stored` has the codes of training images. Without it, codes are sampled around each class's mean.
    """
    images: dict[str, NDArray[np.uint8]] = {}
    missing = {name: f"there were no training images of {name}" for name in absent}
    for name in classes:
        if name in absent:
            continue
        try:
            images[name] = generate(
                model,
                classes,
                per_class,
                [name],
                angles_deg,
                seed=seed,
                codes=None if stored is None else stored.codes,
                code_labels=None if stored is None else stored.code_labels,
            ).images
        except DataError as error:
            missing[name] = str(error)
    return Samples(images, missing)


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Float [N, C, S, S] in [0, 1] to uint8 [N, S, S, C]."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
