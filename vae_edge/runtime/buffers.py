"""Arrays that are bound to a backend once and used again: one set for each thread and batch size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from vae_edge.runtime.backends import DTYPES, TensorInfo

MAX_BUFFERS_PER_THREAD = 8


@dataclass(frozen=True)
class BoundBuffers:
    """Arrays bound to a backend: fill `image`, call `run()`, read `outputs` before the next run."""

    image: np.ndarray  # uint8 [N, S, S, C]
    outputs: tuple[np.ndarray, ...]
    run: Callable[[], object]
    keep_alive: object  # the backend's objects that point into the arrays


Bind = Callable[[np.ndarray, tuple[np.ndarray, ...]], tuple[Callable[[], object], object]]
"""Binds an image array and output arrays to a backend; returns `run` and `keep_alive` of `BoundBuffers`."""


def refuse_closed(image: np.ndarray, outputs: tuple[np.ndarray, ...]) -> NoReturn:
    """The `Bind` of a backend that was closed."""
    raise RuntimeError(f"closed before a batch of {len(image)}")


class BufferCache:
    """Bound buffers of each thread by batch size; a thread keeps those that it used last."""

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        bind: Bind,
        limit: int = MAX_BUFFERS_PER_THREAD,
    ) -> None:
        """`bind` is called once for each thread and batch size; a thread keeps at most `limit` of them."""
        self._tensors = (*inputs, *outputs)
        self._bind = bind
        self._limit = limit
        self._local = threading.local()

    def get(self, batch: int) -> BoundBuffers:
        """This thread's buffers for a batch size."""
        found = self.find(batch)
        if found is not None:
            return found

        shapes = [(batch, *(int(n or 0) for n in tensor.shape[1:])) for tensor in self._tensors]
        arrays = [np.zeros(shape, DTYPES[t.type]) for shape, t in zip(shapes, self._tensors, strict=True)]
        image, outputs = arrays[0], tuple(arrays[1:])

        of_thread = self._of_thread()
        buffers = of_thread[batch] = BoundBuffers(image, outputs, *self._bind(image, outputs))
        if len(of_thread) > self._limit:
            of_thread.popitem(last=False)
        return buffers

    def find(self, batch: int) -> BoundBuffers | None:
        """This thread's buffers for a batch size, if there are any yet."""
        try:
            of_thread = self._local.buffers
        except AttributeError:
            return None
        buffers: BoundBuffers | None = of_thread.get(batch)
        if buffers is not None:
            of_thread.move_to_end(batch)
        return buffers

    def forget(self, batch: int) -> None:
        """Drop this thread's buffers for a batch size: they are bound anew when next asked for."""
        self._of_thread().pop(batch, None)

    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that this thread has buffers for, the one used last at the end."""
        return tuple(self._of_thread())

    def _of_thread(self) -> OrderedDict[int, BoundBuffers]:
        try:
            return self._local.buffers
        except AttributeError:
            self._local.buffers = OrderedDict()
            return self._local.buffers
