"""Operators of the network: each a `torch.library` operator with a CPU reference, a fake, its gradient, and a Triton
kernel on CUDA.

One operator, one module of the same name: `from vae_edge.ops.reparameterize import reparameterize`. The kernels
themselves are in `vae_edge_kernels`, which imports no PyTorch; this room is where the two meet.
"""

from __future__ import annotations
