"""The emulated device: programs (CTAs) of warps that run a PTX entry instruction by instruction.

Registers are NumPy arrays with one element a thread. Each thread has a program counter; a step takes the warps whose
threads wait at the same, lowest instruction and executes it for all of them at once. With a seed the warps and
programs that make the next step are chosen at random; with a machine model the program whose modelled time is the
least. Functions are inlined at every call.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vae_edge_kernels.emulator.arithmetic import DTYPES, Array
from vae_edge_kernels.emulator.clocks import Clocks
from vae_edge_kernels.emulator.counting import NEVER, SECTOR_BYTES, Counts, wavefronts
from vae_edge_kernels.emulator.errors import Deadlock, PtxError
from vae_edge_kernels.emulator.folding import folded
from vae_edge_kernels.emulator.handlers import compile_instruction
from vae_edge_kernels.emulator.linking import link
from vae_edge_kernels.emulator.mbarriers import Barrier, Commit
from vae_edge_kernels.emulator.memory import GlobalMemory, LocalMemory, SharedMemory
from vae_edge_kernels.emulator.operands import UNSIGNED, Operands, place_of, registers_in
from vae_edge_kernels.emulator.ordering import Agent
from vae_edge_kernels.emulator.parser import Module
from vae_edge_kernels.emulator.tensor_handlers import check_loaded
from vae_edge_kernels.emulator.tensor_memory import TensorMemory
from vae_edge_kernels.emulator.timing import DRAM, L1_HIT, L1_PROGRAMS, L2_HIT, Cost, MachineModel, Scoreboard, cost_of
from vae_edge_kernels.emulator.warps import LANES

GROUP = 4  # warps of a `wgmma`
STEPS = 64  # of a program in a row at most, so that choosing the next one costs little; one that spins takes one turn


@dataclass
class Copies:
    """Asynchronous copies of a warp's threads that were not waited for."""

    open: list[tuple[Array, Array]] = field(default_factory=list)  # bytes of shared memory, and their values
    groups: list[list[tuple[Array, Array]]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)  # of the groups, in modelled cycles


class Program:
    """One program: its registers, shared memory and the state of its threads."""

    def __init__(self, device: Device, index: int, number: tuple[int, int, int]) -> None:
        self.device, self.index, self.number = device, index, number
        count, warps = device.threads, device.threads // LANES
        self.registers = {name: np.zeros(count, UNSIGNED[bits]) for name, bits in device.linked.registers.items()}
        self.params: dict[tuple[str, int], Array] = {}  # of inlined calls, by name and bytes
        self.clocks = Clocks(warps, device.programs)
        self.shared = SharedMemory(device.shared_size, self.clocks, asynchronous=device.asynchronous)
        self.shared.disagreements = device.disagreements
        self.local = LocalMemory(count, device.linked.local_size)
        self.carry = np.zeros(count, bool)
        self.pc = np.zeros(count, np.int64)
        self.done = np.zeros(count, bool)
        self.waiting = np.zeros(warps, bool)  # warps at a barrier
        self.warp = np.repeat(np.arange(warps), LANES)
        self.copies = [Copies() for _ in range(warps)]
        self.products: list[tuple[Array, Array]] = []  # what `wgmma` in flight reads: bytes, and their values
        self.tensor: TensorMemory | None = None  # from the first allocation on
        self.loading: dict[int, frozenset[str]] = {}  # registers of each warp that loads in flight write
        self.issued: list[dict[int, int]] = [{} for _ in range(warps)]  # of products without commit: thread, first time
        self.barriers: dict[int, Barrier] = {}  # `mbarrier`, by address in shared memory
        self.commits: deque[Commit] = deque()  # which have not arrived
        self.polls = np.zeros(warps, np.int64)  # of each warp at an mbarrier, in vain since something arrived
        self.board = None if device.model is None else Scoreboard(warps, len(device.linked.registers))
        self.cached: dict[int, Array] = {}  # of each buffer's sectors: `fetched` at their last use
        self.fetched = 0  # sectors that the first-level cache did not have

    @property
    def finished(self) -> bool:
        return bool(self.done.all())

    @property
    def now(self) -> float:
        """Modelled cycles of its slowest warp so far; 0 without a model."""
        return 0.0 if self.board is None else float(self.board.now.max())

    def agent(self, mask: Array) -> Agent:
        """Who the threads of a mask are, for accesses to global memory."""
        return Agent(self.index, self.clocks.time, self.warp[mask], self.clocks.known, self.clocks.seen)

    def step(self) -> None:
        """One instruction of some warps."""
        warps = len(self.waiting)
        alive = ~self.done.reshape(warps, LANES)
        runnable = np.flatnonzero(alive.any(1) & ~self.waiting)
        if not len(runnable):
            self.open_barrier()
            return
        rng = self.device.rng
        if rng is not None:
            chosen = rng.choice(runnable, size=rng.integers(1, len(runnable) + 1), replace=False)
        else:  # who waits at an mbarrier comes last
            chosen = runnable[self.polls[runnable] == self.polls[runnable].min()]
        pcs = np.where(alive, self.pc.reshape(warps, LANES), np.iinfo(np.int64).max).min(1)
        pc = int(pcs[chosen].min())
        if self.device.of_groups[pc]:
            chosen = self._whole_groups(pcs, pc, runnable)
            pc = int(pcs[chosen].min())
        selected = np.zeros(warps, bool)
        selected[chosen[pcs[chosen] == pc]] = True
        mask = np.repeat(selected, LANES) & (self.pc == pc) & ~self.done
        self.device.execute(self, pc, mask)

    def _whole_groups(self, pcs: Array, pc: int, runnable: Array) -> Array:
        """The warps of groups of four that have all come to instruction `pc`; if there are none, those on their way."""
        here = np.zeros(len(pcs), bool)
        here[runnable] = pcs[runnable] == pc
        complete = np.repeat(here.reshape(-1, GROUP).all(1), GROUP)
        if complete.any():
            return np.flatnonzero(complete)
        late = [warp for warp in runnable if not self.device.of_groups[int(pcs[warp])]]
        if not late:
            raise Deadlock("Groups of four warps wait for warps that cannot go on.")
        return np.array(late)

    def open_barrier(self, source: str = "") -> None:
        """All living warps wait: the barrier opens."""
        if not self.waiting.any():
            raise Deadlock("No warp can go on.")
        self.waiting[:] = False
        self.polls[:] = 0
        self.clocks.barrier()
        self.device.counts.add("barriers", 1, source)
        if self.board is not None:
            self.board.open_barrier()


@dataclass
class Release:
    """What programs have published at an address: their times, by program, and when (in modelled cycles)."""

    times: Array
    at: float = 0.0


class Device:
    """A module that is ready to run, and the memory that it runs on.

    Attributes:
        memory: global memory.
        counts: what the launches have cost.
        model: of the time that they would take, or None.
        longest: modelled cycles of the slowest program.
        strict_loads: whether a register of `tcgen05.ld` may not be used before `tcgen05.wait::ld`, as PTX says. Triton
            moves the wait behind such uses, and trusts the assembler to wait for the register.
        early_uses: how often each place uses one, where that is not refused.
        disagreements: places where threads stored different values at one address of shared memory at once, and how
            often. Which one stays is not defined.
    """

    def __init__(
        self,
        module: Module,
        shared_size: int,
        seed: int | None = None,
        model: MachineModel | None = None,
        *,
        strict_loads: bool = False,
    ) -> None:
        threads = module.entry.threads
        if threads is None or threads % LANES:
            raise PtxError(f"The entry has {threads} threads, where a multiple of {LANES} is expected.")
        self.module, self.threads, self.shared_size, self.model = module, threads, shared_size, model
        self.linked = link(module)
        self.memory = GlobalMemory()
        for name, values in module.constants.items():
            self.linked.variables[name] = self.memory.add(name, np.frombuffer(values, np.uint8))
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.counts = Counts()
        self.strict_loads = strict_loads
        self.early_uses: Counter[str] = Counter()
        self.grid = (1, 1, 1)
        self.programs = 1
        self.longest = 0.0
        self.polled = False  # whether the last step has read what other programs may be about to write
        self.disagreements: Counter[str] = Counter()
        self.arguments: dict[str, Any] = {}
        self.releases: dict[int, Release] = {}
        instructions = self.linked.instructions
        self.asynchronous = any(each.opcode.startswith(("mbarrier.", "tcgen05.")) for each in instructions)
        self.of_groups = [instruction.opcode.startswith("wgmma.mma") for instruction in instructions]
        operands = Operands(self.linked, threads)
        self.handlers = [compile_instruction(instruction, operands) for instruction in instructions]
        numbers = {name: number for number, name in enumerate(self.linked.registers)}
        self.folded = folded(instructions)
        self.costs: list[Cost] = []
        if model is not None:
            self.costs = [
                cost_of(each, numbers, model, away) for each, away in zip(instructions, self.folded, strict=True)
            ]
        self._names: dict[int, frozenset[str]] = {}
        self.cost: Cost | None = None  # of the instruction that is executed
        self.source = ""  # its line

    def launch(
        self,
        grid: tuple[int, int, int],
        arguments: list[Any],
        max_steps: int = 50_000_000,
        timeout: float | None = None,
    ) -> None:
        """Run all programs; with a seed they interleave.

        Raises:
            EmulatorError: whatever is wrong, or that it has not ended after so many steps or seconds.
        """
        start = time.monotonic()
        if len(arguments) != len(self.linked.params):
            raise PtxError(f"{len(arguments)} arguments came, where {len(self.linked.params)} are expected.")
        self.arguments = {
            name: np.asarray(value).astype(DTYPES[kind]) if kind[0] != "f" else np.float32(value)
            for (name, kind), value in zip(self.linked.params, arguments, strict=True)
        }
        self.grid, self.programs = grid, grid[0] * grid[1] * grid[2]
        self.memory.begin(self.programs)
        self.releases.clear()
        numbers = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
        living, at = [Program(self, index, number) for index, number in enumerate(numbers)], 0
        for _ in range(max_steps):
            if not living:
                return
            if timeout is not None and time.monotonic() > start + timeout:
                raise Deadlock(
                    f"{self.source or 'the kernel'}: not at its end after {timeout:g} seconds and "
                    f"{self.counts.totals['instructions']:,} warp instructions, with {len(living)} of {self.programs} "
                    "programs still running: it waits for what no program does, or is too large for the emulator."
                )
            at = self._next(living, at)
            program = living[at]
            until = self._until(living, at)
            self.polled, steps = False, 0
            while steps < STEPS and not self.polled and not program.finished and program.now <= until:
                program.step()
                steps += 1
            if not program.finished:
                at += 1
                continue
            living.pop(at)
            if program.board is not None:
                self.longest = max(self.longest, float(program.board.now.max()))
        raise Deadlock(f"{max_steps} steps were not enough: a program waits for what no other one does.")

    def _next(self, living: list[Program], at: int) -> int:
        """Which of the living programs makes the next steps."""
        if self.rng is not None:
            return int(self.rng.integers(len(living)))
        if self.model is None or len(living) == 1:
            return at % len(living)
        return int(np.argmin([program.now for program in living]))

    def _until(self, living: list[Program], at: int) -> float:
        """The modelled time of the other program that is the least far: until then this one runs alone."""
        if self.rng is not None or self.model is None or len(living) == 1:
            return np.inf
        return min(program.now for program in living if program is not living[at])

    def execute(self, program: Program, pc: int, mask: Array) -> None:
        """Instruction `pc` for the threads of a mask."""
        instruction = self.linked.instructions[pc]
        active = np.flatnonzero(mask.reshape(-1, LANES).any(1))
        self.counts.opcodes[instruction.opcode] += len(active)
        self.counts.add("instructions", len(active), instruction.source)
        if self.folded[pc]:
            self.counts.add("folded", len(active), instruction.source)
        self.source = instruction.source
        if program.board is not None:
            self.cost = self.costs[pc]
            program.board.issue(self.cost, active)
        program.pc[mask] = pc + 1
        if program.loading:
            check_loaded(program, self.names_of(pc), active, place_of(instruction))
        if instruction.guard is not None:
            predicate = program.registers[instruction.guard]
            mask = mask & (~predicate if instruction.negated else predicate)
            if not mask.any():
                return
        self.handlers[pc](program, mask)

    def names_of(self, pc: int) -> frozenset[str]:
        """Registers that instruction `pc` names."""
        found = self._names.get(pc)
        if found is None:
            instruction = self.linked.instructions[pc]
            names = {name for operand in instruction.operands for name in registers_in(operand)}
            found = self._names[pc] = frozenset(names | {instruction.guard or ""})
        return found

    # ------------------------------------------------------------------------- what accesses to memory count and cost

    def count_product(self, program: Program, warp: int, kind: str, macs: int) -> None:
        """Count a product of tensor memory (`tcgen05.mma`), which goes on by itself."""
        self.counts.add("products", 1, self.source)
        self.counts.macs[kind] += macs
        if program.board is not None and self.model is not None:
            program.board.multiply(warp, self.model.tensor_cycles(kind, macs))

    def touch_shared(self, program: Program, addresses: Array, size: int, mask: Array, latency: float) -> None:
        """Count an access to shared memory by the threads of a mask; `addresses` are theirs."""
        threads = np.flatnonzero(mask)
        self.touch_rows(program, addresses, size, threads // LANES, threads % LANES, latency)

    def touch_rows(
        self, program: Program, addresses: Array, size: int, warps: Array, lanes: Array, latency: float
    ) -> None:
        """Count accesses to shared memory, each by a warp and a lane; matrices are read row by row."""
        taken, fewest = wavefronts(addresses, size, warps, lanes)
        self.counts.add("wavefronts", int(taken.sum()), self.source)
        conflicts = int((taken - fewest).sum())
        if conflicts:
            self.counts.add("conflicts", conflicts, self.source)
        if program.board is not None and self.cost is not None:
            active = np.unique(warps)
            program.board.delay(self.cost, active, latency, taken[active])

    def touch_global(
        self, program: Program, addresses: Array, size: int, mask: Array, stores: bool = False, cached: bool = True
    ) -> float:
        """Count an access to global memory by the threads of a mask; `addresses` are theirs. Sectors are of a warp.
        Those that are not `cached` go past the first-level cache.

        Returns:
            the modelled latency in cycles; 0 without a model.
        """
        warps = program.warp[mask]
        first, last = (
            addresses.astype(np.int64) // SECTOR_BYTES,
            (addresses.astype(np.int64) + size - 1) // SECTOR_BYTES,
        )
        sectors = np.unique(np.stack([np.concatenate([warps, warps]), np.concatenate([first, last])]), axis=1)
        active = np.unique(warps)
        self.counts.add("requests", len(active), self.source)
        self.counts.add("sectors written" if stores else "sectors read", sectors.shape[1], self.source)
        if program.board is None or self.cost is None:
            return 0.0
        buffer, start = self.memory.find(int(addresses[0]))
        inside = sectors[1] - start // SECTOR_BYTES
        misses = self._miss(program, start, len(buffer.data) // SECTOR_BYTES + 2, inside, stores)
        if not cached and not misses:
            misses = len(inside)
            self.counts.add("sectors fetched", misses, self.source)
        fetched = bool(buffer.touched(inside).all())
        latency = L1_HIT if not misses else (L2_HIT if fetched or stores else DRAM)
        requests = -(-np.bincount(sectors[0], minlength=len(program.waiting))[active] // 4)  # four sectors a cycle
        self.counts.add("L1 wavefronts", int(requests.sum()), self.source)
        program.board.delay(self.cost, active, 0.0 if stores else latency, requests)
        return latency

    def _miss(self, program: Program, start: int, size: int, sectors: Array, stores: bool) -> int:
        """How many sectors of a buffer the first-level cache does not have.

        It keeps what was used since so many others were fetched as it holds: its share of the multiprocessor's. A store
        goes through to the second level; what it leaves in the first is unknown.
        """
        used = program.cached.get(start)
        if used is None:
            used = program.cached[start] = np.full(size, NEVER, np.int64)
        if stores:
            used[sectors] = NEVER
            return 0
        assert self.model is not None
        absent = program.fetched - used[sectors] > self.model.l1_bytes // L1_PROGRAMS // SECTOR_BYTES
        misses = len(np.unique(sectors[absent]))
        program.fetched += misses
        used[sectors] = program.fetched
        self.counts.add("sectors fetched", misses, self.source)
        return misses

    def touched_bytes(self) -> int:
        """Bytes of global memory that were touched: what DRAM moves at least."""
        return sum(buffer.touched_bytes() for buffer in self.memory.buffers)

    # ------------------------------------------------------------------------------------------- ordering of programs

    def release(self, program: Program, address: int, warp: int) -> None:
        """A warp publishes at an address what its program has done before its last barrier."""
        clocks = program.clocks
        if clocks.warps == 1:
            clocks.tick()  # no barrier is needed to order a warp with itself
        times = clocks.known[warp].copy()
        times[program.index] = clocks.ordered_until(warp)
        at = 0.0 if program.board is None else float(program.board.now[warp])
        before = self.releases.get(address)
        if before is not None:
            times, at = np.maximum(times, before.times), max(at, before.at)
        self.releases[address] = Release(times, at)

    def acquire(self, program: Program, address: int, warp: int) -> None:
        """A warp learns what was published at an address."""
        published = self.releases.get(address)
        if published is not None:
            program.clocks.known[warp] = np.maximum(program.clocks.known[warp], published.times)
            program.cached.clear()
            if program.board is not None:
                program.board.now[warp] = max(program.board.now[warp], published.at + L2_HIT)
