"""What the compiler made of a kernel: statistics of its machine code (SASS), held against a resource budget.

Without a GPU this is the evidence of speed that there is: registers, stack, shared memory, spills, matrix instructions,
width of global accesses, occupancy. Spills are those that `ptxas -v` reports as spill stores: local stores in the
listing also come from other sources, and a kernel that spills can report few registers.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_edge_kernels import KernelError, aot, config
from vae_edge_kernels.analysis.roofline import occupancy
from vae_edge_kernels.aot.worker import compile_spec, kernel_specs
from vae_edge_kernels.config import KernelSpec

#: Families of matrix instructions (floating point, int8, fp8): of a warp, of a warp group, of Blackwell's tensor cores.
MMA_FAMILIES = {
    "HMMA": ("HMMA", "HGMMA", "UTCHMMA"),
    "IMMA": ("IMMA", "IGMMA", "UTCIMMA"),
    "QMMA": ("QMMA", "QGMMA", "UTCQMMA"),
}
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_WIDTH_BITS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}


@dataclass(frozen=True)
class SassStats:
    """Statistics of one compiled kernel."""

    registers: int  #: of a thread
    stack_bytes: int  #: of a thread
    shared_bytes: int  #: of a program
    spill_store_bytes: int
    load_bits: dict[int, int]  #: global loads by width in bits
    store_bits: dict[int, int]  #: global stores by width in bits
    matrix: dict[str, int] = field(default_factory=dict)  #: matrix instructions by name
    occupancy: float = 1.0  #: fraction of a multiprocessor's warps that programs can fill
    code_bytes: int = 0
    loop: int = 0  #: instructions of the longest innermost loop with matrix instructions, 0 without one
    loop_matrix: int = 0  #: matrix instructions among them


@dataclass(frozen=True)
class ResourceBudget:
    """What a kernel may use."""

    registers: int  #: at most
    stack_bytes: int  #: at most
    shared_bytes: int  #: at most
    spill_store_bytes: int  #: at most
    access_bits: int  #: the widest global load must be at least this wide, and the widest store
    matrix: str = ""  #: the family of matrix instructions that it must have, see MMA_FAMILIES; none if empty
    occupancy: float = 0.0  #: at least
    loop: int = 0  #: at most this many instructions in its loop; not checked if 0
    store_bits: int | None = None  #: instead of access_bits, for stores


@dataclass(frozen=True)
class KernelReport:
    """One kernel on one architecture: its statistics, and what is over its budget (None if nothing is)."""

    kernel: str
    operator: str
    architecture: int
    warps: int
    code: SassStats
    fault: str | None


def collect_reports(
    architectures: Sequence[int],
    only: str = "*",
    networks: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    jobs: int | None = None,
) -> list[KernelReport]:
    """Compile the library's kernels, and those of whole networks, and report on each.

    Args:
        architectures: 87 is sm_87.
        only: pattern of kernels' names; those of a network end with its own.
        networks: JSON of networks by name.
        progress: called with a line when something is compiled.
        jobs: processes and threads at a time; the number of CPUs if None.

    Raises:
        KernelError: if something does not compile.
    """
    reports: list[KernelReport] = []
    texts = [(f"_{name}", text) for name, text in (networks or {}).items()]
    with tempfile.TemporaryDirectory(prefix="vae-edge-kernels-") as folder:
        for label, text in [*texts, ("", None)]:
            specs = (spec for architecture in architectures for spec in kernel_specs(architecture, text, label))
            if not any(fnmatch.fnmatchcase(spec.name, only) for spec in specs):
                continue

            out = Path(folder) / (label or "library")
            manifest = aot.compile_all(
                out, architectures, ptx=True, only=only, jobs=jobs, progress=progress, network=text, label=label
            )
            pairs = [(kernel, cubin) for kernel in manifest["kernels"] for cubin in kernel["cubins"]]
            with ThreadPoolExecutor(jobs or aot.cpu_count()) as pool:
                reports += pool.map(lambda pair, out=out: _report(out, *pair), pairs)

    if not reports:
        raise KernelError(f"No kernel's name fits {only!r}.")
    return sorted(reports, key=lambda report: (report.operator, report.kernel, report.architecture))


def inspect_spec(spec: KernelSpec, architecture: int) -> KernelReport:
    """Compile one kernel in this process, and report on it.

    Raises:
        KernelError: if the machine code cannot be read, or the kernel has no budget.
    """
    entry, cubin, ptx = compile_spec(spec, architecture)
    with tempfile.TemporaryDirectory(prefix="vae-edge-kernels-") as folder:
        path = Path(folder) / f"{spec.name}.cubin"
        path.write_bytes(cubin)
        path.with_suffix(".ptx").write_text(ptx, encoding="utf-8")
        return _report(Path(folder), entry, {**entry["cubin"], "file": path.name})


def _report(folder: Path, kernel: dict[str, Any], cubin: dict[str, Any]) -> KernelReport:
    """The report on one kernel and machine code of a manifest in `folder`."""
    name = kernel["name"]
    path, architecture = folder / cubin["file"], cubin["architecture"]
    code = read_stats(path.with_suffix(".ptx"), path, architecture, cubin["warps"], cubin["shared_bytes"])
    try:
        check_budget(name, code, load_budget(kernel["operator"], name))
        fault = None
    except KernelError as error:
        fault = str(error)
    return KernelReport(name, kernel["operator"], architecture, cubin["warps"], code, fault)


def read_stats(ptx: Path, cubin: Path, architecture: int, warps: int = 4, shared_bytes: int | None = None) -> SassStats:
    """Read a kernel's statistics: `ptx` is assembled once more for the spills, `cubin` is listed for the rest.

    Args:
        ptx: the kernel's PTX.
        cubin: its machine code.
        architecture: 87 is sm_87.
        warps: of a program.
        shared_bytes: of a program at launch; what the machine code itself says, if None.

    Raises:
        KernelError: if a tool of the Triton wheel is missing or fails, or says something that is not understood.
    """
    tools = tool_folder()
    listing = _run([str(tools / "cuobjdump"), "-sass", str(cubin)])
    usage = _run([str(tools / "cuobjdump"), "--dump-resource-usage", str(cubin)])
    figures = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    if figures is None:
        raise KernelError(f"cuobjdump says nothing of the resources of {cubin.name}; it printed: {usage.strip()[:200]}")

    shared = int(figures[3]) if shared_bytes is None else shared_bytes
    names = [name for family in MMA_FAMILIES.values() for name in family]
    counts = {name: len(re.findall(rf"\b{name}(?![A-Z])", listing)) for name in names}
    loop, loop_matrix = _longest_loop(listing, set(names))
    return SassStats(
        registers=int(figures[1]),
        stack_bytes=int(figures[2]),
        shared_bytes=shared,
        spill_store_bytes=_spill_store_bytes(ptx, architecture),
        load_bits=_access_widths(listing, "LDG"),
        store_bits=_access_widths(listing, "STG"),
        matrix={name: count for name, count in counts.items() if count},
        occupancy=occupancy(architecture, int(figures[1]), warps, shared),
        code_bytes=cubin.stat().st_size,
        loop=loop,
        loop_matrix=loop_matrix,
    )


def load_budget(operator: str, name: str) -> ResourceBudget:
    """The budget of a kernel: the first entry of the operator's file whose pattern fits the kernel's name.

    Raises:
        KernelError: if no entry fits.
    """
    entries = json.loads((config.FOLDER / f"{operator}.json").read_text(encoding="utf-8"))["budgets"]
    for entry in entries:
        if fnmatch.fnmatchcase(name, entry["kernels"]):
            return ResourceBudget(**{key: value for key, value in entry.items() if key != "kernels"})
    raise KernelError(f"Kernel {name} has no budget; add an entry to configs/{operator}.json.")


def check_budget(name: str, code: SassStats, budget: ResourceBudget) -> None:
    """Refuse a kernel that is over its budget.

    Raises:
        KernelError: names the kernel and every figure that is over (or, for widths, under) its budget.
    """
    faults = [
        f"{what} is {got}, at most {allowed} allowed"
        for what, got, allowed in (
            ("registers", code.registers, budget.registers),
            ("stack_bytes", code.stack_bytes, budget.stack_bytes),
            ("shared_bytes", code.shared_bytes, budget.shared_bytes),
            ("spill_store_bytes", code.spill_store_bytes, budget.spill_store_bytes),
            ("instructions in the loop", code.loop, budget.loop or code.loop),
        )
        if got > allowed
    ]

    stores = budget.access_bits if budget.store_bits is None else budget.store_bits
    for what, counts, bits in (("load", code.load_bits, budget.access_bits), ("store", code.store_bits, stores)):
        widest = max(counts, default=0)
        if widest < bits:
            faults.append(f"the widest global {what} is {widest} bits, at least {bits} expected")

    if budget.matrix and not any(name in code.matrix for name in MMA_FAMILIES[budget.matrix]):
        found = ", ".join(code.matrix) or "none"
        faults.append(f"matrix instructions are {found}, {' or '.join(MMA_FAMILIES[budget.matrix])} expected")
    if code.occupancy < budget.occupancy:
        faults.append(f"occupancy is {code.occupancy:.1%}, at least {budget.occupancy:.0%} expected")

    if faults:
        raise KernelError(
            f"Kernel {name} is over its budget: {'; '.join(faults)}. Mend the kernel, or raise the budget in configs/."
        )


def tool_folder() -> Path:
    """The folder of the NVIDIA tools that the Triton wheel carries."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _spill_store_bytes(ptx: Path, architecture: int) -> int:
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        command = [get_ptxas(architecture).path, "-v", f"--gpu-name={sm_arch_from_capability(architecture)}"]
        text = _run([*command, str(ptx), "-o", str(Path(folder) / "kernel.cubin")])
    spills = re.findall(r"(\d+) bytes spill stores", text)
    if not spills:
        raise KernelError(f"ptxas says nothing of spills for {ptx.name}; it printed: {text.strip()[:200]}")
    return sum(map(int, spills))


def _longest_loop(listing: str, matrix: set[str]) -> tuple[int, int]:
    """Instructions of the longest innermost loop that has matrix instructions, and how many of them are such.

    A loop goes from the target of a backward branch to the branch.
    """
    opcodes: list[str] = []
    loops: list[tuple[int, int]] = []
    for function in listing.split("Function :"):
        code = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(function)]
        start = len(opcodes)
        index_of = {address: start + i for i, (address, _) in enumerate(code)}
        for i, (address, text) in enumerate(code):
            opcode = _PREDICATE.sub("", text).split()[0].split(".")[0]
            opcodes.append(opcode)
            target = re.search(r"0x([0-9a-f]+)", text) if opcode == "BRA" else None
            if target and int(target[1], 16) < address and int(target[1], 16) in index_of:
                loops.append((index_of[int(target[1], 16)], start + i))

    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [opcodes[first : last + 1] for first, last in inner]
    counts = [(len(body), sum(opcode in matrix for opcode in body)) for body in bodies]
    return max((count for count in counts if count[1]), default=(0, 0))


def _access_widths(listing: str, instruction: str) -> dict[int, int]:
    """Count global accesses by width, those straight to shared memory (LDGSTS) among the loads; 32 bits without one."""
    counts: dict[int, int] = {}
    for suffixes in re.findall(rf"\b{instruction}(?:STS)?(?![A-Z])((?:\.\w+)*)", listing):
        width = next((_WIDTH_BITS[part] for part in suffixes.split(".") if part in _WIDTH_BITS), 32)
        counts[width] = counts.get(width, 0) + 1
    return counts


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise KernelError(f"{command[0]} cannot be run ({error}); reinstall Triton, whose wheel carries it.") from error
    if done.returncode != 0:
        raise KernelError(f"{Path(command[0]).name} failed with code {done.returncode}: {done.stderr.strip()[:500]}")
    return done.stdout + done.stderr
