"""Sampling, fused: z = mu + exp(logvar / 2) * eps and the KL divergence of each row in one pass; and its gradient.

Each program takes ROWS rows and walks over their columns in tiles of COLUMNS. Arithmetic and the KL divergence are
float32 whatever the tensors hold. The noise is made where it is needed (`philox`), never read or stored: the gradient
makes it again. The formulas are those of the CPU reference in `vae_edge.ops.reparameterize`.

QUADS is the fast way: it needs Z and offset to be multiples of 4, and then one Philox call serves four elements, and
every load and store of float32 is 16 bytes wide where the pointers allow it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, current_architecture, get_config
from vae_edge_kernels.philox import normal_at, normal_quads

OPERATOR = "reparameterize"
DTYPES = ("fp32", "fp16", "bf16")


@triton.jit
def _noise(seed, offset, first, column, columns, QUADS: tl.constexpr, COLUMNS: tl.constexpr):
    """The noise of one tile: `first`, int64 [ROWS, 1], is the index of each row's column 0; `column` is the tile's."""
    if QUADS:
        quad = tl.arange(0, COLUMNS // 4)[None, :]
        return normal_quads(seed, ((offset + first) >> 2) + (column >> 2) + quad)
    else:
        return normal_at(seed, offset + first + column + tl.arange(0, COLUMNS)[None, :])


@triton.jit(do_not_specialize=["seed", "offset"])
def reparameterize_forward(
    mu_ptr, logvar_ptr, z_ptr, kl_ptr, rows, columns, seed, offset,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """mu, logvar [rows, columns] to z [rows, columns] and kl float32 [rows]; the grid has cdiv(rows, ROWS) programs."""
    if QUADS:
        columns = columns // 4 * 4  # tells the compiler what the caller promised, so that it loads four at a time
    offset = tl.cast(offset, tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = row.to(tl.int64)[:, None] * columns
    kl = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row[:, None] < rows) & (column < columns)
        mu = tl.load(mu_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        eps = _noise(seed, offset, first, start, columns, QUADS, COLUMNS)
        z = mu + tl.exp(0.5 * logvar) * eps
        tl.store(z_ptr + first + column, z.to(z_ptr.dtype.element_ty), mask=mask)
        kl += tl.sum(tl.exp(logvar) + mu * mu - 1.0 - logvar, axis=1)  # 0 where masked: exp(0) + 0 - 1 - 0
    tl.store(kl_ptr + row, 0.5 * kl, mask=row < rows)


@triton.jit(do_not_specialize=["seed", "offset"])
def reparameterize_backward(
    grad_z_ptr, grad_kl_ptr, mu_ptr, logvar_ptr, grad_mu_ptr, grad_logvar_ptr, rows, columns, seed, offset,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """Gradients of z [rows, columns] and of kl float32 [rows] to those of mu and logvar [rows, columns]."""
    if QUADS:
        columns = columns // 4 * 4
    offset = tl.cast(offset, tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = row.to(tl.int64)[:, None] * columns
    grad_kl = tl.load(grad_kl_ptr + row, mask=row < rows, other=0.0)[:, None]
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row[:, None] < rows) & (column < columns)
        grad_z = tl.load(grad_z_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        mu = tl.load(mu_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        eps = _noise(seed, offset, first, start, columns, QUADS, COLUMNS)
        grad_mu = grad_z + grad_kl * mu
        grad_logvar = 0.5 * (grad_z * eps * tl.exp(0.5 * logvar) + grad_kl * (tl.exp(logvar) - 1.0))
        tl.store(grad_mu_ptr + first + column, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_logvar_ptr + first + column, grad_logvar.to(grad_logvar_ptr.dtype.element_ty), mask=mask)


def forward(mu: Any, logvar: Any, z: Any, kl: Any, seed: int, offset: int) -> None:
    """Launch the forward kernel on the current device and stream.

    Args:
        mu, logvar: contiguous [N, Z], float32, float16 or bfloat16: any tensor with `shape` that Triton can launch on.
        z: contiguous [N, Z] of the same dtype, written.
        kl: contiguous float32 [N], written.
        seed, offset: see `philox_reference`.
    """
    _launch("forward", reparameterize_forward, (mu, logvar, z, kl), mu.shape, seed, offset)


def backward(
    grad_z: Any, grad_kl: Any, mu: Any, logvar: Any, grad_mu: Any, grad_logvar: Any, seed: int, offset: int
) -> None:
    """Launch the backward kernel on the current device and stream: reads the first four, writes `grad_mu` and
    `grad_logvar`.

    All are contiguous [N, Z] of mu's dtype, but grad_kl is float32 [N].
    """
    tensors = (grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar)
    _launch("backward", reparameterize_backward, tensors, mu.shape, seed, offset)


def _launch(kernel: str, function: Any, tensors: tuple[Any, ...], shape: Any, seed: int, offset: int) -> None:
    rows, columns = shape
    if rows == 0:
        return
    chosen = get_config(OPERATOR, kernel, current_architecture())
    quads = columns % 4 == 0 and offset % 4 == 0
    grid = (triton.cdiv(rows, chosen["ROWS"]),)
    function[grid](*tensors, rows, columns, seed, offset, QUADS=quads, enable_fp_fusion=True, **chosen)


def kernel_specs(architecture: int) -> list[KernelSpec]:
    """What the ahead-of-time compiler makes of this operator: each kernel for each dtype, plain and in quads."""
    kernels = (("forward", reparameterize_forward), ("backward", reparameterize_backward))
    return [
        _variant(kernel, function, dtype, quads, get_config(OPERATOR, kernel, architecture))
        for kernel, function in kernels
        for dtype in DTYPES
        for quads in (False, True)
    ]


def _variant(kernel: str, function: Any, dtype: str, quads: bool, chosen: dict[str, int]) -> KernelSpec:
    pointers = tuple(name for name in function.arg_names if name.endswith("_ptr"))
    types = {name: "*fp32" if "kl" in name else f"*{dtype}" for name in pointers}
    return KernelSpec(
        name=f"reparameterize_{kernel}_{dtype}{'_quads' if quads else ''}",
        operator=OPERATOR,
        function=function,
        types=types | {"rows": "i32", "columns": "i32", "seed": "i64", "offset": "i64"},
        constants={"ROWS": chosen["ROWS"], "COLUMNS": chosen["COLUMNS"], "QUADS": int(quads)},
        aligned=pointers if quads else (),
        num_warps=chosen["num_warps"],
        num_stages=chosen["num_stages"],
    )
