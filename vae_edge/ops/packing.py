"""A trained network's numbers in the order in which kernels read them, at places that `vae_edge_kernels.plan` names.

Layers go by the names of their modules: `encoder.layers.0.0`, `orientation.angle_bins`, `classifier.2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vae_edge_kernels import plan as plans
from vae_edge_kernels.plan import Layer, Linear, Plan, padded

from vae_edge.errors import KernelError

MEASURES = 4  # measures of the score: reconstruction, features, energy, angle


@dataclass(frozen=True)
class LayerNumbers:
    """A layer with the normalization behind it folded in: weight [K, C, R, S] or [K, F], and bias float32 [K].

    Of int8 layers the weight is int8, `scale` float32 [K] counts for one of each channel's weights, and `input_scale`
    for one of the input's integers.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    input_scale: float | None = None


@dataclass(frozen=True)
class QuantizedNetwork:
    """The int8 layers of a network by the names of their modules, and the rejection score's offsets, which were
    corrected with the layers' biases; None where the file has none of its own."""

    layers: Mapping[str, LayerNumbers]
    offset: Tensor | None = None
    nearest_offset: Tensor | None = None


@dataclass(frozen=True)
class Packed:
    """A plan and the three buffers that it describes: see `vae_edge_kernels.network.forward`."""

    plan: Plan
    weights: Tensor
    numbers: Tensor
    whitenings: Tensor


def folded(model: nn.Module) -> dict[str, LayerNumbers]:
    """Every layer of inference, its batch normalization folded in (in float64)."""
    modules = dict(model.named_modules())
    layers = {}
    for name, module in modules.items():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bias = torch.zeros(module.weight.shape[0]) if module.bias is None else module.bias.detach().cpu()
            layers[name] = LayerNumbers(module.weight.detach().float().cpu(), bias.float())
        elif isinstance(module, nn.BatchNorm2d):
            before = f"{name.rpartition('.')[0]}.0"
            layers[before] = _with_normalization(layers[before], module)
    return layers


def _with_normalization(layer: LayerNumbers, normalization: nn.BatchNorm2d) -> LayerNumbers:
    mean, variance, weight, bias = (
        getattr(normalization, name).detach().double().cpu()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    factor = weight / (variance + normalization.eps).sqrt()
    folded_weight = layer.weight.double() * factor[:, None, None, None]
    return LayerNumbers(folded_weight.float(), (bias + (layer.bias.double() - mean) * factor).float())


def plan_of(model: Any, light: bool = False, int8: bool = False) -> Plan:
    """The plan of an angle VAE."""
    config, score, decoder = model.config, model.score, model.decoder
    grid = (decoder.grid, decoder.width, decoder.last.in_channels, decoder.block)
    return plans.make_plan(
        sides=config.resolutions(),
        channels=config.channels,
        classes=config.classes,
        bins=config.angle_bins if config.orientation else 0,
        latent=config.latent,
        hidden=config.hidden,
        fill=config.fill,
        window=config.circular_mask and config.orientation,
        pose_widths=config.orientation_widths,
        widths=config.widths,
        components=score.components,
        clusters=len(score.cluster_whitening),
        decoder=None if light else grid,
        int8=int8,
    )


def pack(model: Any, quantized: QuantizedNetwork | None = None, light: bool = False) -> Packed:
    """An angle VAE's numbers for the kernels, float16 or int8.

    Args:
        model: the network, in evaluation mode.
        quantized: its int8 layers, as an exported file has them.
        light: whether the score is the one without the reconstruction.

    Raises:
        KernelError: if a layer is missing, or a scale is not above 0.
    """
    int8 = quantized is not None
    packing = _Packing(plan_of(model, light, int8), folded(model) if quantized is None else quantized.layers, int8)
    packing.trunks()
    packing.heads(model)
    if not light:
        packing.decoder()
    packing.score(model, light, quantized or QuantizedNetwork({}))
    return Packed(packing.plan, packing.weights, packing.numbers, packing.whitenings(model))


class _Packing:
    """Fills the buffers of a plan."""

    def __init__(self, plan: Plan, layers: Mapping[str, LayerNumbers], int8: bool) -> None:
        self.plan, self.layers, self.int8 = plan, layers, int8
        self.weights = torch.zeros(plan.weights_size, dtype=torch.int8 if int8 else torch.float16)
        self.numbers = torch.zeros(plan.numbers_size)

    def named(self, name: str) -> LayerNumbers:
        """A layer by its module's name."""
        if name not in self.layers:
            raise KernelError(f"layer {name} is missing; there are {', '.join(sorted(self.layers))}")
        return self.layers[name]

    def put(self, place: int, values: Tensor | float) -> None:
        """Write numbers, row by row, to their place."""
        flat = torch.as_tensor(values, dtype=torch.float32).reshape(-1)
        self.numbers[place : place + len(flat)] = flat

    def put_rows(self, place: int, matrix: Tensor) -> None:
        """Write a matrix whose rows begin at multiples of 16."""
        self.put(place, F.pad(matrix.float(), (0, padded(matrix.shape[1]) - matrix.shape[1])))

    def put_weights(self, place: int, values: Tensor) -> None:
        """Write weights to their place."""
        flat = values.reshape(-1)
        self.weights[place : place + len(flat)] = flat.to(self.weights.dtype)

    def convolution(self, layer: Layer, name: str, output_scale: float) -> None:
        """A convolution; one of an int8 output counts `output_scale`, and of another output 1."""
        found = self.named(name)
        if self.int8:
            few = layer.inputs < plans.ALIGNMENT
            order = found.weight.permute(0, 2, 3, 1) if few else found.weight.permute(2, 3, 0, 1)
            self.put(layer.scale, _scales(found, output_scale))
            self.put(layer.output_scale, output_scale)
        else:
            order = found.weight.permute(2, 3, 1, 0)
        self.put_weights(layer.weights, order)
        self.put(layer.bias, found.bias.double() / output_scale)

    def linear(
        self, layer: Linear, found: list[LayerNumbers], columns: Tensor | None = None, output_scale: float = 1.0
    ) -> None:
        """A linear layer, of several of the same input side by side; `columns` puts its inputs in another order, and
        one of its output counts `output_scale`."""
        weight = torch.cat([one.weight for one in found])
        if columns is not None:
            weight = weight[:, columns]
        self.put_weights(layer.weights, F.pad(weight.T, (0, layer.stride - layer.outputs)))
        self.put(layer.bias, torch.cat([one.bias.double() / output_scale for one in found]))
        if self.int8:
            self.put(layer.scale, torch.cat([_scales(one, output_scale) for one in found]))
            self.put(layer.quantize, inverse_and_scale(_input_scale(found[0])))

    def input_scale_of(self, name: str) -> float:
        """What one of a layer's inputs counts."""
        return _input_scale(self.named(name)) if self.int8 else 1.0

    def trunks(self) -> None:
        """Both trunks; each layer's output has the scale of the next one's input."""
        first = 0
        for prefix, count, readers in (
            ("orientation.backbone.layers", self.plan.pose_layers, "orientation.angle_bins"),
            ("encoder.layers", self.plan.trunk_layers, "mu"),
        ):
            names = [f"{prefix}.{i}.0" for i in range(count)]
            for i, name in enumerate(names):
                after = names[i + 1] if i + 1 < count else readers
                self.convolution(self.plan.layers[first + i], name, self.input_scale_of(after))
            if names and self.int8:
                place = self.plan.quantize_image if prefix.startswith("orientation") else self.plan.quantize_upright
                self.put(place, inverse_and_scale(_input_scale(self.named(names[0]))))
            first += count

    def heads(self, model: Any) -> None:
        """The linear layers, whose inputs are the last maps with the channels next to each other."""
        plan, side = self.plan, model.config.resolutions()[-1]
        for number, names in ((plans.POSE, ["orientation.classifier", "orientation.angle_bins"]), (plans.MU, ["mu"])):
            layer = plan.linears[number]
            if layer is not None:
                order = torch.arange(layer.inputs).reshape(-1, side, side).permute(1, 2, 0).reshape(-1)
                self.linear(layer, [self.named(name) for name in names], order)
        for number, name in ((plans.INNER, "classifier.0"), (plans.OUTER, "classifier.2")):
            layer = plan.linears[number]
            assert layer is not None
            self.linear(layer, [self.named(name)])
        self.put(plan.temperature, 1.0 / float(model.temperature))
        if plan.bins:
            centres = torch.arange(plan.bins) * (2 * math.pi / plan.bins)
            self.put(plan.axes, torch.cat([centres.cos(), centres.sin()]))

    def decoder(self) -> None:
        """The decoder, whose first layer's output is a grid with the channels next to each other."""
        plan = self.plan
        layer, found = plan.linears[plans.FIRST], self.named("decoder.first")
        assert layer is not None
        order = torch.arange(layer.outputs).reshape(plan.width, plan.grid**2).T.reshape(-1)
        scale = None if found.scale is None else found.scale[order]
        reordered = LayerNumbers(found.weight[order], found.bias[order], scale, found.input_scale)
        self.linear(layer, [reordered], output_scale=self.input_scale_of("decoder.middle.0"))
        middle, last = plan.layers[-2], plan.layers[-1]
        self.convolution(middle, "decoder.middle.0", self.input_scale_of("decoder.last"))
        self.convolution(last, "decoder.last", 1.0)

    def score(self, model: Any, light: bool, quantized: QuantizedNetwork) -> None:
        """The rejection score's numbers."""
        plan, score = self.plan.score, model.score
        rows = score.projection.detach().cpu().float()
        sizes = (self.plan.pose_tap, self.plan.tap, self.plan.latent, self.plan.classes)
        places = (plan.project_pose, plan.project_tap, plan.project_mu, plan.project_classes)
        for place, part in zip(places, rows[: sum(sizes)].split(sizes), strict=True):
            self.put_rows(place, part)
        offset, nearest_offset = quantized.offset, quantized.nearest_offset
        self.put(plan.offset, score.offset.cpu() if offset is None else offset)
        self.put(plan.most_expected, score.max_expected_error.cpu())
        self.put_rows(plan.nearest, score.nearest.cpu())
        self.put(plan.nearest_offset, score.nearest_offset.cpu() if nearest_offset is None else nearest_offset)
        self.put_rows(plan.cluster_offset, score.cluster_offset.cpu()[:, 0])
        weights, offsets = (given.detach().cpu() for given in score.coefficients())
        if light:
            weights, offsets = (F.pad(given[1:], (1, 0)) for given in (weights, offsets))
        self.put(plan.measures, F.pad(weights, (0, MEASURES - len(weights))))
        self.put(plan.measures + MEASURES, float(offsets.sum()))

    def whitenings(self, model: Any) -> Tensor:
        """The clusters' matrices, float16 [clusters, components, padded(components)]."""
        stored = model.score.cluster_whitening.detach().cpu()
        return F.pad(stored, (0, padded(stored.shape[2]) - stored.shape[2])).contiguous()


def inverse_and_scale(scale: float) -> Tensor:
    """What a value is multiplied by to become an integer, and what an integer counts."""
    return torch.tensor([1.0 / scale, scale])


def _scales(layer: LayerNumbers, output_scale: float) -> Tensor:
    """What one of a layer's sums of integers counts, in outputs of which one counts `output_scale`."""
    if layer.scale is None or not (layer.scale.isfinite() & (layer.scale > 0.0)).all():
        least = None if layer.scale is None else float(layer.scale.min())
        raise KernelError(f"an int8 layer expects scale above 0 for each channel; got one of {least}")
    return layer.scale.double() * _input_scale(layer) / output_scale


def _input_scale(layer: LayerNumbers) -> float:
    """What one of an int8 layer's inputs counts: a float32 whose inverse is one, too."""
    scale = torch.tensor(math.nan if layer.input_scale is None else layer.input_scale, dtype=torch.float32)
    if not (scale > 0.0 and scale.isfinite() and (1.0 / scale).isfinite()):
        raise KernelError(f"an int8 layer expects input_scale above 0; got {layer.input_scale}")
    return float(scale)
