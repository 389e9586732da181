"""The worker's process: whatever happens in it, the caller gets an engine or a sentence, and no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.engine.worker import WORKER, BuildRequest, run_worker
from vae_edge.errors import EngineError

REPOSITORY = Path(__file__).parents[2]
# The real worker, in which the build itself is replaced by what TensorRT must never do to the caller.
WORKER_THAT = """
import os, sys, time
from vae_edge.engine import worker
def build_in_process(*args, **options):
    worker._write_log("INFO", "began to build")
    {}
worker.open_adapter = lambda kind: None
worker.build_in_process = build_in_process
sys.exit(worker.main())
"""
REQUEST = BuildRequest("/nowhere/model.onnx", BuildConfig("fp32"))


def worker_that(does: str) -> list[str]:
    return [sys.executable, "-c", WORKER_THAT.format(does)]


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(condition: object, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_an_abort_becomes_a_sentence_with_the_last_lines() -> None:
    with pytest.raises(EngineError, match=r"signal 6 \(SIGABRT\); the engine was not built.*\n *INFO began to build"):
        run_worker(REQUEST, command=worker_that("os.abort()"))


def test_a_segmentation_fault_becomes_a_sentence() -> None:
    with pytest.raises(EngineError, match=r"signal 11 \(SIGSEGV\)"):
        run_worker(REQUEST, command=worker_that("import ctypes; ctypes.string_at(0)"))


def test_a_crash_after_a_known_error_says_what_is_probably_wrong() -> None:
    does = "worker._write_log('ERROR', 'Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)'); os.abort()"
    with pytest.raises(EngineError, match=r"SIGABRT.*Probably the memory did not suffice: .*\. Its last lines"):
        run_worker(REQUEST, command=worker_that(does))


def test_an_exception_of_ours_arrives_word_by_word_and_a_foreign_one_with_its_last_lines() -> None:
    ours = "from vae_edge.errors import EngineError; raise EngineError('The DLA is asleep.')"
    with pytest.raises(EngineError, match=r"^The DLA is asleep\.$"):
        run_worker(REQUEST, command=worker_that(ours))
    with pytest.raises(EngineError, match=r"exit code 1(.|\n)*ZeroDivisionError"):
        run_worker(REQUEST, command=worker_that("1 / 0"))


def test_a_worker_that_dies_before_it_reads_or_answers_nothing_is_no_engine() -> None:
    with pytest.raises(EngineError, match=r"exit code 3; the engine was not built. It said nothing"):
        run_worker(replace(REQUEST, onnx="x" * 1_000_000), command=[sys.executable, "-c", "import os; os._exit(3)"])
    with pytest.raises(EngineError, match="exit code 0; the engine was not built"):
        run_worker(REQUEST, command=[sys.executable, "-c", "pass"])


def test_what_libraries_print_to_standard_output_does_not_mix_with_the_answer() -> None:
    printing = "os.write(1, b'a library speaks\\n'); raise worker.EngineError('end')"
    with pytest.raises(EngineError, match=r"^end$"):
        run_worker(REQUEST, command=worker_that(printing))


def test_a_build_that_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"more than 1\.5 s and was ended(.|\n)*began to build"):
        run_worker(REQUEST, timeout_s=1.5, command=worker_that("time.sleep(60)"))
    assert time.monotonic() - start < 20


def test_a_failing_progress_callback_reaches_the_caller_and_ends_the_worker(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    does = f"open({str(note)!r}, 'w').write(str(os.getpid())); worker._write_progress('Building', 1, 6); time.sleep(60)"

    def report(phase: str, step: int, steps: int) -> None:
        raise RuntimeError(f"{phase} {step}/{steps}")

    with pytest.raises(RuntimeError, match="Building 1/6"):
        run_worker(REQUEST, report, command=worker_that(does))
    assert not alive(int(note.read_text()))


def test_a_progress_line_that_a_crash_cut_short_is_kept_as_a_line_of_the_log() -> None:
    seen: list[tuple[str, int, int]] = []
    does = "worker._write_progress('Building', 1, 6); os.write(2, b'P [\\\"Buil'); os.abort()"
    with pytest.raises(EngineError, match=r'SIGABRT(.|\n)*P \["Buil'):
        run_worker(REQUEST, lambda *step: seen.append(step), command=worker_that(does))
    assert seen == [("Building", 1, 6)]


CALLER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.engine.worker import BuildRequest, run_worker
run_worker({request!r}, command={command!r})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_kill_leave_no_worker(tmp_path: Path, blow: signal.Signals) -> None:
    note = tmp_path / "pid"
    does = f"open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = CALLER.format(request=REQUEST, command=worker_that(does))
    caller = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
    )
    try:
        assert until(lambda: note.exists() and note.read_text())
        worker = int(note.read_text())
        assert alive(worker)
        os.kill(caller.pid, blow)
        _, errors = caller.communicate(timeout=20)
    finally:
        if caller.poll() is None:
            caller.kill()
            caller.wait()
    assert until(lambda: not alive(worker))
    assert (b"KeyboardInterrupt" in errors) == (blow is signal.SIGINT)


def test_the_worker_runs_from_any_folder_and_refuses_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert WORKER[1:] == ("-m", "vae_edge.engine.worker")

    class OddRequest(BuildRequest):
        def to_json(self) -> dict[str, Any]:
            right = super().to_json()
            return {**right, "config": {**right["config"], "kind": "other"}}

    with pytest.raises(EngineError, match="The kind of TensorRT 'other' is unknown"):
        run_worker(OddRequest("/nowhere/model.onnx", BuildConfig("fp32")))


def test_importing_the_package_imports_no_tensorrt_and_no_torch() -> None:
    code = """
import json, sys
import vae_edge.engine.build, vae_edge.engine.worker, vae_edge.engine.inspection, vae_edge.engine.gpus
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "vae_edge" in loaded
    assert not loaded & {
        "torch",
        "triton",
        "onnx",
        "tensorrt",
        "tensorrt_bindings",
        "tensorrt_rtx",
        "tensorrt_rtx_bindings",
    }
