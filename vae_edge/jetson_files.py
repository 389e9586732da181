"""The files in which a Jetson's system says what it is: one function for each kind of file, below a root for tests.

No function raises. What is missing, unreadable, cut, huge or not what it should be gives an empty answer, and the rest
is still read. Reads are bounded, and no program is run. Files with a serial number are never opened.

`vae_edge.jetson` says what the answers mean. The layout of the files is that of L4T 36 to 39 (JetPack 6 and 7); it was
taken from public descriptions, and is not verified on hardware.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vae_edge.environment import DEVICE_TREES, board_model, read_text

LIBRARY_FOLDER = "usr/lib/aarch64-linux-gnu"
_JETSON_CONTAINERS_MODEL = "tmp/nv_jetson_model"  # where jetson-containers and jetson-inference copy the model
_MAX_ENTRIES = 512  # of a folder or a list
_MAX_DPKG_BYTES = 64 << 20
_MAX_LINE_BYTES = 4096
_MAX_NAME = 64


@dataclass(frozen=True)
class PowerMode:
    """One mode of `nvpmodel`.

    Attributes:
        number: what `nvpmodel -m` takes.
        name: such as "MAXN_SUPER" or "15W".
        strength: orders the modes of one Jetson by what they allow: GPU clock, GPU units, CPU cores, CPU clock, memory
            clock, and the watts of the name. No limit counts as infinite, an unstated one as 0.
    """

    number: int
    name: str
    strength: tuple[float, ...] = ()


@dataclass(frozen=True)
class Clocks:
    """Whether clocks are pinned, as `jetson_clocks` does; None for what cannot be read (memory: for root alone)."""

    gpu_hz: int | None
    gpu_max_hz: int | None
    gpu_pinned: bool | None
    cpu_pinned: bool | None
    memory_pinned: bool | None

    @property
    def pinned(self) -> bool | None:
        """Whether all that could be read are pinned; None where nothing could."""
        told = [each for each in (self.gpu_pinned, self.cpu_pinned, self.memory_pinned) if each is not None]
        return all(told) if told else None


def device_tree(root: Path) -> tuple[str, tuple[str, ...]]:
    """The board's model, and the names that it is compatible with, the most exact first; empty where there is no tree.

    In a container the kernel's tree is masked. Then these two files may be mounted at `/run/host/device-tree`.
    """
    model = board_model(root) or read_text(root / _JETSON_CONTAINERS_MODEL, _MAX_LINE_BYTES).strip("\0\n ")
    texts = (read_text(root / folder / "compatible", _MAX_LINE_BYTES) for folder in DEVICE_TREES)
    compatible = next(filter(None, texts), "")
    return model[:256], tuple(name.strip()[:_MAX_NAME] for name in compatible.split("\0") if name.strip())


def l4t_release(root: Path) -> str:
    """The version of L4T in `/etc/nv_tegra_release`, such as "36.4.3"; empty where the file does not tell it."""
    text = read_text(root / "etc/nv_tegra_release", _MAX_LINE_BYTES)
    found = re.search(r"# R(\d{1,4}) \(release\), REVISION: (\d{1,4}(?:\.\d{1,4}){0,3})", text)
    if not found:
        return ""
    parts = [found[1], *found[2].split(".")]
    return ".".join(parts + ["0"] * (3 - len(parts)))


def debian_packages(root: Path, pattern: str) -> dict[str, str]:
    """The versions of installed Debian packages whose whole name matches `pattern`, read without `dpkg`."""
    wanted, found = re.compile(pattern), dict[str, str]()
    name = status = version = ""
    for line in _dpkg_lines(root / "var/lib/dpkg/status"):
        key, _, value = line.partition(": ")
        if not line:  # the end of a package
            name = status = version = ""
        elif key == "Package":
            name = value
        elif key == "Status":
            status = value
        elif key == "Version":
            version = value
        if name and status == "install ok installed" and version and wanted.fullmatch(name):
            found[name[:_MAX_NAME]] = version[:_MAX_NAME]
    return found


def _dpkg_lines(path: Path) -> Iterator[str]:
    """Lines of a file of some megabytes, without its newlines; a line that is too long ends them."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            left = _MAX_DPKG_BYTES
            while left > 0 and (line := file.readline(1 << 20)):
                left -= len(line)
                yield line[:_MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return


def cuda_version(root: Path, packages: Mapping[str, str]) -> str:
    """The CUDA toolkit's or runtime's version, such as "12.6.68"; empty where neither is installed."""
    runtimes = sorted(version for name, version in packages.items() if name.startswith("cuda-cudart-"))
    if runtimes:
        return runtimes[-1].partition("-")[0]
    try:
        told = json.loads(read_text(root / "usr/local/cuda/version.json"))["cuda"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return str(told)[:_MAX_NAME]


def tensorrt_library(root: Path) -> Path | None:
    """The library `libnvinfer.so` under its longest name, such as `libnvinfer.so.10.3.0`; None where it is missing."""
    return max(_tensorrt_files(root, "libnvinfer"), key=lambda path: (len(path.name), path.name), default=None)


def needs_dla_compiler(root: Path) -> bool:
    """Whether the TensorRT that is installed cannot be loaded without `libnvdla_compiler.so`."""
    libraries = (path for name in ("libnvinfer", "libnvinfer_plugin") for path in _tensorrt_files(root, name))
    return any("libnvdla_compiler.so" in needed_libraries(path) for path in libraries)


def _tensorrt_files(root: Path, name: str) -> list[Path]:
    return [path for path in _entries(root / LIBRARY_FOLDER, f"{name}.so.*") if _is_filled(path)]


def tensorrt_pythons(root: Path) -> tuple[str, ...]:
    """The versions of Python for which TensorRT's Python files are installed, such as ("3.10",); "3" is any of them."""
    versions = {
        folder.name.removeprefix("python")
        for lib in ("usr/lib", "usr/local/lib")
        for folder in _entries(root / lib, "python3*")
        if _is_filled(folder / "dist-packages/tensorrt/__init__.py")
    }
    return tuple(sorted(versions))


def dla_compiler(root: Path) -> bool:
    """Whether `libnvdla_compiler.so` is there. An empty file is a place-holder into which nothing was mounted."""
    folders = (LIBRARY_FOLDER, f"{LIBRARY_FOLDER}/nvidia", f"{LIBRARY_FOLDER}/tegra", "usr/lib", "usr/local/lib")
    return any(_is_filled(root / folder / "libnvdla_compiler.so") for folder in folders)


def power_modes(text: str) -> tuple[PowerMode, ...]:
    """The modes of an `/etc/nvpmodel.conf`, by number."""
    modes: dict[int, PowerMode] = {}
    parts = re.split(r"^[ \t]*<[ \t]*", text, flags=re.MULTILINE)
    for part in islice((part for part in parts if part.startswith("POWER_MODEL")), _MAX_ENTRIES):
        head, _, body = part.partition(">")
        number = re.search(r"\bID[ \t]*=[ \t]*(\d{1,4})\b", head)
        name = re.search(r"\bNAME[ \t]*=[ \t]*([^\s>]+)", head)
        if number and name:
            label = name[1][:_MAX_NAME]
            modes.setdefault(int(number[1]), PowerMode(int(number[1]), label, _strength(label, body)))
    return tuple(modes[number] for number in sorted(modes))


def _strength(name: str, body: str) -> tuple[float, ...]:
    limits: dict[tuple[str, str], float] = {}
    for line in islice(body.splitlines(), _MAX_ENTRIES):
        words = line.split()
        if len(words) == 3 and re.fullmatch(r"-?\d{1,18}", words[2]):
            limits[words[0], words[1]] = math.inf if words[2] == "-1" else float(words[2])
    cpus = [value for (part, limit), value in limits.items() if part.startswith("CPU_") and limit == "MAX_FREQ"]
    mask = limits.get(("TPC_POWER_GATING", "TPC_PG_MASK"), 0.0)
    gated = bin(int(mask)).count("1") if math.isfinite(mask) else 0
    watts = re.search(r"(\d{1,4})W", name)
    return (
        limits.get(("GPU", "MAX_FREQ"), 0.0),
        -float(gated),
        sum(value for (part, _), value in limits.items() if part == "CPU_ONLINE"),
        max(cpus, default=0.0),
        limits.get(("EMC", "MAX_FREQ"), 0.0),
        float(watts[1]) if watts else 0.0,
    )


def strongest_mode(modes: Iterable[PowerMode]) -> PowerMode | None:
    """The mode with the most power: a name that begins with MAXN (MAXN_SUPER first), or else the highest limits.

    On an Orin Nano Super number 0 is 15 W and number 2 is the strongest, so the number says nothing.
    """
    modes = tuple(modes)
    best = [mode for mode in modes if mode.name.startswith("MAXN")] or modes
    return max(best, key=lambda mode: ("SUPER" in mode.name, mode.strength), default=None)


def has_super_table(root: Path) -> bool:
    """Whether this system has tables of Super modes for Orin Nano and NX, in use or not."""
    return bool(_entries(root / "etc/nvpmodel", "nvpmodel_p3767_*_super.conf"))


def power_mode_number(root: Path) -> int | None:
    """The number of the mode now, from `/var/lib/nvpmodel/status`, which any user may read."""
    found = re.search(r"\bpmode:\s*(\d{1,4})\b", read_text(root / "var/lib/nvpmodel/status", _MAX_LINE_BYTES))
    return int(found[1]) if found else None


def clocks(root: Path) -> Clocks:
    """The clocks now."""
    gpus = [
        path for path in _entries(root / "sys/class/devfreq", "*") if re.search(r"\.gpu$|ga10b$|gpu-gpc", path.name)
    ]
    gpu_now = gpu_max = gpu_pinned = None
    if gpus:
        gpu_now, gpu_min, gpu_max = (_number(gpus[0] / f"{kind}_freq") for kind in ("cur", "min", "max"))
        gpu_pinned = _same([(gpu_min, gpu_max)])
    folders = [path / "cpufreq" for path in _entries(root / "sys/devices/system/cpu", "cpu[0-9]*")]
    limits = [tuple(_number(folder / f"scaling_{kind}_freq") for kind in ("min", "max")) for folder in folders]
    memory = root / "sys/kernel/debug/bpmp/debug/clk/emc"
    return Clocks(
        gpu_now, gpu_max, gpu_pinned, _same(limits), _same([(_number(memory / "rate"), _number(memory / "max_rate"))])
    )


def _same(pairs: Iterable[tuple[int | None, ...]]) -> bool | None:
    """Whether the numbers of each pair are equal, without the pairs that cannot be read; None where none can."""
    told = [pair for pair in pairs if None not in pair]
    return all(low == high for low, high in told) if told else None


def temperatures(root: Path) -> dict[str, float]:
    """The temperature of each thermal zone that is awake, in °C."""
    found = {}
    for zone in _entries(root / "sys/class/thermal", "thermal_zone*"):
        name, value = read_text(zone / "type", _MAX_NAME).strip(), _number(zone / "temp")
        if name and value is not None and -55_000 <= value <= 150_000:
            found[name] = value / 1000
    return found


def memory_bytes(root: Path) -> tuple[int | None, int | None]:
    """Memory in all, and what is available."""
    text = read_text(root / "proc/meminfo")
    found = (re.search(rf"^{name}:\s*(\d{{1,12}}) kB$", text, re.MULTILINE) for name in ("MemTotal", "MemAvailable"))
    total, available = (int(each[1]) * 1024 if each else None for each in found)
    return total, available


def container(root: Path) -> str:
    """The kind of container that this process is in, such as "docker"; empty where it is in none that can be told."""
    if _exists(root / ".dockerenv"):
        return "docker"
    if _exists(root / "run/.containerenv"):
        return "podman"
    if _exists(root / "run/secrets/kubernetes.io"):
        return "kubernetes"
    found = re.search(r"/(docker|kubepods|containerd|lxc|libpod)\b", read_text(root / "proc/1/cgroup"))
    return found[1] if found else ""


_ELF64, _LITTLE_ENDIAN = 2, 1
_LOAD, _DYNAMIC = 1, 2  # types of segments (p_type)
_NEEDED, _STRING_TABLE = 1, 5  # tags of the dynamic section (d_tag)


def needed_libraries(path: Path) -> tuple[str, ...]:
    """The libraries that a shared library cannot be loaded without (DT_NEEDED); empty where it is no 64-bit ELF file.

    It reads some kilobytes of the file, whatever its size (the ELF-64 object file format, version 1.5).
    """
    try:
        if not path.is_file():
            return ()
        with path.open("rb") as file:
            return tuple(islice(_needed(file.fileno()), _MAX_ENTRIES))
    except (OSError, struct.error, ValueError, OverflowError):
        return ()


def _needed(file: int) -> Iterator[str]:
    header = os.pread(file, 64, 0)
    if len(header) < 64 or header[:6] != b"\x7fELF" + bytes((_ELF64, _LITTLE_ENDIAN)):
        return
    (table,), (size, count) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<HH", header, 54)
    segments = []
    for k in range(min(count, _MAX_ENTRIES)):
        kind, _, offset, address, _, length = struct.unpack("<IIQQQQ", os.pread(file, 40, table + k * size))
        segments.append((kind, offset, address, length))

    entries = []
    for kind, offset, _, length in segments:
        if kind == _DYNAMIC:
            dynamic = os.pread(file, min(length, 16 * _MAX_ENTRIES), offset)
            entries = [struct.unpack_from("<QQ", dynamic, k) for k in range(0, len(dynamic) - 15, 16)]
    strings = next((value for tag, value in entries if tag == _STRING_TABLE), None)
    for kind, offset, address, length in segments:
        if strings is not None and kind == _LOAD and address <= strings < address + length:
            for tag, value in entries:
                if tag == _NEEDED:
                    name = os.pread(file, 256, strings - address + offset + value).partition(b"\0")[0]
                    yield name.decode("utf-8", "replace")
            return


def _number(path: Path) -> int | None:
    found = re.fullmatch(r"\s*(-?\d{1,18})\s*", read_text(path, _MAX_NAME))
    return int(found[1]) if found else None


def _entries(folder: Path, pattern: str) -> list[Path]:
    """The entries of a folder that match a pattern, in the order of their names."""
    try:
        return sorted(islice(folder.glob(pattern), _MAX_ENTRIES))
    except OSError:
        return []


def _is_filled(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
