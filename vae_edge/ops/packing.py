"""A trained network's weights and parameters in the order in which the kernels read them.

`vae_edge_kernels.layout` says at which offset each stands. Layers go by the names of their modules:
`encoder.layers.0.0`, `orientation.angle_bins`, `classifier.2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from vae_edge_kernels.layout import ConvLayout, Fc, FilterLayout, LinearLayout, NetworkLayout, padded
from vae_edge_kernels.layout_builder import make_layout

from vae_edge.errors import KernelError

TERMS = 4  # of the score: reconstruction, features, energy, angle
ScoreMode = Literal["full", "fast"]


@dataclass(frozen=True)
class LayerParams:
    """A layer with the batch normalization behind it folded in.

    Attributes:
        weight: [K, C, R, S] or [K, F], float32 or int8.
        bias: float32 [K].
        scale: s_w, float32 [K], of an int8 weight.
        input_scale: s_x, of an int8 input.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    input_scale: float | None = None


@dataclass(frozen=True)
class QuantizedNetwork:
    """The int8 layers of a network, by the names of their modules.

    `offset` and `nearest_offset` are those of the anomaly score, which bias correction changes with the layers'
    biases; None where the file has none of its own.
    """

    layers: Mapping[str, LayerParams]
    offset: Tensor | None = None
    nearest_offset: Tensor | None = None


@dataclass(frozen=True)
class NetworkConstants:
    """What a network computes with beside its layers: buffers of its anomaly score (`vae_edge.model.AnomalyScore`).

    Attributes:
        projection, offset, max_expected_error, nearest, nearest_offset, cluster_offset, cluster_whitening: as there.
        weights: factor of each term of the score, float32 [M]; without the reconstruction term in the fast mode.
        subtracted: what is subtracted from the weighted sum.
        temperature: divides the logits before the softmax of the probabilities.
    """

    projection: Tensor
    offset: Tensor
    max_expected_error: Tensor
    nearest: Tensor
    nearest_offset: Tensor
    cluster_offset: Tensor
    cluster_whitening: Tensor
    weights: Tensor
    subtracted: float
    temperature: float


@dataclass(frozen=True)
class PackedNetwork:
    """A layout and the three buffers that it describes; see `vae_edge_kernels.layout`."""

    layout: NetworkLayout
    weights: Tensor
    params: Tensor
    whitening: Tensor


def fold_batchnorm(model: nn.Module) -> dict[str, LayerParams]:
    """Every layer of inference, its batch normalization folded in."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bias = torch.zeros(module.weight.shape[0]) if module.bias is None else module.bias.detach().cpu()
            layers[name] = LayerParams(module.weight.detach().float().cpu(), bias.float())
        elif isinstance(module, nn.BatchNorm2d):
            conv = f"{name.rpartition('.')[0]}.0"
            layers[conv] = _fold(layers[conv], module)
    return layers


def _fold(layer: LayerParams, norm: nn.BatchNorm2d) -> LayerParams:
    """w · γ / σ and β + (b − μ) · γ / σ, in float64, so that each is rounded once."""
    mean, variance, gamma, beta = (
        getattr(norm, name).detach().double().cpu() for name in ("running_mean", "running_var", "weight", "bias")
    )
    weight, bias = fuse_conv_bn_weights(
        layer.weight.double(), layer.bias.double(), mean, variance, norm.eps, gamma, beta
    )
    return LayerParams(weight.detach().float(), bias.detach().float())


def network_layout(model: Any, score: ScoreMode = "full", int8: bool = False) -> NetworkLayout:
    """The layout of an angle VAE in a score mode."""
    decoder = model.decoder
    return config_layout(
        model.config,
        components=model.score.components,
        clusters=len(model.score.cluster_whitening),
        decoder=None if score == "fast" else (decoder.width, decoder.last.in_channels, decoder.block),
        int8=int8,
    )


def config_layout(
    config: Any, *, components: int, clusters: int, decoder: tuple[int, int, int] | None, int8: bool
) -> NetworkLayout:
    """The layout of a network whose shape a `vae_edge.model.ModelConfig` says; other arguments as `make_layout`.

    Raises:
        KernelError: the encoder is a pretrained network.
    """
    if config.backbone is not None:
        raise KernelError(
            f"the encoder is the pretrained network {config.backbone}, for which there are no kernels of ours: export "
            "the model, and run it with onnxruntime, openvino or TensorRT"
        )
    return make_layout(
        size=(config.height, config.width),
        channels=config.channels,
        classes=config.classes,
        bins=config.angle_bins if config.orientation else 0,
        latent=config.latent,
        hidden=0 if config.pooled else config.hidden,
        pooled=config.pooled,
        second_classifier=config.second_classifier,
        fill=config.fill,
        circular_mask=config.circular_mask and config.orientation,
        orientation=config.convolutions(config.orientation_widths),
        encoder=config.convolutions(config.widths, config.pooled),
        feature_layer=config.feature_layer(),
        components=components,
        clusters=clusters,
        decoder=decoder,
        reduction=2**config.halvings,
        int8=int8,
    )


def pack(model: Any, quantized: QuantizedNetwork | None = None, score: ScoreMode = "full") -> PackedNetwork:
    """An angle VAE's weights and parameters for the kernels, float16 or int8.

    Args:
        model: the network, in evaluation mode.
        quantized: its int8 layers, as an exported file has them; None for float16.
        score: "fast" leaves the reconstruction term, and so the decoder, out.

    Raises:
        KernelError: a layer is missing, a scale is not above 0, or the encoder is a pretrained network.
    """
    int8 = quantized is not None
    layout = network_layout(model, score, int8)
    layers = fold_batchnorm(model.for_export()) if quantized is None else quantized.layers
    return pack_layers(layout, layers, _constants(model, quantized or QuantizedNetwork({}), score))


def pack_layers(layout: NetworkLayout, layers: Mapping[str, LayerParams], constants: NetworkConstants) -> PackedNetwork:
    """Layers and constants in the order of a layout.

    Raises:
        KernelError: a layer is missing, or a scale is not above 0.
    """
    packer = _Packer(layout, layers)
    packer.backbones()
    packer.heads(constants)
    if not layout.score.fast:
        packer.decoder()
    packer.score(constants)
    stored = constants.cluster_whitening
    whitening = F.pad(stored, (0, padded(stored.shape[2]) - stored.shape[2])).contiguous()
    return PackedNetwork(layout, packer.weights, packer.params, whitening)


def _constants(model: Any, quantized: QuantizedNetwork, mode: ScoreMode) -> NetworkConstants:
    """The constants of an angle VAE; offsets that the int8 file has of its own are taken from there."""
    score = model.score
    weights, subtracted = (given.detach().cpu() for given in score.coefficients())
    if mode == "fast":  # no reconstruction term
        weights, subtracted = weights[1:], subtracted[1:]
    offset, nearest_offset = quantized.offset, quantized.nearest_offset
    return NetworkConstants(
        projection=score.projection.detach().cpu().float(),
        offset=score.offset.cpu() if offset is None else offset,
        max_expected_error=score.max_expected_error.cpu(),
        nearest=score.nearest.cpu(),
        nearest_offset=score.nearest_offset.cpu() if nearest_offset is None else nearest_offset,
        cluster_offset=score.cluster_offset.cpu(),
        cluster_whitening=score.cluster_whitening.detach().cpu(),
        weights=weights,
        subtracted=float(subtracted.sum()),
        temperature=float(model.temperature),
    )


class _Packer:
    """Fills the buffers of a layout."""

    def __init__(self, layout: NetworkLayout, layers: Mapping[str, LayerParams]) -> None:
        self.layout = layout
        self.layers = layers
        self.int8 = layout.int8
        self.weights = torch.zeros(layout.weights_size, dtype=torch.int8 if layout.int8 else torch.float16)
        self.params = torch.zeros(layout.params_size)

    def named(self, name: str) -> LayerParams:
        """A layer by its module's name."""
        if name not in self.layers:
            raise KernelError(f"layer {name} is missing; there are {', '.join(sorted(self.layers))}")
        return self.layers[name]

    def write(self, offset: int, values: Tensor | float) -> None:
        """Write parameters, row by row, to their offset."""
        flat = torch.as_tensor(values, dtype=torch.float32).reshape(-1)
        self.params[offset : offset + len(flat)] = flat

    def write_rows(self, offset: int, matrix: Tensor) -> None:
        """Write a matrix whose rows start at multiples of 16."""
        self.write(offset, F.pad(matrix.float(), (0, padded(matrix.shape[1]) - matrix.shape[1])))

    def write_weights(self, offset: int, values: Tensor) -> None:
        """Write weights to their offset."""
        flat = values.reshape(-1)
        self.weights[offset : offset + len(flat)] = flat.to(self.weights.dtype)

    def conv(self, layer: ConvLayout, name: str, output_scale: float) -> None:
        """A convolution; `output_scale` is s_y of an int8 output, else 1."""
        found = self.named(name)
        if self.int8:
            self.write(layer.scale, _requantization_scale(found, output_scale))
            self.write(layer.output_scale, output_scale)
        rows = found.weight.permute(0, 2, 3, 1).flatten(2)  # [K, R, S · C]
        if layer.reads_image:
            rows = F.pad(rows, (0, self.layout.stem_row - rows.shape[2])).flatten(1)[:, None]
        self.write_weights(layer.weights, to_fragments(rows, layer.filters))
        self.write(layer.bias, found.bias.double() / output_scale)

    def linear(
        self, layer: LinearLayout, found: list[LayerParams], order: Tensor | None = None, output_scale: float = 1.0
    ) -> None:
        """A fully connected layer, made of several of the same input side by side.

        `order` permutes its inputs; `output_scale` is s_y of an int8 output, else 1.
        """
        weight = torch.cat([one.weight for one in found])
        if order is not None:
            weight = weight[:, order]
        self.write_weights(layer.weights, F.pad(weight, (0, layer.row_stride - weight.shape[1])))
        self.write(layer.bias, torch.cat([one.bias.double() / output_scale for one in found]))
        if self.int8:
            self.write(layer.scale, torch.cat([_requantization_scale(one, output_scale) for one in found]))
            self.write(layer.input_scale, inverse_and_scale(_input_scale(found[0])))

    def input_scale_of(self, name: str) -> float:
        """The scale of a layer's input; 1 where the network is float16."""
        return _input_scale(self.named(name)) if self.int8 else 1.0

    def backbones(self) -> None:
        """Both backbones; each layer's output has the scale of the next one's input."""
        layout, first = self.layout, 0
        for prefix, count, reader, input_scale in (
            ("orientation.backbone.layers", layout.orientation_layers, "orientation.angle_bins", layout.image_scale),
            ("encoder.layers", layout.encoder_layers, "mu", layout.upright_scale),
        ):
            names = [f"{prefix}.{i}.0" for i in range(count)]
            for i, name in enumerate(names):
                next_layer = names[i + 1] if i + 1 < count else reader
                self.conv(layout.layers[first + i], name, self.input_scale_of(next_layer))
            if names and self.int8:
                self.write(input_scale, inverse_and_scale(_input_scale(self.named(names[0]))))
            first += count

    def heads(self, constants: NetworkConstants) -> None:
        """The fully connected layers of both heads.

        PyTorch flattens the last feature maps as [C, h, w]; the kernels have them as [h, w, C].
        """
        layout = self.layout
        orientation_last = layout.layers[layout.orientation_layers - 1]
        encoder_last = layout.layers[layout.orientation_layers + layout.encoder_layers - 1]
        orientation = ["orientation.classifier", "orientation.angle_bins"][1 if layout.pooled else 0 :]
        of_features = [
            (Fc.ORIENTATION, orientation, orientation_last),
            (Fc.MU, ["mu"], encoder_last),
            (Fc.SECOND_CLASSIFIER, ["second_classifier"], encoder_last),
        ]
        of_vectors = [(Fc.CLASSIFIER_HIDDEN, "classifier.0"), (Fc.CLASSIFIER_LOGITS, "classifier.2")]
        if layout.pooled:
            of_vectors = [(Fc.CLASSIFIER_LOGITS, "classifier")]
        for index, names, last in of_features:
            layer = layout.linears[index]
            if layer is not None:
                order = (
                    torch.arange(layer.in_features)
                    .reshape(-1, last.out_height, last.out_width)
                    .permute(1, 2, 0)
                    .reshape(-1)
                )
                self.linear(layer, [self.named(name) for name in names], order)
        for index, name in of_vectors:
            layer = layout.linears[index]
            assert layer is not None
            self.linear(layer, [self.named(name)])

        self.write(layout.inverse_temperature, 1.0 / constants.temperature)
        if layout.bins:
            centres = torch.arange(layout.bins) * (2 * math.pi / layout.bins)
            self.write(layout.bin_axes, torch.cat([centres.cos(), centres.sin()]))

    def decoder(self) -> None:
        """The decoder, whose first layer's output is a grid [grid_height, grid_width, width]."""
        layout = self.layout
        layer, found = layout.linears[Fc.DECODER], self.named("decoder.first")
        assert layer is not None
        order = torch.arange(layer.out_features).reshape(layout.decoder_width, layout.cells).T.reshape(-1)
        scale = None if found.scale is None else found.scale[order]
        reordered = LayerParams(found.weight[order], found.bias[order], scale, found.input_scale)
        self.linear(layer, [reordered], output_scale=self.input_scale_of("decoder.middle.0"))

        middle, last = layout.layers[-2], layout.layers[-1]
        self.conv(middle, "decoder.middle.0", self.input_scale_of("decoder.last"))
        self.conv(last, "decoder.last", 1.0)

    def score(self, constants: NetworkConstants) -> None:
        """The constants of the anomaly score."""
        layout, rows = self.layout.score, constants.projection
        sizes = (
            self.layout.orientation_feature_channels,
            self.layout.feature_channels,
            self.layout.latent,
            self.layout.classes,
        )
        offsets = (layout.project_orientation, layout.project_features, layout.project_mu, layout.project_classes)
        for offset, part in zip(offsets, rows[: sum(sizes)].split(sizes), strict=True):
            self.write_rows(offset, part)

        self.write(layout.offset, constants.offset)
        self.write(layout.max_expected_error, constants.max_expected_error)
        self.write_rows(layout.nearest, constants.nearest)
        self.write(layout.nearest_offset, constants.nearest_offset)
        self.write_rows(layout.cluster_offset, constants.cluster_offset[:, 0])

        weights = F.pad(constants.weights, (1, 0)) if layout.fast else constants.weights
        self.write(layout.terms, F.pad(weights, (0, TERMS - len(weights))))
        self.write(layout.terms + TERMS, constants.subtracted)


# How `FilterLayout` splits the axes [K, rows, chunks · chunk] of full and half chunks, and the order it stores them in.
FULL_ORDER = (4, 5, 0, 7, 2, 1, 6, 8, 3, 9)
HALF_ORDER = (4, 5, 0, 2, 1, 6, 7, 3, 8)


def fragment_shapes(filters: FilterLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of full and of half chunks before they are put in their order."""
    channels = (filters.dots, 8, filters.dot_m // 16, 2)
    full = (*channels, filters.rows, filters.full, 4, 2, 2, filters.pack)
    return full, (*channels, filters.rows, filters.half, 4, 2, filters.pack)


def to_fragments(rows: Tensor, filters: FilterLayout) -> Tensor:
    """Filters [K, rows, depth] in the order in which the network's kernel reads them, [size]."""
    split, padding = filters.full * 2 * filters.step, filters.dots * filters.dot_m - rows.shape[0]
    rows = F.pad(rows, (0, split + filters.half * filters.step - rows.shape[2], 0, 0, 0, padding))
    full, half = fragment_shapes(filters)
    parts = (rows[..., :split].reshape(full).permute(FULL_ORDER), rows[..., split:].reshape(half).permute(HALF_ORDER))
    return torch.cat([part.reshape(-1) for part in parts])


def from_fragments(stored: Tensor, filters: FilterLayout) -> Tensor:
    """What `to_fragments` was given, with zeros: [dots · dot_m, rows, chunks]."""
    parts = []
    chunks = (stored[: filters.full_size], stored[filters.full_size :])
    for part, shape, order in zip(chunks, fragment_shapes(filters), (FULL_ORDER, HALF_ORDER), strict=True):
        inverse = sorted(range(len(order)), key=order.__getitem__)
        rows = part.reshape([shape[axis] for axis in order]).permute(inverse)
        parts.append(rows.reshape(filters.dots * filters.dot_m, filters.rows, -1))
    return torch.cat(parts, 2)


def conv_filters(weights: Tensor, net: NetworkLayout, layer: ConvLayout) -> Tensor:
    """The filters of a convolution, [K, R, S, C], of a network's packed weights."""
    kernel, channels, filters = layer.kernel_size, layer.in_channels, layer.filters
    rows = from_fragments(weights[layer.weights : layer.weights + filters.size], filters)[: layer.out_channels]
    if layer.reads_image:
        rows = rows[:, 0, : kernel * net.stem_row].unflatten(1, (kernel, net.stem_row))
    return rows[:, :, : kernel * channels].unflatten(2, (kernel, channels))


def inverse_and_scale(scale: float) -> Tensor:
    """1 / s and s: the factors that quantize and dequantize."""
    return torch.tensor([1.0 / scale, scale])


def _requantization_scale(layer: LayerParams, output_scale: float) -> Tensor:
    """s_x · s_w[k] / s_y, float64 [K]."""
    if layer.scale is None or not (layer.scale.isfinite() & (layer.scale > 0.0)).all():
        least = None if layer.scale is None else float(layer.scale.min())
        raise KernelError(f"an int8 layer expects scale above 0 for each channel; got one of {least}")
    return layer.scale.double() * _input_scale(layer) / output_scale


def _input_scale(layer: LayerParams) -> float:
    """s_x of an int8 layer: a float32 whose inverse is finite, too."""
    scale = torch.tensor(math.nan if layer.input_scale is None else layer.input_scale, dtype=torch.float32)
    if not (scale > 0.0 and scale.isfinite() and (1.0 / scale).isfinite()):
        raise KernelError(f"an int8 layer expects input_scale above 0; got {layer.input_scale}")
    return float(scale)
