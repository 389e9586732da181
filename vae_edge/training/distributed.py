"""One batch on several processes (Accelerate): each takes its shard and computes what one process would.

Random numbers are drawn for the full batch, and each process keeps its own; batch normalization uses the statistics of
the full batch; gradients and losses are means over it. The number of processes changes rounding and nothing else.
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

log = logging.getLogger(__name__)


def make_accelerator() -> Accelerator:
    """Accelerate's view of the processes and the device: a GPU where there is one, else the CPU.

    We choose the precision (`fast_bf16`), so Accelerate gets `no` mixed precision, whatever the launcher says.
    """
    # SyncBatchNorm2d keeps the statistics equal on all processes: DDP need not broadcast buffers before each pass
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    group = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # the others wait while the first one fits the score
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[ddp, group])


def shard_slice(total: int, rank: int, processes: int) -> slice:
    """The rows of a batch of `total` images that belong to one process.

    Raises:
        ConfigError: if the batch does not divide evenly: means over processes would then not be means over images.
    """
    if total % processes:
        raise ConfigError(
            f"a batch of {total} images cannot be shared evenly by {processes} processes: "
            f"give --batch a multiple of {processes}"
        )
    size = total // processes
    return slice(rank * size, (rank + 1) * size)


def all_reduce_mean(value: Tensor) -> tuple[Tensor, int]:
    """The mean over processes, through which gradients flow, and the number of processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return value, 1
    return distributed.all_reduce(value) / dist.get_world_size(), dist.get_world_size()


def mean_over_processes(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each number over all processes, the same on all of them."""
    if accelerator.num_processes == 1:
        return values
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    reduced = accelerator.reduce(packed, "mean")
    return dict(zip(values, reduced.tolist(), strict=True))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization with mean and variance of the batch of all processes, on any device and transport.

    Our own, since PyTorch's SyncBatchNorm needs GPUs. PyTorch's BatchNorm2d for channels-last tensors on the CPU is
    off by up to 6e-5 standard deviations. bfloat16 does not notice, but two processes would not repeat one. Here mean
    and variance are reduced one after the other. Every process has the same number of images.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features [N, C, H, W], normalized."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        mean, processes = all_reduce_mean(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance, _ = all_reduce_mean(centred.square().mean((0, 2, 3)))
        self._update_running_stats(mean.detach(), variance.detach(), input[:, 0].numel() * processes)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d by a SyncBatchNorm2d. Parameters and buffers stay the same tensors."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            sync = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
            sync.weight, sync.bias = child.weight, child.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(sync, buffer, getattr(child, buffer))
            setattr(module, name, sync)
        else:
            convert_sync_batchnorm(child)
    return module


_requested: list[int] = []  # what a user asked for, the last one at the end; it overrules the quota


def use_threads(requested: int | None = None) -> int:
    """Set PyTorch's threads: to the last number requested, or else to its own default, at most `available_cpus`.

    PyTorch's default follows the machine and `OMP_NUM_THREADS`, not a container's quota.

    Returns:
        the number of threads.
    """
    limit = available_cpus()
    if requested is not None:
        _requested.append(requested)
    if _requested:
        torch.set_num_threads(_requested[-1])
    elif torch.get_num_threads() > limit:
        torch.set_num_threads(limit)
    if torch.get_num_interop_threads() > limit:
        try:
            torch.set_num_interop_threads(limit)
        except RuntimeError as error:  # it can be set once, before the first use
            log.debug("PyTorch keeps %d interop threads: %s", torch.get_num_interop_threads(), error)
    return torch.get_num_threads()
