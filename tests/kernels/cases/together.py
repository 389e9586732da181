"""Programs that wait for one another, under the interpreter: each is run by a process of its own, on shared memory."""

from __future__ import annotations

import torch.multiprocessing as processes
from torch import Tensor
from vae_edge_kernels import network as kernels
from vae_edge_kernels.plan import from_text, sizes


def work(part: int, programs: int, text: str, tensors: list[Tensor], images: int, places: int) -> None:
    """Be program number `part` of each image: a grid with one program there, which takes itself for that one."""
    from triton.runtime.interpreter import interpreter_builder

    index, dimension = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim
    interpreter_builder.set_grid_idx = lambda x, y, z: index(x, part, z)
    interpreter_builder.set_grid_dim = lambda x, y, z: dimension(x, programs, z)
    plan = from_text(text)
    tiles, chosen = kernels.configured(plan, None, programs)
    kernels.network[(places, 1)](*tensors, images, P=tiles, S=sizes(plan), **chosen)


def run_together(programs: int, text: str, tensors: list[Tensor], images: int, places: int) -> None:
    """Run the whole network with several programs an image; all tensors are on the CPU, and written there."""
    for tensor in tensors:
        tensor.share_memory_()
    processes.spawn(work, args=(programs, text, tensors, images, places), nprocs=programs)
