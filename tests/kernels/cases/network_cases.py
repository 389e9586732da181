"""The rotation, the heads and the whole network in Triton against the operators' references on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_models import blotches, quantized, untrained
from together import run_together
from torch import Tensor
from vae_edge_kernels import avg_pool, heads, reconstruction_error, rotate
from vae_edge_kernels import network as kernels
from vae_edge_kernels.layout import Fc, NetworkLayout, padded, to_json
from where import DEVICE, INTERPRETED, poison

from vae_edge.ops import heads as references
from vae_edge.ops.network import forward_layerwise
from vae_edge.ops.packing import ScoreMode, pack
from vae_edge.ops.rotate import rotate_pixels

FEW = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def bytes_of(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@FEW
@given(
    st.integers(0, 3), st.integers(1, 17), st.integers(1, 17), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.5]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.int8]), st.floats(-4.0, 4.0), st.sampled_from([0.0, 0.01]),
    st.sampled_from([torch.uint8, torch.float16, torch.float32]),
)  # fmt: skip
def test_rotated_pixels_are_those_of_the_reference(
    images: int,
    height: int,
    width: int,
    channels: int,
    fill: float,
    masked: bool,
    dtype: torch.dtype,
    angle: float,
    input_scale: float,
    given_dtype: torch.dtype,
) -> None:
    x = bytes_of(images, height, width, channels, seed=width).to(given_dtype)
    angles = torch.full((images,), angle)
    cos, sin = angles.cos(), angles.sin()
    expected = rotate_pixels(x, cos, sin, 1 / 255, fill, masked, dtype, 127.0, input_scale)
    y = poison(x.shape, dtype)
    rotate.forward(x.to(DEVICE), cos.to(DEVICE), sin.to(DEVICE), y, 1 / 255, fill, 127.0, masked, input_scale)
    allowed = {torch.float32: 1e-5 + input_scale, torch.float16: 1e-3, torch.int8: 1.0}[dtype]
    assert images == 0 or (y.cpu().double() - expected.double()).abs().max() <= allowed


def test_atan2_is_that_of_the_library_in_every_direction() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def directions(y_ptr, x_ptr, out_ptr, COUNT: tl.constexpr):
        i = tl.arange(0, COUNT)
        tl.store(out_ptr + i, heads.atan2(tl.load(y_ptr + i), tl.load(x_ptr + i)))

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
    avg_pool.forward(x.to(DEVICE), y, 0.5)
    torch.testing.assert_close(y.cpu(), references.avg_pool(x, 0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "height, width, block, channels", [(28, 28, 4, 1), (33, 33, 8, 3), (7, 7, 4, 1), (48, 30, 8, 3)]
)
def test_the_error_of_a_reconstruction_is_that_of_the_reference(
    height: int, width: int, block: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(height)
    decoded = torch.randn(2, -(-height // block), -(-width // block), channels * block * block, generator=generator)
    upright = torch.rand(2, height, width, channels, generator=generator)
    score, weight = torch.randn(2, 2, generator=generator), torch.tensor([3.0])
    total = poison((2,), torch.float32)
    given_there = [tensor.to(DEVICE) for tensor in (decoded, upright, score, weight)]
    reconstruction_error.forward(*given_there, total, block)
    expected = references.reconstruction_error(decoded, upright, score, weight, block)
    torch.testing.assert_close(total.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("score", ["full", "fast"])
@pytest.mark.parametrize(
    "preset, changes",
    [
        ("tiny", {}),
        ("tiny", {"orientation": False}),
        ("tiny", {"head": "pooled"}),
        ("tiny", {"head": "code+pooled", "orientation": False}),
        ("tiny", {"size": 33, "channels": 3, "circular_mask": True, "fill": 0.5}),
    ],
)
def test_one_launch_gives_what_the_operators_give(
    preset: str, changes: dict[str, object], score: ScoreMode, int8: bool
) -> None:
    model = untrained(preset, **changes)
    packed = pack(model, quantized(model) if int8 else None, score)
    net, config = packed.layout, model.config
    images = blotches(2, config.size, config.channels, seed=1)
    buffers = (packed.weights, packed.params, packed.whitening)
    expected = forward_layerwise(net, images, *buffers)
    activations, workspace = scratch(net, 2)
    made = answers(net, 2)
    there = [tensor.to(DEVICE) for tensor in (images, *buffers)]
    barrier = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    kernels.forward(net, *there, activations, workspace, barrier, *made)
    assert_same_answers(net, made, expected)


def scratch(net: NetworkLayout, slots: int) -> tuple[Tensor, Tensor]:
    """Poisoned activations and workspace."""
    activations = poison((slots, net.activation_size), torch.int8 if net.int8 else torch.float16)
    return activations, poison((slots, net.workspace_size), torch.float32)


def answers(net: NetworkLayout, images: int) -> list[Tensor]:
    """Poisoned tensors for what the network says."""
    return [poison(shape, torch.float32) for shape in ((images, net.classes), (images,), (images,), (images, 3))]


def assert_same_answers(
    net: NetworkLayout, made: list[Tensor], expected: tuple[Tensor, ...], atol: float = 2e-3
) -> None:
    """Probabilities, angle, score and uncertainty are those expected, but for roundings."""
    probabilities, angle, score, uncertainty = (tensor.cpu() for tensor in made)
    torch.testing.assert_close(probabilities, expected[0], rtol=0, atol=atol)
    torch.testing.assert_close(score, expected[2], rtol=2e-2, atol=4e-2)
    apart = (angle - expected[1] + math.pi) % (2 * math.pi) - math.pi
    assert apart.abs().max() < 5e-3
    if net.bins:
        torch.testing.assert_close(uncertainty[:, [0, 2]], expected[3][:, [0, 2]], rtol=0, atol=2e-3)
    else:
        assert not uncertainty.any()


@pytest.mark.parametrize("int8", [False, True])
def test_no_parameter_could_be_another_unseen(int8: bool) -> None:
    """What the cases compare would show it: with any of the network's parts 0 the references' answers are others."""
    model = untrained("tiny")
    packed = pack(model, quantized(model) if int8 else None)
    net, score = packed.layout, packed.layout.score
    images = blotches(8, model.config.size, model.config.channels, seed=1)
    expected = forward_layerwise(net, images, packed.weights, packed.params, packed.whitening)
    projected = padded(score.components + 1)
    params = {"temperature": (net.inverse_temperature, 1), "axes": (net.bin_axes, 2 * net.bins)}
    rows = {
        "orientation": net.orientation_feature_channels,
        "features": net.feature_channels,
        "mu": net.latent,
        "classes": net.classes,
    }
    params |= {f"project_{part}": (getattr(score, f"project_{part}"), size * projected) for part, size in rows.items()}
    params |= {
        "offset": (score.offset, projected),
        "nearest": (score.nearest, score.components * padded(score.clusters)),
        "nearest_offset": (score.nearest_offset, score.clusters),
        "cluster_offset": (score.cluster_offset, score.clusters * padded(score.components)),
        **{f"term {number}": (score.terms + number, 1) for number in range(5)},
    }
    weights = {}
    for index, layer in enumerate(net.layers):
        params[f"layer {index} bias"] = (layer.bias, layer.out_channels)
        if int8:
            params[f"layer {index} scale"] = (layer.scale, layer.out_channels)
        weights[f"layer {index} weights"] = (layer.weights, layer.filters.size)
    for index, linear in enumerate(net.linears):
        if linear is None:
            continue
        params[f"linear {index} bias"] = (linear.bias, linear.out_features)
        if int8:
            params[f"linear {index} scale"] = (linear.scale, linear.out_features)
        weights[f"linear {index} weights"] = (linear.weights, linear.out_features * linear.row_stride)
    unseen = []
    whitening = {"whitening": (0, packed.whitening.numel())}
    flat = packed.whitening.view(-1)
    for buffer, parts in ((packed.params, params), (packed.weights, weights), (flat, whitening)):
        for part, (offset, size) in parts.items():
            before = buffer[offset : offset + size].clone()
            buffer[offset : offset + size] = 0
            found = list(forward_layerwise(net, images, packed.weights, packed.params, packed.whitening))
            buffer[offset : offset + size] = before
            try:
                assert_same_answers(net, found, expected)
                unseen.append(part)
            except AssertionError:
                pass
    assert unseen == []


@pytest.mark.parametrize("int8", [False, True])
def test_images_share_the_workspace_of_fewer_slots(int8: bool) -> None:
    model = untrained("tiny")
    packed = pack(model, quantized(model) if int8 else None)
    net, config = packed.layout, model.config
    images = blotches(4, config.size, config.channels, seed=4)
    buffers = (packed.weights, packed.params, packed.whitening)
    activations, workspace = scratch(net, 2)
    made, barrier = answers(net, 4), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    there = [tensor.to(DEVICE) for tensor in (images, *buffers)]
    kernels.forward(net, *there, activations, workspace, barrier, *made)
    assert_same_answers(net, made, forward_layerwise(net, images, *buffers))


@pytest.mark.parametrize(
    "changes, ctas_per_image",
    [({}, 2), ({"size": 33, "channels": 3, "circular_mask": True, "fill": 0.5}, 4), ({"orientation": False}, 2)],
)
@pytest.mark.parametrize("int8", [False, True])
def test_several_ctas_classify_one_image_together(changes: dict[str, object], ctas_per_image: int, int8: bool) -> None:
    model = untrained("tiny", **changes)
    packed = pack(model, quantized(model) if int8 else None)
    net, config = packed.layout, model.config
    images = blotches(2, config.size, config.channels, seed=5)
    buffers = (packed.weights, packed.params, packed.whitening)
    activations, workspace = scratch(net, 1)
    alone, made, barrier = answers(net, 2), answers(net, 2), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    there = [tensor.to(DEVICE) for tensor in (images, *buffers)]
    kernels.forward(net, *there, activations, workspace, barrier, *alone)
    activations.fill_(77)
    workspace.fill_(math.nan)
    barrier.fill_(2**31 - ctas_per_image)  # it wraps on the way
    if INTERPRETED:
        run_together(ctas_per_image, to_json(net), [*there, activations, workspace, barrier, *made], 2, 1)
    else:
        kernels.forward(net, *there, activations, workspace, barrier, *made, ctas_per_image=ctas_per_image)
    tolerance = 1e-4 if int8 else 1e-2  # other tiles, other roundings
    torch.testing.assert_close(made, alone, rtol=tolerance, atol=tolerance)


def test_the_heads_alone_give_what_their_references_give() -> None:
    model = untrained("tiny")
    packed = pack(model)
    net, text = packed.layout, to_json(packed.layout)
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(2, net.linears[Fc.ORIENTATION].in_features, generator=generator).half()
    logits, orientation = references.orientation_head(features, packed.weights, packed.params, text)
    got = poison(logits.shape, torch.float32), poison(orientation.shape, torch.float32)
    there = [tensor.to(DEVICE) for tensor in (features, packed.weights, packed.params)]
    heads.orientation_forward(net, *there, *got)
    torch.testing.assert_close((got[0].cpu(), got[1].cpu()), (logits, orientation), rtol=1e-4, atol=1e-4)
    means = torch.rand(2, net.feature_channels, generator=generator)
    given_tensors = (
        features,
        means,
        means.flip(0),
        logits,
        orientation,
        packed.weights,
        packed.params,
        packed.whitening,
    )
    expected = references.content_head(*given_tensors, text)
    made = [poison(tensor.shape, torch.float32) for tensor in expected]
    read = [tensor.contiguous().to(DEVICE) for tensor in given_tensors]
    heads.content_forward(net, *read, *made)
    torch.testing.assert_close([tensor.cpu() for tensor in made], list(expected), rtol=1e-3, atol=1e-3)
