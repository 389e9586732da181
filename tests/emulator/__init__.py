"""The foundations of a GPU for tests: PTX text to a module, and the arithmetic of its instructions on NumPy arrays."""
