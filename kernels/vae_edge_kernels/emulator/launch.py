"""Compile a kernel ahead of time and run its PTX on the emulated device with PyTorch tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_edge_kernels.aot.worker import compile_spec
from vae_edge_kernels.config import KernelSpec
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.parser import Module, parse

AS_INTEGERS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}


@dataclass(frozen=True)
class Compiled:
    """A kernel's PTX and what a launch needs beside it.

    Attributes:
        name: of the kernel.
        ptx: the text.
        module: the text, parsed.
        arguments: names, in order.
        shared_size: bytes of shared memory.
    """

    name: str
    ptx: str
    module: Module
    arguments: tuple[str, ...]
    shared_size: int

    def changed(self, ptx: str) -> Compiled:
        """The same kernel with another text."""
        return Compiled(self.name, ptx, parse(ptx), self.arguments, self.shared_size)


def compile_kernel(spec: KernelSpec, architecture: int) -> Compiled:
    """Compile one kernel of the library for an architecture (87 is sm_87)."""
    entry, _, ptx = compile_spec(spec, architecture)
    names = tuple(argument["name"] for argument in entry["arguments"])
    return Compiled(spec.name, ptx, parse(ptx), names, entry["cubin"]["shared_bytes"])


def run(
    compiled: Compiled,
    grid: tuple[int, int, int],
    arguments: Mapping[str, Tensor | int | float],
    outputs: Collection[str] = (),
    *,
    seed: int | None = None,
    offset: int = 0,
    max_steps: int = 5_000_000,
) -> Device:
    """Launch a kernel; `outputs` among the tensors hold nothing before and get what it wrote.

    Args:
        compiled: the kernel.
        grid: programs along each axis.
        arguments: by name; those that are missing are 0.
        outputs: names of tensors of which the kernel must write what it reads.
        seed: of the order in which warps and programs make their steps; None: in lock step.
        offset: bytes by which every tensor is off an alignment of 256.
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
    device = Device(compiled.module, compiled.shared_size, seed)
    values: list[int | float] = []
    places: dict[str, int] = {}
    for name in compiled.arguments:
        given = arguments.get(name, 0)
        if isinstance(given, Tensor):
            places[name] = len(device.memory.buffers)
            same = AS_INTEGERS.get(given.dtype)  # what NumPy does not have
            raw = (given.detach() if same is None else given.detach().view(same)).numpy()
            values.append(device.memory.add(name, raw, name not in outputs, offset))
        else:
            values.append(given)
    device.launch(grid, values, max_steps)
    for name in outputs:
        tensor, buffer = arguments[name], device.memory.buffers[places[name]]
        assert isinstance(tensor, Tensor)
        tensor.copy_(torch.from_numpy(buffer.data.copy()).view(tensor.dtype).reshape(tensor.shape))
    return device
