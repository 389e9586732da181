"""Where the cases run: under the interpreter on the CPU, or compiled, on a GPU or an emulated one."""

from __future__ import annotations

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = "EMULATED_ARCHITECTURE" in os.environ
DEVICE = "cpu" if INTERPRETED or EMULATED else "cuda"


def capability() -> tuple[int, int]:
    """Of the GPU, or the emulated one."""
    if EMULATED:
        major, minor = divmod(int(os.environ["EMULATED_ARCHITECTURE"]), 10)
        return major, minor
    return torch.cuda.get_device_capability()


def poison(shape: list[int] | torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor full of what no kernel writes: an element that it forgets is seen."""
    if dtype.is_floating_point:
        return torch.full(tuple(shape), float("nan")).to(dtype).to(DEVICE)
    return torch.full(tuple(shape), 85, dtype=dtype, device=DEVICE)
