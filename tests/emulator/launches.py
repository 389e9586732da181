"""Triton's launches `kernel[grid](…)` on the emulated device: a pytest plugin for the cases of `tests/kernels`.

    EMULATED_ARCHITECTURE=87 python -m pytest -p emulator.launches tests/kernels/cases/conv_cases.py

A launch is compiled as Triton would for these arguments: pointers and integers that are multiples of 16 are promised
to be, and an integer 1 is a constant. Every tensor is copied to the device and back with its whole storage, so that an
access beside it is seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vae_edge_kernels.config import KernelSpec
from vae_edge_kernels.emulator.launch import Compiled, compile_kernel
from vae_edge_kernels.emulator.machine import Device

ARCHITECTURE = int(os.environ.get("EMULATED_ARCHITECTURE", "87"))
OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
IGNORED = ("launch_cooperative_grid",)  # all programs are there at once


class EmulatedDriver:
    """What Triton and the kernels ask of a driver before a launch."""

    def get_current_target(self) -> GPUTarget:
        """The emulated GPU."""
        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0


def launch(function: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
    """In place of `JITFunction.run`."""
    assert not warmup
    options = {name: kwargs.pop(name, default) for name, default in OPTIONS.items()}
    for name in IGNORED:
        kwargs.pop(name, None)
    values: dict[str, Any] = {**dict(zip(function.arg_names, args, strict=False)), **kwargs}
    for param in function.params:
        if param.name not in values:
            values[param.name] = param.default
    constants, types, aligned = {}, {}, []
    for param in function.params:
        value = values[param.name]
        free = param.do_not_specialize
        if param.is_constexpr or (type(value) is int and value == 1 and not free):
            constants[param.name] = value
        elif isinstance(value, Tensor):
            types[param.name] = TYPES[value.dtype]
            aligned += [param.name] if value.data_ptr() % 16 == 0 else []
        elif isinstance(value, bool):
            types[param.name] = "i1"
        elif isinstance(value, int):
            types[param.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [param.name] if value % 16 == 0 and not free else []
        else:
            types[param.name] = "fp32"
    key = tuple((name, values[name]) for name in constants)
    compiled = _compiled(function, tuple(types.items()), key, tuple(aligned), tuple(options.values()))
    shape = grid({**values, **options}) if callable(grid) else grid
    run_on_storages(compiled, (*shape, 1, 1)[:3], {name: values[name] for name in types})


@cache
def _compiled(function: Any, types: Any, constants: Any, aligned: tuple[str, ...], options: Any) -> Compiled:
    spec = KernelSpec(function.fn.__name__, "", function, dict(types), dict(constants), aligned, *options)
    return compile_kernel(spec, ARCHITECTURE)


def run_on_storages(compiled: Compiled, grid: tuple[int, int, int], arguments: Mapping[str, Any]) -> Device:
    """Launch a kernel on tensors, whose storages hold afterwards what it wrote."""
    device = Device(compiled.module, compiled.shared_size)
    storages: dict[int, tuple[Any, int, int]] = {}
    given: list[Any] = []
    for name in compiled.arguments:
        value = arguments.get(name, 0)
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            start = storage.data_ptr()
            if start not in storages:
                raw = _bytes_of(storage)
                number = len(device.memory.buffers)
                storages[start] = raw, device.memory.add(name, raw, offset=start % 256), number
            value = storages[start][1] + value.data_ptr() - start
        given.append(value)
    device.launch(grid, given)
    for raw, _, number in storages.values():
        raw[:] = device.memory.buffers[number].data
    return device


def _bytes_of(storage: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


def pytest_configure(config: object) -> None:
    """Called by pytest: from now on launches are emulated."""
    del config
    driver.set_active(EmulatedDriver())  # type: ignore[arg-type]
    run: Callable[..., None] = launch
    JITFunction.run = run  # type: ignore[assignment]
