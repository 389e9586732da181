"""Keeps the stack on which signal handlers run, while an engine is opened or let go.

OpenVINO's CPU plugin sets a stack of its own for handlers and puts back, when it goes, the one that it found. Where the
process had one (Python's faulthandler sets one, and so does pytest) and two plugins overlap, the second puts back the
first one's, which is gone by then: the next Ctrl-C ends the process with a segmentation fault. Seen with 2026.4.1.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DISABLED = 2  # SS_DISABLE of <signal.h>


class _Stack(ctypes.Structure):
    """stack_t of <signal.h>."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put this thread's alternate signal stack back if the block replaced it; on Linux alone."""
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None, use_errno=True).sigaltstack
    before, after = _Stack(), _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(None, ctypes.byref(after))
        if after.start != before.start or after.size != before.size:
            before.flags &= _DISABLED
            sigaltstack(ctypes.byref(before), None)
