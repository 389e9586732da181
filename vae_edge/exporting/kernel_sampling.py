"""Graphs of a trained VAE beside the classifier: image to code, code to image, and new images drawn inside the graph.

    encode    image → mu, logvar, class_weights, angle
    decode    z, class_weights, angle → generated
    sample    label, angle, temperature, seed, offset → generated
    resample  image, seed, offset → generated

`encode` and `decode` are standard operators. `sample` is what a conditional VAE's sampler is: it draws a code of a
class, as `vae-edge generate --method gaussian` does, and decodes it. `resample` draws from the posterior of an image.
Both draw by `VaeEdgeReparameterize`, whose seed and offset are inputs, so that one file or engine draws anew each time.
Advance `offset` by N · Z from call to call, as for `ops.reparameterize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import Tensor, nn

from vae_edge.errors import ExportError
from vae_edge.exporting.kernel_functions import DOMAIN, FLOAT, INT32, INT64, Nodes, make_function
from vae_edge.exporting.kernel_graph import finish
from vae_edge.exporting.onnx_file import quantize_pixels, to_pixels, trace
from vae_edge.model import AngleVAE
from vae_edge.model.network import MAX_LOGVAR, MIN_LOGVAR
from vae_edge.ops import reparameterize as noise
from vae_edge.ops.rotate import rotate

Graph = Literal["encode", "decode", "sample", "resample"]
ROUNDS = 10


# ---- The graphs -----------------------------------------------------------------------------------------------------


class EncoderGraph(nn.Module):
    """`image` uint8 [N, H, W, C] to `mu` and `logvar` [N, Z], `class_weights` [N, K] and `angle` [N] in radians.

    The log-variance is limited as in training. The class weights are what the decoder is given: the softmax of the
    logits, without the temperature of the probabilities. Without an orientation encoder the angle is 0.
    """

    outputs = ("mu", "logvar", "class_weights", "angle")

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model.for_export()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        output = self.model(to_pixels(image))
        orientation = output.orientation
        angle = orientation.sin if orientation.bin_logits is None else torch.atan2(orientation.sin, orientation.cos)
        return output.mu, output.logvar.clamp(MIN_LOGVAR, MAX_LOGVAR), output.logits.softmax(1), angle


class DecoderGraph(nn.Module):
    """`z` [N, Z], `class_weights` [N, K] (one-hot, or a mixture) and `angle` [N] to `generated`, uint8 [N, H, W, C].

    The image is rotated by the angle, in radians, counter-clockwise as displayed; 0 is upright.
    """

    outputs = ("generated",)

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model.for_export()

    def forward(self, z: Tensor, class_weights: Tensor, angle: Tensor) -> Tensor:
        """The image, as bytes."""
        decoded = self.model.decode(z, class_weights)
        return quantize_pixels(rotate(decoded, angle.cos(), angle.sin(), self.model.config.fill))


def sampling_graph(model: AngleVAE, graph: Graph, metadata: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """One of the graphs above, in float32.

    Inputs beside those of `EncoderGraph` and `DecoderGraph`: `label` int64 [N], from 0 to K − 1; `temperature` float32
    [1], 0 for the class's mean image and 1 for the spread of the training codes; `seed` and `offset` int64 [1], both
    as `ops.reparameterize.reparameterize` takes them.

    Args:
        model: trained, with its anomaly score fitted: that is where the classes' codes are.
        graph: which one.
        metadata: stored in the file, as `onnx_file.set_metadata` does.

    Raises:
        ExportError: an unknown graph, or one that could not be exported.
    """
    if graph not in get_args(Graph):
        raise ExportError(f"there is no graph {graph!r} of a training run: choose of {', '.join(get_args(Graph))}")
    model = model.eval()
    about = {**(metadata or {}), "role": graph}
    if graph == "encode":
        return _encoder(model, about)
    if graph == "decode":
        return _decoder(model, about)
    return (_sample if graph == "sample" else _resample)(model, about)


def _encoder(model: AngleVAE, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    config = model.config
    image = torch.zeros(2, config.height, config.width, config.channels, dtype=torch.uint8)
    return trace(EncoderGraph(model), {"image": image}, EncoderGraph.outputs, metadata)


def _decoder(model: AngleVAE, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    config = model.config
    examples = {
        "z": torch.zeros(2, config.latent),
        "class_weights": torch.zeros(2, config.classes),
        "angle": torch.zeros(2),
    }
    return trace(DecoderGraph(model), examples, DecoderGraph.outputs, metadata)


def _sample(model: AngleVAE, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """Codes around each class's mean, with the training codes' covariance times temperature²; then the decoder."""
    score, config, b = model.score, model.config, Nodes()
    unwhiten = torch.linalg.inv(score.whitening.double().cpu()).float()
    zeros = b.op("Cast", b.op("Mul", "label", b.const(0, np.int64)), to=FLOAT)
    zeros = b.op("Mul", b.reshape(zeros, -1, 1), b.const(np.zeros((1, config.latent))))
    eps, _ = b.ops("VaeEdgeReparameterize", zeros, zeros, "seed", "offset", count=2, domain=DOMAIN)
    means = b.op("Gather", b.const(score.means.cpu().numpy()), "label", axis=0)
    spread = b.op("Mul", b.op("MatMul", eps, b.const(unwhiten.numpy())), "temperature")
    z = b.op("Add", means, spread)
    onehot = b.op("OneHot", "label", b.const(config.classes, np.int64), b.const([0.0, 1.0]), axis=-1)
    inputs = [
        helper.make_tensor_value_info("label", INT64, ["batch"]),
        helper.make_tensor_value_info("angle", FLOAT, ["batch"]),
        helper.make_tensor_value_info("temperature", FLOAT, [1]),
    ]
    return _drawn(b, inputs, (z, onehot, "angle"), [], _decoder(model, {}), metadata)


def _resample(model: AngleVAE, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """The posterior of an image, a code drawn from it, and the decoder, which rotates as the image is."""
    encoder, b = compose.add_prefix(_encoder(model, {}), "encoder_", rename_inputs=False).graph, Nodes()
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *_image_shape(model)])
    b.nodes.extend(encoder.node)
    mu, logvar, class_weights, angle = (output.name for output in encoder.output)
    z, _ = b.ops("VaeEdgeReparameterize", mu, logvar, "seed", "offset", count=2, domain=DOMAIN)
    return _drawn(b, [image], (z, class_weights, angle), encoder.initializer, _decoder(model, {}), metadata)


def _drawn(
    b: Nodes,
    inputs: list[onnx.ValueInfoProto],
    to_decoder: tuple[str, str, str],
    initializers: Any,
    decoder: onnx.ModelProto,
    metadata: Mapping[str, Any],
) -> onnx.ModelProto:
    """Nodes that make the decoder's inputs, and the decoder behind them.

    No Identity passes bytes on: TensorRT has them at a network's ends only.
    """
    graph = compose.add_prefix(decoder, "decoder_", rename_outputs=False).graph
    for source, target in zip(to_decoder, graph.input, strict=True):
        b.nodes.append(helper.make_node("Identity", [source], [target.name], name=target.name))
    b.nodes.extend(graph.node)
    shape = ["batch", *(side.dim_value for side in graph.output[0].type.tensor_type.shape.dim[1:])]
    output = helper.make_tensor_value_info("generated", TensorProto.UINT8, shape)
    counters = [helper.make_tensor_value_info(name, INT64, [1]) for name in ("seed", "offset")]
    made = helper.make_graph(
        b.nodes, metadata["role"], [*inputs, *counters], [output], [*initializers, *graph.initializer]
    )
    return finish(made, SAMPLING_FUNCTIONS, metadata)


def _image_shape(model: AngleVAE) -> tuple[int, int, int]:
    return model.config.height, model.config.width, model.config.channels


# ---- The noise ------------------------------------------------------------------------------------------------------


def philox_function() -> onnx.FunctionProto:
    """`ops.reparameterize.philox4x32` of block numbers, int64 [B], and a seed, int64 [1]: words, int64 [4, B].

    The state is two pairs of words, [2, B] each: those that are multiplied, and those between them. Numbers are int64
    below 2^49, since not every runtime multiplies uint64: a factor of 32 bits is multiplied half by half.
    """

    def write(b: Nodes, block: str, seed: str) -> str:
        word, half = b.const(1 << 32, np.int64), b.const(1 << 16, np.int64)
        low_word, low_half = b.const(noise.LOW_WORD, np.int64), b.const(0xFFFF, np.int64)
        multipliers = b.const([[noise.MULTIPLIER_0], [noise.MULTIPLIER_1]], np.int64)

        def words_of(x: str) -> tuple[str, str]:
            return b.op("BitwiseAnd", x, low_word), b.op("Div", x, word)

        def multiply(x: str) -> tuple[str, str]:
            """Lower and upper word of the products."""
            low = b.op("Mul", b.op("BitwiseAnd", x, low_half), multipliers)
            high = b.op("Mul", b.op("Div", x, half), multipliers)
            upper = b.op("Div", b.op("Add", high, b.op("Div", low, half)), half)
            lower = b.op("Add", b.op("Mul", b.op("BitwiseAnd", high, low_half), half), low)
            return b.op("BitwiseAnd", lower, low_word), upper

        def stacked(*rows: str) -> str:
            return b.op("Concat", *(b.reshape(row, 1, -1) for row in rows), axis=0)

        def swapped(pair: str) -> str:
            return b.op("Gather", pair, b.ints(1, 0), axis=0)

        counter_low, counter_high = words_of(block)
        zero = b.op("BitwiseXor", block, block)
        multiplied, between = stacked(counter_low, zero), stacked(counter_high, zero)
        key = stacked(*words_of(seed))
        for number in range(ROUNDS):
            steps = [[number * noise.WEYL_0 & noise.LOW_WORD], [number * noise.WEYL_1 & noise.LOW_WORD]]
            round_key = b.op("BitwiseAnd", b.op("Add", key, b.const(steps, np.int64)), low_word)
            lower, upper = multiply(multiplied)
            multiplied = b.op("BitwiseXor", b.op("BitwiseXor", swapped(upper), between), round_key)
            between = swapped(lower)
        # Words 0 and 2 were multiplied, words 1 and 3 lay between.
        words = b.op("Concat", multiplied, between, axis=0)
        return b.op("Gather", words, b.ints(0, 2, 1, 3), axis=0)

    return make_function("VaeEdgePhilox", ("block", "seed"), ("words",), (), write)


def reparameterize_function() -> onnx.FunctionProto:
    """`ops.reparameterize`: mu and logvar float32 [N, Z], seed and offset int64 [1], to z [N, Z] and kl [N]."""

    def write(b: Nodes, mu: str, logvar: str, seed: str, offset: str) -> tuple[str, str]:
        shape = b.op("Shape", mu)
        count = b.op("ReduceProd", shape, b.ints(0), keepdims=1)
        eps = b.op("Reshape", _normal(b, seed, offset, count), shape)
        half, one, axis = b.const(0.5), b.const(1.0), b.ints(1)
        z = b.op("Add", mu, b.op("Mul", b.op("Exp", b.op("Mul", logvar, half)), eps))
        terms = b.op("Add", b.op("Exp", logvar), b.op("Mul", mu, mu))
        terms = b.op("Sub", b.op("Sub", terms, one), logvar)
        return z, b.op("Mul", b.op("ReduceSum", terms, axis, keepdims=0), half)

    inputs = ("mu", "logvar", "seed", "offset")
    return make_function("VaeEdgeReparameterize", inputs, ("z", "kl"), (), write)


SAMPLING_FUNCTIONS: dict[str, Callable[[], onnx.FunctionProto]] = {
    "VaeEdgeReparameterize": reparameterize_function,
    "VaeEdgePhilox": philox_function,
}


def _normal(b: Nodes, seed: str, offset: str, count: str) -> str:
    """`ops.reparameterize.normal`: float32 [count]; each argument is int64 [1]."""
    lanes, one = b.const(noise.LANES, np.int64), b.const(1, np.int64)
    first = b.op("Div", offset, lanes)
    end = b.op("Add", b.op("Div", b.op("Sub", b.op("Add", offset, count), one), lanes), one)
    block = b.op("Range", *(b.op("Squeeze", bound) for bound in (first, end)), one)
    words = b.call("VaeEdgePhilox", block, seed)

    # Words to uniforms in [0, 1): the upper half is folded onto the lower one.
    folded = b.op("Min", words, b.op("Sub", b.const(noise.LOW_WORD, np.int64), words))
    u = b.op("Mul", b.cast(folded, FLOAT), b.const(noise.UNIFORM_SCALE))
    u1, u2 = (b.op("Gather", u, b.ints(*rows), axis=0) for rows in ((0, 2), (1, 3)))
    pair = [b.op("Unsqueeze", normals, b.ints(1)) for normals in _box_muller(b, u1, u2)]
    by_word = b.op("Concat", *pair, axis=1)  # [2, 2, B]: lanes 0 and 1, lanes 2 and 3
    numbers = b.reshape(b.transpose(by_word, [2, 0, 1]), -1)
    start = b.op("Sub", offset, b.op("Mul", first, lanes))
    return b.op("Slice", numbers, start, b.op("Add", start, count), b.ints(0))


def _box_muller(b: Nodes, u1: str, u2: str) -> tuple[str, str]:
    """`ops.reparameterize.box_muller`, operation for operation."""

    def polynomial(x: str, factors: tuple[float, float, float]) -> str:
        first, second, third = map(b.const, factors)
        return b.op("Add", b.op("Mul", b.op("Add", b.op("Mul", first, x), second), x), third)

    logarithm = b.op("Log", b.op("Max", u1, b.const(noise.MIN_UNIFORM)))
    radius = b.op("Sqrt", b.op("Mul", b.const(-2.0), logarithm))
    nearest = b.op("Floor", b.op("Add", b.op("Mul", b.const(4.0), u2), b.const(0.5)))
    x = b.op("Mul", b.op("Sub", u2, b.op("Mul", b.const(0.25), nearest)), b.const(noise.TWO_PI))
    square = b.op("Mul", x, x)
    sine = b.op("Add", b.op("Mul", b.op("Mul", polynomial(square, noise.SINE), square), x), x)
    cosine = b.op("Mul", b.op("Mul", polynomial(square, noise.COSINE), square), square)
    cosine = b.op("Add", b.op("Sub", cosine, b.op("Mul", b.const(0.5), square)), b.const(1.0))

    quadrant = b.cast(nearest, INT32)
    one, two = b.const(1, np.int32), b.const(2, np.int32)
    odd = b.op("Equal", b.op("BitwiseAnd", quadrant, one), one)
    minus = b.op("Neg", radius)
    cosine_is_negative = b.op("Equal", b.op("BitwiseAnd", b.op("Add", quadrant, one), two), two)
    sine_is_negative = b.op("Equal", b.op("BitwiseAnd", quadrant, two), two)
    return (
        b.op("Mul", b.op("Where", cosine_is_negative, minus, radius), b.op("Where", odd, sine, cosine)),
        b.op("Mul", b.op("Where", sine_is_negative, minus, radius), b.op("Where", odd, cosine, sine)),
    )
