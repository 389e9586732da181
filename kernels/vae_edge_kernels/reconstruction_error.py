"""The anomaly score's reconstruction term: how far the decoder's image is from the upright one."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, current_architecture, get_config
from vae_edge_kernels.implicit_gemm import divide

OPERATOR = "reconstruction_error"


@triton.jit
def reconstruction_error_kernel(
    decoded_ptr, image_ptr, score_ptr, weight_ptr, total_ptr, grid, block, side, channels, BLOCK_SIZE: tl.constexpr,
    HEIGHT: tl.constexpr = 0,
):  # fmt: skip
    """total = score[0] + weight * (error - score[1]), the whole anomaly score of an image.

        error = ||x - sigmoid(d)||² / (||x - mean(x)|| + sqrt(0.001 * size))²

    d: decoder logits [N, rows, grid, channels · block · block]: a cell of the grid is a block of pixels, laid out as
    `torch.pixel_shuffle` takes it.  x: the upright image at the decoder's size [N, height, side, channels], of `size`
    values.  score: float32 [N, 2], the score without reconstruction and the expected error.  weight: float32 [1].
    total: float32 [N].  HEIGHT: height; 0 where the image is square.

    Grid: N. A program reads the image twice: for error and mean, then for its distance from the mean.
    """
    n = tl.program_id(0).to(tl.int64)
    height = side
    if HEIGHT > 0:
        height = HEIGHT
    rows = (height + block - 1) // block
    size = height * side * channels
    cell_size = channels * block * block
    image_ptr += n * size
    decoded_ptr += n * rows * grid * cell_size

    # First pass: squared error, and the sum of x.
    squared_error, total_brightness = 0.0, 0.0
    for start in range(0, size, BLOCK_SIZE):
        offs = start + tl.arange(0, BLOCK_SIZE)
        mask = offs < size

        # Undo the pixel shuffle: the cell of pixel (y, x), and the element of the cell.
        pixel, channel = divide(offs, channels)
        y, x = divide(pixel, side)
        cell_y, y_in_cell = divide(y, block)
        cell_x, x_in_cell = divide(x, block)
        in_cell = (channel * block + y_in_cell) * block + x_in_cell
        logit = tl.load(decoded_ptr + (cell_y * grid + cell_x) * cell_size + in_cell, mask=mask, other=0.0)

        reconstruction = 1.0 / (1.0 + tl.exp(-logit.to(tl.float32)))
        image = tl.load(image_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        difference = image - reconstruction
        squared_error += tl.sum(tl.where(mask, difference * difference, 0.0), 0)
        total_brightness += tl.sum(image, 0)

    # Second pass: the image's own variance.
    mean = total_brightness / size
    variance = 0.0
    for start in range(0, size, BLOCK_SIZE):
        offs = start + tl.arange(0, BLOCK_SIZE)
        image = tl.load(image_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
        variance += tl.sum(tl.where(offs < size, (image - mean) * (image - mean), 0.0), 0)

    # The variance has a floor of 0.001 a pixel, so that the error of a blank image stays finite.
    root = tl.sqrt(variance) + tl.sqrt(0.001 * size)
    error = squared_error / (root * root)

    score, expected_error = tl.load(score_ptr + n * 2), tl.load(score_ptr + n * 2 + 1)
    tl.store(total_ptr + n, score + tl.load(weight_ptr) * (error - expected_error))


def forward(decoded: Any, image: Any, score: Any, weight: Any, total: Any, block: int) -> None:
    """Launch `reconstruction_error_kernel` on the current device and stream. All tensors are contiguous.

    Args:
        decoded: logits [N, rows, columns, C · B · B], any floating dtype.
        image: pixels [N, H, W, C], any floating dtype.
        score: float32 [N, 2], score without reconstruction and expected error.
        weight: float32 [1].
        total: float32 [N]; written.
        block: B, pixels that a cell of the grid becomes in either direction.
    """
    images, height, width, channels = image.shape
    if images == 0:
        return

    config = get_config(OPERATOR, OPERATOR, current_architecture())
    reconstruction_error_kernel[(images,)](
        decoded, image, score, weight, total, decoded.shape[2], block, width, channels,
        HEIGHT=0 if height == width else height, enable_fp_fusion=True, **config,
    )  # fmt: skip


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes: for the decoder of a network in float16, and in float32."""
    config = get_config(OPERATOR, OPERATOR, architecture)
    pointers = {name: "*fp32" for name in reconstruction_error_kernel.arg_names if name.endswith("_ptr")}
    return [
        KernelSpec(
            name=f"reconstruction_error_{dtype}",
            operator=OPERATOR,
            function=reconstruction_error_kernel,
            types=pointers
            | {"decoded_ptr": f"*{dtype}", "image_ptr": f"*{dtype}"}
            | dict.fromkeys(("grid", "block", "side", "channels"), "i32"),
            constants={"BLOCK_SIZE": config["BLOCK_SIZE"], "HEIGHT": 0},
            aligned=("decoded_ptr",),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        for dtype in ("fp16", "fp32")
    ]
