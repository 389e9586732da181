"""Triton's launches `kernel[grid](…)` on the emulated device.

A launch is compiled as Triton would for its arguments: pointers and integers that are multiples of 16 are promised to
be, and an integer 1 is a constant. Every tensor is copied to the device and back with its whole storage, so that an
access beside it is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction
from vae_edge_kernels import KernelError
from vae_edge_kernels.config import KernelSpec
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.timing import MachineModel

from vae_edge.emulation.launch import Compiled, compile_kernel

OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
    torch.bool: "*i1",
}  # fmt: skip
IGNORED = ("launch_cooperative_grid",)  # all programs are there at once
GRID_LIMITS = (2**31 - 1, 65535, 65535)  # CUDA's


class EmulatedDriver:
    """What Triton and the kernels ask of a driver before a launch."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """The emulated GPU."""
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie."""
        return torch.device("cpu")


@dataclass(frozen=True)
class Launch:
    """A launch that was emulated.

    Attributes:
        compiled: the kernel.
        grid: programs along each axis.
        warps: of a program.
        device: with its counts, and the modelled cycles.
    """

    compiled: Compiled
    grid: tuple[int, int, int]
    warps: int
    device: Device


@dataclass
class Emulation:
    """How launches are emulated, and those that were.

    Attributes:
        architecture: 87 is sm_87.
        seed: of the order in which warps and programs make their steps; None: in lock step.
        model: of the time, or None.
        timeout: seconds after which a launch is given up, or None.
    """

    architecture: int
    seed: int | None = None
    model: MachineModel | None = None
    timeout: float | None = None
    launches: list[Launch] = field(default_factory=list)

    def launch(self, function: Any, args: tuple[Any, ...], grid: Any, kwargs: dict[str, Any]) -> None:
        """Compile a kernel for these arguments, and run it.

        Raises:
            KernelError: an argument or an option that is not known, or whatever the emulator finds.
        """
        options = {name: kwargs.pop(name, default) for name, default in OPTIONS.items()}
        for name in IGNORED:
            kwargs.pop(name, None)
        if (ctas := kwargs.pop("num_ctas", 1)) != 1:
            raise KernelError(f"{function.__name__}: num_ctas={ctas} is not emulated: clusters are not")
        values = _arguments(function, args, kwargs)
        constants, types, aligned = {}, {}, []
        for param in function.params:
            value, free = values[param.name], param.do_not_specialize
            if param.is_constexpr or value is None or (type(value) is int and value == 1 and not free):
                constants[param.name] = value
                continue
            types[param.name] = _type_of(function.__name__, param.name, value)
            if isinstance(value, Tensor):
                aligned += [param.name] if value.data_ptr() % 16 == 0 else []
            elif type(value) is int and not free:
                aligned += [param.name] if value % 16 == 0 else []
        key = tuple((name, values[name]) for name in constants)
        compiled = _compile(
            function, tuple(types.items()), key, tuple(aligned), tuple(options.values()), self.architecture
        )
        shape = _grid(function.__name__, grid({**values, **options}) if callable(grid) else grid)
        device = Device(compiled.module, compiled.shared_size, self.seed, self.model)
        self.launches.append(Launch(compiled, shape, options["num_warps"], device))
        arguments = {name: values[name] for name in types}
        run_on_storages(device, compiled.arguments, shape, arguments, self.timeout)


def _arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, as Python would bind them."""
    kernel, names = function.__name__, function.arg_names
    if len(args) > len(names):
        raise KernelError(f"{kernel}: {len(args)} arguments came, where {len(names)} are expected: {', '.join(names)}")
    values: dict[str, Any] = dict(zip(names, args, strict=False))
    unknown = sorted(set(kwargs) - set(names))
    if unknown:
        raise KernelError(
            f"{kernel} has no parameter {', '.join(unknown)}, and the emulator knows no such launch option; the "
            f"parameters are {', '.join(names)}, the options {', '.join((*OPTIONS, 'num_ctas'))}"
        )
    twice = sorted(set(kwargs) & set(values))
    if twice:
        raise KernelError(f"{kernel}: {', '.join(twice)} came twice, by position and by name")
    values.update(kwargs)
    missing = []
    for param in function.params:
        if param.name not in values and param.has_default:
            values[param.name] = param.default
        elif param.name not in values:
            missing.append(param.name)
    if missing:
        raise KernelError(f"{kernel}: missing arguments: {', '.join(missing)}")
    return values


def _grid(kernel: str, given: Any) -> tuple[int, int, int]:
    """The number of programs along each axis."""
    sides = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    right = 1 <= len(sides) <= 3 and all(isinstance(side, int) and side >= 0 for side in sides)
    if not right or any(side > limit for side, limit in zip(sides, GRID_LIMITS, strict=False)):
        limits = ", ".join(f"{limit:,}" for limit in GRID_LIMITS)
        raise KernelError(f"{kernel}: the grid is {given!r}: expected one to three integers from 0 to {limits}")
    x, y, z = (*sides, 1, 1)[:3]
    return x, y, z


def _type_of(kernel: str, name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        if value.dtype not in TYPES or value.device.type != "cpu":
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)
            raise KernelError(
                f"{kernel}: {name} is a tensor of {value.dtype} on {value.device}, which is not emulated: expected a "
                f"tensor on the CPU, of {dtypes}"
            )
        return TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise KernelError(f"{kernel}: {name} has the type {type(value).__name__}: expected a tensor or a number")


@cache
def _compile(
    function: Any, types: Any, constants: Any, aligned: tuple[str, ...], options: Any, architecture: int
) -> Compiled:
    spec = KernelSpec(function.fn.__name__, "", function, dict(types), dict(constants), aligned, *options)
    return compile_kernel(spec, architecture)


def run_on_storages(
    device: Device,
    names: tuple[str, ...],
    grid: tuple[int, int, int],
    arguments: Mapping[str, Any],
    timeout: float | None = None,
) -> None:
    """Launch a kernel on tensors, whose storages hold afterwards what it wrote; also where it failed on its way."""
    storages: dict[int, tuple[Any, int, int]] = {}
    given: list[Any] = []
    for name in names:
        value = arguments.get(name, 0)
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            start = storage.data_ptr()
            if start not in storages:
                raw = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
                number = len(device.memory.buffers)
                storages[start] = raw, device.memory.add(name, raw, offset=start % 256), number
            value = storages[start][1] + value.data_ptr() - start
        given.append(value)
    try:
        device.launch(grid, given, timeout=timeout)
    finally:
        for raw, _, number in storages.values():
            np.copyto(raw, device.memory.buffers[number].data)


@contextmanager
def emulated(emulation: Emulation) -> Iterator[Emulation]:
    """Every launch of Triton is emulated until the block ends."""
    before, before_autotuner = JITFunction.run, Autotuner.run
    active = driver._active

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        if warmup:
            raise KernelError(f"{self.__name__}: `warmup` is not emulated; launch the kernel")
        emulation.launch(self, args, grid, kwargs)

    def run_first_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing is measured here: the first configuration stands for all."""
        first = self.configs[0]
        if first.pre_hook is not None:
            first.pre_hook({**dict(zip(self.arg_names, args, strict=False)), **kwargs, **first.all_kwargs()})
        return self.fn.run(*args, **{**kwargs, **first.all_kwargs()})

    driver.set_active(EmulatedDriver(emulation.architecture))
    JITFunction.run = run
    Autotuner.run = run_first_config
    try:
        yield emulation
    finally:
        JITFunction.run, Autotuner.run = before, before_autotuner
        driver.set_active(active)
