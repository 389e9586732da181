"""Rotating a batch of images in one pass: bytes or floats in; rotated, scaled and cast or quantized out.

Bilinear interpolation between pixel centres at half-integer coordinates, `fill` outside the frame: for finite pixels
the values of `torch.nn.functional.grid_sample` (align_corners=False), and so those of `vae_edge.ops.rotate.rotate`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, as_float32, current_architecture, dtype_name, get_config
from vae_edge_kernels.implicit_gemm import in_bounds, quantize_int8

OPERATOR = "rotate"
# What is compiled ahead of time: input type, output type, circular mask.
AOT_VARIANTS = (("u8", "fp16", False), ("u8", "fp16", True), ("u8", "fp32", False), ("u8", "i8", False))


@triton.jit
def load_texel(
    x_ptr, in_image, y, x, height, width, scale, fill, inv_input_scale, input_scale,
    MASKED: tl.constexpr, QUANTIZED: tl.constexpr, HAS_FILL: tl.constexpr,
):  # fmt: skip
    """The pixel (y, x) at x_ptr, scaled, less `fill`; 0 outside the image. y and x are whole floats.

    Without mask, quantization and fill it is not scaled: the caller scales what it interpolates, which is one product
    for four. Outside the image the interpolation's weights then multiply 0, and the caller adds `fill` once at the end.
    """
    value = tl.load(x_ptr, mask=in_image, other=0).to(tl.float32)
    if MASKED or QUANTIZED or HAS_FILL:
        value *= scale
    if HAS_FILL:
        value -= fill

    # The circular mask: 1 inside the circle inscribed in the shorter side, falling to 0 over its last pixel.
    if MASKED:
        dy, dx = y + 0.5 - 0.5 * height, x + 0.5 - 0.5 * width
        inside = 0.5 * tl.minimum(height, width) - tl.sqrt(dy * dy + dx * dx)
        value *= tl.minimum(tl.maximum(inside, 0.0), 1.0)

    # Fake quantization, of the pixel itself and not of its difference from `fill`.
    if QUANTIZED:
        if HAS_FILL:
            value += fill
        value = quantize_int8(value * inv_input_scale).to(tl.float32) * input_scale
        if HAS_FILL:
            value -= fill
    if HAS_FILL:
        value = tl.where(in_image, value, 0.0)
    return value


@triton.jit
def rotate_bilinear(
    x_ptr, row, column, channel, cos, sin, height, width, channels, scale, fill, inv_input_scale, input_scale,
    MASKED: tl.constexpr, QUANTIZED: tl.constexpr, HAS_FILL: tl.constexpr,
):  # fmt: skip
    """Pixels (row, column) of an image [height, width, channels] rotated counter-clockwise by θ, float32.

        source = R(θ) · (pixel − centre) + centre,   out = bilinear(x · scale, source)

    With cos θ and −sin θ the image is derotated. `row` and `column` are whole floats of any shape; nothing outside the
    image is read, wherever they are.

    MASKED: see the image through its inscribed circle. QUANTIZED: fake-quantize the image to int8 before rotation, with
    the scale `input_scale` and its inverse. Without HAS_FILL, `fill` counts as 0.
    """
    # Where does the output's pixel come from?
    centre_x, centre_y = 0.5 * width - 0.5, 0.5 * height - 0.5
    dx, dy = column - centre_x, row - centre_y
    x = dx * cos + centre_x - dy * sin
    y = dx * sin + centre_y + dy * cos
    left, top = tl.floor(x), tl.floor(y)
    x_fraction, y_fraction = x - left, y - top

    # Its four texels.
    ix, iy = left.to(tl.int32), top.to(tl.int32)
    in_left, in_right = in_bounds(ix, width), in_bounds(ix + 1, width)
    in_top, in_bottom = in_bounds(iy, height), in_bounds(iy + 1, height)
    upper_ptr = x_ptr + ((iy * width + ix) * channels + channel)
    lower_ptr = upper_ptr + width * channels
    upper_left = load_texel(
        upper_ptr, in_top & in_left, top, left, height, width, scale, fill, inv_input_scale, input_scale,
        MASKED, QUANTIZED, HAS_FILL,
    )  # fmt: skip
    upper_right = load_texel(
        upper_ptr + channels, in_top & in_right, top, left + 1.0, height, width, scale, fill,
        inv_input_scale, input_scale,
        MASKED, QUANTIZED, HAS_FILL,
    )  # fmt: skip
    lower_left = load_texel(
        lower_ptr, in_bottom & in_left, top + 1.0, left, height, width, scale, fill,
        inv_input_scale, input_scale, MASKED, QUANTIZED, HAS_FILL,
    )  # fmt: skip
    lower_right = load_texel(
        lower_ptr + channels, in_bottom & in_right, top + 1.0, left + 1.0, height, width, scale, fill,
        inv_input_scale, input_scale, MASKED, QUANTIZED, HAS_FILL,
    )  # fmt: skip

    # Interpolate along x, then along y.
    upper = upper_left + (upper_right - upper_left) * x_fraction
    lower = lower_left + (lower_right - lower_left) * x_fraction
    value = upper + (lower - upper) * y_fraction
    if HAS_FILL:
        value += fill
    elif not (MASKED or QUANTIZED):
        value *= scale
    return value


@triton.jit
def rotate(
    x_ptr, cos_ptr, sin_ptr, y_ptr, size, width, channels, scale, fill, inv_input_scale, input_scale, inv_output_scale,
    BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr, QUANTIZED: tl.constexpr, HAS_FILL: tl.constexpr,
):  # fmt: skip
    """y[n] = rotate(x[n] · scale, θ[n]); y[n] · inv_output_scale, rounded and saturated, where y is int8.

    x, y: [N, height, width, channels].  cos, sin: float32 [N].  size = height · width · channels, of one image.
    Grid: (N, cdiv(size, BLOCK_SIZE)).
    """
    image = tl.program_id(0).to(tl.int64) * size
    start = tl.program_id(1) * BLOCK_SIZE
    row_size = width * channels
    height = size // row_size

    # Row, column and channel of each element. One integer division gives the program's first row. From there elements
    # are counted in floats, exact in rows of up to 2^20 elements: a GPU divides integers by many instructions.
    first_row = start // row_size
    element = (start - first_row * row_size + tl.arange(0, BLOCK_SIZE)).to(tl.float32) + 0.5
    rows_below = tl.floor(element * (1.0 / row_size))
    element -= rows_below * row_size
    column = tl.floor(element * (1.0 / channels))
    channel = (element - column * channels).to(tl.int32)

    cos, sin = tl.load(cos_ptr + tl.program_id(0)), tl.load(sin_ptr + tl.program_id(0))
    value = rotate_bilinear(
        x_ptr + image, first_row + rows_below, column, channel, cos, sin, height, width, channels, scale,
        fill, inv_input_scale, input_scale, MASKED, QUANTIZED, HAS_FILL,
    )  # fmt: skip

    # The compiler shall not see that these are contiguous. It would give each thread the elements of a 16-byte store,
    # and the threads of a warp would read texels far apart, each in a line of the cache of its own.
    offsets = tl.max_contiguous(start + tl.arange(0, BLOCK_SIZE), 1)
    if y_ptr.dtype.element_ty == tl.int8:
        tl.store(y_ptr + image + offsets, quantize_int8(value * inv_output_scale), mask=offsets < size)
    else:
        tl.store(y_ptr + image + offsets, value.to(y_ptr.dtype.element_ty), mask=offsets < size)


def forward(
    x: Any, cos: Any, sin: Any, y: Any, scale: float, fill: float = 0.0, inv_output_scale: float = 1.0,
    masked: bool = False, input_scale: float = 0.0,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, y is written.

    Args:
        x: [N, H, W, C], uint8, float16 or float32.
        cos, sin: float32 [N], of the angles of rotation, counter-clockwise as displayed.
        y: [N, H, W, C], float16, bfloat16, float32 or int8.
        scale: factor of x: 1/255 for bytes.
        fill: the value, after `scale`, that comes in from outside the frame.
        inv_output_scale: 1 / scale of an int8 output.
        masked: see only the circle inscribed in the shorter side of x's frame, and `fill` around it.
        input_scale: int8 scale with which x is fake-quantized before rotation; 0 disables it.
    """
    n, height, width, channels = x.shape
    if n == 0:
        return
    chosen = get_config(OPERATOR, config_key(dtype_name(y)), current_architecture())
    size = height * width * channels
    grid = (n, triton.cdiv(size, chosen["BLOCK_SIZE"]))
    rotate[grid](
        x, cos, sin, y, size, width, channels, scale, fill, as_float32(1.0 / (input_scale or 1.0)), input_scale,
        inv_output_scale, MASKED=int(masked), QUANTIZED=int(input_scale > 0), HAS_FILL=int(fill != 0.0),
        enable_fp_fusion=True, **chosen,
    )  # fmt: skip


def config_key(output: str) -> str:
    """The configuration's key for a type of output."""
    return f"rotate_{output}" if output in ("i8", "fp32") else "rotate"


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes of this operator: each of AOT_VARIANTS, for any memory and aligned."""
    configs = {output: get_config(OPERATOR, config_key(output), architecture) for _, output, _ in AOT_VARIANTS}
    return [
        KernelSpec(
            name=f"rotate_{given}_{output}{'_masked' if masked else ''}{'_aligned' if aligned else ''}",
            operator=OPERATOR,
            function=rotate,
            types={"x_ptr": f"*{given}", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "y_ptr": f"*{output}"}
            | {"size": "i32", "width": "i32", "channels": "i32", "scale": "fp32", "fill": "fp32"}
            | {"inv_input_scale": "fp32", "input_scale": "fp32", "inv_output_scale": "fp32"},
            constants={
                "BLOCK_SIZE": configs[output]["BLOCK_SIZE"],
                "MASKED": int(masked),
                "QUANTIZED": 0,
                "HAS_FILL": 1,
            },
            aligned=("x_ptr", "y_ptr", "size") if aligned else (),
            num_warps=configs[output]["num_warps"],
            num_stages=configs[output]["num_stages"],
        )
        for given, output, masked in AOT_VARIANTS
        for aligned in (False, True)
    ]
