"""Lower bounds on paper: the roofline of a network, and the occupancy of a kernel.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009): a layer takes at least the
time that its bytes take at the memory's bandwidth, and at least the time that its operations take at the rate of the
tensor cores. The cost of a launch itself is not in it; launches are counted separately.

Occupancy: NVIDIA, "CUDA Programming Guide", appendix "Compute Capabilities".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vae_edge_kernels import KernelError
from vae_edge_kernels.layout import ConvLayout, Fc, NetworkLayout, reduced

BATCHES = (1, 256)
ORIENTATION_VALUES = 6  # cos θ, sin θ, θ, angle confidence, second angle, its probability

REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # registers are given to a warp in units of this
SHARED_UNIT = 128  # bytes of shared memory are given to a block in units of this
SHARED_PER_BLOCK = 1024  # bytes that a block takes for itself (compute capability 8.0 and later)


@dataclass(frozen=True)
class Device:
    """Published figures of a GPU: memory bandwidth, and dense multiply-accumulates a second of its tensor cores."""

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
class MultiprocessorLimits:
    """What one multiprocessor holds at a time."""

    warps: int
    blocks: int
    shared_bytes: int


LIMITS = {
    80: MultiprocessorLimits(64, 32, 164 << 10),
    86: MultiprocessorLimits(48, 16, 100 << 10),
    87: MultiprocessorLimits(48, 16, 164 << 10),
    89: MultiprocessorLimits(48, 24, 100 << 10),
    90: MultiprocessorLimits(64, 32, 228 << 10),
    100: MultiprocessorLimits(64, 32, 228 << 10),
    110: MultiprocessorLimits(48, 24, 228 << 10),
    120: MultiprocessorLimits(48, 24, 100 << 10),
}


def occupancy(architecture: int, registers: int, warps: int, shared_bytes: int) -> float:
    """The fraction of a multiprocessor's warps, 0 to 1, that programs of a kernel can fill; 0 if not one fits.

    Args:
        architecture: 87 is sm_87.
        registers: of a thread.
        warps: of a program.
        shared_bytes: of a program.

    Raises:
        KernelError: if the limits of the architecture are not known.
    """
    if architecture not in LIMITS:
        raise KernelError(f"the limits of sm_{architecture} are not known; known are {', '.join(map(str, LIMITS))}")

    limits = LIMITS[architecture]
    warp_registers = _round_up(max(registers, 1) * 32, REGISTER_UNIT)
    block_shared = _round_up(shared_bytes, SHARED_UNIT) + SHARED_PER_BLOCK
    blocks = min(
        limits.blocks,
        limits.warps // warps,
        REGISTERS // warp_registers // warps,
        limits.shared_bytes // block_shared,
    )
    return blocks * warps / limits.warps


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True)
class LayerCost:
    """What one launch of a network moves and computes for one image."""

    name: str
    inputs: int  #: bytes read
    outputs: int  #: bytes written
    weights: int  #: bytes, read once for a whole batch
    macs: int  #: multiply-accumulates

    def lower_bound_us(self, device: Device, batch: int, int8: bool) -> float:
        """The roofline of a batch, in microseconds: the slower of memory and tensor cores."""
        moved = (self.inputs + self.outputs) * batch + self.weights
        rate = device.int8_macs_per_s if int8 else device.fp16_macs_per_s
        return 1e6 * max(moved / device.bytes_per_s, self.macs * batch / rate)


def layer_costs(net: NetworkLayout) -> list[LayerCost]:
    """The launches of a network that runs layer by layer, in order."""
    return list(_layer_costs(net))


def _layer_costs(net: NetworkLayout) -> Iterator[LayerCost]:
    element = 1 if net.int8 else 2
    pixels = net.pixels * net.channels
    whole = 4 if net.int8 else 2  # bytes of an element of what stays floating point
    if net.bins:
        if net.circular_mask:
            yield LayerCost("circular mask", pixels, whole * pixels, 0, 4 * pixels)
        seen = whole * pixels if net.circular_mask else pixels
        yield from _backbone("orientation", net.layers[: net.orientation_layers], element, seen)
        yield _linear("orientation head", net, Fc.ORIENTATION, element, 4 * (net.classes + ORIENTATION_VALUES))
    yield LayerCost("rotate", pixels, whole * pixels, 0, 4 * pixels)
    encoder = net.layers[net.orientation_layers : net.orientation_layers + net.encoder_layers]
    yield from _backbone("encoder", encoder, element, whole * pixels)
    yield _head(net, element)
    if not net.score.fast:
        middle, last = net.layers[-2:]
        first = _linear("decoder 0", net, Fc.DECODER, element, element * net.cells * net.decoder_width)
        yield replace(first, inputs=4 * (net.latent + net.classes))
        yield _conv("decoder 1", middle, element, element)
        yield _conv("decoder 2", last, element, whole)
        decoded = whole * last.out_pixels * last.out_channels
        height, width = reduced((net.height, net.width), net.reduction)
        target = height * width * net.channels
        if net.reduction > 1:
            yield LayerCost("reduce", whole * pixels, 4 * target, 0, pixels)
        seen = 4 * target if net.reduction > 1 else whole * target
        yield LayerCost("error", decoded + seen, 4, 0, 8 * target)


def _backbone(name: str, layers: Sequence[ConvLayout], element: int, seen: int) -> Iterator[LayerCost]:
    for number, layer in enumerate(layers):
        step = _conv(f"{name} {number}", layer, element, element)
        yield replace(step, inputs=seen) if number == 0 else step
        if layer.is_feature_layer:
            places = layer.out_pixels * layer.out_channels
            yield LayerCost(f"{name} pool", element * places, 4 * layer.out_channels, 0, places)


def _conv(name: str, layer: ConvLayout, element: int, out_element: int) -> LayerCost:
    weights = layer.kernel_size**2 * layer.in_channels * layer.out_channels
    places = layer.out_pixels
    inputs = element * layer.pixels * layer.in_channels
    return LayerCost(name, inputs, out_element * places * layer.out_channels, element * weights, places * weights)


def _linear(name: str, net: NetworkLayout, number: int, element: int, outputs: int) -> LayerCost:
    layer = net.linears[number]
    assert layer is not None
    weights = layer.in_features * layer.out_features
    return LayerCost(name, element * layer.in_features, outputs, element * weights, weights)


def _head(net: NetworkLayout, element: int) -> LayerCost:
    """The content head: linear layers to mu, hidden and logits (one or two of them), and the score's projection
    (float32) and whitening (float16). The whitening matrix is counted once, as if all images of a batch were nearest to
    the same cluster."""
    layers = [
        layer
        for number in (Fc.MU, Fc.CLASSIFIER_HIDDEN, Fc.CLASSIFIER_LOGITS, Fc.SECOND_CLASSIFIER)
        if (layer := net.linears[number]) is not None
    ]
    linear = sum(layer.in_features * layer.out_features for layer in layers)
    score = net.score
    features = net.orientation_feature_channels + net.feature_channels + net.latent + net.classes
    fitted, whitening = features * (score.components + 1) + score.components * score.clusters, score.components**2
    inputs = element * layers[0].in_features + 4 * (
        net.orientation_feature_channels + net.feature_channels + net.classes + ORIENTATION_VALUES
    )
    outputs = 4 * (net.latent + 2 * net.classes + 2)
    weights = element * linear + 4 * fitted + 2 * whitening
    return LayerCost("content head", inputs, outputs, weights, linear + fitted + whitening)


def fused_cost(net: NetworkLayout) -> LayerCost:
    """The whole network in one launch, whose activations stay in the cache."""
    steps = layer_costs(net)
    weights, macs = sum(step.weights for step in steps), sum(step.macs for step in steps)
    return LayerCost("one launch", net.pixels * net.channels, 4 * (net.classes + 5), weights, macs)


def bytes_moved(net: NetworkLayout) -> tuple[int, int, int]:
    """Bytes of one image's activations that go through the GPU's memory: unfused, fused by operator, in one launch.

    Unfused is eager PyTorch: each convolution's output is read and written twice more (normalization with bias, then
    ReLU), and the image is cast, scaled and rotated by three operators.
    """
    element = 1 if net.int8 else 2
    pixels = net.pixels * net.channels
    fused = sum(step.inputs + step.outputs for step in layer_costs(net))
    again = sum(4 * element * layer.out_pixels * layer.out_channels for layer in net.layers if layer.relu)
    single = fused_cost(net)
    return fused + again + 2 * (4 + 4) * pixels, fused, single.inputs + single.outputs


def table(net: NetworkLayout, batches: tuple[int, ...] = BATCHES) -> str:
    """The roofline of a network as a Markdown table: a line for each launch, one for their sum, one for one launch."""
    steps = layer_costs(net)
    heads = [f"{device.name} {batch}" for device in DEVICES for batch in batches]
    lines = [
        f"| launch | KiB in | out | weights | MMAC | {' | '.join(heads)} |",
        "|---" + "|--:" * (4 + len(heads)) + "|",
    ]

    def line(name: str, step: LayerCost, bounds: list[float]) -> str:
        sizes = (f"{size / 1024:.1f}" for size in (step.inputs, step.outputs, step.weights))
        told = (f"{bound:.3f}" if bound < 10 else f"{bound:.1f}" for bound in bounds)
        return f"| {' | '.join((name, *sizes, f'{step.macs / 1e6:.3f}', *told))} |"

    def bounds(step: LayerCost) -> list[float]:
        return [step.lower_bound_us(device, batch, net.int8) for device in DEVICES for batch in batches]

    lines += [line(step.name, step, bounds(step)) for step in steps]
    sums = [sum(column) for column in zip(*map(bounds, steps), strict=True)]
    names = ("inputs", "outputs", "weights", "macs")
    total = LayerCost("", *(sum(getattr(step, name) for step in steps) for name in names))
    lines.append(line(f"**all {len(steps)}**", total, sums))
    single = fused_cost(net)
    lines.append(line("**one launch**", single, bounds(single)))
    return "\n".join(lines)


def savings(named: Mapping[str, NetworkLayout]) -> str:
    """What fusion saves, as a Markdown table: bytes of an image's activations through memory, and launches."""
    lines = [
        "| network | unfused, KiB an image | fused operators | one launch | launches, fused | in one |",
        "|---" + "|--:" * 5 + "|",
    ]
    for name, net in named.items():
        told = (f"{size / 1024:.1f}" for size in bytes_moved(net))
        lines.append(f"| {' | '.join((name, *told, str(len(layer_costs(net))), '1'))} |")
    return "\n".join(lines)
