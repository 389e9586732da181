"""How many threads PyTorch computes with."""

from __future__ import annotations

import logging

import torch

from vae_edge.processors import available_cpus

log = logging.getLogger(__name__)
_asked: list[int] = []  # what a user asked for, last at the end: it holds whatever the quota is


def use_threads(asked: int | None = None) -> int:
    """Set PyTorch's threads: as many as are or were asked for; else its own number, but no more than `available_cpus`.

    PyTorch looks at the machine and at `OMP_NUM_THREADS`, not at a container's quota.

    Returns:
        how many there are now.
    """
    most = available_cpus()
    if asked is not None:
        _asked.append(asked)
    if _asked:
        torch.set_num_threads(_asked[-1])
    elif torch.get_num_threads() > most:
        torch.set_num_threads(most)
    if torch.get_num_interop_threads() > most:
        try:
            torch.set_num_interop_threads(most)
        except RuntimeError as error:  # it can be set once, before the first use
            log.debug("PyTorch keeps %d interop threads: %s", torch.get_num_interop_threads(), error)
    return torch.get_num_threads()
