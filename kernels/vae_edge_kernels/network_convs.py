"""The convolutions of the whole-network kernel, whose products take no shared memory: see `fragments`.

The steps share the arguments that `network_steps` lists. Beyond these:

    tile     number of a tile of the layer's output, [tiles by pixels, tiles by channels]
    D        part of a tile's output channels: `dot_m` of each warp
    GROUPS   eights of output pixels in one product of a warp; FIRST: those before them in the tile
"""

from __future__ import annotations

import triton
import triton.language as tl

from vae_edge_kernels.fragments import (
    left_operand,
    right_operand,
    row_channel,
    sums_to_tile,
    tile_row,
    tile_warp,
    vector_range,
)
from vae_edge_kernels.implicit_gemm import fma, least, quantize_int8, quantize_relu_packed, relu
from vae_edge_kernels.layout import ConvLayout, NetworkLayout

MAX_UNROLLED = 6  # products of 16 output channels by 8 output pixels of a warp


@triton.constexpr_function
def group_of(layer: ConvLayout, part: int) -> int:
    """Eights of output pixels in a part of a layer's tile."""
    return layer.groups[part]


@triton.constexpr_function
def start_of(layer: ConvLayout, part: int) -> int:
    """Those before it."""
    return layer.group_starts[part]


@triton.constexpr_function
def is_mixed(net: NetworkLayout, layer: ConvLayout) -> bool:
    """Whether a layer's weights become float16 of int8."""
    return net.int8 and layer.reads_image


@triton.constexpr_function
def is_unrolled(layer: ConvLayout) -> bool:
    """Whether the rows of a layer's kernel are unrolled: offsets are constants then. With more sums the assembler would
    load so far ahead that registers run out.
    """
    return layer.dots * layer.filters.dot_m // 16 * sum(layer.groups) <= MAX_UNROLLED


@triton.constexpr_function
def shares_weights(layer: ConvLayout) -> bool:
    """Whether all tiles of a layer have the same weights, so few that they stay in registers."""
    return layer.out_channels <= layer.tile_channels and layer.filters.half * layer.dots * layer.filters.dot_m <= 32


# ---- Tiles ----------------------------------------------------------------------------------------------------------


@triton.jit
def first_tile(cta_rank, NET: tl.constexpr):
    """The first tile of a program."""
    return cta_rank if NET.ctas_per_image > 1 else 0


@triton.jit
def tile_pixel(tile, warp, place, NET: tl.constexpr, I: tl.constexpr, FIRST: tl.constexpr):
    """Output pixels that are the columns `place` of a warp's product; FIRST groups of its tile are before them."""
    WARPS_N: tl.constexpr = NET.layers[I].warps_n
    group = place // 8 * WARPS_N + warp % WARPS_N + FIRST * WARPS_N
    return tile // NET.layers[I].channel_tiles * NET.layers[I].tile_pixels + group * 8 + place % 8


@triton.jit
def tile_dot(tile, warp, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """Which `dot_m` output channels a warp's part D of a tile is."""
    WARP_DOTS: tl.constexpr = NET.layers[I].dots
    dot = tile % NET.layers[I].channel_tiles * (NET.layers[I].warps_m * WARP_DOTS) + D
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


# ---- Products -------------------------------------------------------------------------------------------------------


@triton.jit
def pixels_ptr(workspace_ptr, NET: tl.constexpr):
    """Where `store_pixels` stores the image; see `layout.WorkspaceLayout.pixels`."""
    return (workspace_ptr + NET.workspace.pixels).to(tl.pointer_type(tl.float16))


@triton.jit
def first_sums(scales, NET: tl.constexpr, I: tl.constexpr):
    """What a tile's products are added to, [warps, dot_m, 8 · group] for each of its parts by channels and, within it,
    for each group of its pixels: the bias in float16 networks, else 0."""
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    WARPS: tl.constexpr = NET.warps
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    DTYPE: tl.constexpr = tl.int32 if NET.int8 and not NET.layers[I].reads_image else tl.float32
    sums = ()
    for d in tl.static_range(DOTS):
        for p in tl.static_range(PARTS):
            part = tl.zeros((WARPS, DOT_M, 8 * group_of(NET.layers[I], p)), dtype=DTYPE)
            sums = sums + (part,) if NET.int8 else sums + (part + scales[2 * d + 1],)  # type: ignore[assignment]
    return sums


@triton.jit
def load_weights(weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr, chunk, STEPS: tl.constexpr):
    """A chunk's weights for part D of a tile's channels, `tl.dot`'s left operand. chunk counts the full chunks of all
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
    w_ptr = weights_ptr + (start + chunk * (DOTS * STEPS * J * 8 * 16 * PACK))
    w = tl.load(w_ptr + offset[:, None] + vector_range(4, 4 * PACK)[None, :])
    return left_operand(w, J, WARPS, STEPS, PACK, is_mixed(NET, NET.layers[I]))


@triton.jit
def load_inputs(x_ptrs, NET: tl.constexpr, I: tl.constexpr, STEPS: tl.constexpr):
    """A chunk's inputs for each group of a tile's pixels, `tl.dot`'s right operands. x_ptrs: tensors of pointers to
    them, [8 · group · warps, 8 · STEPS · pack].
    """
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    PACK: tl.constexpr = NET.layers[I].filters.pack
    MIXED: tl.constexpr = is_mixed(NET, NET.layers[I])
    xs = ()
    for p in tl.static_range(PARTS):
        xs = xs + (right_operand(tl.load(x_ptrs[p]), group_of(NET.layers[I], p), NET.warps, STEPS, PACK, MIXED),)  # type: ignore[assignment]
    return xs


@triton.jit
def add_products(sums, xs, ws, NET: tl.constexpr, I: tl.constexpr, CHUNK: tl.constexpr):
    """Add a chunk's products to a tile's sums; xs and ws: of all chunks, one behind the other."""
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    added = ()
    for d in tl.static_range(DOTS):
        for p in tl.static_range(PARTS):
            acc = sums[d * PARTS + p]
            product = tl.dot(
                ws[CHUNK * DOTS + d], xs[CHUNK * PARTS + p], acc, input_precision="tf32", out_dtype=acc.dtype
            )
            added = added + (product,)  # type: ignore[assignment]
    return added


@triton.jit
def read_pixels(tile, NET: tl.constexpr, I: tl.constexpr):
    """Output pixels of the x tiles, [8 · group · warps] for each group; the last one instead of those beyond it."""
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    WARPS: tl.constexpr = NET.warps
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    pixels = ()
    for p in tl.static_range(PARTS):
        index = tl.arange(0, 8 * group_of(NET.layers[I], p) * WARPS)
        pixel = tile_pixel(tile, tile_warp(index, WARPS), tile_row(index, WARPS), NET, I, start_of(NET.layers[I], p))
        pixels = pixels + (tl.minimum(pixel, PIXELS - 1),)  # type: ignore[assignment]
    return pixels


@triton.jit
def offset_all(x_ptrs, offset):
    """The same offset added to tensors of pointers, each with a second axis that the offset has."""
    COUNT: tl.constexpr = len(x_ptrs)
    moved = ()
    for p in tl.static_range(COUNT):
        moved = moved + (x_ptrs[p][:, None] + offset[None, :],)  # type: ignore[assignment]
    return moved


@triton.jit
def input_ptrs(x_ptr, tile, NET: tl.constexpr, I: tl.constexpr, PITCH: tl.constexpr, CHANNELS: tl.constexpr):
    """Pointers to the first input of each output pixel of the x tiles; PITCH pixels of CHANNELS numbers are a row."""
    WIDTH: tl.constexpr = NET.layers[I].out_width
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    pixels = read_pixels(tile, NET, I)
    ptrs = ()
    for p in tl.static_range(PARTS):
        corner = pixels[p] + pixels[p] // WIDTH * (PITCH - WIDTH)
        ptrs = ptrs + (x_ptr + corner * (NET.layers[I].stride * CHANNELS),)  # type: ignore[assignment]
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
def load_chunk(x_ptrs, weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr, r, F: tl.constexpr):
    """Inputs and weights of chunk F of row r of the kernel, of a layer that reads a feature map; the half chunk is the
    last. For each row the inputs lie side by side: those of its columns with all their channels.
    """
    FULL: tl.constexpr = NET.layers[I].filters.full
    PACK: tl.constexpr = NET.layers[I].filters.pack
    ROW: tl.constexpr = NET.layers[I].pitch * NET.layers[I].in_channels
    DOTS: tl.constexpr = NET.layers[I].dots
    STEPS: tl.constexpr = 2 if F < FULL else 1
    k = chunk_inputs(F * 16 * PACK, NET.layers[I].filters.depth, 2 * STEPS * PACK)
    chunk = r * FULL + F if F < FULL else r
    weights = ()
    for d in tl.static_range(DOTS):
        weights = weights + (load_weights(weights_ptr, tile, NET, I, d, chunk, STEPS),)  # type: ignore[assignment]
    return load_inputs(offset_all(x_ptrs, r * ROW + k), NET, I, STEPS), weights


@triton.jit
def add_kernel_rows(sums, scales, x_ptrs, weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr, r, ROWS: tl.constexpr):
    """Add the products with ROWS rows of the kernel from row r on; without sums to add to, start with `first_sums`.
    Some chunks are loaded ahead of the one that is multiplied.
    """
    OF_ROW: tl.constexpr = NET.layers[I].filters.full + NET.layers[I].filters.half
    CHUNKS: tl.constexpr = ROWS * OF_ROW
    AHEAD: tl.constexpr = least(NET.layers[I].chunks_ahead, CHUNKS)
    xs, ws = (), ()
    for c in tl.static_range(AHEAD):
        x, w = load_chunk(x_ptrs, weights_ptr, tile, NET, I, r + c // OF_ROW, c % OF_ROW)
        xs, ws = xs + x, ws + w
    if len(sums) == 0:
        sums = first_sums(scales, NET, I)
    for c in tl.static_range(CHUNKS):
        if c + AHEAD < CHUNKS:
            x, w = load_chunk(x_ptrs, weights_ptr, tile, NET, I, r + (c + AHEAD) // OF_ROW, (c + AHEAD) % OF_ROW)
            xs, ws = xs + x, ws + w
        sums = add_products(sums, xs, ws, NET, I, c)
    return sums


@triton.jit
def conv_tile(activations_ptr, scales, weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Sums of a tile of a layer that reads a feature map, float32 or int32, as `first_sums` has them."""
    KERNEL: tl.constexpr = NET.layers[I].kernel_size
    UNROLLED: tl.constexpr = is_unrolled(NET.layers[I])
    x_ptrs = input_ptrs(
        activations_ptr + NET.layers[I].source, tile, NET, I, NET.layers[I].pitch, NET.layers[I].in_channels
    )
    if UNROLLED:
        sums = add_kernel_rows((), scales, x_ptrs, weights_ptr, tile, NET, I, 0, KERNEL)
    else:
        sums = first_sums(scales, NET, I)
        for r in range(KERNEL):
            sums = add_kernel_rows(sums, scales, x_ptrs, weights_ptr, tile, NET, I, r, 1)
    return sums


@triton.jit
def stem_weights(weights_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Weights of a tile of a layer that reads the image's pixels, float16, by chunk and part of its channels.

    They and the pixels are float16 in int8 networks too: products of whole numbers are exact.
    """
    DOTS: tl.constexpr = NET.layers[I].dots
    CHUNKS: tl.constexpr = NET.layers[I].filters.half
    weights = ()
    for h in tl.static_range(CHUNKS):
        for d in tl.static_range(DOTS):
            weights = weights + (load_weights(weights_ptr, tile, NET, I, d, h, 1).to(tl.float16),)  # type: ignore[assignment]
    return weights


@triton.jit
def stem_tile(workspace_ptr, scales, weights, tile, NET: tl.constexpr, I: tl.constexpr):
    """Sums of a tile of a layer that reads the image's pixels, float32; weights: see `stem_weights`."""
    ROW: tl.constexpr = NET.stem_row
    CHUNKS: tl.constexpr = NET.layers[I].filters.half
    x_ptrs = input_ptrs(pixels_ptr(workspace_ptr, NET), tile, NET, I, NET.width, ROW)
    xs = ()
    for h in tl.static_range(CHUNKS):
        k = h * 16 + tl.arange(0, 16)
        k = tl.minimum(k // ROW, 2) * (NET.width * ROW) + k % ROW  # behind the last row weights are 0
        xs = xs + load_inputs(offset_all(x_ptrs, tl.max_contiguous(tl.multiple_of(k, 4), 4)), NET, I, 1)
    sums = first_sums(scales, NET, I)
    for h in tl.static_range(CHUNKS):
        sums = add_products(sums, xs, weights, NET, I, h)
    return sums


# ---- Epilogue, and layers -------------------------------------------------------------------------------------------


@triton.jit
def load_rows(row_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """A parameter of each output channel, from row_ptr on, for the rows of a tile's part D: [warps or 1, dot_m, 1]."""
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    WARPS: tl.constexpr = NET.warps if NET.layers[I].warps_m > 1 else 1
    warp = tl.arange(0, WARPS)[:, None]
    value = tl.load(row_ptr + read_dot(tile, warp, NET, I, D) * DOT_M + tl.arange(0, DOT_M)[None, :])
    return value.reshape(WARPS, 8, DOT_M // 16, 2).permute(0, 2, 3, 1).reshape(WARPS, DOT_M, 1)


@triton.jit
def load_scales(params_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Scale and bias of a tile's channels, one behind the other, for each of its parts by channels."""
    DOTS: tl.constexpr = NET.layers[I].dots
    scales = ()
    for d in tl.static_range(DOTS):
        scale = load_rows(
            params_ptr + NET.layers[I].scale, tile, NET, I, d
        )  # not read, nor loaded, in float16 networks
        scales = scales + (scale, load_rows(params_ptr + NET.layers[I].bias, tile, NET, I, d))  # type: ignore[assignment]
    return scales


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
        return quantize_relu_packed(value)
    else:
        return quantize_int8(value)


@triton.jit
def store_layer(sums, scales, activations_ptr, sums_ptr, params_ptr, tile, NET: tl.constexpr, I: tl.constexpr):
    """Epilogue of a tile: into the layer's output; the feature layer also stores each tile's sums by channel. scales:
    see `load_scales`.
    """
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    WARPS: tl.constexpr = NET.warps
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    for d in tl.static_range(DOTS):
        total = tl.zeros((WARPS, DOT_M), dtype=tl.int32 if NET.int8 else tl.float32)
        for p in tl.static_range(PARTS):
            value = scale_bias_relu(sums[d * PARTS + p], scales[2 * d], scales[2 * d + 1], NET, I)
            if NET.int8:
                value = round_tile(value, NET, I)
            value = value.to(activations_ptr.dtype.element_ty)
            store_part(value, activations_ptr, tile, NET, I, d, group_of(NET.layers[I], p), start_of(NET.layers[I], p))
            if NET.layers[I].is_feature_layer:
                total += pixel_sums(value, tile, NET, I, group_of(NET.layers[I], p), start_of(NET.layers[I], p))
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
    warp = tile_warp(index, WARPS)
    pixel = tile_pixel(tile, warp, tile_row(index, WARPS), NET, I, FIRST)
    place = pixel + pixel // WIDTH if NET.layers[I].output_border else pixel
    channel = tile_dot(tile, warp, NET, I, D) * DOT_M + index * 0
    column = vector_range(4, DOT_M // 4)
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
    """Sums of one product's values over their pixels, [warps, dot_m]: whole numbers in int8 networks."""
    DTYPE: tl.constexpr = tl.int32 if NET.int8 else tl.float32
    inside, _ = is_pixel(tile, NET, I, GROUPS, FIRST)
    return tl.sum(tl.where(inside, value.to(DTYPE), 0), 2)


@triton.jit
def store_sums(total, sums_ptr, params_ptr, tile, NET: tl.constexpr, I: tl.constexpr, D: tl.constexpr):
    """A tile's sums over its pixels, of stored values: [tiles of pixels, channels], float32. The average pool needs no
    second pass over the feature maps then.
    """
    WARPS_M: tl.constexpr = NET.layers[I].warps_m
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    total = tl.sum(total.reshape(WARPS_M, NET.layers[I].warps_n, DOT_M), 1)
    if NET.int8:
        total = total.to(tl.float32) * tl.load(params_ptr + NET.layers[I].output_scale)
    dot = tile_dot(tile, tl.arange(0, WARPS_M)[:, None] * NET.layers[I].warps_n, NET, I, D)
    channel = dot * DOT_M + row_channel(DOT_M // 16)[None, :]
    target_ptr = sums_ptr + tile // NET.layers[I].channel_tiles * NET.layers[I].out_channels
    tl.store(target_ptr + channel, total, mask=channel < NET.layers[I].out_channels)


@triton.jit
def first_conv(workspace_ptr, activations_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """A backbone's first layer: y = relu(conv(pixels, w) + b)."""
    SHARED: tl.constexpr = shares_weights(NET.layers[I])
    if SHARED:
        weights, scales = stem_weights(weights_ptr, 0, NET, I), load_scales(params_ptr, 0, NET, I)
    for tile in range(first_tile(cta_rank, NET), NET.layers[I].tiles, NET.ctas_per_image):
        if not SHARED:
            weights, scales = stem_weights(weights_ptr, tile, NET, I), load_scales(params_ptr, tile, NET, I)
        sums = stem_tile(workspace_ptr, scales, weights, tile, NET, I)
        store_layer(sums, scales, activations_ptr, workspace_ptr, params_ptr, tile, NET, I)


@triton.jit
def hidden_conv(activations_ptr, sums_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """y = relu(conv(x, w) + b) from one feature map to the next, and a feature layer's `store_sums`."""
    for tile in range(first_tile(cta_rank, NET), NET.layers[I].tiles, NET.ctas_per_image):
        scales = load_scales(params_ptr, tile, NET, I)
        sums = conv_tile(activations_ptr, scales, weights_ptr, tile, NET, I)
        store_layer(sums, scales, activations_ptr, sums_ptr, params_ptr, tile, NET, I)
