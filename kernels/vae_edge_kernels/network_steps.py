"""The steps of the whole-network kernel: convolutions, derotation, heads, decoder and score, each for one image.

`network` strings them together. All steps share their arguments:

    activations_ptr  this slot's two activation buffers, [2, activation_size], float16 or int8
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

from vae_edge_kernels.heads import atan2, classify_and_score, decode_angle, dequant_bias, load_fc_tile
from vae_edge_kernels.implicit_gemm import (
    as_dot_operand,
    fma,
    image_mainloop,
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
def in_channels_mask(column, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile's output channels are there, [BLOCK_N]; known to the compiler where the tiles fill the layer."""
    if CHANNELS % BLOCK_N == 0:
        return tl.full((BLOCK_N,), 1, dtype=tl.int1)
    return column < CHANNELS


@triton.jit
def scale_bias_relu(acc, params_ptr, NET: tl.constexpr, I: tl.constexpr, column, column_mask):
    """Epilogue of a tile: relu(acc · scale + bias), float32 [BLOCK_M, BLOCK_N]; float16 networks have no scale, and in
    int8 networks `round_tile` has the ReLU.

    An int8 layer's scale is s_x · s_w[k] / s_y and its bias b / s_y, so that the result is in units of the output.
    """
    bias = tl.load(params_ptr + NET.layers[I].bias + column, mask=column_mask, other=0.0)[None, :]
    if NET.int8:
        scale = tl.load(params_ptr + NET.layers[I].scale + column, mask=column_mask, other=0.0)
        acc = fma(acc.to(tl.float32), scale[None, :], bias)
    else:
        acc = acc + bias
    if NET.layers[I].relu and not NET.int8:
        acc = relu(acc, 1)
    return acc


@triton.jit
def round_tile(value, NET: tl.constexpr, I: tl.constexpr):
    """A tile of an int8 network in units of its output, int8, behind its ReLU where it has one."""
    if NET.layers[I].relu:
        return quantize_relu_int8(value)
    else:
        return quantize_int8(value)


@triton.jit
def store_tile(value, target_ptr, NET: tl.constexpr, I: tl.constexpr, row, column, column_mask):
    """Store a tile into the layer's output [out_pixels, out_channels], rounded where the network is int8."""
    offsets = row[:, None] * NET.layers[I].out_channels + column[None, :]
    mask = (row < NET.layers[I].out_height * NET.layers[I].out_width)[:, None] & column_mask[None, :]
    if NET.int8:
        value = round_tile(value, NET, I)
    tl.store(target_ptr + offsets, value.to(target_ptr.dtype.element_ty), mask=mask)


@triton.jit
def dequantize_stored(value, params_ptr, NET: tl.constexpr, I: tl.constexpr):
    """A tile as the next layer reads it: where the network is int8, rounded and multiplied by s_y."""
    if NET.int8:
        value = round_tile(value, NET, I).to(tl.float32) * tl.load(params_ptr + NET.layers[I].output_scale)
    return value


# ---- Convolutions ---------------------------------------------------------------------------------------------------


@triton.jit
def pixels_ptr(workspace_ptr, NET: tl.constexpr):
    """Where `store_pixels` stores the image: float16 [height + 2, width + 2, channels]."""
    return (workspace_ptr + NET.workspace.pixels).to(tl.pointer_type(tl.float16))


@triton.jit
def padded_coords(element, NET: tl.constexpr):
    """Row, column and channel in the image of an element of its padded copy, and whether it lies in the image."""
    pixel = element // NET.channels
    row, column = pixel // (NET.width + 2) - 1, pixel % (NET.width + 2) - 1
    return row, column, element % NET.channels, in_bounds(row, NET.height) & in_bounds(column, NET.width)


@triton.jit
def store_pixels(value, scale, inside, element, workspace_ptr, NET: tl.constexpr):
    """Elements of the image as a backbone's first layer reads it: value · scale, and 0 around the image.

    For int8, `scale` includes 1 / s_x, and the pixels are rounded to whole numbers, which float16 holds.
    """
    PADDED_SIZE: tl.constexpr = (NET.height + 2) * (NET.width + 2) * NET.channels
    value = tl.where(inside, value * scale, 0.0)
    if NET.int8:
        value = quantize_pixel(value)
    tl.store(pixels_ptr(workspace_ptr, NET) + element, value.to(tl.float16), mask=element < PADDED_SIZE)


@triton.jit
def load_image(image_ptr, workspace_ptr, scale, cta_rank, NET: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The image, uint8 [height, width, channels], to `pixels` in the workspace."""
    PADDED_SIZE: tl.constexpr = (NET.height + 2) * (NET.width + 2) * NET.channels
    for start in range(cta_rank * BLOCK_SIZE, PADDED_SIZE, BLOCK_SIZE * NET.ctas_per_image):
        element = start + tl.arange(0, BLOCK_SIZE)
        row, column, channel, inside = padded_coords(element, NET)
        offset = (row * NET.width + column) * NET.channels + channel
        value = tl.load(image_ptr + offset, mask=inside, other=0).to(tl.float32)
        store_pixels(value, scale, inside, element, workspace_ptr, NET)


@triton.jit
def first_conv(workspace_ptr, target_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """A backbone's first layer: y = relu(conv(pixels, w) + b), into the first activation buffer.

    The pixels, of 1 or 3 channels, are `store_pixels`'s. So few channels do not fill a matrix instruction. Therefore
    one dot sums over all R · S · C_in inputs of a pixel, gathered side by side (im2col), and the weights stay in
    registers for all tiles of rows. Both are float16 in int8 networks too: its products of whole numbers are exact.
    """
    WIDTH: tl.constexpr = NET.layers[I].out_width
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    PADDED_WIDTH: tl.constexpr = NET.width + 2
    BLOCK_M: tl.constexpr = NET.layers[I].block_m
    BLOCK_N: tl.constexpr = NET.layers[I].block_n
    BLOCK_K: tl.constexpr = NET.layers[I].block_k
    KERNEL: tl.constexpr = NET.layers[I].kernel_size
    STRIDE: tl.constexpr = NET.layers[I].stride
    CHANNELS: tl.constexpr = NET.layers[I].in_channels
    K_SIZE: tl.constexpr = KERNEL * KERNEL * CHANNELS
    OUT_CHANNELS: tl.constexpr = NET.layers[I].out_channels
    zero = opaque_zero(params_ptr, NET)

    # Column k of the im2col matrix is the channel k % C of the kernel position k // C. Those behind the last one read
    # any pixel: their weights are 0.
    k = tl.arange(0, BLOCK_K)
    position = k // CHANNELS
    offset = (position // KERNEL * PADDED_WIDTH + position % KERNEL) * CHANNELS + k % CHANNELS
    x_ptrs = pixels_ptr(workspace_ptr, NET) + tl.where(k < K_SIZE, offset, 0)[None, :]

    for n_start in tl.static_range(0, OUT_CHANNELS, BLOCK_N):
        # Weights [BLOCK_K, BLOCK_N] of these output channels: stored [K, R·S·C] for int8, [R·S·C, K] for float16.
        column = zero + n_start + tl.arange(0, BLOCK_N)
        column_mask = in_channels_mask(column, OUT_CHANNELS, BLOCK_N)
        w_mask = (k < K_SIZE)[:, None] & column_mask[None, :]
        w_ptr = weights_ptr + NET.layers[I].weights
        if NET.int8:
            w = tl.load(w_ptr + column[None, :] * K_SIZE + k[:, None], mask=w_mask, other=0).to(tl.float16)
        else:
            w = tl.load(w_ptr + k[:, None] * OUT_CHANNELS + column[None, :], mask=w_mask, other=0.0)
        w = as_dot_operand(w)

        for start in range(cta_rank * BLOCK_M, PIXELS, BLOCK_M * NET.ctas_per_image):
            row = zero + start + tl.arange(0, BLOCK_M)
            read = tl.minimum(row, PIXELS - 1)
            corner = (read // WIDTH * PADDED_WIDTH + read % WIDTH) * (STRIDE * CHANNELS)
            acc = tl.dot(as_dot_operand(tl.load(x_ptrs + corner[:, None])), w, input_precision="tf32")

            value = scale_bias_relu(acc, params_ptr, NET, I, column, column_mask)
            store_tile(value, target_ptr, NET, I, row, column, column_mask)


@triton.jit
def conv_tile(source_ptr, weights_ptr, NET: tl.constexpr, I: tl.constexpr, row, n_start):
    """Accumulators of a tile: output pixels `row` and output channels from n_start on, float32 or int32."""
    WIDTH: tl.constexpr = NET.layers[I].out_width
    KERNEL: tl.constexpr = NET.layers[I].kernel_size
    oy = row // WIDTH
    ox = row % WIDTH
    row_mask = row < NET.layers[I].out_height * NET.layers[I].out_width
    return image_mainloop(
        source_ptr, weights_ptr + NET.layers[I].weights, oy, ox, row_mask, n_start, NET.layers[I].height,
        NET.layers[I].width, NET.layers[I].in_channels, NET.layers[I].out_channels, KERNEL, NET.layers[I].stride,
        NET.layers[I].block_m, NET.layers[I].block_n, NET.layers[I].block_k, NET.layers[I].kernel_rows,
        tl.int32 if NET.int8 else tl.float32, 1 if NET.int8 else 0,
    )  # fmt: skip


@triton.jit
def hidden_conv(
    source_ptr, target_ptr, sums_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr
):
    """y = relu(conv(x, w) + b) from one activation buffer [height, width, C] into the other [out_height, out_width, K].

    The feature layer also stores the sums of each tile by channel, [tiles of rows, K], float32: its average pool needs
    no second pass over the feature maps.
    """
    PIXELS: tl.constexpr = NET.layers[I].out_height * NET.layers[I].out_width
    BLOCK_M: tl.constexpr = NET.layers[I].block_m
    BLOCK_N: tl.constexpr = NET.layers[I].block_n
    OUT_CHANNELS: tl.constexpr = NET.layers[I].out_channels
    TILES_N: tl.constexpr = (OUT_CHANNELS + BLOCK_N - 1) // BLOCK_N
    TILES_M: tl.constexpr = (PIXELS + BLOCK_M - 1) // BLOCK_M
    zero = opaque_zero(params_ptr, NET)

    for tile in range(cta_rank, TILES_M * TILES_N, NET.ctas_per_image):
        n_start = zero + tile % TILES_N * BLOCK_N
        row = zero + tile // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
        column = n_start + tl.arange(0, BLOCK_N)
        column_mask = in_channels_mask(column, OUT_CHANNELS, BLOCK_N)

        acc = conv_tile(source_ptr, weights_ptr, NET, I, row, n_start)
        value = scale_bias_relu(acc, params_ptr, NET, I, column, column_mask)
        store_tile(value, target_ptr, NET, I, row, column, column_mask)

        if NET.layers[I].is_feature_layer:
            value = tl.where((row < PIXELS)[:, None], dequantize_stored(value, params_ptr, NET, I), 0.0)
            tl.store(sums_ptr + tile // TILES_N * OUT_CHANNELS + column, tl.sum(value, 0), mask=column_mask)


@triton.jit
def finish_avg_pool(sums_ptr, means_ptr, NET: tl.constexpr, PAD: tl.constexpr, FROM: tl.constexpr, COUNT: tl.constexpr):
    """means[c] = sum over tiles of sums[tile, c] / pixels, of the feature layer among COUNT layers from FROM on."""
    FEATURES: tl.constexpr = PAD.features
    channel = tl.arange(0, FEATURES)
    for i in tl.static_range(FROM, FROM + COUNT):
        if NET.layers[i].is_feature_layer:
            PIXELS: tl.constexpr = NET.layers[i].out_height * NET.layers[i].out_width
            total = tl.zeros((FEATURES,), dtype=tl.float32)
            for tile in range(0, (PIXELS + NET.layers[i].block_m - 1) // NET.layers[i].block_m):
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
        store_pixels(value, input_scale, inside, element, workspace_ptr, NET)


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
        features_ptr, weights_ptr, params_ptr, NET, PAD.orientation, BLOCK_FC
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
    """The decoder's first layer: relu([mu, class weights] · W + b) into an activation buffer [rows, columns, width].

    The code is rounded to the weights' type. It is the first of 16 rows of a matrix, the others of which are 0.
    """
    IN_FEATURES: tl.constexpr = NET.latent + NET.classes
    k, row = tl.arange(0, PAD.code), tl.arange(0, 16)
    is_code = (k < IN_FEATURES)[None, :] & (row == 0)[:, None]
    x = tl.load(own_ptr + NET.workspace.code + k[None, :] + row[:, None] * 0, mask=is_code, other=0.0)
    if NET.int8:
        x = quantize_int8(x * tl.load(params_ptr + NET.linears[DECODER].input_scale))
    else:
        x = x.to(tl.float16)

    for start in range(cta_rank * BLOCK_FC, NET.linears[DECODER].out_features, BLOCK_FC * NET.ctas_per_image):
        column = start + tl.arange(0, BLOCK_FC)
        column_mask = column < NET.linears[DECODER].out_features
        w = load_fc_tile(weights_ptr, NET, DECODER, k, column)
        y = tl.sum(tl.dot(x, w, out_dtype=tl.int32 if NET.int8 else tl.float32), 0).to(tl.float32)
        y = dequant_bias(y, params_ptr, NET, DECODER, column, column_mask)
        y = quantize_relu_int8(y) if NET.int8 else relu(y, 1)
        tl.store(target_ptr + column, y.to(target_ptr.dtype.element_ty), mask=column_mask)


@triton.jit
def decoder_error(workspace_ptr, source_ptr, weights_ptr, params_ptr, cta_rank, NET: tl.constexpr, I: tl.constexpr):
    """errors[cta_rank] = sum over this program's tiles of (target − sigmoid(conv(x, w) + b))², the decoder's last
    layer. The target is the upright image at the decoder's size.

    The reconstruction is never stored. Channel k of a cell is its pixel (k // block % block, k % block), in image
    channel k // block² (pixel shuffle).
    """
    CELLS: tl.constexpr = NET.grid_height * NET.grid_width
    HEIGHT: tl.constexpr = (NET.height + NET.reduction - 1) // NET.reduction
    WIDTH: tl.constexpr = (NET.width + NET.reduction - 1) // NET.reduction
    BLOCK_M: tl.constexpr = NET.layers[I].block_m
    BLOCK_N: tl.constexpr = NET.layers[I].block_n
    OUT_CHANNELS: tl.constexpr = NET.layers[I].out_channels
    BLOCK: tl.constexpr = NET.block
    TILES_N: tl.constexpr = (OUT_CHANNELS + BLOCK_N - 1) // BLOCK_N
    TILES_M: tl.constexpr = (CELLS + BLOCK_M - 1) // BLOCK_M
    error = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    zero = opaque_zero(params_ptr, NET)

    for tile in range(cta_rank, TILES_M * TILES_N, NET.ctas_per_image):
        n_start = zero + tile % TILES_N * BLOCK_N
        row = zero + tile // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
        column = n_start + tl.arange(0, BLOCK_N)
        column_mask = in_channels_mask(column, OUT_CHANNELS, BLOCK_N)

        acc = conv_tile(source_ptr, weights_ptr, NET, I, row, n_start)
        decoded = 1.0 / (1.0 + tl.exp(-scale_bias_relu(acc, params_ptr, NET, I, column, column_mask)))

        # Pixel shuffle. The last cells of a row reach beyond an image whose side is no multiple of the block.
        y = (row // NET.grid_width * BLOCK)[:, None] + (column // BLOCK % BLOCK)[None, :]
        x = (row % NET.grid_width * BLOCK)[:, None] + (column % BLOCK)[None, :]
        mask = (row < CELLS)[:, None] & column_mask[None, :] & (y < HEIGHT) & (x < WIDTH)
        offsets = (y * WIDTH + x) * NET.channels + (column // (BLOCK * BLOCK))[None, :]
        target = tl.load(workspace_ptr + NET.workspace.target + offsets, mask=mask, other=0.0)
        error += tl.where(mask, (target - decoded) * (target - decoded), 0.0)

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
