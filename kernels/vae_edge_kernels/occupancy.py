"""How many warps of a kernel a multiprocessor holds at once, by the architecture's published limits.

NVIDIA, "CUDA Programming Guide", appendix "Compute Capabilities": resident warps and blocks, registers and shared
memory of a multiprocessor. Registers are given out 256 at a time to a warp, shared memory 128 bytes at a time to a
block, which also takes 1 KiB of it for itself (compute capability 8.0 and later).
"""

from __future__ import annotations

from dataclasses import dataclass

from vae_edge_kernels.errors import KernelError

REGISTERS = 65536
REGISTER_UNIT, SHARED_UNIT, SHARED_OF_BLOCK = 256, 128, 1024


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor holds."""

    warps: int
    blocks: int
    shared_bytes: int


LIMITS = {
    80: Limits(64, 32, 164 << 10),
    86: Limits(48, 16, 100 << 10),
    87: Limits(48, 16, 164 << 10),
    89: Limits(48, 24, 100 << 10),
    90: Limits(64, 32, 228 << 10),
    100: Limits(64, 32, 228 << 10),
    110: Limits(48, 24, 228 << 10),
    120: Limits(48, 24, 100 << 10),
}


def occupancy(architecture: int, registers: int, warps: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps, 0 to 1, that programs of a kernel can fill; 0 where not one fits.

    Args:
        architecture: 87 is sm_87.
        registers: of a thread.
        warps: of a program.
        shared_bytes: of a program.

    Raises:
        KernelError: if the limits of the architecture are not known.
    """
    if architecture not in LIMITS:
        raise KernelError(f"the limits of sm_{architecture} are not known; known are {', '.join(map(str, LIMITS))}")
    limits = LIMITS[architecture]
    of_warp = _up(max(registers, 1) * 32, REGISTER_UNIT)
    of_block = _up(shared_bytes, SHARED_UNIT) + SHARED_OF_BLOCK
    blocks = min(limits.blocks, limits.warps // warps, REGISTERS // of_warp // warps, limits.shared_bytes // of_block)
    return blocks * warps / limits.warps


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
