"""Kernels whose products Triton puts into tensor memory on sm_100 and sm_110."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul_kernel(
    c_ptr,
    a_ptr,
    b_ptr,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUMS: tl.constexpr,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
):
    """C [programs · M, N] = A [programs · M, K] · B [K, N]; transposed, they lie as [programs · K, M] and [N, K]."""
    program = tl.program_id(0)
    row, column, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)

    sums = tl.zeros((BLOCK_M, BLOCK_N), SUMS)
    for start in range(0, K, BLOCK_K):
        if A_TRANSPOSED:
            a = tl.trans(tl.load(a_ptr + (program * K + start + k[:, None]) * BLOCK_M + row[None, :]))
        else:
            a = tl.load(a_ptr + (program * BLOCK_M + row[:, None]) * K + start + k[None, :])
        if B_TRANSPOSED:
            b = tl.trans(tl.load(b_ptr + column[:, None] * K + start + k[None, :]))
        else:
            b = tl.load(b_ptr + (start + k[:, None]) * BLOCK_N + column[None, :])
        sums = tl.dot(a, b, sums, out_dtype=SUMS)

    tl.store(c_ptr + (program * BLOCK_M + row[:, None]) * BLOCK_N + column[None, :], sums)


@triton.jit
def attention_kernel(o_ptr, q_ptr, k_ptr, v_ptr, ROWS: tl.constexpr, KEYS: tl.constexpr, FEATURES: tl.constexpr):
    """O [rows, features] = exp(Q · Kᵀ - max) · V; Kᵀ is [features, keys]. The second product's A is computed."""
    row, key, feature = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, FEATURES)

    q = tl.load(q_ptr + row[:, None] * FEATURES + feature[None, :])
    k = tl.load(k_ptr + feature[:, None] * KEYS + key[None, :])
    logits = tl.dot(q, k)
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])

    v = tl.load(v_ptr + key[:, None] * FEATURES + feature[None, :])
    sums = tl.dot(weights.to(tl.float16), v)
    tl.store(o_ptr + row[:, None] * FEATURES + feature[None, :], sums)
