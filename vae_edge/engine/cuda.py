"""The CUDA driver, libcuda.so.1, by ctypes: what a runtime needs of it, without a package or CUDA's runtime library.

Signatures and constants are those of cuda.h (CUDA 12.0 and later); `_v2` is how the library exports what the header
calls by a shorter name. Not verified on hardware.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

import numpy as np

from vae_edge.errors import BackendError

log = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"
ALIGNMENT = 256
"""Bytes of which TensorRT wants every tensor's address to be a multiple."""

_INVALID_VALUE, _OUT_OF_MEMORY, _NOT_INITIALIZED, _NO_DEVICE = 1, 2, 3, 100
_LOST = (214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999)  # after these every call of the process fails
_INTEGRATED, _CAN_MAP_HOST_MEMORY = 18, 19  # CUdevice_attribute
_HOST_PORTABLE, _HOST_DEVICE_MAP = 1, 2  # CU_MEMHOSTALLOC_*
_STREAM_NON_BLOCKING = 1
_EVENT_NO_TIMING = 2
_CAPTURE_THREAD_LOCAL = 1
_MEMORY_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D_v2: rows of bytes from one pitch to another."""

    _fields_ = (
        ("source_x", c_size_t),
        ("source_y", c_size_t),
        ("source_type", c_uint),
        ("source_host", c_void_p),
        ("source_device", c_uint64),
        ("source_array", c_void_p),
        ("source_pitch", c_size_t),
        ("x", c_size_t),
        ("y", c_size_t),
        ("type", c_uint),
        ("host", c_void_p),
        ("device", c_uint64),
        ("array", c_void_p),
        ("pitch", c_size_t),
        ("width", c_size_t),
        ("height", c_size_t),
    )


_HANDLE = POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuCtxGetCurrent": (_HANDLE,),
    "cuCtxGetDevice": (POINTER(c_int),),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_HANDLE,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostGetDevicePointer_v2": (POINTER(c_uint64), c_void_p, c_uint),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemcpy2DAsync_v2": (POINTER(_Copy2D), c_void_p),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_ulonglong),
    "cuGraphUpload": (c_void_p, c_void_p),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuLibraryLoadData": (_HANDLE, c_char_p, c_void_p, c_void_p, c_uint, c_void_p, c_void_p, c_uint),
    "cuLibraryUnload": (c_void_p,),
    "cuLibraryGetKernel": (_HANDLE, c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p),
}


class CudaError(BackendError):
    """A call of the CUDA driver failed.

    Attributes:
        code: CUresult; 0 where there is no driver to call.
    """

    def __init__(self, sentence: str, code: int = 0) -> None:
        """The message is a sentence."""
        super().__init__(sentence)
        self.code = code

    @property
    def is_lost(self) -> bool:
        """Whether the device is lost to this process: every later call fails too."""
        return self.code in _LOST

    @property
    def is_out_of_memory(self) -> bool:
        """Whether there is too little memory."""
        return self.code == _OUT_OF_MEMORY


class CudaContext:
    """A GPU's primary context, which this process's PyTorch, TensorRT and CuPy use too.

    It is held until the process ends, as the CUDA runtime holds it, which TensorRT uses: so whatever is freed late, by
    the garbage collector or by an array that somebody kept, still finds it. `open_context` gives it.

    Attributes:
        device: number of the GPU.
        integrated: whether the GPU uses the host's memory, as on a Jetson, so that mapped memory needs no copies.
        functions: the driver's functions by name, declared; each returns a CUresult.
    """

    def __init__(self, device: int = 0) -> None:
        """Start the driver and take the context.

        Raises:
            CudaError: there is no driver, it is too old or does not start, or it has no such GPU.
        """
        self.device = device
        self.functions = _functions(LIBRARY)
        code = self.functions["cuInit"](0)
        if code == _NO_DEVICE:
            raise CudaError(f"The NVIDIA driver ({LIBRARY}) is installed, but it sees no GPU.", code)
        self._check("cuInit", code)
        self._ordinal = c_int()
        self._check("cuDeviceGet", self.functions["cuDeviceGet"](ctypes.byref(self._ordinal), device))
        self.integrated = bool(self._attribute(_INTEGRATED) and self._attribute(_CAN_MAP_HOST_MEMORY))
        self._handle = c_void_p()
        self._check(
            "cuDevicePrimaryCtxRetain",
            self.functions["cuDevicePrimaryCtxRetain"](ctypes.byref(self._handle), self._ordinal),
        )
        self._get_current = self.functions["cuCtxGetCurrent"]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            CudaError: it fails.
        """
        code = self.functions[name](*arguments)
        if code:
            self._check(name, code)

    def make_current(self) -> bool:
        """Make the context current in this thread. Returns True if another one was, which `restore` brings back."""
        current = c_void_p()
        code = self._get_current(ctypes.byref(current))
        if code == 0 and current.value == self._handle.value:
            return False
        if code:
            self._check("cuCtxGetCurrent", code)
        if current.value is None:  # as the CUDA runtime does: it stays current
            self.call("cuCtxSetCurrent", self._handle)
            return False
        self.call("cuCtxPushCurrent_v2", self._handle)
        return True

    def current_check(self) -> Callable[[], bool]:
        """A function for one thread that tells, as fast as ctypes can, whether the context is current there."""
        found = c_void_p()
        get, reference, handle = self._get_current, ctypes.byref(found), self._handle.value
        return lambda: get(reference) == 0 and found.value == handle

    def restore(self) -> None:
        """Make the context current again that was so before `make_current` returned True."""
        popped = c_void_p()
        self.call("cuCtxPopCurrent_v2", ctypes.byref(popped))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Within it, the context is current in this thread."""
        pushed = self.make_current()
        try:
            yield
        finally:
            if pushed:
                self.restore()

    def device_of(self, pointer: int) -> int | None:
        """On which GPU the memory at an address is; None if the driver does not know it.

        Raises:
            CudaError: the driver fails.
        """
        number = c_int()
        code = self.functions["cuPointerGetAttribute"](ctypes.byref(number), _DEVICE_ORDINAL, pointer)
        if code == _INVALID_VALUE:
            return None
        self._check("cuPointerGetAttribute", code)
        return number.value

    def _attribute(self, which: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, self._ordinal)
        return value.value

    def _check(self, name: str, code: int) -> None:
        if code:
            raise error(self.functions, name, code)


def error(functions: dict[str, Callable[..., int]], name: str, code: int) -> CudaError:
    """The error of a call that returned `code`."""
    text = c_char_p()
    known = functions["cuGetErrorString"](code, ctypes.byref(text)) == 0 and text.value is not None
    words = text.value.decode("utf-8", "replace") if known and text.value is not None else "unknown"
    advice = ""
    if code == _OUT_OF_MEMORY:
        advice = ": close what else uses the GPU's memory, or use smaller batches or fewer threads"
    elif code in _LOST:
        advice = ": the GPU is lost to this process; start it again"
    elif code == _NOT_INITIALIZED:
        advice = ": a process that was forked cannot use its parent's GPU; start it by spawn, and load the bundle in it"
    return CudaError(f"The CUDA driver's {name} failed with error {code}, {words}{advice}.", code)


_loaded: dict[str, dict[str, Callable[..., int]]] = {}


def _functions(library: str) -> dict[str, Callable[..., int]]:
    """The functions of the driver, declared.

    Raises:
        CudaError: the library is not there, or lacks a function.
    """
    if library in _loaded:
        return _loaded[library]
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise CudaError(f"No NVIDIA driver is installed ({library} cannot be loaded: {error}).") from error
    found: dict[str, Callable[..., int]] = {}
    for name, arguments in _SIGNATURES.items():
        try:
            function = getattr(driver, name)
        except AttributeError as error:
            raise CudaError(
                f"The NVIDIA driver is too old: it lacks {name}, which came with CUDA 12.0. Install a newer driver."
            ) from error
        function.argtypes, function.restype = arguments, c_int
        found[name] = function
    return _loaded.setdefault(library, found)


_contexts: dict[tuple[str, int], CudaContext] = {}
_opening = threading.Lock()
_capturing = threading.Lock()  # Python's collector is one for all threads


def open_context(device: int = 0) -> CudaContext:
    """The primary context of a GPU; the same one at each call.

    Raises:
        CudaError: as `CudaContext`.
    """
    with _opening:
        key = (LIBRARY, device)
        if key not in _contexts:
            _contexts[key] = CudaContext(device)
        return _contexts[key]


class _PinnedBlock:
    """Page-locked memory at `pointer`, which is null until it is allocated; given back with this object."""

    def __init__(self) -> None:
        self.pointer = c_void_p()


def _free_pinned(context: CudaContext, pointer: c_void_p) -> None:
    if not pointer.value:
        return
    try:
        with context.current():
            context.call("cuMemFreeHost", pointer)
    except CudaError as lost:
        log.info("%s", lost)


class Resources:
    """Handles and memory of the driver, given back in the reverse order by `close`, once.

    What is to be given back is noted before it is made: Python raises KeyboardInterrupt as soon as a slow call of the
    driver returns.
    """

    def __init__(self, context: CudaContext) -> None:
        """`context`: the GPU's."""
        self.context = context
        self._held: list[tuple[str, c_void_p | c_uint64]] = []

    def close(self) -> None:
        """Give everything back. A lost device takes nothing back, and that is logged."""
        held, self._held = self._held, []
        if not held:
            return
        try:
            with self.context.current():
                for name, handle in reversed(held):
                    code = self.context.functions[name](handle) if handle.value else 0
                    if code:
                        log.info("%s", error(self.context.functions, name, code))
        except CudaError as lost:
            log.info("%s", lost)

    def stream(self) -> c_void_p:
        """A new stream that does not wait for the default one."""
        return self._create("cuStreamDestroy_v2", "cuStreamCreate", _STREAM_NON_BLOCKING)

    def event(self) -> c_void_p:
        """A new event without a time."""
        return self._create("cuEventDestroy_v2", "cuEventCreate", _EVENT_NO_TIMING)

    def device_memory(self, size: int) -> int:
        """The device address of new memory of `size` bytes."""
        pointer = c_uint64()
        self._held.append(("cuMemFree_v2", pointer))
        self.context.call("cuMemAlloc_v2", ctypes.byref(pointer), max(1, size))
        return pointer.value

    def pinned_memory(self, size: int) -> np.ndarray:
        """New page-locked host memory, uint8 [size], which the GPU sees too (`device_address`). It holds zeros.

        It is given back once no array refers to it, whatever was closed before: a user may still read it.
        """
        owner = _PinnedBlock()
        weakref.finalize(owner, _free_pinned, self.context, owner.pointer).atexit = False  # arrays live to the end
        flags = _HOST_PORTABLE | _HOST_DEVICE_MAP
        self.context.call("cuMemHostAlloc", ctypes.byref(owner.pointer), max(1, size), flags)
        assert owner.pointer.value is not None
        block = (ctypes.c_uint8 * max(1, size)).from_address(owner.pointer.value)
        block.owner = owner  # type: ignore[attr-defined]
        memory = np.ctypeslib.as_array(block)[:size]
        memory[:] = 0
        return memory

    def device_address(self, memory: np.ndarray) -> int:
        """Where the GPU sees memory of `pinned_memory`."""
        pointer = c_uint64()
        self.context.call("cuMemHostGetDevicePointer_v2", ctypes.byref(pointer), memory.ctypes.data, 0)
        return pointer.value

    def capture(self, stream: c_void_p, work: Callable[[], None]) -> c_void_p:
        """What `work` puts on the stream, as a graph that `cuGraphLaunch` starts. `work` itself runs nothing.

        Meanwhile Python's collector rests: if it freed the GPU's memory now, the capture would fail. One thread
        captures at a time, or the first that ends would wake it.

        Raises:
            CudaError: something in `work` cannot be captured.
        """
        graph = c_void_p()
        with _capturing:
            collects = gc.isenabled()
            try:
                gc.disable()
                self.context.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
                work()
                self.context.call("cuStreamEndCapture", stream, ctypes.byref(graph))
            except BaseException:
                self.context.functions["cuStreamEndCapture"](stream, ctypes.byref(graph))  # the first error counts
                if graph.value is not None:
                    self.context.functions["cuGraphDestroy"](graph)
                raise
            finally:
                if collects:
                    gc.enable()
        try:
            ready = self._create("cuGraphExecDestroy", "cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self.context.functions["cuGraphDestroy"](graph)
        self.context.call("cuGraphUpload", ready, stream)
        return ready

    def _create(self, destroy: str, create: str, *arguments: Any) -> c_void_p:
        """The handle that a function gives, which `destroy` takes back."""
        handle = c_void_p()
        self._held.append((destroy, handle))
        self.context.call(create, ctypes.byref(handle), *arguments)
        return handle


def copy_rows(
    context: CudaContext, target: int, source: int, width: int, rows: int, pitch: int, stream: c_void_p
) -> None:
    """Copy `rows` rows of `width` bytes that lie `pitch` bytes apart into contiguous memory, device to device.

    Raises:
        CudaError: the copy fails.
    """
    if pitch == width:
        context.call("cuMemcpyDtoDAsync_v2", target, source, width * rows, stream)
        return
    # For a pitch that cuMemAllocPitch did not choose this may be refused, says cuda.h: then row by row.
    copy = _Copy2D(
        source_type=_MEMORY_DEVICE,
        source_device=source,
        source_pitch=pitch,
        type=_MEMORY_DEVICE,
        device=target,
        pitch=width,
        width=width,
        height=rows,
    )
    code = context.functions["cuMemcpy2DAsync_v2"](ctypes.byref(copy), stream)
    if code == _INVALID_VALUE:
        for row in range(rows):
            context.call("cuMemcpyDtoDAsync_v2", target + row * width, source + row * pitch, width, stream)
    elif code:
        raise error(context.functions, "cuMemcpy2DAsync_v2", code)


def wait_for(context: CudaContext, event: c_void_p, stream: c_void_p, other: int) -> None:
    """Let `stream` wait for what is on another stream now, by its handle (1 is the default stream)."""
    context.call("cuEventRecord", event, c_void_p(other))
    context.call("cuStreamWaitEvent", stream, event, 0)


# Kernels


def current_architecture() -> int:
    """The architecture of the GPU whose context is current in this thread; 87 is sm_87.

    Raises:
        CudaError: no context is current, or the driver fails.
    """
    functions = _functions(LIBRARY)
    device, major, minor = c_int(), c_int(), c_int()
    _call(functions, "cuCtxGetDevice", ctypes.byref(device))
    for value, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        _call(functions, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return 10 * major.value + minor.value


class KernelCode:
    """A kernel of machine code, which may be launched in every context and thread until this object is gone.

    Attributes:
        cubin: the machine code, which the driver goes on reading.
        entry: name of the kernel.
    """

    def __init__(self, cubin: bytes, entry: str) -> None:
        """Load the code and find the kernel in it.

        Raises:
            CudaError: there is no driver, or the code is not for the GPU whose context is current, or is damaged.
        """
        self.cubin, self.entry = cubin, entry
        self._functions = _functions(LIBRARY)
        library, self._kernel = c_void_p(), c_void_p()
        _call(self._functions, "cuLibraryLoadData", ctypes.byref(library), cubin, None, None, 0, None, None, 0)
        self._unload = weakref.finalize(self, _unload_library, self._functions, library, cubin)
        self._unload.atexit = False  # the driver takes it back with the process
        _call(self._functions, "cuLibraryGetKernel", ctypes.byref(self._kernel), library, entry.encode())

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream: int,
        arguments: Sequence[c_uint64 | c_int],
    ) -> None:
        """Put a launch of `grid` programs of so many threads on a stream, by its handle.

        Args:
            grid: programs along each axis.
            threads: of a program.
            shared_bytes: of dynamic shared memory, at most 48 KiB.
            stream: its handle.
            arguments: in the kernel's order and of its types.

        Raises:
            CudaError: the driver refuses it.
        """
        values = (c_void_p * len(arguments))(*[ctypes.addressof(each) for each in arguments])
        _call(
            self._functions, "cuLaunchKernel", self._kernel, *grid, threads, 1, 1, shared_bytes, stream, values, None
        )  # fmt: skip


def _unload_library(functions: dict[str, Callable[..., int]], library: c_void_p, cubin: bytes) -> None:
    del cubin  # held until now, since the driver reads it
    code = functions["cuLibraryUnload"](library)
    if code:
        log.info("%s", error(functions, "cuLibraryUnload", code))


def _call(functions: dict[str, Callable[..., int]], name: str, *arguments: Any) -> None:
    code = functions[name](*arguments)
    if code:
        raise error(functions, name, code)
