"""Rotation of a batch of images.

`rotate` is differentiable and exports to ONNX: the model uses it. `rotate_pixels` is for inference: one operator from
bytes to rotated pixels, which on CUDA is the Triton kernel `vae_edge_kernels.rotate`. Both give the same values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.registration import check_tensor, kernel_module, register_operator
from vae_edge.spec import Size, height_and_width

INPUT_DTYPES = (torch.uint8, torch.float16, torch.float32)
OUTPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int8)
MAX_ROW_ELEMENTS = 1 << 20  # the kernel counts the elements of a row in floats
MAX_ELEMENTS = 1 << 24  # of one image: what the kernel's grid holds


def rotate(images: Tensor, cos: Tensor, sin: Tensor, fill: float = 0.0) -> Tensor:
    """Rotate each image about its centre by its own angle, counter-clockwise as displayed.

    Bilinear, `fill` outside the frame. Pixel centres are at half-integer coordinates (`align_corners=False`), so that a
    rotation by 90° moves pixels and blends none. Exports to ONNX at opset 20 with a dynamic batch: the grid as
    arithmetic, then GridSample.

    Args:
        images: float [N, C, H, W]. The rotation is one of pixels, whatever the shape of the frame.
        cos, sin: float [N], of each angle. With (cos, −sin) the image is derotated.
        fill: the value that comes in from outside the frame.

    Returns:
        float [N, C, H, W], of the images' dtype.
    """
    # y points down. A counter-clockwise rotation takes the point (x, y) to (x cos + y sin, −x sin + y cos);
    # the grid asks the inverse: where does the output's (x, y) come from?
    # Points count in halves of the width, as the grid's x does. Its y counts in halves of the height.
    height, width = images.shape[-2:]
    across, down = (
        (torch.arange(side, device=images.device, dtype=images.dtype) * 2 + 1) / side - 1 for side in (width, height)
    )
    stretch = width / height
    if height != width:
        down = down / stretch
    y, x = torch.meshgrid(down, across, indexing="ij")
    points = torch.stack((x.reshape(-1), y.reshape(-1)), dim=1)  # [H·W, 2], a constant of the exported graph
    y_factors = (sin, cos) if height == width else (sin * stretch, cos * stretch)
    rotations = torch.stack((cos, y_factors[0], -sin, y_factors[1]), dim=1).reshape(-1, 2, 2).to(images.dtype)
    grid = torch.matmul(points, rotations).reshape(-1, height, width, 2)
    return grid_sample_fill(images, grid, fill)


def grid_sample_fill(images: Tensor, grid: Tensor, fill: float = 0.0) -> Tensor:
    """Images float [N, C, H, W] at the points of grid [N, H, W, 2] in [−1, 1]: bilinear, `fill` outside the frame."""
    if fill == 0.0:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def circular_mask(size: Size) -> Tensor:
    """[H, W]: 1 inside the circle inscribed in the shorter side, 0 outside, falling over the last pixel of its radius.

    A pixel of any weight is at least partly within half that side of the centre. So what a rotation brings in from
    outside the frame stays, but for a trace in that last pixel, where the weight is 0.
    """
    height, width = height_and_width(size)
    down, across = (torch.arange(side) + 0.5 - side / 2 for side in (height, width))
    return (min(height, width) / 2 - torch.hypot(down[:, None], across[None, :])).clamp(0.0, 1.0)


def rotate_pixels(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float = 1.0 / 255.0,
    fill: float = 0.0,
    masked: bool = False,
    dtype: torch.dtype = torch.float16,
    inv_output_scale: float = 1.0,
    input_scale: float = 0.0,
) -> Tensor:
    """Scale, rotate and cast images in one pass.

    Args:
        x: [N, H, W, C], uint8, float16 or float32.
        cos, sin: float32 [N], of the angles, counter-clockwise as displayed. With (cos, −sin) it is derotated.
        scale: factor of x: 1/255 for bytes.
        fill: the value, after `scale`, that comes in from outside the frame.
        masked: see x through `circular_mask`, with `fill` around it.
        dtype: of the output: float16, bfloat16, float32 or int8.
        inv_output_scale: 1 / scale of an int8 output.
        input_scale: int8 scale with which x is fake-quantized before rotation; 0 disables it.

    Returns:
        [N, H, W, C].

    Raises:
        KernelError: the tensors do not fit together; it names the argument.
    """
    return _rotate_pixels(x, cos, sin, scale, fill, masked, dtype, inv_output_scale, input_scale)


class _RotatePixels(NamedTuple):
    x: Tensor
    cos: Tensor
    sin: Tensor
    scale: float
    fill: float
    masked: bool
    dtype: torch.dtype
    inv_output_scale: float
    input_scale: float

    def check(self) -> None:
        x, operator = self.x, "rotate_pixels"
        check_tensor(operator, "x", x, "N H W C", INPUT_DTYPES, x)
        if x.shape[2] * x.shape[3] > MAX_ROW_ELEMENTS or x.shape[1:].numel() > MAX_ELEMENTS:
            raise KernelError(
                f"{operator} expects images of at most {MAX_ROW_ELEMENTS:,} elements in a row and {MAX_ELEMENTS:,} in "
                f"all; got {list(x.shape)}."
            )
        for name, given in (("cos", self.cos), ("sin", self.sin)):
            check_tensor(operator, name, given, "N", (torch.float32,), x, (x.shape[0],))
        if self.dtype not in OUTPUT_DTYPES:
            raise KernelError(f"{operator} gives float16, bfloat16, float32 or int8; dtype is {self.dtype}.")

    def outputs(self) -> Tensor:
        self.check()
        return self.x.new_empty(self.x.shape, dtype=self.dtype)

    def reference(self) -> Tensor:
        images = self.x.float().permute(0, 3, 1, 2) * self.scale
        if self.masked:
            mask = circular_mask((self.x.shape[1], self.x.shape[2])).to(images)
            images = images * mask + self.fill * (1.0 - mask)
        if self.input_scale > 0:
            scale = torch.tensor(self.input_scale, dtype=torch.float32)
            images = (images * (1.0 / self.input_scale)).clamp(-128.0, 127.0).round() * scale

        rotated = rotate(images, self.cos, self.sin, self.fill).permute(0, 2, 3, 1)
        if self.dtype == torch.int8:
            rotated = (rotated * self.inv_output_scale).nan_to_num(0.0).clamp(-128.0, 127.0).round()
        return rotated.to(self.dtype).contiguous()

    def launch(self, y: Tensor) -> None:
        kernel_module("rotate_pixels", "rotate").forward(
            self.x.contiguous(),
            self.cos.contiguous(),
            self.sin.contiguous(),
            y,
            self.scale,
            self.fill,
            self.inv_output_scale,
            self.masked,
            self.input_scale,
        )


_rotate_pixels = register_operator("rotate_pixels", _RotatePixels)
