"""What a network makes of images, as pictures: turned back, reconstructed, decoded along directions of the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vae_edge.errors import DataError
from vae_edge.model import AngleVAE
from vae_edge.ops.rotate import rotate
from vae_edge.training.generate import generate
from vae_edge.training.predict import BATCH, to_floats


def _to_bytes(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """Float [N, C, S, S] in [0, 1] to uint8 [N, S, S, C]."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def turned_back(
    model: AngleVAE, images: NDArray[np.uint8], angles_deg: NDArray[np.floating] | None
) -> NDArray[np.uint8]:
    """Images uint8 [N, S, S, C] as the encoder sees them: turned clockwise by the angles [N] that were found.

    Without angles they are seen as they came.
    """
    pages = model.see(to_floats(images))
    if angles_deg is not None:
        angles = torch.from_numpy(np.deg2rad(np.asarray(angles_deg, np.float64))).float()
        pages = rotate(pages, angles.cos(), -angles.sin(), model.config.fill)
    return _to_bytes(pages)


@torch.no_grad()
def reconstructed(model: AngleVAE, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the decoder makes of the codes of images uint8 [N, S, S, C]: upright, of the same shape."""
    model.eval()
    parts = [
        _to_bytes(model(to_floats(images[start : start + BATCH])).reconstruction)
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts) if parts else images[:0]


@torch.no_grad()
def traverse(
    model: AngleVAE, codes: torch.Tensor, label: int, deviations: Sequence[float], directions: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Decode a class's mean code, moved along the first principal directions of the class's codes.

    A direction's sign is free; it is taken so that its largest entry is positive, for the same picture on any machine.

    Args:
        codes: [M, Z], of images of the class, M at least 3.
        label: the class that the decoder is told.
        deviations: how far, in standard deviations of the codes along the direction.
        directions: how many, those with the greatest variance first.

    Returns:
        uint8 [directions, steps, S, S, C], and each direction's share of the codes' variance.

    Raises:
        DataError: fewer than three codes.
    """
    if len(codes) < 3:
        raise DataError(f"{len(codes)} codes of class {label}: principal directions need at least three; add images")
    wide = codes.double()
    mean = wide.mean(0)
    _, lengths, axes = torch.linalg.svd(wide - mean, full_matrices=False)
    spread = lengths / (len(wide) - 1) ** 0.5
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    steps = torch.tensor(list(deviations), dtype=torch.float64)
    moves = (axes * largest.sign() * spread[:, None])[:directions]
    moved = (mean + steps[None, :, None] * moves[:, None, :]).float()
    onehot = F.one_hot(torch.tensor([label]), model.config.classes).float().expand(moved[..., 0].numel(), -1)
    model.eval()
    pictures = _to_bytes(model.decoder(moved.flatten(0, 1), onehot).sigmoid())
    shares = (lengths.square() / lengths.square().sum().clamp_min(1e-30))[:directions]
    return pictures.reshape(*moved.shape[:2], *pictures.shape[1:]), shares.numpy()


@dataclass(frozen=True)
class Drawn:
    """Generated images uint8 [n, S, S, C] by class; and of each class of which there are none, a sentence why."""

    images: Mapping[str, NDArray[np.uint8]]
    missing: Mapping[str, str]


def draw_each(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    samples: Mapping[str, torch.Tensor],
    absent: Sequence[str] = (),
    angles_deg: Sequence[float] = (0.0,),
    seed: int = 0,
) -> Drawn:
    """Generate images class by class, so that one that the model does not recognize leaves the others.

    `samples` holds the run's `codes` and `code_labels` (`load_samples`); without them codes are drawn around a mean.
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
                codes=samples.get("codes"),
                code_labels=samples.get("code_labels"),
            ).images
        except DataError as error:
            missing[name] = str(error)
    return Drawn(images, missing)
