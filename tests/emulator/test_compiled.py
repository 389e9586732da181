"""Kernels of the library, compiled for a GPU and executed without one, against their references on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from synthetic_models import blotches, quantized, untrained
from torch import Tensor
from vae_edge_kernels import network, reparameterize
from vae_edge_kernels.emulator.errors import MemoryFault
from vae_edge_kernels.emulator.machine import Device

from vae_edge.emulation.launch import Compiled, compile_kernel, run
from vae_edge.ops.network import forward_layerwise
from vae_edge.ops.packing import PackedNetwork, pack
from vae_edge.ops.reparameterize import reparameterize as reparameterize_reference


@cache
def sampling(architecture: int, quads: bool) -> Compiled:
    name = "reparameterize_forward_fp32" + ("_quads" if quads else "")
    (spec,) = (spec for spec in reparameterize.kernel_specs(architecture) if spec.name == name)
    return compile_kernel(spec, architecture)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("quads", "offset"), [(False, 3), (True, 4)])
@pytest.mark.parametrize("architecture", [87, 90, 110, 120])
def test_codes_are_sampled(architecture: int, quads: bool, offset: int, seed: int | None) -> None:
    mu, logvar = torch.randn(2, 21, 24, generator=torch.Generator().manual_seed(0))
    z, kl = torch.empty(21, 24), torch.empty(21)
    given = {"mu_ptr": mu, "logvar_ptr": logvar, "z_ptr": z, "kl_ptr": kl}
    numbers = {"rows": 21, "columns": 24, "seed": 7, "offset": offset}
    run(sampling(architecture, quads), (2, 1, 1), {**given, **numbers}, ("z_ptr", "kl_ptr"), seed=seed)
    expected = reparameterize_reference(mu, logvar, 7, offset)
    torch.testing.assert_close(z, expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kl, expected[1], rtol=1e-6, atol=1e-5)


def test_a_buffer_that_is_too_short_is_told_with_its_line() -> None:
    mu, logvar = torch.zeros(2, 21, 24)
    z, kl = torch.empty(20, 24), torch.empty(21)
    given = {"mu_ptr": mu, "logvar_ptr": logvar, "z_ptr": z, "kl_ptr": kl, "rows": 21, "columns": 24}
    with pytest.raises(MemoryFault, match=r"^PTX line \d+ \(reparameterize.py:\d+\): a write of .* of z_ptr, which"):
        run(sampling(87, False), (2, 1, 1), given, ("z_ptr", "kl_ptr"))


def test_pointers_that_are_less_aligned_than_promised_are_told() -> None:
    mu, logvar = torch.zeros(2, 21, 24)
    given = {"mu_ptr": mu, "logvar_ptr": logvar, "z_ptr": torch.empty(21, 24), "kl_ptr": torch.empty(21)}
    with pytest.raises(MemoryFault, match="misaligned"):
        run(sampling(87, True), (2, 1, 1), {**given, "rows": 21, "columns": 24}, ("z_ptr", "kl_ptr"), offset=4)


NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "pooled": {"head": "pooled"},
    "large": {"size": 224, "channels": 3},
    "upright": {"head": "code+pooled", "orientation": False, "size": 32, "channels": 3},
    "masked": {"size": 33, "channels": 3, "circular_mask": True, "fill": 0.5},
    "masked, large": {"size": (97, 64), "circular_mask": True, "fill": 0.5},
}
FAST = ", fast score"  # behind the name of a network without a decoder


@cache
def packed(name: str, int8: bool) -> PackedNetwork:
    full = name.removesuffix(FAST)
    model = untrained("tiny", **NETWORKS[full]) if full in NETWORKS else untrained(full)
    made = pack(model, quantized(model) if int8 else None, "full" if full == name else "fast")
    assert made.layout.score.fast == (full != name)
    return made


@cache
def compiled_network(name: str, int8: bool, architecture: int, programs: int) -> Compiled:
    return compile_kernel(network.kernel_spec(packed(name, int8).layout, architecture, programs), architecture)


def launch_network(
    compiled: Compiled, made: PackedNetwork, images: Tensor, programs: int, slots: int, seed: int | None = None
) -> tuple[Device, dict[str, Tensor]]:
    """Images through a network in one launch, in slots that hold nothing before: the device, and the answers."""
    net, count = made.layout, len(images)
    given = {"weights_ptr": made.weights, "params_ptr": made.params, "whitening_ptr": made.whitening}
    outputs = {
        "probabilities_ptr": torch.empty(count, net.classes),
        "angle_ptr": torch.empty(count),
        "score_ptr": torch.empty(count),
        "uncertainty_ptr": torch.empty(count, 3),
    }
    activations = torch.zeros(slots, net.activation_size, dtype=torch.int8 if net.int8 else torch.float16)
    scratch = {"activations_ptr": activations, "workspace_ptr": torch.zeros(slots, net.workspace_size)}
    barrier = torch.zeros(2 * slots, dtype=torch.int32)
    arguments = {"image_ptr": images, **given, **scratch, "barrier_ptr": barrier, **outputs, "n_images": count}
    return run(compiled, (slots, programs, 1), arguments, (*scratch, *outputs), seed=seed), outputs


def run_network(compiled: Compiled, made: PackedNetwork, programs: int, seed: int | None = None) -> Device:
    """One image through a network in one launch; its answers are held against those of the operators."""
    net = made.layout
    image = blotches(1, (net.height, net.width), net.channels, seed=1)
    expected = forward_layerwise(net, image, made.weights, made.params, made.whitening)
    device, answers = launch_network(compiled, made, image, programs, 1, seed)
    # As in the interpreter's cases. Among the pixels of a large image some lie on a tie of the quantization, or of the
    # order of sums: the interpreter gives the compiled kernel's answers there, and both are as far from the operators.
    rounding = 1e-2 if net.pixels > 64 * 64 else 2e-3 if net.int8 else 5e-3  # float16: the benchmark's limit
    tolerances = {"probabilities_ptr": rounding, "angle_ptr": 5e-3, "score_ptr": 4e-2, "uncertainty_ptr": rounding}
    for (name, answer), wanted in zip(answers.items(), expected, strict=True):
        torch.testing.assert_close(answer, wanted, rtol=2e-2 if name == "score_ptr" else 0, atol=tolerances[name])
    return device


@pytest.mark.parametrize(
    ("name", "architecture", "int8", "programs", "seed"),
    [
        ("tiny", 87, False, 1, None),
        ("tiny", 87, True, 1, 3),
        ("tiny", 87, True, 2, 4),
        ("tiny", 90, False, 1, None),
        pytest.param("tiny", 90, True, 1, 6, marks=pytest.mark.slow),
        ("tiny", 120, False, 1, None),
        ("tiny", 120, True, 1, None),
        ("pooled", 87, True, 1, None),
        ("upright", 87, False, 1, None),
        ("masked", 87, True, 1, None),
        ("tiny, fast score", 87, False, 1, None),
        pytest.param("large", 87, True, 1, None, marks=pytest.mark.slow),
        pytest.param("small", 87, False, 1, None, marks=pytest.mark.slow),
        pytest.param("small", 87, True, 8, 2, marks=pytest.mark.slow),
        pytest.param("base", 87, True, 1, None, marks=pytest.mark.slow),
        pytest.param("tiny", 110, False, 1, None, marks=pytest.mark.slow),
        pytest.param("tiny", 110, True, 1, None, marks=pytest.mark.slow),
        pytest.param("tiny", 110, True, 2, 5, marks=pytest.mark.slow),
        pytest.param("small", 110, False, 1, None, marks=pytest.mark.slow),
        pytest.param("small", 110, True, 8, None, marks=pytest.mark.slow),
        pytest.param("tiny", 100, False, 1, None, marks=pytest.mark.slow),
        pytest.param("masked", 87, False, 1, 5, marks=pytest.mark.slow),
        pytest.param("masked", 87, True, 2, 6, marks=pytest.mark.slow),
        pytest.param("masked, large", 87, False, 1, None, marks=pytest.mark.slow),
        pytest.param("masked, large", 87, True, 1, None, marks=pytest.mark.slow),
        pytest.param("tiny, fast score", 87, True, 1, 7, marks=pytest.mark.slow),
        pytest.param("upright, fast score", 87, True, 1, None, marks=pytest.mark.slow),
        pytest.param("masked, fast score", 87, False, 2, 8, marks=pytest.mark.slow),
    ],
)
def test_a_network_in_one_launch_gives_what_the_operators_give(
    name: str, architecture: int, int8: bool, programs: int, seed: int | None
) -> None:
    device = run_network(compiled_network(name, int8, architecture, programs), packed(name, int8), programs, seed)
    products = sum(count for name, count in device.counts.opcodes.items() if name.startswith("mma."))
    assert products > 100 and device.counts.totals["barriers"] > 20
    assert not device.disagreements


PRECISIONS = [False, pytest.param(True, marks=pytest.mark.exhaustive)]
SEVERAL_PROGRAMS = [2, pytest.param(8, marks=pytest.mark.exhaustive)]


@pytest.mark.slow
@pytest.mark.parametrize("programs", [1, *SEVERAL_PROGRAMS])
@pytest.mark.parametrize("int8", PRECISIONS)
def test_answers_have_the_same_bits_in_every_order_of_warps_and_ctas(int8: bool, programs: int) -> None:
    made, compiled = packed("tiny", int8), compiled_network("tiny", int8, 87, programs)
    image = blotches(1, (made.layout.height, made.layout.width), made.layout.channels, seed=1)
    _, expected = launch_network(compiled, made, image, programs, 1)
    for seed in (0, 1):
        device, answers = launch_network(compiled, made, image, programs, 1, seed)
        assert not device.disagreements
        assert all(torch.equal(answers[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("int8", PRECISIONS)
def test_answers_have_the_same_bits_in_every_slot_and_batch(int8: bool) -> None:
    made, compiled = packed("tiny", int8), compiled_network("tiny", int8, 87, 1)
    images = blotches(3, (made.layout.height, made.layout.width), made.layout.channels, seed=2)
    _, together = launch_network(compiled, made, images, 1, 2, seed=3)  # the last image follows one of the others
    for number in (0, 2):
        _, alone = launch_network(compiled, made, images[number : number + 1], 1, 1)
        assert all(torch.equal(alone[name][0], together[name][number]) for name in alone)


@pytest.mark.slow
@pytest.mark.parametrize("programs", SEVERAL_PROGRAMS)
@pytest.mark.parametrize("int8", [False, True])
def test_several_ctas_change_last_bits_at_most(int8: bool, programs: int) -> None:
    made = packed("tiny", int8)
    image = blotches(1, (made.layout.height, made.layout.width), made.layout.channels, seed=1)
    _, alone = launch_network(compiled_network("tiny", int8, 87, 1), made, image, 1, 1)
    _, several = launch_network(compiled_network("tiny", int8, 87, programs), made, image, programs, 1)
    torch.testing.assert_close(several, alone, rtol=1e-5, atol=1e-6)  # sums in another order
