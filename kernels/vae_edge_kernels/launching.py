"""How the convolutions are launched: geometry, names of dtypes, and the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton

from vae_edge_kernels import configurations
from vae_edge_kernels.errors import KernelError

WIDTHS = (16, 32, 64)  # output channels of a tile; the smallest that holds the layer's is taken
MOST_ROWS = 2**31 - 1024  # they are counted in 32 bits, a tile beyond the last one
ALIGNED = 16  # channels, so that 16 bytes are read and written at once
NAMES = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "i8",
    "uint8": "u8",
    "float8_e4m3fn": "fp8",
}


@dataclass(frozen=True)
class Geometry:
    """How a filter of height × width taps goes over an image: the same stride in both directions, its padding with
    zeros above and to the left (what is below and to the right follows from the output's size)."""

    tap_height: int
    tap_width: int
    stride: int = 1
    pad_top: int = 0
    pad_left: int = 0

    def arguments(self) -> tuple[int, int, int, int, int]:
        """In the kernels' order."""
        return self.tap_height, self.tap_width, self.stride, self.pad_top, self.pad_left

    def depth(self, channels: int, least: int = 16) -> int:
        """Elements that hold all taps and channels: a power of two."""
        return max(least, triton.next_power_of_2(self.tap_height * self.tap_width * channels))


def start_tiles(
    function: Any, operator: str, kernel: str, typed: Any, pointers: tuple[Any, ...], y: Any, last: tuple[float, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Launch a convolution kernel over the tiles of y [N, OH, OW, K]; the first pointer is x [N, H, W, C].

    `typed` is the tensor whose dtype names the configuration; `last` are the arguments behind the sizes.

    Raises:
        KernelError: if y has too many pixels.
    """
    x = pointers[0]
    images, out_height, out_width, outputs = y.shape
    rows = images * out_height * out_width
    if rows == 0:
        return
    if rows > MOST_ROWS:
        raise KernelError(f"{operator} makes at most {MOST_ROWS} pixels in one launch; got {rows}: split the batch.")
    first = kernel.startswith("first")
    aligned = first or all(size % ALIGNED == 0 for size in (x.shape[3], outputs))
    key = table_key(f"{kernel}_{dtype_name(typed)}", columns_for(outputs), aligned)
    architecture = configurations.current_architecture()
    chosen = configurations.choose(operator, key, architecture)
    if "PAIRED" in function.arg_names:
        options["PAIRED"] = paired(architecture)
    sizes = (rows, *x.shape[1:4], out_height, out_width, outputs)
    grid = (triton.cdiv(rows, chosen["ROWS"]), triton.cdiv(outputs, chosen["COLUMNS"]))
    function[grid](*pointers, *sizes, *last, **{**chosen, "enable_fp_fusion": True, **options})


def table_key(kernel: str, width: int, aligned: bool) -> str:
    """The name of a tile's configuration. Where channels are no multiples of 16 every element is read alone, which
    takes many registers: such tiles are smaller."""
    return f"{kernel}_{width}{'' if aligned else '_any'}"


def paired(architecture: int | None) -> int:
    """Whether eight-bit operands are multiplied in pairs of products: see `tiles.accumulate`."""
    return int(architecture is not None and architecture // 10 == 8)


def columns_for(outputs: int) -> int:
    """The columns of a tile for so many output channels."""
    return next((width for width in WIDTHS if width >= outputs), WIDTHS[-1])


def dtype_name(tensor: Any) -> str:
    """Triton's name of a tensor's dtype, as in the configurations: fp32, fp16, bf16, i8, u8, fp8.

    Raises:
        KeyError: for any other dtype.
    """
    return NAMES[str(tensor.dtype).rpartition(".")[2]]


def as_float32(value: float) -> float:
    """The nearest float32, which is what a kernel takes a number for; the interpreter takes it as it is."""
    import numpy as np

    return float(np.float32(value))
