"""The steps of the whole-network kernel: convolutions, derotation, heads, decoder and score, each for one image.

`network` strings them together. All steps share their arguments:

    activations_ptr  this slot's feature maps, [activation_size], float16 or int8
    workspace_ptr    this slot's float32 workspace; `layout.WorkspaceLayout` has the offsets
    own_ptr          the same for what each program keeps apart: `cta_rank * private_size` behind it
    weights_ptr, params_ptr, whitening_ptr   the network's constants; `layout.NetworkLayout` has the offsets
    cta_rank         this program's index among the NET.ctas_per_image programs that share the image
    NET              the layout with its tiles, a constexpr; PAD: its vectors' lengths, powers of two
    I                index of a convolution in NET.layers, a constexpr

A step's outer loop starts at cta_rank and advances by NET.ctas_per_image, so that the image's programs divide its
tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vae_edge_kernels.fragments import (
    left_operand,
    right_operand,
    row_channel,
    stored_row,
    stored_warp,
    sums_to_tile,
    tile_row,
    tile_warp,
    vector_range,
)
from vae_edge_kernels.heads import atan2, classify_and_score, decode_angle, dequant_bias
from vae_edge_kernels.implicit_gemm import (
    fma,
    in_bounds,
    quantize_int8,
    quantize_pixel,
    quantize_relu_int8,
    relu,
)
from vae_edge_kernels.layout import Fc
from vae_edge_kernels.rotate import rotate_bilinear

DECODER = tl.constexpr(int(Fc.DECODER))


# ---- Shared by all layers -------------------------------------------------------------------------------------------


@triton.jit
def opaque_zero(params_ptr, NET: tl.constexpr):
    """0, loaded from memory, so that the compiler does not know it.

    Added to every row index. Otherwise LLVM (in Triton 3.9) sees that two layers count the same rows, and keeps the
    index arithmetic of one in registers until the next needs it.
    """
    return tl.multiple_of(tl.load(params_ptr + NET.zero).to(tl.int32), 16)


@triton.jit
def image_barrier(barrier_ptr, NET: tl.constexpr):
    """Wait for all threads of the image's programs; afterwards each sees what the others stored before.

    With several programs an image: a grid barrier among them. The counter at barrier_ptr is never reset, from launch to
    launch. Whoever arrives waits until it reaches the next multiple of ctas_per_image, a power of two; it may wrap,
    because the two are compared by their difference.
    """
    tl.debug_barrier()
    if NET.ctas_per_image > 1:
        arrival = tl.atomic_add(barrier_ptr, 1, sem="acq_rel", scope="gpu")
        goal = (arrival | (NET.ctas_per_image - 1)) + 1

        # Spin relaxed, then acquire once: an acquire invalidates the L1 cache (CCTL.IVALL), in the loop each time
        # around.
        while goal - tl.atomic_add(barrier_ptr, 0, sem="relaxed", scope="gpu") > 0:
            pass
        tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


@triton.jit
def load_rows(row_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """A parameter of each output channel, from row_ptr on, for the rows of a tile's part D: [warps or 1, dot_m, 1]."""
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    WARPS: tl.constexpr = NET.warps if NET.layers[I].warps_m > 1 else 1
    warp = tl.arange(0, WARPS)[:, None]
    value = tl.load(row_ptr + read_dot(tile, warp, NET, I, D) * DOT_M + tl.arange(0, DOT_M)[None, :])
    return value.reshape(WARPS, 8, DOT_M // 16, 2).permute(0, 2, 3, 1).reshape(WARPS, DOT_M, 1)


@triton.jit
def scale_bias_relu(sums, scale, bias, NET: tl.constexpr, I: tl.constexpr):
    """Epilogue of a tile: relu(sums · scale + bias), float32; float16 networks have no scale, their sums have the bias
    already, and in int8 networks `round_tile` has the ReLU.

    An int8 layer's scale is s_x · s_w[k] / s_y and its bias b / s_y, so that the result is in units of the output.
    """
    if NET.int8:
        value = fma(sums.to(tl.float32), scale, bias)
    elif NET.layers[I].relu:
        value = relu(sums, 1)
    else:
        value = sums
    return value


@triton.jit
def round_tile(value, NET: tl.constexpr, I: tl.constexpr):
    """A tile of an int8 network in units of its output, int8, behind its ReLU where it has one."""
    if NET.layers[I].relu:
        return quantize_relu_int8(value)
    else:
        return quantize_int8(value)


# ---- Convolutions ---------------------------------------------------------------------------------------------------


@triton.jit
def pixels_ptr(workspace_ptr, NET: tl.constexpr):
    """Where `store_pixels` stores the image; see `layout.WorkspaceLayout.pixels`."""
    return (workspace_ptr + NET.workspace.pixels).to(tl.pointer_type(tl.float16))


@triton.jit
def padded_coords(element, NET: tl.constexpr):
    """Row, column and channel in the image of an element of its padded copy, and whether it lies in the image."""
    pixel = element // NET.channels
    row, column = pixel // (NET.width + 2) - 1, pixel % (NET.width + 2) - 1
    return row, column, element % NET.channels, in_bounds(row, NET.height) & in_bounds(column, NET.width)


@triton.jit
def store_pixels(value, scale, inside, row, column, channel, workspace_ptr, NET: tl.constexpr):
    """Elements of the image as a backbone's first layer reads it: value · scale, and 0 around the image.

    Each goes to three places, of which it is the right, the middle and the left neighbour. For int8, `scale` includes
    1 / s_x, and the pixels are rounded to whole numbers, which float16 holds.
    """
    ROW: tl.constexpr = NET.stem_row
    value = tl.where(inside, value * scale, 0.0)
    if NET.int8:
        value = quantize_pixel(value)
    value = value.to(tl.float16)
    target_ptr = pixels_ptr(workspace_ptr, NET) + ((row + 1) * NET.width + column) * ROW + channel
    is_row = row <= NET.height
    for s in tl.static_range(3):
        tl.store(target_ptr + ((1 - s) * ROW + s * NET.channels), value, mask=is_row & in_bounds(column + 1 - s, NET.width))
    UNUSED: tl.constexpr = (ROW + NET.channels - 1) // NET.channels - 3
    for i in tl.static_range(UNUSED):
        rest = (3 + i) * NET.channels
        mask = is_row & in_bounds(column, NET.width) & (channel < ROW - rest)
        tl.store(target_ptr + rest, tl.zeros_like(value), mask=mask)


@triton.jit
def load_image(image_ptr, workspace_ptr, scale, cta_rank, NET: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The image, uint8 [height, width, channels], to `pixels` in the workspace."""
    PADDED_SIZE: tl.constexpr = (NET.height + 2) * (NET.width + 2) * NET.channels
    for start in range(cta_rank * BLOCK_SIZE, PADDED_SIZE, BLOCK_SIZE * NET.ctas_per_image):
        element = start + tl.arange(0, BLOCK_SIZE)
        row, column, channel, inside = padded_coords(element, NET)
        offset = (row * NET.width + column) * NET.channels + channel
        value = tl.load(image_ptr + offset, mask=inside, other=0).to(tl.float32)
        store_pixels(value, scale, inside, row, column, channel, workspace_ptr, NET)


@triton.jit
def clear_borders(activations_ptr, cta_rank, NET: tl.constexpr):
    """Zeros around the feature maps that have them; no layer writes there."""
    LAYERS: tl.constexpr = len(NET.layers)
    for i in tl.static_range(LAYERS):
        if NET.layers[i].output_border:
            clear_border(
                activations_ptr + NET.layers[i].output, cta_rank, NET.layers[i].out_height,
                NET.layers[i].out_width, NET.layers[i].out_channels, NET.ctas_per_image,
            )  # fmt: skip
    if not NET.score.fast:
        clear_border(
            activations_ptr + NET.layers[len(NET.layers) - 2].source, cta_rank, NET.grid_height, NET.grid_width,
            NET.decoder_width, NET.ctas_per_image,
        )  # fmt: skip


@triton.jit
def clear_border(
    map_ptr, cta_rank, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, CTAS: tl.constexpr
):
    """Zeros around one feature map; see `layout.ConvLayout`."""
    PITCH: tl.constexpr = WIDTH + 1
    PIXELS: tl.constexpr = 2 * PITCH + HEIGHT + 1
    PARTS: tl.constexpr = CHANNELS // 16
    BLOCK: tl.constexpr = 128
    for start in range(cta_rank * BLOCK, PIXELS * PARTS, BLOCK * CTAS):
        part = start + tl.arange(0, BLOCK)
        j = part // PARTS
        # The row above and the first column's first pixel; the other rows' first pixels; the row below.
        pixel = tl.where(j <= PITCH, j, tl.where(j < PITCH + HEIGHT, (j - PITCH + 1) * PITCH, j - HEIGHT + HEIGHT * PITCH))
        offset = pixel * CHANNELS + part % PARTS * 16
        mask = (j < PIXELS)[:, None]
        tl.store(map_ptr + offset[:, None] + tl.arange(0, 16)[None, :], tl.zeros((BLOCK, 16), map_ptr.dtype.element_ty), mask=mask)


@triton.jit
def tiles_m(NET: tl.constexpr, I: tl.constexpr):
    """A layer's tiles by output channels."""
    return (NET.layers[I].out_channels + NET.layers[I].tile_channels - 1) // NET.layers[I].tile_channels


@triton.jit
def tiles_n(NET: tl.constexpr, I: tl.constexpr):
    """A layer's tiles by output pixels."""
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    return (PIXELS + NET.layers[I].tile_pixels - 1) // NET.layers[I].tile_pixels


@triton.jit
def tile_pixel(tile, warp, place, NET: tl.constexpr, I: tl.constexpr, FIRST: tl.constexpr):
    """Output pixels that are the columns `place` of a warp's product; FIRST groups of its tile are before them."""
    WARPS_N: tl.constexpr = NET.layers[I].warps_n
    group = place // 8 * WARPS_N + warp % WARPS_N + FIRST * WARPS_N
    return tile // tiles_m(NET, I) * NET.layers[I].tile_pixels + group * 8 + place % 8


@triton.jit
def tile_dot(tile, warp, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """Which `dot_m` output channels a warp's part D of a tile is."""
    WARP_DOTS: tl.constexpr = NET.layers[I].dots
    dot = tile % tiles_m(NET, I) * (NET.layers[I].warps_m * WARP_DOTS) + D
    if NET.layers[I].warps_m > 1:
        dot += warp // NET.layers[I].warps_n * WARP_DOTS
    return dot


@triton.jit
def read_dot(tile, warp, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """The same for what is read: the last ones instead of those beyond them."""
    DOTS: tl.constexpr = NET.layers[I].filters.dots
    dot = tile_dot(tile, warp, NET, I, D)
    if DOTS % (NET.layers[I].warps_m * NET.layers[I].dots) != 0:
        dot = tl.minimum(dot, DOTS - 1)
    return dot


@triton.jit
def first_sums(params_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """What a tile's products are added to, [warps, dot_m, 8 · group] for each of its parts by channels and, within it,
    for each group of its pixels: the bias in float16 networks, else 0."""
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    DTYPE: tl.constexpr = tl.int32 if NET.int8 and not NET.layers[I].reads_image else tl.float32
    sums = ()
    for d in tl.static_range(DOTS):
        if not NET.int8:
            bias = load_rows(params_ptr + NET.layers[I].bias, tile, NET, I, d)
        for p in tl.static_range(PARTS):
            part = tl.zeros((NET.warps, NET.layers[I].filters.dot_m, 8 * NET.layers[I].groups[p]), dtype=DTYPE)
            sums = sums + (part,) if NET.int8 else sums + (part + bias,)
    return sums


@triton.jit
def load_weights(
    weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr
):
    """A chunk's weights for part D of a tile's channels, `tl.dot`'s left operand. CHUNK counts the full chunks of all
    rows, or the half ones.
    """
    WARPS: tl.constexpr = NET.warps
    PACK: tl.constexpr = NET.layers[I].filters.pack
    J: tl.constexpr = NET.layers[I].filters.dot_m // 16
    DOTS: tl.constexpr = NET.layers[I].filters.dots
    index = tl.arange(0, STEPS * J * WARPS * 8)
    dot = read_dot(tile, tile_warp(index, WARPS), NET, I, D)
    offset = tile_row(index, WARPS) * (16 * PACK) + dot * (STEPS * J * 8 * 16 * PACK)
    start = NET.layers[I].weights + (0 if STEPS == 2 else NET.layers[I].filters.full_size)
    w_ptr = weights_ptr + (start + CHUNK * (DOTS * STEPS * J * 8 * 16 * PACK))
    w = tl.load(w_ptr + offset[:, None] + vector_range(4, 4 * PACK)[None, :])
    return left_operand(w, J, WARPS, STEPS, PACK)


@triton.jit
def add_chunk(
    sums, x_ptrs, weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr
):
    """Add the products with a chunk of the summed index to a tile's sums. x_ptrs: tensors of pointers to the inputs,
    [8 · group · warps, 8 · STEPS · pack], for each group of the tile's pixels.
    """
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    xs = ()
    for p in tl.static_range(PARTS):
        x = tl.load(x_ptrs[p])
        xs = xs + (right_operand(x, NET.layers[I].groups[p], NET.warps, STEPS, NET.layers[I].filters.pack),)
    added = ()
    for d in tl.static_range(DOTS):
        w = load_weights(weights_ptr, tile, NET, I, d, CHUNK, STEPS).to(xs[0].dtype)
        for p in tl.static_range(PARTS):
            acc = sums[d * PARTS + p]
            added = added + (tl.dot(w, xs[p], acc, input_precision="tf32", out_dtype=acc.dtype),)
    return added


@triton.jit
def read_pixels(tile, NET: tl.constexpr, I: tl.constexpr):
    """Output pixels of the x tiles, [8 · group · warps] for each group; the last one instead of those beyond it."""
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    WARPS: tl.constexpr = NET.warps
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    pixels = ()
    for p in tl.static_range(PARTS):
        index = tl.arange(0, 8 * NET.layers[I].groups[p] * WARPS)
        pixel = tile_pixel(tile, tile_warp(index, WARPS), tile_row(index, WARPS), NET, I, NET.layers[I].group_starts[p])
        pixels = pixels + (tl.minimum(pixel, PIXELS - 1),)
    return pixels


@triton.jit
def offset_all(x_ptrs, offset):
    """The same offset added to tensors of pointers, each with a second axis that the offset has."""
    COUNT: tl.constexpr = len(x_ptrs)
    moved = ()
    for p in tl.static_range(COUNT):
        moved = moved + (x_ptrs[p][:, None] + offset[None, :],)
    return moved


@triton.jit
def input_ptrs(x_ptr, tile, NET: tl.constexpr, I: tl.constexpr, PITCH: tl.constexpr, CHANNELS: tl.constexpr):
    """Pointers to the first input of each output pixel of the x tiles; PITCH pixels of CHANNELS numbers are a row."""
    WIDTH: tl.constexpr = NET.layers[I].out_width
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    pixels = read_pixels(tile, NET, I)
    ptrs = ()
    for p in tl.static_range(PARTS):
        corner = pixels[p] // WIDTH * PITCH + pixels[p] % WIDTH
        ptrs = ptrs + (x_ptr + corner * (NET.layers[I].stride * CHANNELS),)
    return ptrs


@triton.jit
def chunk_inputs(START: tl.constexpr, DEPTH: tl.constexpr, VECTOR: tl.constexpr):
    """The inputs from START on that a chunk sums over, [4 · VECTOR], of which a thread loads VECTOR. Instead of those
    from DEPTH on, whose weights are 0, the last ones are read again.
    """
    k = START + tl.arange(0, 4 * VECTOR)
    if START + 4 * VECTOR > DEPTH:
        k = tl.minimum(k // VECTOR, DEPTH // VECTOR - 1) * VECTOR + k % VECTOR
    return tl.max_contiguous(tl.multiple_of(k, VECTOR), VECTOR)


@triton.jit
def conv_tile(activations_ptr, weights_ptr, params_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Sums of a tile of a layer that reads a feature map, float32 or int32, as `first_sums` has them.

    For each row of the kernel the inputs lie side by side, those of its columns with all their channels.
    """
    FULL: tl.constexpr = NET.layers[I].filters.full
    PACK: tl.constexpr = NET.layers[I].filters.pack
    DEPTH: tl.constexpr = NET.layers[I].filters.depth
    KERNEL: tl.constexpr = NET.layers[I].kernel_size
    CHANNELS: tl.constexpr = NET.layers[I].in_channels
    ROW: tl.constexpr = NET.layers[I].pitch * CHANNELS
    x_ptrs = input_ptrs(
        activations_ptr + NET.layers[I].source, tile, NET, I, NET.layers[I].pitch, NET.layers[I].in_channels
    )
    sums = first_sums(params_ptr, tile, NET, I)
    for r in tl.static_range(KERNEL):
        for f in tl.static_range(FULL):
            ptrs = offset_all(x_ptrs, r * ROW + chunk_inputs(f * 16 * PACK, DEPTH, 4 * PACK))
            sums = add_chunk(sums, ptrs, weights_ptr, tile, NET, I, r * FULL + f, 2)
        if NET.layers[I].filters.half > 0:
            ptrs = offset_all(x_ptrs, r * ROW + chunk_inputs(FULL * 16 * PACK, DEPTH, 2 * PACK))
            sums = add_chunk(sums, ptrs, weights_ptr, tile, NET, I, r, 1)
    return sums


@triton.jit
def stem_tile(workspace_ptr, weights_ptr, params_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Sums of a tile of a layer that reads the image's pixels, float32.

    They and the weights are float16 in int8 networks too: products of whole numbers are exact.
    """
    ROW: tl.constexpr = NET.stem_row
    CHUNKS: tl.constexpr = NET.layers[I].filters.half
    x_ptrs = input_ptrs(pixels_ptr(workspace_ptr, NET), tile, NET, I, NET.width, ROW)
    sums = first_sums(params_ptr, tile, NET, I)
    for h in tl.static_range(CHUNKS):
        k = h * 16 + tl.arange(0, 16)
        k = tl.minimum(k // ROW, 2) * (NET.width * ROW) + k % ROW  # behind the last row weights are 0
        ptrs = offset_all(x_ptrs, tl.max_contiguous(tl.multiple_of(k, 4), 4))
        sums = add_chunk(sums, ptrs, weights_ptr, tile, NET, I, h, 1)
    return sums


@triton.jit
def store_layer(sums, activations_ptr, sums_ptr, params_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Epilogue of a tile: into the layer's output; the feature layer also stores each tile's sums by channel."""
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    for d in tl.static_range(DOTS):
        total = tl.zeros((NET.warps, NET.layers[I].filters.dot_m), dtype=tl.float32)
        scale, bias = load_rows(params_ptr + NET.layers[I].scale, tile, NET, I, d), load_rows(params_ptr + NET.layers[I].bias, tile, NET, I, d)
        for p in tl.static_range(PARTS):
            value = scale_bias_relu(sums[d * PARTS + p], scale, bias, NET, I)
            if NET.int8:
                value = round_tile(value, NET, I)
            value = value.to(activations_ptr.dtype.element_ty)
            store_part(value, activations_ptr, tile, NET, I, d, NET.layers[I].groups[p], NET.layers[I].group_starts[p])
            if NET.layers[I].is_feature_layer:
                total += pixel_sums(value, tile, NET, I, NET.layers[I].groups[p], NET.layers[I].group_starts[p])
        if NET.layers[I].is_feature_layer:
            store_sums(total, sums_ptr, params_ptr, tile, NET, I, d)


@triton.jit
def store_part(
    value, activations_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """Values of one product, [warps, dot_m, 8 · GROUPS], into the layer's output."""
    WARPS: tl.constexpr = NET.warps
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    WIDTH: tl.constexpr = NET.layers[I].out_width
    CHANNELS: tl.constexpr = NET.layers[I].out_channels
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    index = tl.arange(0, 8 * GROUPS * WARPS)
    warp = stored_warp(index, WARPS)
    pixel = tile_pixel(tile, warp, stored_row(index, WARPS), NET, I, FIRST)
    place = pixel // WIDTH * NET.layers[I].output_pitch + pixel % WIDTH if NET.layers[I].output_border else pixel
    channel = tile_dot(tile, warp, NET, I, D) * DOT_M + index * 0
    column = tl.max_contiguous(tl.arange(0, DOT_M), DOT_M // 8)
    offset = (place * CHANNELS + channel)[:, None] + column[None, :]
    mask = (pixel < PIXELS)[:, None]
    if CHANNELS % NET.layers[I].tile_channels != 0:
        mask = mask & (channel[:, None] + column[None, :] < CHANNELS)
    value = sums_to_tile(value, DOT_M // 16, GROUPS, WARPS)
    tl.store(activations_ptr + NET.layers[I].output_start + offset, value, mask=mask)


@triton.jit
def is_pixel(tile, NET: tl.constexpr, I: tl.constexpr, GROUPS: tl.constexpr, FIRST: tl.constexpr):
    """Whether the columns of the products are output pixels, [warps, 1, 8 · GROUPS]; and which."""
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    warp, place = tl.arange(0, NET.warps)[:, None], tl.arange(0, 8 * GROUPS)[None, :]
    pixel = tile_pixel(tile, warp, place, NET, I, FIRST)[:, None, :]
    return pixel < PIXELS, pixel


@triton.jit
def pixel_sums(value, tile, NET: tl.constexpr, I: tl.constexpr, GROUPS: tl.constexpr, FIRST: tl.constexpr):
    """Sums of one product's values over their pixels, float32 [warps, dot_m]."""
    inside, _ = is_pixel(tile, NET, I, GROUPS, FIRST)
    return tl.sum(tl.where(inside, value.to(tl.float32), 0.0), 2)


@triton.jit
def store_sums(total, sums_ptr, params_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """A tile's sums over its pixels, of stored values: [tiles of pixels, channels], float32. The average pool needs no
    second pass over the feature maps then.
    """
    WARPS_M: tl.constexpr = NET.layers[I].warps_m
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    if NET.int8:
        total = total * tl.load(params_ptr + NET.layers[I].output_scale)
    total = tl.sum(total.reshape(WARPS_M, NET.layers[I].warps_n, DOT_M), 1)
    dot = tile_dot(tile, tl.arange(0, WARPS_M)[:, None] * NET.layers[I].warps_n, NET, I, D)
    channel = dot * DOT_M + row_channel(DOT_M // 16)[None, :]
    target_ptr = sums_ptr + tile // tiles_m(NET, I) * NET.layers[I].out_channels
    tl.store(target_ptr + channel, total, mask=channel < NET.layers[I].out_channels)


@triton.jit
def first_conv(workspace_ptr, activations_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """A backbone's first layer: y = relu(conv(pixels, w) + b)."""
    for tile in range(cta_rank, tiles_m(NET, I) * tiles_n(NET, I), NET.ctas_per_image):
        sums = stem_tile(workspace_ptr, weights_ptr, params_ptr, tile, NET, I)
        store_layer(sums, activations_ptr, workspace_ptr, params_ptr, tile, NET, I)


@triton.jit
def hidden_conv(activations_ptr, sums_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """y = relu(conv(x, w) + b) from one feature map to the next, and a feature layer's `store_sums`."""
    for tile in range(cta_rank, tiles_m(NET, I) * tiles_n(NET, I), NET.ctas_per_image):
        sums = conv_tile(activations_ptr, weights_ptr, params_ptr, tile, NET, I)
        store_layer(sums, activations_ptr, sums_ptr, params_ptr, tile, NET, I)


@triton.jit
def finish_avg_pool(sums_ptr, means_ptr, NET: tl.constexpr, PAD: tl.constexpr, FROM: tl.constexpr, COUNT: tl.constexpr):
    """means[c] = sum over tiles of sums[tile, c] / pixels, of the feature layer among COUNT layers from FROM on."""
    FEATURES: tl.constexpr = PAD.features
    channel = tl.arange(0, FEATURES)
    for i in tl.static_range(FROM, FROM + COUNT):
        if NET.layers[i].is_feature_layer:
            PIXELS: tl.constexpr = NET.layers[i].out_height * NET.layers[i].out_width
            total = tl.zeros((FEATURES,), dtype=tl.float32)
            for tile in range(0, tiles_n(NET, i)):
                offsets = tile * NET.layers[i].out_channels + channel
                total += tl.load(sums_ptr + offsets, mask=channel < NET.layers[i].out_channels, other=0.0)
            tl.store(means_ptr + channel, total * (1.0 / PIXELS), mask=channel < NET.layers[i].out_channels)


# ---- Orientation and derotation -------------------------------------------------------------------------------------


@triton.jit
def rotate_upright(
    image_ptr, workspace_ptr, own_ptr, params_ptr, input_scale, cta_rank, NET: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, QUANTIZED: tl.constexpr,
):  # fmt: skip
    """upright = rotate(mask(image / 255), −θ) into the workspace, float32 [height, width, channels], and times
    input_scale to `pixels`.

    image: uint8 [height, width, channels].  cos θ and sin θ are in the workspace.  QUANTIZED: fake-quantize the image
    first, as the int8 graph does. Without an orientation encoder the image is only scaled.
    """
    PADDED_SIZE: tl.constexpr = (NET.height + 2) * (NET.width + 2) * NET.channels
    scale = 1.0 / 255.0
    cos = tl.load(own_ptr + NET.workspace.orientation)
    sin = tl.load(own_ptr + NET.workspace.orientation + 1)
    inv_image_scale, image_scale = 1.0, 1.0
    if QUANTIZED:
        inv_image_scale = tl.load(params_ptr + NET.image_scale)
        image_scale = tl.load(params_ptr + NET.image_scale + 1)

    for start in range(cta_rank * BLOCK_SIZE, PADDED_SIZE, BLOCK_SIZE * NET.ctas_per_image):
        element = start + tl.arange(0, BLOCK_SIZE)
        row, column, channel, inside = padded_coords(element, NET)
        offset = (row * NET.width + column) * NET.channels + channel
        if NET.bins > 0:
            value = rotate_bilinear(
                image_ptr, row.to(tl.float32), column.to(tl.float32), channel, cos, -sin, NET.height, NET.width,
                NET.channels, scale, NET.fill, inv_image_scale, image_scale, NET.circular_mask, QUANTIZED,
                NET.fill != 0.0,
            )  # fmt: skip
        else:
            value = tl.load(image_ptr + offset, mask=inside, other=0).to(tl.float32) * scale
        tl.store(workspace_ptr + NET.workspace.upright + offset, value, mask=inside)
        store_pixels(value, input_scale, inside, row, column, channel, workspace_ptr, NET)


@triton.jit
def head_orientation(
    features_ptr, own_ptr, angle_ptr, uncertainty_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr,
    PAD: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """Orientation features to class logits, cos θ, sin θ and log(1.001 − confidence) in the workspace, and to the
    outputs angle and uncertainty [3] (confidence, second angle, second angle probability).

    Every program of the image computes it all: a barrier would cost more than the arithmetic. Each keeps
    it in its own region of the workspace; the first one stores the outputs.
    """
    logits, cos, sin, confidence, second_cos, second_sin, second_probability = decode_angle(
        features_ptr, weights_ptr, params_ptr, NET, PAD.orientation
    )

    klass = tl.arange(0, PAD.orientation)
    tl.store(own_ptr + NET.workspace.logits + klass, logits, mask=klass < NET.classes)
    tl.store(own_ptr + NET.workspace.orientation, cos)
    tl.store(own_ptr + NET.workspace.orientation + 1, sin)
    tl.store(own_ptr + NET.workspace.orientation + 2, tl.log(1.001 - confidence))

    is_first = cta_rank == 0
    tl.store(angle_ptr, atan2(sin, cos), mask=is_first)
    tl.store(uncertainty_ptr, confidence, mask=is_first)
    tl.store(uncertainty_ptr + 1, atan2(second_sin, second_cos), mask=is_first)
    tl.store(uncertainty_ptr + 2, second_probability, mask=is_first)


@triton.jit
def identity_orientation(own_ptr, angle_ptr, uncertainty_ptr, cta_rank, NET: tl.constexpr, PAD: tl.constexpr):
    """θ = 0, logits 0 and uncertainty 0, where no orientation is estimated, or not yet."""
    CLASSES: tl.constexpr = PAD.classes
    klass = tl.arange(0, CLASSES)
    zeros = tl.zeros((CLASSES,), dtype=tl.float32)
    tl.store(own_ptr + NET.workspace.logits + klass, zeros, mask=klass < NET.classes)
    tl.store(own_ptr + NET.workspace.orientation, 1.0)
    tl.store(own_ptr + NET.workspace.orientation + 1, 0.0)
    tl.store(own_ptr + NET.workspace.orientation + 2, 0.0)

    is_first = cta_rank == 0
    tl.store(angle_ptr, 0.0, mask=is_first)
    for i in tl.static_range(3):
        tl.store(uncertainty_ptr + i, 0.0, mask=is_first)


# ---- Classes and score ----------------------------------------------------------------------------------------------


@triton.jit
def head_content(
    features_ptr, workspace_ptr, own_ptr, probabilities_ptr, score_ptr, weights_ptr, params_ptr, whitening_ptr,
    cta_rank,
    NET: tl.constexpr, PAD: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """The encoder's features to the output probabilities [classes], and in the fast score mode to the output score.

    In the full mode mu, class weights, partial score and predicted reconstruction error go into the workspace, for the
    decoder. Every program of the image computes it all, as in `head_orientation`.
    """
    # The average pools of both feature layers; the barrier makes them visible to all threads of the program.
    finish_avg_pool(
        workspace_ptr + NET.workspace.orientation_sums, own_ptr + NET.workspace.orientation_means, NET, PAD,
        0, NET.orientation_layers,
    )  # fmt: skip
    finish_avg_pool(
        workspace_ptr + NET.workspace.feature_sums, own_ptr + NET.workspace.feature_means, NET, PAD,
        NET.orientation_layers, NET.encoder_layers,
    )  # fmt: skip
    tl.debug_barrier()

    klass = tl.arange(0, PAD.classes)
    logits = tl.load(own_ptr + NET.workspace.logits + klass, mask=klass < NET.classes, other=0.0)
    uncertainty = tl.load(own_ptr + NET.workspace.orientation + 2)
    probabilities, score, error = classify_and_score(
        features_ptr, own_ptr + NET.workspace.orientation_means, own_ptr + NET.workspace.feature_means,
        own_ptr + NET.workspace.code, logits, uncertainty, weights_ptr, params_ptr, whitening_ptr, NET, PAD.classes,
        PAD.latent, PAD.hidden, PAD.features, PAD.components, PAD.clusters, BLOCK_FC,
    )  # fmt: skip

    tl.store(probabilities_ptr + klass, probabilities, mask=klass < NET.classes * (1 - cta_rank))
    if NET.score.fast:
        tl.store(score_ptr, score, mask=cta_rank == 0)
    else:
        tl.store(own_ptr + NET.workspace.partial_score, score)
        tl.store(own_ptr + NET.workspace.partial_score + 1, error)


@triton.jit
def reduce_upright(workspace_ptr, cta_rank, NET: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """target[y, x] = mean of upright over its square of reduction × reduction pixels, float32 [height, width, channels]
    at the decoder's size.

    A last row or column that does not fill its square counts repeatedly.
    """
    REDUCTION: tl.constexpr = NET.reduction
    HEIGHT: tl.constexpr = (NET.height + REDUCTION - 1) // REDUCTION
    WIDTH: tl.constexpr = (NET.width + REDUCTION - 1) // REDUCTION
    SIZE: tl.constexpr = HEIGHT * WIDTH * NET.channels

    for start in range(cta_rank * BLOCK_SIZE, SIZE, BLOCK_SIZE * NET.ctas_per_image):
        element = start + tl.arange(0, BLOCK_SIZE)
        mask = element < SIZE
        pixel, channel = element // NET.channels, element % NET.channels
        top, left = pixel // WIDTH * REDUCTION, pixel % WIDTH * REDUCTION
        total = tl.zeros((BLOCK_SIZE,), dtype=tl.float32)
        for i in range(REDUCTION * REDUCTION):
            y = tl.minimum(top + i // REDUCTION, NET.height - 1)
            x = tl.minimum(left + i % REDUCTION, NET.width - 1)
            offsets = (y * NET.width + x) * NET.channels + channel
            total += tl.load(workspace_ptr + NET.workspace.upright + offsets, mask=mask, other=0.0)
        total = total * (1.0 / (REDUCTION * REDUCTION))
        tl.store(workspace_ptr + NET.workspace.target + element, total, mask=mask)


@triton.jit
def decoder_fc(
    own_ptr, target_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, PAD: tl.constexpr,
    BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """The decoder's first layer: relu([mu, class weights] · W + b) into its feature map.

    The code is rounded to the weights' type. As in `heads.vecmat_global`, the outputs are rows of a product of matrices
    whose eight columns are all alike; each warp has its own outputs, and all inputs.
    """
    WARPS: tl.constexpr = NET.warps
    ROWS: tl.constexpr = 32  # of a warp
    IN_FEATURES: tl.constexpr = NET.latent + NET.classes
    OUT_FEATURES: tl.constexpr = NET.linears[DECODER].out_features
    STRIDE: tl.constexpr = NET.linears[DECODER].row_stride
    PACK: tl.constexpr = 4 if NET.int8 else 2
    index = tl.arange(0, ROWS * WARPS)
    for start in range(cta_rank * ROWS * WARPS, OUT_FEATURES, ROWS * WARPS * NET.ctas_per_image):
        out = start + index
        w_ptr = weights_ptr + NET.linears[DECODER].weights + tl.minimum(out, OUT_FEATURES - 1) * STRIDE
        sums = tl.zeros((WARPS, ROWS, 8), dtype=tl.int32 if NET.int8 else tl.float32)
        for first in tl.static_range(0, STRIDE, 16 * PACK):
            sums = add_code_products(sums, own_ptr, w_ptr, params_ptr, NET, first, STRIDE - first, PACK)
        y = tl.max(sums, 2).to(tl.float32).reshape(WARPS, ROWS // 8, 8).permute(1, 0, 2).reshape(ROWS * WARPS)
        out_mask = out < OUT_FEATURES
        y = dequant_bias(y, params_ptr, NET, DECODER, out, out_mask)
        y = quantize_relu_int8(y) if NET.int8 else relu(y, 1)
        cell = out // NET.decoder_width
        offset = (cell // NET.grid_width + 1) * (NET.grid_width + 1) + cell % NET.grid_width + 1
        offset = offset * NET.decoder_width + out % NET.decoder_width
        tl.store(target_ptr + offset, y.to(target_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def add_code_products(
    sums, own_ptr, w_ptr, params_ptr, NET: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, PACK: tl.constexpr
):
    """Add the products with the code's numbers from FIRST on, of which the weights have REST."""
    STEPS: tl.constexpr = 1 if REST <= 8 * PACK else 2
    k = FIRST + vector_range(4, 2 * STEPS * PACK)
    code = tl.arange(0, 8 * NET.warps)[:, None] * 0 + k[None, :]
    x = tl.load(own_ptr + NET.workspace.code + code, mask=code < NET.latent + NET.classes, other=0.0)
    if NET.int8:
        x = quantize_int8(x * tl.load(params_ptr + NET.linears[DECODER].input_scale))
    else:
        x = x.to(tl.float16)
    x = right_operand(x, 1, NET.warps, STEPS, PACK)
    if REST < 8 * STEPS * PACK:
        w = tl.load(w_ptr[:, None] + k[None, :], mask=(k - FIRST < REST)[None, :], other=0)
    else:
        w = tl.load(w_ptr[:, None] + k[None, :])
    w = right_operand(w, w.shape[0] // (8 * NET.warps), NET.warps, STEPS, PACK).permute(0, 2, 1)
    return tl.dot(w, x, sums, out_dtype=sums.dtype)


@triton.jit
def decoder_error(workspace_ptr, activations_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """errors[cta_rank] = sum over this program's tiles of (target − sigmoid(conv(x, w) + b))², the decoder's last
    layer. The target is the upright image at the decoder's size.

    The reconstruction is never stored. Channel k of a cell is its pixel (k // block % block, k % block), in image
    channel k // block² (pixel shuffle).
    """
    CELLS: tl.constexpr = NET.grid_height * NET.grid_width
    HEIGHT: tl.constexpr = (NET.height + NET.reduction - 1) // NET.reduction
    WIDTH: tl.constexpr = (NET.width + NET.reduction - 1) // NET.reduction
    BLOCK: tl.constexpr = NET.block
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    error = tl.zeros((NET.warps, NET.layers[I].filters.dot_m), dtype=tl.float32)
    for tile in range(cta_rank, tiles_m(NET, I) * tiles_n(NET, I), NET.ctas_per_image):
        sums = conv_tile(activations_ptr, weights_ptr, params_ptr, tile, NET, I)
        for d in tl.static_range(DOTS):
            scale, bias = load_rows(params_ptr + NET.layers[I].scale, tile, NET, I, d), load_rows(params_ptr + NET.layers[I].bias, tile, NET, I, d)
            warp = tl.arange(0, NET.warps)[:, None]
            place = tile_dot(tile, warp, NET, I, d) * NET.layers[I].filters.dot_m
            place += row_channel(NET.layers[I].filters.dot_m // 16)[None, :]
            for p in tl.static_range(PARTS):
                value = scale_bias_relu(sums[d * PARTS + p], scale, bias, NET, I)
                decoded = 1.0 / (1.0 + tl.exp(-value))

                # Pixel shuffle. The last cells of a row reach beyond an image whose side is no multiple of the block.
                inside, cell = is_pixel(tile, NET, I, NET.layers[I].groups[p], NET.layers[I].group_starts[p])
                column = place[:, :, None]
                y = cell // NET.grid_width * BLOCK + column // BLOCK % BLOCK
                x = cell % NET.grid_width * BLOCK + column % BLOCK
                mask = inside & (column < NET.layers[I].out_channels) & (y < HEIGHT) & (x < WIDTH)
                offsets = (y * WIDTH + x) * NET.channels + column // (BLOCK * BLOCK)
                target = tl.load(workspace_ptr + NET.workspace.target + offsets, mask=mask, other=0.0)
                error += tl.sum(tl.where(mask, (target - decoded) * (target - decoded), 0.0), 2)
        
    tl.store(workspace_ptr + NET.workspace.errors + cta_rank, tl.sum(tl.sum(error, 1), 0))


@triton.jit
def full_score(workspace_ptr, own_ptr, params_ptr, score_ptr, cta_rank, NET: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """score = partial score + w_0 · (squared error / contrast² − predicted error), the full score mode's output.

        contrast = |target − mean| + sqrt(1e-3 · pixels)

    The target is the upright image at the decoder's size. See `vae_edge.model.score`. The mean is taken first: the
    variance as a difference of two sums would cancel.
    """
    HEIGHT: tl.constexpr = (NET.height + NET.reduction - 1) // NET.reduction
    WIDTH: tl.constexpr = (NET.width + NET.reduction - 1) // NET.reduction
    SIZE: tl.constexpr = HEIGHT * WIDTH * NET.channels
    total = tl.zeros((BLOCK_SIZE,), dtype=tl.float32)
    for start in range(0, SIZE, BLOCK_SIZE):
        element = start + tl.arange(0, BLOCK_SIZE)
        total += tl.load(workspace_ptr + NET.workspace.target + element, mask=element < SIZE, other=0.0)
    mean = tl.sum(total, 0) / SIZE

    total = tl.zeros((BLOCK_SIZE,), dtype=tl.float32)
    for start in range(0, SIZE, BLOCK_SIZE):
        element = start + tl.arange(0, BLOCK_SIZE)
        value = tl.load(workspace_ptr + NET.workspace.target + element, mask=element < SIZE, other=0.0)
        total += tl.where(element < SIZE, (value - mean) * (value - mean), 0.0)
    contrast = tl.sqrt(tl.sum(total, 0)) + tl.sqrt(0.001 * SIZE)

    error = 0.0
    CTAS_PER_IMAGE: tl.constexpr = NET.ctas_per_image
    for i in tl.static_range(CTAS_PER_IMAGE):
        error += tl.load(workspace_ptr + NET.workspace.errors + i)

    error = error / (contrast * contrast) - tl.load(own_ptr + NET.workspace.partial_score + 1)
    score = tl.load(own_ptr + NET.workspace.partial_score) + tl.load(params_ptr + NET.score.terms) * error
    tl.store(score_ptr, score, mask=cta_rank == 0)
