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
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError
from vae_edge_kernels import KernelError
from vae_edge_kernels.emulator.errors import EmulatorError, PtxError
from vae_edge_kernels.emulator.timing import MachineModel

from vae_edge.emulation.triton_launches import Emulation, Launch, emulated

PREFIX = "check_"


@dataclass(frozen=True)
class Outcome:
    """What one check has shown.

    Attributes:
        name: of the check.
        fault: what is wrong, or None: what the emulator found, which values differ, or why the check did not run.
        differences: by name, the largest difference of a pair; infinite where one is not finite and the other is.
        launches: of kernels, in order.
        ran: False: it has failed itself, or has a kernel that cannot be compiled or that the emulator does not know.
    """

    name: str
    fault: str | None
    differences: dict[str, float]
    launches: list[Launch]
    ran: bool = True


def load_checks(path: str) -> dict[str, Callable[[], Any]]:
    """The checks of "file.py", or the one that "file.py::check_name" names.

    Raises:
        KernelError: there is no such file or check, or it cannot be imported.
    """
    file, _, chosen = path.partition("::")
    source = Path(file)
    if not source.exists():
        raise KernelError(f"there is no file {file}")
    if not source.is_file() or source.suffix != ".py":
        raise KernelError(f"{file} is no Python file: expected a file whose name ends in .py")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise KernelError("TRITON_INTERPRET=1 is set: nothing would be compiled; unset it")
    spec = importlib.util.spec_from_file_location(f"_checks_{source.stem}", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Triton looks for a kernel's globals there
    sys.path.insert(0, str(source.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise KernelError(f"{file} cannot be imported: {_describe(error, file)}") from error
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
    timeout: float | None = None,
) -> Outcome:
    """Run a check on the emulated GPU. Whatever it raises becomes its fault, so that the others run as well.

    Args:
        name: for messages.
        check: see the module.
        architecture: 87 is sm_87.
        seed: of the order in which warps and programs make their steps; None: in lock step.
        model: of the time, or None.
        rtol: relative tolerance; None for 0 if `atol` is given, else for `torch.testing.assert_close`'s.
        atol: absolute tolerance; None for 0 if `rtol` is given, else for `torch.testing.assert_close`'s.
        timeout: seconds after which a launch is given up; None: never.
    """
    if rtol is not None or atol is not None:
        rtol, atol = rtol or 0.0, atol or 0.0
    emulation = Emulation(architecture, seed, model, timeout)
    try:
        with emulated(emulation), _poisoned_memory():
            torch.manual_seed(0)
            pairs = list(_pairs(check()))
    except EmulatorError as error:
        return Outcome(name, str(error), {}, emulation.launches, not isinstance(error, PtxError))
    except (Exception, SystemExit) as error:
        return Outcome(name, _describe(error, check.__code__.co_filename), {}, emulation.launches, False)
    differences, faults = {}, []
    for label, got, expected in pairs:
        differences[label] = _largest_difference(got, expected)
        try:
            torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as error:
            said = " ".join(str(error).split()) + _unwritten(got, expected)
            faults.append((f"{label}: " if label else "") + said)
    if not emulation.launches:
        faults.append("it has launched no kernel")
    return Outcome(name, "; ".join(faults) or None, differences, emulation.launches)


def _describe(error: BaseException, file: str) -> str:
    """What went wrong, in one line, and where in a file."""
    if isinstance(error, CompilationError):
        return _compiler_error(error, file)
    if isinstance(error, KernelError):
        return str(error)
    said = " ".join(str(error).split()) or "no message"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({Path(file).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


def _compiler_error(error: CompilationError, file: str) -> str:
    """A kernel that Triton does not compile: the innermost function, its line, and the reason."""
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    cause = error.error_message or error.__cause__ or "no message"
    source, line = (error.src or "").split("\n"), getattr(error.node, "lineno", 1)  # of the function
    lines = Path(file).read_text(encoding="utf-8", errors="replace").split("\n")
    text = "\n".join(source).rstrip()
    start = next((at for at in range(len(lines)) if "\n".join(lines[at : at + len(source)]).startswith(text)), None)
    where = f"line {line} of {source[0].strip()}" if start is None else f"{Path(file).name}:{start + line}"
    statement = source[line - 1].strip() if line <= len(source) else ""
    return f"the kernel does not compile: {where}: {' '.join(str(cause).split())}: {statement}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"an object of type {type(value).__name__}"


def _pairs(returned: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor):
        returned = {"": returned}
    elif isinstance(returned, (list, tuple)):
        returned = {str(number): pair for number, pair in enumerate(returned)}
    if not isinstance(returned, dict) or not returned:
        raise KernelError(
            f"it returned {_kind(returned)}, where a pair of tensors is expected, or a list or dictionary of pairs: "
            "what was written, and what is right"
        )
    for label, pair in returned.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(p, Tensor) for p in pair):
            raise KernelError(
                f"it returned {_kind(pair)} for {label!r}, where a pair of tensors is expected: what was written, and "
                "what is right"
            )
        yield str(label), pair[0], pair[1]


def _largest_difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape or not got.numel():
        return 0.0 if got.shape == expected.shape else float("inf")
    apart = (got.double() - expected.double()).abs()
    apart[got.double() == expected.double()] = 0.0  # infinities
    apart[got.isnan() & expected.isnan()] = 0.0
    return float(apart.nan_to_num(nan=float("inf")).max())


def _unwritten(got: Tensor, expected: Tensor) -> str:
    """A sentence on values that are still those of `torch.empty`."""
    if got.shape != expected.shape or got.dtype in (torch.bool, torch.uint8, torch.int8):
        return ""
    fill, name = (got.isnan() & ~expected.isnan(), "NaN") if got.is_floating_point() else (
        (got != expected) & (got == torch.iinfo(got.dtype).max), "the largest integer")  # fmt: skip
    count = int(fill.sum())
    return f" {count} are {name}, with which torch.empty fills memory here: were they written?" if count else ""


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
