"""What commands print: results to standard output, progress and remarks to standard error.

`safe_streams` stands between all of it and the terminal, so that no output depends on the terminal's encoding and no
name can send it a control character.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vae_edge.progress import is_main_process, progress_bar
from vae_edge.text import SUBSTITUTE, ascii_json, json_text, printable, terminal

LOGGERS = ("api", "pipeline", "progress", "data", "training", "trained", "thresholds", "reporting", "experiments")
"""Modules and packages whose INFO records are printed."""


class _SafeStream:
    """A text stream that lets line feeds and tabs through, and no other control character.

    Progress bars write to the stream behind it (`vae_edge.text.terminal`).
    """

    def __init__(self, stream: Any) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        """Write the text, made printable."""
        self.behind.write(printable(text, keep="\n\t"))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self.behind, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make standard output and standard error safe for whatever is printed, until the block ends.

    What their encoding lacks is replaced as `vae_edge.text` says.
    """
    before = sys.stdout, sys.stderr
    errors = [(each, each.errors) for each in before if isinstance(each, io.TextIOWrapper)]
    for stream, _ in errors:
        stream.reconfigure(errors=SUBSTITUTE)
    sys.stdout, sys.stderr = (None if each is None else _SafeStream(each) for each in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, earlier in errors:
            if not stream.closed:
                stream.reconfigure(errors=earlier)


def emit(result: Any, as_json: bool, lines: Callable[[], Iterator[str]] | None = None) -> None:
    """Print a result: as JSON, or as the lines that `lines` gives, each on one line."""
    if not is_main_process():
        return
    if as_json or lines is None:
        _print_json(result)
        return
    for line in lines():
        print(printable(line, keep="\t"))


def _print_json(result: Any) -> None:
    json_writer()(json_text(result) + "\n")


def json_writer() -> Callable[[str], None]:
    """A function that writes parts of a JSON text (of `json_text`) to standard output.

    They are UTF-8, whatever the encoding of standard output; in ASCII alone where that is another one.
    """
    if not is_main_process():
        return lambda _text: None
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    buffer = getattr(sys.stdout, "buffer", None)
    ascii_only = encoding not in ("utf-8", "utf8")

    def write(text: str) -> None:
        text = ascii_json(text) if ascii_only else text
        if buffer is None:
            print(text, end="")
            return
        sys.stdout.flush()
        buffer.write(text.encode())
        buffer.flush()

    return write


def print_table(table: Any, width: int = 140) -> None:
    """Print a table of rich: as wide as the terminal, or `width` columns where standard output is none."""
    from rich.console import Console

    seen = sys.stdout.isatty()
    page = io.StringIO()
    ascii_only = not str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    console = Console(file=page, width=None if seen else width)
    if ascii_only:
        from rich import box

        table.box = box.ASCII
    console.print(table)
    print(page.getvalue(), end="")


def say(sentence: str) -> None:
    """A remark on what is going on, to standard error."""
    if is_main_process():
        print(printable(sentence, keep="\t"), file=sys.stderr, flush=True)


class _SayHandler(logging.Handler):
    """Prints log records of `vae_edge` as sentences on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone; of other packages' loggers none arrives here."""
        say(record.getMessage())


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Print what the library logs until the block ends: warnings, and what the API is doing."""
    logger = logging.getLogger("vae_edge")
    told = [logging.getLogger(f"vae_edge.{name}") for name in LOGGERS]
    handler = _SayHandler()
    levels = [each.level for each in told]
    logger.addHandler(handler)
    for each in told:
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        for each, level in zip(told, levels, strict=True):
            each.setLevel(level)


def can_print(characters: str) -> bool:
    """Whether standard output's encoding has these characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def complain(sentence: str) -> None:
    """Why a command ends, to standard error. A line feed stays where two spaces follow it, as in our own messages."""
    parts = (printable(part, keep="\t") for part in sentence.split("\n  "))
    print("vae-edge: " + "\n  ".join(parts), file=sys.stderr)


@contextmanager
def fraction_progress() -> Iterator[Callable[[str, float], None] | None]:
    """A progress bar told (what is going on, fraction done); None where standard error is no terminal."""
    with progress_bar("", 1.0, "{task.percentage:>3.0f}%") as opened:
        if opened is None:
            yield None
        else:
            bar, task = opened
            bar.start()
            yield lambda what, done: bar.update(task, description=_plain(what), completed=done)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A line that shows that work goes on, for steps of some seconds; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    utf = str(sys.stderr.encoding or "").lower().startswith("utf")
    with Console(file=terminal()).status(_plain(what), spinner="dots" if utf else "line"):
        yield


def _plain(text: str) -> str:
    """Text for rich, which would take square brackets for markup and pass control characters on."""
    from rich.markup import escape

    return escape(printable(text))


def percent(fraction: float) -> str:
    """A fraction as a percentage: 0.9885 as 98.85%."""
    return f"{100 * fraction:.2f}%"


def kibibytes(count: int) -> str:
    """A size in bytes for a person."""
    return f"{count / 1024:,.0f} KiB"
