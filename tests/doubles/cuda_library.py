"""The double of libcuda.so.1: building it, and asking it by ctypes what it saw."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "cuda"
SONAME = "libcuda.so.1"
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Launch(ctypes.Structure):
    """double_launch of double.h."""

    _fields_ = (
        ("entry", ctypes.c_char * 64),
        ("architecture", ctypes.c_int),
        ("image", ctypes.c_void_p),
        ("device", ctypes.c_int),
        ("cooperative", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("parameter_count", ctypes.c_int),
        ("sizes", ctypes.c_int * 40),
        ("values", ctypes.c_uint64 * 40),
    )


class DeviceMemory(ctypes.Structure):
    """double_memory of double.h."""

    _fields_ = (("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("written", ctypes.c_void_p))


def have_compiler() -> bool:
    """Whether the double can be built here."""
    return shutil.which("cc") is not None


def build_cuda_double(cache: Path) -> CudaDouble:
    """Compile the double into `cache`, once for each state of its sources.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    sources = sorted(SOURCES.glob("*.c"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))).hexdigest()[:16]
    built = CudaDouble(cache / state / "in_process" / "cuda_double.so", cache / state / "loader" / SONAME)
    for path, options in ((built.library, []), (built.folder / SONAME, [f"-Wl,-soname,{SONAME}"])):
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        flags = [
            "-shared",
            "-fPIC",
            "-O2",
            "-g",
            "-std=gnu11",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pthread",
        ]
        subprocess.run(["cc", *flags, *options, "-o", beside, *sources], check=True)
        beside.rename(path)  # another process may build it at the same time
    return built


class CudaDouble:
    """One built double.

    Attributes:
        library: the file for this process, by its absolute path: a later `dlopen("libcuda.so.1")` does not find it.
        folder: holds it as `libcuda.so.1`, for LD_LIBRARY_PATH of other processes.
    """

    def __init__(self, library: Path, soname: Path) -> None:
        self.library, self.folder = library, soname.parent
        self._handle: ctypes.CDLL | None = None

    @property
    def handle(self) -> ctypes.CDLL:
        """The library, loaded into this process."""
        if self._handle is None:
            self._handle = open_cuda_double(str(self.library))
        return self._handle

    def environment(self, **settings: object) -> dict[str, str]:
        """The environment of a process that finds the double as its driver; `settings` such as DOUBLE_CC=86."""
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("LD_LIBRARY_PATH", "")]))
        more = {name: str(value) for name, value in settings.items()}
        return {**os.environ, "LD_LIBRARY_PATH": path, **more}

    def count(self, name: str) -> int:
        """A number by its name: how often a function was called, or what is held (see double.h).

        Raises:
            KeyError: the double has no such number.
        """
        found = int(self.handle.double_count(name.encode()))
        if found < 0:
            raise KeyError(name)
        return found

    def held(self) -> int:
        """Allocations, streams, events, graphs and execs that were not given back."""
        return int(self.handle.double_held())

    def fail(self, function: str, nth: int = 1, code: int = 2) -> None:
        """The n-th call of a function from now on (0: every call) returns `code`; code 0 takes that back.

        Raises:
            KeyError: the double has no such function.
        """
        if self.handle.double_fail(function.encode(), nth, code) != 0:
            raise KeyError(function)

    def lose_device(self, code: int = 719) -> None:
        """From now on every call that works with a device returns `code`."""
        self.handle.double_lose_device(code)

    def reset(self) -> None:
        """As freshly loaded; no thread may be in a call."""
        self.handle.double_reset()

    def faults(self) -> list[str]:
        """Misuse that no return code shows, as sentences."""
        found: list[str] = []
        while (text := self.handle.double_fault(len(found))) is not None:
            found.append(text.decode())
        return found

    @contextmanager
    def context(self, ordinal: int = 0) -> Iterator[int]:
        """The primary context of a device, current in this thread; gives the device's handle."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        for code in (
            self.handle.cuInit(0),
            self.handle.cuDeviceGet(ctypes.byref(device), ordinal),
            self.handle.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
            self.handle.cuCtxPushCurrent_v2(context),
        ):
            assert code == 0, code
        try:
            yield device.value
        finally:
            self.handle.cuCtxPopCurrent_v2(ctypes.byref(context))
            self.handle.cuDevicePrimaryCtxRelease_v2(device)


def open_cuda_double(path: str) -> ctypes.CDLL:
    """The library with the types of those functions that tests call.

    Raises:
        OSError: it cannot be loaded.
    """
    handle = ctypes.CDLL(path)
    handle.double_count.argtypes, handle.double_count.restype = [ctypes.c_char_p], ctypes.c_longlong
    handle.double_fail.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    handle.double_fault.argtypes, handle.double_fault.restype = [ctypes.c_int], ctypes.c_char_p
    handle.double_launch_host.argtypes = [ctypes.c_void_p, HostFunction, ctypes.c_void_p]
    handle.double_host_address.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
    handle.double_host_address.restype = ctypes.c_void_p
    handle.double_memory_at.argtypes = [ctypes.c_int, ctypes.POINTER(DeviceMemory)]
    handle.double_add_fault.argtypes, handle.double_add_fault.restype = [ctypes.c_char_p], None
    handle.double_raise.argtypes, handle.double_raise.restype = [ctypes.c_int], None
    handle.double_lose_device.restype = handle.double_reset.restype = None
    handle.double_set_current.restype = None
    u64, size, pointer, handle_type = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p
    handle.cuMemAlloc_v2.argtypes = [ctypes.POINTER(u64), size]
    handle.cuMemFree_v2.argtypes = [u64]
    handle.cuMemHostAlloc.argtypes = [ctypes.POINTER(pointer), size, ctypes.c_uint]
    handle.cuMemFreeHost.argtypes = [pointer]
    handle.cuMemHostGetDevicePointer_v2.argtypes = [ctypes.POINTER(u64), pointer, ctypes.c_uint]
    for name in ("cuMemcpyAsync", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2"):
        getattr(handle, name).argtypes = [u64, u64, size, handle_type]
    for name in ("cuMemcpy", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2"):
        getattr(handle, name).argtypes = [u64, u64, size]
    handle.cuPointerGetAttribute.argtypes = [pointer, ctypes.c_int, u64]
    handle.cuCtxPushCurrent_v2.argtypes = handle.cuCtxSetCurrent.argtypes = [pointer]
    for name in ("cuStreamDestroy_v2", "cuStreamSynchronize", "cuStreamQuery", "cuEventQuery", "cuEventSynchronize"):
        getattr(handle, name).argtypes = [handle_type]
    for name in ("cuEventDestroy_v2", "cuGraphDestroy", "cuGraphExecDestroy"):
        getattr(handle, name).argtypes = [handle_type]
    for name in ("cuEventRecord", "cuGraphUpload", "cuGraphLaunch"):
        getattr(handle, name).argtypes = [handle_type, handle_type]
    handle.cuStreamWaitEvent.argtypes = [handle_type, handle_type, ctypes.c_uint]
    handle.cuStreamBeginCapture_v2.argtypes = [handle_type, ctypes.c_int]
    for name in ("cuStreamEndCapture", "cuStreamIsCapturing"):
        getattr(handle, name).argtypes = [handle_type, pointer]
    handle.cuGraphInstantiateWithFlags.argtypes = [pointer, handle_type, ctypes.c_ulonglong]
    handle.cuEventElapsedTime.argtypes = [pointer, handle_type, handle_type]
    return handle
