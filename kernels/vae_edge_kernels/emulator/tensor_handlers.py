"""`tcgen05`: allocation, loads, stores and products of tensor memory.

Products go on by themselves: what they read and write is theirs until a commit has arrived at an mbarrier and was
waited for. Those of one warp follow one another. Loads and stores belong to their warp until it has waited for them.
`tcgen05.fence` is not judged: Triton emits none, and leaves it to the assembler at barriers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.emulator import arithmetic as ar
from vae_edge_kernels.emulator import mbarriers
from vae_edge_kernels.emulator.arithmetic import DTYPES, Array
from vae_edge_kernels.emulator.errors import MemoryFault, PtxError
from vae_edge_kernels.emulator.operands import Handler, Operands, parts_of, place_of
from vae_edge_kernels.emulator.parser import Instruction
from vae_edge_kernels.emulator.tensor_memory import (
    KINDS,
    SHAPES,
    Product,
    TensorMemory,
    fragment,
    matrix_descriptor,
)
from vae_edge_kernels.emulator.warp_handlers import check_whole_warps
from vae_edge_kernels.emulator.warpgroups import operand_addresses, to_floats
from vae_edge_kernels.emulator.warps import LANES, MMA_K

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Program

ALLOC = re.compile(r"tcgen05\.alloc\.cta_group::1\.sync\.aligned\.shared::cta\.b32$")
DEALLOC = re.compile(r"tcgen05\.dealloc\.cta_group::1\.sync\.aligned\.b32$")
RELINQUISH = re.compile(r"tcgen05\.relinquish_alloc_permit\.cta_group::1\.sync\.aligned$")
SHAPE = rf"(?P<shape>{'|'.join(SHAPES)})\.x(?P<repetitions>\d+)"
LOAD = re.compile(rf"tcgen05\.ld\.sync\.aligned\.{SHAPE}(?P<pack>\.pack::16b)?\.b32$")
REDUCED_LOAD = re.compile(rf"tcgen05\.ld\.red\.sync\.aligned\.{SHAPE}\.(?P<reduce>min|max)\.f32$")
STORE = re.compile(rf"tcgen05\.st\.sync\.aligned\.{SHAPE}(?P<pack>\.unpack::16b)?\.b32$")
WAIT = re.compile(r"tcgen05\.wait::(?P<what>ld|st)\.sync\.aligned$")
PRODUCT = re.compile(rf"tcgen05\.mma\.cta_group::1\.kind::(?P<kind>{'|'.join(KINDS)})$")
COMMIT = re.compile(r"tcgen05\.commit\.cta_group::1\.mbarrier::arrive::one\.shared::cluster\.b64$")
ELECT = re.compile(r"elect\.sync$")

K_BYTES = 32  # of a row of A in one product
MAX_REGISTERS = 128  # of a load or store


def memory_of(program: Program) -> TensorMemory:
    """The tensor memory of a program."""
    if program.tensor is None:
        program.tensor = TensorMemory(program.clocks)
    return program.tensor


def elect(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`elect.sync`: the first lane of each warp."""
    del match
    place, texts = place_of(instruction), instruction.operands
    names = texts[0].split("|")
    if len(names) != 2 or texts[1] not in ("-1", "0xffffffff", "0xFFFFFFFF"):
        raise PtxError(f"{place}: the election {texts} is not known.")
    write, chosen = operands.writer(names[0], "b32"), operands.writer(names[1], "pred")

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        write(program, mask, np.zeros(operands.threads, np.uint32))
        chosen(program, mask, np.arange(operands.threads) % LANES == 0)

    return run


def allocate(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.alloc`: the address of the columns goes to shared memory."""
    del match
    place, by = place_of(instruction), instruction.line
    target, wanted = operands.address(instruction.operands[0], place), operands.reader(instruction.operands[1], "u32")

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        for warp in np.unique(program.warp[mask]):
            thread = warp * LANES
            start = memory_of(program).allocate(int(wanted(program)[thread]), place, program.device.rng)
            raw = np.array([[start]], np.uint32).view(np.uint8)
            program.shared.store(target(program)[thread : thread + 1], raw, np.array([warp]), place, by)

    return run


def free(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.dealloc`."""
    del match
    place, by = place_of(instruction), instruction.line
    address, wanted = (operands.reader(text, "u32") for text in instruction.operands)

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        for warp in np.unique(program.warp[mask]):
            thread = warp * LANES
            start, columns = int(address(program)[thread]), int(wanted(program)[thread])
            memory_of(program).free(start, columns, int(warp), place, by)

    return run


def relinquish(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.relinquish_alloc_permit`."""
    del match, operands
    place = place_of(instruction)

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        memory_of(program).permitted = False

    return run


class _Access:
    """What loads and stores of a shape have in common: the cells of a warp, and their registers."""

    def __init__(self, match: re.Match[str], instruction: Instruction, operands: Operands, stores: bool) -> None:
        self.place, self.shape = place_of(instruction), match.group("shape")
        self.repetitions = int(match.group("repetitions"))
        self.packed = bool(match.groupdict().get("pack"))
        self.what = "a write" if stores else "a read"
        texts = [text for text in instruction.operands if not text.startswith("{")]
        self.names = [parts_of(text) for text in instruction.operands if text.startswith("{")]
        halves = self.shape == "16x32bx2"
        count = SHAPES[self.shape] * self.repetitions
        known = self.repetitions & self.repetitions - 1 == 0 and 1 <= count <= MAX_REGISTERS
        if len(texts) != 1 + halves or len(self.names[0]) != count or not known:
            raise PtxError(f"{self.place}: the operands of {match.group(0)} are not known: {texts}.")
        if self.packed and not self.shape.endswith(("32b", "32bx2")):
            raise PtxError(f"{self.place}: {match.group(0)} is not known.")
        self.address = operands.address(texts[0], self.place)
        self.split = int(texts[1], 0) if halves else 0

    def cells(self, program: Program, warp: int) -> Array:
        """Cells [32, registers]; with packed registers twice as many columns.

        Raises:
            MemoryFault: they are not allocated, or belong to other warps.
        """
        given = self.address(program)[warp * LANES : (warp + 1) * LANES].astype(np.int64)
        if (given != given[0]).any():
            raise PtxError(f"{self.place}: the threads of a warp have different addresses of tensor memory.")
        first, column = int(given[0]) >> 16, int(given[0]) & 0xFFFF
        own = warp % 4 * LANES
        if first not in ((own,) if self.shape == "32x32b" else (own, own + 16)):
            raise MemoryFault(
                f"{self.place}: {self.what} of tensor memory from lane {first} on by warp {warp}, whose lanes are "
                f"{own} to {own + LANES - 1}."
            )
        lanes, columns = fragment(self.shape, self.repetitions * (2 if self.packed else 1), self.split)
        return memory_of(program).cells(first + lanes, column + columns, self.place, self.what)


def load(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.ld`: the registers may not be used until `tcgen05.wait::ld`. Also with a reduction over a row."""
    access = _Access(match, instruction, operands, stores=False)
    writers = [operands.writer(name, "b32") for name in access.names[0]]
    reduce = match.groupdict().get("reduce")
    total = None if reduce is None else operands.writer(access.names[1][0], "f32")
    used = frozenset(name for part in access.names for name in part)

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, access.place)
        held = np.zeros((len(writers), operands.threads), np.uint32)
        for warp in (int(number) for number in np.unique(program.warp[mask])):
            agent = program.clocks.loads(warp)
            cells = access.cells(program, warp)
            words = memory_of(program).load(cells, agent, program.clocks.seen[warp], access.place)
            if access.packed:
                words = words[:, ::2] & np.uint32(0xFFFF) | words[:, 1::2] << np.uint32(16)
            held[:, warp * LANES : (warp + 1) * LANES] = words.T
            program.loading[warp] = program.loading.get(warp, frozenset()) | used
        for write, values in zip(writers, held, strict=True):
            write(program, mask, values)
        if total is not None:
            floats = [values.view(np.float32) for values in held]
            total(program, mask, (ar.maximum if reduce == "max" else ar.minimum)(*floats))

    return run


def store(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.st`."""
    access = _Access(match, instruction, operands, stores=True)
    readers = [operands.reader(name, "b32") for name in access.names[0]]

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, access.place)
        for warp in (int(number) for number in np.unique(program.warp[mask])):
            agent = program.clocks.stores(warp)
            cells = access.cells(program, warp)
            words = np.stack([read(program)[warp * LANES : (warp + 1) * LANES] for read in readers], 1)
            if access.packed:
                halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], 2)
                words = halves.reshape(LANES, -1)
            row = program.clocks.seen[warp]
            memory_of(program).store(cells, words, agent, row, access.place, instruction.line)

    return run


def wait(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.wait`: the warp's loads, or its stores, have ended."""
    del operands
    place, loads = place_of(instruction), match.group("what") == "ld"

    def run(program: Program, mask: Array) -> None:
        check_whole_warps(mask, place)
        clocks = program.clocks
        for warp in (int(number) for number in np.unique(program.warp[mask])):
            clocks.complete(warp, clocks.loads(warp) if loads else clocks.stores(warp))
            if loads:
                program.loading.pop(warp, None)

    return run


def check_loaded(program: Program, names: frozenset[str], warps: Array, place: str) -> None:
    """Refuse, or count, an instruction that uses registers of a load in flight."""
    for warp in warps:
        early = program.loading.get(int(warp), frozenset()) & names
        if early:
            program.device.early_uses[place] += 1
        if early and program.device.strict_loads:
            raise MemoryFault(
                f"{place}: the register {min(early)} of warp {warp} is used before tcgen05.wait::ld, while a "
                "tcgen05.ld writes it."
            )


def product(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.mma`: each thread issues one. A lies in shared or in tensor memory, B in shared memory."""
    place, texts, kind = place_of(instruction), instruction.operands, match.group("kind")
    if len(texts) != 5:
        raise PtxError(f"{place}: {match.group(0)} has {len(texts)} operands, where 5 are known.")
    in_tensor_memory = texts[1].startswith("[")
    d_address = operands.address(texts[0], place)
    a_operand = operands.address(texts[1], place) if in_tensor_memory else operands.reader(texts[1], "b64")
    b_descriptor, described = operands.reader(texts[2], "b64"), operands.reader(texts[3], "b32")
    accumulate = operands.reader(texts[4], "pred")

    def from_shared(program: Program, bits: int, rows: int, element: str, transposed: bool, warp: int) -> Array:
        where = operand_addresses(matrix_descriptor(bits), rows, element, transposed, any_bytes=True)
        raw = program.shared.observe(where.reshape(-1), warp, place)
        program.shared.note_products(where, warp)
        return to_floats(raw.reshape(where.shape), element)

    def from_tensor(program: Program, address: int, asked: Product, warp: int) -> Array:
        if asked.transposed_a:
            raise PtxError("A in tensor memory cannot be transposed.")
        lanes, columns = asked.lanes(address >> 16), (address & 0xFFFF) + np.arange(K_BYTES // 4)
        memory, row = memory_of(program), program.clocks.with_own_products(warp)
        cells = memory.cells(lanes[:, None], columns[None, :], place, "a read of A")
        held = memory.load(cells, program.clocks.products(warp), row, place, "a read of A")
        raw = np.ascontiguousarray(held).view(np.uint8).reshape(asked.m, MMA_K[asked.a], -1)
        return to_floats(raw, asked.a)

    def multiply(program: Program, thread: int) -> None:
        warp, clocks, memory = thread // LANES, program.clocks, memory_of(program)
        asked = Product.of(int(described(program)[thread]), kind)
        agent, row = clocks.products(warp), clocks.with_own_products(warp)
        program.issued[warp].setdefault(thread, clocks.time)
        source = int(a_operand(program)[thread])
        if in_tensor_memory:
            a = from_tensor(program, source, asked, warp)
        else:
            a = from_shared(program, source, asked.m, asked.a, asked.transposed_a, warp)
        b = from_shared(program, int(b_descriptor(program)[thread]), asked.n, asked.b, asked.transposed_b, warp)
        address = int(d_address(program)[thread])
        lanes, columns = asked.lanes(address >> 16), (address & 0xFFFF) + np.arange(asked.n)
        cells = memory.cells(lanes[:, None], columns[None, :], place, "a product")
        total = asked.sign * (a @ b.T)
        if accumulate(program)[thread]:
            before = memory.load(cells, agent, row, place, "a product")
            total = total + _sums(before, asked.d)
        words = _words(total, asked.d)
        memory.store(cells, words, agent, row, place, instruction.line)
        program.device.count_product(program, warp, kind, asked.m * asked.n * MMA_K[asked.a])

    def run(program: Program, mask: Array) -> None:
        try:
            for thread in np.flatnonzero(mask):
                multiply(program, int(thread))
        except PtxError as error:  # of a descriptor
            raise PtxError(f"{place}: {error}") from error

    return run


def _sums(words: Array, dtype: str) -> Array:
    """Accumulators to float64: float16 ones lie in the lower half of a word."""
    if dtype == "f16":
        return words.astype(np.uint16).view(np.float16).astype(np.float64)
    return np.ascontiguousarray(words).view(DTYPES[dtype]).astype(np.float64)


def _words(total: Array, dtype: str) -> Array:
    """The inverse, rounded once."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = total.astype(DTYPES[dtype])
    return rounded.view(f"u{rounded.dtype.itemsize}").astype(np.uint32)


def commit(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`tcgen05.commit`: an mbarrier is arrived at when the thread's products so far have ended."""
    del match
    place = place_of(instruction)
    pointer = operands.address(instruction.operands[0], place)

    def run(program: Program, mask: Array) -> None:
        clocks = program.clocks
        for thread in (int(number) for number in np.flatnonzero(mask)):
            warp, address = thread // LANES, int(pointer(program)[thread])
            program.shared.touch_barrier(address, warp, place)
            program.issued[warp].pop(thread, None)
            clocks.tick()
            published = clocks.nothing()
            published.agents[clocks.products(warp)] = min((clocks.time, *program.issued[warp].values()))
            at = 0.0 if program.board is None else program.board.products_end(warp)
            mbarriers.commit(program, address, published, at, place)

    return run


BY_PATTERN = (
    (ALLOC, allocate),
    (DEALLOC, free),
    (RELINQUISH, relinquish),
    (LOAD, load),
    (REDUCED_LOAD, load),
    (STORE, store),
    (WAIT, wait),
    (PRODUCT, product),
    (COMMIT, commit),
    (ELECT, elect),
    (mbarriers.INIT, mbarriers.init),
    (mbarriers.INVAL, mbarriers.inval),
    (mbarriers.ARRIVE, mbarriers.arrival),
    (mbarriers.WAIT, mbarriers.wait),
)
