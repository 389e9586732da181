"""What a long call says while it works: what it is doing, and how far a training run is.

Sentences go to the logger `vae_edge`. `reporting` sees to it that a user who set up no logging reads them on standard
error. On a terminal there is a bar as well.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

from vae_edge.errors import ConfigError
from vae_edge.text import printable, terminal

LINE_INTERVAL_S = 10.0  # between two lines on one thing, at least
MAX_LINES = 100  # of a training run, beside one for each epoch

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each training step with (step, steps, terms). The terms are those of the loss, `accuracy` on the batch,
`epoch` (epochs done, with a fraction), and after a validation `val_accuracy`."""
ProgressOption = Progress | Literal["auto"] | None
Shown = TypeVar("Shown", bound=Callable[..., None])

log = logging.getLogger(__name__)


def is_main_process() -> bool:
    """Whether this process prints: rank 0 of those that a launcher started together."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Log what is being done, and again every 10 s until the block ends."""
    done, began = threading.Event(), time.monotonic()

    def remind() -> None:
        while not done.wait(LINE_INTERVAL_S):
            log.info("%s: %.0f s so far", what, time.monotonic() - began)

    log.info("%s", what)
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()


def start_torch() -> None:
    """Import PyTorch, which takes seconds, and say so."""
    if "torch" not in sys.modules:
        with phase("starting PyTorch"):
            import torch  # noqa: F401


@contextmanager
def reporting(
    progress: Shown | Literal["auto"] | None, display: AbstractContextManager[Shown]
) -> Iterator[Shown | None]:
    """What an argument `progress` means: with "auto" the display, and sentences that are heard; else what it is.

    Raises:
        ConfigError: it is another word.
    """
    if progress is None or callable(progress):
        yield progress
        return
    if progress != "auto":
        raise ConfigError(f'progress {progress!r}: expected "auto", a function, or None')
    with _audible(), display as show:
        yield show


class _StderrHandler(logging.Handler):
    """Prints records on standard error, on rank 0."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone."""
        if is_main_process():
            print(printable(record.getMessage(), keep="\t"), file=sys.stderr, flush=True)


@contextmanager
def _audible() -> Iterator[None]:
    """See to it that INFO records of `vae_edge` are printed: by the handlers there are, or else on standard error."""
    logger = logging.getLogger("vae_edge")
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        yield
        return
    level, own = logger.level, None if logger.hasHandlers() else _StderrHandler()
    logger.setLevel(logging.INFO)
    if own is not None:
        logger.addHandler(own)
    try:
        yield
    finally:
        logger.setLevel(level)
        if own is not None:
            logger.removeHandler(own)


# ---------------------------------------------------------------------------------------- lines of a training run


class TrainingLines:
    """Logs how far training is: a line at least every 10 s or each epoch, of long runs about 100 and one an epoch.

    Loss and accuracy are means over the steps since the line before.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.sums: dict[str, float] = {}
        self.count = 0
        self.val_accuracy: float | None = None
        self.means: dict[str, float] = {}
        self.first_step, self.began, self.said = 0, 0.0, 0.0

    def __call__(self, step: int, steps: int, terms: dict[str, float]) -> None:
        """Take a step's terms; log a line where one is due."""
        now = time.monotonic()
        if not self.began:
            self.first_step, self.began, self.said = step, now, now
        for name in ("total", "accuracy"):
            if name in terms:
                self.sums[name] = self.sums.get(name, 0.0) + terms[name]
        self.count += 1
        self.val_accuracy = terms.get("val_accuracy", self.val_accuracy)
        self.means = {name: total / self.count for name, total in self.sums.items()}
        if self.val_accuracy is not None:
            self.means["val_accuracy"] = self.val_accuracy

        waited, left_s = now - self.said, self.left_s(step, steps, now)
        interval = max(LINE_INTERVAL_S, (now - self.began + left_s) / MAX_LINES)
        epoch_ended = float(terms.get("epoch", 0.5)).is_integer()
        if waited >= interval or (epoch_ended and waited >= LINE_INTERVAL_S):
            log.info("%s", self.line(step, steps, terms.get("epoch"), left_s))
            self.sums, self.count, self.said = {}, 0, now

    def left_s(self, step: int, steps: int, now: float) -> float:
        """Seconds that the remaining steps take, at the mean speed so far."""
        return (steps - step) * (now - self.began) / max(1, step - self.first_step)

    def line(self, step: int, steps: int, epoch: float | None, left_s: float) -> str:
        """The line at a step."""
        where = f"step {step:,} of {steps:,}"
        if epoch:
            where = f"epoch {f'{epoch:.1f}'.removesuffix('.0')} of {round(epoch * steps / step)}"
        return f"{self.title}: {where}: {terms_words(self.means)}, {duration_words(left_s)} left"


def terms_words(terms: dict[str, float]) -> str:
    """Loss, accuracy and validation accuracy, those that there are."""
    words = [f"loss {terms['total']:.3f}"] if "total" in terms else []
    words += [f"accuracy {100 * terms['accuracy']:.1f}%"] if "accuracy" in terms else []
    words += [f"validation {100 * terms['val_accuracy']:.1f}%"] if "val_accuracy" in terms else []
    return ", ".join(words)


def duration_words(seconds: float) -> str:
    """A time for a person: 45 s, 12 minutes, 2.5 hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


# ------------------------------------------------------------------------------------------------- bars


@contextmanager
def progress_bar(title: str, total: float | None, middle: str, last: str = "") -> Iterator[tuple[Any, Any] | None]:
    """A bar and its task on standard error, shown from `bar.start()` on; None where that is no terminal.

    `middle` and `last` format its fields.
    """
    if sys.stderr is None or not (sys.stderr.isatty() and is_main_process()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    texts = (TextColumn("{task.description}"), BarColumn(), TextColumn(middle), TimeRemainingColumn(), TextColumn(last))
    bar = Progress(*texts, console=Console(file=terminal()), transient=True)
    try:
        yield bar, bar.add_task(title, total=total, rate="", terms="")
    finally:
        bar.stop()


@contextmanager
def training_progress(title: str) -> Iterator[Progress]:
    """Lines of a training run; on a terminal also a bar with steps a second, the time left, loss and accuracies."""
    lines = TrainingLines(title)
    with progress_bar(title, None, "{task.fields[rate]}", "{task.fields[terms]}") as opened:

        def show(step: int, steps: int, terms: dict[str, float]) -> None:
            """Say that `step` of `steps` are done, and the terms of the last one."""
            lines(step, steps, terms)
            if opened is None:
                return
            bar, task = opened
            bar.start()
            if bar.tasks[0].total is None:  # a resumed run's earlier steps are not this run's speed
                bar.reset(task, total=steps, completed=step)
            speed = bar.tasks[0].speed
            rate = f"{step}/{steps}" + (f", {speed:.1f} steps/s" if speed else "")
            bar.update(task, completed=step, total=steps, rate=rate, terms=terms_words(lines.means))

        yield show


@contextmanager
def counting_progress(title: str, what: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Told (done, total): a line every 10 s; on a terminal a bar with the rate and the time left."""
    began = said = time.monotonic()
    with progress_bar(title, None, "{task.fields[rate]}") as opened:

        def show(done: int, total: int) -> None:
            """Say that `done` of `total` are done."""
            nonlocal said
            now = time.monotonic()
            if now - said >= LINE_INTERVAL_S:
                left = duration_words((total - done) * (now - began) / max(1, done))
                log.info("%s: %s of %s %s, %s left", title, f"{done:,}", f"{total:,}", what, left)
                said = now
            if opened is None:
                return
            bar, task = opened
            bar.start()
            speed = bar.tasks[0].speed
            rate = f"{done:,}/{total:,}" + (f", {speed:,.0f} {what}/s" if speed else "")
            bar.update(task, completed=done, total=total, rate=rate)

        yield show
