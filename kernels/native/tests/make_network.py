"""Writes a network file for the tests in C: a small plan, numbers that are all zero, real machine code.

python make_network.py FILE ARCHITECTURE PROGRAMS
"""

from __future__ import annotations

import sys

import numpy as np
from vae_edge_kernels.aot.network_file import write_network
from vae_edge_kernels.plan import make_plan, padded


def main(path: str, architecture: int, programs: int) -> None:
    """Write the file."""
    plan = make_plan(
        sides=[28, 14, 7, 4],
        channels=1,
        classes=3,
        bins=0,
        latent=4,
        hidden=4,
        fill=0.0,
        window=False,
        pose_widths=(),
        widths=(16, 16, 16),
        components=4,
        clusters=3,
        decoder=None,
        int8=False,
    )
    buffers = {
        "weights": np.zeros(plan.weights_size, np.float16),
        "numbers": np.zeros(plan.numbers_size, np.float32),
        "whitenings": np.zeros((3, 4, padded(4)), np.float16),
    }
    write_network(path, plan, buffers, ["one", "t=wo", "drei äöü"], 0.5, (architecture,), programs)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
