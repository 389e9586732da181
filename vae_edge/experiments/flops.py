"""What a network costs, counted and not timed: parameters and multiply-accumulates (MACs), in inference and training.

`torch.utils.flop_counter` counts convolutions and matrix products, two operations for each multiply-accumulate. Left
out is what has no weights of its own: activations, normalization (which folds into the convolution before it),
resampling (a few thousand operations for 28×28 pixels), softmax.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vae_edge.model import AngleVAE, LossWeights, compute_losses

COUNTED_BATCH = 4  # images in the training step that is counted


@dataclass(frozen=True)
class Cost:
    """Parameters that the output depends on, and multiply-accumulates for one image."""

    parameters: int
    macs: int


def inference_cost(network: nn.Module, image: Tensor) -> Cost:
    """The cost of `network` for one image, given as a batch of one, with the dtype and shape that the network takes.

    The network is traced, and what its output does not depend on is removed: a decoder behind a reconstruction that is
    not among the outputs costs nothing.
    """
    traced = copy.deepcopy(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export warns of its own future
        program = torch.export.export(traced, (image,)).run_decompositions({})
    program.graph.eliminate_dead_code()

    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {name for node, name in program.graph_signature.inputs_to_parameters.items() if node in used}
    parameters = sum(parameter.numel() for name, parameter in traced.named_parameters() if name in names)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program.module()(image)
    return Cost(parameters, counter.get_total_flops() // 2)


def training_macs(network: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], size: int, channels: int) -> float:
    """Multiply-accumulates of a training step for one image: forward pass, and backward pass to all weights.

    Args:
        network: copied, so that the running statistics of its normalization stay as they are.
        loss: the scalar loss of the network on images float32 [N, C, S, S]: `vae_loss` or `cross_entropy_loss`.
        size: of the images, S.
        channels: of the images, C.
    """
    images = torch.zeros(COUNTED_BATCH, channels, size, size)
    trained = copy.deepcopy(network).train()
    with FlopCounterMode(display=False) as counter:
        loss(trained, images).backward()
    return counter.get_total_flops() / 2 / COUNTED_BATCH


def cross_entropy_loss(network: nn.Module, images: Tensor) -> Tensor:
    """A baseline's loss on images [N, C, S, S], all labelled as class 0: the cost does not depend on the labels."""
    return F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.long, device=images.device))


def vae_loss(model: nn.Module, images: Tensor) -> Tensor:
    """The loss of our model on images [N, C, S, S], all labelled as class 0 and upright."""
    assert isinstance(model, AngleVAE)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    angles = torch.zeros(len(images), device=images.device) if model.config.orientation else None
    return compute_losses(model.forward_train(images, labels, 0, 0), labels, angles, LossWeights())["total"]


def loss_of(network: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss that a network is trained by."""
    return vae_loss if isinstance(network, AngleVAE) else cross_entropy_loss


class LogitsOnly(nn.Module):
    """The part of our model that the class depends on: images float32 [N, C, S, S] to logits [N, K]."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, K]."""
        return self.model(image).logits
