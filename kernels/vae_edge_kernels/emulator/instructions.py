"""The instructions that compute on registers: a strict table by opcode with all its modifiers.

An opcode that is not in the table, or has another number of operands, is refused by name. Instructions of memory,
control and whole warps are in `machine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_edge_kernels.emulator import arithmetic as ar
from vae_edge_kernels.emulator.arithmetic import DTYPES, Array


@dataclass(frozen=True)
class Operation:
    """What an instruction computes.

    Attributes:
        inputs: PTX types of its operands behind the destination.
        output: PTX type of the destination.
        compute: arrays of the inputs' types to one of the output's.
        one_more: whether another input of the last one's type may follow (`min` and `max` from sm_100 on).
    """

    inputs: tuple[str, ...]
    output: str
    compute: Callable[..., Array]
    one_more: bool = False


FLOATS: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
INTEGERS = tuple(f"{kind}{bits}" for kind in "us" for bits in (16, 32, 64))
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
COMPARISONS = {"s": "eq ne lt le gt ge", "u": "eq ne lt le gt ge lo ls hi hs", "b": "eq ne"}
FLOAT_COMPARISONS = "eq ne lt le gt ge equ neu ltu leu gtu geu num nan"


def _flushed(compute: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *values: ar.flush(compute(*(ar.flush(value) for value in values)))


def _select(a: Array, b: Array, predicate: Array) -> Array:
    return np.where(predicate, a, b)


def _pairs(compute: Callable[..., Array], element: Any) -> Callable[..., Array]:
    """On two elements packed into a register."""

    def packed(*values: Array) -> Array:
        parts = [np.ascontiguousarray(value).view(element) for value in values]
        return np.ascontiguousarray(compute(*parts)).view(values[0].dtype)

    return packed


def _integers() -> Iterator[tuple[str, Operation]]:
    for kind in INTEGERS:
        two, three = (kind, kind), (kind, kind, kind)
        yield f"add.{kind}", Operation(two, kind, np.add)
        yield f"sub.{kind}", Operation(two, kind, np.subtract)
        yield f"min.{kind}", Operation(two, kind, np.minimum)
        yield f"max.{kind}", Operation(two, kind, np.maximum)
        yield f"div.{kind}", Operation(two, kind, ar.divide)
        yield f"rem.{kind}", Operation(two, kind, ar.remainder)
        yield f"mul.lo.{kind}", Operation(two, kind, np.multiply)
        yield f"mul.hi.{kind}", Operation(two, kind, ar.multiply_high)
        yield f"mad.lo.{kind}", Operation(three, kind, lambda a, b, c: a * b + c)
        if kind in WIDE:
            wide = WIDE[kind]
            yield f"mul.wide.{kind}", Operation(two, wide, ar.multiply_wide)
            yield f"mad.wide.{kind}", Operation((kind, kind, wide), wide, lambda a, b, c: ar.multiply_wide(a, b) + c)
        yield f"shr.{kind}", Operation((kind, "u32"), kind, ar.shift_right)
        if kind.startswith("s"):
            yield f"neg.{kind}", Operation((kind,), kind, np.negative)
            yield f"abs.{kind}", Operation((kind,), kind, np.abs)
    for kind in ("u32", "s32", "u64", "s64"):
        yield f"bfe.{kind}", Operation((kind, "u32", "u32"), kind, ar.extract_bits)
    for kind, element in (("u16x2", np.uint16), ("s16x2", np.int16)):  # sm_90 and later
        yield f"add.{kind}", Operation((kind, kind), kind, _pairs(np.add, element))
        yield f"min.{kind}", Operation((kind, kind), kind, _pairs(np.minimum, element))
        yield f"max.{kind}", Operation((kind, kind), kind, _pairs(np.maximum, element))
    for bits in (16, 32, 64):
        kind = f"b{bits}"
        yield f"shl.{kind}", Operation((kind, "u32"), kind, ar.shift_left)
        yield f"shr.{kind}", Operation((kind, "u32"), kind, ar.shift_right)
    for kind in ("b16", "b32", "b64", "pred"):
        yield f"and.{kind}", Operation((kind, kind), kind, np.bitwise_and)
        yield f"or.{kind}", Operation((kind, kind), kind, np.bitwise_or)
        yield f"xor.{kind}", Operation((kind, kind), kind, np.bitwise_xor)
        yield f"not.{kind}", Operation((kind,), kind, np.invert)
    yield "prmt.b32", Operation(("b32", "b32", "b32"), "b32", ar.permute_bytes)
    yield "lop3.b32", Operation(("b32", "b32", "b32", "b32"), "b32", ar.lop3)
    for side in "lr":
        for mode in ("wrap", "clamp"):
            compute = lambda a, b, c, left=side == "l", wrap=mode == "wrap": ar.funnel_shift(  # noqa: E731
                a, b, c, left=left, wrap=wrap
            )
            yield f"shf.{side}.{mode}.b32", Operation(("b32", "b32", "u32"), "b32", compute)
    for a in "us":
        for b in "us":
            dot = lambda x, y, z, a=DTYPES[f"{a}8"], b=DTYPES[f"{b}8"]: ar.dp4a(x, y, z, a, b)  # noqa: E731
            sum_kind = "s32" if "s" in (a, b) else "u32"
            yield f"dp4a.{a}32.{b}32", Operation(("b32", "b32", sum_kind), sum_kind, dot)


def _floats() -> Iterator[tuple[str, Operation]]:
    def both(opcode: str, operation: Operation) -> Iterator[tuple[str, Operation]]:
        """With and without `.ftz` in front of the type."""
        yield opcode, operation
        stem, _, kind = opcode.rpartition(".")
        if kind == "f32":
            flushed = Operation(operation.inputs, operation.output, _flushed(operation.compute))
            yield f"{stem}.ftz.{kind}", flushed

    for kind, dtype in FLOATS.items():
        two = (kind, kind)
        for rounding in ("", ".rn"):
            yield from both(f"add{rounding}.{kind}", Operation(two, kind, np.add))
            yield from both(f"sub{rounding}.{kind}", Operation(two, kind, np.subtract))
            yield from both(f"mul{rounding}.{kind}", Operation(two, kind, np.multiply))
        if kind != "f64":
            fma = lambda a, b, c, dtype=dtype: ar.fused_multiply_add(a, b, c, dtype)  # noqa: E731
            yield from both(f"fma.rn.{kind}", Operation((kind, kind, kind), kind, fma))
        yield from both(f"min.{kind}", Operation(two, kind, ar.minimum, kind == "f32"))
        yield from both(f"max.{kind}", Operation(two, kind, ar.maximum, kind == "f32"))
        if kind != "f64":
            yield f"min.NaN.{kind}", Operation(two, kind, ar.nan_minimum)
            yield f"max.NaN.{kind}", Operation(two, kind, ar.nan_maximum)
        if kind == "f32":
            yield "min.ftz.NaN.f32", Operation(two, kind, _flushed(ar.nan_minimum))
            yield "max.ftz.NaN.f32", Operation(two, kind, _flushed(ar.nan_maximum))
        if kind != "f16":
            yield f"copysign.{kind}", Operation(two, kind, lambda sign, value: np.copysign(value, sign))
        yield from both(f"neg.{kind}", Operation((kind,), kind, np.negative))
        yield from both(f"abs.{kind}", Operation((kind,), kind, np.abs))
    for name, divide in (("full", np.divide), ("approx", ar.quotient_of_product), ("rn", np.divide)):
        yield from both(f"div.{name}.f32", Operation(("f32", "f32"), "f32", divide))
    one: dict[str, Callable[..., Array]] = {
        "sqrt": np.sqrt,
        "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
        "rcp": lambda x: np.float32(1) / x,
        "ex2": np.exp2,
        "lg2": np.log2,
        "sin": np.sin,
        "cos": np.cos,
        "tanh": np.tanh,
    }
    for name, compute in one.items():
        for rounding in ("approx", "rn") if name in ("sqrt", "rcp") else ("approx",):
            yield from both(f"{name}.{rounding}.f32", Operation(("f32",), "f32", compute))

    packed = {"f16x2": np.float16, "f32x2": np.float32}
    for kind, element in packed.items():
        for rounding in ("", ".rn"):
            for name, compute in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
                yield f"{name}{rounding}.{kind}", Operation((kind, kind), kind, _pairs(compute, element))
        fma = lambda a, b, c, dtype=element: ar.fused_multiply_add(a, b, c, dtype)  # noqa: E731
        yield f"fma.rn.{kind}", Operation((kind, kind, kind), kind, _pairs(fma, element))
        for name, compute in (("min", ar.minimum), ("max", ar.maximum)):
            yield f"{name}.{kind}", Operation((kind, kind), kind, _pairs(compute, element))
    for name, compute in (("min", ar.nan_minimum), ("max", ar.nan_maximum)):
        yield f"{name}.NaN.f16x2", Operation(("f16x2", "f16x2"), "f16x2", _pairs(compute, np.float16))
    # sm_90 and later: operands of 16 bits of a float32 sum
    widen: dict[str, Callable[[Array], Array]] = {"f16": lambda a: a.astype(np.float32), "bf16": ar.from_bf16}
    for kind, to_f32 in widen.items():
        wide = lambda a, b, c, w=to_f32: ar.fused_multiply_add(w(a), w(b), c, np.float32)  # noqa: E731
        yield f"fma.rn.f32.{kind}", Operation((kind, kind, "f32"), "f32", wide)
        for name, compute in (("add", np.add), ("sub", np.subtract)):
            mixed = lambda a, b, w=to_f32, f=compute: f(w(a), b)  # noqa: E731
            yield f"{name}.rn.f32.{kind}", Operation((kind, "f32"), "f32", mixed)


def _moves() -> Iterator[tuple[str, Operation]]:
    for kind in ("pred", *(f"{k}{bits}" for k in "bus" for bits in (16, 32, 64)), "f32", "f64"):
        yield f"mov.{kind}", Operation((kind,), kind, lambda a: a)
        if kind != "pred":
            yield f"selp.{kind}", Operation((kind, kind, "pred"), kind, _select)
    for direction in ("", "to."):  # addresses of every space are those of the generic one here
        for space in ("local", "global"):
            yield f"cvta.{direction}{space}.u64", Operation(("u64",), "u64", lambda a: a)
    for kind in (*INTEGERS, "b16", "b32", "b64", *FLOATS):
        names = FLOAT_COMPARISONS if kind in FLOATS else COMPARISONS[kind[0]]
        for name in names.split():
            compute = lambda a, b, name=name: ar.compare(name, a, b)  # noqa: E731
            yield f"setp.{name}.{kind}", Operation((kind, kind), "pred", compute)
            if kind == "f32":
                flushed = lambda a, b, name=name: ar.compare(name, ar.flush(a), ar.flush(b))  # noqa: E731
                yield f"setp.{name}.ftz.{kind}", Operation((kind, kind), "pred", flushed)


def _conversions() -> Iterator[tuple[str, Operation]]:
    whole = tuple(f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64))
    for source in whole:
        for target in whole:
            if source != target:
                compute = lambda a, dtype=DTYPES[target]: a.astype(dtype)  # noqa: E731
                yield f"cvt.{target}.{source}", Operation((source,), target, compute)
        for target, dtype in FLOATS.items():
            compute = lambda a, dtype=dtype: a.astype(dtype)  # noqa: E731
            yield f"cvt.rn.{target}.{source}", Operation((source,), target, compute)
    for target in (kind for kind in whole if not kind.endswith("64")):
        for rounding in ar.ROUNDINGS:
            for source in ("f16", "f32"):
                compute = lambda a, dtype=DTYPES[target], r=rounding: ar.float_to_integer(a, dtype, r)  # noqa: E731
                yield f"cvt.{rounding}.{target}.{source}", Operation((source,), target, compute)
            flushed = lambda a, dtype=DTYPES[target], r=rounding: ar.float_to_integer(ar.flush(a), dtype, r)  # noqa: E731
            yield f"cvt.{rounding}.ftz.{target}.f32", Operation(("f32",), target, flushed)
    for rounding, function in ar.ROUNDINGS.items():
        yield f"cvt.{rounding}.f32.f32", Operation(("f32",), "f32", function)
        yield f"cvt.{rounding}.ftz.f32.f32", Operation(("f32",), "f32", _flushed(function))
    yield "cvt.f32.f16", Operation(("f16",), "f32", lambda a: a.astype(np.float32))
    yield "cvt.f32.bf16", Operation(("bf16",), "f32", ar.from_bf16)
    yield "cvt.f64.f32", Operation(("f32",), "f64", lambda a: a.astype(np.float64))
    yield "cvt.rn.f32.f64", Operation(("f64",), "f32", lambda a: a.astype(np.float32))
    yield "cvt.rn.f16.f32", Operation(("f32",), "f16", lambda a: a.astype(np.float16))
    yield "cvt.rn.bf16.f32", Operation(("f32",), "bf16", ar.to_bf16)
    yield "cvt.rna.tf32.f32", Operation(("f32",), "tf32", ar.to_tf32)

    def pack(high: Array, low: Array, convert: Callable[[Array], Array], bits: int) -> Array:
        wide: Any = np.uint32 if bits == 16 else np.uint16
        upper, lower = (convert(x).view(f"u{bits // 8}").astype(wide) for x in (high, low))
        return np.left_shift(upper, wide(bits)) | lower

    def widen(a: Array) -> Array:
        return np.ascontiguousarray(ar.E4M3_VALUES[a.view(np.uint8)].astype(np.float16)).view(np.uint32)

    def pack_integers(high: Array, low: Array, rest: Array) -> Array:
        upper, lower = (np.clip(x, -128, 127).astype(np.uint32) & np.uint32(0xFF) for x in (high, low))
        return rest << np.uint32(16) | upper << np.uint32(8) | lower

    yield "cvt.pack.sat.s8.s32.b32", Operation(("s32", "s32", "b32"), "b32", pack_integers)
    yield "cvt.rn.f16x2.e4m3x2", Operation(("e4m3x2",), "f16x2", lambda a: widen(np.ascontiguousarray(a)))
    half = lambda a: np.ascontiguousarray(a.astype(np.float16))  # noqa: E731
    yield "cvt.rn.f16x2.f32", Operation(("f32", "f32"), "f16x2", lambda a, b: pack(a, b, half, 16))
    yield "cvt.rn.bf16x2.f32", Operation(("f32", "f32"), "bf16x2", lambda a, b: pack(a, b, ar.to_bf16, 16))
    yield (
        "cvt.rn.satfinite.e4m3x2.f32",
        Operation(("f32", "f32"), "e4m3x2", lambda a, b: pack(a, b, ar.to_e4m3, 8)),
    )


OPERATIONS: dict[str, Operation] = {
    opcode: operation for table in (_integers, _floats, _moves, _conversions) for opcode, operation in table()
}
"""By opcode."""
