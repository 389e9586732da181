"""Floats as bits and exact numbers: what the references of the emulator's instructions compute with.

Nothing of NumPy is used here. A number is a `Fraction` that is not zero, or a Python float that is ±0, ±infinity or
NaN. Formats: IEEE 754, and for e4m3 "FP8 Formats for Deep Learning" (no infinities, one NaN of each sign).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

Number = float | Fraction


@dataclass(frozen=True)
class Format:
    """A binary format of floats: sign, exponent, fraction."""

    exponent_bits: int
    fraction_bits: int
    infinities: bool = True

    @property
    def width(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def least_exponent(self) -> int:
        """Of normal numbers."""
        return 2 - (1 << (self.exponent_bits - 1))

    @property
    def infinity(self) -> int:
        """The first magnitude that is no finite number."""
        codes = (1 << self.exponent_bits) - 1 << self.fraction_bits
        return codes if self.infinities else codes + (1 << self.fraction_bits) - 1

    @property
    def nan(self) -> int:
        """The canonical NaN of PTX: all ones but the sign."""
        return (1 << (self.width - 1)) - 1


F16, BF16, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
TF32 = Format(8, 10)  # in a register it lies in the upper 19 bits
E4M3 = Format(4, 3, infinities=False)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64, "e4m3": E4M3}


def negative(x: Number) -> bool:
    """Whether the sign is set."""
    return x < 0 if isinstance(x, Fraction) else math.copysign(1, x) < 0


def special(x: Number) -> bool:
    """Infinity or NaN."""
    return isinstance(x, float) and not math.isfinite(x)


def is_nan(x: Number) -> bool:
    return isinstance(x, float) and math.isnan(x)


def with_sign(magnitude: float, minus: bool) -> float:
    return -magnitude if minus else magnitude


def number(bits: int, form: Format) -> Number:
    """What bits mean."""
    minus = bool(bits >> (form.width - 1))
    magnitude = bits & ((1 << (form.width - 1)) - 1)
    if magnitude >= form.infinity:
        return with_sign(math.inf, minus) if form.infinities and magnitude == form.infinity else math.nan
    if magnitude == 0:
        return with_sign(0.0, minus)
    field, fraction = magnitude >> form.fraction_bits, magnitude & ((1 << form.fraction_bits) - 1)
    significand = fraction + ((1 << form.fraction_bits) if field else 0)
    exponent = form.least_exponent + max(field, 1) - 1 - form.fraction_bits
    value = Fraction(significand << exponent) if exponent >= 0 else Fraction(significand, 1 << -exponent)
    return -value if minus else value


def bits_of(x: Number, form: Format, ties: str = "even", saturate: bool = False) -> int:
    """The bits of a number, rounded once to the nearest.

    Args:
        x: the number.
        form: of the bits.
        ties: "even", or "away" from zero.
        saturate: whether what is beyond the finite numbers becomes the largest of them (`.satfinite`).
    """
    if is_nan(x):
        return form.nan
    sign = int(negative(x)) << (form.width - 1)
    if isinstance(x, float):
        if x == 0:
            return sign
        return sign | (form.infinity - 1 if saturate else form.infinity)
    top, bottom = abs(x.numerator), x.denominator
    exponent = top.bit_length() - bottom.bit_length()
    if Fraction(top, bottom) < (Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)):
        exponent -= 1
    exponent = max(exponent, form.least_exponent)
    quantum = exponent - form.fraction_bits
    top, bottom = (top, bottom << quantum) if quantum >= 0 else (top << -quantum, bottom)
    whole, rest = divmod(top, bottom)
    if 2 * rest > bottom or (2 * rest == bottom and (ties == "away" or whole % 2)):
        whole += 1
    # A significand of fraction_bits + 1 bits adds one to the exponent's field.
    magnitude = (exponent - form.least_exponent << form.fraction_bits) + whole
    if magnitude >= form.infinity:
        magnitude = form.infinity - 1 if saturate else form.infinity
    return sign | magnitude


def add(x: Number, y: Number) -> Number:
    if special(x) or special(y):
        if is_nan(x) or is_nan(y) or (special(x) and special(y) and x != y):
            return math.nan
        return x if special(x) else y
    total = Fraction(x) + Fraction(y)
    return total or with_sign(0.0, negative(x) and negative(y))


def multiply(x: Number, y: Number) -> Number:
    minus = negative(x) != negative(y)
    if is_nan(x) or is_nan(y):
        return math.nan
    if special(x) or special(y):
        return math.nan if x == 0 or y == 0 else with_sign(math.inf, minus)
    return Fraction(x) * Fraction(y) or with_sign(0.0, minus)


def divide(x: Number, y: Number) -> Number:
    minus = negative(x) != negative(y)
    if is_nan(x) or is_nan(y) or (special(x) and special(y)) or (x == 0 and y == 0):
        return math.nan
    if special(x) or y == 0:
        return with_sign(math.inf, minus)
    return with_sign(0.0, minus) if special(y) or x == 0 else Fraction(x) / Fraction(y)


def root(x: Number) -> Number:
    """The square root to 400 bits behind the point, of which the last says whether it is inexact."""
    if is_nan(x) or x < 0:
        return math.nan
    if isinstance(x, float):
        return x
    shift = 400
    scaled = (x.numerator << 2 * shift) // x.denominator
    whole = math.isqrt(scaled)
    inexact = whole * whole != scaled or scaled * x.denominator != x.numerator << 2 * shift
    return Fraction(2 * whole + inexact, 1 << (shift + 1))


def negate(x: Number) -> Number:
    return -x


def absolute(x: Number) -> Number:
    return -x if negative(x) else x


def least(x: Number, y: Number) -> Number:
    """A number wins over NaN, and -0 is less than +0."""
    if is_nan(x) or is_nan(y):
        return y if is_nan(x) else x
    if x == 0 and y == 0:
        return x if negative(x) else y
    return x if x < y else y


def greatest(x: Number, y: Number) -> Number:
    return negate(least(negate(x), negate(y)))


def to_integer(x: Fraction, mode: str) -> int:
    """Rounded to an integer: rni to nearest even, rzi towards zero, rmi down, rpi up."""
    floor = x.numerator // x.denominator
    rest = x - floor
    if mode == "rmi" or not rest:
        return floor
    if mode == "rpi":
        return floor + 1
    if mode == "rzi":
        return floor + (x < 0)
    assert mode == "rni"
    return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))
