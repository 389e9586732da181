"""A GPU for tests: executes the PTX of the library's kernels on NumPy arrays, and checks every access.

`launch.run_kernel` compiles a kernel ahead of time and runs it; `device.Device` runs any PTX text. See README.md.
"""
