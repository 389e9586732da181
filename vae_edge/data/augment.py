"""Random augmentation of image tensors during training. The only module of `vae_edge.data` that imports torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vae_edge.errors import ConfigError
from vae_edge.ops.rotate import grid_sample_fill

ELASTIC_GRID = 5  # control points of the elastic displacement field, each way
RANDOMS_PER_IMAGE = 8  # uniform random numbers of each image, sampled whether they are used or not


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
    base_angle_rad: torch.Tensor | None = None,
    shard: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror, dilate, bend, shear, scale, rotate and shift each image at random, in one bilinear resampling.

    Args:
        images: float [N, C, S, S].
        generator: of random numbers, on the CPU, so that they are equal for a CPU and a GPU. None: the global one.
        rotation_deg: angles are uniform in [-rotation_deg, rotation_deg).
        scale: scale factors are uniform in [1 - scale, 1 + scale).
        shear_deg: horizontal shears are uniform in [-shear_deg, shear_deg).
        shift: shifts are uniform in [-shift, shift) of the image's side, each way.
        elastic: standard deviation, as a fraction of the side, of a smooth random displacement of the pixels (Simard,
            Steinkraus and Platt 2003).
        thickness: from 0 to 1; strokes are dilated or eroded (brightest or darkest of 3×3), blended with the image by
            a weight uniform in [-thickness, thickness).
        mirror: whether images are mirrored left to right with probability 1/2.
        fill: the pixel value outside the frame.
        base_angle_rad: float32 [N], rotation of the images as given. None: they are upright.
        shard: (first, total) if the images are rows first, first + 1, ... of a batch of `total` images. Each image
            gets the random numbers of its row, so that a batch sharded over processes is augmented as in one process.

    Returns:
        float [N, C, S, S], and the rotation of each, float32 [N] radians, counter-clockwise as displayed.

    Raises:
        ConfigError: a range out of its bounds.
    """
    _check(rotation_deg, scale, shear_deg, shift, elastic, thickness)
    first, total = shard or (0, len(images))
    rows = slice(first, first + len(images))
    uniform = (torch.rand(total, RANDOMS_PER_IMAGE, generator=generator)[rows] * 2 - 1).to(images.device).T
    bends = (
        torch.randn(total, 2, ELASTIC_GRID, ELASTIC_GRID, generator=generator)[rows].to(images.device)
        if elastic
        else None
    )
    angle_before = torch.zeros(len(images), device=images.device) if base_angle_rad is None else base_angle_rad

    if mirror:
        mirrored = uniform[5] < 0
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        angle_before = torch.where(mirrored, -angle_before, angle_before)
    if thickness:
        images = _dilate(images, uniform[6] * thickness)

    angle = uniform[0] * math.radians(rotation_deg)
    size = 1 + uniform[1] * scale
    shear = torch.tan(uniform[2] * math.radians(shear_deg))
    moved = uniform[3:5] * (2 * shift)  # the grid's unit is half the frame

    # affine_grid maps output pixels to input pixels: the inverse of rotation @ shear * size, then of the shift.
    cos, sin = torch.cos(angle), torch.sin(angle)
    inverse = (
        torch.stack((cos - shear * sin, -sin - shear * cos, sin, cos), dim=1).reshape(-1, 2, 2) / size[:, None, None]
    )
    theta = torch.cat((inverse, -inverse @ moved.T[..., None]), dim=2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if bends is not None:
        field = F.interpolate(bends * (2 * elastic), size=images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1).to(images.dtype)
    return grid_sample_fill(images, grid, fill), angle + angle_before


def _dilate(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Blend images [N, C, S, S] with their dilation (3×3 maximum, weight > 0) or erosion (3×3 minimum, weight < 0)."""
    sign = torch.where(weight < 0, -1.0, 1.0)[:, None, None, None].to(images.dtype)
    outer = F.max_pool2d(images * sign, 3, 1, 1) * sign
    return torch.lerp(images, outer, weight.abs()[:, None, None, None].to(images.dtype))


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
