"""What the emulator raises."""

from __future__ import annotations


class EmulatorError(Exception):
    """The base of all errors of the emulator."""


class PtxError(EmulatorError):
    """PTX that the emulator does not know; the sentence names the instruction's text and line."""


class DeadlockError(EmulatorError):
    """No thread can go on: all wait for one another, or spin without end."""


class KernelFaultError(EmulatorError):
    """The kernel did what it must not; the sentences are those of `faults.FaultLog`."""
