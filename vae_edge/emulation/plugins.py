"""A plugin's kernel on the emulated device, launched as TensorRT launches it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.parser import parse

from vae_edge.engine.plugins.kernel_file import Code, Kernel, evaluate


def run_plugin(
    kernel: Kernel,
    code: Code,
    inputs: Sequence[Array],
    *,
    grid: tuple[int, int, int] | None = None,
    scalars: Sequence[int] | None = None,
    seed: int | None = None,
    max_steps: int = 50_000_000,
) -> dict[str, Array]:
    """Launch a kernel on addresses of its inputs, its scalars, and addresses of memory for outputs and scratch.

    The memory for outputs and scratch holds nothing before: what is read there must have been written.

    Args:
        kernel: of a node.
        code: of the kernel, with PTX.
        inputs: the node's.
        grid, scalars: None for those that the kernel file says.
        seed: of the order in which warps and programs make their steps; None: in lock step.
        max_steps: after which a deadlock is assumed.

    Returns:
        the outputs by name.

    Raises:
        EmulatorError: whatever is wrong with the kernel or the launch.
    """

    def dimension(number: int, axis: int) -> int:
        return int(inputs[number].shape[axis])

    device = Device(parse(code.ptx.decode()), code.shared_bytes, seed)
    values = [device.memory.add(f"input {number}", given) for number, given in enumerate(inputs)]
    values += [evaluate(each, dimension) for each in kernel.scalars] if scalars is None else list(scalars)
    places, made = [], [*kernel.outputs, *kernel.scratch]
    for buffer in made:
        shape = tuple(evaluate(side, dimension) for side in buffer.shape)
        places.append(len(device.memory.buffers))
        values.append(device.memory.add(buffer.name, np.zeros(shape, buffer.dtype), defined=False))
    sides = tuple(evaluate(side, dimension) for side in code.grid) if grid is None else grid
    device.launch(sides, values, max_steps)
    answers = {}
    for buffer, place in zip(kernel.outputs, places, strict=False):
        shape = tuple(evaluate(side, dimension) for side in buffer.shape)
        found = device.memory.buffers[place]
        assert found.defined.all(), f"{buffer.name} was not written everywhere"
        answers[buffer.name] = found.data.view(buffer.dtype).reshape(shape).copy()
    return answers
