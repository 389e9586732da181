"""Turning a batch of images: the one differentiable, exportable rotation of training, augmentation and model."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def turn(images: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Turn each image about its centre by its own angle, counter-clockwise as displayed.

    Bilinear, `fill` outside the frame; pixel centres are at half-integer coordinates (`align_corners=False`), so
    that a quarter turn moves pixels and blends none. Exports to ONNX at opset 20 with a dynamic batch (the grid as
    arithmetic, then GridSample).

    Args:
        images: float [N, C, S, S], square.
        cos: float [N], the cosine of each angle.
        sin: float [N], the sine of each angle. With (cos, -sin) the image is turned back.
        fill: the value that comes in from outside the frame.

    Returns:
        float [N, C, S, S], of the images' dtype.
    """
    # y points down. A counter-clockwise turn takes the point (x, y) to (x cos + y sin, -x sin + y cos);
    # the grid asks the inverse: where does the output's (x, y) come from?
    side = images.shape[-1]
    line = (torch.arange(side, device=images.device, dtype=images.dtype) * 2 + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack((x.reshape(-1), y.reshape(-1)), dim=1)  # [S·S, 2], a constant of the exported graph
    turns = torch.stack((cos, sin, -sin, cos), dim=1).reshape(-1, 2, 2).to(images.dtype)
    grid = torch.matmul(places, turns).reshape(-1, side, side, 2)
    return sample(images, grid, fill)


def sample(images: torch.Tensor, grid: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Images float [N, C, S, S] at the places of grid [N, S, S, 2] in [-1, 1]: bilinear, `fill` outside the frame."""
    if fill == 0.0:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill
