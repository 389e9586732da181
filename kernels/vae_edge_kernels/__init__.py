"""VAE Edge's Triton kernels, their launch configurations, and the compiler that runs ahead of time.

One operator, one file: the kernels, the functions that launch them, and `kernel_specs`, what is compiled ahead of time.
The file is listed in `aot.worker.OPERATOR_MODULES`; launch configurations per architecture and resource budgets lie in
`configs/<operator>.json`. `implicit_gemm` is shared by `conv` and `network`; `network` is built of all the others.

Nothing here imports PyTorch or `vae_edge`: a launcher takes any object with the few attributes of a tensor that it
names. Importing this package costs nothing: only kernel files import Triton, only `philox_reference` NumPy.
"""
