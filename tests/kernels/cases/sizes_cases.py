"""The whole network in Triton for images that are not square, and for large ones, whose stem halves."""

from __future__ import annotations

import pytest
import torch
from network_cases import answers, assert_same_answers, scratch
from synthetic_models import blotches, quantized, untrained
from vae_edge_kernels import network as kernels
from where import DEVICE

from vae_edge.ops.network import forward_layerwise
from vae_edge.ops.packing import pack


@pytest.mark.parametrize(
    "changes, int8",
    [
        ({"size": (40, 29), "channels": 3}, True),
        ({"size": (97, 64), "circular_mask": True, "fill": 0.5}, False),  # sides that do not halve without remainder
        ({"size": 96, "channels": 3}, True),
        ({"size": 224, "channels": 3}, False),  # a stem that halves twice
        ({"size": 224, "channels": 3}, True),
    ],
)
def test_one_launch_gives_what_the_operators_give_for_images_of_any_size(
    changes: dict[str, object], int8: bool
) -> None:
    model = untrained("tiny", **changes)
    packed = pack(model, quantized(model) if int8 else None)
    net, config = packed.layout, model.config
    images = blotches(1, config.size, config.channels, seed=1)
    buffers = (packed.weights, packed.params, packed.whitening)
    activations, workspace = scratch(net, 1)
    made, barrier = answers(net, 1), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    kernels.forward(net, *(each.to(DEVICE) for each in (images, *buffers)), activations, workspace, barrier, *made)
    # The longer sums of float16 are rounded by the order of their terms, which PyTorch chooses by the processor.
    assert_same_answers(net, made, forward_layerwise(net, images, *buffers), atol=1e-2)
