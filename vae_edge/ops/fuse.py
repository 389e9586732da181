"""A trained network for inference: normalization folded in, weights laid out for the kernels, fp16 or int8."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vae_edge_kernels.plan import to_text

from vae_edge.errors import KernelError
from vae_edge.files import atomic_path
from vae_edge.ops.network import by_layers, network
from vae_edge.ops.packing import Packed, QuantizedNetwork, pack

ONE_LAUNCH_UP_TO = 1024  # images; beyond, layer by layer


class FusedNetwork(nn.Module):
    """The exported graph's function on the toolkit's operators: on CUDA the Triton kernels, on a CPU their references.

    `forward` takes uint8 [N, S, S, C] and gives float32 probabilities [N, K], angle [N] in radians, score [N], and
    doubts [N, 3] (concentration, second-best angle, its share).
    """

    weights: Tensor
    numbers: Tensor
    whitenings: Tensor

    def __init__(self, packed: Packed, programs: int = 1) -> None:
        super().__init__()
        self.programs = programs
        self.plan, self.text, self._scalars = packed.plan, to_text(packed.plan), packed.numbers.cpu()
        self.register_buffer("weights", packed.weights)
        self.register_buffer("numbers", packed.numbers)
        self.register_buffer("whitenings", packed.whitenings)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Answers to a batch, in one launch or, where there are many images, in one a layer."""
        if image.shape[0] <= ONE_LAUNCH_UP_TO:
            programs = self.programs if image.shape[0] == 1 else 1
            return network(image, self.weights, self.numbers, self.whitenings, self.text, programs)
        return by_layers(self.plan, image, self.weights, self.numbers, self.whitenings, self._scalars)

    def save(
        self,
        path: str | os.PathLike[str],
        classes: Sequence[str],
        threshold: float,
        architectures: Sequence[int] = (87,),
    ) -> None:
        """Write the network file that the native library opens; see `vae_edge_kernels.aot.network_file`.

        With `programs` above 1 it also has machine code by which so many work on an image.

        Args:
            classes: names.
            threshold: a score up to it is accepted.
            architectures: of the GPUs to compile for: 87 is Jetson Orin.

        Raises:
            KernelError: if the names do not fit, or the network does not compile for an architecture.
        """
        from vae_edge_kernels.aot.network_file import write_network

        buffers = {name: buffer.detach().cpu().contiguous().numpy() for name, buffer in self.named_buffers()}
        with atomic_path(path) as temporary:
            write_network(temporary, self.plan, buffers, classes, threshold, architectures, self.programs)


def fuse(model: Any, quantized: QuantizedNetwork | None = None, light: bool = False, programs: int = 1) -> FusedNetwork:
    """The network of inference.

    Args:
        model: a trained `vae_edge.model.AngleVAE`.
        quantized: its int8 layers, as `vae_edge.exporting.layers.read_layers` reads them from a quantized file; without
            them the network is fp16.
        light: whether the score is the one without the reconstruction.
        programs: that work together on CUDA where there is one image alone; a power of two.

    Raises:
        KernelError: if the model is none of ours, or layers are missing.
    """
    if not all(hasattr(model, name) for name in ("config", "encoder", "classifier", "decoder", "score")):
        raise KernelError(f"fuse expects an AngleVAE; got {type(model).__name__}.")
    with torch.no_grad():
        return FusedNetwork(pack(model, quantized, light), programs)
