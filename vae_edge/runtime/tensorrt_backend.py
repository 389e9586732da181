"""Engines of TensorRT and TensorRT-RTX, with nothing but TensorRT itself, NumPy and the driver.

Each thread has a stream, scratch memory, and for each batch size that it uses an execution context, pinned buffers and
a CUDA graph with the two copies inside. So a call is one copy into the pinned buffer, one launch and one
synchronization. On integrated memory (Jetson) the GPU reads and writes the pinned buffers themselves.

A context is not shared between batch sizes, since a graph holds the shape and addresses of its context. A batch of a
size that has no graph runs padded in a larger one; a size that comes again gets a graph of its own, and keeps it if it
is measurably faster. With TensorRT-RTX, which would compile for each size, only `warm_up` gives it one. Not verified
on hardware.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.bundle import ModelEntry
from vae_edge.engine import cuda, gpus
from vae_edge.engine.cuda import CudaContext, Resources, copy_rows, open_context, wait_for
from vae_edge.engine.plan import Plan, Tensor, load_plan, scratch_bytes
from vae_edge.engine.refit import is_stripped, source_of
from vae_edge.errors import BackendError, BundleError, DataError
from vae_edge.runtime.backends import LoadOptions, OpenedModel, TensorInfo, read_file
from vae_edge.runtime.bound_context import BoundContext
from vae_edge.runtime.device_arrays import row_pitch, view_on_device
from vae_edge.runtime.runtime_cache import RuntimeCache
from vae_edge.spec import CLASSIFIER_OUTPUTS, RECONSTRUCTION_OUTPUTS, UNCERTAINTY_OUTPUTS, output_name

log = logging.getLogger(__name__)

MAX_GRAPHS = 16
"""Contexts with a graph that a thread keeps, besides those of the powers of two, in which any batch can run."""
MIN_CALLS_FOR_GRAPH = 3
"""A batch size, or an address on the GPU, that a thread has seen so often gets a graph of its own if there is room."""
IDLE_S = 10.0  # after which a graph makes room for another
MAX_SEEN = 1024
MAX_TIME_RATIO = 0.95  # of the padded batch's time, below which a batch size keeps a graph of its own
TIMED_LAUNCHES = 7
MAX_EXIT_WAIT_S = 5.0  # for a call that runs when the interpreter ends

_OUTPUTS = {**CLASSIFIER_OUTPUTS, **UNCERTAINTY_OUTPUTS, **RECONSTRUCTION_OUTPUTS}
_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class TensorRTBackend:
    """An engine of TensorRT."""

    kind = "tensorrt"

    def __init__(self, file: Path, entry: ModelEntry, options: LoadOptions, inner: Sequence[str] = ()) -> None:
        """Deserialize an engine.

        Args:
            file, entry, options: as of every backend.
            inner: further outputs, which a build marked, that `infer` returns too.

        Raises:
            BackendError: there is no driver, GPU or TensorRT, or too little memory.
            BundleError: the file is not an engine for this machine.
        """
        content = read_file(file, entry)
        self._cuda = open_context(options.device)
        driver = gpus.probe()
        gpu = driver.device(options.device)
        if gpu is None:
            raise BackendError(f"The driver does not describe the GPU number {options.device}: {driver.sentence()}.")
        self.device = f"{gpu.name}, {gpu.target}; {driver.sentence().rpartition('; ')[2]}"
        self._threads: weakref.WeakSet[_ThreadContexts] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._making = threading.Lock()  # of contexts, whose memory is the GPU's
        self._local = threading.local()
        self._closed = False
        self._plan: Plan | None = None
        self._cache: RuntimeCache | None = None
        settings = entry.provenance.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        try:
            with self._cuda.current():
                plan = load_plan(
                    content,
                    self.kind,
                    str(file),
                    trusted=options.trusted,
                    dla_core=settings.get("dla_core"),
                    version_compatible=bool(settings.get("version_compatible")),
                    weights=source_of(file, entry) if is_stripped(entry) else None,
                    plugins=_plugins(entry),
                )
                self._plan, self._cache = plan, RuntimeCache(plan, file, content, self.device)
            self.version = plan.version
            self._tensors = _tensors(plan, inner)
            image, *outputs = self._tensors
            self.inputs = (_info(image),)
            self.outputs = tuple(map(_info, outputs))
            self._of_thread()  # what a context needs is found missing now and not at the first call
            weakref.finalize(self, _close_at_exit, self._threads, self._lock)
        except BaseException:
            self.close()
            raise

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, S, S, C]. The arrays, in the order of `outputs`, are valid until this thread's next call."""
        try:
            contexts = self._local.contexts
        except AttributeError:
            contexts = self._of_thread()
        with contexts.lock:
            try:
                return contexts.infer(image)
            finally:
                if contexts.closed:
                    contexts.close()

    def infer_on_device(self, images: Any) -> tuple[np.ndarray, ...]:
        """As `infer`, for an array on the GPU: DLPack or the CUDA array interface, uint8 [N, S, S, C].

        It is read where it is if its address is a multiple of 256 and comes again; else it is copied once, on the GPU.

        Raises:
            DataError: another type, shape or order in memory.
        """
        contexts = self._of_thread()
        with contexts.lock:
            try:
                return contexts.infer_on_device(images)
            finally:
                if contexts.closed:
                    contexts.close()

    def warm_up(self, batch: int) -> None:
        """Make this thread's context, buffers and graph for a batch size."""
        contexts = self._of_thread()
        with contexts.lock:
            try:
                contexts.warm_up(batch)
            finally:
                if contexts.closed:
                    contexts.close()

    def close(self) -> None:
        """Wait for the calls that run, and release everything. May be called again.

        In a signal's handler that interrupts a call of the same thread it cannot wait: that call still ends, and then
        releases what it used.
        """
        self._closed = True
        with self._lock:
            threads = list(self._threads)
        mine = getattr(self._local, "contexts", None)
        for contexts in threads:
            contexts.closed = True
            if contexts.lock.acquire(blocking=contexts is not mine):
                try:
                    contexts.close()
                finally:
                    contexts.lock.release()
        cache, self._cache = self._cache, None
        if cache is not None:
            with self._cuda.current():
                cache.close()
                self._plan = None

    @classmethod
    def inner_tensors(cls, model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        """Tensors inside an engine that its build marked as outputs, by name, for images uint8 [N, S, S, C]."""
        backend = cls(model.file, model.entry, model.options, inner=tensors)
        try:
            values = dict(zip((info.name for info in backend.outputs), backend.infer(images), strict=True))
            return {name: values[name].copy() for name in tensors if name in values}
        finally:
            backend.close()

    def _of_thread(self) -> _ThreadContexts:
        """This thread's."""
        try:
            return self._local.contexts
        except AttributeError:
            with self._lock:
                if self._closed or self._plan is None or self._cache is None:
                    raise BackendError("it was closed") from None
                contexts = _ThreadContexts(self._cuda, self._plan, self._cache, self._tensors, self._making)
                self._threads.add(contexts)
            self._local.contexts = contexts
            return contexts


class TensorRTRTXBackend(TensorRTBackend):
    """An engine of TensorRT-RTX; what it compiles for the GPU is kept in a cache beside the bundle."""

    kind = "tensorrt_rtx"


def _tensors(plan: Plan, inner: Sequence[str]) -> tuple[Tensor, ...]:
    """The engine's input, and those outputs that are wanted: ours, and the ones that are named."""
    image = next(tensor for tensor in plan.tensors if tensor.is_input)
    outputs = [t for t in plan.tensors if not t.is_input and (output_name(t.name) in _OUTPUTS or t.name in inner)]
    for tensor in (image, *outputs):
        if tensor.dtype not in _ONNX_TYPES or any(side < 0 for side in tensor.shape[1:]):
            raise BundleError(
                f"{plan.name} has {tensor.name} of type {tensor.dtype} {list(tensor.shape)}: it is not an engine of "
                "ours; build it with `vae-edge build`."
            )
    order = {name: index for index, name in enumerate(_OUTPUTS)}
    outputs.sort(key=lambda tensor: order.get(output_name(tensor.name), len(order)))
    return (image, *outputs)


def _plugins(entry: ModelEntry) -> tuple[str, ...]:
    """The names of the plugins that the manifest says are in an engine."""
    names = entry.provenance.get("plugins", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise BundleError(
            f"The manifest says that {entry.file} has the plugins {names!r}, where names are expected: build it again, "
            "with `vae-edge build --kernels network`."
        )
    return tuple(names)


def _info(tensor: Tensor) -> TensorInfo:
    shape: list[int | str | None] = ["batch", *tensor.shape[1:]]  # of a fixed batch too: any other runs padded
    return TensorInfo(output_name(tensor.name), shape, _ONNX_TYPES[tensor.dtype])


class _ThreadContexts:
    """What one thread runs its batches with.

    Attributes:
        lock: held during a call; whoever closes the contexts takes it.
        closed: whether it was closed, or is to be closed after the call that runs.
    """

    def __init__(
        self,
        context: CudaContext,
        plan: Plan,
        cache: RuntimeCache,
        tensors: Sequence[Tensor],
        making: threading.Lock,
    ) -> None:
        """`making` is held while a context is made."""
        self.lock = threading.Lock()
        self._making = making
        self._cuda = context
        self._is_current = context.current_check()
        self._plan = plan
        self._cache = cache
        self._tensors = tensors
        self._smallest, self._largest = plan.batch
        self._bound: OrderedDict[tuple[int, int | None], BoundContext] = OrderedDict()
        self._last: BoundContext | None = None
        self._runs_as: dict[int, int] = {}
        self._seen: Counter[tuple[int, int | None]] = Counter()
        self._captures = True
        self._compiles = cache.cache is not None  # for each new shape, which takes too long in the middle of calls
        self.closed = False
        with self._current():
            self._resources = Resources(context)
            self._finalizer = weakref.finalize(self, _close_contexts, context, self._bound, self._resources)
            self._finalizer.atexit = False  # another thread may be in a call then: see `_close_at_exit`
            self._stream = self._resources.stream()
            self._event = self._resources.event()
            self._scratch_bytes = scratch_bytes(plan)
            self._scratch = self._resources.device_memory(self._scratch_bytes)

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run a batch of any size."""
        bound, count = self._last, len(image)
        pushed = not self._is_current() and self._cuda.make_current()
        try:
            if bound is not None and bound.batch == count and bound.source is None:  # the same size again
                bound.image[...] = image
                bound.run()
                return bound.outputs
            if count > self._largest:
                return self._pieces(count, lambda start, size: self.infer(image[start : start + size]))
            bound = self._for_batch(count)
            bound.image[:count] = image
            bound.run()
            return tuple([output[:count] for output in bound.outputs])
        finally:
            if pushed:
                self._cuda.restore()

    def infer_on_device(self, images: Any) -> tuple[np.ndarray, ...]:
        """Run a batch that is on the GPU."""
        with self._current():
            stream = self._stream.value or 0
            array = view_on_device(images, stream)
            rows, columns, channels = self._tensors[0].shape[1:]
            pitch, count = row_pitch(array, (rows, columns, channels)), array.shape[0]
            device = self._cuda.device_of(array.pointer) if array.device is None else array.device
            if device is None:
                raise DataError("The images are said to be on a GPU, but the driver knows no memory at their address.")
            if device != self._cuda.device:
                raise DataError(
                    f"The images are on the GPU {device}, but the engine is on {self._cuda.device}: copy them, or load "
                    f"the bundle with device={device}."
                )
            if array.stream is not None:
                wait_for(self._cuda, self._event, self._stream, array.stream)
            width = columns * channels

            def part(start: int, size: int) -> tuple[np.ndarray, ...]:
                pointer = array.pointer + start * rows * pitch
                aligned = pitch == width and pointer % cuda.ALIGNMENT == 0 and size >= self._smallest
                bound = self._for_address(size, pointer) if aligned else None
                if bound is None:
                    bound = self._for_batch(size, on_device=True)
                    copy_rows(self._cuda, bound.address, pointer, width, size * rows, pitch, self._stream)
                bound.run()
                return tuple([output[:size] for output in bound.outputs])

            if count <= self._largest:
                return part(0, count)
            return self._pieces(count, part)

    def warm_up(self, batch: int) -> None:
        """Make the graph for a batch size, or for the pieces in which it runs."""
        size = min(batch, self._largest)
        with self._current():
            self._runs_as[size] = max(size, self._smallest)
            self._bind(self._runs_as[size], None)

    def close(self) -> None:
        """Release all that it holds; calls raise after this."""
        if self._finalizer.alive:
            self.closed = True
            self._last = None
            self._finalizer()
            del self._plan  # the engine goes with whoever closes it, and not when this thread ends

    @contextmanager
    def _current(self) -> Any:
        with self._cuda.current():
            yield

    def _pieces(self, count: int, part: Callable[[int, int], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Outputs of a batch that is larger than the profile allows."""
        parts = [
            [output.copy() for output in part(start, min(self._largest, count - start))]
            for start in range(0, count, self._largest)
        ]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _for_batch(self, count: int, on_device: bool = False) -> BoundContext:
        """The context in which a batch of this size runs, perhaps padded."""
        source = 0 if on_device else None
        size = self._runs_as.get(count)
        if size is None:
            size = self._size_for(count, source)
        return self._bind(size, source)

    def _size_for(self, count: int, source: int | None) -> int:
        """In which batch size a batch runs: its own once it comes often and that is faster, else a bucket."""
        bucket = self._bucket(count)
        if bucket == count or count < self._smallest:
            return self._runs_as.setdefault(count, bucket)
        if self._compiles or not self._captures or not self._is_frequent(count, source) or not self._has_room():
            return bucket
        try:
            padded, own = self._bind(bucket, source), self._bind(count, source)
            times = _time_interleaved(padded.run, own.run)
        except BackendError as error:  # as where memory is short; what else fails will fail in the bucket too
            log.info("batches of %d run as batches of %d: %s", count, bucket, str(error))
            return self._runs_as.setdefault(count, bucket)
        self._runs_as[count] = count if times[1] < MAX_TIME_RATIO * times[0] else bucket
        return self._runs_as[count]

    def _bucket(self, count: int) -> int:
        """The smallest power of two that holds a batch, within the profile."""
        return max(self._smallest, min(1 << (count - 1).bit_length(), self._largest))

    def _for_address(self, size: int, pointer: int) -> BoundContext | None:
        """The context that reads images where they are, once they come from an address again and again."""
        if self._compiles and self._runs_as.get(size, self._bucket(size)) != size:
            return None
        known = (size, pointer) in self._bound
        if not known and not (self._is_frequent(size, pointer) and self._has_room()):
            return None
        return self._bind(size, pointer)

    def _is_frequent(self, count: int, source: int | None) -> bool:
        if len(self._seen) > MAX_SEEN:  # of a caller whose arrays are never twice in the same place
            self._seen.clear()
        self._seen[count, source] += 1
        return self._seen[count, source] >= MIN_CALLS_FOR_GRAPH

    def _has_room(self) -> bool:
        """Whether there may be one graph more; the one that was used longest ago goes if it has been idle."""
        optional = [
            key for key, bound in self._bound.items() if bound.source or self._bucket(bound.batch) != bound.batch
        ]
        if len(optional) < MAX_GRAPHS:
            return True
        oldest = self._bound[optional[0]]
        if oldest is self._last or time.monotonic() - oldest.used_at < IDLE_S:
            return False
        self._bound.pop(optional[0]).close()
        self._runs_as.pop(oldest.batch, None)
        self._seen.pop(optional[0], None)
        return True

    def _bind(self, batch: int, source: int | None) -> BoundContext:
        """The context of a batch size and a source, made where there is none."""
        if self.closed:
            raise BackendError("it was closed")
        key = (batch, source)
        bound = self._bound.get(key)
        if bound is None:
            with self._making:
                bound = self._bound[key] = self._make(batch, source)
                self._cache.save()  # many a device is switched off and never closes anything
        self._bound.move_to_end(key)
        bound.used_at = time.monotonic()
        self._last = bound
        return bound

    def _make(self, batch: int, source: int | None) -> BoundContext:
        bound = BoundContext(self._cuda, self._plan, self._tensors, batch, source, self._stream)
        try:
            bound.prepare(self._cache.cache, self._scratch, self._scratch_bytes)
            if self._captures:
                self._captures = bound.capture()
        except BaseException:
            bound.close()
            raise
        return bound


def _close_contexts(context: CudaContext, bound: dict[Any, BoundContext], resources: Resources) -> None:
    """Also when a thread ends: graphs and contexts first, then the memory that they use."""
    while bound:
        bound.popitem()[1].close()
    resources.close()


def _close_at_exit(threads: weakref.WeakSet[_ThreadContexts], lock: threading.Lock) -> None:
    """Before the interpreter ends: no daemon thread is in a call when libraries and driver go.

    The locks are kept, so that such a thread waits for the end instead of failing. Also when a backend is dropped
    without `close`; then nobody is in a call.
    """
    lock.acquire(timeout=MAX_EXIT_WAIT_S)
    for contexts in list(threads):
        if contexts.lock.acquire(timeout=MAX_EXIT_WAIT_S):
            contexts.close()


def _time_interleaved(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of two calls, timed in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_LAUNCHES):
        for call, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
