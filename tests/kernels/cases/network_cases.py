"""The turn, the heads and the whole network in Triton against the operators' references on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_models import blotches, quantized, untrained
from together import run_together
from torch import Tensor
from vae_edge_kernels import head, reductions, turn
from vae_edge_kernels import network as kernels
from vae_edge_kernels.plan import Layer, Plan, padded, to_text
from where import DEVICE, INTERPRETED, poison

from vae_edge.ops import head as references
from vae_edge.ops.network import by_layers
from vae_edge.ops.packing import pack
from vae_edge.ops.turn import turn_pixels

FEW = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def bytes_of(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@FEW
@given(
    st.integers(0, 3), st.integers(1, 17), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.5]), st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.int8]), st.floats(-4.0, 4.0), st.sampled_from([0.0, 0.01]),
    st.sampled_from([torch.uint8, torch.float16, torch.float32]),
)  # fmt: skip
def test_turned_pixels_are_those_of_the_reference(
    images: int,
    side: int,
    channels: int,
    fill: float,
    window: bool,
    dtype: torch.dtype,
    angle: float,
    rounded_to: float,
    given_dtype: torch.dtype,
) -> None:
    x = bytes_of(images, side, side, channels, seed=side).to(given_dtype)
    angles = torch.full((images,), angle)
    cos, sin = angles.cos(), angles.sin()
    expected = turn_pixels(x, cos, sin, 1 / 255, fill, window, dtype, 127.0, rounded_to)
    y = poison(x.shape, dtype)
    turn.forward(x.to(DEVICE), cos.to(DEVICE), sin.to(DEVICE), y, 1 / 255, fill, 127.0, window, rounded_to)
    allowed = {torch.float32: 1e-5 + rounded_to, torch.float16: 1e-3, torch.int8: 1.0}[dtype]
    assert images == 0 or (y.cpu().double() - expected.double()).abs().max() <= allowed


def test_the_arc_tangent_is_that_of_the_library_in_every_direction() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def directions(y_ptr, x_ptr, out_ptr, COUNT: tl.constexpr):
        i = tl.arange(0, COUNT)
        tl.store(out_ptr + i, head.arc_tangent(tl.load(y_ptr + i), tl.load(x_ptr + i)))

    angle = torch.linspace(-math.pi, math.pi, 1024)
    length = torch.logspace(-6, 6, 1024)
    y, x = length * angle.sin(), length * angle.cos()
    y[0], x[0] = 0.0, 0.0
    out = poison((1024,), torch.float32)
    directions[(1,)](y.to(DEVICE), x.to(DEVICE), out, COUNT=1024)
    assert (out.cpu() - torch.atan2(y, x)).abs().max() < 1e-6


@FEW
@given(st.integers(0, 2), st.integers(1, 9), st.integers(1, 70), st.sampled_from([torch.float16, torch.int8]))
def test_means_are_those_of_the_reference(images: int, side: int, channels: int, dtype: torch.dtype) -> None:
    x = torch.randint(-100, 100, (images, side, side + 1, channels)).to(dtype)
    y = poison((images, channels), torch.float32)
    reductions.avg_pool_forward(x.to(DEVICE), y, 0.5)
    torch.testing.assert_close(y.cpu(), references.means(x, 0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side, block, channels", [(28, 4, 1), (33, 8, 3), (7, 4, 1)])
def test_the_error_of_a_reconstruction_is_that_of_the_reference(side: int, block: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(side)
    grid = -(-side // block)
    drawn = torch.randn(2, grid, grid, channels * block * block, generator=generator)
    upright = torch.rand(2, side, side, channels, generator=generator)
    score, measure = torch.randn(2, 2, generator=generator), torch.tensor([3.0])
    total = poison((2,), torch.float32)
    given_there = [tensor.to(DEVICE) for tensor in (drawn, upright, score, measure)]
    reductions.reconstruction_error_forward(*given_there, total, block)
    expected = references.reconstruction_error(drawn, upright, score, measure, block)
    torch.testing.assert_close(total.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize(
    "preset, changes",
    [
        ("tiny", {}),
        ("tiny", {"orientation": False}),
        ("tiny", {"size": 33, "channels": 3, "circular_mask": True, "fill": 0.5}),
    ],
)
def test_one_launch_gives_what_the_operators_give(
    preset: str, changes: dict[str, object], light: bool, int8: bool
) -> None:
    model = untrained(preset, **changes)
    packed = pack(model, quantized(model) if int8 else None, light)
    plan, config = packed.plan, model.config
    images = blotches(2, config.size, config.channels, seed=1)
    buffers = (packed.weights, packed.numbers, packed.whitenings)
    expected = by_layers(plan, images, *buffers)
    areas, floats = poison((2, 2, plan.area), packed.weights.dtype), poison((2, plan.floats), torch.float32)
    made = answers(plan, 2)
    there = [tensor.to(DEVICE) for tensor in (images, *buffers)]
    meetings = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    kernels.forward(plan, *there, areas, floats, meetings, *made)
    assert_same_answers(plan, made, expected)


def answers(plan: Plan, images: int) -> list[Tensor]:
    """Poisoned tensors for what the network says."""
    return [poison(shape, torch.float32) for shape in ((images, plan.classes), (images,), (images,), (images, 3))]


def assert_same_answers(plan: Plan, made: list[Tensor], expected: tuple[Tensor, ...]) -> None:
    """Probabilities, angle, score and doubts are those expected, but for roundings."""
    probabilities, angle, score, doubts = (tensor.cpu() for tensor in made)
    torch.testing.assert_close(probabilities, expected[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(score, expected[2], rtol=2e-2, atol=4e-2)
    apart = (angle - expected[1] + math.pi) % (2 * math.pi) - math.pi
    assert apart.abs().max() < 5e-3
    if plan.bins:
        torch.testing.assert_close(doubts[:, [0, 2]], expected[3][:, [0, 2]], rtol=0, atol=2e-3)
    else:
        assert not doubts.any()


@pytest.mark.parametrize("int8", [False, True])
def test_no_number_could_be_another_unseen(int8: bool) -> None:
    """What the cases compare would show it: with any of the network's parts 0 the references' answers are others."""
    model = untrained("tiny")
    packed = pack(model, quantized(model) if int8 else None)
    plan, score = packed.plan, packed.plan.score
    images = blotches(8, model.config.size, model.config.channels, seed=1)
    expected = by_layers(plan, images, packed.weights, packed.numbers, packed.whitenings)
    across = padded(score.components + 1)
    places = {"temperature": (plan.temperature, 1), "axes": (plan.axes, 2 * plan.bins)}
    places |= {f"project_{part}": (getattr(score, f"project_{part}"), size * across) for part, size in (
        ("pose", plan.pose_tap), ("tap", plan.tap), ("mu", plan.latent), ("classes", plan.classes)
    )}  # fmt: skip
    places |= {
        "offset": (score.offset, across),
        "nearest": (score.nearest, score.components * padded(score.clusters)),
        "nearest_offset": (score.nearest_offset, score.clusters),
        "cluster_offset": (score.cluster_offset, score.clusters * padded(score.components)),
        **{f"measure {number}": (score.measures + number, 1) for number in range(5)},
    }
    weights = {}
    for name, layers in (("layer", plan.layers), ("linear", plan.linears)):
        for number, layer in enumerate(layers):
            assert layer is not None
            places[f"{name} {number} bias"] = (layer.bias, layer.outputs)
            if int8:
                places[f"{name} {number} scale"] = (layer.scale, layer.outputs)
            size = layer.taps**2 * layer.inputs * layer.outputs if isinstance(layer, Layer) else 0
            weights[f"{name} {number} weights"] = (layer.weights, size or layer.inputs * layer.stride)
    unseen = []
    whitenings = {"whitenings": (0, packed.whitenings.numel())}
    flat = packed.whitenings.view(-1)
    for buffer, parts in ((packed.numbers, places), (packed.weights, weights), (flat, whitenings)):
        for part, (place, size) in parts.items():
            before = buffer[place : place + size].clone()
            buffer[place : place + size] = 0
            found = list(by_layers(plan, images, packed.weights, packed.numbers, packed.whitenings))
            buffer[place : place + size] = before
            try:
                assert_same_answers(plan, found, expected)
                unseen.append(part)
            except AssertionError:
                pass
    assert unseen == []


@pytest.mark.parametrize("int8", [False, True])
def test_images_share_the_scratch_of_fewer_places(int8: bool) -> None:
    model = untrained("tiny")
    packed = pack(model, quantized(model) if int8 else None)
    plan, config = packed.plan, model.config
    images = blotches(4, config.size, config.channels, seed=4)
    buffers = (packed.weights, packed.numbers, packed.whitenings)
    areas, floats = poison((2, 2, plan.area), packed.weights.dtype), poison((2, plan.floats), torch.float32)
    made, meetings = answers(plan, 4), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    there = [tensor.to(DEVICE) for tensor in (images, *buffers)]
    kernels.forward(plan, *there, areas, floats, meetings, *made)
    assert_same_answers(plan, made, by_layers(plan, images, *buffers))


@pytest.mark.parametrize(
    "changes, programs",
    [({}, 2), ({"size": 33, "channels": 3, "circular_mask": True, "fill": 0.5}, 4), ({"orientation": False}, 2)],
)
@pytest.mark.parametrize("int8", [False, True])
def test_several_programs_make_one_image_together(changes: dict[str, object], programs: int, int8: bool) -> None:
    model = untrained("tiny", **changes)
    packed = pack(model, quantized(model) if int8 else None)
    plan, config = packed.plan, model.config
    images = blotches(2, config.size, config.channels, seed=5)
    buffers = (packed.weights, packed.numbers, packed.whitenings)
    areas, floats = poison((1, 2, plan.area), packed.weights.dtype), poison((1, plan.floats), torch.float32)
    alone, made, meetings = answers(plan, 2), answers(plan, 2), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    there = [tensor.to(DEVICE) for tensor in (images, *buffers)]
    kernels.forward(plan, *there, areas, floats, meetings, *alone)
    areas.fill_(77)
    floats.fill_(math.nan)
    meetings.fill_(2**31 - programs)  # it overflows on the way
    if INTERPRETED:
        run_together(programs, to_text(plan), [*there, areas, floats, meetings, *made], 2, 1)
    else:
        kernels.forward(plan, *there, areas, floats, meetings, *made, programs=programs)
    tolerance = 1e-4 if int8 else 1e-2  # other tiles, other roundings
    torch.testing.assert_close(made, alone, rtol=tolerance, atol=tolerance)


def test_the_heads_alone_give_what_their_references_give() -> None:
    model = untrained("tiny")
    packed = pack(model)
    plan, text = packed.plan, to_text(packed.plan)
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(2, plan.linears[3].inputs, generator=generator).half()
    logits, pose = references.pose_head(features, packed.weights, packed.numbers, text)
    got = poison(logits.shape, torch.float32), poison(pose.shape, torch.float32)
    there = [tensor.to(DEVICE) for tensor in (features, packed.weights, packed.numbers)]
    head.pose_forward(plan, *there, *got)
    torch.testing.assert_close((got[0].cpu(), got[1].cpu()), (logits, pose), rtol=1e-4, atol=1e-4)
    means = torch.rand(2, plan.tap, generator=generator)
    given_tensors = (features, means, means.flip(0), logits, pose, packed.weights, packed.numbers, packed.whitenings)
    expected = references.content_head(*given_tensors, text)
    made = [poison(tensor.shape, torch.float32) for tensor in expected]
    read = [tensor.contiguous().to(DEVICE) for tensor in given_tensors]
    head.content_forward(plan, *read, *made)
    torch.testing.assert_close([tensor.cpu() for tensor in made], list(expected), rtol=1e-3, atol=1e-3)
