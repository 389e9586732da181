"""What a launch costs: instructions, wavefronts of shared memory, sectors of global memory, by source line too."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from vae_edge_kernels.emulator.arithmetic import Array
from vae_edge_kernels.emulator.warps import LANES

NEVER = -(1 << 62)  # a time
BANKS, BANK_BYTES = 32, 4  # of shared memory
SECTOR_BYTES = 32  # of global memory


class Counts:
    """Counters of a launch.

    Attributes:
        opcodes: warp instructions by opcode with all modifiers.
        totals: warp "instructions", "barriers", "products" (of matrices), "shuffles"; global memory: "requests", and
            "sectors read", "sectors written"; shared memory: "wavefronts", and "conflicts", those beyond the fewest
            that the same bytes need.
        macs: multiply-accumulates of `tcgen05.mma` by its kind, whose shape no opcode tells.
        by_line: the same as `totals` by source line, as far as the compiler names it.
    """

    def __init__(self) -> None:
        self.opcodes: Counter[str] = Counter()
        self.macs: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.by_line: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, what: str, amount: int, source: str) -> None:
        """Count something at a source line."""
        self.totals[what] += amount
        if source:
            self.by_line[source][what] += amount


def wavefronts(addresses: Array, size: int, warps: Array, lanes: Array) -> tuple[Array, Array]:
    """Wavefronts that an access to shared memory takes, and the fewest that it could take, for each warp of `warps`.

    Sixteen bytes a thread are served in four parts of a warp, eight in two. In each part a bank gives one word a
    wavefront; threads that read the same word share it (CUDA Programming Guide, "Shared Memory").

    Args:
        addresses: of each access, in bytes [N].
        size: bytes of each access.
        warps: of each access.
        lanes: of each access.
    """
    parts = max(1, size // BANK_BYTES)
    part = warps.astype(np.int64) * parts + lanes // (LANES // parts)
    words = (addresses.astype(np.int64) // BANK_BYTES)[:, None] + np.arange(max(1, size // BANK_BYTES))
    span = int(words.max()) + 1
    distinct = np.unique((part[:, None] * span + words).reshape(-1))
    banks = np.bincount(distinct // span * BANKS + distinct % span % BANKS, minlength=1)
    banks = np.pad(banks, (0, -len(banks) % BANKS)).reshape(-1, BANKS).max(1)
    taken, fewest = np.zeros(int(warps.max()) + 1, np.int64), np.zeros(int(warps.max()) + 1, np.int64)
    used = np.flatnonzero(banks)
    np.add.at(taken, used // parts, banks[used])
    np.add.at(fewest, used // parts, 1)
    return taken, fewest
