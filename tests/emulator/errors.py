"""What the emulator raises."""

from __future__ import annotations


class EmulatorError(Exception):
    """The base of all errors of the emulator."""


class PtxError(EmulatorError):
    """PTX that the emulator does not know; the sentence names the text and its line."""
