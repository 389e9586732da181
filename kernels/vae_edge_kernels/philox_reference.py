"""The noise of every operator, written in NumPy: the definition that the Triton kernels and the C test follow.

The noise is one endless stream for each seed: normal(seed, 0), normal(seed, 1), ... An operator that is called with
`seed` and `offset` gives element i of its row-major output the number normal(seed, offset + i). So a batch may be cut
anywhere: the second part, called with its own offset, has the noise that it had in the whole.

Number k of the stream is lane k % 4 of block k // 4. A block is one Philox4x32-10 call (Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) with counter (block mod 2^32, block div 2^32, 0, 0) and key
(seed mod 2^32, seed div 2^32). Its four words become uniforms u in [0, 1) by Triton's mapping (`uniform`), and two Box-
Muller pairs make the lanes: (u0, u1) lanes 0 and 1, (u2, u3) lanes 2 and 3. Sine and cosine are polynomials instead of
the library's functions, so that a CPU, the interpreter and a GPU agree to a few units in the last place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LANES = 4
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)
_UNIFORM_SCALE = np.float32(4.6566127342e-10)
_MIN_UNIFORM = np.float32(1.0e-7)
_TWO_PI = np.float32(6.283185307179586)
# Minimax polynomials of sine and cosine on [-pi/4, pi/4], from the Cephes library (sinf.c, S. L. Moshier).
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def philox4x32(counter: npt.NDArray[np.uint64], key: tuple[int, int], rounds: int = 10) -> npt.NDArray[np.uint32]:
    """Philox4x32: counter words uint64 [4, ...], each below 2^32, and two key words to random words uint32 [4, ...]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = (product_1 >> _HALF_WORD) ^ c1 ^ np.uint64(k0)
        c2 = (product_0 >> _HALF_WORD) ^ c3 ^ np.uint64(k1)
        c1 = product_1 & _LOW
        c3 = product_0 & _LOW
        k0 = (k0 + _WEYL_0) & 0xFFFFFFFF
        k1 = (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)


def uniform(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Random words to float32 in [0, 1), by the mapping of Triton's `tl.rand`: the sign folded away, then scaled."""
    signed = words.view(np.int32)
    return np.where(signed < 0, ~signed, signed).astype(np.float32) * _UNIFORM_SCALE


def box_muller(u1: npt.NDArray[np.float32], u2: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
    """Two arrays of uniforms to two arrays of independent standard normals, float32 (Box and Muller, 1958)."""
    radius = np.sqrt(np.float32(-2.0) * np.log(np.maximum(u1, _MIN_UNIFORM)))

    # Reduce to [-pi/4, pi/4] around the nearest multiple of pi/2.
    nearest = np.floor(np.float32(4.0) * u2 + np.float32(0.5))
    x = (u2 - np.float32(0.25) * nearest) * _TWO_PI
    square = x * x
    s0, s1, s2 = map(np.float32, SINE)
    c0, c1, c2 = map(np.float32, COSINE)
    sine = ((s0 * square + s1) * square + s2) * square * x + x
    cosine = ((c0 * square + c1) * square + c2) * square * square - np.float32(0.5) * square + np.float32(1.0)

    # Rotate back by quadrant: swap sine and cosine in the odd ones, then set the signs.
    quadrant = nearest.astype(np.int32)
    odd = (quadrant & 1) == 1
    signed_cosine = np.where(((quadrant + 1) & 2) == 2, -radius, radius)
    signed_sine = np.where((quadrant & 2) == 2, -radius, radius)
    return signed_cosine * np.where(odd, sine, cosine), signed_sine * np.where(odd, cosine, sine)


def normal(seed: int, offset: int, count: int) -> npt.NDArray[np.float32]:
    """Numbers offset, offset + 1, ..., offset + count - 1 of the seed's stream of standard normals: float32 [count].

    Raises:
        ValueError: the seed, the offset or the count is negative, or the seed or the stream's end does not fit 63 bits.
    """
    if min(seed, offset, count) < 0 or seed >= 1 << 63 or offset + count > 1 << 63:
        raise ValueError(f"seed, offset and offset + count must be from 0 to 2^63 - 1; got {seed}, {offset}, {count}.")
    first, end = offset // LANES, -(-(offset + count) // LANES)
    block = np.arange(first, end, dtype=np.uint64)
    zero = np.zeros_like(block)
    counter = np.stack((block & _LOW, block >> _HALF_WORD, zero, zero))
    u = uniform(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)))
    lanes = np.empty((block.size, LANES), dtype=np.float32)
    lanes[:, 0::2], lanes[:, 1::2] = (part.T for part in box_muller(u[0::2], u[1::2]))
    start = offset - first * LANES
    return lanes.reshape(-1)[start : start + count]
