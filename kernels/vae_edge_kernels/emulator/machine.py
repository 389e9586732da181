"""The emulated device: programs (CTAs) of warps that run a PTX entry instruction by instruction.

Registers are NumPy arrays with one element a thread. Each thread has a program counter; a step takes the warps whose
threads wait at the same, lowest instruction and executes it for all of them at once. With a seed the warps and
programs that make the next step are chosen at random. Functions are inlined at every call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vae_edge_kernels.emulator.arithmetic import DTYPES, Array
from vae_edge_kernels.emulator.errors import Deadlock, MemoryFault, PtxError
from vae_edge_kernels.emulator.instructions import OPERATIONS
from vae_edge_kernels.emulator.linking import link
from vae_edge_kernels.emulator.memory import GlobalMemory, SharedMemory, spread
from vae_edge_kernels.emulator.parser import Instruction, Module
from vae_edge_kernels.emulator.warpgroups import Descriptor, operand_addresses, rows_of_registers, to_floats
from vae_edge_kernels.emulator.warpgroups import multiply as multiply_group
from vae_edge_kernels.emulator.warps import LANES, MMA_K, multiply_matrices, reduce_warp, shuffle

UNSIGNED = {1: np.dtype(bool), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
MEMORY = re.compile(
    r"(?P<what>ld|st)\.(?P<space>param|global|shared(?:::cta)?)(?P<order>(?:\.(?:gpu|relaxed|acquire|release|volatile|nc"
    r"|L1::evict_first|L1::evict_last|L1::no_allocate))*)(?:\.v(?P<lanes>[24]))?\.(?P<kind>[busf](?:8|16|32|64))$"
)
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])$|%(laneid|warpid)$")
GROUP = 4  # warps of a `wgmma`
MMA = re.compile(
    r"mma\.sync\.aligned\.m16n8k(?P<k>\d+)\.row\.col(?P<sat>\.satfinite)?\.(?P<d>f32|s32|f16)\.(?P<a>\w+)\.(?P<b>\w+)\.(?P<c>\w+)$"
)
LDMATRIX = re.compile(r"(?P<what>ld|st)matrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared\.b16$")
CP_ASYNC = re.compile(r"cp\.async\.(?:ca|cg)\.shared\.global$")
ATOMIC = re.compile(r"(?:atom|red)\.global\.gpu\.(?:relaxed|acq_rel|acquire|release)\.add\.(?P<kind>u32|s32|f32)$")
SHFL = re.compile(r"shfl\.sync\.(?P<mode>bfly|idx|up|down)\.b32$")
WGMMA = re.compile(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k(?P<k>\d+)\.(?P<d>f32|s32)\.(?P<a>\w+)\.(?P<b>\w+)$"
)
REDUX = re.compile(r"redux\.sync\.(?P<name>add|min|max)\.(?P<kind>u32|s32)$|redux\.sync\.(?P<bits>and|or|xor)\.b32$")
NOTHING = re.compile(
    r"(?:fence|membar|prefetch|griddepcontrol|discard)[.\w:]*$|wgmma\.(?:fence|commit_group)\.sync\.aligned$"
)


def bits_of(text: str) -> int | None:
    """The value of an immediate, as written; floats as their bits."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text) or re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0) if NUMBER.match(text) else None


@dataclass
class Copies:
    """Asynchronous copies of a warp's threads that were not waited for."""

    open: list[tuple[Array, Array]] = field(default_factory=list)  # bytes of shared memory, and their values
    groups: list[list[tuple[Array, Array]]] = field(default_factory=list)


class Program:
    """One program: its registers, shared memory and the state of its threads."""

    def __init__(self, device: Device, number: tuple[int, int, int]) -> None:
        self.device = device
        self.number = number
        count = device.threads
        self.registers = {name: np.zeros(count, UNSIGNED[bits]) for name, bits in device.linked.registers.items()}
        self.params: dict[tuple[str, int], Array] = {}  # of inlined calls, by name and bytes
        self.shared = SharedMemory(device.shared_size)
        self.pc = np.zeros(count, np.int64)
        self.done = np.zeros(count, bool)
        self.waiting = np.zeros(count // LANES, bool)  # warps at a barrier
        self.interval = 0  # barriers so far
        self.warp = np.repeat(np.arange(count // LANES), LANES)
        self.copies = [Copies() for _ in range(count // LANES)]
        self.products: list[tuple[Array, Array]] = []  # what `wgmma` in flight reads: bytes, and their values

    @property
    def finished(self) -> bool:
        return bool(self.done.all())

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
        else:
            chosen = runnable
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

    def open_barrier(self) -> None:
        """All living warps wait: the barrier opens."""
        if not self.waiting.any():
            raise Deadlock("No warp can go on.")
        self.waiting[:] = False
        self.interval += 1
        self.device.counts["barriers"] += 1


Handler = Callable[["Program", Array], None]


class Device:
    """A module that is ready to run, and the memory that it runs on.

    Attributes:
        memory: global memory.
        counts: warp instructions by opcode, and "barriers" of all programs together.
        by_line: warp instructions by source line.
    """

    def __init__(self, module: Module, shared_size: int, seed: int | None = None) -> None:
        threads = module.entry.threads
        if threads is None or threads % LANES:
            raise PtxError(f"The entry has {threads} threads, where a multiple of {LANES} is expected.")
        self.module, self.threads, self.shared_size = module, threads, shared_size
        self.linked = link(module)
        self.memory = GlobalMemory()
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        self.by_line: Counter[str] = Counter()
        self.grid = (1, 1, 1)
        self.arguments: dict[str, Any] = {}
        self.of_groups = [instruction.opcode.startswith("wgmma.mma") for instruction in self.linked.instructions]
        self.handlers = [self._compile(instruction) for instruction in self.linked.instructions]

    def launch(self, grid: tuple[int, int, int], arguments: list[Any], max_steps: int = 50_000_000) -> None:
        """Run all programs; with a seed they interleave.

        Raises:
            EmulatorError: whatever is wrong.
        """
        if len(arguments) != len(self.linked.params):
            raise PtxError(f"{len(arguments)} arguments came, where {len(self.linked.params)} are expected.")
        self.arguments = {
            name: np.asarray(value).astype(DTYPES[kind]) if kind[0] != "f" else np.float32(value)
            for (name, kind), value in zip(self.linked.params, arguments, strict=True)
        }
        self.grid = grid
        numbers = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
        programs = [Program(self, number) for number in numbers]
        living, at = list(programs), 0
        for _ in range(max_steps):
            if not living:
                return
            at = int(self.rng.integers(len(living))) if self.rng is not None else at % len(living)
            program = living[at]
            for _ in range(64):  # in a row, so that choosing costs little; spinning programs take turns
                program.step()
                if program.finished:
                    living.pop(at)
                    break
            else:
                at += 1
        raise Deadlock(f"{max_steps} steps were not enough: a program waits for what no other one does.")

    # ------------------------------------------------------------------------------------------------ execution

    def execute(self, program: Program, pc: int, mask: Array) -> None:
        """Instruction `pc` for the threads of a mask."""
        instruction = self.linked.instructions[pc]
        warps = int(mask.reshape(-1, LANES).any(1).sum())
        self.counts[instruction.opcode] += warps
        if instruction.source:
            self.by_line[instruction.source] += warps
        program.pc[mask] = pc + 1
        if instruction.guard is not None:
            predicate = program.registers[instruction.guard]
            mask = mask & (~predicate if instruction.negated else predicate)
            if not mask.any():
                return
        self.handlers[pc](program, mask)

    def _compile(self, instruction: Instruction) -> Handler:
        """What an instruction does.

        Raises:
            PtxError: it is not known.
        """
        opcode, operands = instruction.opcode, instruction.operands
        place, line = self._place(instruction), instruction.line
        operation = OPERATIONS.get(opcode)
        if operation is not None:
            inputs = operation.inputs
            if operation.one_more and len(operands) == 2 + len(inputs):
                inputs = (*inputs, inputs[-1])
            if len(operands) != 1 + len(inputs):
                raise PtxError(f"{place}: {instruction.text!r} has {len(operands)} operands.")
            if opcode.startswith("mov.b") and any(operand.startswith("{") for operand in operands):
                return self._pack(operands)
            readers = [self._reader(operand, kind) for operand, kind in zip(operands[1:], inputs, strict=True)]
            write, compute = self._writer(operands[0], operation.output), operation.compute

            def run(program: Program, mask: Array) -> None:
                with np.errstate(all="ignore"):
                    write(program, mask, compute(*(read(program) for read in readers)))

            return run
        for pattern, build in (
            (MEMORY, self._memory),
            (LDMATRIX, self._matrix),
            (MMA, self._mma),
            (WGMMA, self._wgmma),
            (CP_ASYNC, self._copy),
            (ATOMIC, self._atomic),
            (SHFL, self._shuffle),
            (REDUX, self._redux),
        ):
            match = pattern.match(opcode)
            if match:
                return build(match, operands, place, line)
        simple: dict[str, Callable[..., Handler]] = {
            "bra": self._branch,
            "bra.uni": self._branch,
            "bar.sync": self._barrier,
            "barrier.sync": self._barrier,
            "bar.warp.sync": lambda *_: lambda program, mask: None,
            "cp.async.commit_group": self._commit,
            "cp.async.wait_group": self._wait,
            "wgmma.wait_group.sync.aligned": self._wait_for_products,
        }
        if opcode in simple:
            return simple[opcode](operands, place)
        if opcode in ("ret", "exit"):
            return self._end
        if opcode == "nop" or NOTHING.match(opcode):
            return lambda program, mask: None
        raise PtxError(f"{place}: the instruction {instruction.text!r} is not known.")

    @staticmethod
    def _place(instruction: Instruction) -> str:
        return f"line {instruction.line}" + (f" ({instruction.source})" if instruction.source else "")

    # ------------------------------------------------------------------------------------------------- operands

    def _reader(self, operand: str, kind: str) -> Callable[[Program], Array]:
        """An operand's value in all threads, of a PTX type."""
        dtype, count = DTYPES[kind], self.threads
        if operand in self.linked.registers:
            if kind == "pred" or UNSIGNED[self.linked.registers[operand]].itemsize == dtype.itemsize:
                return lambda program: program.registers[operand].view(dtype)
            narrow = np.dtype(f"u{dtype.itemsize}")  # the lower bytes of a wider register
            return lambda program: program.registers[operand].astype(narrow).view(dtype)
        special = SPECIAL.match(operand)
        if special:
            return lambda program: self._special(program, special).astype(dtype)
        if operand == self.module.shared:
            zeros = np.zeros(count, dtype)
            return lambda program: zeros
        value = bits_of(operand)
        if value is None:
            raise PtxError(f"The operand {operand!r} is not known.")
        if kind == "pred":
            fixed = np.full(count, bool(value))
        elif kind == "f32" and operand[:2].lower() != "0f":
            raise PtxError(f"The operand {operand!r} is no float.")
        else:
            unsigned = np.dtype(f"u{dtype.itemsize}")
            fixed = np.full(count, value & (256**dtype.itemsize - 1), unsigned).view(dtype)
        return lambda program: fixed

    def _special(self, program: Program, match: re.Match[str]) -> Array:
        axis = {"x": 0, "y": 1, "z": 2}.get(match.group(2) or "x", 0)
        ids = np.arange(self.threads)
        if match.group(3):
            return ids % LANES if match.group(3) == "laneid" else ids // LANES
        values = {
            "tid": ids if axis == 0 else np.zeros_like(ids),
            "ntid": np.full_like(ids, self.threads if axis == 0 else 1),
            "ctaid": np.full_like(ids, program.number[axis]),
            "nctaid": np.full_like(ids, self.grid[axis]),
        }
        return values[match.group(1)]

    def _writer(self, operand: str, kind: str) -> Callable[[Program, Array, Array], None]:
        """Write values of a PTX type to a register, in the threads of a mask."""
        if operand == "_":
            return lambda program, mask, values: None
        bits = self.linked.registers.get(operand)
        if bits is None:
            raise PtxError(f"The register {operand!r} was not declared.")
        target, dtype = UNSIGNED[bits], DTYPES[kind]
        if bits == 1:

            def write(program: Program, mask: Array, values: Array) -> None:
                program.registers[operand][mask] = values[mask]
        elif target.itemsize == dtype.itemsize:

            def write(program: Program, mask: Array, values: Array) -> None:
                typed = np.ascontiguousarray(values.astype(dtype, copy=False)).view(target)
                program.registers[operand][mask] = typed[mask]
        elif target.itemsize > dtype.itemsize:  # extended by the value's sign
            wide = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{target.itemsize}")

            def write(program: Program, mask: Array, values: Array) -> None:
                typed = values.astype(dtype, copy=False)
                if dtype.kind == "f":
                    typed = typed.view(np.dtype(f"u{dtype.itemsize}"))
                program.registers[operand][mask] = typed.astype(wide).view(target)[mask]
        else:
            raise PtxError(f"A value of type {kind} does not fit into {operand!r}.")
        return write

    def _address(self, operand: str, place: str) -> Callable[[Program], Array]:
        match = ADDRESS.match(operand)
        if match is None:
            raise PtxError(f"{place}: {operand!r} is no address.")
        base, offset = match.group(1), int(match.group(2) or "0", 0)
        if base == self.module.shared:
            fixed = np.full(self.threads, offset, np.uint64)
            return lambda program: fixed
        bits = self.linked.registers.get(base)
        if bits is None:
            raise PtxError(f"{place}: {operand!r} is no address.")
        read = self._reader(base, f"u{bits}")
        return lambda program: (read(program).astype(np.int64) + offset).view(np.uint64)

    @staticmethod
    def _parts(operand: str) -> list[str]:
        return [part.strip() for part in operand.strip("{} ").split(",")] if operand.startswith("{") else [operand]

    def _pack(self, operands: tuple[str, ...]) -> Handler:
        """`mov.b` between a register and a vector of narrower ones."""
        left, right = (self._parts(operand) for operand in operands)
        if len(left) == 1:
            total = self.linked.registers[left[0]]
            width = total // len(right)
            readers = [self._reader(part, f"b{width}") for part in right]
            write = self._writer(left[0], f"b{total}")

            def pack(program: Program, mask: Array) -> None:
                joined = np.stack([read(program) for read in readers], 1)
                write(program, mask, np.ascontiguousarray(joined).view(UNSIGNED[total]).reshape(-1))

            return pack
        bits = self.linked.registers.get(right[0])
        if bits is None:
            raise PtxError(f"{operands[1]!r} cannot be taken apart.")
        width = bits // len(left)
        read, writers = self._reader(right[0], f"b{bits}"), [self._writer(part, f"b{width}") for part in left]

        def unpack(program: Program, mask: Array) -> None:
            parts = np.ascontiguousarray(read(program)).view(UNSIGNED[width]).reshape(-1, len(left))
            for number, write in enumerate(writers):
                write(program, mask, np.ascontiguousarray(parts[:, number]))

        return unpack

    # --------------------------------------------------------------------------------------------------- memory

    def _memory(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        loads, kind, lanes = match.group("what") == "ld", match.group("kind"), int(match.group("lanes") or 1)
        space = match.group("space")
        target, pointer = operands if loads else operands[::-1]
        if len(operands) != 2 or len(self._parts(target)) != lanes:
            raise PtxError(f"{place}: {operands} are not the operands of {match.group(0)}.")
        if space == "param":
            return self._param(loads, kind, target, pointer, place)
        address, width = self._address(pointer, place), DTYPES[kind].itemsize
        size = width * lanes
        if loads:
            writers = [self._writer(part, kind) for part in self._parts(target)]

            def load(program: Program, mask: Array) -> None:
                where = address(program)[mask]
                if space == "global":
                    raw = self._load_global(where, size, place)
                else:
                    raw = program.shared.load(where, size, program.warp[mask], program.interval, place)
                values = np.ascontiguousarray(raw).view(DTYPES[kind]).reshape(-1, lanes)
                for number, write in enumerate(writers):
                    full = np.zeros(self.threads, DTYPES[kind])
                    full[mask] = values[:, number]
                    write(program, mask, full)

            return load
        readers = [self._reader(part, kind) for part in self._parts(target)]

        def store(program: Program, mask: Array) -> None:
            values = np.stack([read(program)[mask] for read in readers], 1)
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)
            where = address(program)[mask]
            if space == "global":
                self._store_global(where, raw, place)
            else:
                program.shared.store(where, raw, program.warp[mask], program.interval, place, line)

        return store

    def _load_global(self, where: Array, size: int, place: str) -> Array:
        buffer, offsets = self.memory.find(where, size, place, "a read")
        index = spread(offsets, size)
        if not buffer.defined[index].all():
            at = int(index[~buffer.defined[index]][0])
            raise MemoryFault(f"{place}: a read of byte {at} of {buffer.name}, which was never written.")
        self.counts["sectors read"] += len(np.unique((offsets + buffer.base) // 32))
        return buffer.data[index]

    def _store_global(self, where: Array, raw: Array, place: str) -> None:
        buffer, offsets = self.memory.find(where, raw.shape[1], place, "a write")
        index = spread(offsets, raw.shape[1])
        self.counts["sectors written"] += len(np.unique((offsets + buffer.base) // 32))
        buffer.data[index], buffer.defined[index] = raw, True

    def _param(self, loads: bool, kind: str, register: str, pointer: str, place: str) -> Handler:
        match = ADDRESS.match(pointer)
        if match is None or int(match.group(2) or "0", 0):
            raise PtxError(f"{place}: {pointer!r} is no parameter.")
        name, width = match.group(1), DTYPES[kind].itemsize
        if not loads:
            read = self._reader(register, kind)

            def store(program: Program, mask: Array) -> None:
                held = program.params.setdefault((name, width), np.zeros(self.threads, f"u{width}"))
                held[mask] = np.ascontiguousarray(read(program)[mask]).view(held.dtype)

            return store
        write = self._writer(register, kind)

        def load(program: Program, mask: Array) -> None:
            if (name, width) in program.params:
                values = program.params[name, width]
            elif name in self.arguments:
                scalar = np.asarray(self.arguments[name])
                values = np.full(self.threads, scalar).view(DTYPES[kind])
            else:
                raise PtxError(f"{place}: the parameter {name} was not given.")
            write(program, mask, values.view(DTYPES[kind]))

        return load

    def _matrix(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        """`ldmatrix` and `stmatrix`: 8×8 matrices of 16 bits, whose rows the lanes point at."""
        loads, count, transposed = match.group("what") == "ld", int(match.group("count")), bool(match.group("trans"))
        vector, pointer = operands if loads else operands[::-1]
        names, address = self._parts(vector), self._address(pointer, place)
        if len(names) != count:
            raise PtxError(f"{place}: {vector} has {len(names)} registers, where {count} are expected.")
        writers = [self._writer(name, "b32") for name in names] if loads else []
        readers = [] if loads else [self._reader(name, "b32") for name in names]

        def rows(program: Program, mask: Array) -> tuple[Array, Array]:
            _whole_warps(mask, place)
            warps = np.flatnonzero(mask.reshape(-1, LANES).any(1))
            where = address(program).reshape(-1, LANES)[warps][:, : 8 * count]
            return warps, where

        def load(program: Program, mask: Array) -> None:
            warps, where = rows(program, mask)
            raw = program.shared.load(where.reshape(-1), 16, np.repeat(warps, 8 * count), program.interval, place)
            matrices = np.ascontiguousarray(raw).view(np.uint16).reshape(len(warps), count, 8, 8)
            if transposed:
                matrices = matrices.swapaxes(2, 3)
            fragments = np.ascontiguousarray(matrices).view(np.uint32).reshape(len(warps), count, LANES)
            for number, write in enumerate(writers):
                full = np.zeros((self.threads // LANES, LANES), np.uint32)
                full[warps] = fragments[:, number]
                write(program, mask, full.reshape(-1))

        def store(program: Program, mask: Array) -> None:
            warps, where = rows(program, mask)
            fragments = np.stack([read(program).reshape(-1, LANES)[warps] for read in readers], 1)
            matrices = np.ascontiguousarray(fragments).view(np.uint16).reshape(len(warps), count, 8, 8)
            if transposed:
                matrices = matrices.swapaxes(2, 3)
            raw = np.ascontiguousarray(matrices).view(np.uint8).reshape(-1, 16)
            who = np.repeat(warps, 8 * count)
            program.shared.store(where.reshape(-1), raw, who, program.interval, place, line)

        return load if loads else store

    def _copy(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        """`cp.async`: the bytes are in flight until their group was waited for. Beyond src-size they are zeros."""
        del match
        target, source, size = self._address(operands[0], place), self._address(operands[1], place), int(operands[2], 0)
        wanted = self._reader(operands[3], "u32") if len(operands) == 4 else None

        def copy(program: Program, mask: Array) -> None:
            length = np.full(self.threads, size) if wanted is None else wanted(program).astype(np.int64)
            index = program.shared.check(target(program)[mask], size, place, "an asynchronous copy")
            raced = program.shared.owners.write(
                index.reshape(-1),
                np.repeat(program.warp[mask], size),
                np.full(index.size, program.interval, np.int32),
                line,
                np.zeros(index.size, bool),
            )
            if raced.any():
                raise MemoryFault(
                    f"{place}: an asynchronous copy to byte {int(index.reshape(-1)[raced][0])} of shared memory races "
                    "with an access of another warp: no barrier lies between."
                )
            values = np.zeros((int(mask.sum()), size), np.uint8)
            for part in np.unique(length[mask]):
                if part:
                    chosen = length[mask] == part
                    values[chosen] = 0
                    whole = self._load_global(source(program)[mask][chosen], int(part), place)
                    values[np.flatnonzero(chosen)[:, None], np.arange(int(part))] = whole
            program.shared.in_flight[index] = True
            for warp in np.unique(program.warp[mask]):
                chosen = program.warp[mask] == warp
                program.copies[warp].open.append((index[chosen], values[chosen]))

        return copy

    def _commit(self, operands: tuple[str, ...], place: str) -> Handler:
        del operands, place

        def commit(program: Program, mask: Array) -> None:
            for warp in np.unique(program.warp[mask]):
                copies = program.copies[warp]
                copies.groups.append(copies.open)
                copies.open = []

        return commit

    def _wait(self, operands: tuple[str, ...], place: str) -> Handler:
        left = int(operands[0], 0)
        del place

        def wait(program: Program, mask: Array) -> None:
            for warp in np.unique(program.warp[mask]):
                groups = program.copies[warp].groups
                while len(groups) > left:
                    for index, values in groups.pop(0):
                        program.shared.data[index], program.shared.defined[index] = values, True
                        program.shared.in_flight[index] = False
                        owners = program.shared.owners
                        owners.writer[index], owners.written_in[index] = warp, program.interval

        return wait

    def _atomic(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        kind, returns = match.group("kind"), match.group(0).startswith("atom")
        pointer, value = operands[-2:]
        address, read = self._address(pointer, place), self._reader(value, kind)
        write = self._writer(operands[0], kind) if returns else None

        def add(program: Program, mask: Array) -> None:
            full = np.zeros(self.threads, DTYPES[kind])
            for thread in np.flatnonzero(mask):
                where = address(program)[thread : thread + 1]
                old = np.ascontiguousarray(self._load_global(where, 4, place)).view(DTYPES[kind])
                full[thread] = old[0, 0]
                total = np.asarray(old[0, 0] + read(program)[thread], DTYPES[kind])
                self._store_global(where, total.reshape(1, 1).view(np.uint8), place)
            if write is not None:
                write(program, mask, full)

        return add

    # ------------------------------------------------------------------------------------------ warps and control

    def _mma(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        kinds = {match.group("a"), match.group("b")}
        if len(kinds) != 1 or match.group("a") not in MMA_K or int(match.group("k")) != MMA_K[match.group("a")]:
            raise PtxError(f"{place}: {match.group(0)} is not known.")
        if match.group("d") != match.group("c") or match.group("d") not in ("f32", "s32"):
            raise PtxError(f"{place}: {match.group(0)} is not known.")
        kind, dtype = match.group("a"), DTYPES[match.group("d")]
        parts = [self._parts(operand) for operand in operands]
        if [len(part) for part in parts] != [4, 4, 2, 4]:
            raise PtxError(f"{place}: the operands of {match.group(0)} are not 4, 4, 2 and 4 registers.")
        writers = [self._writer(name, "b32") for name in parts[0]]
        readers = [[self._reader(name, "b32") for name in part] for part in parts[1:]]

        def multiply(program: Program, mask: Array) -> None:
            _whole_warps(mask, place)
            a, b, c = ([read(program)[mask] for read in part] for part in readers)
            for write, values in zip(
                writers, multiply_matrices(a, b, c, kind, dtype, bool(match.group("sat"))), strict=True
            ):
                full = np.zeros(self.threads, np.uint32)
                full[mask] = values
                write(program, mask, full)

        return multiply

    def _wgmma(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        """The product is made at once; until it was waited for, what it read must not change."""
        kind, n, dtype = match.group("a"), int(match.group("n")), DTYPES[match.group("d")]
        if kind != match.group("b") or kind not in MMA_K or int(match.group("k")) != MMA_K[kind]:
            raise PtxError(f"{place}: {match.group(0)} is not known.")
        names = self._parts(operands[0])
        in_registers = operands[1].startswith("{")
        immediates = [int(operand, 0) for operand in operands[4:]]
        transposes = immediates[2:] if in_registers or len(immediates) < 4 else immediates[2:4]
        if len(names) != n // 2 or immediates[:2] not in ([], [1, 1]) or len(immediates) > (3 if in_registers else 4):
            raise PtxError(f"{place}: the operands of {match.group(0)} are not known: {operands[1:]}.")
        transpose_b = bool(transposes and transposes[-1])
        transpose_a = bool(len(transposes) == 2 and transposes[0])
        writers, before = [self._writer(name, "b32") for name in names], [self._reader(name, "b32") for name in names]
        a_parts = [self._reader(part, "b32") for part in self._parts(operands[1])] if in_registers else []
        a_descriptor = None if in_registers else self._reader(operands[1], "b64")
        b_descriptor, accumulate = self._reader(operands[2], "b64"), self._reader(operands[3], "pred")

        def matrix(program: Program, described: Array, rows: int, transposed: bool) -> Array:
            if (described != described[0]).any():
                raise PtxError(f"{place}: the warps of a group have different matrix descriptors.")
            where = operand_addresses(Descriptor.of(int(described[0])), rows, kind, transposed)
            raw = program.shared.observe(where.reshape(-1), program.interval, place)
            program.products.append((where.reshape(-1), raw))
            return to_floats(raw.reshape(where.shape), kind)

        def multiply(program: Program, mask: Array) -> None:
            _whole_warps(mask, place)
            threads = np.flatnonzero(mask).reshape(-1, GROUP * LANES)
            results = [np.zeros(self.threads, np.uint32) for _ in names]
            for group in threads:
                if a_descriptor is None:
                    a = rows_of_registers([read(program)[group] for read in a_parts], kind)
                else:
                    a = matrix(program, a_descriptor(program)[group], 64, transpose_a)
                b = matrix(program, b_descriptor(program)[group], n, transpose_b)
                keep = accumulate(program)[group[0]]
                held = [read(program)[group] * np.uint32(keep) for read in before]
                for result, values in zip(results, multiply_group(a, b, held, dtype), strict=True):
                    result[group] = values
            for write, result in zip(writers, results, strict=True):
                write(program, mask, result)

        del line
        return multiply

    def _wait_for_products(self, operands: tuple[str, ...], place: str) -> Handler:
        """Of all groups at once: which of them a read belongs to is not followed."""
        del operands

        def wait(program: Program, mask: Array) -> None:
            del mask
            for index, values in program.products:
                if (program.shared.data[index] != values).any():
                    raise MemoryFault(f"{place}: shared memory was changed while a product of matrices read it.")
            program.products.clear()

        return wait

    def _shuffle(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        names = operands[0].split("|")
        if len(operands) != 5 or operands[4] not in ("-1", "0xffffffff", "0xFFFFFFFF"):
            raise PtxError(f"{place}: shuffles of whole warps alone are known, not {operands}.")
        write = self._writer(names[0], "b32")
        also = self._writer(names[1], "pred") if len(names) == 2 else None
        read, offset, control = (
            self._reader(operand, kind) for operand, kind in zip(operands[1:4], ("b32", "u32", "u32"), strict=True)
        )
        mode = match.group("mode")

        def run(program: Program, mask: Array) -> None:
            _whole_warps(mask, place)
            values, valid = shuffle(mode, read(program), offset(program), control(program))
            write(program, mask, values)
            if also is not None:
                also(program, mask, valid)

        return run

    def _redux(self, match: re.Match[str], operands: tuple[str, ...], place: str, line: int) -> Handler:
        kind, name = match.group("kind") or "b32", match.group("name") or match.group("bits")
        read, write = self._reader(operands[1], kind), self._writer(operands[0], kind)

        def run(program: Program, mask: Array) -> None:
            _whole_warps(mask, place)
            write(program, mask, reduce_warp(name, read(program)))

        return run

    def _branch(self, operands: tuple[str, ...], place: str) -> Handler:
        target = self.linked.labels.get(operands[0])

        def branch(program: Program, mask: Array) -> None:
            if target is None:
                raise PtxError(f"{place}: there is no label {operands[0]}.")
            program.pc[mask] = target

        return branch

    def _barrier(self, operands: tuple[str, ...], place: str) -> Handler:
        if operands not in (("0",), ("0", str(self.threads))):
            raise PtxError(f"{place}: the barrier {operands} is not known.")

        def wait(program: Program, mask: Array) -> None:
            _whole_warps(mask, place)
            program.waiting |= mask.reshape(-1, LANES).any(1)
            if (program.waiting | program.done.reshape(-1, LANES).all(1)).all():
                program.open_barrier()

        return wait

    def _end(self, program: Program, mask: Array) -> None:
        program.done |= mask


def _whole_warps(mask: Array, place: str) -> None:
    rows = mask.reshape(-1, LANES)
    if (rows.any(1) != rows.all(1)).any():
        raise Deadlock(f"{place}: threads of a warp are missing that the instruction waits for.")
