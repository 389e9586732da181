"""The noise of every operator inside a kernel: the same stream of normals as `philox_reference` defines, in Triton.

`normal_at` takes any numbers of the stream and pays one Philox call for each; `normal_quads` takes whole blocks and
pays one call for four. Both give the same numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def box_muller(u1, u2):
    """Uniforms in [0, 1) to two independent standard normals; see `philox_reference.box_muller`."""
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(u1, 1.0e-7)))
    quadrant = tl.floor(4.0 * u2 + 0.5)
    x = (u2 - 0.25 * quadrant) * 6.283185307179586
    square = x * x
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * x + x
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    turn = quadrant.to(tl.int32)
    odd = (turn & 1) == 1
    along = tl.where(odd, sine, cosine)
    across = tl.where(odd, cosine, sine)
    n1 = radius * tl.where(((turn + 1) & 2) == 2, -along, along)
    n2 = radius * tl.where((turn & 2) == 2, -across, across)
    return n1, n2


@triton.jit
def philox_words(seed, block):
    """Philox4x32-10 with counter (block mod 2^32, block div 2^32, 0, 0); `block` is int64. Four tensors of words."""
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def normal_at(seed, number):
    """Numbers `number` (int64, any shape) of the seed's stream of normals: float32 of the same shape."""
    w0, w1, w2, w3 = philox_words(seed, number >> 2)
    second = (number & 2) == 2
    u1 = tl.uint_to_uniform_float(tl.where(second, w2, w0))
    u2 = tl.uint_to_uniform_float(tl.where(second, w3, w1))
    n1, n2 = box_muller(u1, u2)
    return tl.where((number & 1) == 1, n2, n1)


@triton.jit
def normal_quads(seed, block):
    """All four lanes of blocks `block` (int64 [R, Q]): float32 [R, 4 Q]."""
    w0, w1, w2, w3 = philox_words(seed, block)
    n0, n1 = box_muller(tl.uint_to_uniform_float(w0), tl.uint_to_uniform_float(w1))
    n2, n3 = box_muller(tl.uint_to_uniform_float(w2), tl.uint_to_uniform_float(w3))
    lanes = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(lanes, (block.shape[0], block.shape[1] * 4))
