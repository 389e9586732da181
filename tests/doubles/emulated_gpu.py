"""A GPU in place of the driver's double: what it launches is executed, by the emulator, on the double's device memory.

The driver gets machine code (cubin), and the emulator executes PTX. So whoever compiles keeps the PTX:

    with keep_ptx(folder):
        ...                                  # whatever compiles by `vae_edge_kernels.aot`, such as a network file

puts it into `folder`, under the SHA-256 of its machine code. Neither a network file nor a library has it. In the
process that has the double,

    gpu = EmulatedGpu(folder, open_cuda_double("libcuda.so.1"))

executes each launch, in its stream's order and at each launch of a graph: with the grid, the shared memory and the
arguments that the driver was given, on its allocations, whose bounds and unwritten bytes are checked. What the emulator
finds wrong fails the context (CUDA's error 700 or 719), and the sentence is among the double's faults.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from vae_edge_kernels import aot
from vae_edge_kernels.emulator.arithmetic import DTYPES
from vae_edge_kernels.emulator.errors import EmulatorError, MemoryFault
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.memory import Buffer
from vae_edge_kernels.emulator.parser import parse

from doubles.cuda_library import DeviceMemory, Launch

LaunchFunction = ctypes.CFUNCTYPE(None, ctypes.POINTER(Launch))
LINES = "ptx.json"  # what is in a folder of PTX
OLDEST_TRITON = (3, 9)
ILLEGAL_ADDRESS, LAUNCH_FAILED = 700, 719  # of CUDA
APART = 1 << 40  # bytes between the allocations on the emulated device
SECTION_WITHOUT_BYTES = 8  # SHT_NOBITS of ELF


# ---- Where the kernels are compiled ---------------------------------------------------------------------------------


def why_not() -> str:
    """Why nothing can be compiled for the emulated GPU here; "" if it can."""
    if find_spec("triton") is None:
        return "needs Triton, whose PTX the emulator executes"
    version = metadata.version("triton")
    parts = tuple(int(part) for part in version.split(".")[:2])
    return "" if parts >= OLDEST_TRITON else f"the emulator knows the PTX of Triton 3.9; this is Triton {version}"


@contextmanager
def keep_ptx(folder: Path) -> Iterator[None]:
    """Keep the PTX of all that `aot.compile_all` compiles meanwhile in this process."""
    compile_all = aot.compile_all

    def compile_and_keep(out: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        manifest = compile_all(out, *arguments, **{**options, "ptx": True})
        save_ptx(folder, Path(out), manifest)
        return manifest

    aot.compile_all = compile_and_keep
    try:
        yield
    finally:
        aot.compile_all = compile_all


def save_ptx(folder: Path, compiled: Path, manifest: dict[str, Any]) -> None:
    """Copy the PTX that `aot.compile_all` left in `compiled`, and the names of the kernels' arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = json.loads((folder / LINES).read_text()) if (folder / LINES).exists() else {}
    for kernel in manifest["kernels"]:
        for cubin in kernel["cubins"]:
            digest = cubin["sha256"]
            ptx = (compiled / cubin["file"]).with_suffix(".ptx").read_text(encoding="utf-8")
            (folder / f"{digest}.ptx").write_text(ptx, encoding="utf-8")
            types = {argument["name"]: argument["type"] for argument in kernel["arguments"]}
            lines[digest] = {"kernel": kernel["name"], "arguments": types}
    (folder / LINES).write_text(json.dumps(lines))


# ---- Where they are launched ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """One kernel, ready to run: its name, the types of its arguments, and the emulated device that has its PTX."""

    name: str
    arguments: dict[str, str]
    device: Device


class EmulatedGpu:
    """Executes what the driver's double launches, from now on.

    With a `seed` warps and programs make their steps in a random order, else in lock step.

    Attributes:
        launches: how many were executed, by (kernel, architecture of its code, programs along x, programs along y).
        max_programs: a launch of more programs along x is accepted and does nothing. A network file that is opened runs
            200 blank images, whose answers nobody reads, in launches of 1 to 64 programs.
    """

    def __init__(self, folder: Path, driver: ctypes.CDLL, seed: int | None = None) -> None:
        self.launches: Counter[tuple[str, int, int, int]] = Counter()
        self.max_programs = 1 << 31
        self._folder, self._driver, self._seed = folder, driver, seed
        self._lines: dict[str, dict[str, Any]] = json.loads((folder / LINES).read_text())
        self._codes: dict[tuple[str, int], Code] = {}
        self._lock = threading.Lock()
        self._callback = LaunchFunction(lambda launch: self.launch(launch.contents))
        _kept.append(self)  # the double has the callback's address
        driver.double_run_with(self._callback)

    def launch(self, launch: Launch) -> None:
        """Execute a launch; what is wrong fails the device, and is told by the double."""
        try:
            with self._lock:
                self._execute(launch)
        except MemoryFault as error:
            self._fail(ILLEGAL_ADDRESS, launch, error)
        except Exception as error:  # whatever it is must reach the test, and not end in a callback
            self._fail(LAUNCH_FAILED, launch, error)

    def _fail(self, code: int, launch: Launch, error: Exception) -> None:
        kind = "" if isinstance(error, EmulatorError) else f"{type(error).__name__}: "
        self._driver.double_add_fault(f"{launch.entry.decode()} failed. {kind}{error}".encode())
        self._driver.double_raise(code)

    def _execute(self, launch: Launch) -> None:
        code = self._code(launch)
        grid = (launch.grid[0], launch.grid[1], launch.grid[2])
        if grid[0] > self.max_programs:
            return
        device = code.device
        memory, values = device.memory, arguments(launch, device)
        buffers, starts = self._buffers()
        for number, (name, kind) in enumerate(code.arguments.items()):
            for buffer, start in zip(buffers, starts, strict=True):
                if kind.startswith("*") and start <= values[number] < start + len(buffer.data):
                    values[number] += buffer.base - start
                    buffer.name = f"{buffer.name} and {name}" if buffer.name in code.arguments else name
                    break
        memory.buffers[:], memory.bases[:] = buffers, [buffer.base for buffer in buffers]
        device.launch(grid, values)
        self.launches[code.name, launch.architecture, grid[0], grid[1]] += 1

    def _code(self, launch: Launch) -> Code:
        """The kernel of a launch.

        Raises:
            EmulatorError: its PTX is not there, or was not made for such a launch.
        """
        digest = hashlib.sha256(machine_code(launch.image)).hexdigest()
        if digest not in self._lines:
            raise EmulatorError(f"There is no PTX of the machine code {digest[:16]} in {self._folder}.")
        key = digest, launch.shared_bytes
        if key not in self._codes:
            module = parse((self._folder / f"{digest}.ptx").read_text(encoding="utf-8"))
            line, device = self._lines[digest], Device(module, launch.shared_bytes, self._seed)
            self._codes[key] = Code(line["kernel"], line["arguments"], device)
        code = self._codes[key]
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        if threads != code.device.threads or launch.block[0] != threads:
            raise EmulatorError(f"A launch has {threads} threads, where the PTX asks for {code.device.threads}.")
        return code

    def _buffers(self) -> tuple[list[Buffer], list[int]]:
        """The allocations that the device reaches, and their addresses.

        They are the double's memory itself, not copies. But they have other addresses on the emulated device, far from
        each other, so that an access beside one is never one of another.
        """
        buffers: list[Buffer] = []
        starts, found = [], DeviceMemory()
        while self._driver.double_memory_at(len(buffers), ctypes.byref(found)):
            data, written = bytes_at(found.address, found.bytes), bytes_at(found.written, found.bytes)
            base = (len(buffers) + 1) * APART
            buffers.append(Buffer(f"the allocation at {found.address:#x}", base, data, written.view(np.bool_)))
            starts.append(found.address)
        return buffers, starts


_kept: list[EmulatedGpu] = []


def bytes_at(address: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Memory of this process, as an array that may be written to."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def arguments(launch: Launch, device: Device) -> list[int | float]:
    """The values of a launch, of the types that the PTX says.

    Raises:
        EmulatorError: the machine code has other parameters than the PTX.
    """
    params = device.linked.params
    sizes = [launch.sizes[number] for number in range(launch.parameter_count)]
    if sizes != [DTYPES[kind].itemsize for _, kind in params]:
        raise EmulatorError(f"The machine code takes parameters of {sizes} bytes, and the PTX {params}.")
    raw = (launch.values[number].to_bytes(8, "little") for number in range(len(sizes)))
    return [np.frombuffer(value, DTYPES[kind])[0].item() for value, (_, kind) in zip(raw, params, strict=True)]


def machine_code(image: int) -> bytes:
    """Machine code in this process's memory, which has no length of its own: all that its ELF header reaches."""
    header = ctypes.string_at(image, 64)

    def number(data: bytes, offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    tables = [(number(header, 40, 8), number(header, 58, 2), number(header, 60, 2))]  # of sections
    tables.append((number(header, 32, 8), number(header, 54, 2), number(header, 56, 2)))  # of what is loaded
    end = max(start + size * count for start, size, count in tables)
    start, size, count = tables[0]
    for at in range(image + start, image + start + size * count, size):
        section = ctypes.string_at(at, size)
        if number(section, 4, 4) != SECTION_WITHOUT_BYTES:
            end = max(end, number(section, 24, 8) + number(section, 32, 8))
    return ctypes.string_at(image, end)
