"""Random affine changes of image tensors while training. The one file of the room that imports torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vae_edge.errors import ConfigError
from vae_edge.ops.turn import sample
from vae_edge.ops.turn import turn as turn_by


def turn(images: torch.Tensor, angle_rad: torch.Tensor) -> torch.Tensor:
    """Turn float [N, C, S, S] counter-clockwise as displayed by float [N] radians: bilinear, zero outside."""
    return turn_by(images, torch.cos(angle_rad), torch.sin(angle_rad))


def affine_augment(
    images: torch.Tensor,
    generator: torch.Generator | None,
    rotation_deg: float,
    *,
    scale: float = 0.0,
    shear_deg: float = 0.0,
    shift_px: float = 0.0,
    fill: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shear, scale, turn and shift each image at random, in that order and in one resampling: bilinear.

    Args:
        images: float [N, C, S, S].
        generator: where randomness comes from, on the CPU; the same numbers for a CPU and a GPU. None: the global one.
        rotation_deg: angles are uniform in [-rotation_deg, rotation_deg).
        scale: sizes are uniform in [1 - scale, 1 + scale).
        shear_deg: horizontal shears are uniform in [-shear_deg, shear_deg).
        shift_px: shifts are uniform in [-shift_px, shift_px), each way.
        fill: the value that comes in from outside the frame.

    Returns:
        float [N, C, S, S], and the angles turned by, float32 [N] radians counter-clockwise as displayed.

    Raises:
        ConfigError: a range that makes no sense.
    """
    if not (0 <= rotation_deg <= 180 and 0 <= scale < 1 and 0 <= shear_deg < 90 and shift_px >= 0):
        raise ConfigError(
            "Augmentation takes a rotation of 0 to 180 degrees, a scale from 0 to below 1, a shear from 0 to below 90 "
            f"degrees and a shift of at least 0, but {rotation_deg}, {scale}, {shear_deg} and {shift_px} came."
        )
    uniform = (torch.rand(5, len(images), generator=generator) * 2 - 1).to(images.device)
    angle = uniform[0] * math.radians(rotation_deg)
    size = 1 + uniform[1] * scale
    shear = torch.tan(uniform[2] * math.radians(shear_deg))
    shift = uniform[3:] * (2 * shift_px / images.shape[-1])  # in units of half the frame, as the grid counts
    # The grid asks where an output pixel comes from: the inverse of turn @ shear * size, then the shift taken off.
    cos, sin = torch.cos(angle), torch.sin(angle)
    back = torch.stack((cos - shear * sin, -sin - shear * cos, sin, cos), dim=1).reshape(-1, 2, 2) / size[:, None, None]
    theta = torch.cat((back, -back @ shift.T[..., None]), dim=2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return sample(images, grid, fill), angle
