"""The NVIDIA driver of this machine and its GPUs, by `libcuda.so.1` through ctypes: no package is needed."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass
from typing import Any

_SUCCESS = 0
_NO_DEVICE = 100
_INTEGRATED, _MULTIPROCESSORS, _MAJOR, _MINOR = 18, 16, 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class Device:
    """One GPU. `index` is CUDA's number for it, after CUDA_VISIBLE_DEVICES."""

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    integrated: bool  # shares the host's memory, as on a Jetson

    @property
    def target(self) -> str:
        """The name of its architecture, such as "sm_87"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Driver:
    """The driver. `version`: the newest CUDA that it supports, as (13, 0); `problem`: why there are no devices."""

    version: tuple[int, int] | None
    devices: tuple[Device, ...]
    problem: str = ""

    @property
    def device_count(self) -> int:
        """How many GPUs can be used."""
        return len(self.devices)

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge doctor` prints it."""
        devices = [{**dataclasses.asdict(device), "target": device.target} for device in self.devices]
        version = _dotted(self.version) if self.version else None
        return {"version": version, "devices": devices, "problem": self.problem}

    def sentence(self) -> str:
        """The GPUs and the driver in one line."""
        if not self.devices:
            return f"none: {self.problem}"
        names = ", ".join(f"{d.name} ({d.target}, {d.memory_bytes / 2**30:.1f} GiB)" for d in self.devices)
        return f"{names}; driver for CUDA {_dotted(self.version)}"


def probe(library: str = "libcuda.so.1") -> Driver:
    """Ask the driver for its version and its GPUs. Never raises: `problem` says what is missing.

    Initializes the driver in this process (a few milliseconds) but makes no context, so it takes no memory of the GPU.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Driver(None, (), f"no NVIDIA driver is installed ({library} is not there)")
    try:
        return _query(cuda)
    except AttributeError as error:
        return Driver(None, (), f"{library} is not a CUDA driver: {error}")


def _query(cuda: ctypes.CDLL) -> Driver:
    number = ctypes.c_int(0)
    version = None
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == _SUCCESS:
        version = (number.value // 1000, number.value % 1000 // 10)
    code = cuda.cuInit(ctypes.c_uint(0))
    if code == _NO_DEVICE:
        return Driver(version, (), f"the driver for CUDA {_dotted(version)} is installed, but it sees no GPU")
    if code != _SUCCESS:
        return Driver(version, (), f"the driver for CUDA {_dotted(version)} does not start: {_error(cuda, code)}")
    count = ctypes.c_int(0)
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code != _SUCCESS:
        return Driver(version, (), f"the driver cannot count its GPUs: {_error(cuda, code)}")
    if count.value == 0:
        return Driver(version, (), f"the driver for CUDA {_dotted(version)} is installed, but it sees no GPU")
    try:
        return Driver(version, tuple(_device(cuda, index) for index in range(count.value)))
    except OSError as error:
        return Driver(version, (), str(error))


def _device(cuda: ctypes.CDLL, index: int) -> Device:
    handle = ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t(0)

    def check(code: int) -> None:
        if code != _SUCCESS:
            raise OSError(f"the driver does not describe GPU {index}: {_error(cuda, code)}")

    def attribute(which: int) -> int:
        value = ctypes.c_int(0)
        check(cuda.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(which), handle))
        return value.value

    check(cuda.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(index)))
    check(cuda.cuDeviceGetName(name, ctypes.c_int(len(name)), handle))
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    return Device(
        index=index,
        name=name.value.decode("utf-8", "replace"),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        multiprocessors=attribute(_MULTIPROCESSORS),
        memory_bytes=memory.value,
        integrated=bool(attribute(_INTEGRATED)),
    )


def _error(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text)) == _SUCCESS and text.value:
        return f"error {code}, {text.value.decode('utf-8', 'replace')}"
    return f"error {code}"


def _dotted(version: tuple[int, int] | None) -> str:
    return "of unknown version" if version is None else f"{version[0]}.{version[1]}"
