"""Keeps the stack on which signal handlers run, while an engine is opened or let go.

OpenVINO's CPU plugin sets a stack of its own for handlers and puts back, when it goes, the one that it found. Where the
process had one (Python's faulthandler sets one, and so does pytest) and two plugins overlap, the second puts back the
first one's, which is gone by then: the next Ctrl-C ends the process with a segmentation fault. Seen with 2026.4.1.

OpenVINO on the CPU: compiled for fixed batches; bound requests used again.

A model compiled for a fixed batch is faster than one that takes any (by a fifth on a model of 150k parameters at batch
1), and one that takes any keeps some MiB for each size it has ever seen. So the model is compiled for a few sizes,
each when it is first needed: one image, the camera's case; the sizes given to `prepare`; and buckets, in which every
other batch runs with room to spare. Batches above the largest bucket run in pieces.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from vae_edge.bundle import ModelEntry
from vae_edge.runtime.backends import Slot, Slots, TensorInfo, allocate, read_model

_DISABLED = 2  # SS_DISABLE of <signal.h>


class _Stack(ctypes.Structure):
    """stack_t of <signal.h>."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put this thread's alternate signal stack back if the block replaced it; on Linux alone."""
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
            before.flags &= _DISABLED
            sigaltstack(ctypes.byref(before), None)


PREPARED_BATCHES = 8  # of those given to `prepare`, kept at a time
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
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

    def __init__(self, file: Path, entry: ModelEntry, threads: int) -> None:
        """Load `file`; raises what `read_model` raises, and whatever OpenVINO raises for a model it refuses."""
        self._core = ov.Core()
        self._options = compile_options(threads)
        self._model = self._core.read_model(read_model(file, entry))
        self.inputs = tuple(_info(port) for port in self._model.inputs)
        self.outputs = tuple(_info(port) for port in self._model.outputs)
        self._lock = threading.Lock()
        self._prepared: OrderedDict[int, ov.CompiledModel] = OrderedDict()
        self._buckets: dict[int, ov.CompiledModel] = {}
        self._slots = Slots(self._bind, limit=PREPARED_BATCHES + len(BUCKETS))

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, S, S, C]; the arrays, in the order of `outputs`, hold until this thread's next call."""
        count = len(image)
        slot = self._slots.known(count)
        if slot is not None:  # the same size again
            slot.image[...] = image
            slot.run()
            return slot.outputs
        if count in self._prepared or count in BUCKETS:
            return self._run(image, count)
        pieces = _pieces(count)
        if len(pieces) == 1:
            return self._run(image, *pieces)
        start, parts = 0, []
        for size in pieces:
            parts.append([output.copy() for output in self._run(image[start : start + size], size)])
            start += size
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def prepare(self, batch: int) -> None:
        """Compile the model for this fixed batch, unless that was done, and bind this thread's buffers to it."""
        known = batch in self._prepared or batch in self._buckets
        self.compiled(batch)
        if not known:
            self._slots.forget(batch)
        self._slots.get(batch)

    def close(self) -> None:
        """Let the model, what was compiled from it, and all requests go."""
        with kept_signal_stack():
            self._slots = Slots(_closed)
            self._model = self._core = None
            self._prepared, self._buckets = OrderedDict(), {}

    @staticmethod
    def inner_tensors(file: Path, tensors: Sequence[str], images: np.ndarray, threads: int) -> dict[str, np.ndarray]:
        """Tensors inside the graph by name, for images uint8 [N, S, S, C]; those that OpenVINO's reader keeps."""
        core = ov.Core()
        model = core.read_model(str(file))
        known = {name for node in model.get_ops() for port in node.outputs() for name in port.get_names()}
        shown = [name for name in tensors if name in known]
        model.add_outputs(shown)
        model.reshape({port: [len(images), *port.get_partial_shape()[1:]] for port in model.inputs})
        with kept_signal_stack():
            values = core.compile_model(model, "CPU", compile_options(threads))(images)
            return {name: np.array(values[name]) for name in shown}

    def compiled(self, batch: int) -> ov.CompiledModel:
        """The model compiled for a batch: buckets stay, of other sizes those that were prepared last."""
        with self._lock:
            kept = self._buckets if batch in BUCKETS else self._prepared
            if batch not in kept:
                kept[batch] = self._compile(batch)
            if len(self._prepared) > PREPARED_BATCHES:
                self._prepared.popitem(last=False)
            return kept[batch]

    def _compile(self, batch: int) -> ov.CompiledModel:
        model = self._model.clone()
        model.reshape({port: [batch, *port.get_partial_shape()[1:]] for port in model.inputs})
        with kept_signal_stack():
            return self._core.compile_model(model, "CPU", self._options)

    def _run(self, image: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        """Run images in the slot of `size`, which may be larger; what an earlier call left behind them is ignored."""
        count, slot = len(image), self._slots.get(size)
        slot.image[:count] = image
        slot.run()
        return slot.outputs if count == size else tuple([output[:count] for output in slot.outputs])

    def _bind(self, batch: int) -> Slot:
        request = self.compiled(batch).create_infer_request()
        (image,) = allocate(self.inputs, batch)
        outputs = allocate(self.outputs, batch)
        tensors = [ov.Tensor(array, shared_memory=True) for array in (image, *outputs)]
        request.set_input_tensor(0, tensors[0])
        for index, tensor in enumerate(tensors[1:]):
            request.set_output_tensor(index, tensor)

        def run() -> None:
            request.infer(share_outputs=True, decode_strings=False)  # else it copies the outputs into a dictionary

        return Slot(image, outputs, run, held=(request, tensors))


def _pieces(count: int) -> list[int]:
    """Buckets that hold `count` images one after the other; the last one may have room, a fifth of it at most."""
    pieces = []
    while count > 0:
        above = next((size for size in BUCKETS if size >= count), BUCKETS[-1])
        fits = above <= count or above - count <= above / 5
        pieces.append(above if fits else next(size for size in reversed(BUCKETS) if size < count))
        count -= pieces[-1]
    return pieces


def _info(port: Any) -> TensorInfo:
    shape = [int(d.get_length()) if d.is_static else None for d in port.get_partial_shape()]
    named: list[int | str | None] = ["batch" if i == 0 and d is None else d for i, d in enumerate(shape)]
    kind = port.get_element_type().get_type_name()
    return TensorInfo(port.get_any_name(), named, _TYPES.get(kind, f"tensor({kind})"))


def _closed(batch: int) -> Slot:
    raise RuntimeError(f"closed before a batch of {batch}")
