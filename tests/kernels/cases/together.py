"""CTAs that wait for one another, under the interpreter: each is a process of its own, on shared memory."""

from __future__ import annotations

import torch.multiprocessing as processes
from torch import Tensor
from vae_edge_kernels import network as kernels
from vae_edge_kernels.layout import from_json
from vae_edge_kernels.tiling import padded_sizes


def work(cta_rank: int, ctas_per_image: int, layout: str, tensors: list[Tensor], images: int, slots: int) -> None:
    """Be CTA number `cta_rank` of each image: a grid with one program there, which takes itself for that one."""
    from triton.runtime.interpreter import interpreter_builder

    index, dimension = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim
    interpreter_builder.set_grid_idx = lambda x, y, z: index(x, cta_rank, z)
    interpreter_builder.set_grid_dim = lambda x, y, z: dimension(x, ctas_per_image, z)
    net = from_json(layout)
    tuned, config = kernels.tuned_layout(net, None, ctas_per_image)
    kernels.network[(slots, 1)](*tensors, images, NET=tuned, PAD=padded_sizes(net), **config)


def run_together(ctas_per_image: int, layout: str, tensors: list[Tensor], images: int, slots: int) -> None:
    """Run the whole network with several CTAs an image; all tensors are on the CPU, and written there."""
    for tensor in tensors:
        tensor.share_memory_()
    processes.spawn(work, args=(ctas_per_image, layout, tensors, images, slots), nprocs=ctas_per_image)
