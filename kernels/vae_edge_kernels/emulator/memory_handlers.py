"""Instructions that access memory: loads and stores, matrices, asynchronous copies, atomic operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vae_edge_kernels.emulator.arithmetic import DTYPES, Array
from vae_edge_kernels.emulator.errors import MemoryFault, PtxError
from vae_edge_kernels.emulator.linking import LOCAL_BASE
from vae_edge_kernels.emulator.operands import ADDRESS, Handler, Operands, Reader, parts_of, place_of
from vae_edge_kernels.emulator.parser import Instruction
from vae_edge_kernels.emulator.timing import L2_HIT, SHARED_LOAD, SHARED_STORE
from vae_edge_kernels.emulator.warp_handlers import check_whole_warps
from vae_edge_kernels.emulator.warps import LANES

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Program

ACCESS = re.compile(
    r"(?P<what>ld|st)(?P<first>\.volatile)?(?:\.(?P<space>param|global|local|shared(?:::cta)?))?(?P<order>(?:\.(?:gpu|sys|cta|relaxed|acquire"
    r"|release|volatile|nc|L1::evict_first|L1::evict_last|L1::no_allocate))*)(?:\.v(?P<lanes>[24]))?"
    r"\.(?P<kind>[busf](?:8|16|32|64))$"
)
MATRICES = re.compile(r"(?P<what>ld|st)matrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared\.b16$")
ASYNC_COPY = re.compile(r"cp\.async\.(?:ca|cg)\.shared\.global$")
ATOMIC = re.compile(
    r"(?P<what>atom|red)\.global(?:\.gpu)?\.(?P<order>relaxed|acq_rel|acquire|release)(?:\.gpu)?\.(?:(?P<add>add)\.(?P<sum>[us](?:32|64)"
    r"|f32)|(?P<extreme>min|max)\.(?P<compared>[us](?:32|64))|(?P<bits>and|or|xor|exch|cas)\.(?P<word>b(?:32|64)))$"
)
UPDATES: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "exch": lambda old, new: new,
}  # fmt: skip
STRONG = ("acquire", "release", "relaxed", "volatile")  # accesses that may meet others without a race
LOCAL_BYTES = 1 << 24  # addresses beyond LOCAL_BASE that a generic access takes for local memory


def access(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`ld` and `st` of one register or a vector, in any space."""
    loads, kind, lanes = match.group("what") == "ld", match.group("kind"), int(match.group("lanes") or 1)
    texts, place, space = instruction.operands, place_of(instruction), match.group("space") or "generic"
    target, pointer = texts if loads else texts[::-1]
    if len(texts) != 2 or len(parts_of(target)) != lanes:
        raise PtxError(f"{place}: {texts} are not the operands of {match.group(0)}.")
    if space == "param":
        return _param(loads, kind, target, pointer, instruction, operands)
    address, width, order = (
        operands.address(pointer, place),
        DTYPES[kind].itemsize,
        f"{match.group('first') or ''}{match.group('order')}".split("."),
    )
    size, strong = width * lanes, any(word in STRONG for word in order)
    if loads:
        writers = [operands.writer(part, kind) for part in parts_of(target)]

        def load(program: Program, mask: Array) -> None:
            where = address(program)[mask]
            at = _space(space, where, place)
            if at == "global":
                program.device.touch_global(program, where, size, mask, cached=not strong)
                program.device.polled |= strong
                raw = program.device.memory.load(where, size, None if strong else program.agent(mask), place)
                if "acquire" in order:
                    _each_address(program, mask, where, program.device.acquire)
            elif at == "local":
                raw = program.local.load(where, size, mask, place)
            else:
                raw = program.shared.load(where, size, program.warp[mask], place)
                program.device.touch_shared(program, where, size, mask, SHARED_LOAD)
            values = np.ascontiguousarray(raw).view(DTYPES[kind]).reshape(-1, lanes)
            for number, write in enumerate(writers):
                full = np.zeros(operands.threads, DTYPES[kind])
                full[mask] = values[:, number]
                write(program, mask, full)

        return load
    readers = [operands.reader(part, kind) for part in parts_of(target)]

    def store(program: Program, mask: Array) -> None:
        values = np.stack([read(program)[mask] for read in readers], 1)
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)
        where = address(program)[mask]
        at = _space(space, where, place)
        if at == "global":
            if "release" in order:
                _each_address(program, mask, where, program.device.release)
            who = None if strong else program.agent(mask)
            program.device.memory.store(where, raw, who, place, instruction.line)
            program.device.touch_global(program, where, size, mask, stores=True)
        elif at == "local":
            program.local.store(where, raw, mask, place)
        else:
            program.shared.store(where, raw, program.warp[mask], place, instruction.line)
            program.device.touch_shared(program, where, size, mask, SHARED_STORE)

    return store


def _space(space: str, where: Array, place: str) -> str:
    """The space of an access; a generic one goes by its addresses."""
    if space != "generic":
        return space
    local = (where >= LOCAL_BASE) & (where < LOCAL_BASE + LOCAL_BYTES)
    if local.any() != local.all():
        raise MemoryFault(f"{place}: threads of one access point at local and at global memory.")
    return "local" if local.any() else "global"


def _each_address(program: Program, mask: Array, where: Array, order: object) -> None:
    """Release or acquire at the address of each thread."""
    assert callable(order)
    for address, warp in {(int(a), int(w)) for a, w in zip(where, program.warp[mask], strict=True)}:
        order(program, address, warp)


def _param(
    loads: bool, kind: str, register: str, pointer: str, instruction: Instruction, operands: Operands
) -> Handler:
    """A parameter of the entry, or of a function that was inlined."""
    match, place = ADDRESS.match(pointer), place_of(instruction)
    if match is None or int(match.group(2) or "0", 0):
        raise PtxError(f"{place}: {pointer!r} is no parameter.")
    name, width = match.group(1), DTYPES[kind].itemsize
    if not loads:
        read = operands.reader(register, kind)

        def store(program: Program, mask: Array) -> None:
            held = program.params.setdefault((name, width), np.zeros(operands.threads, f"u{width}"))
            held[mask] = np.ascontiguousarray(read(program)[mask]).view(held.dtype)

        return store
    write = operands.writer(register, kind)

    def load(program: Program, mask: Array) -> None:
        if (name, width) in program.params:
            values = program.params[name, width]
        elif name in program.device.arguments:
            scalar = np.asarray(program.device.arguments[name])
            values = np.full(operands.threads, scalar).view(DTYPES[kind])
        else:
            raise PtxError(f"{place}: the parameter {name} was not given.")
        write(program, mask, values.view(DTYPES[kind]))

    return load


def matrices(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`ldmatrix` and `stmatrix`: 8×8 matrices of 16 bits, whose rows the lanes point at."""
    loads, count, transposed = match.group("what") == "ld", int(match.group("count")), bool(match.group("trans"))
    texts, place = instruction.operands, place_of(instruction)
    vector, pointer = texts if loads else texts[::-1]
    names, address = parts_of(vector), operands.address(pointer, place)
    if len(names) != count:
        raise PtxError(f"{place}: {vector} has {len(names)} registers, where {count} are expected.")
    writers = [operands.writer(name, "b32") for name in names] if loads else []
    readers: list[Reader] = [] if loads else [operands.reader(name, "b32") for name in names]

    def rows(program: Program, mask: Array, latency: float) -> tuple[Array, Array]:
        check_whole_warps(mask, place)
        warps = np.flatnonzero(mask.reshape(-1, LANES).any(1))
        where = address(program).reshape(-1, LANES)[warps][:, : 8 * count]
        # Each matrix is a part of its own: eight rows of 16 bytes.
        lanes = np.tile(np.arange(8 * count), len(warps))
        program.device.touch_rows(program, where.reshape(-1), 16, np.repeat(warps, 8 * count), lanes, latency)
        return warps, where

    def load(program: Program, mask: Array) -> None:
        warps, where = rows(program, mask, SHARED_LOAD)
        raw = program.shared.load(where.reshape(-1), 16, np.repeat(warps, 8 * count), place)
        found = np.ascontiguousarray(raw).view(np.uint16).reshape(len(warps), count, 8, 8)
        if transposed:
            found = found.swapaxes(2, 3)
        fragments = np.ascontiguousarray(found).view(np.uint32).reshape(len(warps), count, LANES)
        for number, write in enumerate(writers):
            full = np.zeros((operands.threads // LANES, LANES), np.uint32)
            full[warps] = fragments[:, number]
            write(program, mask, full.reshape(-1))

    def store(program: Program, mask: Array) -> None:
        warps, where = rows(program, mask, SHARED_STORE)
        fragments = np.stack([read(program).reshape(-1, LANES)[warps] for read in readers], 1)
        made = np.ascontiguousarray(fragments).view(np.uint16).reshape(len(warps), count, 8, 8)
        if transposed:
            made = made.swapaxes(2, 3)
        raw = np.ascontiguousarray(made).view(np.uint8).reshape(-1, 16)
        who = np.repeat(warps, 8 * count)
        program.shared.store(where.reshape(-1), raw, who, place, instruction.line)

    return load if loads else store


def async_copy(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`cp.async`: the bytes are in flight until their group was waited for. Beyond src-size they are zeros."""
    del match
    texts, place = instruction.operands, place_of(instruction)
    target, source, size = operands.address(texts[0], place), operands.address(texts[1], place), int(texts[2], 0)
    wanted = operands.reader(texts[3], "u32") if len(texts) == 4 else None

    def copy(program: Program, mask: Array) -> None:
        length = np.full(operands.threads, size) if wanted is None else wanted(program).astype(np.int64)
        to = target(program)[mask]
        index = program.shared.begin_copy(to, size, program.warp[mask], place, instruction.line)
        values = np.zeros((int(mask.sum()), size), np.uint8)
        latency = 0.0
        for part in np.unique(length[mask]):
            if part:
                chosen = mask & (length == part)
                where = source(program)[chosen]
                whole = program.device.memory.load(where, int(part), program.agent(chosen), place)
                values[np.flatnonzero(chosen[mask])[:, None], np.arange(int(part))] = whole
                latency = max(latency, program.device.touch_global(program, where, int(part), chosen))
        program.device.touch_shared(program, to, size, mask, SHARED_STORE)
        board = program.board
        for warp in np.unique(program.warp[mask]):
            chosen = program.warp[mask] == warp
            program.copies[warp].open.append((index[chosen], values[chosen]))
            if board is not None:
                board.copied[warp] = max(board.copied[warp], board.now[warp] + latency)

    return copy


def commit_copies(instruction: Instruction, operands: Operands) -> Handler:
    """`cp.async.commit_group`."""
    del instruction, operands

    def commit(program: Program, mask: Array) -> None:
        for warp in np.unique(program.warp[mask]):
            copies = program.copies[warp]
            copies.groups.append(copies.open)
            copies.open = []
            if program.board is not None:
                copies.arrivals.append(float(program.board.copied[warp]))

    return commit


def wait_for_copies(instruction: Instruction, operands: Operands) -> Handler:
    """`cp.async.wait_group`: all but the last groups have arrived."""
    del operands
    left = int(instruction.operands[0], 0)

    def wait(program: Program, mask: Array) -> None:
        for warp in np.unique(program.warp[mask]):
            copies = program.copies[warp]
            while len(copies.groups) > left:
                program.shared.end_copy(copies.groups.pop(0), int(warp))
            while len(copies.arrivals) > left and program.board is not None:
                program.board.now[warp] = max(program.board.now[warp], copies.arrivals.pop(0))

    return wait


def proxy_fence(instruction: Instruction, operands: Operands) -> Handler:
    """`fence.proxy.async`: what the warps have seen of shared memory, the asynchronous proxy sees from now on."""
    del instruction, operands

    def fence(program: Program, mask: Array) -> None:
        program.clocks.fence(np.unique(program.warp[mask]))

    return fence


def atomic(match: re.Match[str], instruction: Instruction, operands: Operands) -> Handler:
    """`atom` and `red`, thread by thread."""
    returns, order = match.group("what") == "atom", match.group("order")
    name = match.group("add") or match.group("extreme") or match.group("bits")
    kind = match.group("sum") or match.group("compared") or match.group("word")
    place, size = place_of(instruction), DTYPES[kind].itemsize
    texts = list(instruction.operands)
    if len(texts) != returns + 2 + (name == "cas"):
        raise PtxError(f"{place}: {texts} are not the operands of {match.group(0)}.")
    write = operands.writer(texts.pop(0), kind) if returns else None
    address, read = operands.address(texts.pop(0), place), operands.reader(texts.pop(), kind)
    expected = operands.reader(texts.pop(), kind) if name == "cas" else None

    def update(program: Program, mask: Array) -> None:
        device = program.device
        full = np.zeros(operands.threads, DTYPES[kind])
        everywhere = address(program)
        device.touch_global(program, everywhere[mask], size, mask, stores=True)
        for thread in np.flatnonzero(mask):
            where, warp = everywhere[thread : thread + 1], int(program.warp[thread])
            if order in ("acq_rel", "acquire"):
                device.acquire(program, int(where[0]), warp)
            who = program.agent(np.arange(operands.threads) == thread)
            if order in ("acq_rel", "release"):
                device.release(program, int(where[0]), warp)
                who = replace(who, time=program.clocks.ordered_until(warp) - 1)  # it is published with the rest
            device.memory.note_atomic(where, size, who, place)
            old = np.ascontiguousarray(device.memory.load(where, size, None, place)).view(DTYPES[kind])[0]
            full[thread] = old[0]
            new = read(program)[thread : thread + 1]
            if expected is not None:
                new = np.where(old == expected(program)[thread], new, old)
            else:
                new = UPDATES[name](old, new)
            device.memory.store(where, new.astype(DTYPES[kind]).reshape(1, 1).view(np.uint8), None, place)
        if write is not None:
            write(program, mask, full)
            if program.board is not None and device.cost is not None:
                program.board.delay(device.cost, np.unique(program.warp[mask]), L2_HIT, 1.0)

    return update
