"""A line of the kernels' benchmark, and what its makers share: tensors on the GPU, and how far a result is off."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
MULTIPROCESSORS = torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 16
PRESETS = ("tiny", "small", "base")
BATCHES = (1, 32, 256)
SCALE = 1.0 / 255.0


@dataclass
class Run:
    """A case with its tensors.

    `ours` launches the kernel and gives what it wrote, `check` says how far that is from what it should be (at most
    `allowed`), `rivals` do the same in another way. `moved` is bytes read and written, `macs` multiply-accumulates.
    """

    ours: Callable[[], Any]
    check: Callable[[], float]
    allowed: float
    rivals: dict[str, Callable[[], Any]]
    moved: int
    macs: int = 0
    compile: Callable[[], Any] | None = None  # what `torch.compile` is given


@dataclass(frozen=True)
class Case:
    """One line of the benchmark."""

    kernel: str
    layer: str
    batch: int
    make: Callable[[], Run] = field(compare=False)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers on the GPU, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def small_integers(*shape: int, seed: int = 0) -> Tensor:
    """int8 on the GPU, the same each time."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).to(DEVICE)


def pixels(*shape: int) -> Tensor:
    """Bytes on the GPU."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(DEVICE)


def far(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value that was expected."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-9))


def worst(*errors: float) -> float:
    """The largest; NaN where one is."""
    return float(torch.tensor(errors).max())


def spoil(*outputs: Tensor) -> None:
    """Fill outputs with what no kernel writes, so that one that it forgets is seen."""
    for output in outputs:
        output.fill_(float("nan") if output.is_floating_point() else 85)
