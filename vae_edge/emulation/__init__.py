"""Kernels on an emulated GPU, with PyTorch tensors: Triton's launches, checks of a file's kernels, whole networks.

`vae_edge_kernels.emulator` executes; here are what it executes and what it is given.
"""
