"""One case of the kernels' benchmark; test tensors on the GPU, and error measures."""

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
    """A case with its tensors, ready to run."""

    ours: Callable[[], Any]  #: launches the kernel and returns what it wrote
    check: Callable[[], float]  #: runs it and returns its error
    tolerance: float  #: the largest error that is accepted
    baselines: dict[str, Callable[[], Any]]  #: the same result by other libraries
    bytes_moved: int  #: read and written
    macs: int = 0  #: multiply-accumulates
    compile: Callable[[], Any] | None = None  #: what `torch.compile` is given


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


def max_rel_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-9))


def max_error(*errors: float) -> float:
    """The largest; NaN where one is."""
    return float(torch.tensor(errors).max())


def poison(*outputs: Tensor) -> None:
    """Fill outputs with what no kernel writes, so that one that it forgets is seen."""
    for output in outputs:
        output.fill_(float("nan") if output.is_floating_point() else 85)
