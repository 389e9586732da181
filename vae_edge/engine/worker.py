"""The process in which TensorRT builds, and the caller's side of it: a crash there becomes an error here.

The worker is `python -m vae_edge.engine.worker`, started only by `run_worker`. It reads one `BuildRequest` as JSON from
standard input. Its log ("L severity text"), lines for the user ("N json") and progress ("P json") go to standard
error, so that they survive a crash.
Its answer goes to standard output: one line of JSON, then the bytes of the engine, whose number the line tells, then
those of the timing cache. It writes nothing to the disk.
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

from vae_edge.engine.builder import BuiltEngine, Notice, build_in_process
from vae_edge.engine.dla import DlaLayers
from vae_edge.engine.inspection import LayerInfo
from vae_edge.engine.plugins.layered import linked_library
from vae_edge.engine.tensorrt import BuildConfig, ConfigCall, Log, error_hint, open_adapter
from vae_edge.errors import EngineError
from vae_edge.files import read_bytes
from vae_edge.spec import MAX_MODEL_BYTES

WORKER = (sys.executable, "-m", "vae_edge.engine.worker")
MAX_TAIL_LINES = 12
MAX_TAIL_LINE_CHARS = 300


@dataclass(frozen=True)
class BuildRequest:
    """What the worker is asked to do.

    Attributes:
        onnx: path of the file.
        progress: whether it writes progress lines.
        plugins: folder of the kernels that nodes of the file name; None if there are no such nodes.
    """

    onnx: str
    config: BuildConfig
    progress: bool = False
    plugins: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the worker reads it."""
        return {
            "onnx": self.onnx,
            "config": self.config.to_json(),
            "progress": self.progress,
            "plugins": self.plugins,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildRequest:
        """The inverse of `to_json`."""
        return cls(value["onnx"], BuildConfig.from_json(value["config"]), value["progress"], value["plugins"])


@dataclass(frozen=True)
class WorkerResult:
    """What the worker built, the TensorRT version that built it, and its log, one line each ("SEVERITY text")."""

    built: BuiltEngine
    version: str
    log: tuple[str, ...]


# The caller's side


def run_worker(
    request: BuildRequest,
    progress: Callable[[str, int, int], None] | None = None,
    timeout_s: float | None = None,
    command: Sequence[str] = WORKER,
    notice: Notice | None = None,
) -> WorkerResult:
    """Run one build in a process of its own. Whatever ends this call, Ctrl-C too, ends that process.

    Raises:
        EngineError: with the worker's own sentence; or, if it crashed or took too long, with its last lines.
    """
    with contextlib.ExitStack() as stack:
        environment = _environment(request.config.device)
        if request.plugins is not None and request.config.kind == "tensorrt_rtx":
            folder = stack.enter_context(linked_library())
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
        return _run_worker(request, progress, timeout_s, command, notice, environment)


def _run_worker(
    request: BuildRequest,
    progress: Callable[[str, int, int], None] | None,
    timeout_s: float | None,
    command: Sequence[str],
    notice: Notice | None,
    environment: dict[str, str],
) -> WorkerResult:
    worker = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C in the terminal reaches us, and we end it
    )
    assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
    log: list[str] = []
    answer: list[bytes] = []
    reader = threading.Thread(target=lambda stream: answer.append(stream.read()), args=(worker.stdout,), daemon=True)
    timed_out = threading.Event()
    alarm = threading.Timer(timeout_s, _terminate_on_timeout, (worker, timed_out)) if timeout_s is not None else None
    try:
        reader.start()
        if alarm is not None:
            alarm.start()
        _send_request(worker.stdin, request)
        _read_log(worker.stderr, log, progress, notice)
        code = worker.wait()
        reader.join()
    finally:
        if alarm is not None:
            alarm.cancel()
        _terminate(worker, reader)

    if timed_out.is_set():
        raise EngineError(f"The build took more than {timeout_s:g} s and was ended.{_tail(log)}")
    if code != 0 or not answer or not answer[0]:
        hint = error_hint(line for line in log if line.startswith(("ERROR", "INTERNAL_ERROR")))
        probably = f" Probably {hint}." if hint else ""
        raise EngineError(
            f"TensorRT's process ended with {_describe_exit(code)}; the engine was not built.{probably}{_tail(log)}"
        )
    return _parse_answer(answer[0], tuple(log))


def _send_request(stdin: IO[bytes], request: BuildRequest) -> None:
    try:
        stdin.write(json.dumps(request.to_json()).encode())
        stdin.close()
    except BrokenPipeError:
        return  # the worker died before it read; its exit code and log tell why


def _read_log(
    stderr: IO[bytes],
    log: list[str],
    progress: Callable[[str, int, int], None] | None,
    notice: Notice | None = None,
) -> None:
    for raw in stderr:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        told = _parse_notice(line)
        if told is not None:
            if notice is not None:
                notice(told)
            continue
        step = _parse_progress(line) if progress is not None else None
        if step is not None and progress is not None:
            progress(*step)
        else:
            log.append(line.removeprefix("L "))


def _parse_notice(line: str) -> str | None:
    """The text of a line `N "text"`; None for another line, or one that a crash cut."""
    if not line.startswith('N "'):
        return None
    try:
        return str(json.loads(line[2:]))
    except ValueError:
        return None


def _parse_progress(line: str) -> tuple[str, int, int] | None:
    """Phase, step and steps of a line "P [phase, step, steps]"; None for another line, or one that a crash cut."""
    if not line.startswith("P ["):
        return None
    try:
        phase, step, steps = json.loads(line[2:])
    except ValueError:
        return None
    return str(phase), int(step), int(steps)


def _parse_answer(answer: bytes, log: tuple[str, ...]) -> WorkerResult:
    line, _, content = answer.partition(b"\n")
    header = json.loads(line)
    if "error" in header:
        raise EngineError(header["error"])
    built = BuiltEngine(
        engine=content[: header["engine_bytes"]],
        layers=tuple(LayerInfo.from_json(layer) for layer in header["layers"]),
        requested=header["requested"],
        config_calls=tuple(ConfigCall(**call) for call in header["config_calls"]),
        seconds=header["seconds"],
        onnx_sha256=header["onnx_sha256"],
        timing_cache=content[header["engine_bytes"] :],
        dla=None if header["dla"] is None else DlaLayers.from_json(header["dla"]),
    )
    return WorkerResult(built, header["version"], log)


def _terminate(worker: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    if worker.poll() is None:
        _kill(worker)
        worker.wait()
    if reader.ident is not None:
        reader.join()
    for stream in (worker.stdin, worker.stdout, worker.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # what a dead worker did not read cannot be flushed
                stream.close()


def _terminate_on_timeout(worker: subprocess.Popen[bytes], timed_out: threading.Event) -> None:
    timed_out.set()
    _kill(worker)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this very moment
        os.killpg(worker.pid, signal.SIGKILL)


def _environment(device: int = 0) -> dict[str, str]:
    """The worker must find this package also where it is not installed but on the caller's path.

    It sees one GPU, so that it builds on that of this number.
    """
    environment = dict(os.environ)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = visible[device] if device < len(visible) else str(device)
    root = str(Path(__file__).resolve().parents[2])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH", ""), root]))
    return environment


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"the exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"the signal {-code} ({name})"


def _tail(log: Sequence[str]) -> str:
    lines = [line[:MAX_TAIL_LINE_CHARS] for line in log if line.strip()][-MAX_TAIL_LINES:]
    return " Its last lines:\n  " + "\n  ".join(lines) if lines else " It said nothing."


# The worker's side

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve one request. Returns 0 also when it was refused with a sentence, which is then the answer."""
    _die_with_parent()
    answer_to = _redirect_stdout()
    request = json.load(sys.stdin)
    try:
        header, content = _serve(request)
    except EngineError as error:
        header, content = {"error": str(error)}, b""
    answer_to.write(json.dumps(header).encode() + b"\n" + content)
    answer_to.flush()
    return 0


def _serve(value: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    request = BuildRequest.from_json(value)
    adapter = open_adapter(request.config.kind)
    cache = _read_timing_cache(request.config.timing_cache)
    built = build_in_process(
        adapter,
        Path(request.onnx),
        request.config,
        Log(sink=_write_log),
        progress=_write_progress if request.progress else None,
        notice=_write_notice,
        timing_cache=cache,
        plugins=None if request.plugins is None else Path(request.plugins),
    )
    header = {
        "version": adapter.installation.version,
        "engine_bytes": len(built.engine),
        "layers": [layer.to_json() for layer in built.layers],
        "requested": built.requested,
        "config_calls": [dataclasses.asdict(call) for call in built.config_calls],
        "seconds": built.seconds,
        "onnx_sha256": built.onnx_sha256,
        "dla": None if built.dla is None else built.dla.to_json(),
    }
    return header, built.engine + built.timing_cache


def _read_timing_cache(path: str | None) -> bytes:
    """The cache of earlier builds; empty bytes, from which TensorRT makes a new one, where there is none yet."""
    if path is None or not Path(path).exists():
        return b""
    try:
        return read_bytes(path, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EngineError(f"The timing cache {path} cannot be read ({reason}): name another file.") from error


def _write_log(severity: str, text: str) -> None:
    sys.stderr.write(f"L {severity} {text}\n")
    sys.stderr.flush()


def _write_notice(text: str) -> None:
    sys.stderr.write("N " + json.dumps(text) + "\n")
    sys.stderr.flush()


def _write_progress(phase: str, step: int, steps: int) -> None:
    sys.stderr.write("P " + json.dumps([phase, step, steps]) + "\n")
    sys.stderr.flush()


def _redirect_stdout() -> BinaryIO:
    """Keep standard output for the answer; whatever else prints goes to standard error."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def _die_with_parent() -> None:
    """On Linux: end when the parent ends, however that happens, so that no build is left running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
