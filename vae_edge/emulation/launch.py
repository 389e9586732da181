"""Compile a kernel ahead of time and run its PTX on the emulated device with PyTorch tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from vae_edge_kernels.analysis.sass import SassStats, read_stats
from vae_edge_kernels.aot.worker import compile_spec
from vae_edge_kernels.config import KernelSpec
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.parser import Module, parse
from vae_edge_kernels.emulator.timing import MachineModel

AS_INTEGERS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


@dataclass(frozen=True)
class Compiled:
    """A kernel's PTX and what a launch needs beside it.

    Attributes:
        name: of the kernel.
        ptx: the text.
        module: the text, parsed.
        arguments: names, in order.
        shared_size: bytes of shared memory.
        architecture: 87 is sm_87.
        warps: of a program.
        cubin: machine code of the same compilation.
    """

    name: str
    ptx: str
    module: Module
    arguments: tuple[str, ...]
    shared_size: int
    architecture: int
    warps: int
    cubin: bytes

    def changed(self, ptx: str) -> Compiled:
        """The same kernel with another text; its machine code stays."""
        return replace(self, ptx=ptx, module=parse(ptx))

    @cached_property
    def stats(self) -> SassStats:
        """Registers, spills and the like of the machine code.

        Raises:
            KernelError: it cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="vae-edge-kernels-") as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(self.cubin)
            cubin.with_suffix(".ptx").write_text(self.ptx, encoding="utf-8")
            return read_stats(cubin.with_suffix(".ptx"), cubin, self.architecture, self.warps, self.shared_size)


def compile_kernel(spec: KernelSpec, architecture: int) -> Compiled:
    """Compile one kernel of the library for an architecture (87 is sm_87)."""
    entry, cubin, ptx = compile_spec(spec, architecture)
    names, made = tuple(argument["name"] for argument in entry["arguments"]), entry["cubin"]
    return Compiled(spec.name, ptx, parse(ptx), names, made["shared_bytes"], architecture, made["warps"], cubin)


def run(
    compiled: Compiled,
    grid: tuple[int, int, int],
    arguments: Mapping[str, Tensor | int | float],
    outputs: Collection[str] = (),
    *,
    seed: int | None = None,
    offset: int | Mapping[str, int] = 0,
    model: MachineModel | None = None,
    max_steps: int = 5_000_000,
) -> Device:
    """Launch a kernel; `outputs` among the tensors hold nothing before and get what it wrote.

    Args:
        compiled: the kernel.
        grid: programs along each axis.
        arguments: by name; those that are missing are 0.
        outputs: names of tensors of which the kernel must write what it reads.
        seed: of the order in which warps and programs make their steps; None: in lock step.
        offset: bytes by which every tensor is off an alignment of 256; or, by name, some of them.
        model: of the time, or None.
        max_steps: after which a deadlock is assumed.

    Returns:
        the device, with its counts.

    Raises:
        EmulatorError: whatever is wrong with the kernel or the launch.
        KeyError: an argument that the kernel does not have.
    """
    unknown = set(arguments) - set(compiled.arguments)
    if unknown:
        raise KeyError(f"{compiled.name} has no argument {', '.join(sorted(unknown))}")
    device = Device(compiled.module, compiled.shared_size, seed, model)
    values: list[int | float] = []
    places: dict[str, int] = {}
    for name in compiled.arguments:
        given = arguments.get(name, 0)
        if isinstance(given, Tensor):
            places[name] = len(device.memory.buffers)
            same = AS_INTEGERS.get(given.dtype)  # what NumPy does not have
            raw = (given.detach() if same is None else given.detach().view(same)).numpy()
            off = offset if isinstance(offset, int) else offset.get(name, 0)
            values.append(device.memory.add(name, raw, name not in outputs, off))
        else:
            values.append(given)
    device.launch(grid, values, max_steps)
    for name in outputs:
        tensor, buffer = arguments[name], device.memory.buffers[places[name]]
        assert isinstance(tensor, Tensor)
        if tensor.numel():
            tensor.copy_(torch.from_numpy(buffer.data.copy()).view(tensor.dtype).reshape(tensor.shape))
    return device
