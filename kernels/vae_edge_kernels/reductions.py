"""Reductions over an image: global average pooling, and the reconstruction error that completes the anomaly score."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import BLOCK_N_CHOICES, KernelSpec, block_n_for, current_architecture, get_config


@triton.jit
def avg_pool_kernel(x_ptr, y_ptr, pixels, channels, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """y[n, c] = scale * mean over p of x[n, p, c]

    x: [N, pixels, channels], any floating dtype or int8.  y: float32 [N, channels].

    Grid: N × cdiv(channels, BLOCK_N). A program walks over the pixels, BLOCK_M at a time.
    """
    n = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = offs_n < channels

    sums = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, pixels, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        x = tl.load(
            x_ptr + (n * pixels + offs_m)[:, None] * channels + offs_n[None, :],
            mask=(offs_m < pixels)[:, None] & n_mask[None, :],
            other=0,
        )
        sums += tl.sum(x.to(tl.float32), 0)

    tl.store(y_ptr + n * channels + offs_n, sums / pixels * scale, mask=n_mask)


@triton.jit
def reconstruction_error_kernel(
    decoded_ptr, image_ptr, score_ptr, weight_ptr, total_ptr, grid, block, side, channels, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """total = score[0] + weight * (error - score[1]), the whole anomaly score of an image.

        error = ||x - sigmoid(d)||² / (||x - mean(x)|| + sqrt(0.001 * size))²

    d: decoder logits [N, grid, grid, channels · block · block]: a cell of the grid is a block of pixels, laid out as
    `torch.pixel_shuffle` takes it.  x: the upright image [N, side, side, channels], of `size` values.  score: float32
    [N, 2], the score without reconstruction and the expected error.  weight: float32 [1].  total: float32 [N].

    Grid: N. A program reads the image twice: for error and mean, then for its distance from the mean.
    """
    n = tl.program_id(0).to(tl.int64)
    size = side * side * channels
    cell_size = channels * block * block
    image_ptr += n * size
    decoded_ptr += n * grid * grid * cell_size

    # First pass: squared error, and the sum of x.
    squared_error, total_brightness = 0.0, 0.0
    for start in range(0, size, BLOCK_SIZE):
        offs = start + tl.arange(0, BLOCK_SIZE)
        mask = offs < size

        # Undo the pixel shuffle: the cell of pixel (y, x), and the element of the cell.
        channel, pixel = offs % channels, offs // channels
        y, x = pixel // side, pixel % side
        in_cell = channel * block * block + y % block * block + x % block
        logit = tl.load(decoded_ptr + (y // block * grid + x // block) * cell_size + in_cell, mask=mask, other=0.0)

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


def avg_pool_forward(x: Any, y: Any, scale: float) -> None:
    """Launch `avg_pool_kernel` on the current device and stream.

    Args:
        x: contiguous [N, H, W, C], any floating dtype or int8.
        y: contiguous float32 [N, C]; written.
        scale: quantization scale of x, 1 for floats.
    """
    images, height, width, channels = x.shape
    if images == 0:
        return

    config = get_config("avg_pool", "avg_pool", current_architecture())
    block_n = block_n_for(channels)
    grid = (images, triton.cdiv(channels, block_n))
    avg_pool_kernel[grid](x, y, height * width, channels, scale, BLOCK_N=block_n, enable_fp_fusion=True, **config)


def reconstruction_error_forward(decoded: Any, image: Any, score: Any, weight: Any, total: Any, block: int) -> None:
    """Launch `reconstruction_error_kernel` on the current device and stream. All tensors are contiguous.

    Args:
        decoded: logits [N, G, G, C · B · B], any floating dtype.
        image: pixels [N, S, S, C], any floating dtype.
        score: float32 [N, 2], score without reconstruction and expected error.
        weight: float32 [1].
        total: float32 [N]; written.
        block: B, pixels that a cell of the grid becomes in either direction.
    """
    images, side, _, channels = image.shape
    if images == 0:
        return

    config = get_config("reconstruction_error", "reconstruction_error", current_architecture())
    reconstruction_error_kernel[(images,)](
        decoded, image, score, weight, total, decoded.shape[1], block, side, channels, enable_fp_fusion=True, **config
    )


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes: the dtypes that the network has, for channels that are multiples of 16."""
    return [*_avg_pool_specs(architecture), *_reconstruction_error_specs(architecture)]


def _avg_pool_specs(architecture: int) -> list[KernelSpec]:
    config = get_config("avg_pool", "avg_pool", architecture)
    return [
        KernelSpec(
            name=f"avg_pool_{dtype}_{block_n}",
            operator="avg_pool",
            function=avg_pool_kernel,
            types={"x_ptr": f"*{dtype}", "y_ptr": "*fp32", "pixels": "i32", "channels": "i32", "scale": "fp32"},
            constants={"BLOCK_M": config["BLOCK_M"], "BLOCK_N": block_n},
            aligned=("x_ptr", "y_ptr", "channels"),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        for dtype in ("fp16", "i8")
        for block_n in BLOCK_N_CHOICES
    ]


def _reconstruction_error_specs(architecture: int) -> list[KernelSpec]:
    config = get_config("reconstruction_error", "reconstruction_error", architecture)
    pointers = {name: "*fp32" for name in reconstruction_error_kernel.arg_names if name.endswith("_ptr")}
    return [
        KernelSpec(
            name=f"reconstruction_error_{dtype}",
            operator="reconstruction_error",
            function=reconstruction_error_kernel,
            types=pointers
            | {"decoded_ptr": f"*{dtype}", "image_ptr": f"*{dtype}"}
            | dict.fromkeys(("grid", "block", "side", "channels"), "i32"),
            constants={"BLOCK_SIZE": config["BLOCK_SIZE"]},
            aligned=("decoded_ptr",),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        for dtype in ("fp16", "fp32")
    ]
