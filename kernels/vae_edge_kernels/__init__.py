"""VAE Edge's Triton kernels, their configurations, and the compiler that makes machine code of them ahead of time.

One operator, one file: the kernels, the function that launches them, and what the ahead-of-time compiler must know
about them; its configurations per architecture lie in `configs/<operator>.json`, and it is listed in
`aot_worker.OPERATORS`. `network` is built of the others. No kernel file imports PyTorch: a launcher takes anything with
the few attributes of a tensor that it names.

This package's own import costs nothing: Triton is imported by the kernel files alone, NumPy by `philox_reference`.
"""

from __future__ import annotations
