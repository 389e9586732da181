"""GPUs: those that the NVIDIA driver sees (by ctypes, without a package), and the architectures of engines."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vae_edge.engine import cuda
from vae_edge.errors import EngineError

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

    def device(self, index: int) -> Device | None:
        """The GPU of this number, if there is one."""
        return self.devices[index] if 0 <= index < len(self.devices) else None

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


def probe(library: str | None = None) -> Driver:
    """Ask the driver for its version and its GPUs. Never raises: `problem` says what is missing.

    Initializes the driver in this process (a few milliseconds) but makes no context, so it takes no memory of the GPU.
    `library` is another than `vae_edge.engine.cuda.LIBRARY`.
    """
    library = library or cuda.LIBRARY
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        return Driver(None, (), f"no NVIDIA driver is installed ({library} is not there)")
    try:
        return _query(loaded)
    except AttributeError as error:
        return Driver(None, (), f"{library} is not a CUDA driver: {error}")


def _query(driver: ctypes.CDLL) -> Driver:
    number = ctypes.c_int(0)
    version = None
    if driver.cuDriverGetVersion(ctypes.byref(number)) == _SUCCESS:
        version = (number.value // 1000, number.value % 1000 // 10)
    code = driver.cuInit(ctypes.c_uint(0))
    if code == _NO_DEVICE:
        return Driver(version, (), f"the driver for CUDA {_dotted(version)} is installed, but it sees no GPU")
    if code != _SUCCESS:
        return Driver(version, (), f"the driver for CUDA {_dotted(version)} does not start: {_error(driver, code)}")
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code != _SUCCESS:
        return Driver(version, (), f"the driver cannot count its GPUs: {_error(driver, code)}")
    if count.value == 0:
        return Driver(version, (), f"the driver for CUDA {_dotted(version)} is installed, but it sees no GPU")
    try:
        return Driver(version, tuple(_device(driver, index) for index in range(count.value)))
    except OSError as error:
        return Driver(version, (), str(error))


def _device(driver: ctypes.CDLL, index: int) -> Device:
    handle = ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t(0)

    def check(code: int) -> None:
        if code != _SUCCESS:
            raise OSError(f"the driver does not describe GPU {index}: {_error(driver, code)}")

    def attribute(which: int) -> int:
        value = ctypes.c_int(0)
        check(driver.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(which), handle))
        return value.value

    check(driver.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(index)))
    check(driver.cuDeviceGetName(name, ctypes.c_int(len(name)), handle))
    check(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    return Device(
        index=index,
        name=name.value.decode("utf-8", "replace"),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        multiprocessors=attribute(_MULTIPROCESSORS),
        memory_bytes=memory.value,
        integrated=bool(attribute(_INTEGRATED)),
    )


def _error(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text)) == _SUCCESS and text.value:
        return f"error {code}, {text.value.decode('utf-8', 'replace')}"
    return f"error {code}"


def _dotted(version: tuple[int, int] | None) -> str:
    return "of unknown version" if version is None else f"{version[0]}.{version[1]}"


DEVICES = {
    "sm_75": "Turing: T4, RTX 20",
    "sm_80": "A100",
    "sm_86": "RTX 30, A10, A40",
    "sm_87": "Jetson Orin",
    "sm_88": "an embedded Ampere",
    "sm_89": "RTX 40, L4, L40",
    "sm_90": "H100, H200, GH200",
    "sm_100": "B200, GB200",
    "sm_103": "B300, GB300",
    "sm_110": "Jetson Thor",
    "sm_120": "RTX 50, RTX PRO Blackwell",
    "sm_121": "DGX Spark (GB10)",
}
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
RTX_FP8_TARGETS = ("sm_89", "sm_120", "sm_121")
JETSON_TARGETS = ("sm_87", "sm_110")
_NAME = re.compile(r"(?:sm_?)?(\d{2,3})a?(?:_\d{2,3})*")


def parse_targets(given: str | Iterable[str]) -> tuple[str, ...]:
    """Architectures from "sm_86", "86", "sm_80+89", "sm_80,sm_86" or "sm_80_86": sorted by number, each once.

    Raises:
        EngineError: an architecture is unknown or was renamed.
    """
    parts = [given] if isinstance(given, str) else list(given)
    numbers: set[int] = set()
    for part in parts:
        for word in re.split(r"[\s,+]+", part.strip()):
            if not word:
                continue
            if not _NAME.fullmatch(word):
                raise EngineError(f"The target {word!r} is not the name of an architecture. {_known_targets()}")
            numbers.update(int(number) for number in re.findall(r"\d+", word))

    names = tuple(f"sm_{number}" for number in sorted(numbers))
    for name in names:
        if name == "sm_101":
            raise EngineError("The target sm_101 is Jetson Thor's old name: since CUDA 13 it is sm_110. Use sm_110.")
        if name not in DEVICES:
            raise EngineError(f"The target {name} is unknown. {_known_targets()}")
    return names


def target_name(targets: Iterable[str]) -> str:
    """One name for an engine's targets, for its manifest entry and file: ("sm_80", "sm_86") is "sm_80_86"."""
    return "sm_" + "_".join(name.removeprefix("sm_") for name in parse_targets(targets))


def covers(target: str, device: str) -> bool:
    """Whether an engine whose manifest says `target` ("sm_80_86") was built for the architecture `device` ("sm_86")."""
    return target != "any" and device in parse_targets(target)


def check_rtx_targets(targets: Iterable[str], precision: str) -> None:
    """Raise EngineError if TensorRT-RTX cannot build an engine of this precision for one of the targets."""
    for target in targets:
        device = DEVICES[target]
        if target in JETSON_TARGETS:
            raise EngineError(
                f"TensorRT-RTX does not build for {target} ({device}): run `vae-edge build` on the Jetson itself, with "
                "the TensorRT of its JetPack (a venv made by `python3 -m venv --system-site-packages` sees it), or "
                f"write a kit that does it there: `vae-edge build BUNDLE --target {target} --kit FOLDER`; or make a "
                f"network file here: `vae-edge build BUNDLE --kind native --target {target}`."
            )
        if target not in RTX_TARGETS:
            raise EngineError(
                f"TensorRT-RTX does not build for {target} ({device}): run `vae-edge build` on such a machine with "
                f"full TensorRT (`pip install tensorrt`). TensorRT-RTX builds for {', '.join(RTX_TARGETS)}."
            )
        if precision == "fp8" and target not in RTX_FP8_TARGETS:
            raise EngineError(
                f"{target} ({device}) has no fp8 arithmetic: build int8 or fp16 for it, or fp8 for "
                f"{', '.join(RTX_FP8_TARGETS)}."
            )
        if target == "sm_75" and precision != "fp16":
            raise EngineError(
                f"TensorRT-RTX runs no fp32 matrix product on sm_75 ({device}), and an {precision} model has some: "
                "leave sm_75 out. (A file that is fp16 throughout can be built for it.)"
            )


def check_local_gpu(device: str, precision: str, dla: bool = False) -> None:
    """Raise EngineError if full TensorRT cannot build an engine of this precision for this machine's GPU or DLA."""
    number = int(device.removeprefix("sm_"))
    if precision == "fp8" and number < 89:
        raise EngineError(f"This GPU ({device}) has no fp8 arithmetic, which came with sm_89: build int8 or fp16.")
    if dla and precision not in ("fp16", "int8"):
        raise EngineError(
            f"A DLA computes only in fp16 and int8, not in {precision}: choose one of these, or leave the DLA out."
        )


def _known_targets() -> str:
    return "Known are " + ", ".join(f"{name} ({device})" for name, device in DEVICES.items()) + "."
