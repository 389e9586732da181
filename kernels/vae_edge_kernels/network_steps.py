"""The steps of the whole-network kernel: convolutions, derotation, heads, decoder and score, each for one image.

`network` strings them together. All steps share their arguments:

    activations_ptr  this slot's feature maps, [activation_size], float16 or int8
    workspace_ptr    this slot's float32 workspace; `layout.WorkspaceLayout` has the offsets
    weights_ptr, params_ptr, whitening_ptr   the network's constants; `layout.NetworkLayout` has the offsets
    cta_rank         this program's index among the NET.ctas_per_image programs that share the image
    NET              the layout with its tiles, a constexpr; PAD: its vectors' lengths, powers of two
    I                index of a convolution in NET.layers, a constexpr

A step's outer loop starts at cta_rank and advances by NET.ctas_per_image, so that the image's programs divide its
tiles. Heads and score have no such loop: the image's first program alone computes them, behind a barrier and before
another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vae_edge_kernels.fragments import right_operand, row_channel, summed_index, vector_range
from vae_edge_kernels.heads import atan2, classify_and_score, decode_angle, dequant_bias
from vae_edge_kernels.implicit_gemm import (
    in_bounds,
    least,
    quantize_int8,
    quantize_pixel,
    quantize_relu_int8,
    relu,
)
from vae_edge_kernels.layout import Fc
from vae_edge_kernels.network_convs import (
    conv_tile,
    first_tile,
    group_of,
    is_pixel,
    load_scales,
    pixels_ptr,
    scale_bias_relu,
    start_of,
    tile_dot,
)
from vae_edge_kernels.rotate import rotate_bilinear

DECODER = tl.constexpr(int(Fc.DECODER))

# Whether the compiler has all threads wait before an atomic operation that releases, and after one that acquires.
BARRIERS_OF_ATOMICS = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9))


# ---- Shared by all layers -------------------------------------------------------------------------------------------


@triton.jit
def first_goal(barrier_ptr, NET: tl.constexpr):
    """What the counter at barrier_ptr was when the last launch had ended, for the first `image_barrier`.

    Others of the image's programs may have arrived there already, but not this one: the counter is less than
    ctas_per_image ahead, a power of two.
    """
    goal = tl.zeros((), tl.int32)
    if NET.ctas_per_image > 1:
        goal = tl.load(barrier_ptr, volatile=True) & -NET.ctas_per_image
    return goal


@triton.jit
def image_barrier(barrier_ptr, goal, NET: tl.constexpr):
    """Wait for all threads of the image's programs; afterwards each sees what the others stored before.

    With several programs an image: a grid barrier among them. Each counts its arrival at barrier_ptr and waits for all.
    The counter is never reset, from launch to launch; it may wrap, because it is compared by its difference.

    Returns:
        the counter's value behind the barrier, for the next one. goal: the same of the one before.
    """
    if NET.ctas_per_image > 1:
        goal += NET.ctas_per_image
        if not BARRIERS_OF_ATOMICS:
            tl.debug_barrier()
        tl.atomic_add(barrier_ptr, 1, sem="release", scope="gpu")

        # Each warp reads and spins for itself: an atomic operation's result goes to all of them through shared memory,
        # each time around. Then acquire once: it invalidates the L1 cache (CCTL.IVALL). The addition of 0 would be
        # dropped, as nobody needs its result (Triton 3.6).
        while goal - tl.load(barrier_ptr, volatile=True) > 0:
            pass
        tl.atomic_or(barrier_ptr, 0, sem="acquire", scope="gpu")
        if not BARRIERS_OF_ATOMICS:
            tl.debug_barrier()
    else:
        tl.debug_barrier()
    return goal


# ---- The image, and borders -----------------------------------------------------------------------------------------


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
        tl.store(
            target_ptr + ((1 - s) * ROW + s * NET.channels), value, mask=is_row & in_bounds(column + 1 - s, NET.width)
        )
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
        pixel = tl.where(
            j <= PITCH, j, tl.where(j < PITCH + HEIGHT, (j - PITCH + 1) * PITCH, j - HEIGHT + HEIGHT * PITCH)
        )
        offset = pixel * CHANNELS + part % PARTS * 16
        mask = (j < PIXELS)[:, None]
        tl.store(
            map_ptr + offset[:, None] + tl.arange(0, 16)[None, :],
            tl.zeros((BLOCK, 16), map_ptr.dtype.element_ty),
            mask=mask,
        )


@triton.jit
def finish_avg_pool(sums_ptr, means_ptr, NET: tl.constexpr, PAD: tl.constexpr, FROM: tl.constexpr, COUNT: tl.constexpr):
    """means[c] = sum over tiles of sums[tile, c] / pixels, of the feature layer among COUNT layers from FROM on."""
    FEATURES: tl.constexpr = PAD.features
    channel = tl.arange(0, FEATURES)
    for i in tl.static_range(FROM, FROM + COUNT):
        if NET.layers[i].is_feature_layer:
            PIXELS: tl.constexpr = NET.layers[i].out_height * NET.layers[i].out_width
            TILES: tl.constexpr = NET.layers[i].pixel_tiles
            AHEAD: tl.constexpr = least(8, TILES)
            total = tl.zeros((FEATURES,), dtype=tl.float32)
            for first in range(0, TILES, AHEAD):
                loaded = ()
                for t in tl.static_range(AHEAD):
                    mask = (channel < NET.layers[i].out_channels) & (first + t < TILES)
                    offsets = (first + t) * NET.layers[i].out_channels + channel
                    loaded = loaded + (tl.load(sums_ptr + offsets, mask=mask, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
                for t in tl.static_range(AHEAD):
                    total += loaded[t]
            tl.store(means_ptr + channel, total * (1.0 / PIXELS), mask=channel < NET.layers[i].out_channels)


# ---- Orientation and derotation -------------------------------------------------------------------------------------


@triton.jit
def rotate_upright(
    image_ptr, workspace_ptr, params_ptr, input_scale, cta_rank, NET: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """upright = rotate(mask(image / 255), −θ) into the workspace, float32 [height, width, channels], and times
    input_scale to `pixels`.

    image: uint8 [height, width, channels].  TURNED: whether cos θ and sin θ are in the workspace; otherwise θ is 0.
    An int8 network fake-quantizes an image that it turns, as its graph does. Without an orientation encoder the image
    is only scaled.
    """
    PADDED_SIZE: tl.constexpr = (NET.height + 2) * (NET.width + 2) * NET.channels
    scale = 1.0 / 255.0
    QUANTIZED: tl.constexpr = TURNED and NET.int8
    cos, sin = 1.0, 0.0
    if TURNED:
        cos = tl.load(workspace_ptr + NET.workspace.orientation)
        sin = tl.load(workspace_ptr + NET.workspace.orientation + 1)
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
    features_ptr, workspace_ptr, angle_ptr, uncertainty_ptr, weights_ptr, params_ptr, NET: tl.constexpr,
    PAD: tl.constexpr,
):  # fmt: skip
    """Orientation features to class logits, cos θ, sin θ and log(1.001 − confidence) in the workspace, and to the
    outputs angle and uncertainty [3] (confidence, second angle, second angle probability).
    """
    logits, cos, sin, confidence, second_cos, second_sin, second_probability = decode_angle(
        features_ptr, weights_ptr, params_ptr, NET, PAD.orientation
    )

    klass = tl.arange(0, PAD.orientation)
    tl.store(workspace_ptr + NET.workspace.logits + klass, logits, mask=klass < NET.classes)
    tl.store(workspace_ptr + NET.workspace.orientation, cos)
    tl.store(workspace_ptr + NET.workspace.orientation + 1, sin)
    tl.store(workspace_ptr + NET.workspace.orientation + 2, tl.log(1.001 - confidence))

    tl.store(angle_ptr, atan2(sin, cos))
    tl.store(uncertainty_ptr, confidence)
    tl.store(uncertainty_ptr + 1, atan2(second_sin, second_cos))
    tl.store(uncertainty_ptr + 2, second_probability)


@triton.jit
def identity_orientation(workspace_ptr, angle_ptr, uncertainty_ptr, NET: tl.constexpr, PAD: tl.constexpr):
    """θ = 0, logits 0 and uncertainty 0, where no orientation is estimated."""
    CLASSES: tl.constexpr = PAD.classes
    klass = tl.arange(0, CLASSES)
    zeros = tl.zeros((CLASSES,), dtype=tl.float32)
    tl.store(workspace_ptr + NET.workspace.logits + klass, zeros, mask=klass < NET.classes)
    tl.store(workspace_ptr + NET.workspace.orientation + 2, 0.0)
    tl.store(angle_ptr, 0.0)
    for i in tl.static_range(3):
        tl.store(uncertainty_ptr + i, 0.0)


# ---- Classes and score ----------------------------------------------------------------------------------------------


@triton.jit
def head_content(
    features_ptr, workspace_ptr, probabilities_ptr, score_ptr, weights_ptr, params_ptr, whitening_ptr,
    NET: tl.constexpr, PAD: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """The encoder's features to the output probabilities [classes], and in the fast score mode to the output score.

    In the full mode mu, class weights, partial score and predicted reconstruction error go into the workspace, for the
    decoder.
    """
    # The average pools of both feature layers; the barrier makes them visible to all threads of the program.
    finish_avg_pool(
        workspace_ptr + NET.workspace.orientation_sums, workspace_ptr + NET.workspace.orientation_means, NET, PAD,
        0, NET.orientation_layers,
    )  # fmt: skip
    finish_avg_pool(
        workspace_ptr + NET.workspace.feature_sums, workspace_ptr + NET.workspace.feature_means, NET, PAD,
        NET.orientation_layers, NET.encoder_layers,
    )  # fmt: skip
    tl.debug_barrier()

    klass = tl.arange(0, PAD.classes)
    logits = tl.load(workspace_ptr + NET.workspace.logits + klass, mask=klass < NET.classes, other=0.0)
    uncertainty = tl.load(workspace_ptr + NET.workspace.orientation + 2)
    probabilities, score, error = classify_and_score(
        features_ptr, workspace_ptr + NET.workspace.orientation_means, workspace_ptr + NET.workspace.feature_means,
        workspace_ptr + NET.workspace.code, logits, uncertainty, weights_ptr, params_ptr, whitening_ptr, NET,
        PAD.classes, PAD.latent, PAD.hidden, PAD.features, PAD.components, PAD.clusters, BLOCK_FC,
    )  # fmt: skip

    tl.store(probabilities_ptr + klass, probabilities, mask=klass < NET.classes)
    if NET.score.fast:
        tl.store(score_ptr, score)
    else:
        tl.store(workspace_ptr + NET.workspace.partial_score, score)
        tl.store(workspace_ptr + NET.workspace.partial_score + 1, error)


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
def decoder_fc(workspace_ptr, target_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr):
    """The decoder's first layer: relu([mu, class weights] · W + b) into its feature map.

    The code is rounded to the weights' type. As in `heads.vecmat_global`, the outputs are rows of a product of matrices
    whose eight columns are all alike; each warp has its own outputs, and all inputs.
    """
    WARPS: tl.constexpr = NET.warps
    ROWS: tl.constexpr = 32  # of a warp
    OUT_FEATURES: tl.constexpr = NET.linears[DECODER].out_features
    STRIDE: tl.constexpr = NET.linears[DECODER].row_stride
    PACK: tl.constexpr = 4 if NET.int8 else 2
    index = tl.arange(0, ROWS * WARPS)
    xs = ()
    for first in tl.static_range(0, STRIDE, 16 * PACK):
        x = code_operand(workspace_ptr, params_ptr, NET, first, STRIDE - first, PACK)
        xs = xs + (x,)  # type: ignore[assignment]  # noqa: RUF005
    for start in range(cta_rank * ROWS * WARPS, OUT_FEATURES, ROWS * WARPS * NET.ctas_per_image):
        out = start + index
        out_mask = out < OUT_FEATURES
        w_ptr = weights_ptr + NET.linears[DECODER].weights + tl.minimum(out, OUT_FEATURES - 1) * STRIDE
        sums = tl.zeros((WARPS, ROWS, 8), dtype=tl.int32 if NET.int8 else tl.float32)
        ws = ()
        for first in tl.static_range(0, STRIDE, 16 * PACK):
            ws = ws + (load_code_weights(w_ptr, NET, first, STRIDE - first, PACK),)  # type: ignore[assignment]  # noqa: RUF005
        COUNT: tl.constexpr = len(ws)
        for i in tl.static_range(COUNT):
            sums = tl.dot(ws[i], xs[i], sums, out_dtype=sums.dtype)
        y = tl.max(sums, 2).to(tl.float32).reshape(WARPS, ROWS // 8, 8).permute(1, 0, 2).reshape(ROWS * WARPS)
        y = dequant_bias(y, params_ptr, NET, DECODER, out, out_mask)
        y = quantize_relu_int8(y) if NET.int8 else relu(y, 1)
        cell = out // NET.decoder_width
        offset = (cell // NET.grid_width + 1) * (NET.grid_width + 1) + cell % NET.grid_width + 1
        offset = offset * NET.decoder_width + out % NET.decoder_width
        tl.store(target_ptr + offset, y.to(target_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def code_operand(
    workspace_ptr, params_ptr, NET: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, PACK: tl.constexpr
):
    """The code's numbers from FIRST on, of which the weights have REST, `tl.dot`'s right operand."""
    WARPS: tl.constexpr = NET.warps
    STEPS: tl.constexpr = 1 if REST <= 8 * PACK else 2
    k = FIRST + summed_index(STEPS, PACK)
    x = tl.load(workspace_ptr + NET.workspace.code + k, mask=k < NET.latent + NET.classes, other=0.0)
    if NET.int8:
        x = quantize_int8(x * tl.load(params_ptr + NET.linears[DECODER].input_scale))
    else:
        x = x.to(tl.float16)
    return tl.broadcast_to(x[None, :, None], (WARPS, 8 * STEPS * PACK, 8))


@triton.jit
def load_code_weights(w_ptr, NET: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, PACK: tl.constexpr):
    """The weights that `code_operand` is multiplied by, `tl.dot`'s left operand."""
    STEPS: tl.constexpr = 1 if REST <= 8 * PACK else 2
    k = vector_range(4, 2 * STEPS * PACK)
    w_ptrs = w_ptr[:, None] + (FIRST + k)[None, :]
    w = tl.load(w_ptrs, mask=(k < REST)[None, :], other=0) if REST < 8 * STEPS * PACK else tl.load(w_ptrs)
    return right_operand(w, w.shape[0] // (8 * NET.warps), NET.warps, STEPS, PACK).permute(0, 2, 1)


@triton.jit
def decoder_error(
    workspace_ptr, activations_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr
):
    """errors[cta_rank] = sum over this program's tiles of (target − sigmoid(conv(x, w) + b))², the decoder's last
    layer. The target is the upright image at the decoder's size.

    The reconstruction is never stored. Channel k of a cell is its pixel (k // block % block, k % block), in image
    channel k // block² (pixel shuffle).
    """
    HEIGHT: tl.constexpr = (NET.height + NET.reduction - 1) // NET.reduction
    WIDTH: tl.constexpr = (NET.width + NET.reduction - 1) // NET.reduction
    BLOCK: tl.constexpr = NET.block
    DOTS: tl.constexpr = NET.layers[I].dots
    PARTS: tl.constexpr = len(NET.layers[I].groups)
    WARPS: tl.constexpr = NET.warps
    DOT_M: tl.constexpr = NET.layers[I].filters.dot_m
    error = tl.zeros((WARPS, DOT_M), dtype=tl.float32)
    for tile in range(first_tile(cta_rank, NET), NET.layers[I].tiles, NET.ctas_per_image):
        scales = load_scales(params_ptr, tile, NET, I)
        sums = conv_tile(activations_ptr, scales, weights_ptr, tile, NET, I)
        for d in tl.static_range(DOTS):
            warp = tl.arange(0, NET.warps)[:, None]
            place = tile_dot(tile, warp, NET, I, d) * NET.layers[I].filters.dot_m
            place += row_channel(NET.layers[I].filters.dot_m // 16)[None, :]
            for p in tl.static_range(PARTS):
                value = scale_bias_relu(sums[d * PARTS + p], scales[2 * d], scales[2 * d + 1], NET, I)
                decoded = 1.0 / (1.0 + tl.exp(-value))

                # Pixel shuffle. The last cells of a row reach beyond an image whose side is no multiple of the block.
                inside, cell = is_pixel(tile, NET, I, group_of(NET.layers[I], p), start_of(NET.layers[I], p))
                column = place[:, :, None]
                y = cell // NET.grid_width * BLOCK + column // BLOCK % BLOCK
                x = cell % NET.grid_width * BLOCK + column % BLOCK
                mask = inside & (column < NET.layers[I].out_channels) & (y < HEIGHT) & (x < WIDTH)
                offsets = (y * WIDTH + x) * NET.channels + column // (BLOCK * BLOCK)
                target = tl.load(workspace_ptr + NET.workspace.target + offsets, mask=mask, other=0.0)
                error += tl.sum(tl.where(mask, (target - decoded) * (target - decoded), 0.0), 2)

    tl.store(workspace_ptr + NET.workspace.errors + cta_rank, tl.sum(tl.sum(error, 1), 0))


@triton.jit
def target_contrast(workspace_ptr, NET: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """contrast = |target − mean| + sqrt(1e-3 · pixels) into the workspace.

    The target is the upright image at the decoder's size. The mean is taken first: the variance as a difference of two
    sums would cancel.
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
    tl.store(workspace_ptr + NET.workspace.contrast, tl.sqrt(tl.sum(total, 0)) + tl.sqrt(0.001 * SIZE))


@triton.jit
def full_score(workspace_ptr, params_ptr, score_ptr, NET: tl.constexpr):
    """score = partial score + w_0 · (squared error / contrast² − predicted error), the full score mode's output. See
    `vae_edge.model.score`.
    """
    contrast = tl.load(workspace_ptr + NET.workspace.contrast)
    predicted = tl.load(workspace_ptr + NET.workspace.partial_score + 1)
    partial, weight = tl.load(workspace_ptr + NET.workspace.partial_score), tl.load(params_ptr + NET.score.terms)
    errors = ()
    CTAS_PER_IMAGE: tl.constexpr = NET.ctas_per_image
    for i in tl.static_range(CTAS_PER_IMAGE):
        errors = errors + (tl.load(workspace_ptr + NET.workspace.errors + i),)  # type: ignore[assignment]  # noqa: RUF005
    error = 0.0
    for i in tl.static_range(CTAS_PER_IMAGE):
        error += errors[i]
    tl.store(score_ptr, partial + weight * (error / (contrast * contrast) - predicted))
