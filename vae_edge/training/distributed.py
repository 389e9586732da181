"""One batch on several processes: Accelerate's processes, each with its share, computing what one process would.

Random numbers are drawn for the whole batch and each process takes its own; the normalization's statistics are those
of the whole batch; gradients and losses are means over it. The number of processes changes rounding and nothing else.
"""

from __future__ import annotations

import logging
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.nn import functional as distributed

from vae_edge.environment import available_cpus
from vae_edge.errors import ConfigError


def open_workers() -> Accelerator:
    """Accelerate's view of the processes and the device: a GPU where there is one, else the CPU.

    Precision is ours to choose (`fast_bf16`), so Accelerate is told `no` mixed precision, whatever launched us.
    """
    # the statistics of the normalization are alike on all processes already, so nothing is sent before each pass
    quiet = DistributedDataParallelKwargs(broadcast_buffers=False)
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # while the first process fits the score
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[quiet, patient])


def share_of(total: int, rank: int, processes: int) -> slice:
    """The rows of a batch of `total` that belong to one process.

    Raises:
        ConfigError: if the batch does not divide evenly: means over processes would then not be means over images.
    """
    if total % processes:
        raise ConfigError(
            f"a batch of {total} images cannot be shared evenly by {processes} processes: "
            f"give --batch a multiple of {processes}"
        )
    mine = total // processes
    return slice(rank * mine, (rank + 1) * mine)


class ExactBatchNorm(nn.BatchNorm2d):
    """Batch normalization with the mean and variance of the batch of all processes, on any device and transport.

    PyTorch's SyncBatchNorm does this on GPUs alone, and its BatchNorm2d for channels-last tensors on the CPU is off by
    up to 6e-5 of a standard deviation, which is nothing to bfloat16 but keeps two processes from repeating one. Here
    mean and variance go around one after the other. Each process has as many images as the others.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features [N, C, H, W], normalized."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        mean, processes = mean_of_means(x.mean((0, 2, 3)))
        apart = x - mean[:, None, None]
        variance, _ = mean_of_means(apart.square().mean((0, 2, 3)))
        self._remember(mean.detach(), variance.detach(), input[:, 0].numel() * processes)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (apart * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)


def mean_of_means(value: Tensor) -> tuple[Tensor, int]:
    """The mean over processes, through which gradients run, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return value, 1
    return distributed.all_reduce(value) / dist.get_world_size(), dist.get_world_size()


def normalize_exactly(module: nn.Module) -> nn.Module:
    """Exchange every BatchNorm2d for an exact one; parameters and buffers stay the same tensors."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            whole = ExactBatchNorm(child.num_features, child.eps, child.momentum)
            whole.weight, whole.bias = child.weight, child.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(whole, buffer, getattr(child, buffer))
            setattr(module, name, whole)
        else:
            normalize_exactly(child)
    return module


def mean_over_processes(values: dict[str, float], workers: Accelerator) -> dict[str, float]:
    """The mean of each number over all processes, the same on all of them."""
    if workers.num_processes == 1:
        return values
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=workers.device)
    reduced = workers.reduce(packed, "mean")
    return dict(zip(values, reduced.tolist(), strict=True))


log = logging.getLogger(__name__)
_asked: list[int] = []  # what a user asked for, last at the end: it holds whatever the quota is


def use_threads(asked: int | None = None) -> int:
    """Set PyTorch's threads: as many as are or were asked for; else its own number, but no more than `available_cpus`.

    PyTorch looks at the machine and at `OMP_NUM_THREADS`, not at a container's quota.

    Returns:
        how many there are now.
    """
    most = available_cpus()
    if asked is not None:
        _asked.append(asked)
    if _asked:
        torch.set_num_threads(_asked[-1])
    elif torch.get_num_threads() > most:
        torch.set_num_threads(most)
    if torch.get_num_interop_threads() > most:
        try:
            torch.set_num_interop_threads(most)
        except RuntimeError as error:  # it can be set once, before the first use
            log.debug("PyTorch keeps %d interop threads: %s", torch.get_num_interop_threads(), error)
    return torch.get_num_threads()
