"""A trained network for inference: the whole of it as one operator, and the module around it.

`fuse(model)` makes a `FusedModel`: batch normalization folded in, weights laid out for the kernels, float16 or int8.
Its operator `network` takes the image's bytes and gives the answers. On CUDA that is one launch
(`vae_edge_kernels.network`); on the CPU, and for large batches, `forward_layerwise` runs the single operators one after
the other on the same packed weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vae_edge_kernels.layout import MAX_CTAS_PER_IMAGE, ConvLayout, Fc, NetworkLayout, to_json

from vae_edge.errors import KernelError
from vae_edge.files import atomic_path
from vae_edge.ops.conv import MAX_STEM_K, conv, conv_int8, quantize_int8, stem_conv, stem_conv_int8
from vae_edge.ops.heads import (
    ORIENTATION_VALUES,
    avg_pool,
    check_buffers,
    check_whitening,
    content_head,
    fc_layout,
    fc_matrix,
    orientation_head,
    parse_layout,
    reconstruction_error,
)
from vae_edge.ops.packing import PackedNetwork, QuantizedNetwork, ScoreMode, conv_filters, pack
from vae_edge.ops.registration import check_tensor, kernel_module, register_operator
from vae_edge.ops.rotate import rotate_pixels

SLOTS_PER_SM = 2  # programs that a multiprocessor runs at a time; each works on its own image, in its own slot
UNCERTAINTY = slice(3, 6)  # of the orientation: angle confidence, second angle, second angle probability
Filters = dict[int, tuple[tuple[object, ...], Tensor]]  # of layers by their offset: whence they came, and they
MAX_ONE_LAUNCH = 1024  # images; beyond, one launch a layer is faster


# ---- The module -----------------------------------------------------------------------------------------------------


class FusedModel(nn.Module):
    """The function of the exported graph on the toolkit's operators: Triton kernels on CUDA, references on a CPU.

    `forward` takes uint8 [N, H, W, C] and gives float32 probabilities [N, K], angle [N] in radians, score [N], and
    angle uncertainty [N, 3]: angle confidence, second angle, second angle probability.
    """

    weights: Tensor
    params: Tensor
    whitening: Tensor

    def __init__(self, packed: PackedNetwork, ctas_per_image: int = 1) -> None:
        super().__init__()
        self.ctas_per_image = ctas_per_image
        self.layout = packed.layout
        self.layout_json = to_json(packed.layout)
        self._params_on_cpu = packed.params.cpu()
        self._filters: Filters = {}
        self.register_buffer("weights", packed.weights)
        self.register_buffer("params", packed.params)
        self.register_buffer("whitening", packed.whitening)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify a batch: in one launch, or in one a layer where there are many images."""
        if image.shape[0] <= MAX_ONE_LAUNCH:
            ctas_per_image = self.ctas_per_image if image.shape[0] == 1 else 1
            return network(image, self.weights, self.params, self.whitening, self.layout_json, ctas_per_image)
        return forward_layerwise(
            self.layout,
            image,
            self.weights,
            self.params,
            self.whitening,
            params_on_cpu=self._params_on_cpu,
            filters=self._filters,
        )

    def save(
        self,
        path: str | os.PathLike[str],
        classes: Sequence[str],
        threshold: float,
        architectures: Sequence[int] = (87,),
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Write the network file that the native library opens; see `vae_edge_kernels.aot.network_file`.

        With `ctas_per_image` above 1 it also has machine code with which so many programs work on an image.

        Args:
            path: of the file.
            classes: names of the classes.
            threshold: a score up to it is accepted.
            architectures: GPUs to compile for; 87 is Jetson Orin.
            progress: called with a line when an architecture is done.

        Raises:
            KernelError: the names do not fit, or the network does not compile for an architecture.
        """
        from vae_edge_kernels.aot.network_file import write_network

        with atomic_path(path) as temporary:
            write_network(
                temporary,
                self.layout,
                **{name: buffer.detach().cpu().contiguous().numpy() for name, buffer in self.named_buffers()},
                classes=classes,
                threshold=threshold,
                architectures=architectures,
                ctas_per_image=self.ctas_per_image,
                progress=progress,
            )


def fuse(
    model: Any, quantized: QuantizedNetwork | None = None, score: ScoreMode = "full", ctas_per_image: int = 1
) -> FusedModel:
    """Make a trained network ready for inference.

    Args:
        model: a trained `vae_edge.model.AngleVAE`.
        quantized: its int8 layers, as `vae_edge.exporting.quantize.read_qdq_layers` reads them from a quantized file;
        without
            them the network is float16.
        score: mode of the anomaly score: "full", or "fast" without the reconstruction term.
        ctas_per_image: programs that work together on a single image on CUDA; a power of two.

    Raises:
        KernelError: the model is not an AngleVAE, or layers are missing.
    """
    if not all(hasattr(model, name) for name in ("config", "encoder", "classifier", "decoder", "score")):
        raise KernelError(f"fuse expects an AngleVAE; got {type(model).__name__}.")
    with torch.no_grad():
        return FusedModel(pack(model, quantized, score), ctas_per_image)


# ---- The operator ---------------------------------------------------------------------------------------------------


class _Network(NamedTuple):
    """Images to answers.

    Fields:
        image: uint8 [N, H, W, C].
        weights, params, whitening: as `vae_edge.ops.packing.pack` makes them.
        layout: JSON of their `NetworkLayout`.
        ctas_per_image: programs that work on one image on CUDA, a power of two; fewer where the GPU has fewer
            multiprocessors.

    Returns, float32: probabilities [N, K]; angle [N] in radians; score [N]; angle uncertainty [N, 3]: angle confidence,
    second angle, second angle probability (zeros without an orientation encoder).
    """

    image: Tensor
    weights: Tensor
    params: Tensor
    whitening: Tensor
    layout: str
    ctas_per_image: int = 1

    def check(self) -> NetworkLayout:
        operator, net, ctas = "network", parse_layout(self.layout), self.ctas_per_image
        if not 1 <= ctas <= MAX_CTAS_PER_IMAGE or ctas & (ctas - 1):
            raise KernelError(
                f"{operator} expects ctas_per_image as a power of two up to {MAX_CTAS_PER_IMAGE}; got {ctas}."
            )
        shape = (None, net.height, net.width, net.channels)
        check_tensor(operator, "image", self.image, "N H W C", (torch.uint8,), self.image, shape)
        check_buffers(operator, net, self.weights, self.params, self.image)
        check_whitening(operator, net, self.whitening, self.image)
        return net

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        net, n = self.check(), self.image.shape[0]
        empty = self.params.new_empty
        return empty((n, net.classes)), empty((n,)), empty((n,)), empty((n, 3))

    def reference(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return forward_layerwise(parse_layout(self.layout), self.image, self.weights, self.params, self.whitening)

    def launch(self, probabilities: Tensor, angle: Tensor, score: Tensor, uncertainty: Tensor) -> None:
        net, n, ctas = parse_layout(self.layout), len(self.image), self.ctas_per_image
        multiprocessors = torch.cuda.get_device_properties(self.image.device).multi_processor_count
        while ctas > multiprocessors:  # one on each is sure to be resident
            ctas //= 2
        slots = max(1, min(n, (SLOTS_PER_SM if ctas == 1 else 1) * multiprocessors // ctas))

        activations = self.weights.new_empty((slots, net.activation_size))
        workspace = self.params.new_empty((slots, net.workspace_size))
        barrier = (self.weights.new_zeros if ctas > 1 else self.weights.new_empty)((slots,), dtype=torch.int32)
        constants = [buffer.contiguous() for buffer in (self.weights, self.params, self.whitening)]
        kernel_module("network", "network").forward(
            net,
            self.image.contiguous(),
            *constants,
            activations,
            workspace,
            barrier,
            probabilities,
            angle,
            score,
            uncertainty,
            ctas,
        )


network = register_operator("network", _Network)


# ---- One operator after the other -----------------------------------------------------------------------------------


def forward_layerwise(
    net: NetworkLayout,
    image: Tensor,
    weights: Tensor,
    params: Tensor,
    whitening: Tensor,
    params_on_cpu: Tensor | None = None,
    filters: Filters | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result of `network`, by one operator after the other, on any device.

    Some parameters are read on the host. With `params_on_cpu`, a copy of params there, nothing waits for a GPU. The
    filters are put in the operators' order; `filters` keeps them for the next call.
    """
    layers = _Layers(net, weights, params, params.cpu() if params_on_cpu is None else params_on_cpu, filters)
    layout, n = to_json(net), image.shape[0]
    zeros = params.new_zeros((n,))
    ones = zeros + 1.0
    dtype = torch.float32 if net.int8 else torch.float16

    def rotated(cos: Tensor, sin: Tensor, input_scale: float = 0.0) -> Tensor:
        return rotate_pixels(image, cos, sin, 1.0 / 255.0, net.fill, net.circular_mask, dtype, input_scale=input_scale)

    # 1. Orientation.
    orientation_means = params.new_zeros((n, net.orientation_feature_channels))
    logits = params.new_zeros((n, net.classes))
    orientation = params.new_zeros((n, ORIENTATION_VALUES))
    if net.bins:
        seen, scale = (rotated(ones, zeros), 1.0) if net.circular_mask else (image, 1.0 / 255.0)
        features, orientation_means = layers.backbone(seen, scale, 0, net.orientation_layers, net.image_scale)
        logits, orientation = orientation_head(features, weights, params, layout)

        # 2. Derotation.
        input_scale = layers.scalar(net.image_scale + 1) if net.int8 else 0.0
        upright = rotated(orientation[:, 0].contiguous(), -orientation[:, 1], input_scale)
    else:
        upright = rotated(ones, zeros)

    # 3. Encoder and classifier.
    features, feature_means = layers.backbone(
        upright, 1.0, net.orientation_layers, net.encoder_layers, net.upright_scale
    )
    probabilities, code, partial_score = content_head(
        features, orientation_means, feature_means, logits, orientation, weights, params, whitening, layout
    )

    # 4. Decoder, and the score with the reconstruction term.
    score = partial_score[:, 0].clone()
    if not net.score.fast:
        weight = params[net.score.terms : net.score.terms + 1]
        score = reconstruction_error(
            layers.decode(code), reduce_image(upright, net.reduction), partial_score, weight, net.block
        )
    return probabilities, orientation[:, 2].clone(), score, orientation[:, UNCERTAINTY].clone()


def reduce_image(image: Tensor, factor: int) -> Tensor:
    """Images float [N, H, W, C] reduced by a whole factor: float32 means of squares of pixels [N, h, w, C].

    A last row or column that does not fill its square counts repeatedly.
    """
    if factor == 1:
        return image
    below, beside = -image.shape[1] % factor, -image.shape[2] % factor
    channels_first = F.pad(image.float().permute(0, 3, 1, 2), (0, beside, 0, below), mode="replicate")
    return F.avg_pool2d(channels_first, factor).permute(0, 2, 3, 1).contiguous()


class _Layers:
    """The layers of a network on packed weights, each by its operator."""

    def __init__(
        self, net: NetworkLayout, weights: Tensor, params: Tensor, params_on_cpu: Tensor, filters: Filters | None
    ) -> None:
        self.net = net
        self.weights = weights
        self.params = params
        self.params_on_cpu = params_on_cpu
        self.filters = filters

    def scalar(self, offset: int) -> float:
        """A parameter as a Python number."""
        return float(self.params_on_cpu[offset])

    def backbone(self, x: Tensor, scale: float, first: int, count: int, input_scale: int) -> tuple[Tensor, Tensor]:
        """`count` convolutions from layer `first` on: pixels [N, H, W, C] to features [N, F], and the average pool of
        the feature layer [N, W].

        `scale` is the pixels' factor, `input_scale` the offset of the first layer's int8 scale.
        """
        means = self.params.new_zeros((x.shape[0], 0))
        for index in range(first, first + count):
            layer = self.net.layers[index]
            x = self.stem_layer(layer, x, scale, input_scale) if index == first else self.conv_layer(layer, x)
            if layer.is_feature_layer:
                means = avg_pool(x, self.scalar(layer.output_scale) if self.net.int8 else 1.0)
        return x.flatten(1), means

    def stem_layer(self, layer: ConvLayout, x: Tensor, scale: float, input_scale: int) -> Tensor:
        """A backbone's first layer, from pixels."""
        bias, padding = self._bias(layer), _padding(layer)
        if not self.net.int8:
            weight = self._filters(layer, (1, 2, 3, 0))
            return stem_conv(x, weight, bias, layer.stride, padding, layer.relu, scale)
        weight = self._filters(layer, (0, 1, 2, 3))
        quantize = float(torch.tensor(scale) * self.params_on_cpu[input_scale])  # in float32, as the kernel does
        return stem_conv_int8(x, weight, self._scale(layer), bias, layer.stride, padding, layer.relu, quantize)

    def conv_layer(self, layer: ConvLayout, x: Tensor, dtype: torch.dtype = torch.int8) -> Tensor:
        """Any other conv; `dtype` is the output's where the network is int8."""
        bias, padding = self._bias(layer), _padding(layer)
        if not self.net.int8:
            weight = self._filters(layer, (1, 2, 3, 0))
            return conv(x, weight, bias, None, layer.stride, padding, layer.relu)
        weight = self._filters(layer, (1, 2, 0, 3))
        return conv_int8(x, weight, self._scale(layer), bias, None, layer.stride, padding, layer.relu, dtype=dtype)

    def decode(self, code: Tensor) -> Tensor:
        """Code [N, Z + K] to the decoder's logits [N, rows, columns, P]."""
        net = self.net
        x = self._decoder_fc(code).reshape(code.shape[0], net.grid_height, net.grid_width, net.decoder_width)
        x = self.conv_layer(net.layers[-2], x)
        return self.conv_layer(net.layers[-1], x, torch.float32)

    def _decoder_fc(self, code: Tensor) -> Tensor:
        """The decoder's first layer, as a 1×1 conv of an image of one pixel."""
        layer = fc_layout(self.net, Fc.DECODER)
        matrix = fc_matrix(self.weights, self.net, Fc.DECODER)
        bias = self.params[layer.bias : layer.bias + layer.out_features]
        is_short = layer.in_features <= MAX_STEM_K
        x = code[:, None, None, :].contiguous()

        if not self.net.int8:
            weight = matrix[None, None].contiguous()
            if is_short:
                return stem_conv(x, weight, bias, 1, (0, 0), True)
            return conv(x.half(), weight, bias, None, 1, (0, 0), True)

        weight = matrix.T.contiguous()
        scale = self.params[layer.scale : layer.scale + layer.out_features]
        if is_short:
            quantize = self.scalar(layer.input_scale)
            return stem_conv_int8(x, weight[:, None, None, :], scale, bias, 1, (0, 0), True, quantize)
        x = quantize_int8(x * self.params[layer.input_scale])
        return conv_int8(x, weight[None, None], scale, bias, None, 1, (0, 0), True)

    def _filters(self, layer: ConvLayout, order: tuple[int, ...]) -> Tensor:
        """[K, R, S, C] in the order that an operator wants."""
        if self.filters is None:
            return conv_filters(self.weights, self.net, layer).permute(order).contiguous()
        source = (self.weights.device, self.weights.data_ptr(), self.weights._version)
        known = self.filters.get(layer.weights)
        if known is None or known[0] != source:
            known = (source, conv_filters(self.weights, self.net, layer).permute(order).contiguous())
            self.filters[layer.weights] = known
        return known[1]

    def _scale(self, layer: ConvLayout) -> Tensor:
        return self.params[layer.scale : layer.scale + layer.out_channels]

    def _bias(self, layer: ConvLayout) -> Tensor:
        return self.params[layer.bias : layer.bias + layer.out_channels]


def _padding(layer: ConvLayout) -> tuple[int, int]:
    return layer.kernel_size // 2, layer.kernel_size // 2
