"""Buffers bound to an engine: made once for each thread and batch size, used again by every later call."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SLOTS_PER_THREAD = 8


@dataclass(frozen=True)
class Slot:
    """One bound call: fill `image`, call `run()`, read `outputs` before the next run."""

    image: np.ndarray  # uint8 [N, S, S, C]
    outputs: tuple[np.ndarray, ...]
    run: Callable[[], object]
    held: Any  # engine objects that point into the arrays above


class Slots:
    """The slots of each thread by batch size; a thread keeps the ones it used last."""

    def __init__(self, make: Callable[[int], Slot], limit: int = SLOTS_PER_THREAD) -> None:
        """`make` builds the slot of a batch size; a thread holds at most `limit` of them."""
        self._make = make
        self._limit = limit
        self._local = threading.local()

    def get(self, batch: int) -> Slot:
        """This thread's slot for a batch size."""
        slot = self.known(batch)
        if slot is not None:
            return slot
        slots = self._of_thread()
        slot = slots[batch] = self._make(batch)
        if len(slots) > self._limit:
            slots.popitem(last=False)
        return slot

    def known(self, batch: int) -> Slot | None:
        """This thread's slot for a batch size, if there is one already."""
        try:
            slots = self._local.slots
        except AttributeError:
            return None
        slot: Slot | None = slots.get(batch)
        if slot is not None:
            slots.move_to_end(batch)
        return slot

    def forget(self, batch: int) -> None:
        """Let this thread make its slot for a batch size anew."""
        self._of_thread().pop(batch, None)

    def held(self) -> tuple[int, ...]:
        """The batch sizes that this thread holds slots for, the one used last at the end."""
        return tuple(self._of_thread())

    def _of_thread(self) -> OrderedDict[int, Slot]:
        try:
            return self._local.slots
        except AttributeError:
            self._local.slots = OrderedDict()
            return self._local.slots
