"""Arithmetic of the instructions on NumPy arrays, one element a thread: rounding, conversion, integers, bytes.

Sources: PTX ISA 8.8; IEEE 754. A float64 holds the product of two float32 exactly. Where a sum must be rounded once, it
is first rounded to odd (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# NumPy's type of each PTX type. bfloat16, fp8 and packed types are their bits.
DTYPES: dict[str, Any] = {
    "pred": np.bool_,
    **{
        f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}")
        for kind in "bus"
        for bits in (8, 16, 32, 64)
    },
    **{"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")},
    **{"bf16": np.dtype("u2"), "f16x2": np.dtype("u4"), "bf16x2": np.dtype("u4"), "tf32": np.dtype("u4")},
    **{"e4m3x2": np.dtype("u2"), "f32x2": np.dtype("u8"), "u16x2": np.dtype("u4"), "s16x2": np.dtype("u4")},
}
SMALLEST_NORMAL = np.float32(2.0**-126)
MAX_E4M3 = 448.0


def flush(x: Array) -> Array:
    """Subnormal float32 become zeros of their sign (`.ftz`)."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def minimum(*values: Array) -> Array:
    """The least float that is a number (`min` without `.NaN`); -0 is less than +0."""
    result = values[0]
    for value in values[1:]:
        equal = np.where(np.signbit(result), result, value)
        result = np.where(result == value, equal, np.fmin(result, value))
    return result


def maximum(*values: Array) -> Array:
    """The greatest float that is a number (`max` without `.NaN`); +0 is greater than -0."""
    result = values[0]
    for value in values[1:]:
        equal = np.where(np.signbit(result), value, result)
        result = np.where(result == value, equal, np.fmax(result, value))
    return result


def _canonical_nan(like: Array) -> Array:
    """PTX's canonical NaN: all bits but the sign."""
    width = like.dtype.itemsize
    return np.array(2 ** (8 * width - 1) - 1, f"u{width}").view(like.dtype)


def nan_minimum(a: Array, b: Array) -> Array:
    """`min.NaN`: NaN where either is NaN."""
    return np.where(np.isnan(a) | np.isnan(b), _canonical_nan(a), minimum(a, b))


def nan_maximum(a: Array, b: Array) -> Array:
    """`max.NaN`: NaN where either is NaN."""
    return np.where(np.isnan(a) | np.isnan(b), _canonical_nan(a), maximum(a, b))


def quotient_of_product(a: Array, b: Array) -> Array:
    """`div.approx.f32`, which is a · (1 / b): the reciprocal of a finite b beyond 2^126 is 0."""
    nothing = np.isfinite(b) & (np.abs(b) > np.float32(2.0**126))
    quotient = a / b
    return np.where(
        nothing, np.where(np.isfinite(a), np.copysign(np.float32(0), quotient), np.float32(np.nan)), quotient
    )


def _to_odd(total: Array, error: Array) -> Array:
    """float64 `total` with the error of its rounding, to the float64 rounded to odd."""
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
    outward = (error > 0) == (total > 0)  # the exact sum is farther from zero
    return np.where(inexact, bits + np.where(outward, 1, -1), bits).view(np.float64)


def fused_multiply_add(a: Array, b: Array, c: Array, dtype: Any) -> Array:
    """a · b + c, rounded once to float32 or float16."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    # Knuth's two-sum: the error of the addition, exactly.
    part = total - product
    error = (product - (total - part)) + (addend - part)
    return _to_odd(np.ascontiguousarray(total), error).astype(dtype)


def from_bf16(bits: Array) -> Array:
    """bfloat16 bits (uint16) to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Array) -> Array:
    """float32 to bfloat16 bits, to nearest even; NaN becomes 0x7FFF."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded >> np.uint32(16)).astype(np.uint16)


def to_tf32(x: Array) -> Array:
    """float32 to the bits of tf32, to nearest, ties away from zero (`cvt.rna`); NaN becomes 0x7FFFFFFF.

    A NaN whose payload lies in the last 13 bits would else be an infinity to the matrix units, which drop them.
    """
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), rounded)


def _e4m3_values() -> Array:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where((code & 127) == 127, np.nan, np.where(code & 128, -magnitude, magnitude))


E4M3_VALUES = _e4m3_values()  # float64 [256], by code


def to_e4m3(x: Array) -> Array:
    """float32 to e4m3 codes (uint8), to nearest even, held to ±448 (`.satfinite`)."""
    magnitude = np.minimum(np.abs(x.astype(np.float64)), MAX_E4M3)
    above = np.clip(np.searchsorted(E4M3_VALUES[:127], magnitude), 1, 126)
    down, up = magnitude - E4M3_VALUES[above - 1], E4M3_VALUES[above] - magnitude
    nearest = np.where(down < up, above - 1, np.where(down > up, above, above - (above & 1)))
    return np.where(np.isnan(x), 127, nearest | np.where(np.signbit(x), 128, 0)).astype(np.uint8)


ROUNDINGS: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_integer(x: Array, dtype: Any, rounding: str) -> Array:
    """Float to integer of up to 32 bits, saturated; NaN becomes 0."""
    limits = np.iinfo(dtype)
    whole = np.nan_to_num(ROUNDINGS[rounding](x.astype(np.float64)), nan=0.0, posinf=2.0**40, neginf=-(2.0**40))
    return np.clip(whole, limits.min, limits.max).astype(np.int64).astype(dtype)


def divide(a: Array, b: Array) -> Array:
    """Integers, towards zero. By zero all bits are set, as NVIDIA's GPUs answer (PTX leaves it open)."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient += ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), quotient)


def remainder(a: Array, b: Array) -> Array:
    """Of `divide`: it has the sign of a."""
    return a - divide(a, b) * b


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product of integers of 16, 32 or 64 bits."""
    bits = a.dtype.itemsize * 8
    if bits == 64:
        exact = [(int(x) * int(y)) >> 64 for x, y in zip(a, b, strict=True)]
        return np.array([value & (2**64 - 1) for value in exact], dtype=np.uint64).view(a.dtype)
    wide = np.dtype(f"{a.dtype.kind}8").type
    return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)


def multiply_wide(a: Array, b: Array) -> Array:
    """The product of integers in twice their bits."""
    wide = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
    return a.astype(wide) * b.astype(wide)


def shift_left(a: Array, count: Array) -> Array:
    """By an unsigned count; all bits leave from the width on."""
    bits = a.dtype.itemsize * 8
    return np.where(count >= bits, a.dtype.type(0), a << np.minimum(count, bits - 1).astype(a.dtype))


def shift_right(a: Array, count: Array) -> Array:
    """By an unsigned count; signed values fill with their sign."""
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), shifted)


def extract_bits(a: Array, start: Array, length: Array) -> Array:
    """`bfe`: the field's bits; signed ones repeat the field's last bit, or a's last where it ends sooner."""
    start, length = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    if a.dtype.kind == "u":
        field = np.where(start > 63, np.uint64(0), a.astype(np.uint64) >> np.minimum(start, 63).astype(np.uint64))
        left = (64 - np.clip(length, 1, 64)).astype(np.uint64)
        return np.where(length == 0, np.uint64(0), field & (np.uint64(2**64 - 1) >> left)).astype(a.dtype)
    field = a.astype(np.int64) >> np.minimum(start, 63)
    left = np.minimum(64 - np.minimum(length, 64), 63)
    cut = (field << left) >> left
    return np.where(length == 0, 0, cut).astype(a.dtype)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """`prmt.b32` in its default mode: each nibble picks one of the eight bytes {b, a}; its bit 3 repeats the sign."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for position in range(4):
        nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
        byte = ((both >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * position)
    return result


def lop3(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Any function of three bits: bit 4a + 2b + c of `table` (the same for all threads) is its value."""
    number = int(np.asarray(table).flat[0])
    result = np.zeros_like(a)
    for row in range(8):
        if number >> row & 1:
            terms = (value if row >> bit & 1 else ~value for value, bit in ((a, 2), (b, 1), (c, 0)))
            result |= np.bitwise_and.reduce(list(terms))
    return result


def funnel_shift(low: Array, high: Array, count: Array, *, left: bool, wrap: bool) -> Array:
    """`shf.{l,r}.{wrap,clamp}.b32` of the 64 bits {high, low}."""
    amount = ((count & np.uint32(31)) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
    both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    shifted = ((both << amount) >> np.uint64(32)) if left else (both >> amount)
    return shifted.astype(np.uint32)


def dp4a(a: Array, b: Array, c: Array, dtype_a: Any, dtype_b: Any) -> Array:
    """The dot product of four bytes each, added to c, in 32 bits."""
    left = np.ascontiguousarray(a).view(dtype_a).reshape(-1, 4).astype(np.int64)
    right = np.ascontiguousarray(b).view(dtype_b).reshape(-1, 4).astype(np.int64)
    return ((left * right).sum(1) + c.astype(np.int64)).astype(c.dtype)


def compare(name: str, a: Array, b: Array) -> Array:
    """`setp`'s comparison; those of floats are false where one is NaN, but `…u`, which are true, `num` and `nan`."""
    floats = a.dtype.kind == "f"
    if name in ("num", "nan"):
        ordered = ~(np.isnan(a) | np.isnan(b))
        return ordered if name == "num" else ~ordered
    unordered = floats and name.endswith("u")
    base = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(name, name[:2])
    operators = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal}
    operators |= {"gt": np.greater, "ge": np.greater_equal}
    result: Array = operators[base](a, b)
    if floats:
        nan = np.isnan(a) | np.isnan(b)
        result = (result | nan) if unordered else (result & ~nan)
    return result
