"""Compile kernels for some architectures, read what the compiler made of them, and hold it against the budgets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import KernelError
from vae_edge_kernels import aot, machine_code
from vae_edge_kernels.machine_code import MachineCode


@dataclass(frozen=True)
class Finding:
    """One kernel on one architecture: its figures, and what is wrong with them; None where nothing is."""

    kernel: str
    operator: str
    architecture: int
    warps: int
    code: MachineCode
    fault: str | None


def gather(
    architectures: Sequence[int],
    only: str = "*",
    networks: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """The findings of the library's kernels, and of whole networks.

    Args:
        architectures: 87 is sm_87.
        only: pattern of kernels' names; those of the networks are `network_NAME`.
        networks: texts of plans by name.
        progress: called with a line when something is compiled.

    Raises:
        KernelError: if something does not compile.
    """
    from fnmatch import fnmatchcase

    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="vae-edge-kernels-") as folder:
        jobs: list[tuple[str, dict[str, Any]]] = []
        for name, text in (networks or {}).items():
            if fnmatchcase(f"network_{name}", only):
                jobs.append((f"network_{name}", {"network": text}))
        if any(fnmatchcase(variant.name, only) for number in architectures for variant in _library(number)):
            jobs.append(("", {"only": only}))
        for name, options in jobs:
            out = Path(folder) / (name or "library")
            manifest = aot.compile_all(out, architectures, ptx=True, progress=progress, **options)
            for kernel in manifest["kernels"]:
                findings += [_find(out, kernel, cubin, name or kernel["name"]) for cubin in kernel["cubins"]]
    if not findings:
        raise KernelError(f"No kernel's name fits {only!r}.")
    return sorted(findings, key=lambda finding: (finding.operator, finding.kernel, finding.architecture))


def _library(architecture: int) -> list[Any]:
    from vae_edge_kernels import aot_worker

    return list(aot_worker.wanted(architecture, None))


def _find(folder: Path, kernel: dict[str, Any], cubin: dict[str, Any], name: str) -> Finding:
    path, architecture = folder / cubin["file"], cubin["architecture"]
    code = machine_code.inspect(path.with_suffix(".ptx"), path, architecture, cubin["warps"], cubin["shared_bytes"])
    try:
        machine_code.check(name, code, machine_code.budget(kernel["operator"], name))
        fault = None
    except KernelError as error:
        fault = str(error)
    return Finding(name, kernel["operator"], architecture, cubin["warps"], code, fault)
