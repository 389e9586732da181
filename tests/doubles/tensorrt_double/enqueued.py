"""What an execution context enqueued, as a stream or a graph runs it, perhaps after the context is gone."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .basics import DataType, nptype, volume
from .runtime import ACTIVATION_BYTES, ICudaEngine
from .session import other_last_bits
from .state import DRIVER, STATE, forget


@dataclass(eq=False)
class Life:
    """What an execution context shares with the calls that it enqueued, which may outlive it.

    Attributes:
        changes: how often shape or profile changed: a graph is valid for the number at its capture.
        waiting: numbers of calls that a stream is still to make, by stream.
        captured: numbers of calls that stand in graphs.
        memory: address of the device memory that the caller gave; 0 if the context has its own.
        runs: how often it ran.
        prepared: addresses and shapes for which a free engine has its outputs.
    """

    changes: int = 0
    released: bool = False
    waiting: dict[int, int] = field(default_factory=dict)
    captured: list[int] = field(default_factory=list)
    memory: int = 0
    runs: int = 0
    prepared: set[tuple[Any, ...]] = field(default_factory=set)


LIVES: weakref.WeakSet[Life] = weakref.WeakSet()


class Call:
    """One enqueue, as a stream or a graph runs it: with the shapes and addresses of the enqueue."""

    def __init__(
        self,
        engine: ICudaEngine,
        life: Life,
        shapes: dict[str, tuple[int, ...]],
        addresses: dict[str, int],
        work: int,
        captured: bool,
        lazy: bool,
    ) -> None:
        self._session, self._io = engine._session, engine._io
        self._life, self._shapes, self._addresses = life, shapes, addresses
        self._changes, self._work, self._captured, self._lazy = life.changes, work, captured, lazy
        self.number = 0

    def __call__(self) -> None:
        life = self._life
        if self._captured:
            if self._changes != life.changes:
                STATE.fault(
                    f"A graph that was captured for {self._shapes} was replayed after the shape or profile of its "
                    "execution context had changed."
                )
        else:
            life.waiting.pop(self.number, None)
            forget([self.number])
        if not self._spoil_memory():
            return
        inputs = {}
        for name, each in self._io.items():
            if each["mode"] == "INPUT":
                array = self._array(name)
                if array is None:
                    return
                inputs[name] = array
        values = self._session.run(inputs)
        life.runs += 1
        if self._lazy and life.runs <= STATE.lazy_calls:
            values = other_last_bits(values)
        for name, value in values.items():
            array = self._array(name)
            if array is None:
                return
            array[...] = value

    def _spoil_memory(self) -> bool:
        """Write over the memory for activations, so that whoever uses it for something else is found out."""
        where = DRIVER.memory(self._work, ACTIVATION_BYTES)
        if where:
            ctypes.memset(where, 0xEE, ACTIVATION_BYTES)
            return True
        STATE.fault(f"The device memory of an execution context is not {ACTIVATION_BYTES} bytes any more.")
        DRIVER.library.double_raise(700)
        return False

    def _array(self, name: str) -> np.ndarray | None:
        """The tensor where its address points to; None after an illegal address, which fails the device."""
        dtype = np.dtype(nptype(getattr(DataType, self._io[name]["dtype"])))
        shape = self._shapes[name]
        size = volume(shape) * dtype.itemsize
        where = DRIVER.memory(self._addresses[name], size)
        if not where:
            STATE.fault(f"The address of {name} does not lead to {size} bytes that the device can reach.")
            DRIVER.library.double_raise(700)
            return None
        return np.frombuffer((ctypes.c_uint8 * size).from_address(where), dtype).reshape(shape)
