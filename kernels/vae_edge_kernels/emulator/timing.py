"""A machine model: how long a launch would take, from what the emulator executes. Modelled, not measured.

Each warp issues its instructions in order, one a cycle, and each waits until its operands are there: a scoreboard with
the latencies below. Barriers and spinning on global memory wait for the other side's time. What a program cannot hide
shows in this way. What the whole GPU can do bounds it from below: warp instructions a cycle, wavefronts of shared
memory, sectors of the second-level cache, bytes of DRAM, products of matrices.

Latencies in cycles: Abdelkhalik, Arafa, Santhi and Badawy, "Demystifying the Nvidia Ampere Architecture through
Microbenchmarking and Instruction-level Analysis" (2022), for an A100: arithmetic 4, shared memory 23 (load) and 19
(store), first-level cache 33, second-level cache 200, DRAM 290. Products: Sun et al., "Dissecting Tensor Cores via
Microbenchmarks" (2022): m16n8k16 takes 25 cycles on an A100. Where no figure was found it is an assumption, and says
so.

The model is of PTX: the assembler may issue fewer instructions, or more. Conflicts between the warps of one scheduler
count in the bounds alone; a program has its share of the first-level cache alone; launch overhead is not included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.analysis.roofline import DEVICES
from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.counting import SECTOR_BYTES
from vae_edge_kernels.emulator.operands import registers_in
from vae_edge_kernels.emulator.parser import Instruction

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Device

ARITHMETIC, SPECIAL_FUNCTION = 4, 18  # the latter: an assumption
SHARED_LOAD, SHARED_STORE = 23, 19
L1_HIT, L2_HIT, DRAM = 33, 200, 290
PRODUCT = 25
SHUFFLE = 23  # an assumption: it goes through the shared memory's crossbar
# Of tensor memory a register a cycle and the latency of shared memory; its products as long as those of warps: both
# are assumptions.
BARRIER = 20  # from the last warp's arrival; an assumption
SCHEDULERS = 4  # of a multiprocessor; each issues one warp instruction a cycle
L2_BYTES_PER_CYCLE = 64  # into one multiprocessor; an assumption
L1_PROGRAMS = 4  # that share a multiprocessor's first-level cache; an assumption
STORES = (
    "st.", "red.", "cp.", "stmatrix", "bra", "bar", "ret", "tcgen05.st", "tcgen05.mma", "tcgen05.commit",
    "tcgen05.alloc", "tcgen05.dealloc", "mbarrier.init", "mbarrier.inval", "mbarrier.arrive",
)  # fmt: skip
FUNCTIONS = ("ex2", "lg2", "sin", "cos", "rcp", "rsqrt", "sqrt", "tanh", "div")


@dataclass(frozen=True)
class MachineModel:
    """A GPU's figures.

    Attributes:
        name: as on the command line.
        architecture: 87 is sm_87.
        multiprocessors: their number.
        clock_hz: of the multiprocessors.
        bytes_per_s: of DRAM.
        fp16_macs_per_s: multiply-accumulates of the tensor cores, dense, in float16.
        int8_macs_per_s: the same in int8.
        l1_bytes: of a multiprocessor's first-level cache and shared memory together.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock_hz: float
    l1_bytes: int
    bytes_per_s: float
    fp16_macs_per_s: float
    int8_macs_per_s: float

    def product_cycles(self, opcode: str) -> float:
        """Cycles for which one product of a warp occupies its scheduler's tensor core, at the published rate."""
        shape = opcode.rsplit("m16n8k", maxsplit=1)[-1].rsplit("m64n", maxsplit=1)[-1]
        if opcode.startswith("mma."):
            macs = 16 * 8 * int(shape.split(".")[0])
        else:  # wgmma: the group of four warps is counted as four instructions
            n, k = shape.split(".")[0].split("k")
            macs = 64 * int(n) * int(k) // 4
        eight_bits = ".s8." in opcode or ".u8." in opcode or ".e4m3." in opcode
        rate = self.int8_macs_per_s if eight_bits else self.fp16_macs_per_s
        rate *= 0.5 if ".tf32." in opcode else 1.0
        return macs / (rate / self.multiprocessors / self.clock_hz / SCHEDULERS)

    def tensor_cycles(self, kind: str, macs: int) -> float:
        """Cycles for which a product of tensor memory occupies its multiprocessor, at the published rate."""
        rate = self.int8_macs_per_s if kind == "f8f6f4" else self.fp16_macs_per_s
        rate *= 0.5 if kind == "tf32" else 1.0
        return macs / (rate / self.multiprocessors / self.clock_hz)


# Multiprocessors and clock; the rest is the roofline's, with its sources. Jetson AGX Orin Series technical brief: 2048
# CUDA cores at 1.3 GHz. Jetson Thor (T5000) datasheet: 2560 at 1.575 GHz. H100 white paper: 132 multiprocessors; 1.83
# GHz is the clock at which they give the datasheet's rates. Data caches: CUDA Programming Guide, "Compute
# Capabilities".
MULTIPROCESSORS = {"Orin": (16, 1.3e9, 192 << 10), "Thor": (20, 1.575e9, 256 << 10), "H100": (132, 1.83e9, 256 << 10)}
MODELS = {
    each.name.lower(): MachineModel(
        each.name.lower(),
        each.architecture,
        *MULTIPROCESSORS[each.name],
        each.bytes_per_s,
        each.fp16_macs_per_s,
        each.int8_macs_per_s,
    )
    for each in DEVICES
}


class Scoreboard:
    """When each warp of a program issues its next instruction, and when its registers are there. In cycles.

    Attributes:
        now: by warp.
    """

    def __init__(self, warps: int, registers: int) -> None:
        self.now = np.zeros(warps)
        self.ready = np.zeros((registers, warps))
        self.copied = np.zeros(warps)  # when the asynchronous copies so far have arrived
        self.multiplied = 0.0  # when the products of tensor memory so far are made

    def issue(self, cost: Cost, warps: Array) -> None:
        """Warps issue an instruction: they wait for its operands."""
        start = self.now[warps]
        if len(cost.reads):
            start = np.maximum(start, self.ready[cost.reads[:, None], warps].max(0))
        self.now[warps] = start + cost.issue
        if len(cost.writes):
            self.ready[cost.writes[:, None], warps] = start + cost.latency

    def delay(self, cost: Cost, warps: Array, latency: float, busy: Array | float) -> None:
        """What memory has added to an instruction just issued: the load's latency, and cycles of the pipeline."""
        start = self.now[warps] - cost.issue
        self.now[warps] += np.maximum(busy, 1) - 1
        if len(cost.writes):
            self.ready[cost.writes[:, None], warps] = start + latency + busy

    def multiply(self, warp: int, cycles: float) -> None:
        """A warp has issued a product of tensor memory: it follows those before it."""
        self.multiplied = max(self.multiplied, float(self.now[warp])) + cycles

    def products_end(self, warp: int) -> float:
        """When what a warp commits now has ended."""
        return max(self.multiplied, float(self.now[warp])) + PRODUCT

    def open_barrier(self) -> None:
        """All warps go on when the last one has come."""
        self.now[:] = self.now.max() + BARRIER


@dataclass(frozen=True)
class Cost:
    """What an instruction costs by itself: registers that it reads and writes, by number, and cycles."""

    reads: Array
    writes: Array
    issue: float
    latency: float


def cost_of(instruction: Instruction, registers: dict[str, int], model: MachineModel, folded: bool) -> Cost:
    """The cost of an instruction; `registers` are numbered by name; `folded` is what `folding` says of it."""
    opcode, operands = instruction.opcode, instruction.operands
    results = 0 if opcode.startswith(STORES) else 2 if opcode.startswith("tcgen05.ld.red") else 1
    writes = [name for operand in operands[:results] for name in registers_in(operand) if name in registers]
    reads = [name for operand in operands[results:] for name in registers_in(operand)]
    if instruction.guard is not None:
        reads.append(instruction.guard)
    numbers = [registers[name] for name in reads if name in registers]
    issue, latency = 1.0, float(ARITHMETIC)
    if opcode.startswith(("mma.", "wgmma.mma_async")):
        issue, latency = 1.0, PRODUCT + model.product_cycles(opcode)
        numbers += [registers[name] for name in writes]
    elif opcode.startswith(("shfl", "redux")):
        latency = SHUFFLE
    elif opcode.startswith(("tcgen05.ld", "tcgen05.st")):
        issue = float(len(writes) or len(registers_in(operands[-1])))
        latency = SHARED_LOAD + issue
    elif opcode.split(".")[0] in FUNCTIONS:
        issue, latency = 2.0, SPECIAL_FUNCTION
    if folded:
        issue, latency = 0.0, 0.0
    return Cost(np.array(numbers, np.int64), np.array([registers[name] for name in writes], np.int64), issue, latency)


@dataclass(frozen=True)
class Estimate:
    """Modelled microseconds of a launch on one GPU.

    Attributes:
        bounds: by what limits: "latency" (the slowest program, with what it cannot hide, times the rounds that the
            grid takes), "issue", "shared memory", "L2", "DRAM", "tensor cores".
    """

    bounds: dict[str, float]

    @property
    def us(self) -> float:
        """The largest bound."""
        return max(self.bounds.values())

    @property
    def limit(self) -> str:
        """What limits."""
        return max(self.bounds, key=lambda name: self.bounds[name])


def estimate(device: Device, resident: int = 1) -> Estimate:
    """The time of the launches that a device with a model has run.

    Args:
        device: after its launches.
        resident: programs that a multiprocessor holds at a time (`analysis.roofline.occupancy`).
    """
    model = device.model
    assert model is not None
    programs = device.grid[0] * device.grid[1] * device.grid[2]
    used = min(model.multiprocessors, programs)
    rounds = -(-programs // (model.multiprocessors * resident))
    cycles = {"latency": device.longest * rounds}
    cycles |= {name: value / used for name, value in _throughput_cycles(device, model).items()}
    bounds = {name: 1e6 * value / model.clock_hz for name, value in cycles.items()}
    return Estimate({**bounds, "DRAM": 1e6 * device.touched_bytes() / model.bytes_per_s})


def estimate_full(device: Device, resident: int) -> Estimate:
    """The time of a program where there are so many that every multiprocessor is always full; without DRAM.

    It is the reciprocal of how many programs the GPU ends a second, not how long one of them takes.

    Args:
        device, resident: as of `estimate`.
    """
    model = device.model
    assert model is not None
    programs = device.grid[0] * device.grid[1] * device.grid[2]
    cycles = {"latency": device.longest / resident}
    cycles |= {name: value / programs for name, value in _throughput_cycles(device, model).items()}
    return Estimate({name: 1e6 * value / (model.multiprocessors * model.clock_hz) for name, value in cycles.items()})


def _throughput_cycles(device: Device, model: MachineModel) -> dict[str, float]:
    """Cycles that one multiprocessor would take for all programs, by what limits its throughput."""
    totals = device.counts.totals
    issued = totals["instructions"] - totals["folded"]
    product_cycles = sum(
        count * model.product_cycles(opcode)
        for opcode, count in device.counts.opcodes.items()
        if opcode.startswith(("mma.", "wgmma.mma_async"))
    )
    sectors = totals["sectors fetched"] + totals["sectors written"]
    tensor_cycles = sum(model.tensor_cycles(kind, macs) for kind, macs in device.counts.macs.items())
    return {
        "issue": issued / SCHEDULERS,
        "L1 and shared memory": totals["wavefronts"] + totals["L1 wavefronts"],
        "L2": sectors * SECTOR_BYTES / L2_BYTES_PER_CYCLE,
        "tensor cores": product_cycles / SCHEDULERS + tensor_cycles,
    }
