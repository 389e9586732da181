"""Where the cases run: under the interpreter on the CPU, or compiled on a GPU."""

from __future__ import annotations

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def poison(shape: list[int] | torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor full of what no kernel writes: an element that it forgets is seen."""
    if dtype.is_floating_point:
        return torch.full(tuple(shape), float("nan")).to(dtype).to(DEVICE)
    return torch.full(tuple(shape), 85, dtype=dtype, device=DEVICE)
