"""The whole network as one operator: bytes in, answers out. On CUDA it is one launch (`vae_edge_kernels.network`).

The reference goes layer by layer through the single operators, on the same packed numbers; `by_layers` does that on any
device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vae_edge_kernels import plan as plans
from vae_edge_kernels.plan import Layer, Plan, padded

from vae_edge.errors import KernelError
from vae_edge.ops.convolution import MOST_FIRST, convolution, first_convolution
from vae_edge.ops.convolution_int8 import convolution_int8, first_convolution_int8, to_int8
from vae_edge.ops.head import POSE, content_head, linear_of, means, plan_from, pose_head, reconstruction_error
from vae_edge.ops.registration import check_tensor, kernel_module
from vae_edge.ops.turn import turn_pixels

PLACES = 2  # programs on a multiprocessor: so many images are worked on at a time, each with scratch of its own
DOUBTS = slice(3, 6)  # of a pose: concentration, second-best angle, its share


@torch.library.custom_op("vae_edge::network", mutates_args=(), device_types="cpu")
def network(
    image: Tensor, weights: Tensor, numbers: Tensor, whitenings: Tensor, plan: str, programs: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images to answers.

    Args:
        image: uint8 [N, S, S, C].
        weights, numbers, whitenings: as `vae_edge.ops.packing.pack` makes them.
        plan: what `vae_edge_kernels.plan.to_text` makes of their plan.
        programs: that work on one image on CUDA, a power of two; fewer where the GPU has fewer multiprocessors.

    Returns:
        Float32: probabilities [N, K]; angle [N] in radians; score [N]; doubts [N, 3]: concentration, second-best angle
        and its share (zeros without a pose trunk).
    """
    given = _check(image, weights, numbers, whitenings, plan, programs)
    return by_layers(given, image, weights, numbers, whitenings)


@network.register_kernel("cuda")
def _network_cuda(
    image: Tensor, weights: Tensor, numbers: Tensor, whitenings: Tensor, plan: str, programs: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = _check(image, weights, numbers, whitenings, plan, programs)
    n = len(image)
    buffers = [buffer.contiguous() for buffer in (weights, numbers, whitenings)]
    multiprocessors = torch.cuda.get_device_properties(image.device).multi_processor_count
    while programs > multiprocessors:  # one on each is sure to fit
        programs //= 2
    places = max(1, min(n, (PLACES if programs == 1 else 1) * multiprocessors // programs))
    areas, floats = weights.new_empty((places, 2, given.area)), numbers.new_empty((places, given.floats))
    meetings = (weights.new_zeros if programs > 1 else weights.new_empty)((places,), dtype=torch.int32)
    probabilities, angle, score, doubts = (
        numbers.new_empty(shape) for shape in ((n, given.classes), (n,), (n,), (n, 3))
    )
    with torch.cuda.device(image.device):
        kernel_module("network", "network").forward(
            given, image.contiguous(), *buffers, areas, floats, meetings, probabilities, angle, score, doubts, programs
        )
    return probabilities, angle, score, doubts


@network.register_fake
def _network_fake(
    image: Tensor, weights: Tensor, numbers: Tensor, whitenings: Tensor, plan: str, programs: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = _check(image, weights, numbers, whitenings, plan, programs)
    n = image.shape[0]
    first, second, third, fourth = (numbers.new_empty(shape) for shape in ((n, given.classes), (n,), (n,), (n, 3)))
    return first, second, third, fourth


def by_layers(
    plan: Plan, image: Tensor, weights: Tensor, numbers: Tensor, whitenings: Tensor, scalars: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `network` gives, by one operator after the other.

    `scalars` are the numbers on the CPU, where some of them are looked at: with them nothing waits for a GPU.
    """
    scalars = numbers.cpu() if scalars is None else scalars
    text, n = plans.to_text(plan), image.shape[0]
    whole = numbers.new_zeros((n,))
    upright_cos, upright_sin = whole + 1.0, whole
    pose_means, logits = numbers.new_zeros((n, plan.pose_tap)), numbers.new_zeros((n, plan.classes))
    pose = numbers.new_zeros((n, POSE))
    dtype = torch.float32 if plan.int8 else torch.float16

    def turned(cos: Tensor, sin: Tensor, rounded_to: float = 0.0) -> Tensor:
        return turn_pixels(image, cos, sin, 1.0 / 255.0, plan.fill, plan.window, dtype, rounded_to=rounded_to)

    if plan.bins:
        seen, scale = (turned(upright_cos, upright_sin), 1.0) if plan.window else (image, 1.0 / 255.0)
        features, pose_means = _trunk(
            plan, seen, scale, weights, numbers, scalars, 0, plan.pose_layers, plan.quantize_image
        )
        logits, pose = pose_head(features, weights, numbers, text)
        counts = float(scalars[plan.quantize_image + 1]) if plan.int8 else 0.0
        upright = turned(pose[:, 0].contiguous(), -pose[:, 1], counts)
    else:
        upright = turned(upright_cos, upright_sin)
    features, tap_means = _trunk(
        plan, upright, 1.0, weights, numbers, scalars, plan.pose_layers, plan.trunk_layers, plan.quantize_upright
    )
    probabilities, code, parts = content_head(
        features, pose_means, tap_means, logits, pose, weights, numbers, whitenings, text
    )
    score = parts[:, 0].clone()
    if not plan.score.light:
        drawn = _draw(plan, code, weights, numbers, scalars)
        measure = numbers[plan.score.measures : plan.score.measures + 1]
        score = reconstruction_error(drawn, upright, parts, measure, plan.block)
    return probabilities, pose[:, 2].clone(), score, pose[:, DOUBTS].clone()


def _trunk(
    plan: Plan,
    seen: Tensor,
    scale: float,
    weights: Tensor,
    numbers: Tensor,
    scalars: Tensor,
    first: int,
    count: int,
    quantize: int,
) -> tuple[Tensor, Tensor]:
    """Pixels [N, S, S, C] to features [N, F] and the means of the tapped layer [N, W]."""
    x, tapped = seen, numbers.new_zeros((seen.shape[0], 0))
    for index in range(first, first + count):
        layer = plan.layers[index]
        if index > first:
            x = _layer(plan, layer, x, weights, numbers)
        elif plan.int8:
            x = _first_int8(layer, x, float(torch.tensor(scale) * scalars[quantize]), weights, numbers)
        else:
            filter, bias = _filter(layer, weights), _bias(layer, numbers)
            x = first_convolution(x, filter, bias, layer.stride, _pads(layer), layer.relu, scale)
        if layer.tap:
            tapped = means(x, float(scalars[layer.output_scale]) if plan.int8 else 1.0)
    return x.flatten(1), tapped


def _layer(
    plan: Plan,
    layer: Layer,
    x: Tensor,
    weights: Tensor,
    numbers: Tensor,
    dtype: torch.dtype = torch.int8,
) -> Tensor:
    filter, bias = _filter(layer, weights, plan.int8), _bias(layer, numbers)
    if not plan.int8:
        return convolution(x, filter, bias, None, layer.stride, _pads(layer), layer.relu)
    scale = numbers[layer.scale : layer.scale + layer.outputs]
    return convolution_int8(x, filter, scale, bias, None, layer.stride, _pads(layer), layer.relu, dtype=dtype)


def _first_int8(layer: Layer, x: Tensor, quantize: float, weights: Tensor, numbers: Tensor) -> Tensor:
    shape = (layer.outputs, layer.taps, layer.taps, layer.inputs)
    filter = weights[layer.weights : layer.weights + layer.outputs * layer.taps**2 * layer.inputs].reshape(shape)
    scale = numbers[layer.scale : layer.scale + layer.outputs]
    return first_convolution_int8(
        x, filter, scale, _bias(layer, numbers), layer.stride, _pads(layer), layer.relu, quantize
    )


def _draw(plan: Plan, code: Tensor, weights: Tensor, numbers: Tensor, scalars: Tensor) -> Tensor:
    """Code [N, Z + K] to the decoder's logits [N, G, G, P]."""
    first = linear_of(plan, plans.FIRST)
    matrix = weights[first.weights : first.weights + first.inputs * first.stride].reshape(first.inputs, -1)
    bias = numbers[first.bias : first.bias + first.outputs]
    x = code[:, None, None, :].contiguous()
    if plan.int8:
        scale = numbers[first.scale : first.scale + first.outputs]
        filter = matrix[:, : first.outputs].T.contiguous()
        if first.inputs <= MOST_FIRST:
            quantize = float(scalars[first.quantize])
            x = first_convolution_int8(x, filter[:, None, None, :], scale, bias, 1, (0, 0), True, quantize)
        else:
            x = to_int8(x * numbers[first.quantize])
            x = convolution_int8(x, filter[None, None], scale, bias, None, 1, (0, 0), True)
    else:
        filter = matrix[None, None, :, : first.outputs].contiguous()
        if first.inputs <= MOST_FIRST:
            x = first_convolution(x, filter, bias, 1, (0, 0), True)
        else:
            x = convolution(x.half(), filter, bias, None, 1, (0, 0), True)
    x = x.reshape(code.shape[0], plan.grid, plan.grid, plan.width)
    x = _layer(plan, plan.layers[-2], x, weights, numbers)
    return _layer(plan, plan.layers[-1], x, weights, numbers, torch.float32)


def _filter(layer: Layer, weights: Tensor, int8: bool = False) -> Tensor:
    """A layer's weights as its operator takes them."""
    flat = weights[layer.weights : layer.weights + layer.taps**2 * layer.inputs * layer.outputs]
    last = (layer.outputs, layer.inputs) if int8 else (layer.inputs, layer.outputs)
    return flat.reshape(layer.taps, layer.taps, *last)


def _bias(layer: Layer, numbers: Tensor) -> Tensor:
    return numbers[layer.bias : layer.bias + layer.outputs]


def _pads(layer: Layer) -> tuple[int, int]:
    return layer.taps // 2, layer.taps // 2


def _check(image: Tensor, weights: Tensor, numbers: Tensor, whitenings: Tensor, plan: str, programs: int) -> Plan:
    operator, given = "network", plan_from(plan)
    if not 1 <= programs <= plans.MOST_PROGRAMS or programs & (programs - 1):
        raise KernelError(f"{operator} expects programs as a power of two up to {plans.MOST_PROGRAMS}; got {programs}.")
    shape = (None, given.side, given.side, given.channels)
    check_tensor(operator, "image", image, "N S S C", (torch.uint8,), image, shape)
    dtype = torch.int8 if given.int8 else torch.float16
    check_tensor(operator, "weights", weights, "W", (dtype,), image, (given.weights_size,))
    check_tensor(operator, "numbers", numbers, "W", (torch.float32,), image, (given.numbers_size,))
    score = given.score
    clusters = (score.clusters, score.components, padded(score.components))
    check_tensor(operator, "whitenings", whitenings, "M D D", (torch.float16,), image, clusters)
    return given
