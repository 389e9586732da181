"""What the double keeps: faults that were made, failures on demand, the driver's double, and calls in flight."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76  # attributes of a device


@dataclass
class State:
    """The state of one personality in this process.

    Attributes:
        faults: what was done wrong, as sentences.
        failures: by name of a method, the numbers of the calls from now on that fail (0: every call).
        cuda_library: path of the driver's double; by default what the loader finds as libcuda.so.1.
        free_engines: whether outputs are computed once for all addresses and shapes, after which an engine costs
            nothing but `engine_cost_us`.
        engine_cost_us: gives what such an engine costs for a batch, 0 if nothing.
        lazy_calls: how many first calls of a context a LAZY kernel specialization differs in the last bits.
        dla_cores: of an Orin.
        nearest_grid_samples: the parser reads every GridSample as nearest, as TensorRT-RTX 1.5 does.
        build_seconds: how long a build takes.
        logged: the runtimes and builders that live, which have loggers.
        plants: what is wrong with the engines that the builder makes (see `building.plant`).
    """

    faults: list[str] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    cuda_library: str = "libcuda.so.1"
    free_engines: bool = False
    engine_cost_us: Callable[[int], int] = lambda batch: 0
    lazy_calls: int = 3
    dla_cores: int = 2
    nearest_grid_samples: bool = False
    build_seconds: float = 0.0
    plants: tuple[str, ...] = ()
    logged: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for planned in filter(None, os.environ.get("DOUBLE_TENSORRT_FAIL", "").split(",")):
            method, _, nth = planned.partition(":")
            self.failures.setdefault(method, []).append(int(nth))
        self.plants = tuple(filter(None, os.environ.get("DOUBLE_TENSORRT_PLANTS", "").split(",")))

    def fault(self, sentence: str) -> None:
        """Keep a fault; a process whose faults another one reads also writes it to DOUBLE_TENSORRT_FAULTS."""
        with self.lock:
            self.faults.append(sentence)
            if "DOUBLE_TENSORRT_FAULTS" in os.environ:
                with Path(os.environ["DOUBLE_TENSORRT_FAULTS"]).open("a") as file:
                    file.write(sentence + "\n")

    def count(self, name: str) -> None:
        """Count a call that cannot fail on demand."""
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + 1

    def fails(self, name: str) -> bool:
        """Count a call; whether this one is to fail."""
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + 1
            planned = self.failures.pop(name, [])
            left = [number if number == 0 else number - 1 for number in planned if number != 1]
            if left:
                self.failures[name] = left
            return 0 in planned or 1 in planned


STATE = State()


class Driver:
    """The driver's double, as TensorRT uses it. Opened when it is first needed."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._path = ""

    @property
    def library(self) -> ctypes.CDLL:
        """The loaded library.

        Raises:
            OSError: there is none.
        """
        path = os.environ.get("DOUBLE_CUDA_LIBRARY", STATE.cuda_library)
        if self._library is None or path != self._path:
            library = ctypes.CDLL(path)
            library.double_launch_host.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            library.double_host_address.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
            library.double_host_address.restype = ctypes.c_void_p
            library.double_raise.restype = None
            library.cuMemAlloc_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            library.cuMemFree_v2.argtypes = [ctypes.c_uint64]
            library.cuStreamIsCapturing.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            library.cuEventRecord.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            library.cuCtxPushCurrent_v2.argtypes = library.double_error.argtypes = [ctypes.c_void_p]
            self._library, self._path = library, path
        return self._library

    @property
    def spend(self) -> Any:
        """A function that takes some microseconds, and does nothing."""
        return ctypes.cast(self.library.double_spend, ctypes.c_void_p)

    def start(self) -> int:
        """Start the driver: 0 or its code; -1 without a driver."""
        try:
            return int(self.library.cuInit(0))
        except OSError:
            return -1

    def context(self) -> int:
        """The context that is current in this thread, 0 if none is."""
        current = ctypes.c_void_p()
        self.library.cuCtxGetCurrent(ctypes.byref(current))
        return current.value or 0

    def capability(self) -> int:
        """Of the current device, such as 87; 0 if none is current."""
        device, value = ctypes.c_int(), ctypes.c_int()
        if self.library.cuCtxGetDevice(ctypes.byref(device)) != 0:
            return 0
        numbers = []
        for attribute in (MAJOR, MINOR):
            if self.library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
                return 0
            numbers.append(value.value)
        return numbers[0] * 10 + numbers[1]

    def first_capability(self) -> int:
        """Of the first device, for a builder, which needs no context; 0 without a driver or device."""
        device, value = ctypes.c_int(), ctypes.c_int()
        if self.start() != 0 or self.library.cuDeviceGet(ctypes.byref(device), 0) != 0:
            return 0
        self.library.cuDeviceGetAttribute(ctypes.byref(value), MAJOR, device)
        major = value.value
        self.library.cuDeviceGetAttribute(ctypes.byref(value), MINOR, device)
        return major * 10 + value.value

    def driver_version(self) -> int:
        """Of the driver, such as 13020."""
        version = ctypes.c_int()
        self.library.cuDriverGetVersion(ctypes.byref(version))
        return version.value

    def allocate(self, size: int) -> tuple[int, int]:
        """The driver's code, and the address of so many bytes of device memory."""
        address = ctypes.c_uint64()
        code = int(self.library.cuMemAlloc_v2(ctypes.byref(address), max(size, 1)))
        return code, address.value

    def free(self, context: int, addresses: list[int]) -> None:
        """Give device memory back, whichever context is current."""
        library = self.library
        pushed = context != 0 and library.cuCtxPushCurrent_v2(context) == 0
        for address in addresses:
            library.cuMemFree_v2(address)
        if pushed:
            library.cuCtxPopCurrent_v2(None)

    def capturing(self, stream: int) -> tuple[int, int]:
        """The driver's code, and whether the stream is captured (0 no, 1 yes, 2 broken)."""
        status = ctypes.c_int()
        code = int(self.library.cuStreamIsCapturing(stream, ctypes.byref(status)))
        return code, status.value

    def works(self, context: int) -> bool:
        """Whether the device of a context has not failed."""
        return int(self.library.double_error(context)) == 0

    def memory(self, address: int, size: int) -> int:
        """Where the host finds memory that the device can reach; 0 if not all of it is in one live allocation."""
        return self.library.double_host_address(address, size) or 0


DRIVER = Driver()

_numbers = itertools.count(1)
_calls: dict[int, Callable[[], None]] = {}


def _run(number: int | None) -> None:
    call = _calls.get(number or 0)
    if call is None:
        STATE.fault("A stream or graph ran an enqueue of an execution context that was destroyed.")
        return
    try:
        call()
    except Exception as error:  # a ctypes callback would swallow it
        STATE.fault(f"The double itself failed: {type(error).__name__}: {error}")
        DRIVER.library.double_raise(719)


RUN = HostFunction(_run)
RUN_ADDRESS = ctypes.cast(RUN, ctypes.c_void_p).value


def register(call: Callable[[], None]) -> int:
    """Keep a call that a stream or graph will make; gives its number."""
    number = next(_numbers)
    _calls[number] = call
    return number


def forget(numbers: Any) -> None:
    """Drop calls; who makes them nevertheless makes a fault."""
    for number in numbers:
        _calls.pop(number, None)


def calls_kept() -> int:
    """How many calls wait, or stand in graphs."""
    return len(_calls)
