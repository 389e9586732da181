"""What each instruction that computes on registers must give: from bits to bits, for one thread, by its opcode.

Written after the text of the PTX ISA 8.8, with Python's integers and exact fractions; independent of the emulator and
of NumPy. The approximate functions (`.approx`, `.full`) give the exact value and the error that the ISA allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulator import exact
from emulator.exact import FORMATS, Number, bits_of, number

INTEGERS = [f"{sign}{width}" for sign in "us" for width in (16, 32, 64)]
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Within:
    """An approximate float32.

    Attributes:
        value: the exact one, to float64.
        error: how far the result may be off.
        flushed: whether subnormal results are zeros.
    """

    value: float
    error: float
    flushed: bool

    def holds(self, bits: int) -> bool:
        """Whether a result is near enough."""
        got, value = float(number(bits, exact.F32)), self.value
        if math.isnan(value):
            return math.isnan(got)
        if got == math.copysign(math.inf, value):
            return abs(value) + self.error >= 2.0**128 - 2.0**103
        if value == 0:
            return got == 0 and math.copysign(1, got) == math.copysign(1, value)
        if self.flushed and got == 0:
            return abs(value) - self.error < SMALLEST_NORMAL and exact.negative(number(bits, exact.F32)) == (value < 0)
        if self.flushed and abs(got) < SMALLEST_NORMAL:
            return False
        return abs(got - value) <= self.error


@dataclass(frozen=True)
class Reference:
    """The types of an instruction's operands and what it computes.

    Attributes:
        inputs: PTX types of the operands behind the destination.
        output: PTX type of the destination.
        compute: bits of the inputs to the bits of the output; or to what they must be within; or to None where the ISA
            leaves the result open.
    """

    inputs: tuple[str, ...]
    output: str
    compute: Callable[..., int | Within | None]

    def holds(self, got: int, *inputs: int) -> bool:
        """Whether a result is right. A NaN may be any."""
        wanted = self.compute(*inputs)
        if isinstance(wanted, Within):
            return wanted.holds(got)
        return wanted is None or got == wanted or same_nans(self.output, got, wanted)


def width_of(kind: str) -> int:
    """Bits of a type."""
    if kind == "pred":
        return 1
    if kind.endswith("x2"):
        return 2 * width_of(kind[:-2])
    return {"e4m3": 8, "bf16": 16, "tf32": 32}.get(kind) or int(kind[1:])


def same_nans(kind: str, a: int, b: int) -> bool:
    """Whether bits are equal but for the NaN that they hold."""
    if kind.endswith("x2"):
        half = width_of(kind) // 2
        parts = [((a >> shift) % 2**half, (b >> shift) % 2**half) for shift in (0, half)]
        return all(x == y or same_nans(kind[:-2], x, y) for x, y in parts)
    form = FORMATS.get(kind)
    if kind == "tf32":  # the matrix units do not see the last bits: NaN must be in the others
        a, b, form = a >> 13, b >> 13, exact.TF32
    if form is None:
        return False
    return exact.is_nan(number(a, form)) and exact.is_nan(number(b, form))


def read(kind: str, bits: int) -> Any:
    """Bits as a signed or unsigned integer, a number, or a truth."""
    if kind == "pred":
        return bool(bits)
    if kind in FORMATS:
        return number(bits, FORMATS[kind])
    signed = kind[0] == "s" and bits >> (width_of(kind) - 1)
    return bits - (1 << width_of(kind)) if signed else bits


def write(kind: str, value: Any) -> int:
    """The bits of a result; integers keep their lower bits, floats are rounded once to nearest even."""
    if kind in FORMATS:
        return bits_of(value, FORMATS[kind])
    return int(value) & ((1 << width_of(kind)) - 1)


def typed(inputs: tuple[str, ...], output: str, compute: Callable[..., Any]) -> Reference:
    """From a function of values."""
    return Reference(
        inputs,
        output,
        lambda *bits: write(output, compute(*(read(k, b) for k, b in zip(inputs, bits, strict=True)))),
    )


def flush(bits: int) -> int:
    """`.ftz`: a subnormal float32 is a zero of its sign."""
    return bits & 0x8000_0000 if bits & 0x7F80_0000 == 0 else bits


def flushed(reference: Reference) -> Reference:
    """With `.ftz`, of inputs and result."""

    def compute(*bits: int) -> int | Within | None:
        inputs = [flush(b) if k == "f32" else b for k, b in zip(reference.inputs, bits, strict=True)]
        result = reference.compute(*inputs)
        if isinstance(result, Within):
            return Within(result.value, result.error, True)
        return flush(result) if reference.output == "f32" and result is not None else result

    return Reference(reference.inputs, reference.output, compute)


def of_pairs(reference: Reference, kind: str) -> Reference:
    """The same on both halves of a register."""
    half = width_of(kind) // 2
    mask = (1 << half) - 1

    def compute(*bits: int) -> int:
        low, high = (reference.compute(*(b >> shift & mask for b in bits)) for shift in (0, half))
        assert isinstance(low, int) and isinstance(high, int)
        return low | high << half

    return Reference(tuple(kind for _ in reference.inputs), kind, compute)


# ------------------------------------------------------------------------------------------------------- integers


def quotient(kind: str) -> Callable[[int, int], int]:
    """Towards zero. By zero the ISA leaves it open; NVIDIA's GPUs set all bits, and so must the emulator."""

    def compute(a: int, b: int) -> int:
        if b == 0:
            return -1
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    return compute


def rest(a: int, b: int) -> int | None:
    return abs(a) % abs(b) * (-1 if a < 0 else 1)


def shift_right(a: int, count: int) -> int:
    """`a` has its sign: the bits that come in repeat it."""
    return a >> min(count, 64)


def bit_field(a: int, start: int, length: int, signed: bool, width: int) -> int:
    """`bfe`, bit by bit as in the ISA's pseudocode."""
    start, length = start & 0xFF, length & 0xFF
    sign = a >> min(start + length - 1, width - 1) & 1 if signed and length else 0
    bits = [a >> (start + i) & 1 if i < length and start + i < width else sign for i in range(width)]
    return sum(bit << i for i, bit in enumerate(bits))


def permuted(a: int, b: int, selector: int) -> int:
    """`prmt` in its default mode."""
    source = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    result = []
    for i in range(4):
        choice = selector >> 4 * i & 0xF
        byte = source[choice & 7]
        result.append((0xFF if byte & 0x80 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def looked_up(a: int, b: int, c: int, table: int) -> int:
    """`lop3`: a, b and c of one position are bits 2, 1 and 0 of the number of the table's bit."""
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


def funnel(side: str, mode: str) -> Callable[[int, int, int], int]:
    """`shf`: b holds bits 63 to 32, a bits 31 to 0."""

    def compute(a: int, b: int, c: int) -> int:
        n = min(c, 32) if mode == "clamp" else c & 31
        return (b << n | a >> (32 - n)) if side == "l" else (b << (32 - n) | a >> n)

    return compute


def dot(signed_a: bool, signed_b: bool) -> Callable[[int, int, int], int]:
    """`dp4a`."""

    def compute(a: int, b: int, c: int) -> int:
        parts = zip(a.to_bytes(4, "little"), b.to_bytes(4, "little"), strict=True)
        return c + sum((x - 256 * (signed_a and x > 127)) * (y - 256 * (signed_b and y > 127)) for x, y in parts)

    return compute


def integer_reference(name: str, mods: list[str]) -> Reference | None:
    """Arithmetic, shifts and bits of integers."""
    *mods, kind = mods
    if name in ("shl", "shr") and not mods and kind[1:] in ("16", "32", "64"):
        if name == "shr" and kind[0] in "bus":
            return typed((kind, "u32"), kind, shift_right)
        return typed((kind, "u32"), kind, lambda a, n: a << min(n, 64)) if kind[0] == "b" else None
    if name in ("and", "or", "xor", "not") and not mods and kind in ("b16", "b32", "b64", "pred"):
        bitwise: dict[str, Callable[..., int]] = {
            "and": lambda a, b: a & b,
            "or": lambda a, b: a | b,
            "xor": lambda a, b: a ^ b,
            "not": lambda a: a ^ -1,
        }
        compute = bitwise[name]
        if kind == "pred" and name == "not":
            compute = lambda a: not a  # noqa: E731
        return typed((kind,) if name == "not" else (kind, kind), kind, compute)
    if name == "bfe" and not mods and width_of(kind) in (32, 64):
        signed, width = kind[0] == "s", width_of(kind)
        return Reference((kind, "u32", "u32"), kind, lambda a, b, c: bit_field(a, b, c, signed, width))
    if [name, *mods, kind] == ["prmt", "b32"]:
        return typed(("b32", "b32", "b32"), "b32", permuted)
    if [name, *mods, kind] == ["lop3", "b32"]:
        return typed(("b32", "b32", "b32", "b32"), "b32", looked_up)
    if name == "shf" and kind == "b32" and mods[0] in "lr" and mods[1] in ("clamp", "wrap"):
        return typed(("b32", "b32", "u32"), "b32", funnel(mods[0], mods[1]))
    if name == "dp4a" and mods and mods[0] in ("u32", "s32") and kind in ("u32", "s32"):
        total = "u32" if mods[0] == kind == "u32" else "s32"
        return typed(("b32", "b32", total), total, dot(mods[0] == "s32", kind == "s32"))
    if kind in ("u16x2", "s16x2") and name in ("add", "min", "max") and not mods:
        one = integer_reference(name, [kind[:-2]])
        return None if one is None else of_pairs(one, kind)
    if kind not in INTEGERS:
        return None
    two, width = (kind, kind), width_of(kind)
    doubled = f"{kind[0]}{2 * width}"
    table: dict[str, Reference] = {
        "add": typed(two, kind, lambda a, b: a + b),
        "sub": typed(two, kind, lambda a, b: a - b),
        "min": typed(two, kind, min),
        "max": typed(two, kind, max),
        "div": typed(two, kind, quotient(kind)),
        "rem": Reference(two, kind, lambda a, b: typed(two, kind, rest).compute(a, b) if b else None),
        "mul.lo": typed(two, kind, lambda a, b: a * b),
        "mul.hi": typed(two, kind, lambda a, b: a * b >> width),
        "mad.lo": typed((*two, kind), kind, lambda a, b, c: a * b + c),
    }
    if kind[0] == "s":
        table["neg"] = typed((kind,), kind, lambda a: -a)
        table["abs"] = typed((kind,), kind, abs)
    if width < 64:
        table["mul.wide"] = typed(two, doubled, lambda a, b: a * b)
        table["mad.wide"] = typed((*two, doubled), doubled, lambda a, b, c: a * b + c)
    return table.get(".".join([name, *mods]))


# --------------------------------------------------------------------------------------------------------- floats


def ulp(value: float) -> float:
    """The distance of float32 around a value."""
    if value == 0 or not math.isfinite(value):
        return 2.0**-149
    return 2.0 ** max(math.frexp(value)[1] - 24, -149)


def relative(error: float) -> Callable[[float, float], float]:
    return lambda x, value: abs(value) * error


def in_ulps(count: int) -> Callable[[float, float], float]:
    return lambda x, value: count * ulp(value)


def reciprocal_root(x: float) -> float:
    if x == 0:
        return math.copysign(math.inf, x)
    return math.nan if x < 0 else 1 / math.sqrt(x)


def logarithm(x: float) -> float:
    if x == 0:
        return -math.inf
    return math.nan if x < 0 else math.log2(x)


# Function, and the error that the ISA allows at x for an exact result.
APPROXIMATE: dict[str, tuple[Callable[[float], float], Callable[[float, float], float]]] = {
    "ex2": (lambda x: 2.0 ** max(min(x, 1000.0), -1000.0) if not math.isnan(x) else x, in_ulps(2)),
    "lg2": (logarithm, lambda x, value: 2.0**-22 * (1 if 0.5 < x < 2 else abs(value))),
    "sqrt": (lambda x: math.nan if x < 0 else math.sqrt(x), relative(2.0**-23)),
    "rsqrt": (reciprocal_root, relative(2.0**-22.9)),
    "rcp": (lambda x: float(exact.divide(1.0, x)) if x else math.copysign(math.inf, x), in_ulps(1)),
    "sin": (lambda x: math.sin(x) if math.isfinite(x) else math.nan, lambda x, value: 2.0**-20.5),
    "cos": (lambda x: math.cos(x) if math.isfinite(x) else math.nan, lambda x, value: 2.0**-20.5),
    "tanh": (math.tanh, relative(2.0**-11)),
}
LIMITS = {"sin": math.pi, "cos": math.pi}  # beyond, the ISA states no such error


def approximate(name: str) -> Reference:
    """A function of one float32."""
    function, error = APPROXIMATE[name]

    def compute(bits: int) -> Within | None:
        x = float(number(bits, exact.F32))
        if math.isfinite(x) and abs(x) > LIMITS.get(name, math.inf):
            return None
        value = function(x)
        return Within(value, error(x, value) if math.isfinite(value) else 0.0, False)

    return Reference(("f32",), "f32", compute)


def approximate_quotient(mode: str) -> Reference:
    """`div.full` is within 2 ulp everywhere, `div.approx` for divisors from 2^-126 to 2^126: beyond them 0 or NaN."""

    def compute(a: int, b: int) -> Within | None:
        x, y = number(a, exact.F32), number(b, exact.F32)
        value: Number = exact.divide(x, y)
        if mode == "approx" and not exact.special(y) and y != 0 and not exact.is_nan(value):
            if exact.absolute(y) < SMALLEST_NORMAL:
                return None
            if exact.absolute(y) > 2.0**126:
                value = math.nan if exact.special(x) else exact.with_sign(0.0, exact.negative(value))
        near = float(value)
        return Within(near, 2 * ulp(near), False)

    return Reference(("f32", "f32"), "f32", compute)


def fused(a: Number, b: Number, c: Number) -> Number:
    return exact.add(exact.multiply(a, b), c)


ARITHMETIC: dict[str, Callable[..., Number]] = {
    "add": exact.add,
    "sub": lambda a, b: exact.add(a, exact.negate(b)),
    "mul": exact.multiply,
    "fma": fused,
    "min": exact.least,
    "max": exact.greatest,
    "neg": exact.negate,
    "abs": exact.absolute,
}
NAN_WINS: dict[str, Callable[..., Number]] = {
    "min": lambda a, b: math.nan if exact.is_nan(a) or exact.is_nan(b) else exact.least(a, b),
    "max": lambda a, b: math.nan if exact.is_nan(a) or exact.is_nan(b) else exact.greatest(a, b),
}
OPERANDS = {"fma": 3, "neg": 1, "abs": 1}
ROUNDED = ("add", "sub", "mul", "fma")


def float_reference(name: str, mods: list[str]) -> Reference | None:
    """Arithmetic of floats."""
    mods, kind = list(mods[:-1]), mods[-1]
    if mods == ["rn", "f32"] and kind in ("f16", "bf16") and name in ("add", "sub", "fma"):
        return typed((kind,) * (OPERANDS.get(name, 2) - 1) + ("f32",), "f32", ARITHMETIC[name])
    element = kind[:-2] if kind in ("f16x2", "f32x2") else kind
    if element not in ("f16", "f32", "f64"):
        return None
    if name == "copysign":
        top = {"f32": 1 << 31, "f64": 1 << 63}.get(element, 0)
        return Reference((element, element), element, lambda a, b: (b & ~top) | (a & top)) if top and not mods else None
    ftz = "ftz" in mods
    if ftz:
        mods.remove("ftz")
        if kind != "f32":
            return None
    made: Reference | None = None
    if name in ARITHMETIC:
        if mods == ["NaN"] and name in ("min", "max") and element != "f64":
            made = typed((element, element), element, NAN_WINS[name])
        elif (mods == ["rn"] and name in ROUNDED) or (not mods and name != "fma"):
            made = typed((element,) * OPERANDS.get(name, 2), element, ARITHMETIC[name])
    elif kind == "f32" and mods == ["rn"]:
        rounded: dict[str, tuple[int, Callable[..., Number]]] = {
            "div": (2, exact.divide),
            "sqrt": (1, exact.root),
            "rcp": (1, lambda x: exact.divide(exact.number(0x3F800000, exact.F32), x)),
        }
        if name in rounded:
            made = typed(("f32",) * rounded[name][0], "f32", rounded[name][1])
    elif kind == "f32" and name == "div" and mods in (["full"], ["approx"]):
        made = approximate_quotient(mods[0])
    elif kind == "f32" and mods == ["approx"] and name in APPROXIMATE:
        made = approximate(name)
    if made is None:
        return None
    made = flushed(made) if ftz else made
    return of_pairs(made, kind) if kind != element else made


# ---------------------------------------------------------------------------------- moves, comparisons, conversions

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def comparison(name: str, kind: str) -> Callable[[Any, Any], bool] | None:
    """`setp`'s."""
    if kind[0] == "f":
        if name in ("num", "nan"):
            return lambda a, b: (exact.is_nan(a) or exact.is_nan(b)) == (name == "nan")
        base = COMPARISONS.get(name[:2])
        if base is None or name[2:] not in ("", "u"):
            return None
        return lambda a, b: name.endswith("u") if exact.is_nan(a) or exact.is_nan(b) else base(a, b)
    if kind[0] == "u":
        name = UNSIGNED.get(name, name)
    return None if kind[0] == "b" and name not in ("eq", "ne") else COMPARISONS.get(name)


def move_reference(name: str, mods: list[str]) -> Reference | None:
    """`mov`, `selp`, `setp`."""
    kind = mods[-1]
    if name == "setp":
        ftz = mods[1:-1] == ["ftz"] and kind == "f32"
        compute = comparison(mods[0], kind)
        if compute is None or (len(mods) > 2 and not ftz):
            return None
        made = typed((kind, kind), "pred", compute)
        return flushed(made) if ftz else made
    if len(mods) != 1:
        return None
    if name == "mov":
        return Reference((kind,), kind, lambda a: a)
    return Reference((kind, kind, "pred"), kind, lambda a, b, p: a if p else b)


def float_to_integer(mode: str, target: str) -> Callable[[Number], int]:
    """Saturated; NaN is 0."""
    width, signed = width_of(target), target[0] == "s"
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)

    def compute(x: Number) -> int:
        if exact.is_nan(x):
            return 0
        if exact.special(x):
            return high if x > 0 else low
        return max(low, min(high, exact.to_integer(x, mode) if x else 0))  # type: ignore[arg-type]

    return compute


def integral(mode: str) -> Callable[[Number], Number]:
    """A float without its fraction; a zero keeps the sign."""

    def compute(x: Number) -> Number:
        if isinstance(x, float):
            return x
        whole = exact.to_integer(x, mode)
        return exact.Fraction(whole) if whole else exact.with_sign(0.0, x < 0)

    return compute


def packed(convert: Callable[[int], int], width: int) -> Callable[[int, int], int]:
    """The first operand is the upper half."""
    return lambda a, b: convert(a) << width | convert(b)


def saturated_byte(bits: int) -> int:
    """A signed integer of 32 bits as the nearest one of 8."""
    return min(max(bits - (bits >> 31 << 32), -128), 127) & 255


def narrowed(form: exact.Format, saturate: bool = False) -> Callable[[int], int]:
    return lambda bits: bits_of(number(bits, exact.F32), form, saturate=saturate)


def conversion_reference(name: str, mods: list[str]) -> Reference | None:
    """`cvt`."""
    assert name == "cvt"
    *rounding, target, source = mods
    whole = [f"{sign}{width}" for sign in "us" for width in (8, 16, 32, 64)]
    modes = ("rni", "rzi", "rmi", "rpi")
    if target in whole and source in whole and not rounding and target != source:
        return typed((source,), target, lambda a: a)
    if target in ("f16", "f32", "f64") and source in whole and rounding == ["rn"]:
        return typed((source,), target, lambda a: exact.Fraction(a) if a else 0.0)
    if target in whole and source in ("f16", "f32") and rounding and rounding[0] in modes:
        made = typed((source,), target, float_to_integer(rounding[0], target))
        ftz = rounding[1:] == ["ftz"] and source == "f32"
        return flushed(made) if ftz else made if len(rounding) == 1 else None
    if target == source == "f32" and rounding and rounding[0] in modes:
        made = typed(("f32",), "f32", integral(rounding[0]))
        return flushed(made) if rounding[1:] == ["ftz"] else made if len(rounding) == 1 else None
    others: dict[str, Reference] = {
        "f32.f16": typed(("f16",), "f32", lambda a: a),
        "f32.bf16": typed(("bf16",), "f32", lambda a: a),
        "f64.f32": typed(("f32",), "f64", lambda a: a),
        "rn.f32.f64": typed(("f64",), "f32", lambda a: a),
        "rn.f16.f32": typed(("f32",), "f16", lambda a: a),
        "rn.bf16.f32": Reference(("f32",), "bf16", narrowed(exact.BF16)),
        "rna.tf32.f32": Reference(
            ("f32",), "tf32", lambda a: bits_of(number(a, exact.F32), exact.TF32, ties="away") << 13
        ),
        "rn.f16x2.f32": Reference(("f32", "f32"), "f16x2", packed(narrowed(exact.F16), 16)),
        "rn.bf16x2.f32": Reference(("f32", "f32"), "bf16x2", packed(narrowed(exact.BF16), 16)),
        "rn.satfinite.e4m3x2.f32": Reference(("f32", "f32"), "e4m3x2", packed(narrowed(exact.E4M3, saturate=True), 8)),
        "pack.sat.s8.s32.b32": Reference(
            ("s32", "s32", "b32"),
            "b32",
            lambda a, b, c: (c & 0xFFFF) << 16 | saturated_byte(a) << 8 | saturated_byte(b),
        ),
        "rn.f16x2.e4m3x2": Reference(
            ("e4m3x2",),
            "f16x2",
            lambda a: sum(bits_of(number(a >> 8 * i & 255, exact.E4M3), exact.F16) << 16 * i for i in (0, 1)),
        ),
    }
    return others.get(".".join(mods))


def reference(opcode: str) -> Reference | None:
    """Of an opcode with all its modifiers; None where there is none."""
    name, *mods = opcode.split(".")
    if name in ("mov", "selp", "setp"):
        return move_reference(name, mods)
    if name == "cvt":
        return conversion_reference(name, mods)
    if name == "cvta" and mods[-1] == "u64":  # an address is the same in every space, as far as it is emulated
        return Reference(("u64",), "u64", lambda a: a)
    floats = mods[-1].startswith(("f", "bf"))
    return float_reference(name, mods) if floats else integer_reference(name, mods)
