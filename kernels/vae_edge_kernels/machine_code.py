"""What the compiler made of a kernel: registers, stack, shared memory, spills, matrix instructions, widths of access.

Without a GPU this is the evidence of speed that there is. Spills are judged by what `ptxas -v` says of spill stores:
local stores in the listing also come from other sources, and a spilling kernel can report few registers.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from vae_edge_kernels import configurations
from vae_edge_kernels.errors import KernelError
from vae_edge_kernels.occupancy import occupancy

MATRIX = {
    "HMMA": ("HMMA", "HGMMA", "UTCHMMA"),
    "IMMA": ("IMMA", "IGMMA", "UTCIMMA"),
    "QMMA": ("QMMA", "QGMMA", "UTCQMMA"),
}
"""Families of matrix instructions (floating point, int8, fp8), each by a warp, by a group of warps, and in Blackwell's
tensor cores."""
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_WIDTH_BITS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}


@dataclass(frozen=True)
class MachineCode:
    """Figures of one compiled kernel.

    `load_bits` and `store_bits` count its global accesses by width in bits, `matrix` its matrix instructions by name;
    `loop` is how many instructions are in its longest innermost loop around matrix instructions (0 without one), and
    `loop_matrix` how many of them are such; `occupancy` is the share of a multiprocessor's warps that it can fill.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    spill_store_bytes: int
    load_bits: dict[int, int]
    store_bits: dict[int, int]
    matrix: dict[str, int] = field(default_factory=dict)
    occupancy: float = 1.0
    code_bytes: int = 0
    loop: int = 0
    loop_matrix: int = 0


@dataclass(frozen=True)
class Budget:
    """What a kernel may cost at most, how wide its widest global load and store must be at least, which family of
    matrix instructions it must have (see MATRIX; none where empty), the least occupancy, and the most instructions in
    its loop (any number where 0). Where `store_bits` is given it is the least width of stores."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    spill_store_bytes: int
    access_bits: int
    matrix: str = ""
    occupancy: float = 0.0
    loop: int = 0
    store_bits: int | None = None


def inspect(ptx: Path, cubin: Path, architecture: int, warps: int = 4, shared_bytes: int | None = None) -> MachineCode:
    """Read a kernel's figures: `ptx` is assembled once more for the spills, `cubin` is listed for the rest.

    Args:
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
    names = [name for family in MATRIX.values() for name in family]
    counts = {name: len(re.findall(rf"\b{name}(?![A-Z])", listing)) for name in names}
    loop, loop_matrix = _loop(listing, set(names))
    return MachineCode(
        registers=int(figures[1]),
        stack_bytes=int(figures[2]),
        shared_bytes=shared,
        spill_store_bytes=_spill_store_bytes(ptx, architecture),
        load_bits=_widths(listing, "LDG"),
        store_bits=_widths(listing, "STG"),
        matrix={name: count for name, count in counts.items() if count},
        occupancy=occupancy(architecture, int(figures[1]), warps, shared),
        code_bytes=cubin.stat().st_size,
        loop=loop,
        loop_matrix=loop_matrix,
    )


def check(name: str, code: MachineCode, budget: Budget) -> None:
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
    if budget.matrix and not any(name in code.matrix for name in MATRIX[budget.matrix]):
        found = ", ".join(code.matrix) or "none"
        faults.append(f"matrix instructions are {found}, {' or '.join(MATRIX[budget.matrix])} expected")
    if code.occupancy < budget.occupancy:
        faults.append(f"occupancy is {code.occupancy:.1%}, at least {budget.occupancy:.0%} expected")
    if faults:
        raise KernelError(
            f"Kernel {name} is over its budget: {'; '.join(faults)}. Mend the kernel, or raise the budget in configs/."
        )


def budget(operator: str, name: str) -> Budget:
    """The budget of a kernel: the first entry of the operator's table whose pattern fits the kernel's name.

    Raises:
        KernelError: if no entry fits.
    """
    entries = json.loads((configurations.FOLDER / f"{operator}.json").read_text(encoding="utf-8"))["budgets"]
    for entry in entries:
        if fnmatch.fnmatchcase(name, entry["kernels"]):
            return Budget(**{key: value for key, value in entry.items() if key != "kernels"})
    raise KernelError(f"Kernel {name} has no budget; add an entry to configs/{operator}.json.")


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


def _loop(listing: str, matrix: set[str]) -> tuple[int, int]:
    """Instructions, and matrix instructions among them, of the longest innermost loop that has any of these: from a
    backward branch's target to the branch."""
    found: list[tuple[int, str]] = []
    loops: list[tuple[int, int]] = []
    for part in listing.split("Function :"):
        code = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(part)]
        start = len(found)
        place = {address: start + i for i, (address, _) in enumerate(code)}
        for i, (address, text) in enumerate(code):
            name = _PREDICATE.sub("", text).split()[0].split(".")[0]
            found.append((address, name))
            target = re.search(r"0x([0-9a-f]+)", text) if name == "BRA" else None
            if target and int(target[1], 16) < address and int(target[1], 16) in place:
                loops.append((place[int(target[1], 16)], start + i))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    counts = [(last + 1 - first, sum(name in matrix for _, name in found[first : last + 1])) for first, last in inner]
    return max((count for count in counts if count[1]), default=(0, 0))


def _widths(listing: str, instruction: str) -> dict[int, int]:
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
