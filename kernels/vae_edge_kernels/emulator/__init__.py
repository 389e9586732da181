"""A GPU on NumPy: executes the PTX that Triton compiles, checks every access, and counts what a launch costs."""
