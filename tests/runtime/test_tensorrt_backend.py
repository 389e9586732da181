"""Engines through `vae_edge.load`: against doubles of TensorRT and of the driver, not on hardware.

The double runs the engine's ONNX file on ONNX Runtime, so answers are compared with those of that backend.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from engines import KINDS, engine_bundle
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.engine import gpus
from vae_edge.errors import BackendError, ConfigError, DataError
from vae_edge.runtime import autoselect, tensorrt_backend
from vae_edge.runtime.classifier import Classifier

Gpu = Callable[..., Any]
versions = pytest.mark.parametrize("version", list(KINDS))
OUTPUTS = ("probabilities", "angles_deg", "scores")


@pytest.fixture(autouse=True)
def nothing_is_left(cuda: Any) -> Iterator[None]:
    """After each test everything was given back, and the driver saw no misuse."""
    yield
    gc.collect()
    assert cuda.faults() == []
    held = ("device_allocations", "host_allocations", "streams", "events", "graphs", "execs", "contexts")
    assert cuda.held() == 0, str({name: cuda.count(name) for name in held})


@pytest.fixture
def engine(gpu: Gpu, session_bundle: Bundle, tmp_path: Any) -> Callable[..., Classifier]:
    """Load an engine of the session's bundle in a version of TensorRT."""

    def do(version: str, *, integrated: bool = False, load: dict[str, Any] | None = None, **options: Any) -> Classifier:
        double = gpu(version, integrated)
        bundle = engine_bundle(
            session_bundle, tmp_path / f"{version} {len(list(tmp_path.iterdir()))}", double, **options
        )
        classifier = vae_edge.load(bundle.path, double.kind, "fp32", **(load or {}))
        classifier.double = double  # type: ignore[attr-defined]
        return classifier

    return do


@pytest.fixture(scope="module")
def reference(session_bundle: Bundle) -> Iterator[Classifier]:
    """The same model in ONNX Runtime."""
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        yield classifier


def same(one: Any, other: Any) -> None:
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=2e-4, err_msg=name)


@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "integrated"])
@versions
def test_answers_of_every_batch_size_are_those_of_onnx_runtime(
    engine: Callable[..., Classifier], reference: Classifier, version: str, integrated: bool
) -> None:
    images = noise(300)
    with engine(version, integrated=integrated) as classifier:
        for count in (1, 1, 2, 3, 3, 3, 3, 5, 8, 31, 64, 65, 130, 300, 1):  # 300: in pieces of the profile's 64
            same(classifier(images[:count]), reference(images[:count]))
        assert classifier.double.faults() == []


@versions
def test_a_call_is_one_launch_and_one_synchronization(
    engine: Callable[..., Classifier], cuda: Any, version: str
) -> None:
    with engine(version) as classifier:
        image = noise(1)
        classifier(image)
        names = [
            *(
                "cuGraphLaunch",
                "cuStreamSynchronize",
                "cuCtxGetCurrent",
                "cuMemcpyHtoDAsync_v2",
                "cuMemcpyDtoHAsync_v2",
            ),
            *("cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamBeginCapture_v2", "cuCtxPushCurrent_v2", "cuMemcpyAsync"),
        ]
        before = {name: cuda.count(name) for name in names}
        runs = classifier.double.state.counts["execute_async_v3"]
        for _ in range(10):
            classifier(image)
        calls = {name: cuda.count(name) - before[name] for name in names}
        assert {name for name, count in calls.items() if count} == {
            "cuGraphLaunch",
            "cuStreamSynchronize",
            "cuCtxGetCurrent",
        }
        assert set(calls.values()) == {0, 10}
        assert classifier.double.state.counts["execute_async_v3"] == runs, "the graph runs, with both copies inside"
        assert cuda.count("pageable_copies") == 0


def test_integrated_memory_is_mapped_and_not_copied(engine: Callable[..., Classifier], cuda: Any) -> None:
    with engine("10.3", integrated=True) as classifier:
        same(classifier(noise(3)), classifier(noise(3)))
        for name in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"):
            assert cuda.count(name) == 0
    with engine("10.3", integrated=False) as classifier:
        classifier(noise(3))
        assert cuda.count("cuMemcpyHtoDAsync_v2") and cuda.count("cuMemcpyDtoHAsync_v2")


@pytest.mark.parametrize("batch", [(4, 4, 4), (4, 8, 16), (2, 2, 2)])
def test_a_static_engine_and_a_profile_from_more_than_one_image_take_any_batch(
    engine: Callable[..., Classifier], reference: Classifier, batch: tuple[int, int, int]
) -> None:
    images = noise(40)
    with engine("10.13", batch=batch) as classifier:
        for count in (1, 2, 3, 4, 7, 16, 17, 40):
            same(classifier(images[:count]), reference(images[:count]))
        assert classifier.double.faults() == []
        assert classifier.inputs[0].shape[0] == "batch"


def test_of_several_profiles_the_widest_is_used(engine: Callable[..., Classifier], reference: Classifier) -> None:
    with engine("11.4", profiles=[(1, 1, 1), (1, 8, 32)]) as classifier:
        for count in (1, 5, 32, 33):
            same(classifier(noise(count)), reference(noise(count)))
        assert classifier.double.state.counts["set_optimization_profile_async"] > 0
        assert classifier.double.faults() == []


def test_a_batch_size_gets_a_graph_when_it_is_frequent_and_is_faster_then(
    engine: Callable[..., Classifier], cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = [(1.0, 0.5)]
    monkeypatch.setattr(tensorrt_backend, "_time_interleaved", lambda padded, own: faster[0])
    with engine("10.3") as classifier:
        for _ in range(tensorrt_backend.MIN_CALLS_FOR_GRAPH - 1):
            classifier(noise(33))
        captured = cuda.count("cuGraphInstantiateWithFlags")
        classifier(noise(34))  # as 33 and 64 do, it runs in the graph for 64
        assert cuda.count("cuGraphInstantiateWithFlags") == captured
        classifier(noise(33))
        assert cuda.count("cuGraphInstantiateWithFlags") == captured + 1
        contexts = classifier.session._of_thread()
        assert contexts._runs_as[33] == 33
        faster[0] = (1.0, 0.99)  # no more than noise
        for _ in range(5):
            classifier(noise(34))
        assert contexts._runs_as[34] == 64


def test_the_number_of_graphs_is_bounded_whatever_batches_come(engine: Callable[..., Classifier]) -> None:
    with engine("10.3") as classifier:
        for _ in range(tensorrt_backend.MIN_CALLS_FOR_GRAPH + 1):
            for count in range(1, 65):
                classifier(noise(count))
        buckets = 7  # 1, 2, 4, ... 64
        assert len(classifier.session._of_thread()._bound) <= buckets + tensorrt_backend.MAX_GRAPHS


def test_idle_graphs_make_room(engine: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "MAX_GRAPHS", 1)
    monkeypatch.setattr(tensorrt_backend, "_time_interleaved", lambda padded, own: (1.0, 0.1))
    with engine("10.3") as classifier:
        contexts = classifier.session._of_thread()
        for _ in range(4):
            classifier(noise(5))
        for _ in range(4):
            classifier(noise(6))
        assert (5, None) in contexts._bound and (6, None) not in contexts._bound, "5 is in use"
        monkeypatch.setattr(tensorrt_backend, "IDLE_S", 0.0)
        classifier(noise(1))
        for _ in range(4):
            classifier(noise(6))
        assert (6, None) in contexts._bound and (5, None) not in contexts._bound
        same(classifier(noise(5)), classifier(noise(6)[:5]))


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vae_edge")
    with engine("10.3", not_capturable=True) as classifier:
        for count in (1, 3, 64, 3, 3, 3, 100):
            same(classifier(noise(count)), reference(noise(count)))
        assert cuda.count("cuGraphLaunch") == 0
    assert "runs without a CUDA graph" in caplog.text


def test_a_dla_engine_is_loaded_on_its_core(engine: Callable[..., Classifier], reference: Classifier) -> None:
    settings = {"dla_core": 1}
    with engine("10.3", batch=(8, 8, 8), dla_core=1, not_capturable=True, settings=settings) as classifier:
        same(classifier(noise(8)), reference(noise(8)))
    with pytest.raises(BackendError, match="built for the DLA core 7, but this device has 2"):
        engine("10.3", batch=(8, 8, 8), dla_core=7, settings={"dla_core": 7})


def test_outputs_that_are_not_copied_are_the_buffers_of_the_next_call(engine: Callable[..., Classifier]) -> None:
    with engine("11.4") as classifier:
        images = noise(2)
        kept = classifier(images[:1])
        loose = classifier(images[:1], copy=False)
        first = loose.scores.copy()
        classifier(images[1:])
        assert kept.scores == first and loose.scores != first
    gc.collect()
    assert np.isfinite(loose.scores).all(), "the memory stays as long as somebody can read it"


@versions
def test_calls_go_on_while_others_wait(engine: Callable[..., Classifier], reference: Classifier, version: str) -> None:
    images = noise(40)
    with engine(version) as classifier:
        futures = [classifier.predict_async(images[k : k + 1 + k % 3]) for k in range(30)]
        for k, future in enumerate(futures):
            same(future.result(timeout=60), reference(images[k : k + 1 + k % 3]))
        assert len(classifier.session._threads) == 3, "the loading thread's, and two"
        wrong = classifier.predict_async(images.astype(np.float32))
        with pytest.raises(DataError, match="uint8"):
            wrong.result(timeout=60)
        with pytest.raises(ConfigError, match="leave out copy"):
            classifier.predict_async(images, copy=False)
        assert classifier.double.faults() == []
    with pytest.raises(BackendError, match="closed"):
        classifier.predict_async(images[:1])


def test_the_queue_is_bounded_and_what_waits_is_cancelled_at_the_end(engine: Callable[..., Classifier]) -> None:
    classifier = engine("10.3")
    release, entered = threading.Event(), threading.Semaphore(0)
    real = classifier.session.infer

    def slow(image: np.ndarray) -> tuple[np.ndarray, ...]:
        entered.release()
        assert release.wait(60)
        return real(image)

    classifier.session.infer = slow  # type: ignore[method-assign]
    futures = [classifier.predict_async(noise(1)) for _ in range(10)]  # two run, eight wait
    for _ in range(2):
        assert entered.acquire(timeout=60)

    def one_more() -> None:
        with contextlib.suppress(BackendError):  # closed meanwhile
            futures.append(classifier.predict_async(noise(1)))

    blocked = threading.Thread(target=one_more)
    blocked.start()
    blocked.join(0.2)
    assert blocked.is_alive() and len(futures) == 10
    closer = threading.Thread(target=classifier.close)
    closer.start()
    release.set()
    closer.join(60)
    blocked.join(60)
    assert not closer.is_alive() and not blocked.is_alive()
    states = [future.exception(timeout=60) if not future.cancelled() else CancelledError() for future in futures]
    assert any(state is None for state in states)
    assert all(state is None or isinstance(state, (CancelledError, BackendError)) for state in states)


def test_the_reconstruction_comes_from_a_backend_that_has_it(engine: Callable[..., Classifier]) -> None:
    images = noise(3)
    with engine("10.3") as classifier:
        assert (classifier.reconstruct(images) == 255 - images).all()


class OnDevice:
    """An array on the GPU by the CUDA array interface."""

    def __init__(
        self, cuda: Any, images: np.ndarray, offset: int = 0, pitch: int = 0, gpu: int = 0, **more: Any
    ) -> None:
        n, rows, columns, channels = images.shape
        width = columns * channels
        pitch = pitch or width
        padded = np.zeros((n * rows, pitch), np.uint8)
        padded[:, :width] = images.reshape(n * rows, width)
        self._library, address = cuda.handle, ctypes.c_uint64()
        self._memory = address
        self._gpu = gpu
        with cuda.context(gpu):
            assert cuda.handle.cuMemAlloc_v2(ctypes.byref(address), offset + padded.nbytes) == 0
            assert cuda.handle.cuMemcpyHtoD_v2(address.value + offset, padded.ctypes.data, padded.nbytes) == 0
        strides = None if pitch == width else (rows * pitch, pitch, channels, 1)
        self.__cuda_array_interface__ = {
            "shape": images.shape,
            "typestr": "|u1",
            "data": (address.value + offset, True),
            "strides": strides,
            "version": 3,
            **more,
        }

    def free(self, cuda: Any) -> None:
        with cuda.context(self._gpu):
            assert cuda.handle.cuMemFree_v2(self._memory.value) == 0


def test_images_on_the_gpu_are_read_where_they_are_once_they_come_again(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any
) -> None:
    images = noise(8)
    with engine("10.3") as classifier:
        array = OnDevice(cuda, images)
        copies = []
        for _ in range(6):
            before = cuda.count("cuMemcpyDtoDAsync_v2")
            same(classifier(array), reference(images))
            copies.append(cuda.count("cuMemcpyDtoDAsync_v2") - before)
        assert copies == [1, 1, 0, 0, 0, 0]
        assert cuda.count("cuMemcpyHtoDAsync_v2") <= 4, "the images never came from the host"
        assert classifier.double.faults() == []
        array.free(cuda)


@pytest.mark.parametrize(
    ("offset", "pitch"), [(100, 0), (0, 32), (256, 64)], ids=["not aligned", "padded rows", "aligned and padded"]
)
def test_images_on_the_gpu_that_are_not_aligned_or_padded_are_copied_once(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any, offset: int, pitch: int
) -> None:
    images = noise(70)  # more than the profile takes
    with engine("11.4") as classifier:
        for count in (1, 3, 64, 70):
            array = OnDevice(cuda, images[:count], offset, pitch)
            for _ in range(4):
                same(classifier(array), reference(images[:count]))
            array.free(cuda)
        assert classifier.double.faults() == []


def test_padded_rows_that_the_driver_does_not_copy_at_once_are_copied_one_by_one(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any
) -> None:
    """cuda.h: a copy may fail for a pitch that was not computed by cuMemAllocPitch."""
    images = noise(3)
    with engine("10.3") as classifier:
        array = OnDevice(cuda, images, pitch=40)
        cuda.fail("cuMemcpy2DAsync_v2", 0, 1)
        same(classifier(array), reference(images))
        cuda.fail("cuMemcpy2DAsync_v2", 0, 0)
        array.free(cuda)


def test_an_array_on_the_gpu_is_handed_over_in_the_callers_thread(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any
) -> None:
    """Another thread has another current stream of its library: what the caller's writes would not be waited for."""
    images = noise(4)
    with engine("10.3") as classifier:
        array = OnDevice(cuda, images)
        capsule = Capsule(array)
        before = cuda.count("cuStreamWaitEvent")
        future = classifier.predict_async(capsule)
        assert capsule.streams == [1], "its work is put before the default stream's"
        same(future.result(timeout=60), reference(images))
        assert cuda.count("cuStreamWaitEvent") > before, "for which our stream waits"
        with pytest.raises(DataError, match="should be uint8"):
            classifier.predict_async(Capsule(array, dtype=np.float32))
        array.free(cuda)


def test_a_classifier_can_be_closed_by_who_is_told_of_a_result(engine: Callable[..., Classifier]) -> None:
    classifier = engine("10.3")
    told: list[str] = []
    future = classifier.predict_async(noise(1))
    future.add_done_callback(lambda done: (classifier.close(), told.append("closed")))
    future.result(timeout=60)
    for _ in range(200):
        if told:
            break
        threading.Event().wait(0.02)
    assert told == ["closed"]


def test_images_on_the_gpu_wait_for_the_stream_that_writes_them(engine: Callable[..., Classifier], cuda: Any) -> None:
    with engine("10.3") as classifier:
        array = OnDevice(cuda, noise(1), stream=2)
        before = cuda.count("cuStreamWaitEvent")
        classifier(array)
        assert cuda.count("cuStreamWaitEvent") == before + 1
        array.free(cuda)


def test_images_on_another_gpu_are_refused_before_anything_reads_them(
    engine: Callable[..., Classifier], cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA array interface does not say on which they are, and an address of another GPU loses this one."""
    monkeypatch.setenv("DOUBLE_DEVICES", "2")
    said = r"on the GPU 1, but the engine is on 0: copy them, or load .* device=1"
    with engine("10.3") as classifier, cuda.context(1):
        array = OnDevice(cuda, noise(2), gpu=1)
        for _ in range(5):
            with pytest.raises(DataError, match=said):
                classifier(array)
        assert len(classifier(noise(2))) == 2
        array.free(cuda)
    cuda.handle.double_set_current(-1)


def test_images_on_the_gpu_run_there_whatever_is_the_fastest_for_images_of_the_host(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, cuda: Any, reference: Classifier
) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)

    def benchmark(opened: Any, bundle: Bundle, batch: int) -> dict[str, float]:
        return {c.name: 1.0 if (c.backend == "tensorrt") == (batch == 64) else 9.0 for c in opened}

    monkeypatch.setattr(autoselect, "_benchmark", benchmark)
    images = noise(1)
    with vae_edge.load(bundle.path) as classifier:
        assert classifier.choices[1][0] != "tensorrt" and classifier.choices[64][0] == "tensorrt"
        array = OnDevice(cuda, images)
        same(classifier(array), reference(images))
        array.free(cuda)


def test_images_on_the_gpu_of_another_kind_are_refused(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any
) -> None:
    with engine("10.3") as classifier:
        array = OnDevice(cuda, noise(2))
        described = array.__cuda_array_interface__
        for change, sentence in (
            ({"typestr": "<f4"}, "should be uint8, but their type is <f4"),
            ({"shape": (2, 1, 28, 28)}, r"should be uint8 \[N, 28, 28, 1\], but they are \[2, 1, 28, 28\]"),
            ({"shape": (0, 28, 28, 1)}, r"but they are \[0, 28, 28, 1\]"),
            ({"strides": (784, 1, 28, 784)}, "make them contiguous first"),
            ({"mask": array}, "masked array"),
            ({"data": (np.zeros(1).ctypes.data, True)}, "the driver knows no memory at their address"),
        ):
            array.__cuda_array_interface__ = {**described, **change}
            with pytest.raises(DataError, match=sentence):
                classifier(array)
        array.__cuda_array_interface__ = described
        with pytest.raises(ConfigError, match="leave out invert"):
            classifier(array, invert="always")
        with pytest.raises(DataError, match="runs on the processor"):
            reference(array)
        array.free(cuda)


class Capsule:
    """An array on the GPU by DLPack; NumPy makes the capsule, in which the device is then changed."""

    def __init__(self, array: OnDevice, device: int = 0, dtype: Any = np.uint8) -> None:
        self._array, self._device, self._dtype = array, device, dtype
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._device)

    def __dlpack__(self, stream: int | None = None) -> Any:
        from vae_edge.runtime.device_arrays import _Tensor

        self.streams.append(stream)
        described = self._array.__cuda_array_interface__
        capsule = np.zeros(described["shape"], self._dtype).__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        tensor = ctypes.cast(pointer(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents
        tensor.device.type, tensor.device.index = self.__dlpack_device__()
        tensor.data, tensor.byte_offset = described["data"][0], 0
        return capsule


class VersionedCapsule(Capsule):
    """An array on the GPU of a library that speaks DLPack 1.0 alone."""

    major = 1

    def __dlpack__(self, stream: int | None = None, *, max_version: tuple[int, int] | None = None) -> Any:  # type: ignore[override]
        from vae_edge.runtime.device_arrays import _Versioned

        if max_version is None:
            raise BufferError("a capsule of before DLPack 1.0 is not made any more")
        self.streams.append(stream)
        described = self._array.__cuda_array_interface__
        capsule = np.zeros(described["shape"], self._dtype).__dlpack__(max_version=max_version)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        versioned = ctypes.cast(pointer(capsule, b"dltensor_versioned"), ctypes.POINTER(_Versioned)).contents
        assert (versioned.major, versioned.minor) >= (1, 0) and versioned.tensor.ndim == 4
        versioned.major = self.major
        tensor = versioned.tensor
        tensor.device.type, tensor.device.index = self.__dlpack_device__()
        tensor.data, tensor.byte_offset = described["data"][0], 0
        return capsule


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy has DLPack 1.0 since 2.1")
def test_dlpack_of_version_1_is_understood(engine: Callable[..., Classifier], reference: Classifier, cuda: Any) -> None:
    images = noise(4)
    with engine("10.3") as classifier:
        array = OnDevice(cuda, images)
        same(classifier(VersionedCapsule(array)), reference(images))
        later = VersionedCapsule(array)
        later.major = 2
        with pytest.raises(DataError, match=r"come by DLPack 2\.\d, but version 1 is understood"):
            classifier(later)
        array.free(cuda)


def test_dlpack_is_understood_and_told_our_stream(
    engine: Callable[..., Classifier], reference: Classifier, cuda: Any
) -> None:
    images = noise(4)
    with engine("10.3") as classifier:
        array = OnDevice(cuda, images)
        capsule = Capsule(array)
        same(classifier(capsule), reference(images))
        (stream,) = capsule.streams
        assert stream == classifier.session._of_thread()._stream.value
        with pytest.raises(DataError, match="should be uint8"):
            classifier(Capsule(array, dtype=np.float32))
        with pytest.raises(DataError, match=r"on the GPU 1, but the engine is on 0: copy them, or load .* device=1"):
            classifier(Capsule(array, device=1))
        array.free(cuda)


def test_another_context_that_is_current_stays_current(
    engine: Callable[..., Classifier], cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLE_DEVICES", "2")
    with engine("10.3") as classifier:
        with cuda.context(1) as device:
            same(classifier(noise(2)), classifier(noise(2)))
            assert cuda.handle.double_current() == device
        cuda.handle.double_set_current(-1)


@versions
def test_auto_takes_an_engine_that_is_right_and_fast(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Any, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device, where it would be: this one's engine is a CPU's."""
    double = gpu(version)
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    monkeypatch.setattr(
        autoselect, "_benchmark", lambda opened, bundle, batch: {c.name: float(k) for k, c in enumerate(opened, 1)}
    )
    with vae_edge.load(bundle.path) as classifier:
        assert {backend for backend, _ in classifier.choices.values()} == {double.kind}
    (record,) = json.loads((bundle.path / "auto.json").read_text())["records"]
    assert gpus.probe().sentence() in record["key"]["cpu"], "another GPU or driver is another question"
    assert f"{double.kind} fp32" in record["key"]["models"]
    with vae_edge.load(bundle.path) as again:
        assert again.backend == double.kind
