"""What commands print: results to standard output, progress and remarks to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def speaks() -> bool:
    """Whether this process is the one that speaks: of those that a launcher started together, the first."""
    return os.environ.get("RANK", "0") == "0"


def emit(result: Any, as_json: bool, lines: Callable[[], Iterator[str]] | None = None) -> None:
    """Print a result: as JSON, or as the lines that `lines` gives."""
    if not speaks():
        return
    if as_json or lines is None:
        print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for line in lines():
        print(line)


def say(sentence: str) -> None:
    """A remark on what is going on, to standard error."""
    if speaks():
        print(sentence, file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str, total: float | None, middle: str, last: str = "") -> Iterator[tuple[Any, Any] | None]:
    """A bar and its task on standard error; None where that is no terminal. `middle` and `last` format its fields."""
    if not (sys.stderr.isatty() and speaks()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    texts = (TextColumn("{task.description}"), BarColumn(), TextColumn(middle), TimeRemainingColumn(), TextColumn(last))
    with Progress(*texts, console=Console(stderr=True), transient=True) as bar:
        yield bar, bar.add_task(title, total=total, rate="", terms="")


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[int, int, dict[str, float]], None] | None]:
    """A progress bar with steps a second, the time left and the loss; None where standard error is no terminal."""
    with _bar(title, None, "{task.fields[rate]}", "{task.fields[terms]}") as opened:
        if opened is None:
            yield None
            return
        bar, task = opened

        def show(step: int, steps: int, terms: dict[str, float]) -> None:
            """Say that `step` of `steps` are done, and the terms of the last one."""
            if bar.tasks[0].total is None:  # a resumed run's earlier steps are not this run's speed
                bar.reset(task, total=steps, completed=step)
            speed = bar.tasks[0].speed
            rate = f"{step}/{steps}" + (f", {speed:.1f} steps/s" if speed else "")
            bar.update(task, completed=step, total=steps, rate=rate, terms=f"loss {terms['total']:.3f}")

        yield show


@contextmanager
def sharing_progress() -> Iterator[Callable[[str, float], None] | None]:
    """A progress bar told (what is going on, share done); None where standard error is no terminal."""
    with _bar("", 1.0, "{task.percentage:>3.0f}%") as opened:
        if opened is None:
            yield None
        else:
            bar, task = opened
            yield lambda what, share: bar.update(task, description=what, completed=share)


@contextmanager
def counting_progress(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar told (done, total), with the rate and the time left; None where standard error is no terminal."""
    with _bar(title, None, "{task.fields[rate]}") as opened:
        if opened is None:
            yield None
            return
        bar, task = opened

        def show(done: int, total: int) -> None:
            """Say that `done` images of `total` are done."""
            speed = bar.tasks[0].speed
            rate = f"{done:,}/{total:,}" + (f", {speed:,.0f} images/s" if speed else "")
            bar.update(task, completed=done, total=total, rate=rate)

        yield show


@contextmanager
def working(what: str) -> Iterator[None]:
    """A line that shows that work goes on, for steps of some seconds; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def percent(share: float) -> str:
    """A share as a percentage: 0.9885 as 98.85%."""
    return f"{100 * share:.2f}%"


def kibibytes(count: int) -> str:
    """A size in bytes for a person."""
    return f"{count / 1024:,.0f} KiB"
