"""Running the worker: hand it a request, follow its log and progress, take its answer, and leave nothing behind.

The process in which TensorRT builds: `python -m vae_edge.engine.worker`, started by `vae_edge.engine.build` alone.

It reads one request as JSON from standard input. On standard error go the log ("L severity text") and the progress
("P json"), so that they survive a crash. On standard output goes one line of JSON, then the bytes of the engine,
whose number that line tells, then those of the timing cache. Nothing is written to the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
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
from typing import IO, Any, BinaryIO

from vae_edge.engine.builder import build_in_process
from vae_edge.engine.tensorrt import Log, BuildConfig, open_adapter, error_hint
from vae_edge.errors import EngineError
from vae_edge.files import read_bytes
from vae_edge.limits import MAX_MODEL_BYTES

WORKER = (sys.executable, "-m", "vae_edge.engine.worker")
_LAST_LINES = 12
_LONGEST_LINE = 300


@dataclass(frozen=True)
class WorkerResult:
    """What the worker sent: the JSON line, the bytes after it, and its log, one line each ("SEVERITY text")."""

    header: dict[str, Any]
    content: bytes
    log: tuple[str, ...]


def run_worker(
    request: Mapping[str, Any],
    progress: Callable[[str, int, int], None] | None = None,
    timeout_s: float | None = None,
    command: Sequence[str] = WORKER,
) -> WorkerResult:
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
        why = error_hint(line for line in log if line.startswith(("ERROR", "INTERNAL_ERROR")))
        probably = f" Probably {why}." if why else ""
        raise EngineError(
            f"TensorRT's process ended with {_meaning(code)}; the engine was not built.{probably}{_tail(log)}"
        )
    line, _, content = answer[0].partition(b"\n")
    header = json.loads(line)
    if "error" in header:
        raise EngineError(header["error"])
    return WorkerResult(header, content, tuple(log))


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


_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve one request; 0 also when it was refused with a sentence, which then stands in the answer."""
    _die_with_parent()
    answer_to = _take_stdout()
    request = json.load(sys.stdin)
    try:
        header, content = _serve(request)
    except EngineError as error:
        header, content = {"error": str(error)}, b""
    answer_to.write(json.dumps(header).encode() + b"\n" + content)
    answer_to.flush()
    return 0


def _serve(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    adapter = open_adapter(request["kind"])
    cache = _read_timing_cache(request["timing_cache"])
    built = build_in_process(
        adapter,
        Path(request["onnx"]),
        BuildConfig.from_json(request["settings"]),
        Log(sink=_say),
        progress=_progress if request["progress"] else None,
        timing_cache=cache,
    )
    header = {
        "version": adapter.installation.version,
        "engine_bytes": len(built.engine),
        "layers": [layer.to_json() for layer in built.layers],
        "asked": built.requested,
        "steps": [dataclasses.asdict(step) for step in built.steps],
        "seconds": built.seconds,
        "onnx_sha256": built.onnx_sha256,
    }
    return header, built.engine + built.timing_cache


def _read_timing_cache(path: str | None) -> bytes:
    """The cache of earlier builds; empty bytes, by which TensorRT makes a new one, where there is none yet."""
    if path is None or not Path(path).exists():
        return b""
    try:
        return read_bytes(path, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EngineError(f"The timing cache {path} cannot be read ({reason}): name another file.") from error


def _say(severity: str, text: str) -> None:
    sys.stderr.write(f"L {severity} {text}\n")
    sys.stderr.flush()


def _progress(phase: str, step: int, steps: int) -> None:
    sys.stderr.write("P " + json.dumps([phase, step, steps]) + "\n")
    sys.stderr.flush()


def _take_stdout() -> BinaryIO:
    """Keep standard output for the answer; whatever else prints goes to standard error."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def _die_with_parent() -> None:
    """On Linux: end when the parent ends, however that happens, so that no build is left running alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
