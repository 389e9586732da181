"""Small PTX programs as text, run by the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.parser import parse

Array = np.ndarray[Any, Any]
WIDTHS = (16, 32, 64)


def program(body: Sequence[str], registers: Sequence[str], buffers: int, threads: int) -> str:
    """A kernel whose parameters are buffers: `%at<n>` is the address of buffer n, `%tid` the number of the thread.

    Args:
        body: statements without semicolons; a label ends with a colon.
        registers: declarations: "b32 %r<4>".
        buffers: how many parameters.
        threads: of the program.
    """
    params = ",\n".join(f"\t.param .u64 .ptr .global .align 1 run_param_{n}" for n in range(buffers))
    declared = [f".reg .{text}" for text in (*registers, f"b64 %at<{max(buffers, 1)}>", "b32 %tid")]
    loads = [f"ld.param.b64 %at{n}, [run_param_{n}]" for n in range(buffers)]
    statements = [*declared, *loads, "mov.u32 %tid, %tid.x", *body, "ret"]
    lines = "\n".join(f"\t{text}" if text.endswith(":") else f"\t{text};" for text in statements)
    return f"""//
.version 8.8
.target sm_87
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry run(
{params}
)
.reqntid {threads}
{{
{lines}
}}
"""


def element(target: str, buffer: int, size: int) -> list[str]:
    """Statements that make `target` the address of the thread's element of a buffer."""
    return [f"mul.wide.u32 {target}, %tid, {size}", f"add.s64 {target}, {target}, %at{buffer}"]


def execute(
    text: str, inputs: Sequence[Array], outputs: Sequence[Array], seed: int | None = None, shared_size: int = 4096
) -> list[Array]:
    """Run a program on buffers, first those that it reads; what it wrote into the others."""
    device = Device(parse(text), shared_size, seed, strict_loads=True)
    values = [device.memory.add(f"input {n}", data) for n, data in enumerate(inputs)]
    values += [device.memory.add(f"output {n}", data, defined=False) for n, data in enumerate(outputs)]
    device.launch((1, 1, 1), values)
    written = device.memory.buffers[len(inputs) :]
    for buffer in written:
        assert buffer.defined.all(), f"{buffer.name} was not written everywhere"
    return [buffer.data.view(like.dtype).reshape(like.shape) for buffer, like in zip(written, outputs, strict=True)]
