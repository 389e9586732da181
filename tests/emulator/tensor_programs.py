"""Programs of one product in tensor memory: A and B come from buffers, D goes to one, through shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from emulator.programs import Array, execute, program
from vae_edge_kernels.emulator.arithmetic import E4M3_VALUES, from_bf16, to_bf16

COLUMNS = 16  # N of the products here
A_AT, B_AT = 1024, 9216  # in shared memory; multiples of 1024, where a swizzle's pattern begins
REGISTERS = (
    "b32 %base, %bar, %tm, %mine, %lane, %v<4>, %d<64>, %from, %to",
    "b64 %g, %da, %db",
    "pred %warp0, %first, %done, %yes",
)
ALLOCATE = [
    "mov.b32 %base, global_smem",
    "add.s32 %bar, %base, 8",
    "setp.lt.u32 %warp0, %tid, 32",
    "setp.eq.u32 %first, %tid, 0",
    "@%warp0 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%base], 32",
    "@%warp0 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned",
    "@%first mbarrier.init.shared::cta.b64 [%bar], 1",
]
PROXY_FENCE = "fence.proxy.async.shared::cta"
BARRIER = "bar.sync 0"
COMMIT = "@%first tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar]"
WAIT = ["LOOP:", "mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0", "@!%done bra LOOP"]
OWN_LANES = ["shr.u32 %lane, %tid, 5", "shl.b32 %lane, %lane, 21", "add.s32 %mine, %tm, %lane"]
WAIT_LOADS = "tcgen05.wait::ld.sync.aligned"
DEALLOCATE = "@%warp0 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %tm, 32"
INVALIDATE = "@%first mbarrier.inval.shared::cta.b64 [%bar]"


def copied(buffer: int, to: int, size: int) -> list[str]:
    """Statements that copy a buffer to shared memory, 16 bytes a thread at a time."""
    body = ["shl.b32 %from, %tid, 4"]
    for start in range(0, size, 2048):
        body += [
            f"setp.lt.u32 %yes, %from, {size - start}",
            f"cvt.u64.u32 %g, %from\nadd.s64 %g, %g, %at{buffer}".split("\n")[0],
            f"add.s64 %g, %g, %at{buffer}",
            f"@%yes ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%g+{start}]",
            "add.s32 %to, %base, %from",
            f"@%yes st.shared.v4.b32 [%to+{to + start}], {{%v0, %v1, %v2, %v3}}",
        ]
    return body


def vector(count: int, first: int = 0) -> str:
    return "{" + ", ".join(f"%d{n}" for n in range(first, first + count)) + "}"


def stored(count: int, buffer: int) -> list[str]:
    """Statements that write the first registers to the thread's row of a buffer."""
    return [
        f"mul.wide.u32 %g, %tid, {4 * count}",
        f"add.s64 %g, %g, %at{buffer}",
        *(f"st.global.b32 [%g+{4 * n}], %d{n}" for n in range(count)),
    ]


@dataclass(frozen=True)
class Case:
    """A product: kind, code and bytes of the elements, rows; width of A's swizzle in bytes; which are transposed."""

    kind: str = "f16"
    code: int = 0
    size: int = 2
    rows: int = 128
    width: int = 16
    transposed: tuple[bool, bool] = (False, False)
    sums: int = 1
    negated: bool = False

    @property
    def k(self) -> int:
        return 32 // self.size

    def instruction(self) -> int:
        """The instruction descriptor."""
        transposed = self.transposed[0] << 15 | self.transposed[1] << 16
        shape = COLUMNS >> 3 << 17 | self.rows >> 4 << 24
        return self.sums << 4 | self.code << 7 | self.code << 10 | self.negated << 13 | transposed | shape

    def swizzle(self, rows: int) -> int:
        """Bytes of a row of a part: B's rows may be too short for A's."""
        return min(self.width, COLUMNS * self.size) if rows == COLUMNS else self.width

    def offsets(self, rows: int, transposed: bool) -> tuple[int, int]:
        """Bytes from a part along the contiguous axis to the next one, and from eight rows to the next eight."""
        width, lines = self.swizzle(rows), self.k if transposed else rows
        return lines * width, 8 * width

    def place(self, row: int, byte: int, transposed: bool, rows: int) -> int:
        """Where a byte of a row (or, transposed, of a column of K) lies, from the first address on."""
        width = self.swizzle(rows)
        at = byte // width * self.offsets(rows, transposed)[0] + row * width + byte % width
        return at ^ (at >> 7 & width // 16 - 1) << 4

    def matrix(self, at: int, transposed: bool, rows: int) -> int:
        """The matrix descriptor. Without a swizzle, transposed, the two offsets change their roles."""
        leading, stride = self.offsets(rows, transposed)
        width = self.swizzle(rows)
        if transposed and width == 16:
            leading, stride = stride, leading
        layout = {16: 0, 128: 2, 64: 4, 32: 6}[width]
        return at >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1 << 46 | layout << 61

    def image(self, raw: Array, transposed: bool) -> Array:
        """The bytes of a matrix [rows, K, size] as they lie in shared memory."""
        rows = len(raw)
        lines = raw.swapaxes(0, 1) if transposed else raw
        lines = lines.reshape(len(lines), -1)
        found = np.zeros(max(lines.size, 2048), np.uint8)
        for row, line in enumerate(lines):
            for byte, value in enumerate(line):
                found[self.place(row, byte, transposed, rows)] = value
        return found

    def product(self) -> list[str]:
        return [
            f"mov.b64 %da, {self.matrix(A_AT, self.transposed[0], self.rows)}",
            f"mov.b64 %db, {self.matrix(B_AT, self.transposed[1], COLUMNS)}",
            "setp.ne.u32 %yes, %tid, %tid",
            f"@%first tcgen05.mma.cta_group::1.kind::{self.kind} [%tm], %da, %db, {self.instruction()}, %yes",
        ]

    def load(self) -> str:
        if self.rows == 128:
            return f"tcgen05.ld.sync.aligned.32x32b.x16.b32 {vector(16)}, [%mine]"
        return f"tcgen05.ld.sync.aligned.16x32bx2.x8.b32 {vector(8)}, [%mine], 8"

    def body(self) -> list[str]:
        a_size, b_size = (max(rows * 32, 2048) for rows in (self.rows, COLUMNS))
        return [
            *ALLOCATE,
            *copied(0, A_AT, a_size),
            *copied(1, B_AT, b_size),
            PROXY_FENCE,
            BARRIER,
            "ld.shared.b32 %tm, [%base]",
            *self.product(),
            COMMIT,
            *WAIT,
            *OWN_LANES,
            self.load(),
            WAIT_LOADS,
            *stored(16 if self.rows == 128 else 8, 2),
            BARRIER,
            DEALLOCATE,
            INVALIDATE,
        ]

    def of_threads(self, d: Array) -> Array:
        """D [rows, N] as the threads hold it: [128, registers]."""
        if self.rows == 128:
            return d
        thread = np.arange(128)
        row, half = thread // 32 * 16 + thread % 16, thread % 32 // 16
        return d[row[:, None], 8 * half[:, None] + np.arange(8)]


def run(body: Sequence[str], case: Case, seed: int | None = None) -> tuple[Array, Array]:
    """Run a product on random matrices: what it gives, and what is right."""
    rng = np.random.default_rng(3)
    images, values = [], []
    for rows, transposed in ((case.rows, case.transposed[0]), (COLUMNS, case.transposed[1])):
        numbers = rng.integers(-4, 5, (rows, case.k)).astype(np.float64)
        bits, exact = as_bits(numbers, case)
        values.append(exact)
        images.append(
            case.image(np.ascontiguousarray(bits).view(np.uint8).reshape(rows, case.k, case.size), transposed)
        )
    text = program(body, REGISTERS, 3, 128)
    like = np.zeros((128, 16 if case.rows == 128 else 8), np.uint32)
    (made,) = execute(text, images, [like], seed, shared_size=16384)
    expected = values[0] @ values[1].T * (-1 if case.negated else 1)
    held = made.astype(np.uint16).view(np.float16) if case.sums == 0 else made.view(np.float32)
    return held.astype(np.float64), case.of_threads(expected)


def as_bits(numbers: Array, case: Case) -> tuple[Array, Array]:
    """Elements of a case's type, and what they mean."""
    if case.kind == "tf32":
        bits = numbers.astype(np.float32).view(np.uint32)
        return bits | np.uint32(0x1FFF), numbers  # the last bits are dropped
    if case.kind == "f16":
        if case.code == 1:
            bits = to_bf16(numbers.astype(np.float32))
            return bits, from_bf16(bits).astype(np.float64)
        return numbers.astype(np.float16), numbers
    if case.code == 1:
        bits = (numbers.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8)
        return bits, (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    codes = np.abs(E4M3_VALUES[:127][None, None] - np.abs(numbers)[..., None]).argmin(-1)
    bits = np.where(numbers < 0, codes | 128, codes).astype(np.uint8)
    return bits, E4M3_VALUES[bits]
