"""Turning a batch of images: the one differentiable, exportable rotation of training, augmentation and model; and the
same for inference as one operator from bytes to pixels, which on CUDA is the Triton kernel `vae_edge_kernels.turn`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.ops.registration import check_tensor, kernel_module

IMAGES = (torch.uint8, torch.float16, torch.float32)
MOST_ACROSS, MOST_ELEMENTS = 1 << 20, 1 << 24  # of one image: what the kernel counts in floats, and its grid holds
PIXELS = (torch.float16, torch.bfloat16, torch.float32, torch.int8)


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


def turn_pixels(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float = 1.0 / 255.0,
    fill: float = 0.0,
    window: bool = False,
    dtype: torch.dtype = torch.float16,
    quantize: float = 1.0,
    rounded_to: float = 0.0,
) -> Tensor:
    """Scale, turn and cast images in one pass.

    Args:
        x: [N, S, S, C], uint8, float16 or float32.
        cos, sin: float32 [N], of the angles, counter-clockwise as displayed. With minus `sin` it is turned back.
        scale: what x is multiplied by: 1/255 for bytes.
        fill: the value, after `scale`, that comes in from outside the frame.
        window: whether only the circle inscribed in x's frame is seen, and `fill` around it.
        dtype: of the output: float16, bfloat16, float32 or int8.
        quantize: what values are multiplied by before they are rounded to int8.
        rounded_to: what one of the int8 numbers counts to which the image is rounded before it is turned; 0: it is not.

    Returns:
        [N, S, S, C].

    Raises:
        KernelError: for tensors that do not fit together; it names the argument.
    """
    return _turn(x, cos, sin, scale, fill, window, dtype, quantize, rounded_to)


@torch.library.custom_op("vae_edge::turn_pixels", mutates_args=(), device_types="cpu")
def _turn(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    fill: float,
    window: bool,
    dtype: torch.dtype,
    quantize: float,
    rounded_to: float,
) -> Tensor:
    _check(x, cos, sin, dtype)
    images = x.float().permute(0, 3, 1, 2) * scale
    if window:
        seen = round_window(x.shape[1]).to(images)
        images = images * seen + fill * (1.0 - seen)
    if rounded_to > 0:
        counts = torch.tensor(rounded_to, dtype=torch.float32)
        images = (images * (1.0 / rounded_to)).clamp(-128.0, 127.0).round() * counts
    turned = turn(images, cos, sin, fill).permute(0, 2, 3, 1)
    if dtype == torch.int8:
        turned = (turned * quantize).nan_to_num(0.0).clamp(-128.0, 127.0).round()
    return turned.to(dtype).contiguous()


@_turn.register_kernel("cuda")
def _turn_cuda(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    fill: float,
    window: bool,
    dtype: torch.dtype,
    quantize: float,
    rounded_to: float,
) -> Tensor:
    _check(x, cos, sin, dtype)
    y = x.new_empty(x.shape, dtype=dtype)
    with torch.cuda.device(x.device):
        kernel_module("turn_pixels", "turn").forward(
            x.contiguous(), cos.contiguous(), sin.contiguous(), y, scale, fill, quantize, window, rounded_to
        )
    return y


@_turn.register_fake
def _turn_fake(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    fill: float,
    window: bool,
    dtype: torch.dtype,
    quantize: float,
    rounded_to: float,
) -> Tensor:
    _check(x, cos, sin, dtype)
    return x.new_empty(x.shape, dtype=dtype)


def round_window(side: int) -> Tensor:
    """[S, S]: 1 inside the circle inscribed in the frame, 0 outside, falling over the last pixel of its radius.

    A pixel with any weight is at least partly within half the frame of the centre: when a full image is turned, what
    comes in from outside the frame stays (but for a trace in that last pixel) where the weight is 0.
    """
    line = torch.arange(side) + 0.5 - side / 2
    return (side / 2 - torch.hypot(line[:, None], line[None, :])).clamp(0.0, 1.0)


def _check(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> None:
    check_tensor("turn_pixels", "x", x, "N S S C", IMAGES, x, (None, None, x.shape[1] if x.dim() == 4 else None, None))
    if x.shape[1] * x.shape[3] > MOST_ACROSS or x.shape[1] ** 2 * x.shape[3] > MOST_ELEMENTS:
        raise KernelError(
            f"turn_pixels expects images of at most {MOST_ACROSS:,} elements in a row and {MOST_ELEMENTS:,} in all; "
            f"got {list(x.shape)}."
        )
    for name, given in (("cos", cos), ("sin", sin)):
        check_tensor("turn_pixels", name, given, "N", (torch.float32,), x, (x.shape[0],))
    if dtype not in PIXELS:
        raise KernelError(f"turn_pixels gives float16, bfloat16, float32 or int8; dtype is {dtype}.")
