"""Checks of kernels that are written in Triton: a Python file whose functions launch them and give the right answers.

A check is a function without parameters whose name begins with `check_`. It launches kernels as on a GPU, on tensors on
the CPU, and returns what they wrote and what is right: a pair of tensors, or a list or dictionary of such pairs.

    def check_softmax():
        x = torch.randn(5, 100)
        y = torch.empty_like(x)
        softmax_kernel[(5,)](y, x, x.stride(0), y.stride(0), 100, BLOCK_SIZE=128)
        return y, torch.softmax(x, -1)

Memory that `torch.empty` gives is filled with NaN, or the largest integer, so that what is never written is seen.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vae_edge_kernels import KernelError
from vae_edge_kernels.emulator.errors import EmulatorError
from vae_edge_kernels.emulator.timing import MachineModel

from vae_edge.emulation.triton_launches import Emulation, Launch, emulated

PREFIX = "check_"


@dataclass(frozen=True)
class Outcome:
    """What one check has shown.

    Attributes:
        name: of the check.
        fault: what is wrong, or None: what the emulator found, or which values differ.
        differences: by name, the largest difference of a pair; infinite where one is not finite and the other is.
        launches: of kernels, in order.
    """

    name: str
    fault: str | None
    differences: dict[str, float]
    launches: list[Launch]


def load_checks(path: str) -> dict[str, Callable[[], Any]]:
    """The checks of "file.py", or the one that "file.py::check_name" names.

    Raises:
        KernelError: there is no such file or check, or it cannot be imported.
    """
    file, _, chosen = path.partition("::")
    source = Path(file)
    if not source.is_file() or source.suffix != ".py":
        raise KernelError(f"{file} is no Python file")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise KernelError("TRITON_INTERPRET=1 is set: nothing would be compiled; unset it")
    spec = importlib.util.spec_from_file_location(f"_checks_{source.stem}", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Triton looks for a kernel's globals there
    sys.path.insert(0, str(source.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise KernelError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(source.parent.resolve()))
    found: dict[str, Callable[[], Any]] = {
        name: function
        for name, function in vars(module).items()
        if name.startswith(PREFIX) and inspect.isfunction(function) and not inspect.signature(function).parameters
    }
    if chosen:
        if chosen not in found:
            raise KernelError(f"{file} has no check {chosen}; it has {', '.join(found) or 'none'}")
        return {chosen: found[chosen]}
    if not found:
        raise KernelError(
            f"{file} has no function whose name begins with {PREFIX} and that has no parameters: it launches kernels "
            "and returns what they wrote and what is right"
        )
    return found


def run_check(
    name: str,
    check: Callable[[], Any],
    architecture: int,
    *,
    seed: int | None = None,
    model: MachineModel | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Outcome:
    """Run a check on the emulated GPU.

    Args:
        name: for messages.
        check: see the module.
        architecture: 87 is sm_87.
        seed: of the order in which warps and programs make their steps; None: in lock step.
        model: of the time, or None.
        rtol: relative tolerance; None for `torch.testing.assert_close`'s.
        atol: absolute tolerance; None for `torch.testing.assert_close`'s.

    Raises:
        KernelError: the check returns something else than pairs of tensors, or fails itself.
    """
    emulation = Emulation(architecture, seed, model)
    try:
        with emulated(emulation), _poisoned_memory():
            torch.manual_seed(0)
            returned = check()
    except EmulatorError as error:
        return Outcome(name, str(error), {}, emulation.launches)
    except KernelError:
        raise
    except Exception as error:
        raise KernelError(f"{name} has failed: {type(error).__name__}: {error}") from error
    differences, faults = {}, []
    for label, got, expected in _pairs(name, returned):
        differences[label] = _largest_difference(got, expected)
        try:
            torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as error:
            faults.append((f"{label}: " if label else "") + " ".join(str(error).split()))
    if not emulation.launches:
        faults.append("it has launched no kernel")
    return Outcome(name, "; ".join(faults) or None, differences, emulation.launches)


def _pairs(name: str, returned: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor):
        returned = {"": returned}
    elif isinstance(returned, (list, tuple)):
        returned = {str(number): pair for number, pair in enumerate(returned)}
    if not isinstance(returned, dict) or not returned:
        raise KernelError(f"{name} returned a {type(returned).__name__}, where pairs of tensors are expected")
    for label, pair in returned.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(p, Tensor) for p in pair):
            raise KernelError(f"{name} returned for {label!r} no pair of tensors: what was written, and what is right")
        yield str(label), pair[0], pair[1]


def _largest_difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape or not got.numel():
        return 0.0 if got.shape == expected.shape else float("inf")
    apart = (got.double() - expected.double()).abs()
    apart[got.double() == expected.double()] = 0.0  # infinities
    apart[got.isnan() & expected.isnan()] = 0.0
    return float(apart.nan_to_num(nan=float("inf")).max())


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
