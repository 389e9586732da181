"""Random changes of image tensors while training. The one file of the room that imports torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vae_edge.errors import ConfigError
from vae_edge.ops.rotate import grid_sample_fill

FIELD = 5  # an elastic change is a smooth field through this many random points each way
NUMBERS = 8  # uniform random numbers an image, drawn whether they are used or not


def affine_augment(
    images: torch.Tensor,
    generator: torch.Generator | None,
    rotation_deg: float,
    *,
    scale: float = 0.0,
    shear_deg: float = 0.0,
    shift: float = 0.0,
    elastic: float = 0.0,
    thickness: float = 0.0,
    mirror: bool = False,
    fill: float = 0.0,
    known_rad: torch.Tensor | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror, thicken, bend, shear, scale, turn and shift each image at random, in one bilinear resampling.

    Args:
        images: float [N, C, S, S].
        generator: where randomness comes from, on the CPU; the same numbers for a CPU and a GPU. None: the global one.
        rotation_deg: angles are uniform in [-rotation_deg, rotation_deg).
        scale: sizes are uniform in [1 - scale, 1 + scale).
        shear_deg: horizontal shears are uniform in [-shear_deg, shear_deg).
        shift: shifts are uniform in [-shift, shift) of the image's side, each way.
        elastic: standard deviation, as a share of the side, of a smooth random displacement of the pixels (Simard,
            Steinkraus and Platt 2003).
        thickness: from 0 to 1; lines are dilated or eroded (brightest or darkest of 3×3) by a share uniform in
            [-thickness, thickness).
        mirror: half of the images are mirrored left to right.
        fill: the value that comes in from outside the frame.
        known_rad: float32 [N], how far the images are turned already; None: they are upright.
        part: (first, total), where the images are some of a batch of `total` in a row: each gets the numbers that it
            would have got in the whole batch, so that processes that share a batch change it as one process would.

    Returns:
        float [N, C, S, S], and how far each is turned then, float32 [N] radians counter-clockwise as displayed.

    Raises:
        ConfigError: a range that makes no sense.
    """
    _check(rotation_deg, scale, shear_deg, shift, elastic, thickness)
    first, total = part or (0, len(images))
    mine = slice(first, first + len(images))
    uniform = (torch.rand(total, NUMBERS, generator=generator)[mine] * 2 - 1).to(images.device).T
    bends = torch.randn(total, 2, FIELD, FIELD, generator=generator)[mine].to(images.device) if elastic else None
    known = torch.zeros(len(images), device=images.device) if known_rad is None else known_rad
    if mirror:
        mirrored = uniform[5] < 0
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        known = torch.where(mirrored, -known, known)
    if thickness:
        images = _thicken(images, uniform[6] * thickness)
    angle = uniform[0] * math.radians(rotation_deg)
    size = 1 + uniform[1] * scale
    shear = torch.tan(uniform[2] * math.radians(shear_deg))
    moved = uniform[3:5] * (2 * shift)  # in units of half the frame, as the grid counts
    # The grid asks where an output pixel comes from: the inverse of turn @ shear * size, then the shift taken off.
    cos, sin = torch.cos(angle), torch.sin(angle)
    back = torch.stack((cos - shear * sin, -sin - shear * cos, sin, cos), dim=1).reshape(-1, 2, 2) / size[:, None, None]
    theta = torch.cat((back, -back @ moved.T[..., None]), dim=2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if bends is not None:
        field = F.interpolate(bends * (2 * elastic), size=images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1).to(images.dtype)
    return grid_sample_fill(images, grid, fill), angle + known


def _thicken(images: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Images [N, C, S, S] moved towards the brightest (by > 0) or the darkest (by < 0) of their 3×3 neighbourhoods."""
    sign = torch.where(by < 0, -1.0, 1.0)[:, None, None, None].to(images.dtype)
    outer = F.max_pool2d(images * sign, 3, 1, 1) * sign
    return torch.lerp(images, outer, by.abs()[:, None, None, None].to(images.dtype))


def _check(rotation: float, scale: float, shear: float, shift: float, elastic: float, thickness: float) -> None:
    if not (
        0 <= rotation <= 180
        and 0 <= scale < 1
        and 0 <= shear < 90
        and 0 <= shift < 1
        and 0 <= elastic < 1
        and 0 <= thickness <= 1
    ):
        raise ConfigError(
            "Augmentation takes a rotation of 0 to 180 degrees, a scale from 0 to below 1, a shear from 0 to below 90 "
            "degrees, a shift and an elastic displacement from 0 to below 1 of the side, and a thickness of 0 to 1, "
            f"but {rotation}, {scale}, {shear}, {shift}, {elastic} and {thickness} came."
        )
