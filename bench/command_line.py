"""What the benchmarks' command lines share: lines of progress on standard error, and whole numbers as arguments."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vae_edge.training.trainer import Progress

PROGRESS_SECONDS = 30.0  # between two lines of progress


def log(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


@contextmanager
def progress_lines(title: str) -> Iterator[Progress]:
    """A line of progress now and then, on standard error."""
    last = time.monotonic()

    def show(step: int, steps: int, terms: dict[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            log(f"{title}: step {step} of {steps}, loss {terms['total']:.3f}")

    yield show


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 0")
    return int(text)
