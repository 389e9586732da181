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
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

WINDOW_BINS = 2  # bins on either side of the best one from which the angle is decoded
NMS_BINS = 2 * WINDOW_BINS  # non-maximum suppression: the second angle's bin is farther than this from the best one

ALIGNMENT = 16  # elements: every offset, and every row of a matrix, is a multiple of this
MAX_CTAS_PER_IMAGE = 32
MIN_TILE_PIXELS = 8  # columns of a matrix instruction


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
