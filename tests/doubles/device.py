"""Calls of the driver's double for its own tests: each gives the code, or what the driver made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from doubles.cuda_library import CudaDouble


@dataclass(frozen=True)
class Device:
    """The driver's double with a current context, and short names for what tests do with it."""

    cuda: CudaDouble

    @property
    def library(self) -> ctypes.CDLL:
        """The double itself."""
        return self.cuda.handle

    def _made(self, function: str, kind: Any, *arguments: Any) -> int:
        made = kind()
        code = getattr(self.library, function)(ctypes.byref(made), *arguments)
        assert code == 0, (function, code)
        return int(made.value)

    def stream(self, flags: int = 1) -> int:
        """A new stream, by default one that does not wait for the default stream."""
        return self._made("cuStreamCreate", ctypes.c_void_p, flags)

    def event(self, flags: int = 0) -> int:
        """A new event."""
        return self._made("cuEventCreate", ctypes.c_void_p, flags)

    def allocate(self, size: int) -> int:
        """So many bytes of device memory."""
        return self._made("cuMemAlloc_v2", ctypes.c_uint64, size)

    def allocate_host(self, size: int, flags: int = 2) -> int:
        """So many bytes of pinned memory, by default mapped."""
        return self._made("cuMemHostAlloc", ctypes.c_void_p, size, flags)

    def mapped(self, host: int) -> int:
        """The device's address of pinned memory."""
        return self._made("cuMemHostGetDevicePointer_v2", ctypes.c_uint64, host, 0)

    def pinned(self, size: int) -> np.ndarray:
        """Pinned memory as uint8 [size]; it lives until the context ends or `cuMemFreeHost(array.ctypes.data)`."""
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self.allocate_host(size)), np.uint8)

    def upload(self, array: np.ndarray) -> int:
        """A copy of the array in device memory, by a blocking copy."""
        address = self.allocate(array.nbytes)
        assert self.library.cuMemcpyHtoD_v2(address, array.ctypes.data, array.nbytes) == 0
        return address

    def download(self, address: int, size: int) -> np.ndarray:
        """Device memory as uint8 [size], by a blocking copy."""
        array = np.zeros(size, np.uint8)
        assert self.library.cuMemcpyDtoH_v2(array.ctypes.data, address, size) == 0
        return array

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        code = self.library.cuStreamSynchronize(stream)
        assert code == 0, code

    def end_capture(self, stream: int) -> tuple[int, int]:
        """The code, and the graph (0: none)."""
        graph = ctypes.c_void_p()
        code = self.library.cuStreamEndCapture(stream, ctypes.byref(graph))
        return int(code), graph.value or 0

    def instantiate(self, graph: int) -> int:
        """The exec of a graph."""
        return self._made("cuGraphInstantiateWithFlags", ctypes.c_void_p, graph, 0)
