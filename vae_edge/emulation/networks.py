"""A whole network in one launch on the emulated device, with random weights: what it costs does not depend on them."""

from __future__ import annotations

import torch
from torch import Tensor
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.timing import MachineModel
from vae_edge_kernels.layout import NetworkLayout, padded
from vae_edge_kernels.network import kernel_spec

from vae_edge.emulation.launch import Compiled, compile_kernel, run

SCRATCH = ("activations_ptr", "workspace_ptr")


def profile_network(
    net: NetworkLayout, architecture: int, model: MachineModel | None, programs: int = 1, images: int = 1
) -> tuple[Compiled, Device]:
    """One launch of a network on random images.

    Args:
        net: as `vae_edge.ops.packing` or a preset gives it, without tiles.
        architecture: 87 is sm_87.
        model: of the time, or None.
        programs: that work on one image; a power of two.
        images: in the batch, each with scratch of its own.

    Raises:
        KernelError: whatever the compiler or the emulator finds.
    """
    compiled = compile_kernel(kernel_spec(net, architecture, programs), architecture)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.int8 if net.int8 else torch.float16
    weights = torch.randint(-9, 10, (net.weights_size,), generator=generator).to(dtype)
    params = torch.rand(net.params_size, generator=generator) / 16
    clusters, components = net.score.clusters, net.score.components
    image = torch.randint(0, 256, (images, net.height, net.width, net.channels), generator=generator)
    arguments: dict[str, Tensor | int | float] = {
        "image_ptr": image.to(torch.uint8),
        "weights_ptr": weights if net.int8 else weights / 64,
        "params_ptr": params,
        "whitening_ptr": torch.rand(clusters * components * padded(components), generator=generator).half(),
        "activations_ptr": torch.zeros(images, net.activation_size, dtype=dtype),
        "workspace_ptr": torch.zeros(images, net.workspace_size),
        "barrier_ptr": torch.zeros(images, dtype=torch.int32),
        "probabilities_ptr": torch.empty(images, net.classes),
        "angle_ptr": torch.empty(images),
        "score_ptr": torch.empty(images),
        "uncertainty_ptr": torch.empty(images, 3),
        "n_images": images,
    }
    outputs = ("probabilities_ptr", "angle_ptr", "score_ptr", "uncertainty_ptr")
    return compiled, run(compiled, (images, programs, 1), arguments, (*SCRATCH, *outputs), model=model)
