"""The heads of the network: read-outs of angle, classes and rejection score, one operator each for a whole batch.

What they compute is in `vae_edge.model` (network and score); where their numbers lie says a `vae_edge_kernels.plan`,
which an operator is given as the text that `plan.to_text` makes of it. On CUDA the Triton kernels
`vae_edge_kernels.head`, `means` and `reconstruction_error` compute it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from vae_edge_kernels import plan as plans
from vae_edge_kernels.plan import Linear, Plan, padded

from vae_edge.errors import KernelError
from vae_edge.ops.convolution_int8 import to_int8
from vae_edge.ops.eight_bits import multiply_add
from vae_edge.ops.registration import check_tensor, kernel_module

WINDOW_BINS, APART_BINS = 2, 4
FEATURES = (torch.float16, torch.int8)
POSE = 6  # cos θ, sin θ, θ, concentration, second-best angle, its share


def plan_from(text: str) -> Plan:
    """The plan of a text that `plans.to_text` wrote.

    Raises:
        KernelError: if the text is not one of a plan.
    """
    try:
        return plans.from_text(text)
    except ValueError as error:
        raise KernelError(f"this is no plan of a network: {error}") from error


def linear_of(plan: Plan, number: int) -> Linear:
    """A linear layer of the plan.

    Raises:
        KernelError: if the plan has no such layer.
    """
    found = plan.linears[number]
    if found is None:
        raise KernelError(f"the network has no linear layer number {number}: it was planned without")
    return found


@torch.library.custom_op("vae_edge::means", mutates_args=(), device_types="cpu")
def means(x: Tensor, scale: float) -> Tensor:
    """Maps [N, H, W, C] to their means by channel times `scale`, float32 [N, C]."""
    _check_maps(x)
    return x.float().mean((1, 2)) * scale


@means.register_kernel("cuda")
def _means_cuda(x: Tensor, scale: float) -> Tensor:
    _check_maps(x)
    y = x.new_empty((x.shape[0], x.shape[3]), dtype=torch.float32)
    with torch.cuda.device(x.device):
        kernel_module("means", "means").forward(x.contiguous(), y, scale)
    return y


@means.register_fake
def _means_fake(x: Tensor, scale: float) -> Tensor:
    _check_maps(x)
    return x.new_empty((x.shape[0], x.shape[3]), dtype=torch.float32)


def _check_maps(x: Tensor) -> None:
    check_tensor("means", "x", x, "N H W C", (torch.float32, torch.float16, torch.bfloat16, torch.int8), x)
    if x.shape[1] * x.shape[2] == 0:
        raise KernelError(f"means expects maps of at least one pixel; got {list(x.shape)}.")


@torch.library.custom_op("vae_edge::pose_head", mutates_args=(), device_types="cpu")
def pose_head(features: Tensor, weights: Tensor, numbers: Tensor, plan: str) -> tuple[Tensor, Tensor]:
    """Features [N, F] of the pose trunk to class logits [N, K] and pose [N, 6], float32.

    The pose is cos θ, sin θ, θ in radians, concentration, second-best angle, and its share.
    """
    given = _check_pose(features, weights, numbers, plan)
    both = apply_linear(features, weights, numbers, given, plans.POSE, taken=True)
    logits, bins = both[:, : given.classes].contiguous(), both[:, given.classes :]
    axes = numbers[given.axes : given.axes + 2 * given.bins].reshape(2, -1)
    index = torch.arange(given.bins, device=bins.device)

    def apart(bin: Tensor) -> Tensor:
        distance = (index[None, :] - bin[:, None]).abs()
        return torch.minimum(distance, given.bins - distance)

    share, best = bins.softmax(1), bins.argmax(1)
    second = bins.masked_fill(apart(best) <= APART_BINS, -torch.inf).argmax(1)
    near, near_second = ((share * (apart(bin) <= WINDOW_BINS)) for bin in (best, second))
    cos, sin = near @ axes[0], near @ axes[1]
    length = (cos * cos + sin * sin + 1e-12).sqrt()
    concentration = torch.hypot(share @ axes[0], share @ axes[1])
    second_angle = torch.atan2(near_second @ axes[1], near_second @ axes[0])
    columns = (cos / length, sin / length, torch.atan2(sin, cos), concentration, second_angle, near_second.sum(1))
    return logits, torch.stack(columns, 1)


@pose_head.register_kernel("cuda")
def _pose_head_cuda(features: Tensor, weights: Tensor, numbers: Tensor, plan: str) -> tuple[Tensor, Tensor]:
    given = _check_pose(features, weights, numbers, plan)
    logits, pose = numbers.new_empty((len(features), given.classes)), numbers.new_empty((len(features), POSE))
    with torch.cuda.device(features.device):
        kernel_module("pose_head", "head").pose_forward(
            given, features.contiguous(), weights.contiguous(), numbers.contiguous(), logits, pose
        )
    return logits, pose


@pose_head.register_fake
def _pose_head_fake(features: Tensor, weights: Tensor, numbers: Tensor, plan: str) -> tuple[Tensor, Tensor]:
    given = _check_pose(features, weights, numbers, plan)
    return numbers.new_empty((features.shape[0], given.classes)), numbers.new_empty((features.shape[0], POSE))


@torch.library.custom_op("vae_edge::content_head", mutates_args=(), device_types="cpu")
def content_head(
    features: Tensor,
    pose_means: Tensor,
    means: Tensor,
    logits: Tensor,
    pose: Tensor,
    weights: Tensor,
    numbers: Tensor,
    whitenings: Tensor,
    plan: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, F] of the encoder to probabilities [N, K], code [N, Z + K] and score [N, 2], float32.

    The code is mu and class weights; the score is all of it but the reconstruction's measure, and the error to be
    expected of such an image. `logits` [N, K] and `pose` [N, 6] are those of `pose_head`; `pose_means` and `means`
    float32 [N, W] those of the tapped layers.
    """
    given = _check_content(features, pose_means, means, logits, pose, weights, numbers, whitenings, plan)
    score = given.score

    def numbers_of(place: int, rows: int, columns: int) -> Tensor:
        return numbers[place : place + rows * padded(columns)].reshape(rows, -1)[:, :columns]

    mu = apply_linear(features, weights, numbers, given, plans.MU, taken=True)
    hidden = apply_linear(mu, weights, numbers, given, plans.INNER).relu()
    if given.int8:
        mu = as_taken(mu, numbers, linear_of(given, plans.INNER))
    total = apply_linear(hidden, weights, numbers, given, plans.OUTER) + (logits if given.bins else 0.0)
    class_weights = total.softmax(1)
    probabilities = (total * numbers[given.temperature]).softmax(1)
    across = score.components + 1
    projected = numbers[score.offset : score.offset + across]
    parts = [(score.project_tap, means), (score.project_mu, mu), (score.project_classes, class_weights)]
    parts += [(score.project_pose, pose_means)] if given.bins else []
    for place, values in parts:
        projected = projected + values @ numbers_of(place, values.shape[1], across)
    white, expected = projected[:, :-1], torch.minimum(projected[:, -1], numbers[score.most_expected])
    offset = numbers[score.nearest_offset : score.nearest_offset + score.clusters]
    nearest = (white @ numbers_of(score.nearest, score.components, score.clusters) + offset).argmin(1)
    own = (white[:, None, :] @ whitenings[nearest, :, : score.components].float()).squeeze(1)
    own = own - numbers_of(score.cluster_offset, score.clusters, score.components)[nearest]
    measures = numbers[score.measures : score.measures + 5]
    known = measures[1] * torch.linalg.vector_norm(own, dim=1) - measures[2] * total.logsumexp(1) - measures[4]
    if given.bins:
        known = known + measures[3] * (1.001 - pose[:, 3]).log()
    return probabilities, torch.cat([mu, class_weights], 1), torch.stack([known, expected], 1)


@content_head.register_kernel("cuda")
def _content_head_cuda(
    features: Tensor,
    pose_means: Tensor,
    means: Tensor,
    logits: Tensor,
    pose: Tensor,
    weights: Tensor,
    numbers: Tensor,
    whitenings: Tensor,
    plan: str,
) -> tuple[Tensor, Tensor, Tensor]:
    given = _check_content(features, pose_means, means, logits, pose, weights, numbers, whitenings, plan)
    n = len(features)
    made = [numbers.new_empty((n, size)) for size in (given.classes, given.latent + given.classes, 2)]
    given_tensors = (features, pose_means, means, logits, pose, weights, numbers, whitenings)
    read = [tensor.contiguous() for tensor in given_tensors]
    with torch.cuda.device(features.device):
        kernel_module("content_head", "head").content_forward(given, *read, *made)
    return made[0], made[1], made[2]


@content_head.register_fake
def _content_head_fake(
    features: Tensor,
    pose_means: Tensor,
    means: Tensor,
    logits: Tensor,
    pose: Tensor,
    weights: Tensor,
    numbers: Tensor,
    whitenings: Tensor,
    plan: str,
) -> tuple[Tensor, Tensor, Tensor]:
    given = _check_content(features, pose_means, means, logits, pose, weights, numbers, whitenings, plan)
    sizes = (given.classes, given.latent + given.classes, 2)
    first, second, third = (numbers.new_empty((features.shape[0], size)) for size in sizes)
    return first, second, third


@torch.library.custom_op("vae_edge::reconstruction_error", mutates_args=(), device_types="cpu")
def reconstruction_error(drawn: Tensor, upright: Tensor, score: Tensor, measure: Tensor, block: int) -> Tensor:
    """The whole rejection score, float32 [N], of what the decoder drew.

    Args:
        drawn: logits [N, G, G, C · block²].
        upright: the image seen [N, S, S, C].
        score: float32 [N, 2], as of `content_head`.
        measure: float32 [1], the weight of error less the error expected.
        block: pixels that a cell of the grid becomes in either direction.
    """
    _check_drawn(drawn, upright, score, measure, block)
    side = upright.shape[1]
    pixels = F.pixel_shuffle(drawn.float().permute(0, 3, 1, 2), block)[:, :, :side, :side].sigmoid()
    seen = upright.float().flatten(1)
    apart = (seen - pixels.permute(0, 2, 3, 1).flatten(1)).square().sum(1)
    contrast = torch.linalg.vector_norm(seen - seen.mean(1, keepdim=True), dim=1) + (1e-3 * seen.shape[1]) ** 0.5
    return score[:, 0] + measure * (apart / contrast.square() - score[:, 1])


@reconstruction_error.register_kernel("cuda")
def _reconstruction_error_cuda(drawn: Tensor, upright: Tensor, score: Tensor, measure: Tensor, block: int) -> Tensor:
    _check_drawn(drawn, upright, score, measure, block)
    total = score.new_empty(len(score))
    read = [tensor.contiguous() for tensor in (drawn, upright, score, measure)]
    with torch.cuda.device(drawn.device):
        kernel_module("reconstruction_error", "reconstruction_error").forward(*read, total, block)
    return total


@reconstruction_error.register_fake
def _reconstruction_error_fake(drawn: Tensor, upright: Tensor, score: Tensor, measure: Tensor, block: int) -> Tensor:
    _check_drawn(drawn, upright, score, measure, block)
    return score.new_empty(score.shape[0])


def apply_linear(x: Tensor, weights: Tensor, numbers: Tensor, plan: Plan, number: int, taken: bool = False) -> Tensor:
    """A linear layer of packed numbers, float32 [N, outputs]; `taken` says that x is already as the layer takes it."""
    layer = linear_of(plan, number)
    matrix = weights[layer.weights : layer.weights + layer.inputs * layer.stride].reshape(layer.inputs, -1)
    bias = numbers[layer.bias : layer.bias + layer.outputs]
    if plan.int8:
        seen = x if taken else to_int8(x * numbers[layer.quantize])
        total = (seen.double() @ matrix[:, : layer.outputs].double()).float()
        return multiply_add(total, numbers[layer.scale : layer.scale + layer.outputs], bias)
    return x.float() @ matrix[:, : layer.outputs].float() + bias


def as_taken(x: Tensor, numbers: Tensor, layer: Linear) -> Tensor:
    """The values that an int8 layer takes x for."""
    return to_int8(x * numbers[layer.quantize]).float() * numbers[layer.quantize + 1]


def _check_buffers(operator: str, weights: Tensor, numbers: Tensor, given: Plan, like: Tensor) -> None:
    dtype = torch.int8 if given.int8 else torch.float16
    check_tensor(operator, "weights", weights, "W", (dtype,), like, (given.weights_size,))
    check_tensor(operator, "numbers", numbers, "W", (torch.float32,), like, (given.numbers_size,))


def _check_pose(features: Tensor, weights: Tensor, numbers: Tensor, plan: str) -> Plan:
    given = plan_from(plan)
    layer = linear_of(given, plans.POSE)
    check_tensor("pose_head", "features", features, "N F", (FEATURES[given.int8],), features, (None, layer.inputs))
    _check_buffers("pose_head", weights, numbers, given, features)
    return given


def _check_content(
    features: Tensor,
    pose_means: Tensor,
    means: Tensor,
    logits: Tensor,
    pose: Tensor,
    weights: Tensor,
    numbers: Tensor,
    whitenings: Tensor,
    plan: str,
) -> Plan:
    operator, given = "content_head", plan_from(plan)
    n, inputs = features.shape[0], linear_of(given, plans.MU).inputs
    check_tensor(operator, "features", features, "N F", (FEATURES[given.int8],), features, (None, inputs))
    whole = (torch.float32,)
    check_tensor(operator, "means", means, "N W", whole, features, (n, given.tap))
    if given.bins:
        check_tensor(operator, "pose_means", pose_means, "N W", whole, features, (n, given.pose_tap))
        check_tensor(operator, "logits", logits, "N K", whole, features, (n, given.classes))
        check_tensor(operator, "pose", pose, "N P", whole, features, (n, POSE))
    _check_buffers(operator, weights, numbers, given, features)
    score = given.score
    shape = (score.clusters, score.components, padded(score.components))
    check_tensor(operator, "whitenings", whitenings, "M D D", (torch.float16,), features, shape)
    return given


def _check_drawn(drawn: Tensor, upright: Tensor, score: Tensor, measure: Tensor, block: int) -> None:
    operator, floats = "reconstruction_error", (torch.float32, torch.float16)
    check_tensor(operator, "upright", upright, "N S S C", floats, drawn)
    n, side, _, channels = upright.shape
    grid = -(-side // block)
    check_tensor(operator, "drawn", drawn, "N G G P", floats, drawn, (n, grid, grid, channels * block * block))
    check_tensor(operator, "score", score, "N S", (torch.float32,), drawn, (n, 2))
    check_tensor(operator, "measure", measure, "M", (torch.float32,), drawn, (1,))
