"""What the emulator raises."""

from __future__ import annotations

from vae_edge_kernels import KernelError


class EmulatorError(KernelError):
    """The base of all errors of the emulator."""


class PtxError(EmulatorError):
    """PTX that the emulator does not know; the sentence names the text and its line."""


class MemoryFault(EmulatorError):
    """An access that is out of bounds, misaligned, of unwritten bytes, or a race; the sentence names its place."""


class Deadlock(EmulatorError):
    """Threads wait for what no thread will do."""
