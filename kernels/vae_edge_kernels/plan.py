"""The plan of a network: its layers, and where in memory their numbers and activations lie.

Kernels are specialized by it at compile time, and what fills the memory follows it: `weights` (float16, or int8),
`numbers` (float32) and `whitenings` (float16) are flat buffers; a place in one is a number of elements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

TAP = 2  # the layer whose output's means the rejection score looks at
ALIGNMENT = 16  # elements that each part's place is a multiple of
MOST_CLUSTERS = 64  # looked at together
MOST_PROGRAMS = 32  # that work on one image
LEAST_ROWS = 16  # pixels of a tile
MU, INNER, OUTER, POSE, FIRST = range(5)  # numbers of the linear layers


@dataclass(frozen=True)
class Layer:
    """A convolution with ReLU, of square images and zero padding, taps × taps.

    `weights` is a place in the weights, and in the numbers are `scale` (what one of the sums of integers counts in the
    output) and `bias`, one a channel, and `output_scale`: what one of an int8 output counts. A program makes tiles of
    `rows` output pixels × `columns` channels in steps of `depth`.
    """

    side: int
    out_side: int
    inputs: int
    outputs: int
    taps: int
    stride: int
    relu: bool
    tap: bool
    weights: int
    scale: int
    bias: int
    output_scale: int
    rows: int = 0
    columns: int = 0
    depth: int = 0


@dataclass(frozen=True)
class Linear:
    """A linear layer of one vector; its weights [inputs, stride] hold `outputs` columns, and zeros behind them.

    `quantize` is the place of what its input is multiplied by before it is rounded to int8, and of what the integers
    count.
    """

    inputs: int
    outputs: int
    stride: int
    weights: int
    scale: int
    bias: int
    quantize: int


@dataclass(frozen=True)
class Score:
    """Where the numbers of the rejection score are; see `vae_edge.model.score`.

    `project_pose`, `project_tap`, `project_mu` and `project_classes` are rows of one matrix [F, components + 1] (the
    last column gives the error to be expected), split by what they multiply. Rows of it, of `nearest` [components,
    clusters], `cluster_offset` [clusters, components] and of the whitenings [clusters, components, components] begin at
    multiples of 16. `measures` are, for each measure, its weight over its spread; then comes what is taken off their
    sum.
    """

    components: int
    clusters: int
    project_pose: int
    project_tap: int
    project_mu: int
    project_classes: int
    offset: int
    most_expected: int
    nearest: int
    nearest_offset: int
    cluster_offset: int
    measures: int
    light: bool


@dataclass(frozen=True)
class Scratch:
    """Places in an image's float32 scratch.

    `upright` is the image turned back [side, side, channels]; `pose_sums` and `sums` are sums by channel of the tapped
    layers' tiles, `pose_means` and `means` what they become; `logits` are the pose trunk's [classes]; `pose` is cosine
    and sine of the angle and log(1.001 − concentration); `code` is mu and the classes' weights; `parts` the score but
    for the reconstruction, and the error to be expected; `errors` the parts of the reconstruction's error.
    """

    upright: int
    pose_sums: int
    sums: int
    pose_means: int
    means: int
    logits: int
    pose: int
    code: int
    parts: int
    errors: int


@dataclass(frozen=True)
class Plan:
    """A whole network.

    Attributes:
        side, channels: of the image.
        bins: of the angle; 0 without a pose trunk.
        fill: a pixel's value, 0 to 1, outside the frame.
        window: whether the network sees the circle inscribed in the frame alone.
        int8: whether weights and activations are int8 and not float16.
        layers: the convolutions: `pose_layers` of the pose trunk, `trunk_layers` of the encoder, and two of the decoder
            where the score is not light.
        linears: by number (MU, INNER, ...); None where there is none.
        grid, width, block: of the decoder, whose grid × grid cells become block × block pixels each.
        tap, pose_tap: channels of the tapped layers.
        scratch: places in the float32 scratch of an image, which has `floats` elements.
        area: elements of one of the two areas of activations.
        quantize_image, quantize_upright: places of what pixels are multiplied by before they are rounded to int8, and
            of what the integers count.
        axes: place of the cosines and, behind them, the sines of the angle bins.
        temperature: place of 1 / temperature.
        zero: place of a 0.
        calls: whether each layer is a function of its own in the machine code.
        paired: whether 8-bit operands are multiplied in pairs of products: see `tiles.accumulate`.
        programs: that work on one image; a power of two.
    """

    side: int
    channels: int
    classes: int
    bins: int
    latent: int
    hidden: int
    fill: float
    window: bool
    int8: bool
    layers: tuple[Layer, ...]
    pose_layers: int
    trunk_layers: int
    linears: tuple[Linear | None, ...]
    grid: int
    width: int
    block: int
    tap: int
    pose_tap: int
    score: Score
    scratch: Scratch
    area: int
    floats: int
    quantize_image: int
    quantize_upright: int
    axes: int
    temperature: int
    zero: int
    weights_size: int
    numbers_size: int
    calls: int = 0
    paired: int = 0
    programs: int = 1


@dataclass(frozen=True)
class Sizes:
    """The lengths of a plan's vectors, as powers of two, of which kernels make their registers."""

    classes: int
    pose: int
    latent: int
    hidden: int
    taps: int
    components: int
    clusters: int


class Buffers:
    """Gives places in the buffers, one behind the other."""

    def __init__(self) -> None:
        self.weights = self.numbers = self.floats = 0

    def weight(self, size: int) -> int:
        """A place for so many weights."""
        place, self.weights = self.weights, self.weights + padded(size)
        return place

    def number(self, size: int) -> int:
        """A place for so many numbers."""
        place, self.numbers = self.numbers, self.numbers + padded(size)
        return place

    def float(self, size: int) -> int:
        """A place for so many floats of scratch."""
        place, self.floats = self.floats, self.floats + padded(size)
        return place

    def layer(
        self, side: int, inputs: int, outputs: int, stride: int = 1, taps: int = 3, relu: bool = True, tap: bool = False
    ) -> Layer:
        """A convolution whose output is as large as its input over its stride."""
        out_side = -(-side // stride)
        return Layer(
            *(side, out_side, inputs, outputs, taps, stride, relu, tap),
            weights=self.weight(taps * taps * inputs * outputs),
            scale=self.number(outputs),
            bias=self.number(outputs),
            output_scale=self.number(1),
        )

    def linear(self, inputs: int, outputs: int) -> Linear:
        """A linear layer."""
        stride = padded(outputs)
        return Linear(
            inputs,
            outputs,
            stride,
            weights=self.weight(inputs * stride),
            scale=self.number(outputs),
            bias=self.number(outputs),
            quantize=self.number(2),
        )

    def trunk(self, sides: Sequence[int], channels: int, widths: Sequence[int]) -> tuple[Layer, ...]:
        """A trunk of `vae_edge.model.network`."""
        layers, width = [self.layer(sides[0], channels, widths[0])], widths[0]
        for level in range(1, len(sides)):
            wider = widths[min(level, len(widths) - 1)]
            layers.append(self.layer(sides[level - 1], width, wider, stride=2, tap=len(layers) == TAP))
            if level < len(widths):
                layers.append(self.layer(sides[level], wider, wider, tap=len(layers) == TAP))
            width = wider
        return tuple(layers)


def padded(size: int) -> int:
    """The next multiple of 16."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def make_plan(
    *,
    sides: Sequence[int],
    channels: int,
    classes: int,
    bins: int,
    latent: int,
    hidden: int,
    fill: float,
    window: bool,
    pose_widths: Sequence[int],
    widths: Sequence[int],
    components: int,
    clusters: int,
    decoder: tuple[int, int, int, int] | None,
    int8: bool,
) -> Plan:
    """The plan of a network.

    Args:
        sides: of the feature maps, from the image's to the last.
        bins: of the angle; 0 without a pose trunk.
        components, clusters: of the rejection score.
        decoder: (grid, width, width of the middle layer, block), or None for the light score.
        int8: whether weights and activations are int8 and not float16.
    """
    at = Buffers()
    pose = at.trunk(sides, channels, pose_widths) if bins else ()
    trunk = at.trunk(sides, channels, widths)
    features = sides[-1] ** 2
    across = padded(components + 1)
    tap, pose_tap = (next((layer.outputs for layer in layers if layer.tap), 0) for layers in (trunk, pose))
    grid, width, middle, block = decoder or (0, 0, 0, 0)
    drawn = [at.layer(grid, width, middle), at.layer(grid, middle, channels * block**2, taps=1, relu=False)]
    layers = [*pose, *trunk, *(drawn if decoder else ())]
    scratch = Scratch(
        upright=at.float(sides[0] ** 2 * channels),
        pose_sums=at.float(_sums(pose)),
        sums=at.float(_sums(trunk)),
        pose_means=at.float(pose_tap),
        means=at.float(tap),
        logits=at.float(classes),
        pose=at.float(3),
        code=at.float(latent + classes),
        parts=at.float(2),
        errors=at.float(MOST_PROGRAMS),
    )
    sizes = [size for n in layers for size in (n.out_side**2 * n.outputs, n.side**2 * n.inputs * (n.inputs >= 16))]
    sizes.append(grid * grid * width)
    return Plan(
        *(sides[0], channels, classes, bins, latent, hidden, fill, window, int8),
        layers=tuple(layers),
        pose_layers=len(pose),
        trunk_layers=len(trunk),
        linears=(
            at.linear(features * trunk[-1].outputs, latent),
            at.linear(latent, hidden),
            at.linear(hidden, classes),
            at.linear(features * pose[-1].outputs, classes + bins) if bins else None,
            at.linear(latent + classes, grid * grid * width) if decoder else None,
        ),
        grid=grid,
        width=width,
        block=block,
        tap=tap,
        pose_tap=pose_tap,
        score=Score(
            components,
            clusters,
            project_pose=at.number(pose_tap * across),
            project_tap=at.number(tap * across),
            project_mu=at.number(latent * across),
            project_classes=at.number(classes * across),
            offset=at.number(across),
            most_expected=at.number(1),
            nearest=at.number(components * padded(clusters)),
            nearest_offset=at.number(clusters),
            cluster_offset=at.number(padded(components) * clusters),
            measures=at.number(5),
            light=decoder is None,
        ),
        scratch=scratch,
        area=padded(max(sizes)),
        floats=at.floats,
        quantize_image=at.number(2),
        quantize_upright=at.number(2),
        axes=at.number(2 * bins),
        temperature=at.number(1),
        zero=at.number(1),
        weights_size=at.weights,
        numbers_size=at.numbers,
    )


def _sums(layers: Sequence[Layer]) -> int:
    """Sums by channel of a trunk's tapped layer, of tiles of at least LEAST_ROWS pixels."""
    return sum(-(-(layer.out_side**2) // LEAST_ROWS) * layer.outputs for layer in layers if layer.tap)


@lru_cache(maxsize=256)
def tiled(
    plan: Plan, rows: int, columns: int, depth: int, size: int, calls: int = 0, paired: int = 0, programs: int = 1
) -> Plan:
    """The plan as it is compiled: with its tiles (sides at most these, and powers of two that suit each layer; of at
    most `size` elements), and how they are computed."""
    least = 32 if plan.int8 else 16

    def one(layer: Layer) -> Layer:
        few = layer.inputs < ALIGNMENT
        wanted = layer.taps**2 * layer.inputs if few else min(depth, layer.inputs)
        across = max(16, min(columns, power_of_two(layer.outputs)))
        return replace(
            layer,
            rows=max(LEAST_ROWS, min(rows, power_of_two(layer.out_side**2), size // across)),
            columns=across,
            depth=max(least, power_of_two(wanted)),
        )

    return replace(
        plan, layers=tuple(one(layer) for layer in plan.layers), calls=calls, paired=paired, programs=programs
    )


def power_of_two(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()


@lru_cache(maxsize=256)
def sizes(plan: Plan) -> Sizes:
    """The lengths of a plan's vectors."""
    score = plan.score
    exact = (plan.classes, plan.classes + plan.bins, plan.latent, plan.hidden, max(plan.tap, plan.pose_tap))
    return Sizes(
        *(max(16, power_of_two(size)) for size in (*exact, score.components, min(score.clusters, MOST_CLUSTERS)))
    )


@lru_cache(maxsize=256)
def to_text(plan: Plan) -> str:
    """A plan as JSON, which is what operators and the ahead-of-time compiler take."""
    return json.dumps(asdict(plan), separators=(",", ":"))


@lru_cache(maxsize=256)
def from_text(text: str) -> Plan:
    """The plan of a text.

    Raises:
        ValueError: if the text is not one of a plan.
    """
    try:
        values = json.loads(text)
        values["layers"] = tuple(Layer(**layer) for layer in values["layers"])
        values["linears"] = tuple(None if linear is None else Linear(**linear) for linear in values["linears"])
        values["score"] = Score(**values["score"])
        values["scratch"] = Scratch(**values["scratch"])
        return Plan(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks something, or has something else: {error}") from error
