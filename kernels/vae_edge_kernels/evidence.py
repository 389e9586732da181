"""Compile kernels for some architectures, read what the compiler made of them, and hold it against the budgets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vae_edge.environment import available_cpus
from vae_edge.errors import KernelError
from vae_edge_kernels import aot, machine_code
from vae_edge_kernels.aot_worker import compile_variant, wanted
from vae_edge_kernels.machine_code import MachineCode
from vae_edge_kernels.variants import Variant


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
        only: pattern of kernels' names; those of a network end with its own.
        networks: texts of plans by name.
        progress: called with a line when something is compiled.

    Raises:
        KernelError: if something does not compile.
    """
    findings: list[Finding] = []
    jobs = [(f"_{name}", text) for name, text in (networks or {}).items()]
    with tempfile.TemporaryDirectory(prefix="vae-edge-kernels-") as folder:
        for label, text in [*jobs, ("", None)]:
            if not any(fnmatchcase(kernel.name, only) for n in architectures for kernel in wanted(n, text, label)):
                continue
            out = Path(folder) / (label or "library")
            manifest = aot.compile_all(
                out, architectures, ptx=True, only=only, progress=progress, network=text, label=label
            )
            pairs = [(kernel, cubin) for kernel in manifest["kernels"] for cubin in kernel["cubins"]]
            with ThreadPoolExecutor(available_cpus()) as pool:
                findings += pool.map(lambda pair, out=out: _find(out, *pair), pairs)
    if not findings:
        raise KernelError(f"No kernel's name fits {only!r}.")
    return sorted(findings, key=lambda finding: (finding.operator, finding.kernel, finding.architecture))


def look(variant: Variant, architecture: int) -> Finding:
    """Compile one kernel, in this process, and say what became of it.

    Raises:
        KernelError: if the machine code cannot be read, or the kernel has no budget.
    """
    entry, cubin, ptx = compile_variant(variant, architecture)
    with tempfile.TemporaryDirectory(prefix="vae-edge-kernels-") as folder:
        path = Path(folder) / f"{variant.name}.cubin"
        path.write_bytes(cubin)
        path.with_suffix(".ptx").write_text(ptx, encoding="utf-8")
        return _find(Path(folder), entry, {**entry["cubin"], "file": path.name})


def _find(folder: Path, kernel: dict[str, Any], cubin: dict[str, Any]) -> Finding:
    name = kernel["name"]
    path, architecture = folder / cubin["file"], cubin["architecture"]
    code = machine_code.inspect(path.with_suffix(".ptx"), path, architecture, cubin["warps"], cubin["shared_bytes"])
    try:
        machine_code.check(name, code, machine_code.budget(kernel["operator"], name))
        fault = None
    except KernelError as error:
        fault = str(error)
    return Finding(name, kernel["operator"], architecture, cubin["warps"], code, fault)
