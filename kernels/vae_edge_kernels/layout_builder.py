"""Makes the layout of a network: hands out the offsets of its weights, parameters, feature maps and vectors.

This module imports neither Triton nor PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

from vae_edge_kernels.layout import (
    ALIGNMENT,
    MAX_CTAS_PER_IMAGE,
    MIN_TILE_PIXELS,
    ConvLayout,
    FilterLayout,
    LinearLayout,
    NetworkLayout,
    ScoreLayout,
    WorkspaceLayout,
    border_pixels,
    padded,
    reduced,
    stem_depth,
    stem_row,
)

MAX_DOT_M = 32  # output channels of a `tl.dot`


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
