"""The process in which TensorRT builds: `python -m vae_edge.engine.worker`, started by `vae_edge.engine.build` alone.

It reads one request as JSON from standard input. On standard error go the log ("L severity text") and the progress
("P json"), so that they survive a crash. On standard output goes one line of JSON, then the bytes of the engine,
whose number that line tells, then those of the timing cache. Nothing is written to the disk.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from vae_edge.engine.adapter import open_adapter
from vae_edge.engine.building import build_here
from vae_edge.engine.messages import Log
from vae_edge.engine.settings import Settings
from vae_edge.errors import EngineError
from vae_edge.files import read_bytes
from vae_edge.limits import MAX_MODEL_BYTES

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
    built = build_here(
        adapter,
        Path(request["onnx"]),
        Settings.from_json(request["settings"]),
        Log(sink=_say),
        progress=_progress if request["progress"] else None,
        timing_cache=cache,
    )
    header = {
        "version": adapter.flavour.version,
        "engine_bytes": len(built.engine),
        "layers": [layer.to_json() for layer in built.layers],
        "asked": built.asked,
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
