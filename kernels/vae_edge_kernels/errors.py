"""The errors of the kernels, and the base of the whole family.

`vae_edge.errors` imports both and adds the rest. They are stated here because `vae_edge` depends on this package, and
never the other way round.
"""

from __future__ import annotations


class VaeEdgeError(Exception):
    """Base of every error that a user can cause and catch; the command line prints it and exits with 2."""


class KernelError(VaeEdgeError):
    """A kernel cannot be compiled, or was called with arguments that it does not take."""
