"""VAE Edge's Triton kernels, their launch configurations, and the compiler that runs ahead of time.

One operator, one file: the kernels, the functions that launch them, and `kernel_specs`, what is compiled ahead of time.
The file is listed in `aot.worker.OPERATOR_MODULES`; launch configurations per architecture and resource budgets lie in
`configs/<operator>.json`. `implicit_gemm` is shared by `conv` and `network`; `network` is built of all the others.

Nothing here imports PyTorch or `vae_edge`: a launcher takes any object with the few attributes of a tensor that it
names. Importing this package costs nothing: only kernel files import Triton. The errors are stated here, the base of
the whole family among them, because `vae_edge` depends on this package and never the other way round.
"""

from __future__ import annotations


class VaeEdgeError(Exception):
    """Base of every error that a user can cause and catch; the command line prints it and exits with 2."""


class KernelError(VaeEdgeError):
    """A kernel cannot be compiled, or was called with arguments that it does not take."""
