"""Running the worker: hand it a request, follow its log and progress, take its answer, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vae_edge.engine.messages import recognize
from vae_edge.errors import EngineError

WORKER = (sys.executable, "-m", "vae_edge.engine.worker")
_LAST_LINES = 12
_LONGEST_LINE = 300


@dataclass(frozen=True)
class Answer:
    """What the worker sent: the JSON line, the bytes after it, and its log, one line each ("SEVERITY text")."""

    header: dict[str, Any]
    content: bytes
    log: tuple[str, ...]


def run_worker(
    request: Mapping[str, Any],
    progress: Callable[[str, int, int], None] | None = None,
    timeout_s: float | None = None,
    command: Sequence[str] = WORKER,
) -> Answer:
    """Run one build in a process of its own. Whatever ends this call (Ctrl-C too) ends that process.

    Raises:
        EngineError: with the worker's own sentence; or, if it crashed or took too long, with its last lines.
    """
    worker = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,  # Ctrl-C in the terminal reaches us, and we end it
    )
    assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
    log: list[str] = []
    answer: list[bytes] = []
    reader = threading.Thread(target=lambda stream: answer.append(stream.read()), args=(worker.stdout,), daemon=True)
    late = threading.Event()
    alarm = threading.Timer(timeout_s, _end_late, (worker, late)) if timeout_s is not None else None
    try:
        reader.start()
        if alarm is not None:
            alarm.start()
        _send(worker.stdin, request)
        _follow(worker.stderr, log, progress)
        code = worker.wait()
        reader.join()
    finally:
        if alarm is not None:
            alarm.cancel()
        _end(worker, reader)
    if late.is_set():
        raise EngineError(f"The build took more than {timeout_s:g} s and was ended.{_tail(log)}")
    if code != 0 or not answer or not answer[0]:
        why = recognize(line for line in log if line.startswith(("ERROR", "INTERNAL_ERROR")))
        probably = f" Probably {why}." if why else ""
        raise EngineError(
            f"TensorRT's process ended with {_meaning(code)}; the engine was not built.{probably}{_tail(log)}"
        )
    line, _, content = answer[0].partition(b"\n")
    header = json.loads(line)
    if "error" in header:
        raise EngineError(header["error"])
    return Answer(header, content, tuple(log))


def _send(stdin: IO[bytes], request: Mapping[str, Any]) -> None:
    try:
        stdin.write(json.dumps(request).encode())
        stdin.close()
    except BrokenPipeError:
        return  # the worker died before it read; its exit code and log tell why


def _follow(stderr: IO[bytes], log: list[str], progress: Callable[[str, int, int], None] | None) -> None:
    for raw in stderr:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        step = _step(line) if progress is not None else None
        if step is not None and progress is not None:
            progress(*step)
        else:
            log.append(line.removeprefix("L "))


def _step(line: str) -> tuple[str, int, int] | None:
    """What a line "P [phase, step, steps]" says; None for any other line, also one that a crash cut short."""
    if not line.startswith("P ["):
        return None
    try:
        phase, step, steps = json.loads(line[2:])
    except ValueError:
        return None
    return str(phase), int(step), int(steps)


def _end(worker: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    if worker.poll() is None:
        _kill(worker)
        worker.wait()
    if reader.ident is not None:
        reader.join()
    for stream in (worker.stdin, worker.stdout, worker.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # what a dead worker did not read cannot be flushed
                stream.close()


def _end_late(worker: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    _kill(worker)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this very moment
        os.killpg(worker.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """The worker must find this package also where it is not installed but stands in the path of the caller."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH", ""), root]))
    return environment


def _meaning(code: int) -> str:
    if code >= 0:
        return f"the exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"the signal {-code} ({name})"


def _tail(log: Sequence[str]) -> str:
    lines = [line[:_LONGEST_LINE] for line in log if line.strip()][-_LAST_LINES:]
    return " Its last lines:\n  " + "\n  ".join(lines) if lines else " It said nothing."
