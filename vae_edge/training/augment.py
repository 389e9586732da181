"""Random changes of training images: their geometry, in one bilinear resampling, and their photometry.

Training and inference must see one distribution. Resampling blurs: a network that never saw an image as sharp as it
came is wrong on fine textures. So a fraction of the images is moved by whole pixels alone (`Augmentation.identity`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import ConfigError
from vae_edge.ops.rotate import grid_sample_fill

ELASTIC_GRID = 5  # control points of the elastic displacement field, each way
RANDOMS_PER_IMAGE = 8  # uniform random numbers of an image's geometry, sampled whether they are used or not
PHOTOMETRIC_RANDOMS = 13  # the same of its photometry, where there is any

PHOTOMETRIC = ("contrast", "brightness", "gamma", "color", "sharpness", "noise", "invert", "occlusion")
"""Fields of `Augmentation` that change pixels where they are."""

_LIMITS: Mapping[str, tuple[float, float]] = {
    "rotation_deg": (180, math.inf), "scale": (1, 1), "shear_deg": (90, 90), "shift": (1, 1), "elastic": (1, 1),
    "thickness": (1, math.inf), "identity": (1, math.inf), "contrast": (4, 4), "brightness": (1, math.inf),
    "gamma": (4, 4), "color": (4, 4), "sharpness": (1, math.inf), "noise": (1, math.inf), "invert": (1, math.inf),
    "occlusion": (1, math.inf),
}  # fmt: skip
"""Largest value of each number, and the value that it must stay below."""


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes. With its defaults nothing changes.

    Attributes:
        rotation_deg: angles are uniform in [-rotation_deg, rotation_deg).
        scale: scale factors are uniform in [1 - scale, 1 + scale).
        shear_deg: horizontal shears are uniform in [-shear_deg, shear_deg).
        shift: shifts are uniform in [-shift, shift) of the image's sides, each way.
        elastic: standard deviation, as a fraction of the side, of a smooth random displacement of the pixels (Simard,
            Steinkraus and Platt 2003).
        thickness: from 0 to 1; strokes are dilated or eroded (brightest or darkest of 3×3), blended with the image by
            a weight uniform in [-thickness, thickness).
        mirror: whether images are mirrored left to right with probability 1/2.
        identity: fraction of the images that are not resampled: they are rotated by a multiple of 90° within the
            range, and shifted by whole pixels.
        contrast: gains are e to the power of a number uniform in [-contrast, contrast), about the image's mean.
        brightness: what is added to all pixels, which lie in 0 to 1, is uniform in [-brightness, brightness).
        gamma: exponents are e to the power of a number uniform in [-gamma, gamma).
        color: as `contrast`, for each channel of a colour image.
        sharpness: images are blended with their 3×3 mean by a weight uniform in [-sharpness, sharpness): blurred where
            it is positive, sharpened where it is negative.
        noise: the standard deviation of the noise of a pixel is uniform in [0, noise).
        invert: fraction of the images whose dark and bright are exchanged.
        occlusion: a square of the image's mean colour covers up to this fraction of each side.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    shear_deg: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    thickness: float = 0.0
    mirror: bool = False
    identity: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 0.0
    color: float = 0.0
    sharpness: float = 0.0
    noise: float = 0.0
    invert: float = 0.0
    occlusion: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _LIMITS:
                most, below = _LIMITS[field.name]
                if not 0 <= value <= most or value >= below:
                    raise ConfigError(
                        f"Augmentation: {field.name} {value}: expected a number from 0 to "
                        f"{'below ' if below <= most else ''}{most:g}"
                    )


def augment(
    images: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator | None = None,
    *,
    fill: float = 0.0,
    base_angle_rad: Tensor | None = None,
    shard: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Change each image at random: first its geometry, then its photometry.

    Args:
        images: float [N, C, H, W] in [0, 1].
        augmentation: the ranges.
        generator: of random numbers, on the CPU, so that they are equal for a CPU and a GPU. None: the global one.
        fill: the pixel value outside the frame.
        base_angle_rad: float32 [N], rotation of the images as given. None: they are upright.
        shard: (first, total) if the images are rows first, first + 1, ... of a batch of `total` images. Each image
            gets the random numbers of its row, so that a batch sharded over processes is augmented as in one process.

    Returns:
        float [N, C, H, W], and the rotation of each, float32 [N] radians, counter-clockwise as displayed.
    """
    rows = shard or (0, len(images))
    images, angle_rad = _move(images, augmentation, generator, fill, base_angle_rad, rows)
    if any(getattr(augmentation, name) for name in PHOTOMETRIC):
        images = _expose(images, augmentation, generator, rows)
    return images, angle_rad


def _move(
    images: Tensor,
    ranges: Augmentation,
    generator: torch.Generator | None,
    fill: float,
    base_angle_rad: Tensor | None,
    rows: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Mirror, dilate, bend, shear, scale, rotate and shift each image, in one bilinear resampling."""
    first, total = rows
    own, device = slice(first, first + len(images)), images.device
    uniform = (torch.rand(total, RANDOMS_PER_IMAGE, generator=generator)[own] * 2 - 1).to(device).T
    bends = None
    if ranges.elastic:
        bends = torch.randn(total, 2, ELASTIC_GRID, ELASTIC_GRID, generator=generator)[own].to(device)
    angle_before = torch.zeros(len(images), device=device) if base_angle_rad is None else base_angle_rad

    if ranges.mirror:
        mirrored = uniform[5] < 0
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        angle_before = torch.where(mirrored, -angle_before, angle_before)
    if ranges.thickness:
        images = _dilate(images, uniform[6] * ranges.thickness)

    angle = uniform[0] * math.radians(ranges.rotation_deg)
    size = 1 + uniform[1] * ranges.scale
    shear = torch.tan(uniform[2] * math.radians(ranges.shear_deg))
    moved = uniform[3:5] * (2 * ranges.shift)  # the grid's unit is half the frame
    if ranges.identity:
        still = uniform[7] < 2 * ranges.identity - 1
        pixel = torch.tensor([[2 / images.shape[-1]], [2 / images.shape[-2]]], device=device)
        angle = torch.where(still, (angle / (math.pi / 2)).round() * (math.pi / 2), angle)
        size, shear = torch.where(still, 1.0, size), torch.where(still, 0.0, shear)
        moved = torch.where(still, (moved / pixel).round() * pixel, moved)
        bends = None if bends is None else torch.where(still[:, None, None, None], 0.0, bends)

    # affine_grid maps output pixels to input pixels: the inverse of rotation @ shear * size, then of the shift.
    # Its unit is half the frame each way, so that a frame which is not square counts by its sides' ratio.
    cos, sin = torch.cos(angle), torch.sin(angle)
    inverse = (
        torch.stack((cos - shear * sin, -sin - shear * cos, sin, cos), dim=1).reshape(-1, 2, 2) / size[:, None, None]
    )
    aspect = images.shape[-1] / images.shape[-2]
    inverse = inverse * torch.tensor([[1.0, 1 / aspect], [aspect, 1.0]], device=device)
    theta = torch.cat((inverse, -inverse @ moved.T[..., None]), dim=2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if bends is not None:
        field = F.interpolate(bends * (2 * ranges.elastic), size=images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1).to(images.dtype)
    return grid_sample_fill(images, grid, fill), angle + angle_before


def _expose(images: Tensor, ranges: Augmentation, generator: torch.Generator | None, rows: tuple[int, int]) -> Tensor:
    """Sharpen or blur, then change gamma, contrast, brightness and colours, invert, add noise, cover a square."""
    first, total = rows
    own, device = slice(first, first + len(images)), images.device
    uniform = torch.rand(total, PHOTOMETRIC_RANDOMS, generator=generator)[own].to(device)
    centred = (uniform * 2 - 1)[:, :, None, None]
    if ranges.sharpness:
        mean = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        images = torch.lerp(images, mean, centred[:, 0:1] * ranges.sharpness)
    if ranges.gamma:
        images = images.clamp(0, 1).pow(torch.exp(centred[:, 1:2] * ranges.gamma))
    if ranges.contrast or ranges.brightness or ranges.color:
        gain = torch.exp(centred[:, 2:3] * ranges.contrast)
        if images.shape[1] == 3:
            gain = gain * torch.exp(centred[:, 4:7] * ranges.color)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * gain + mean + centred[:, 3:4] * ranges.brightness
    if ranges.invert:
        images = torch.where((uniform[:, 7] < ranges.invert)[:, None, None, None], 1 - images, images)
    if ranges.noise:
        noise = torch.stack([_noise(image, seed) for image, seed in zip(images, uniform[:, 12].tolist(), strict=True)])
        images = images + (uniform[:, 8] * ranges.noise)[:, None, None, None] * noise
    if ranges.occlusion:
        images = _cover(images, uniform[:, 9:12], ranges.occlusion)
    return images.clamp(0, 1)


def _noise(image: Tensor, seed: float) -> Tensor:
    """Normal noise of an image's shape, on its device; the seed, a row's number in [0, 1), holds for any shard."""
    generator = torch.Generator(image.device).manual_seed(int(seed * 2**24))
    return torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)


def _cover(images: Tensor, uniform: Tensor, most: float) -> Tensor:
    """Cover a square with the mean colour. `uniform` [N, 3] gives its side and centre."""
    height, width = images.shape[-2:]
    half = (uniform[:, 0] * most / 2)[:, None]
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    down = (y[None] - uniform[:, 1:2]).abs() < half
    across = (x[None] - uniform[:, 2:3]).abs() < half
    inside = down[:, None, :, None] & across[:, None, None, :]
    return torch.where(inside, images.mean((2, 3), keepdim=True), images)


def _dilate(images: Tensor, weight: Tensor) -> Tensor:
    """Blend images [N, C, H, W] with their dilation (3×3 maximum, weight > 0) or erosion (3×3 minimum, weight < 0)."""
    sign = torch.where(weight < 0, -1.0, 1.0)[:, None, None, None].to(images.dtype)
    outer = F.max_pool2d(images * sign, 3, 1, 1) * sign
    return torch.lerp(images, outer, weight.abs()[:, None, None, None].to(images.dtype))
