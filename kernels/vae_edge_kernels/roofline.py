"""The floor under a network's time, on paper: bytes and operations of each layer, and a GPU's published rates.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009): a layer takes at least the
time that its bytes take at the memory's bandwidth, and at least the time that its operations take at the matrix units'
rate. Launches are not in it: they are counted beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vae_edge_kernels import plan as plans
from vae_edge_kernels.plan import Layer, Plan


@dataclass(frozen=True)
class Device:
    """Published figures: bytes a second of the memory, multiply-accumulates a second of dense matrix units."""

    name: str
    architecture: int
    bytes_per_s: float
    fp16_macs_per_s: float
    int8_macs_per_s: float


DEVICES = (
    # Jetson AGX Orin Series technical brief: 204.8 GB/s; GPU 85 dense INT8 TOPS, half of that in FP16.
    Device("Jetson AGX Orin 64 GB", 87, 204.8e9, 42.5e12 / 2, 85e12 / 2),
    # Jetson Thor (T5000) datasheet: 273 GB/s; 2070 sparse FP4 TFLOPS: dense FP8 and INT8 a quarter, FP16 an eighth.
    Device("Jetson AGX Thor", 110, 273e9, 258e12 / 2, 517e12 / 2),
    # H100 SXM5 datasheet: 3.35 TB/s; 989 dense FP16 TFLOPS, 1979 dense INT8 TOPS.
    Device("H100 SXM", 90, 3.35e12, 989e12 / 2, 1979e12 / 2),
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


def works(plan: Plan) -> list[Work]:
    """The launches of a network that runs layer by layer, in order."""
    return list(_works(plan))


def _works(plan: Plan) -> Iterator[Work]:
    element = 1 if plan.int8 else 2
    pixels = plan.side**2 * plan.channels
    seen = 4 if plan.int8 else 2
    for number, layer in enumerate(plan.layers[: plan.pose_layers]):
        yield _convolution(f"pose {number}", layer, element, pixels if number == 0 else None)
    if plan.bins:
        yield _linear("pose head", plan, plans.POSE, element, 4 * (plan.classes + 6))
    yield Work("turn", pixels, seen * pixels, 0, 4 * pixels)
    for number, layer in enumerate(plan.layers[plan.pose_layers : plan.pose_layers + plan.trunk_layers]):
        yield _convolution(f"encoder {number}", layer, element, seen * pixels if number == 0 else None)
    score = plan.score
    features = plan.pose_tap + plan.tap + plan.latent + plan.classes
    fitted = features * (score.components + 1) + score.components * score.clusters + score.components**2
    head = _linear("head", plan, plans.MU, element, 4 * (plan.classes + 2))
    yield Work(head.name, head.inputs, head.outputs, head.weights + 4 * fitted, head.macs + fitted)
    if not score.light:
        yield _linear("decoder 0", plan, plans.FIRST, element, element * plan.grid**2 * plan.width)
        for number, layer in enumerate(plan.layers[-2:], 1):
            yield _convolution(f"decoder {number}", layer, element, None)
        yield Work("error", seen * 2 * pixels, 4, 0, 8 * pixels)


def _convolution(name: str, layer: Layer, element: int, given: int | None) -> Work:
    inputs = element * layer.side**2 * layer.inputs if given is None else given
    weights = layer.taps**2 * layer.inputs * layer.outputs
    places = layer.out_side**2
    return Work(name, inputs, element * places * layer.outputs, element * weights, places * weights)


def _linear(name: str, plan: Plan, number: int, element: int, outputs: int) -> Work:
    layer = plan.linears[number]
    assert layer is not None
    weights = layer.inputs * layer.outputs
    return Work(name, element * layer.inputs, outputs, element * weights, weights)


def one_launch(plan: Plan) -> Work:
    """The whole network in one launch, whose activations stay in the cache."""
    steps = works(plan)
    weights, macs = sum(step.weights for step in steps), sum(step.macs for step in steps)
    return Work("one launch", plan.side**2 * plan.channels, 4 * (plan.classes + 5), weights, macs)


def unfused_bytes(plan: Plan) -> int:
    """Bytes of activations of an image where bias, ReLU, scaling and cast are operators of their own.

    Each convolution's output is then read and written twice more (bias or normalization, ReLU), and the image is
    scaled, cast and turned one after the other.
    """
    element = 1 if plan.int8 else 2
    pixels = plan.side**2 * plan.channels
    extra = sum(4 * element * layer.out_side**2 * layer.outputs for layer in plan.layers if layer.relu)
    return sum(step.inputs + step.outputs for step in works(plan)) + extra + 2 * (4 + 4) * pixels


def table(plan: Plan, batches: tuple[int, ...] = (1, 256)) -> str:
    """The roofline of a network as a Markdown table: a line for each layer, one for the whole, one for one launch."""
    steps = works(plan)
    heads = [f"{device.name}, batch {batch}, µs" for device in DEVICES for batch in batches]
    lines = [f"| layer | KiB in, out | KiB weights | MMAC | {' | '.join(heads)} |", "|---" * (4 + len(heads)) + "|"]

    def line(name: str, step: Work, floors: list[float]) -> str:
        moved = f"{step.inputs / 1024:.1f}, {step.outputs / 1024:.1f}"
        told = " | ".join(f"{floor:.3g}" for floor in floors)
        return f"| {name} | {moved} | {step.weights / 1024:.1f} | {step.macs / 1e6:.3f} | {told} |"

    def floors(step: Work) -> list[float]:
        return [step.floor_us(device, batch, plan.int8) for device in DEVICES for batch in batches]

    lines += [line(step.name, step, floors(step)) for step in steps]
    sums = [sum(column) for column in zip(*map(floors, steps), strict=True)]
    whole = Work("", *(sum(getattr(step, name) for step in steps) for name in ("inputs", "outputs", "weights", "macs")))
    lines.append(line(f"**layer by layer, {len(steps)} launches**", whole, sums))
    single = one_launch(plan)
    lines.append(line("**one launch**", single, floors(single)))
    return "\n".join(lines)
