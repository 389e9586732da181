"""What goes wrong on a device, injected through the doubles: never a wrong answer, never a hang, always a sentence."""

from __future__ import annotations

import contextlib
import gc
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.loading import process_environment, write_package
from engines import KINDS, engine_bundle
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.engine import cuda as driver
from vae_edge.errors import BackendError, VaeEdgeError
from vae_edge.runtime.classifier import Classifier

Gpu = Callable[..., Any]
IMAGES = noise(70)
BATCHES = (1, 3, 64, 70, 3, 3, 3)
ALLOCATIONS = ("cuMemAlloc_v2", "cuMemHostAlloc")
CALLS = (
    *("cuStreamCreate", "cuEventCreate", "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphLaunch"),
    *("cuGraphInstantiateWithFlags", "cuGraphUpload", "cuStreamSynchronize", "cuMemcpyHtoDAsync_v2"),
    *("cuMemcpyDtoHAsync_v2", "cuDevicePrimaryCtxRetain", "cuInit", "cuDeviceGetAttribute"),
)
METHODS = (
    *("deserialize_cuda_engine", "create_execution_context", "set_input_shape", "set_tensor_address", "infer_shapes"),
    *("execute_async_v3", "set_runtime_cache", "runtime_cache_deserialize"),
)


@pytest.fixture(scope="module")
def right(session_bundle: Bundle) -> np.ndarray:
    """The scores of the images."""
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        return classifier(IMAGES).scores


@pytest.fixture
def built(gpu: Gpu, session_bundle: Bundle, tmp_path: Path) -> Callable[..., tuple[Bundle, Any]]:
    """A bundle with an engine, and the double of TensorRT."""

    def do(version: str = "10.3", **options: Any) -> tuple[Bundle, Any]:
        double = gpu(version)
        return engine_bundle(session_bundle, tmp_path / "bundle", double, **options), double

    return do


@pytest.fixture(autouse=True)
def nothing_is_left(cuda: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for _ in range(3):  # what the collector finalizes may hold others
        gc.collect()
    held = ("device_allocations", "host_allocations", "streams", "events", "graphs", "execs")
    lost = 3 if "ctrl_c" in request.node.name else 0  # the double of TensorRT is Python, and is interrupted as such
    assert cuda.held() <= lost, str({name: cuda.count(name) for name in held})


def attempt(bundle: Bundle, kind: str, right: np.ndarray) -> list[str]:
    """Load and run once; gives the sentences of what failed. An answer is right, or there is none."""
    said: list[str] = []
    try:
        classifier = vae_edge.load(bundle.path, kind, "fp32", verify="off")
    except VaeEdgeError as error:
        return [str(error)]
    try:
        for count in BATCHES:
            for _ in range(2):  # what failed must work, or fail again, and not hang
                try:
                    np.testing.assert_allclose(classifier(IMAGES[:count]).scores, right[:count], atol=2e-3)
                except BackendError as error:  # noqa: PERF203
                    said.append(str(error))
    finally:
        classifier.close()
    return said


def is_a_sentence(text: str) -> bool:
    return (
        len(text) > 30 and text[0].isupper() | text.startswith(("tensorrt", "/")) and text.rstrip().endswith((".", ")"))
    )


@pytest.mark.parametrize("function", [*ALLOCATIONS, *CALLS])
def test_a_call_of_the_driver_that_fails(
    built: Callable[..., tuple[Bundle, Any]], cuda: Any, right: np.ndarray, function: str, record_property: Any
) -> None:
    bundle, double = built()
    attempt(bundle, "tensorrt", right)
    calls = min(cuda.count(function), 12)
    injected, failed = 0, 0
    for nth in range(1, calls + 1):
        for code in (2, 999) if function in ALLOCATIONS else (999,):
            driver._contexts.clear()
            cuda.fail(function, nth, code)
            said = attempt(bundle, "tensorrt", right)
            cuda.fail(function, 0, 0)
            injected += 1
            failed += bool(said)
            assert all(is_a_sentence(sentence) for sentence in said), said
    assert calls and not attempt(bundle, "tensorrt", right), "afterwards all is well"
    assert double.faults() == [] and cuda.faults() == []
    record_property("faults injected", injected)
    record_property("ended in a sentence", failed)


def test_out_of_memory_says_what_to_do(built: Callable[..., tuple[Bundle, Any]], cuda: Any, right: np.ndarray) -> None:
    bundle, double = built()
    cuda.fail("cuMemAlloc_v2", 0, 2)
    (sentence,) = attempt(bundle, "tensorrt", right)
    assert "the memory did not suffice: close what else uses the GPU" in sentence
    double.state.failures.clear()
    for nth in range(1, 9):
        cuda.fail("cuMemAlloc_v2", 0, 0)
        cuda.fail("cuMemAlloc_v2", nth, 2)
        for sentence in attempt(bundle, "tensorrt", right):
            assert "memory" in sentence and "close what else uses the GPU" in sentence
    cuda.fail("cuMemAlloc_v2", 0, 0)


@pytest.mark.parametrize("version", ["10.3", "rtx"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_tensorrt_that_gives_false_or_none(
    built: Callable[..., tuple[Bundle, Any]], right: np.ndarray, method: str, version: str, cuda: Any
) -> None:
    if version == "10.3" and "cache" in method:
        pytest.skip("TensorRT-RTX alone has a runtime cache")
    bundle, double = built(version)
    attempt(bundle, double.kind, right)
    calls = min(double.state.counts.get(method, 0) + 1, 10)
    failed = 0
    for nth in range(1, calls + 1):
        double.state.failures.clear()
        double.fail(method, nth)
        said = attempt(bundle, double.kind, right)
        assert all(is_a_sentence(sentence) for sentence in said), said
        failed += bool(said)
    double.state.failures.clear()
    assert not attempt(bundle, double.kind, right)
    if method not in ("runtime_cache_deserialize", "execute_async_v3"):  # a refused cache is made anew; and the double
        assert failed, (
            "a failure must not go unnoticed"
        )  # of the engine may be asked for a graph that it can go without
    assert cuda.faults() == []


@pytest.mark.parametrize("code", [700, 719, 999])
def test_a_lost_device(built: Callable[..., tuple[Bundle, Any]], cuda: Any, right: np.ndarray, code: int) -> None:
    bundle, _ = built()
    classifier = vae_edge.load(bundle.path, "tensorrt", "fp32")
    np.testing.assert_allclose(classifier(IMAGES[:3]).scores, right[:3], atol=2e-3)
    cuda.lose_device(code)
    for count in (3, 1, 64, 5):
        with pytest.raises(BackendError, match=rf"error {code}.*the GPU is lost to this process; start it again"):
            classifier(IMAGES[:count])
    classifier.close()
    classifier.close()
    cuda.reset()


def test_a_driver_that_is_too_old(
    built: Callable[..., tuple[Bundle, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: np.ndarray
) -> None:
    """It starts and describes the GPU, but lacks what came with CUDA 12."""
    bundle, _ = built()
    source = tmp_path / "old.c"
    source.write_text(
        """
        int cuInit(unsigned flags) { return 0; }
        int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
        int cuGetErrorString(int error, const char **text) { return 1; }
        int cuDeviceGetCount(int *count) { *count = 1; return 0; }
        int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
        int cuDeviceGetName(char *name, int length, int device) { name[0] = 'O'; name[1] = 0; return 0; }
        int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 1ul << 33; return 0; }
        int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 7; return 0; }
        """
    )
    library = tmp_path / "libold.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setattr("vae_edge.engine.cuda.LIBRARY", str(library))
    (sentence,) = attempt(bundle, "tensorrt", right)
    assert "driver is too old: it lacks cu" in sentence and "Install a newer driver" in sentence


def _seconds_of_a_call(classifier: Any, count: int) -> float:
    """The median of nine calls, in seconds: an interrupt within it strikes during the call, on any machine."""
    seconds = []
    for _ in range(9):
        before = time.perf_counter()
        classifier(IMAGES[:count])
        seconds.append(time.perf_counter() - before)
    return sorted(seconds)[4]


def test_ctrl_c_during_a_call_leaves_a_classifier_that_works(
    built: Callable[..., tuple[Bundle, Any]], right: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = built()
    # What strikes the double's own callback cannot be raised through C; pytest would keep it, with all its frames.
    # That is where nine of ten strike, so the rounds go on until enough of the others did.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    chance = random.Random(0)
    interrupted = 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with vae_edge.load(bundle.path, "tensorrt", "fp32") as classifier:
            durations = {count: _seconds_of_a_call(classifier, count) for count in (1, 3, 5, 64)}
            for rounds in range(1000):
                if rounds >= 150 and interrupted > 5:
                    break
                count = chance.choice(list(durations))
                try:
                    signal.setitimer(signal.ITIMER_REAL, max(1e-5, chance.uniform(0, durations[count])))
                    classifier(IMAGES[:count])
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                except BackendError as error:  # raised by the double where the interrupt came inside its callback
                    assert "Interrupt" in str(error)
                    interrupted += 1
                np.testing.assert_allclose(classifier(IMAGES[:count]).scores, right[:count], atol=2e-3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 5


@pytest.mark.slow
@pytest.mark.parametrize("version", list(KINDS))
def test_eight_threads_for_fifteen_seconds_each_version(
    built: Callable[..., tuple[Bundle, Any]], right: np.ndarray, cuda: Any, version: str
) -> None:
    """A minute in all over the four versions."""
    _many_threads(built, right, cuda, version, 15.0)


def test_eight_threads_for_three_seconds(
    built: Callable[..., tuple[Bundle, Any]], right: np.ndarray, cuda: Any
) -> None:
    _many_threads(built, right, cuda, "10.3", 3.0)


def _many_threads(
    built: Callable[..., tuple[Bundle, Any]], right: np.ndarray, cuda: Any, version: str, seconds: float
) -> None:
    bundle, double = built(version)
    wrong: list[str] = []
    done = [0] * 8

    def work(number: int, classifier: Classifier) -> None:
        chance = random.Random(number)
        while time.monotonic() < end and not wrong:
            start, count = chance.randrange(60), chance.choice((1, 1, 1, 2, 3, 10))
            found = classifier(IMAGES[start : start + count]).scores
            if not np.allclose(found, right[start : start + count], atol=2e-3):
                wrong.append(f"thread {number}: {found}")
            done[number] += 1

    with vae_edge.load(bundle.path, double.kind, "fp32") as classifier:
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=work, args=(number, classifier)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60)
            assert not thread.is_alive()
        assert not wrong and min(done) > 0
        gc.collect()
        assert len(classifier.session._threads) == 1, "what the threads had is gone with them"
    assert double.faults() == [] and cuda.faults() == []


def test_close_during_calls(built: Callable[..., tuple[Bundle, Any]], right: np.ndarray, cuda: Any) -> None:
    bundle, double = built()
    for _ in range(3):
        classifier = vae_edge.load(bundle.path, double.kind, "fp32")
        ends: list[str] = []

        def work(classifier: Classifier = classifier, ends: list[str] = ends) -> None:
            try:
                while True:
                    np.testing.assert_allclose(classifier(IMAGES[:3]).scores, right[:3], atol=2e-3)
            except BackendError as error:
                ends.append(str(error))
            except BaseException as error:
                ends.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        classifier.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert len(ends) == 6 and all("was closed" in sentence for sentence in ends), ends
    assert double.faults() == [] and cuda.faults() == []


@pytest.mark.slow
def test_two_hundred_thousand_calls_do_not_grow(built: Callable[..., tuple[Bundle, Any]], cuda: Any) -> None:
    bundle, double = built()
    double.state.free_engines = True
    with vae_edge.load(bundle.path, "tensorrt", "fp32", verify="off") as classifier:
        image = IMAGES[:1]
        for _ in range(2000):
            classifier(image)
        gc.collect()
        held, before = cuda.held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(200_000):
            classifier(image)
        gc.collect()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert cuda.held() == held and grown < 4096, f"{grown} KiB"


def test_a_call_leaves_no_memory_behind(built: Callable[..., tuple[Bundle, Any]]) -> None:
    bundle, double = built()
    double.state.free_engines = True
    with vae_edge.load(bundle.path, "tensorrt", "fp32", verify="off") as classifier:
        image = IMAGES[:1]
        for _ in range(200):
            classifier(image)
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(50):
                classifier(image)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(2000):
                classifier(image)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 2048, f"{grown} bytes in 2,000 calls"


@pytest.mark.parametrize("version", ["10.3", "rtx"])
def test_four_processes_load_one_bundle_at_once(
    built: Callable[..., tuple[Bundle, Any]], cuda: Any, tmp_path: Path, right: np.ndarray, version: str
) -> None:
    bundle, double = built(version)
    code = textwrap.dedent(
        f"""
        import sys
        import numpy as np
        import vae_edge
        with vae_edge.load({str(bundle.path)!r}, {double.kind!r}, "auto") as classifier:
            print(classifier(np.load(sys.argv[1])).scores.tolist())
        """
    )
    np.save(tmp_path / "images.npy", IMAGES[:4])
    capability = 89 if version == "rtx" else 87
    environment = process_environment(write_package(tmp_path / "packages", version), cuda.folder, DOUBLE_CC=capability)
    command = [sys.executable, "-c", code, str(tmp_path / "images.npy")]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in running:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        np.testing.assert_allclose(eval(out), right[:4], atol=2e-3)
    left = {path.name for path in bundle.path.iterdir() if path.name.endswith(".part")}
    assert not left


def test_a_process_that_is_killed_while_it_loads_leaves_a_bundle_that_loads(
    built: Callable[..., tuple[Bundle, Any]], cuda: Any, tmp_path: Path, right: np.ndarray
) -> None:
    bundle, double = built("rtx")
    code = f"import vae_edge\nvae_edge.load({str(bundle.path)!r}, 'tensorrt_rtx', 'fp32').close()\nprint('loaded')\n"
    environment = process_environment(write_package(tmp_path / "packages", "rtx"), cuda.folder, DOUBLE_CC=89)
    for delay in (0.3, 0.6, 0.9, 1.2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not attempt(bundle, double.kind, right)


@pytest.mark.alone
def test_our_python_costs_little_over_the_engines_own_call(built: Callable[..., tuple[Bundle, Any]]) -> None:
    """Microseconds of a call at batch 1 over the bare launch and wait; the double's engine costs the same in both."""
    bundle, double = built()
    double.state.free_engines = True
    with (
        vae_edge.load(bundle.path, "tensorrt", "fp32", verify="off") as classifier,
        vae_edge.load(bundle.path, "onnxruntime", "fp32", verify="off") as reference,
    ):
        image = IMAGES[:1]
        classifier(image)
        bound = classifier.session._of_thread()._last
        binding = reference.session._buffers.get(1)
        functions, graph, stream = driver.open_context().functions, bound._graph, bound._stream
        launch, wait = functions["cuGraphLaunch"], functions["cuStreamSynchronize"]

        def bare() -> None:
            launch(graph, stream)
            wait(stream)

        times: dict[str, list[int]] = {name: [] for name in ("ours", "bare", "onnxruntime", "bare onnxruntime")}
        calls = (lambda: classifier(image), bare, lambda: reference(image), binding.run)
        for _ in range(150):
            for name, call in zip(times, calls, strict=True):
                call()  # after another model, which leaves nothing of this one in the processor's caches
                for _ in range(20):
                    start = time.perf_counter_ns()
                    call()
                    times[name].append(time.perf_counter_ns() - start)
    median = {name: float(np.median(values)) / 1e3 for name, values in times.items()}
    overhead, other = median["ours"] - median["bare"], median["onnxruntime"] - median["bare onnxruntime"]
    print(f"\nover the bare call: {overhead:.1f} us; onnxruntime's backend: {other:.1f} us; {median}")
    assert overhead <= 15.0
    assert overhead <= 2.0 * max(other, 5.0)
