"""The layout of a network: its layers, and where in memory their weights, parameters and activations are.

The kernels are specialized by a `NetworkLayout` at compile time, and what fills the memory follows it. There are three
flat buffers for the whole network:

    weights    float16 or int8 [weights_size]    filters of the convolutions, matrices of the fully connected layers
    params     float32 [params_size]             scales, biases and the constants of the anomaly score
    whitening  float16 [clusters, D, padded(D)]  whitening matrices of the anomaly score, D = components

and two for each slot, that is for each image that is worked on at a time:

    activations  float16 or int8 [activation_size]  feature maps, each at its layer's `output`
    workspace    float32 [workspace_size]           see `WorkspaceLayout`

An offset counts elements of its buffer. This module imports neither Triton nor PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any

WINDOW_BINS = 2  # bins on either side of the best one from which the angle is decoded
NMS_BINS = 2 * WINDOW_BINS  # non-maximum suppression: the second angle's bin is farther than this from the best one

ALIGNMENT = 16  # elements: every offset, and every row of a matrix, is a multiple of this
MAX_CLUSTER_BLOCK = 64  # clusters of the score that are compared at once
MAX_CTAS_PER_IMAGE = 32
MIN_TILE_PIXELS = 8  # columns of a matrix instruction
MAX_DOT_M = 32  # output channels of a `tl.dot`


class Fc(IntEnum):
    """The fully connected layers, as indices into `NetworkLayout.linears`."""

    MU = 0  # encoder's features to the latent mean
    CLASSIFIER_HIDDEN = 1  # latent mean to the classifier's hidden layer; not there in a pooled classifier
    CLASSIFIER_LOGITS = 2  # hidden layer, or the average pool of the encoder's feature layer, to class logits
    ORIENTATION = 3  # orientation features to class logits, if not pooled, and, behind them, logits of the angle bins
    DECODER = 4  # latent mean and class weights to the decoder's grid
    SECOND_CLASSIFIER = 5  # encoder's features to class logits that are added to the others


@dataclass(frozen=True)
class FilterLayout:
    """How the weights of a convolution lie in memory: in the order in which matrix instructions take them.

    The summed index goes over `rows` rows of `depth` inputs: those of a row of the kernel, [S, C], or all of a layer
    that reads an image, [R, stem_row]. A row is taken in `full` chunks, for two matrix instructions each, and `half`
    ones, for one; zeros fill the last. What is needed for `dot_m` output channels lies side by side; `fragments` says
    in which order. First come the full chunks of all rows, then the half ones:

        [rows, full, dots, 2, dot_m / 16, 8, 4, 2, 2, pack], [rows, half, dots, 1, dot_m / 16, 8, 4, 2, 2, pack]

    Element (s, j, g, t, h, i, p) of a chunk is output channel g · dot_m / 8 + 2j + i at the chunk's input
    (t · steps + s) · 2 · pack + h · pack + p, of a chunk of 1 or 2 `steps`.

    Attributes:
        dots: of dot_m output channels each; the last may have fewer, and zeros.
        pack: elements in 32 bits of a matrix instruction's operand; 2 also for int8 weights of a layer that reads an
            image, which become float16.
    """

    rows: int
    depth: int
    full: int
    half: int
    dots: int
    dot_m: int
    pack: int

    @property
    def step(self) -> int:
        """Inputs that a matrix instruction sums over."""
        return 8 * self.pack

    @property
    def full_size(self) -> int:
        """Weights in full chunks."""
        return self.rows * self.full * self.dots * self.dot_m * 2 * self.step

    @property
    def size(self) -> int:
        """All weights, with zeros."""
        return self.full_size + self.rows * self.half * self.dots * self.dot_m * self.step


@dataclass(frozen=True)
class ConvLayout:
    """A convolution of an image, kernel_size × kernel_size, zero-padded by kernel_size // 2.

    Feature maps are channels-last. One that a 3×3 layer reads has zeros around it: a row of them above and below, and
    one column between the rows, which is the right border of one and the left border of the next. Pixel (y, x) is the
    (y + 1) · (width + 1) + x + 1st then.

    Attributes:
        height, width, out_height, out_width: of the input and of the output, in pixels.
        is_feature_layer: whether the anomaly score averages its output over the pixels.
        weights: offset into the weight buffer; their order is in `FilterLayout`.
        scale: offset into params of the requantization scale s_x · s_w[k] / s_y, [K]; int8 alone.
        bias: offset into params, [K]; int8: in units of the output, b / s_y.
        output_scale: offset into params of s_y, the scale of an int8 output.
        source, output: offsets into a slot's activations of its input, unless that is an image, and of its output.
        output_border: whether the output has zeros around it.
        filters: how the weights lie in memory.
        warps_m, warps_n: how a program's warps share its tile: by output channels, and by output pixels.
        dots: a warp's tile has so many times `filters.dot_m` output channels.
        groups: output pixels of a warp's tile in eights, a power of two for each `tl.dot`.
        chunks_ahead: chunks of the summed index that are loaded ahead of the one that is multiplied.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    relu: bool
    is_feature_layer: bool
    weights: int
    scale: int
    bias: int
    output_scale: int
    source: int
    output: int
    output_border: bool
    filters: FilterLayout
    warps_m: int = 0
    warps_n: int = 0
    dots: int = 0
    groups: tuple[int, ...] = ()
    chunks_ahead: int = 0

    @property
    def reads_image(self) -> bool:
        """Whether it is a backbone's first layer."""
        return self.in_channels < ALIGNMENT

    @property
    def tile_channels(self) -> int:
        """Output channels of a program's tile."""
        return self.warps_m * self.dots * self.filters.dot_m

    @property
    def group_starts(self) -> tuple[int, ...]:
        """For each of `groups`, how many eights of the tile's pixels are before it."""
        return tuple(sum(self.groups[:i]) for i in range(len(self.groups)))

    @property
    def tile_pixels(self) -> int:
        """Output pixels of a program's tile."""
        return self.warps_n * 8 * sum(self.groups)

    @property
    def channel_tiles(self) -> int:
        """Tiles by output channels."""
        return -(-self.out_channels // self.tile_channels)

    @property
    def pixel_tiles(self) -> int:
        """Tiles by output pixels."""
        return -(-self.out_pixels // self.tile_pixels)

    @property
    def tiles(self) -> int:
        """All tiles."""
        return self.channel_tiles * self.pixel_tiles

    @property
    def pitch(self) -> int:
        """Pixels from a row of the input to the next one."""
        return self.width + self.kernel_size // 2

    @property
    def output_pitch(self) -> int:
        """The same of the output."""
        return self.out_width + self.output_border

    @property
    def output_start(self) -> int:
        """Where in the activations the output's first pixel is."""
        return self.output + (self.output_border * (self.output_pitch + 1)) * self.out_channels

    @property
    def pixels(self) -> int:
        """Of the input."""
        return self.height * self.width

    @property
    def out_pixels(self) -> int:
        """Of the output."""
        return self.out_height * self.out_width


@dataclass(frozen=True)
class LinearLayout:
    """A fully connected layer for one vector.

    Attributes:
        row_stride: elements from one row of the matrix to the next: in_features, padded with zeros.
        weights: offset into the weight buffer, [out_features, row_stride].
        scale, bias: offsets into params, [out_features]; `scale` as in `ConvLayout`.
        input_scale: offset into params of two numbers, 1 / s_x and s_x, by which an int8 layer quantizes its input.
    """

    in_features: int
    out_features: int
    row_stride: int
    weights: int
    scale: int
    bias: int
    input_scale: int


@dataclass(frozen=True)
class ScoreLayout:
    """The anomaly score's constants, as offsets into params; the formulas are in `vae_edge.model.score`.

    The whitening projection is one matrix [F, components + 1], whose last column predicts the reconstruction error. It
    is split by rows into what multiplies each group of regressors. Rows of every matrix start at multiples of 16.

    Attributes:
        project_orientation, project_features: rows for the feature means of the orientation encoder and the encoder.
        project_mu, project_classes: rows for the latent mean and the class weights.
        offset: [components + 1], added to the projection.
        max_expected_error: clamp of the predicted reconstruction error.
        nearest: [components, clusters], and nearest_offset [clusters]: their product with the projected features is
            the squared distance to each cluster, but for a constant.
        cluster_offset: [clusters, components], the cluster's mean after its own whitening.
        terms: weight / std of each of the four terms (reconstruction, features, energy, angle), then the sum of
            weight · mean / std, which is subtracted.
        fast: score mode: without the reconstruction term, so that the decoder does not run.
    """

    components: int
    clusters: int
    project_orientation: int
    project_features: int
    project_mu: int
    project_classes: int
    offset: int
    max_expected_error: int
    nearest: int
    nearest_offset: int
    cluster_offset: int
    terms: int
    fast: bool


@dataclass(frozen=True)
class WorkspaceLayout:
    """Offsets into a slot's float32 workspace.

    Attributes:
        pixels: what a backbone's first layer reads: float16 [height + 2, width, stem_row]: around each pixel those that
            a row of the kernel covers, for int8 in whole numbers. Outside the image, and behind them, are zeros.
        upright: the derotated image [height, width, channels], 0 to 1.
        target: the same at the decoder's size; the same place where that is the image's.
        orientation_sums, feature_sums: sums over the pixels of each tile of the two feature layers, [tiles, channels].
        orientation_means, feature_means: the average pools that they become, [channels].
        logits: class logits of the orientation head, [classes].
        orientation: cos θ, sin θ and log(1.001 − angle confidence).
        code: latent mean and, behind it, class weights.
        partial_score: the score without the reconstruction term, and the predicted reconstruction error.
        contrast: of the target: the length of its difference from its mean, and a minimum; see `network_steps`.
        errors: sum of squared errors of the reconstruction, one of each CTA, [MAX_CTAS_PER_IMAGE].
    """

    pixels: int
    upright: int
    target: int
    orientation_sums: int
    feature_sums: int
    orientation_means: int
    feature_means: int
    logits: int
    orientation: int
    code: int
    partial_score: int
    contrast: int
    errors: int


@dataclass(frozen=True)
class NetworkLayout:
    """A whole network.

    Attributes:
        height, width, channels: of the image.
        bins: of the angle; 0 without an orientation encoder.
        fill: a pixel's value, 0 to 1, outside the frame.
        circular_mask: whether the network sees only the circle inscribed in the frame's shorter side.
        int8: whether weights and activations are int8 instead of float16.
        layers: the convolutions: `orientation_layers` of the orientation encoder, then `encoder_layers`, then two of
            the decoder unless the score mode is fast.
        linears: the fully connected layers, by `Fc`; None where the network has none.
        grid_height, grid_width, decoder_width, block: the decoder's grid [grid_height, grid_width, decoder_width], each
            cell of which becomes block × block pixels.
        reduction: pixels of the image, each way, whose mean is a pixel of the decoder's image; 1 where they are of the
            same size.
        feature_channels, orientation_feature_channels: of the encoder's and the orientation encoder's feature layer.
        image_scale, upright_scale: offsets into params of 1 / s and s of the int8 input of either backbone.
        bin_axes: offset into params of the cosines and, behind them, the sines of the angle bins' centres.
        inverse_temperature: offset into params of 1 / temperature.
        pooled: whether the classifier is one layer that reads the average pool of the encoder's feature layer, which is
            its last layer then, and the orientation encoder gives no class logits; else it is two layers that read mu.
        second_classifier: whether another fully connected layer classifies the encoder's features; its logits are added
            to the others.
        noinline: whether the machine code has each step as a function; see `network.network`.
        warps: of a program.
        ctas_per_image: programs that work on one image; a power of two.
    """

    height: int
    width: int
    channels: int
    classes: int
    bins: int
    latent: int
    hidden: int
    fill: float
    circular_mask: bool
    int8: bool
    layers: tuple[ConvLayout, ...]
    orientation_layers: int
    encoder_layers: int
    linears: tuple[LinearLayout | None, ...]
    grid_height: int
    grid_width: int
    decoder_width: int
    block: int
    reduction: int
    feature_channels: int
    orientation_feature_channels: int
    score: ScoreLayout
    workspace: WorkspaceLayout
    activation_size: int
    workspace_size: int
    image_scale: int
    upright_scale: int
    bin_axes: int
    inverse_temperature: int
    weights_size: int
    params_size: int
    pooled: bool = False
    second_classifier: bool = False
    noinline: int = 0
    warps: int = 0
    ctas_per_image: int = 1

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.height * self.width

    @property
    def stem_row(self) -> int:
        """Inputs of a backbone's first layer in a row of its kernel, padded; see `WorkspaceLayout.pixels`."""
        return stem_row(self.channels)

    @property
    def stem_depth(self) -> int:
        """Inputs of an output of a backbone's first layer, padded."""
        return stem_depth(self.channels)

    @property
    def cells(self) -> int:
        """Of the decoder's grid."""
        return self.grid_height * self.grid_width


@dataclass(frozen=True)
class PaddedSizes:
    """Lengths of the kernels' vectors: those of a network, rounded up to powers of two, as `tl.arange` wants them."""

    classes: int
    orientation: int  # class logits and bins
    latent: int
    hidden: int
    features: int
    components: int
    clusters: int


class LayoutBuilder:
    """Hands out offsets, one part of a buffer behind the other."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self.weights_size = 0
        self.params_size = 0
        self.workspace_size = 0
        self.activation_size = 0
        self.maps: dict[tuple[int, tuple[int, int], int, bool], int] = {}

    def weights(self, size: int) -> int:
        """The offset of `size` weights."""
        offset = self.weights_size
        self.weights_size += padded(size)
        return offset

    def params(self, size: int) -> int:
        """The offset of `size` parameters."""
        offset = self.params_size
        self.params_size += padded(size)
        return offset

    def workspace(self, size: int) -> int:
        """The offset of `size` elements of workspace."""
        offset = self.workspace_size
        self.workspace_size += padded(size)
        return offset

    def feature_map(self, depth: int, size: tuple[int, int], channels: int, border: bool) -> int:
        """The offset of a feature map; maps of one depth and shape, of different backbones, share their place."""
        key = (depth, size, channels, border)
        if key not in self.maps:
            self.maps[key] = self.activation_size
            pixels = border_pixels(*size) + size[0] * size[1] if border else size[0] * size[1]
            self.activation_size += padded(pixels * channels)
        return self.maps[key]

    def conv(
        self,
        size: tuple[int, int],
        in_channels: int,
        out_channels: int,
        source: int,
        depth: int,
        stride: int = 1,
        kernel_size: int = 3,
        relu: bool = True,
        is_feature_layer: bool = False,
        output_border: bool = False,
    ) -> ConvLayout:
        """A convolution of an image of size (height, width), whose output has 1 / stride of both.

        `source` is its input's place among the activations, `depth` its place in the backbone.
        """
        filters = self.filters(in_channels, out_channels, kernel_size)
        return ConvLayout(
            *size,
            *reduced(size, stride),
            in_channels,
            out_channels,
            kernel_size,
            stride,
            relu,
            is_feature_layer,
            weights=self.weights(filters.size),
            scale=self.params(out_channels),
            bias=self.params(out_channels),
            output_scale=self.params(1),
            source=source,
            output=self.feature_map(depth, reduced(size, stride), out_channels, output_border),
            output_border=output_border,
            filters=filters,
        )

    def filters(self, in_channels: int, out_channels: int, kernel_size: int) -> FilterLayout:
        """The order of a convolution's weights."""
        channels = padded(out_channels)
        dot_m = min(channels & -channels, MAX_DOT_M)
        dots = channels // dot_m
        if in_channels < ALIGNMENT:  # it reads an image, eight bytes a thread
            depth = stem_depth(in_channels)
            return FilterLayout(1, depth, 0, depth // 16, dots, dot_m, 2)
        pack, depth = 4 if self.int8 else 2, kernel_size * in_channels
        full, rest = divmod(depth, 16 * pack)
        return FilterLayout(kernel_size, depth, full + (rest > 8 * pack), int(0 < rest <= 8 * pack), dots, dot_m, pack)

    def linear(self, in_features: int, out_features: int) -> LinearLayout:
        """A fully connected layer."""
        row_stride = padded(in_features)
        return LinearLayout(
            in_features,
            out_features,
            row_stride,
            weights=self.weights(out_features * row_stride),
            scale=self.params(out_features),
            bias=self.params(out_features),
            input_scale=self.params(2),
        )

    def backbone(
        self, size: tuple[int, int], channels: int, convolutions: Sequence[tuple[int, int]], feature_layer: int
    ) -> tuple[ConvLayout, ...]:
        """The convolutions of a backbone of `vae_edge.model.network`, each (output channels, stride)."""
        layers: list[ConvLayout] = []
        source = 0
        for out_channels, stride in convolutions:
            depth = len(layers)
            layer = self.conv(
                size,
                channels,
                out_channels,
                source,
                depth,
                stride,
                is_feature_layer=depth == feature_layer,
                output_border=depth + 1 < len(convolutions),
            )
            layers.append(layer)
            size, channels, source = (layer.out_height, layer.out_width), out_channels, layer.output
        return tuple(layers)


def reduced(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Height and width divided by a factor and rounded up."""
    return -(-size[0] // factor), -(-size[1] // factor)


def padded(size: int) -> int:
    """The size rounded up to a multiple of 16."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def border_pixels(height: int, width: int) -> int:
    """Zeros around a feature map, in pixels: two rows, a column, and one behind the last row."""
    return 2 * (width + 1) + height + 1


def stem_row(channels: int) -> int:
    """Inputs of a backbone's first layer in a row of its 3×3 kernel, padded."""
    return 4 if 3 * channels <= 4 else padded(3 * channels)


def stem_depth(channels: int) -> int:
    """Inputs of an output of a backbone's first layer, padded."""
    return padded(3 * stem_row(channels))


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least the size."""
    return 1 << max(0, size - 1).bit_length()


def make_layout(
    *,
    size: tuple[int, int],
    channels: int,
    classes: int,
    bins: int,
    latent: int,
    hidden: int,
    fill: float,
    circular_mask: bool,
    orientation: Sequence[tuple[int, int]],
    encoder: Sequence[tuple[int, int]],
    feature_layer: int,
    components: int,
    clusters: int,
    decoder: tuple[int, int, int] | None,
    reduction: int,
    int8: bool,
    pooled: bool = False,
    second_classifier: bool = False,
) -> NetworkLayout:
    """Lay out a network.

    Args:
        size: (height, width) of the image.
        bins: of the angle; 0 without an orientation encoder.
        orientation, encoder: (output channels, stride) of the convolutions of the two backbones.
        feature_layer: index in a backbone of the layer whose feature maps are averaged for the anomaly score; in an
            encoder that is `pooled` it is the last.
        components, clusters: of the anomaly score.
        decoder: (width, width of its middle layer, block), or None for the fast score mode.
        reduction, pooled, second_classifier: see `NetworkLayout`.
        int8: whether weights and activations are int8 instead of float16.
    """
    builder = LayoutBuilder(int8)
    orientation_layers = builder.backbone(size, channels, orientation, feature_layer) if bins else ()
    encoder_layers = builder.backbone(size, channels, encoder, len(encoder) - 1 if pooled else feature_layer)
    decoder_width, middle_width, block = decoder or (0, 0, 0)
    decoded = reduced(size, reduction)
    grid = reduced(decoded, block) if decoder else (0, 0)
    cells = grid[0] * grid[1]
    decoder_layers: tuple[ConvLayout, ...] = ()
    if decoder:
        depth = max(len(orientation), len(encoder))
        source = builder.feature_map(depth, grid, decoder_width, border=True)
        middle = builder.conv(grid, decoder_width, middle_width, source, depth + 1)
        # The last layer's output is not stored.
        last = builder.conv(
            grid, middle_width, channels * block**2, middle.output, depth + 1, kernel_size=1, relu=False
        )
        decoder_layers = (middle, last)
    layers = (*orientation_layers, *encoder_layers, *decoder_layers)

    feature_channels = _feature_channels(encoder_layers)
    orientation_feature_channels = _feature_channels(orientation_layers)
    pixels = builder.workspace((size[0] + 2) * size[1] * stem_row(channels) // 2)
    upright = builder.workspace(size[0] * size[1] * channels)
    has_target = decoder is not None and reduction > 1
    target = builder.workspace(decoded[0] * decoded[1] * channels) if has_target else upright
    orientation_sums = builder.workspace(_partial_sums(orientation_layers))
    feature_sums = builder.workspace(_partial_sums(encoder_layers))
    workspace = WorkspaceLayout(
        pixels=pixels,
        upright=upright,
        target=target,
        orientation_sums=orientation_sums,
        feature_sums=feature_sums,
        orientation_means=builder.workspace(orientation_feature_channels),
        feature_means=builder.workspace(feature_channels),
        logits=builder.workspace(classes),
        orientation=builder.workspace(3),
        code=builder.workspace(latent + classes),
        partial_score=builder.workspace(2),
        contrast=builder.workspace(1),
        errors=builder.workspace(MAX_CTAS_PER_IMAGE),
    )

    linear = builder.linear
    projected = padded(components + 1)
    return NetworkLayout(
        *size,
        channels,
        classes,
        bins,
        latent,
        hidden,
        fill,
        circular_mask,
        int8,
        layers=layers,
        orientation_layers=len(orientation_layers),
        encoder_layers=len(encoder_layers),
        linears=(
            linear(_features(encoder_layers), latent),
            None if pooled else linear(latent, hidden),
            linear(feature_channels if pooled else hidden, classes),
            linear(_features(orientation_layers), bins if pooled else classes + bins) if bins else None,
            linear(latent + classes, cells * decoder_width) if decoder else None,
            linear(_features(encoder_layers), classes) if second_classifier else None,
        ),
        grid_height=grid[0],
        grid_width=grid[1],
        decoder_width=decoder_width,
        block=block,
        reduction=reduction,
        feature_channels=feature_channels,
        orientation_feature_channels=orientation_feature_channels,
        score=ScoreLayout(
            components,
            clusters,
            project_orientation=builder.params(orientation_feature_channels * projected),
            project_features=builder.params(feature_channels * projected),
            project_mu=builder.params(latent * projected),
            project_classes=builder.params(classes * projected),
            offset=builder.params(projected),
            max_expected_error=builder.params(1),
            nearest=builder.params(components * padded(clusters)),
            nearest_offset=builder.params(clusters),
            cluster_offset=builder.params(padded(components) * clusters),
            terms=builder.params(5),
            fast=decoder is None,
        ),
        workspace=workspace,
        activation_size=builder.activation_size,
        workspace_size=builder.workspace_size,
        image_scale=builder.params(2),
        upright_scale=builder.params(2),
        bin_axes=builder.params(2 * bins),
        inverse_temperature=builder.params(1),
        weights_size=builder.weights_size,
        params_size=builder.params_size,
        pooled=pooled,
        second_classifier=second_classifier,
    )


def _features(layers: Sequence[ConvLayout]) -> int:
    """Numbers that a backbone gives for an image."""
    return layers[-1].out_pixels * layers[-1].out_channels


def _feature_channels(layers: Sequence[ConvLayout]) -> int:
    """Channels of a backbone's feature layer."""
    return next((layer.out_channels for layer in layers if layer.is_feature_layer), 0)


def _partial_sums(layers: Sequence[ConvLayout]) -> int:
    """Sums by channel and tile of a backbone's feature layer, with the smallest tiles."""
    return sum(
        -(-layer.out_pixels // MIN_TILE_PIXELS) * layer.out_channels for layer in layers if layer.is_feature_layer
    )


@lru_cache(maxsize=256)
def with_tile_config(
    layout: NetworkLayout,
    warps: int,
    warp_tiles: int,
    ahead_registers: int = 0,
    noinline: int = 0,
    ctas_per_image: int = 1,
) -> NetworkLayout:
    """The layout as it is compiled: each layer gets its tile.

    Args:
        layout: as `make_layout` made it.
        warps: of a program.
        warp_tiles: products of 16 output channels by 8 output pixels whose sums a warp holds, at most.
        ahead_registers: a thread's registers for operands that are loaded ahead, at most.
        noinline, ctas_per_image: see `NetworkLayout`.
    """
    layers = []
    for layer in layout.layers:
        tiled = min(_tiles(layer, warps, warp_tiles), key=lambda tiled: _tile_cost(tiled, ctas_per_image))
        of_chunk = 8 * tiled.dots * (tiled.filters.dot_m // 16) + 4 * sum(tiled.groups)
        layers.append(replace(tiled, chunks_ahead=ahead_registers // of_chunk))
    return replace(layout, layers=tuple(layers), warps=warps, noinline=noinline, ctas_per_image=ctas_per_image)


def _tiles(layer: ConvLayout, warps: int, warp_tiles: int) -> Iterator[ConvLayout]:
    """The layer with each tile that it could have."""
    groups, j = -(-layer.out_pixels // MIN_TILE_PIXELS), layer.filters.dot_m // 16
    for warps_n in (1 << bit for bit in range(warps.bit_length())):
        warps_m = warps // warps_n
        for dots in range(1, min(-(-layer.filters.dots // warps_m), max(1, warp_tiles // j)) + 1):
            most = min(-(-groups // warps_n), warp_tiles // (j * dots))
            for of_warp in range(1, max(1, most) + 1):
                parts = tuple(1 << bit for bit in reversed(range(of_warp.bit_length())) if of_warp >> bit & 1)
                yield replace(layer, warps_m=warps_m, warps_n=warps_n, dots=dots, groups=parts)


def _tile_cost(layer: ConvLayout, ctas_per_image: int) -> tuple[float, int, int]:
    """What a tile of a layer takes: modelled cycles of a multiprocessor for two matrix instructions' summed index, by
    what takes the longest; then products, and tiles.

    A matrix instruction takes 8 cycles of one of four tensor cores, 16 bytes a thread 4 of the first-level cache.
    """
    rows, columns, warps = layer.dots * layer.filters.dot_m // 16, sum(layer.groups), layer.warps_m * layer.warps_n
    loads, products = 2 * rows + columns, 2 * rows * columns
    tiles = layer.tiles
    cycles = warps * max(4.0 * loads, 2.0 * products, (loads + products) / 4)
    return -(-tiles // ctas_per_image) * cycles, tiles * warps * products, tiles


@lru_cache(maxsize=256)
def with_warps(layout: NetworkLayout, warps: int) -> NetworkLayout:
    """The layout for kernels of so many warps a program."""
    return replace(layout, warps=warps)


@lru_cache(maxsize=256)
def padded_sizes(layout: NetworkLayout) -> PaddedSizes:
    """The lengths of the vectors of a network's kernels."""

    def length(size: int) -> int:
        return max(16, next_power_of_two(size))

    return PaddedSizes(
        classes=length(layout.classes),
        orientation=length(layout.classes + layout.bins),
        latent=length(layout.latent),
        hidden=length(layout.hidden),
        features=length(max(layout.feature_channels, layout.orientation_feature_channels)),
        components=length(layout.score.components),
        clusters=length(min(layout.score.clusters, MAX_CLUSTER_BLOCK)),
    )


@lru_cache(maxsize=256)
def to_json(layout: NetworkLayout) -> str:
    """The layout as JSON, which operators and the ahead-of-time compiler take."""
    return json.dumps(asdict(layout), separators=(",", ":"))


@lru_cache(maxsize=256)
def from_json(text: str) -> NetworkLayout:
    """The layout that `to_json` wrote.

    Raises:
        ValueError: the text is not the JSON of a layout.
    """
    try:
        values = json.loads(text)
        values["layers"] = tuple(_conv_layout(**layer) for layer in values["layers"])
        values["linears"] = tuple(None if linear is None else LinearLayout(**linear) for linear in values["linears"])
        values["score"] = ScoreLayout(**values["score"])
        values["workspace"] = WorkspaceLayout(**values["workspace"])
        return NetworkLayout(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks something, or has something else: {error}") from error


def _conv_layout(filters: dict[str, int], groups: list[int], **values: Any) -> ConvLayout:
    return ConvLayout(filters=FilterLayout(**filters), groups=tuple(groups), **values)
