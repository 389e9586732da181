"""One batch on several processes (Accelerate): each takes its shard and computes what one process would.

Random numbers are drawn for the full batch, and each process keeps its own; batch normalization uses the statistics of
the full batch; gradients and losses are means over it. The number of processes changes rounding and nothing else.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

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


class _Normalize(torch.autograd.Function):
    """Normalize features [N, C, H, W] by the batch's mean and variance (Ioffe and Szegedy 2015).

    The gradient is written out, since autograd's, of the same formula step by step, takes four times as long.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """The normalized features, and mean and variance [C] over all processes."""
        x = input.float()
        mean, _ = all_reduce_mean(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        output = centred * centred  # the buffer of the output: fresh memory costs as much as the arithmetic
        variance, _ = all_reduce_mean(output.mean((0, 2, 3)))
        inv_std = torch.rsqrt(variance + eps)
        torch.addcmul(bias[:, None, None], centred, (weight * inv_std)[:, None, None], out=output)
        ctx.save_for_backward(centred, weight, inv_std)
        ctx.mark_non_differentiable(mean, variance)
        return output.to(input.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """dx = w σ⁻¹ (dy − mean(dy) − x̂ mean(dy x̂)); the means are over the batch of all processes."""
        centred, weight, inv_std = ctx.saved_tensors
        dy = grad.float()
        count = dy[:, 0].numel()
        grad_bias = dy.sum((0, 2, 3))
        grad_input = dy * centred
        grad_weight = grad_input.sum((0, 2, 3)) * inv_std
        means, _ = all_reduce_mean(torch.stack((grad_bias, grad_weight)) / count)

        scale = weight * inv_std
        factor, offset = -scale * inv_std * means[1], -scale * means[0]
        torch.addcmul(offset[:, None, None], dy, scale[:, None, None], out=grad_input)
        grad_input.addcmul_(centred, factor[:, None, None])
        return grad_input.to(grad.dtype), grad_weight, grad_bias, None


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
        normalized, mean, variance = _Normalize.apply(input, self.weight, self.bias, self.eps)
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._update_running_stats(mean, variance, input[:, 0].numel() * processes)
        return normalized

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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEEP_ALL_BYTES = 2**31 - 1
GLIBC_MAX_BYTES = 32 << 20  # to which glibc itself raises its mmap threshold


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Until the block ends, memory that is freed stays with the process. Without glibc nothing changes.

    A training step frees what the next one allocates. glibc returns large blocks to the system, which maps and clears
    them anew at each step: up to a sixth of the step's time on a CPU.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        library.mallopt(option, KEEP_ALL_BYTES) or library.mallopt(option, GLIBC_MAX_BYTES)
    try:
        yield
    finally:
        library.mallopt(M_TRIM_THRESHOLD, 2 * GLIBC_MAX_BYTES)
        library.mallopt(M_MMAP_THRESHOLD, GLIBC_MAX_BYTES)
        library.malloc_trim(0)


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
