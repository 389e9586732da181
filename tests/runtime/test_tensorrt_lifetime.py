"""Engines and what ends them: signals, the interpreter's end, forks, power cuts. Against doubles, not on hardware."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.loading import process_environment, write_package
from engines import engine_bundle
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.engine.cuda import Resources, open_context
from vae_edge.errors import BackendError

Gpu = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_is_left(cuda: Any) -> Iterator[None]:
    yield
    gc.collect()
    assert cuda.faults() == [] and cuda.held() == 0


@pytest.mark.parametrize("version", ["10.3", "rtx"])
def test_a_signal_that_closes_during_a_call_neither_hangs_nor_spoils_the_call(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, version: str
) -> None:
    """As a service does that is asked to stop."""
    double = gpu(version)
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    with vae_edge.load(bundle.path, "onnxruntime", "fp32") as reference:
        right = reference(noise(64)).scores
    classifier = vae_edge.load(bundle.path, double.kind, "fp32", verify="off")
    classifier(noise(64))
    bound = classifier.session._of_thread()._last
    run, signals = bound.run, []

    def run_with_a_signal() -> None:
        run()
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(*_: object) -> None:
        signals.append(1)
        signal.setitimer(signal.ITIMER_REAL, 20)  # if it hangs, that ends it
        classifier.close()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def give_up(*_: object) -> None:
        raise TimeoutError("close() waits for the call that it interrupted")

    bound.run = run_with_a_signal  # type: ignore[method-assign]
    before = signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGALRM, give_up)
    try:
        found = classifier(noise(64)).scores
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
    assert signals == [1]
    np.testing.assert_allclose(found, right, atol=2e-3)
    with pytest.raises(BackendError, match="was closed"):
        classifier(noise(1))
    assert double.faults() == []


def _process(code: str, tmp_path: Path, cuda: Any, version: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    faults = tmp_path / "faults.txt"
    environment = process_environment(
        write_package(tmp_path / "packages", version), cuda.folder, DOUBLE_TENSORRT_FAULTS=faults, **settings
    )
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert not faults.exists() or not faults.read_text(), faults.read_text()
    return done


@pytest.mark.parametrize("batch", [1, 64])
def test_the_interpreter_ends_while_a_daemon_thread_classifies(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, cuda: Any, batch: int
) -> None:
    """As a camera's loop does: its memory must not go while the GPU, or the thread, still uses it."""
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu("10.3"))
    code = f"""
        import atexit, threading
        import numpy as np
        atexit.register(lambda: print(np.isfinite(kept.scores).all()))  # registered first, so it comes last
        import vae_edge
        classifier = vae_edge.load({str(bundle.path)!r}, "tensorrt", "fp32", verify="off")
        image = np.zeros(({batch}, 28, 28, 1), np.uint8)
        kept = classifier(image, copy=False)
        started = threading.Event()
        def work():
            while True:
                classifier(image)
                started.set()
        threading.Thread(target=work, daemon=True).start()
        assert started.wait(60)
    """
    for _ in range(4):
        done = _process(code, tmp_path, cuda, "10.3", DOUBLE_CC=87, DOUBLE_INTEGRATED=1)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "True\n", "outputs that were not copied can be read to the end"


def test_what_rtx_compiled_is_saved_although_nothing_is_closed(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, cuda: Any
) -> None:
    """Devices are switched off."""
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu("rtx"))
    code = f"""
        import os, signal
        import tensorrt_rtx
        import vae_edge
        from doubles.loading import load_tensorrt
        vae_edge.load({str(bundle.path)!r}, "tensorrt_rtx", "fp32").warmup(1)
        print(load_tensorrt("rtx").state.counts.get("jit_compilations", 0), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    first, second = (_process(code, tmp_path, cuda, "rtx", DOUBLE_CC=89) for _ in range(2))
    assert (first.stderr, second.stderr) == ("", "")
    assert int(first.stdout) > 0 and int(second.stdout) == 0


def test_rtx_compiles_for_a_batch_size_only_when_it_is_warmed_up(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path
) -> None:
    """A call that suddenly takes seconds is worse than one that always computes some images too many."""
    double = gpu("rtx")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    with vae_edge.load(bundle.path, double.kind, "fp32", verify="off") as classifier:
        contexts = classifier.session._of_thread()
        for _ in range(6):
            classifier(noise(33))
        assert [key for key in contexts._bound if key[0] == 33] == []
        classifier.warmup(33)
        assert (33, None) in contexts._bound
        classifier(noise(33))
        assert contexts._last is contexts._bound[33, None]


def test_a_batch_size_runs_padded_where_memory_is_too_short_for_its_own_graph(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, cuda: Any
) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    with vae_edge.load(bundle.path, double.kind, "fp32", verify="off") as classifier:
        right = classifier(noise(33)).scores
        classifier(noise(33))
        cuda.fail("cuMemAlloc_v2", 0, 2)  # from now on
        for _ in range(4):
            np.testing.assert_array_equal(classifier(noise(33)).scores, right)
        cuda.fail("cuMemAlloc_v2", 0, 0)
        assert classifier.session._of_thread()._runs_as[33] == 64


def test_a_forked_process_is_told_to_load_the_bundle_itself(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, cuda: Any
) -> None:
    """The driver answers 3 in a child of a process that has started it."""
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    classifier = vae_edge.load(bundle.path, double.kind, "fp32", verify="off")
    cuda.fail("cuCtxGetCurrent", 0, 3)
    with pytest.raises(BackendError, match="was forked cannot use its parent's GPU; start it by spawn"):
        classifier(noise(1))
    cuda.fail("cuCtxGetCurrent", 0, 0)
    classifier.close()


def test_the_collector_rests_until_the_last_of_two_captures_ends(gpu: Gpu, cuda: Any) -> None:
    """It is one for all threads: what it frees in a thread that captures breaks the capture."""
    gpu("10.3")
    context = open_context()
    inside, release, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with context.current():
            resources = Resources(context)
            stream = resources.stream()

            def work() -> None:
                inside.set()
                release.wait(20)

            resources.capture(stream, work)
            resources.close()

    def second() -> None:
        assert inside.wait(20)
        with context.current():
            resources = Resources(context)
            stream = resources.stream()

            def work() -> None:
                time.sleep(0.3)  # the first one ends meanwhile
                seen.append(gc.isenabled())

            threading.Timer(0.1, release.set).start()
            resources.capture(stream, work)
            resources.close()

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [False] and gc.isenabled()


def test_engines_of_one_process_share_the_logger_which_outlives_them(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path
) -> None:
    """TensorRT keeps the first one for what it says beside any engine, whoever made it."""
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    loggers = []
    for _ in range(2):
        with vae_edge.load(bundle.path, double.kind, "fp32", verify="off") as classifier:
            loggers.append(classifier.session._plan.keep_alive[0])
    assert loggers[0] is loggers[1]


def test_an_engine_is_destroyed_while_its_gpu_is_current(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLE_DEVICES", "2")
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    classifier = vae_edge.load(bundle.path, double.kind, "fp32", verify="off")
    classifier(noise(2))
    kinds = {type(classifier.session._of_thread()._last._context), type(classifier.session._plan.engine)}
    seen: list[int] = []
    for kind in kinds:
        destroy = kind.__dict__.get("__del__", lambda self: None)

        def watched(self: Any, destroy: Any = destroy) -> None:
            seen.append(cuda.handle.double_current())
            destroy(self)

        monkeypatch.setattr(kind, "__del__", watched, raising=False)
    own = cuda.handle.double_current()
    with cuda.context(1) as other:
        classifier.close()
        del classifier
        gc.collect()
        assert cuda.handle.double_current() == other
    assert seen and set(seen) == {own} and own != other
    cuda.handle.double_set_current(-1)
