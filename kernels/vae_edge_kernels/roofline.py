"""The floor under a network's time, on paper: bytes and operations of each layer, and a GPU's published rates.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009): a layer takes at least the
time that its bytes take at the memory's bandwidth, and at least the time that its operations take at the matrix units'
rate. Launches are not in it: they are counted beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vae_edge_kernels.layout import ConvLayout, Fc, NetworkLayout

BATCHES = (1, 256)
POSE_VALUES = 6  # cos θ, sin θ, θ, concentration, second-best angle, its share


@dataclass(frozen=True)
class Device:
    """Published figures: bytes a second of the memory, multiply-accumulates a second of dense matrix units."""

    name: str
    architecture: int
    bytes_per_s: float
    fp16_macs_per_s: float
    int8_macs_per_s: float


DEVICES = (
    # Jetson AGX Orin Series technical brief: 204.8 GB/s; GPU 170 sparse INT8 TOPS, so dense 85, and half of it in FP16.
    Device("Orin", 87, 204.8e9, 42.5e12 / 2, 85e12 / 2),
    # Jetson Thor (T5000) datasheet: 273 GB/s; 2070 sparse FP4 TFLOPS, so dense FP8 a quarter and FP16 an eighth of it.
    # It says nothing of INT8, which other GPUs of this generation do at FP8's rate.
    Device("Thor", 110, 273e9, 258e12 / 2, 517e12 / 2),
    # H100 SXM5 datasheet: 3.35 TB/s; 989 dense FP16 TFLOPS, 1979 dense INT8 TOPS.
    Device("H100", 90, 3.35e12, 989e12 / 2, 1979e12 / 2),
)


@dataclass(frozen=True)
class Work:
    """A step of the network: bytes of its input, output and weights, and multiply-accumulates, for one image.

    `weights` are read once for a whole batch.
    """

    name: str
    inputs: int
    outputs: int
    weights: int
    macs: int

    def floor_us(self, device: Device, batch: int, int8: bool) -> float:
        """The least time of a batch, in microseconds."""
        moved = (self.inputs + self.outputs) * batch + self.weights
        rate = device.int8_macs_per_s if int8 else device.fp16_macs_per_s
        return 1e6 * max(moved / device.bytes_per_s, self.macs * batch / rate)


def works(plan: NetworkLayout) -> list[Work]:
    """The launches of a network that runs layer by layer, in order."""
    return list(_works(plan))


def _works(plan: NetworkLayout) -> Iterator[Work]:
    element = 1 if plan.int8 else 2
    pixels = plan.side**2 * plan.channels
    whole = 4 if plan.int8 else 2  # bytes of an element of what stays floating point
    if plan.bins:
        if plan.circular_mask:
            yield Work("window", pixels, whole * pixels, 0, 4 * pixels)
        seen = whole * pixels if plan.circular_mask else pixels
        yield from _trunk("pose", plan.layers[: plan.orientation_layers], element, seen)
        yield _linear("pose head", plan, Fc.ORIENTATION, element, 4 * (plan.classes + POSE_VALUES))
    yield Work("turn", pixels, whole * pixels, 0, 4 * pixels)
    encoder = plan.layers[plan.orientation_layers : plan.orientation_layers + plan.encoder_layers]
    yield from _trunk("encoder", encoder, element, whole * pixels)
    yield _head(plan, element)
    if not plan.score.fast:
        middle, last = plan.layers[-2:]
        first = _linear("decoder 0", plan, Fc.DECODER, element, element * plan.grid**2 * plan.decoder_width)
        yield replace(first, inputs=4 * (plan.latent + plan.classes))
        yield _convolution("decoder 1", middle, element, element)
        yield _convolution("decoder 2", last, element, whole)
        drawn = whole * last.out_side**2 * last.out_channels
        yield Work("error", drawn + whole * pixels, 4, 0, 8 * pixels)


def _trunk(name: str, layers: Sequence[ConvLayout], element: int, seen: int) -> Iterator[Work]:
    for number, layer in enumerate(layers):
        step = _convolution(f"{name} {number}", layer, element, element)
        yield replace(step, inputs=seen) if number == 0 else step
        if layer.is_feature_layer:
            places = layer.out_side**2 * layer.out_channels
            yield Work(f"{name} means", element * places, 4 * layer.out_channels, 0, places)


def _convolution(name: str, layer: ConvLayout, element: int, out_element: int) -> Work:
    weights = layer.kernel_size**2 * layer.in_channels * layer.out_channels
    places = layer.out_side**2
    inputs = element * layer.side**2 * layer.in_channels
    return Work(name, inputs, out_element * places * layer.out_channels, element * weights, places * weights)


def _linear(name: str, plan: NetworkLayout, number: int, element: int, outputs: int) -> Work:
    layer = plan.linears[number]
    assert layer is not None
    weights = layer.in_features * layer.out_features
    return Work(name, element * layer.in_features, outputs, element * weights, weights)


def _head(plan: NetworkLayout, element: int) -> Work:
    """Linear layers to mu, hidden and logits; the score's projection (float32) and one whitening (float16), which is
    counted as if the images of a batch had the same."""
    layers = [
        layer
        for number in (Fc.MU, Fc.CLASSIFIER_HIDDEN, Fc.CLASSIFIER_LOGITS)
        if (layer := plan.linears[number]) is not None
    ]
    linear = sum(layer.in_features * layer.out_features for layer in layers)
    score = plan.score
    features = plan.orientation_feature_channels + plan.feature_channels + plan.latent + plan.classes
    fitted, whitening = features * (score.components + 1) + score.components * score.clusters, score.components**2
    inputs = element * layers[0].in_features + 4 * (
        plan.orientation_feature_channels + plan.feature_channels + plan.classes + POSE_VALUES
    )
    outputs = 4 * (plan.latent + 2 * plan.classes + 2)
    return Work("head", inputs, outputs, element * linear + 4 * fitted + 2 * whitening, linear + fitted + whitening)


def one_launch(plan: NetworkLayout) -> Work:
    """The whole network in one launch, whose activations stay in the cache."""
    steps = works(plan)
    weights, macs = sum(step.weights for step in steps), sum(step.macs for step in steps)
    return Work("one launch", plan.side**2 * plan.channels, 4 * (plan.classes + 5), weights, macs)


def moved_bytes(plan: NetworkLayout) -> tuple[int, int, int]:
    """Bytes of an image's activations that go through the GPU's memory: with one operator after the other as eager
    PyTorch runs them, with fused operators, and in one launch.

    Unfused, each convolution's output is read and written twice more (bias with normalization, then ReLU), and an
    image is cast, scaled and turned one after the other.
    """
    element = 1 if plan.int8 else 2
    pixels = plan.side**2 * plan.channels
    fused = sum(step.inputs + step.outputs for step in works(plan))
    again = sum(4 * element * layer.out_side**2 * layer.out_channels for layer in plan.layers if layer.relu)
    single = one_launch(plan)
    return fused + again + 2 * (4 + 4) * pixels, fused, single.inputs + single.outputs


def table(plan: NetworkLayout, batches: tuple[int, ...] = BATCHES) -> str:
    """The roofline of a network as a Markdown table: a line for each launch, one for their sum, one for one launch."""
    steps = works(plan)
    heads = [f"{device.name} {batch}" for device in DEVICES for batch in batches]
    lines = [
        f"| launch | KiB in | out | weights | MMAC | {' | '.join(heads)} |",
        "|---" + "|--:" * (4 + len(heads)) + "|",
    ]

    def line(name: str, step: Work, floors: list[float]) -> str:
        sizes = (f"{size / 1024:.1f}" for size in (step.inputs, step.outputs, step.weights))
        told = (f"{floor:.3f}" if floor < 10 else f"{floor:.1f}" for floor in floors)
        return f"| {' | '.join((name, *sizes, f'{step.macs / 1e6:.3f}', *told))} |"

    def floors(step: Work) -> list[float]:
        return [step.floor_us(device, batch, plan.int8) for device in DEVICES for batch in batches]

    lines += [line(step.name, step, floors(step)) for step in steps]
    sums = [sum(column) for column in zip(*map(floors, steps), strict=True)]
    whole = Work("", *(sum(getattr(step, name) for step in steps) for name in ("inputs", "outputs", "weights", "macs")))
    lines.append(line(f"**all {len(steps)}**", whole, sums))
    single = one_launch(plan)
    lines.append(line("**one launch**", single, floors(single)))
    return "\n".join(lines)


def savings(named: Mapping[str, NetworkLayout]) -> str:
    """What fusion saves, as a Markdown table: bytes of an image's activations through memory, and launches."""
    lines = [
        "| network | unfused, KiB an image | fused operators | one launch | launches, fused | in one |",
        "|---" + "|--:" * 5 + "|",
    ]
    for name, plan in named.items():
        told = (f"{size / 1024:.1f}" for size in moved_bytes(plan))
        lines.append(f"| {' | '.join((name, *told, str(len(works(plan))), '1'))} |")
    return "\n".join(lines)
