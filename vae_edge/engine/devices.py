"""Devices by the names that people use, such as `orin-nano` or `rtx-4090`: what each is, where its engines are built.

The table is data for `--target`, for `vae-edge devices` and for docs/engines.md; what a JetPack brings is in
`vae_edge.jetson`. No figure in it decides how an engine is built: only the architecture does. A figure without a source
is None.

The capabilities are those of developer.nvidia.com/cuda-gpus. GeForce cards since Ampere have 128 CUDA cores a
multiprocessor, Turing cards 64: where a source lists cores, multiprocessors are cores divided by that.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vae_edge.engine.gpus import DEVICES, JETSON_TARGETS, RTX_TARGETS, parse_targets
from vae_edge.errors import EngineError
from vae_edge.jetson import CHIPS, JETPACKS, JetPack

THIS = "this"
"""The name of the GPU of this machine."""
_TOO_OLD = ("8.6",)  # TensorRT without strongly typed networks, of JetPack 6.0


@dataclass(frozen=True)
class TargetDevice:
    """A device that engines are built for.

    Attributes:
        name: as `--target` takes it.
        product: as NVIDIA calls it.
        capability: compute capability, such as (8, 7).
        multiprocessors: how many it has.
        bandwidth_gb_s: of its memory, in 10^9 bytes a second.
        memory_gb: as the data sheet says; of a Jetson shared with the processor.
        dla_cores: deep-learning accelerators.
        aliases: other names that `--target` takes.
        source: where the figures are from.
    """

    name: str
    product: str
    capability: tuple[int, int]
    multiprocessors: int | None
    bandwidth_gb_s: float | None
    memory_gb: int | None
    dla_cores: int = 0
    aliases: tuple[str, ...] = ()
    source: str = ""

    @property
    def target(self) -> str:
        """The name of its architecture, such as "sm_87"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def jetson(self) -> bool:
        """Whether it is a Jetson, whose TensorRT is that of its JetPack."""
        return self.target in JETSON_TARGETS

    @property
    def jetpacks(self) -> tuple[JetPack, ...]:
        """Of a Jetson, those whose TensorRT builds our engines; oldest first."""
        chips = [name for name, chip in CHIPS.items() if chip.capability == self.capability]
        return tuple(each for each in JETPACKS if set(chips) & set(each.chips) and each.tensorrt not in _TOO_OLD)

    @property
    def ahead_of_time(self) -> bool:
        """Whether TensorRT-RTX builds our engines for it on any machine.

        Not for sm_75, where it runs no fp32 matrix product, and every classifier reads its angle out with one.
        """
        return self.target in RTX_TARGETS and self.target != "sm_75"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `vae-edge devices --json` prints them."""
        values = dataclasses.asdict(self)
        values["jetpacks"] = {each.version: each.tensorrt for each in self.jetpacks}
        values["capability"] = f"{self.capability[0]}.{self.capability[1]}"
        return {**values, "target": self.target, "jetson": self.jetson, "ahead_of_time": self.ahead_of_time}


_MODULES = "NVIDIA's data sheets of the Jetson modules (from memory)"
_NANO = "data sheet of the Orin Nano Super developer kit, December 2024"
_T5000 = "forums.developer.nvidia.com/t/356355 (20 multiprocessors by the driver); data sheet of T5000 (from memory)"
_TURING = "umatechnology.org (RTX 2080, 2080 Ti: CUDA cores, bandwidth)"
_T4 = "sysrqmts.com (T4)"
_GA10X = "gamingpcbuilder.com (CUDA cores); alldbin.com, thetechfeed.site (bandwidth)"
_GA10X_60 = "sysrqmts.com (RTX 3060); fpsbench.com (RTX 3060 Ti)"
_ADA = "alldbin.com, neowin.net (CUDA cores, multiprocessors); guru3d.com (bandwidth)"
_RTX_4070 = "guru3d.com (bandwidth); GeForce product page (CUDA cores, from memory)"
_BLACKWELL = "NVIDIA at CES 2025 (tweaktown.com/news/102469); thetechfeed.site (bandwidth)"
_BLACKWELL_60 = "techpowerup.com/forums/posts/5471408 (CUDA cores); hi-tech.ua (128 bits at 28 Gbit/s)"
_CARDS = "cputronic.com (A2); sysrqmts.com (A10); topcpu.net, grokipedia.com (L4, L40S)"
_DATA_CENTER = "acecloud.ai/blog/nvidia-b200-vs-h200-h100-a100; hmc-tech.com (multiprocessors)"
_SPARK = "ai-infrastructure.net/dgx-spark, after docs.nvidia.com"


def _gpu(
    name: str,
    product: str,
    capability: tuple[int, int],
    multiprocessors: int | None,
    bandwidth: float | None,
    memory: int,
    source: str,
) -> TargetDevice:
    return TargetDevice(name, product, capability, multiprocessors, bandwidth, memory, source=source)


TARGET_DEVICES = (
    TargetDevice("orin-nano", "Jetson Orin Nano 8 GB", (8, 7), 8, 68, 8, 0, source=_NANO),
    TargetDevice("orin-nano-4gb", "Jetson Orin Nano 4 GB", (8, 7), 4, 34, 4, 0, source=_MODULES),
    TargetDevice("orin-nano-super", "Jetson Orin Nano 8 GB, Super modes", (8, 7), 8, 102, 8, 0, source=_NANO),
    TargetDevice("orin-nx-8gb", "Jetson Orin NX 8 GB", (8, 7), 8, 102, 8, 1, source=_MODULES),
    TargetDevice("orin-nx-16gb", "Jetson Orin NX 16 GB", (8, 7), 8, 102, 16, 2, ("orin-nx",), _MODULES),
    TargetDevice("agx-orin-32gb", "Jetson AGX Orin 32 GB", (8, 7), 14, 204.8, 32, 2, source=_MODULES),
    TargetDevice("agx-orin-64gb", "Jetson AGX Orin 64 GB", (8, 7), 16, 204.8, 64, 2, ("agx-orin",), _MODULES),
    TargetDevice("thor-t4000", "Jetson T4000", (11, 0), 12, 273, 64, 0, ("t4000",), _MODULES),
    TargetDevice("thor", "Jetson AGX Thor, T5000", (11, 0), 20, 273, 128, 0, ("thor-t5000", "t5000"), _T5000),
    _gpu("rtx-2080", "GeForce RTX 2080", (7, 5), 46, 448, 8, _TURING),
    _gpu("rtx-2080-ti", "GeForce RTX 2080 Ti", (7, 5), 68, None, 11, _TURING),
    _gpu("t4", "T4", (7, 5), 40, 320, 16, _T4),
    _gpu("a100", "A100 SXM 80 GB", (8, 0), 108, 2039, 80, _DATA_CENTER),
    _gpu("rtx-3060", "GeForce RTX 3060 12 GB", (8, 6), 28, 360, 12, _GA10X_60),
    _gpu("rtx-3060-ti", "GeForce RTX 3060 Ti", (8, 6), 38, 448, 8, _GA10X_60),
    _gpu("rtx-3070", "GeForce RTX 3070", (8, 6), 46, 448, 8, _GA10X),
    _gpu("rtx-3080", "GeForce RTX 3080 10 GB", (8, 6), 68, 760, 10, _GA10X),
    _gpu("rtx-3090", "GeForce RTX 3090", (8, 6), 82, 936, 24, _GA10X),
    _gpu("rtx-3090-ti", "GeForce RTX 3090 Ti", (8, 6), 84, 1008, 24, _GA10X),
    _gpu("a2", "A2", (8, 6), 10, 200, 16, _CARDS),
    _gpu("a10", "A10", (8, 6), 72, 600, 24, _CARDS),
    _gpu("rtx-4060", "GeForce RTX 4060", (8, 9), 24, 272, 8, _ADA),
    _gpu("rtx-4060-ti", "GeForce RTX 4060 Ti", (8, 9), 34, 288, 8, _ADA),
    _gpu("rtx-4070", "GeForce RTX 4070", (8, 9), 46, 504, 12, _RTX_4070),
    _gpu("rtx-4070-ti", "GeForce RTX 4070 Ti", (8, 9), 60, 504, 12, _ADA),
    _gpu("rtx-4080", "GeForce RTX 4080", (8, 9), 76, 717, 16, _ADA),
    _gpu("rtx-4090", "GeForce RTX 4090", (8, 9), 128, 1008, 24, _ADA),
    _gpu("l4", "L4", (8, 9), None, 300, 24, _CARDS),  # sources give 58 and 60 multiprocessors
    _gpu("l40s", "L40S", (8, 9), 142, 864, 48, _CARDS),
    _gpu("h100", "H100 SXM", (9, 0), 132, 3350, 80, _DATA_CENTER),
    _gpu("h200", "H200 SXM", (9, 0), 132, 4800, 141, _DATA_CENTER),
    _gpu("b200", "B200 in a DGX B200", (10, 0), 148, 8000, 180, _DATA_CENTER),
    _gpu("rtx-5060", "GeForce RTX 5060", (12, 0), 30, 448, 8, _BLACKWELL_60),
    _gpu("rtx-5060-ti", "GeForce RTX 5060 Ti 16 GB", (12, 0), 36, 448, 16, _BLACKWELL_60),
    _gpu("rtx-5070", "GeForce RTX 5070", (12, 0), 48, 672, 12, _BLACKWELL),
    _gpu("rtx-5070-ti", "GeForce RTX 5070 Ti", (12, 0), 70, 896, 16, _BLACKWELL),
    _gpu("rtx-5080", "GeForce RTX 5080", (12, 0), 84, 960, 16, _BLACKWELL),
    _gpu("rtx-5090", "GeForce RTX 5090", (12, 0), 170, 1792, 32, _BLACKWELL),
    _gpu("dgx-spark", "DGX Spark, GB10", (12, 1), 48, 273, 128, _SPARK),
)

_BY_NAME = {name: device for device in TARGET_DEVICES for name in (device.name, *device.aliases)}
_FAMILIES = {"orin": "sm_87"}  # names of several modules that differ in nothing that an engine depends on
_ARCHITECTURE = re.compile(r"(?:sm_?)?\d{1,4}a?(?:_\d{1,4})*|sm_.*")


@dataclass(frozen=True)
class Targets:
    """What `--target` named.

    Attributes:
        architectures: sorted, each once; empty for this machine's GPU.
        devices: those that were given by name, in the order given.
    """

    architectures: tuple[str, ...]
    devices: tuple[TargetDevice, ...] = ()


def find_targets(given: str | Iterable[str]) -> Targets:
    """Architectures and devices from names such as "orin-nano", "rtx-4090,sm_86" or "this".

    Raises:
        EngineError: a name is unknown, and the sentence has the nearest ones; or `this` does not stand alone.
    """
    parts = [given] if isinstance(given, str) else list(given)
    words = [word for part in parts for word in re.split(r"[\s,+]+", part.strip()) if word]
    if THIS in words:
        if len(set(words)) > 1:
            raise EngineError(f"The target {THIS!r} is this machine's GPU and stands alone: leave the other names out.")
        return Targets(())
    architectures: list[str] = []
    devices: list[TargetDevice] = []
    for word in words:
        name = word.lower().replace(" ", "-")
        if name in _BY_NAME:
            devices.append(_BY_NAME[name])
            architectures.append(_BY_NAME[name].target)
        elif name in _FAMILIES:
            architectures.append(_FAMILIES[name])
        elif _ARCHITECTURE.fullmatch(name):
            architectures += parse_targets(name)
        else:
            raise EngineError(_unknown(word))
    return Targets(parse_targets(architectures), tuple(dict.fromkeys(devices)))


def find_architectures(given: str | Iterable[str]) -> tuple[str, ...]:
    """The architectures of `find_targets` alone."""
    return find_targets(given).architectures


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word.lower(), [*_BY_NAME, *_FAMILIES, THIS, *DEVICES], n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(f"{name} ({device})" for name, device in DEVICES.items())
    return (
        f"The target {word!r} is neither a device's name nor an architecture.{meant} `vae-edge devices` lists the "
        f"devices; the architectures are {known}."
    )


def is_jetson(architecture: str) -> bool:
    """Whether the architecture is that of a Jetson."""
    return architecture in JETSON_TARGETS


HEADINGS = ("device", "product", "architecture", "SMs", "GB/s", "GB", "DLA", "JetPack (TensorRT)", "TensorRT builds")


def table_rows() -> list[tuple[str, ...]]:
    """The table of devices as text, under `HEADINGS`; what is not known is "?"."""
    return [_row(device) for device in TARGET_DEVICES]


def _row(device: TargetDevice) -> tuple[str, ...]:
    names = ", ".join((device.name, *device.aliases))
    builds = "ahead of time, RTX" if device.ahead_of_time else "on the device"
    return (
        names,
        device.product,
        device.target,
        _figure(device.multiprocessors),
        _figure(device.bandwidth_gb_s),
        _figure(device.memory_gb),
        str(device.dla_cores),
        _jetpacks(device),
        builds,
    )


def _jetpacks(device: TargetDevice) -> str:
    """Versions with the same TensorRT as a range: "6.1-6.2.2 (10.3)"."""
    by_tensorrt: dict[str, list[str]] = {}
    for each in device.jetpacks:
        by_tensorrt.setdefault(each.tensorrt, []).append(each.version)
    return ", ".join(
        f"{versions[0]}{f'-{versions[-1]}' if len(versions) > 1 else ''} ({tensorrt})"
        for tensorrt, versions in by_tensorrt.items()
    )


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"
