"""Sampling from the posterior, fused: z = mu + exp(logvar / 2) · eps and the KL divergence of each row; and its
gradient.

Each program takes ROWS rows and walks over their columns in tiles of COLUMNS. Arithmetic and the KL divergence are
float32 whatever the tensors hold. The noise eps is computed where it is needed and never stored: the backward pass
computes it again. Stream and formulas are those of the CPU reference, `vae_edge.ops.reparameterize`: number k of the
stream is lane k % 4 of Philox call k // 4.

QUADS is the fast way. It needs Z and offset to be multiples of 4. Then one Philox call serves four elements, and every
load and store of float32 is 16 bytes wide where the pointers allow it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, current_architecture, get_config

OPERATOR = "reparameterize"
DTYPES = ("fp32", "fp16", "bf16")


# ---- Noise ----------------------------------------------------------------------------------------------------------


@triton.jit
def box_muller(u1, u2):
    """Uniforms in [0, 1) to two independent standard normals: sqrt(−2 ln u1) · (cos 2πu2, sin 2πu2).

    Sine and cosine are polynomials, as in the reference: the CPU, the interpreter and every GPU agree to a few units
    in the last place, which their own functions would not.
    """
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(u1, 1.0e-7)))

    # Reduce to [−π/4, π/4] around the nearest multiple of π/2.
    nearest = tl.floor(4.0 * u2 + 0.5)
    x = (u2 - 0.25 * nearest) * 6.283185307179586
    square = x * x
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * x + x
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0

    # Rotate back by quadrant: swap sine and cosine in the odd ones, then set the signs.
    quadrant = nearest.to(tl.int32)
    odd = (quadrant & 1) == 1
    abs_cos = tl.where(odd, sine, cosine)
    abs_sin = tl.where(odd, cosine, sine)
    n1 = radius * tl.where(((quadrant + 1) & 2) == 2, -abs_cos, abs_cos)
    n2 = radius * tl.where((quadrant & 2) == 2, -abs_sin, abs_sin)
    return n1, n2


@triton.jit
def philox_words(seed, block):
    """Philox4x32-10 with counter (block mod 2^32, block div 2^32, 0, 0); `block` is int64. Four tensors of words."""
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def randn(seed, index):
    """Numbers `index` (int64, any shape) of the seed's stream of normals, float32; one Philox call for each."""
    w0, w1, w2, w3 = philox_words(seed, index >> 2)
    second = (index & 2) == 2
    u1 = tl.uint_to_uniform_float(tl.where(second, w2, w0))
    u2 = tl.uint_to_uniform_float(tl.where(second, w3, w1))
    n1, n2 = box_muller(u1, u2)
    return tl.where((index & 1) == 1, n2, n1)


@triton.jit
def randn4x(seed, block):
    """All four numbers of blocks `block` (int64 [R, Q]) of the stream: float32 [R, 4 Q]; one Philox call for four."""
    w0, w1, w2, w3 = philox_words(seed, block)
    n0, n1 = box_muller(tl.uint_to_uniform_float(w0), tl.uint_to_uniform_float(w1))
    n2, n3 = box_muller(tl.uint_to_uniform_float(w2), tl.uint_to_uniform_float(w3))
    lanes = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(lanes, (block.shape[0], block.shape[1] * 4))


@triton.jit
def _noise(seed, offset, row_start, column, columns, QUADS: tl.constexpr, COLUMNS: tl.constexpr):
    """The noise of a tile [ROWS, COLUMNS] from `column` on; row_start, int64 [ROWS, 1], is each row's first element."""
    if QUADS:
        quad = tl.arange(0, COLUMNS // 4)[None, :]
        return randn4x(seed, ((offset + row_start) >> 2) + (column >> 2) + quad)
    else:
        return randn(seed, offset + row_start + column + tl.arange(0, COLUMNS)[None, :])


# ---- Forward and backward -------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["seed", "offset"])
def reparameterize_forward(
    mu_ptr, logvar_ptr, z_ptr, kl_ptr, rows, columns, seed, offset,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """z = mu + exp(logvar / 2) · eps [rows, columns];  kl = ½ · sum of (exp(logvar) + mu² − 1 − logvar) [rows].

    mu, logvar, z: [rows, columns].  kl: float32 [rows].  eps[i] is number offset + i of the seed's noise.
    Grid: (cdiv(rows, ROWS),).
    """
    if QUADS:
        columns = columns // 4 * 4  # tells the compiler what the caller promised, so that it loads four at a time
    offset = tl.cast(offset, tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_start = row.to(tl.int64)[:, None] * columns
    kl = tl.zeros((ROWS,), dtype=tl.float32)

    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row[:, None] < rows) & (column < columns)
        mu = tl.load(mu_ptr + row_start + column, mask=mask, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + row_start + column, mask=mask, other=0.0).to(tl.float32)

        eps = _noise(seed, offset, row_start, start, columns, QUADS, COLUMNS)
        z = mu + tl.exp(0.5 * logvar) * eps
        tl.store(z_ptr + row_start + column, z.to(z_ptr.dtype.element_ty), mask=mask)
        kl += tl.sum(tl.exp(logvar) + mu * mu - 1.0 - logvar, axis=1)  # 0 where masked: exp(0) + 0 - 1 - 0

    tl.store(kl_ptr + row, 0.5 * kl, mask=row < rows)


@triton.jit
def reparameterize_from_memory(
    mu_ptr, logvar_ptr, seed_ptr, offset_ptr, z_ptr, kl_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`reparameterize_forward` with seed and offset from memory, int64 [1] each: of an engine, which has no scalars."""
    seed, offset = tl.load(seed_ptr), tl.load(offset_ptr)
    reparameterize_forward(mu_ptr, logvar_ptr, z_ptr, kl_ptr, rows, columns, seed, offset, ROWS, COLUMNS, False)


@triton.jit(do_not_specialize=["seed", "offset"])
def reparameterize_backward(
    grad_z_ptr, grad_kl_ptr, mu_ptr, logvar_ptr, grad_mu_ptr, grad_logvar_ptr, rows, columns, seed, offset,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """grad_mu = grad_z + grad_kl · mu;  grad_logvar = ½ · (grad_z · eps · exp(logvar / 2) + grad_kl · (exp(logvar) −
    1)).

    grad_z, mu, logvar, grad_mu, grad_logvar: [rows, columns].  grad_kl: float32 [rows].  Grid: (cdiv(rows, ROWS),).
    """
    if QUADS:
        columns = columns // 4 * 4
    offset = tl.cast(offset, tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_start = row.to(tl.int64)[:, None] * columns
    grad_kl = tl.load(grad_kl_ptr + row, mask=row < rows, other=0.0)[:, None]

    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row[:, None] < rows) & (column < columns)
        grad_z = tl.load(grad_z_ptr + row_start + column, mask=mask, other=0.0).to(tl.float32)
        mu = tl.load(mu_ptr + row_start + column, mask=mask, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + row_start + column, mask=mask, other=0.0).to(tl.float32)

        eps = _noise(seed, offset, row_start, start, columns, QUADS, COLUMNS)
        grad_mu = grad_z + grad_kl * mu
        grad_logvar = 0.5 * (grad_z * eps * tl.exp(0.5 * logvar) + grad_kl * (tl.exp(logvar) - 1.0))
        tl.store(grad_mu_ptr + row_start + column, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_logvar_ptr + row_start + column, grad_logvar.to(grad_logvar_ptr.dtype.element_ty), mask=mask)


# ---- Launching ------------------------------------------------------------------------------------------------------


def forward(mu: Any, logvar: Any, z: Any, kl: Any, seed: int, offset: int) -> None:
    """Launch the forward kernel on the current device and stream.

    Args:
        mu, logvar: contiguous [N, Z], float32, float16 or bfloat16: any tensor with `shape` that Triton can launch on.
        z: contiguous [N, Z] of the same dtype, written.
        kl: contiguous float32 [N], written.
        seed, offset: of the noise; see `vae_edge.ops.reparameterize`.
    """
    _launch("forward", reparameterize_forward, (mu, logvar, z, kl), mu.shape, seed, offset)


def backward(
    grad_z: Any, grad_kl: Any, mu: Any, logvar: Any, grad_mu: Any, grad_logvar: Any, seed: int, offset: int
) -> None:
    """Launch the backward kernel on the current device and stream; it writes `grad_mu` and `grad_logvar`.

    All tensors are contiguous [N, Z] of mu's dtype, but grad_kl, which is float32 [N].
    """
    tensors = (grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar)
    _launch("backward", reparameterize_backward, tensors, mu.shape, seed, offset)


def _launch(kernel: str, function: Any, tensors: tuple[Any, ...], shape: Any, seed: int, offset: int) -> None:
    rows, columns = shape
    if rows == 0:
        return
    config = get_config(OPERATOR, kernel, current_architecture())
    quads = columns % 4 == 0 and offset % 4 == 0
    grid = (triton.cdiv(rows, config["ROWS"]),)
    function[grid](*tensors, rows, columns, seed, offset, QUADS=quads, enable_fp_fusion=True, **config)


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes of this operator: each kernel for each dtype, plain and in quads."""
    kernels = (("forward", reparameterize_forward), ("backward", reparameterize_backward))
    return [
        _variant(kernel, function, dtype, quads, get_config(OPERATOR, kernel, architecture))
        for kernel, function in kernels
        for dtype in DTYPES
        for quads in (False, True)
    ]


def _variant(kernel: str, function: Any, dtype: str, quads: bool, config: dict[str, int]) -> KernelSpec:
    pointers = tuple(name for name in function.arg_names if name.endswith("_ptr"))
    types = {name: "*fp32" if "kl" in name else f"*{dtype}" for name in pointers}
    return KernelSpec(
        name=f"reparameterize_{kernel}_{dtype}{'_quads' if quads else ''}",
        operator=OPERATOR,
        function=function,
        types=types | {"rows": "i32", "columns": "i32", "seed": "i64", "offset": "i64"},
        constants={"ROWS": config["ROWS"], "COLUMNS": config["COLUMNS"], "QUADS": int(quads)},
        aligned=pointers if quads else (),
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
