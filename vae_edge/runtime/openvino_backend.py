"""OpenVINO on the CPU: the model compiled for a few fixed batch sizes, with inference requests that later calls reuse.

A model compiled for a fixed batch is faster than one that takes any batch (by a fifth on a model of 150k parameters at
batch 1), and one that takes any batch keeps some MiB for each size it has ever seen. So the model is compiled for:
one image, the camera's case; the sizes given to `warm_up`; and buckets of 1, 2, 4, … 64 images. Each is compiled when
it is first needed. A batch of another size runs in a slightly larger bucket or in several; see `split_into_buckets`.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from vae_edge.bundle import ModelEntry
from vae_edge.runtime.backends import LoadOptions, OpenedModel, TensorInfo, backend_version, read_model
from vae_edge.runtime.buffers import BufferCache, refuse_closed
from vae_edge.spec import output_name

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
MAX_WARM_SIZES = 8
"""Batch sizes given to `warm_up`, other than buckets, that stay compiled: those given last."""
_TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)", "f16": "tensor(float16)", "i64": "tensor(int64)"}


def compile_options(threads: int) -> dict[str, Any]:
    """The options of every compiled model of ours; without the first, activations would be bfloat16 on some CPUs."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }


class OpenVinoBackend:
    """A model in OpenVINO's CPU plugin; the precision is the one that is in the file."""

    device = ""

    def __init__(self, file: Path, entry: ModelEntry, options: LoadOptions) -> None:
        """Load `file`; raises what `read_model` raises, and whatever OpenVINO raises for a model it refuses."""
        self._core = ov.Core()
        self._options = compile_options(options.threads)
        self._model = self._core.read_model(read_model(file, entry))
        self.inputs = tuple(_info(port) for port in self._model.inputs)
        self.outputs = tuple(_info(port) for port in self._model.outputs)
        self.version = backend_version("openvino")

        self._lock = threading.Lock()
        self._warm: OrderedDict[int, ov.CompiledModel] = OrderedDict()
        self._buckets: dict[int, ov.CompiledModel] = {}
        self._buffers = BufferCache(self.inputs, self.outputs, self._bind, limit=MAX_WARM_SIZES + len(BUCKETS))

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, S, S, C]. The arrays, in the order of `outputs`, are valid until this thread's next call."""
        count = len(image)
        buffers = self._buffers.find(count)
        if buffers is not None:  # the same size again
            buffers.image[...] = image
            buffers.run()
            return buffers.outputs

        if count in self._warm or count in BUCKETS:
            return self._run(image, count)
        sizes = split_into_buckets(count)
        if len(sizes) == 1:
            return self._run(image, *sizes)
        start, parts = 0, []
        for size in sizes:
            parts.append([output.copy() for output in self._run(image[start : start + size], size)])
            start += size
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def warm_up(self, batch: int) -> None:
        """Compile the model for this fixed batch, unless that was done, and bind this thread's buffers to it."""
        known = batch in self._warm or batch in self._buckets
        self.compiled(batch)
        if not known:
            self._buffers.forget(batch)
        self._buffers.get(batch)

    def close(self) -> None:
        """Release the model, what was compiled from it, and all requests."""
        with preserve_sigaltstack():
            self._buffers = BufferCache(self.inputs, self.outputs, refuse_closed)
            self._model = self._core = None
            self._warm, self._buckets = OrderedDict(), {}

    @staticmethod
    def inner_tensors(model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        """Tensors inside the graph by name, for images uint8 [N, S, S, C]; those that OpenVINO's reader keeps."""
        core = ov.Core()
        graph = core.read_model(str(model.file))
        known = {name for node in graph.get_ops() for port in node.outputs() for name in port.get_names()}
        shown = [name for name in tensors if name in known]
        graph.add_outputs(shown)
        graph.reshape({port: [len(images), *port.get_partial_shape()[1:]] for port in graph.inputs})
        with preserve_sigaltstack():
            values = core.compile_model(graph, "CPU", compile_options(model.options.threads))(images)
            return {name: np.array(values[name]) for name in shown}

    def compiled(self, batch: int) -> ov.CompiledModel:
        """The model compiled for a batch: buckets stay, of other sizes the ones that were warmed up last."""
        with self._lock:
            kept = self._buckets if batch in BUCKETS else self._warm
            if batch not in kept:
                kept[batch] = self._compile(batch)
            if len(self._warm) > MAX_WARM_SIZES:
                self._warm.popitem(last=False)
            return kept[batch]

    def _compile(self, batch: int) -> ov.CompiledModel:
        model = self._model.clone()
        model.reshape({port: [batch, *port.get_partial_shape()[1:]] for port in model.inputs})
        with preserve_sigaltstack():
            return self._core.compile_model(model, "CPU", self._options)

    def _run(self, image: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        """Run images in the buffers of `size`, which may be larger: rows left behind by earlier calls are ignored."""
        count, buffers = len(image), self._buffers.get(size)
        buffers.image[:count] = image
        buffers.run()
        return buffers.outputs if count == size else tuple([output[:count] for output in buffers.outputs])

    def _bind(self, image: np.ndarray, outputs: tuple[np.ndarray, ...]) -> tuple[Callable[[], object], object]:
        request = self.compiled(len(image)).create_infer_request()
        tensors = [ov.Tensor(array, shared_memory=True) for array in (image, *outputs)]
        request.set_input_tensor(0, tensors[0])
        for index, tensor in enumerate(tensors[1:]):
            request.set_output_tensor(index, tensor)

        def run() -> None:
            request.infer(share_outputs=True, decode_strings=False)  # else it copies the outputs into a dictionary

        return run, (request, tensors)


def split_into_buckets(count: int) -> list[int]:
    """Buckets that hold `count` images one after the other; the last one may be too large by a fifth at most."""
    sizes = []
    while count > 0:
        above = next((size for size in BUCKETS if size >= count), BUCKETS[-1])
        fits = above <= count or above - count <= above / 5
        sizes.append(above if fits else next(size for size in reversed(BUCKETS) if size < count))
        count -= sizes[-1]
    return sizes


def _info(port: Any) -> TensorInfo:
    shape = [int(d.get_length()) if d.is_static else None for d in port.get_partial_shape()]
    named: list[int | str | None] = ["batch" if i == 0 and d is None else d for i, d in enumerate(shape)]
    kind = port.get_element_type().get_type_name()
    return TensorInfo(output_name(port.get_any_name()), named, _TYPES.get(kind, f"tensor({kind})"))


_SS_DISABLE = 2  # of <signal.h>


class _Stack(ctypes.Structure):
    """stack_t of <signal.h>."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def preserve_sigaltstack() -> Iterator[None]:
    """Put this thread's alternate signal stack back if the block replaced it; on Linux alone.

    OpenVINO's CPU plugin sets a stack of its own for signal handlers and restores, when it goes, the one that it
    found. Where the process had one (Python's faulthandler sets one, and so does pytest) and two plugins overlap, the
    second restores the first one's stack, which is freed by then: the next Ctrl-C ends the process with a segmentation
    fault. Seen with OpenVINO 2026.4.1.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None, use_errno=True).sigaltstack
    before, after = _Stack(), _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(None, ctypes.byref(after))
        if after.start != before.start or after.size != before.size:
            before.flags &= _SS_DISABLE
            sigaltstack(ctypes.byref(before), None)
