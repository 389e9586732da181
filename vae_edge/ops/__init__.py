"""Operators of the network: `torch.library` operators with a CPU reference, and a Triton kernel on CUDA.

Each has a fake and its gradient. One operator, one module of the same name: `from vae_edge.ops.reparameterize import
reparameterize`. The kernels themselves are in `vae_edge_kernels`, which imports no PyTorch; this package is where the
two meet.
"""

from __future__ import annotations
