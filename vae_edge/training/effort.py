"""What a network costs, counted and not timed: parameters and multiply-accumulates, at inference and in training.

Counted are convolutions and matrix products (`torch.utils.flop_counter`, two operations a multiply-accumulate).
Left out is what has no weights of its own: activations, normalization (which folds away), resampling (a few
thousand for 28×28 pixels), softmax.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vae_edge.model import AngleVAE, LossWeights, losses

COUNTED_BATCH = 4


@dataclass(frozen=True)
class Cost:
    """Learned numbers that one decision depends on, and multiply-accumulates for one image."""

    parameters: int
    macs: int


def inference_cost(network: nn.Module, image: Tensor) -> Cost:
    """What `network` costs for one image, given as a batch of one, of the type and form that it takes.

    The network is traced and what its output does not depend on is removed, so that only what runs is counted: a
    decoder behind a reconstruction that nobody asked for costs nothing.
    """
    traced = copy.deepcopy(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.export about itself
        program = torch.export.export(traced, (image,)).run_decompositions({})
    program.graph.eliminate_dead_code()
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {name for place, name in program.graph_signature.inputs_to_parameters.items() if place in used}
    parameters = sum(parameter.numel() for name, parameter in traced.named_parameters() if name in names)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program.module()(image)
    return Cost(parameters, counter.get_total_flops() // 2)


def training_macs(network: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], size: int, channels: int) -> float:
    """Multiply-accumulates of one training step for one image: forward, and backward to all weights.

    Args:
        network: is copied, so that its normalization's statistics stay as they are.
        loss: gives the scalar loss of the network on float images [N, C, S, S].
    """
    pixels = torch.zeros(COUNTED_BATCH, channels, size, size)
    trained = copy.deepcopy(network).train()
    with FlopCounterMode(display=False) as counter:
        loss(trained, pixels).backward()
    return counter.get_total_flops() / 2 / COUNTED_BATCH


class Decision(nn.Module):
    """Of our network what the class depends on: float [N, C, S, S] to logits [N, K]."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        return self.model(image).logits


def our_loss(model: nn.Module, pixels: Tensor) -> Tensor:
    """Our network's loss on images [N, C, S, S] that all count as the first class and as upright."""
    assert isinstance(model, AngleVAE)
    labels = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    angles = torch.zeros(len(pixels), device=pixels.device) if model.config.pose else None
    return losses(model.training_pass(pixels, labels, 0, 0), labels, angles, LossWeights())["total"]
