"""Which Jetson this is, what its JetPack brings, in which state it is, and what to mend: for `vae-edge doctor`.

`read_jetson` reads the files of the system (`vae_edge.jetson_files`) into a `Jetson`; `findings` says what is missing
or wrong, each with the command that mends it. `MODULES` and `JETPACKS` are the tables by which modules and versions
are told. Only the standard library is used, no program is run, and no file with a serial number is opened.

The tables are from NVIDIA's archives, from the maps of jetson_stats and jetson-containers, and from public reports of
single devices. Nothing here is verified on hardware.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge import jetson_files as files
from vae_edge.environment import Finding, is_installed, read_text
from vae_edge.jetson_files import Clocks, PowerMode

MIN_FREE_BYTES = 1 << 30
"""Below this much available memory `findings` warns: CUDA's context and TensorRT's builder take hundreds of MB."""


@dataclass(frozen=True)
class Chip:
    """A system on a chip.

    Attributes:
        family: "Orin" or "Thor".
        capability: CUDA's compute capability.
    """

    family: str
    capability: tuple[int, int]


CHIPS = {"tegra234": Chip("Orin", (8, 7)), "tegra264": Chip("Thor", (11, 0))}
"""By the last name in the device tree's `compatible`, without "nvidia,"."""


@dataclass(frozen=True)
class Module:
    """A module: what is plugged into a board.

    Attributes:
        part: NVIDIA's number of it, as in the device tree.
        chip: a key of `CHIPS`.
        memory_gib: 1 GiB is 2^30 bytes; the system has some less.
        dla_cores: deep learning accelerators beside the GPU.
    """

    part: str
    name: str
    chip: str
    memory_gib: int
    dla_cores: int

    @property
    def capability(self) -> tuple[int, int]:
        """CUDA's compute capability."""
        return CHIPS[self.chip].capability


MODULES = {
    module.part: module
    for module in (
        Module("p3767-0004", "Jetson Orin Nano 4 GB", "tegra234", 4, 0),
        Module("p3767-0003", "Jetson Orin Nano 8 GB", "tegra234", 8, 0),
        Module("p3767-0005", "Jetson Orin Nano 8 GB", "tegra234", 8, 0),  # of the developer kit, with a card slot
        Module("p3767-0001", "Jetson Orin NX 8 GB", "tegra234", 8, 1),
        Module("p3767-0000", "Jetson Orin NX 16 GB", "tegra234", 16, 2),
        Module("p3701-0000", "Jetson AGX Orin 32 GB", "tegra234", 32, 2),  # of the first developer kit
        Module("p3701-0004", "Jetson AGX Orin 32 GB", "tegra234", 32, 2),
        Module("p3701-0005", "Jetson AGX Orin 64 GB", "tegra234", 64, 2),
        Module("p3701-0008", "Jetson AGX Orin Industrial 64 GB", "tegra234", 64, 2),
        Module("p3834-0000", "Jetson T4000 64 GB", "tegra264", 64, 0),
        Module("p3834-0005", "Jetson T5000 128 GB", "tegra264", 128, 0),
        Module("p3834-0008", "Jetson T5000 128 GB", "tegra264", 128, 0),  # of the developer kit
    )
}
"""By part number."""


@dataclass(frozen=True)
class JetPack:
    """A release of JetPack.

    Attributes:
        version: such as "6.2".
        l4t: the versions of L4T (Jetson Linux) that belong to it.
        cuda, tensorrt, cudnn, python, ubuntu: the versions that it brings.
        chips: the keys of `CHIPS` that it runs on.
        dla: whether its TensorRT builds for a DLA.
    """

    version: str
    l4t: tuple[str, ...]
    cuda: str
    tensorrt: str
    cudnn: str
    python: str
    ubuntu: str
    chips: tuple[str, ...]
    dla: bool


_ORIN, _THOR, _BOTH = ("tegra234",), ("tegra264",), ("tegra234", "tegra264")
JETPACKS = (
    JetPack("6.0", ("36.3.0",), "12.2", "8.6", "8.9", "3.10", "22.04", _ORIN, True),
    JetPack("6.1", ("36.4.0", "36.4.2"), "12.6", "10.3", "9.3", "3.10", "22.04", _ORIN, True),
    JetPack("6.2", ("36.4.3",), "12.6", "10.3", "9.3", "3.10", "22.04", _ORIN, True),
    JetPack("6.2.1", ("36.4.4", "36.4.7"), "12.6", "10.3", "9.3", "3.10", "22.04", _ORIN, True),
    JetPack("6.2.2", ("36.5.0", "36.5.2"), "12.6", "10.3", "9.3", "3.10", "22.04", _ORIN, True),
    JetPack("7.0", ("38.2.0", "38.2.1", "38.2.2"), "13.0", "10.13", "9.12", "3.12", "24.04", _THOR, False),
    JetPack("7.1", ("38.4.0",), "13.0", "10.13", "9.12", "3.12", "24.04", _THOR, False),
    JetPack("7.2", ("39.2.0",), "13.2", "10.16", "9.20", "3.12", "24.04", _BOTH, False),
    JetPack("7.2.1", ("39.2.1",), "13.2", "10.16", "9.20", "3.12", "24.04", _BOTH, False),
)
"""Oldest first. From JetPack 7.2.2 on, TensorRT 11.4.1 of the Linux SBSA package can be installed instead, which builds
for the DLA of an AGX Orin."""


def find_jetpack(l4t: str) -> JetPack | None:
    """The JetPack of this version of L4T; of an unknown version the newest one with the same first number, or None."""
    same = [jetpack for jetpack in JETPACKS if jetpack.l4t[0].partition(".")[0] == l4t.partition(".")[0]]
    exact = [jetpack for jetpack in same if l4t in jetpack.l4t]
    return next(iter(exact), None) or (same[-1] if same else None)


@dataclass(frozen=True)
class Interpreter:
    """The Python that asks.

    Attributes:
        version: such as "3.10".
        venv: its folder; empty outside of a virtual environment.
        system_site_packages: whether the packages of the system can be imported.
        sees_tensorrt: whether TensorRT's module is found.
    """

    version: str
    venv: str = ""
    system_site_packages: bool = True
    sees_tensorrt: bool = False


def running_interpreter() -> Interpreter:
    """The Python of this process."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    sees = is_installed("tensorrt") or is_installed("tensorrt_bindings")
    if sys.prefix == sys.base_prefix:
        return Interpreter(version, sees_tensorrt=sees)
    settings = read_text(Path(sys.prefix) / "pyvenv.cfg")
    system = re.search(r"^include-system-site-packages\s*=\s*true\s*$", settings, re.MULTILINE | re.IGNORECASE)
    return Interpreter(version, sys.prefix, bool(system), sees)


@dataclass(frozen=True)
class Jetson:
    """What is known of this Jetson. A text is empty, and anything else None, where it cannot be told.

    Attributes:
        name: of the module, such as "Jetson Orin Nano 8 GB"; less exact where only that can be told.
        part: the module's part number, such as "p3767-0005".
        board: the board's model in the device tree.
        chip: a key of `CHIPS`, or the name of an older chip.
        super_kit: whether the board runs its Super configuration.
        l4t, jetpack: versions of Jetson Linux and JetPack.
        cuda, cudnn, tensorrt: versions that are installed.
        tensorrt_pythons: the Pythons for which TensorRT's Python files are installed; "3" is any of them.
        dla_compiler: whether `libnvdla_compiler.so` is there; None where this TensorRT does not need it.
        dla_cores: of the module.
        container: the kind of container, or empty outside of one.
        gpu: whether the CUDA driver sees the GPU.
        interpreter: the Python that asked.
        power_mode, power_modes: the mode of `nvpmodel` now, and all of `/etc/nvpmodel.conf`.
        super_modes_unused: whether this system has a Super table of modes for the module, and uses another one.
        temperatures: °C by thermal zone.
    """

    name: str
    part: str
    board: str
    chip: str
    capability: tuple[int, int] | None
    super_kit: bool
    l4t: str
    jetpack: str
    cuda: str
    cudnn: str
    tensorrt: str
    tensorrt_pythons: tuple[str, ...]
    dla_compiler: bool | None
    dla_cores: int | None
    container: str
    gpu: bool
    interpreter: Interpreter
    power_mode: PowerMode | None
    power_modes: tuple[PowerMode, ...]
    super_modes_unused: bool
    clocks: Clocks
    temperatures: dict[str, float]
    memory_bytes: int | None
    available_bytes: int | None

    @property
    def strongest_mode(self) -> PowerMode | None:
        """The power mode that allows the most."""
        return files.strongest_mode(self.power_modes)

    def summary(self) -> dict[str, Any]:
        """What a measurement on this machine should say with its figures."""
        strongest = self.strongest_mode
        return {
            "module": self.name,
            "super": self.super_kit,
            "jetpack": self.jetpack or None,
            "l4t": self.l4t or None,
            "power_mode": self.power_mode.name if self.power_mode else None,
            "strongest_power_mode": strongest.name if strongest else None,
            "clocks_pinned": self.clocks.pinned,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        strongest = self.strongest_mode
        values = dataclasses.asdict(self)
        values["capability"] = ".".join(map(str, self.capability)) if self.capability else None
        values["tensorrt_pythons"] = list(self.tensorrt_pythons)
        values["power_mode"] = _mode_json(self.power_mode)
        values["strongest_power_mode"] = _mode_json(strongest)
        values["power_modes"] = [_mode_json(mode) for mode in self.power_modes]
        values["clocks"]["pinned"] = self.clocks.pinned
        return {key: None if value == "" else value for key, value in values.items()}


def _mode_json(mode: PowerMode | None) -> dict[str, Any] | None:
    return {"number": mode.number, "name": mode.name} if mode else None


_PACKAGES = (
    r"nvidia-l4t-core|nvidia-jetpack|libnvinfer\d{1,2}|libcudnn\d{1,2}(?:-cuda-\d{1,2})?|cuda-cudart-\d{1,2}-\d{1,2}"
)


def read_jetson(
    root: Path = Path("/"),
    gpu_name: str = "",
    gpu_capability: tuple[int, int] | None = None,
    interpreter: Interpreter | None = None,
) -> Jetson | None:
    """What the files below `root` say of this Jetson; None on another machine. Never raises.

    Args:
        root: the folder that holds `etc`, `proc`, `sys`, `usr` and `var`, for tests.
        gpu_name: what CUDA calls the GPU, such as "Orin"; empty without one. Where a container masks the device tree,
            this is how a Jetson is told.
        gpu_capability: the GPU's compute capability.
        interpreter: the Python that asks. None: this process's.
    """
    board, compatible = files.device_tree(root)
    chip = next((name[7:] for name in reversed(compatible) if re.fullmatch(r"nvidia,tegra\d{3}", name)), "")
    l4t = files.l4t_release(root)
    family = re.search(r"\b(Orin|Thor)\b", gpu_name)
    if not (chip or l4t or family or "NVIDIA Jetson" in board):
        return None

    part = _part_number(compatible)
    if not chip:
        families = {known.family: name for name, known in CHIPS.items()}
        told = family or re.search(r"\b(Orin|Thor)\b", board)
        chip = families[told[1]] if told else ""
    module = MODULES.get(part)
    debs = files.debian_packages(root, _PACKAGES)
    l4t = l4t or _upstream(debs.get("nvidia-l4t-core", ""))
    modes, number = files.power_modes(read_text(root / "etc/nvpmodel.conf")), files.power_mode_number(root)
    unnamed = None if number is None else PowerMode(number, f"number {number}")
    total, available = files.memory_bytes(root)
    return Jetson(
        name=module.name if module else _vague_name(board, chip, part),
        part=part,
        board=board,
        chip=chip,
        capability=CHIPS[chip].capability if chip in CHIPS else gpu_capability,
        super_kit=any(name.endswith("-super") for name in compatible) or " Super" in board,
        l4t=l4t,
        jetpack=_jetpack_version(l4t, debs),
        cuda=files.cuda_version(root, debs),
        cudnn=_upstream(_newest(debs, "libcudnn")),
        tensorrt=_tensorrt_version(root, debs),
        tensorrt_pythons=files.tensorrt_pythons(root),
        dla_compiler=files.dla_compiler(root) if files.needs_dla_compiler(root) else None,
        dla_cores=module.dla_cores if module else None,
        container=files.container(root),
        gpu=bool(gpu_name),
        interpreter=interpreter or running_interpreter(),
        power_mode=next((mode for mode in modes if mode.number == number), unnamed),
        power_modes=modes,
        super_modes_unused=_has_unused_super_modes(root, part, modes),
        clocks=files.clocks(root),
        temperatures=files.temperatures(root),
        memory_bytes=total,
        available_bytes=available,
    )


def _part_number(compatible: tuple[str, ...]) -> str:
    """The module's part number: one that is known, or else the last one of the most exact name that has one."""
    numbers = [number for name in compatible for number in reversed(re.findall(r"\bp\d{4}-\d{4}\b", name))]
    return next((number for number in numbers if number in MODULES), numbers[0] if numbers else "")


def _has_unused_super_modes(root: Path, part: str, modes: tuple[PowerMode, ...]) -> bool:
    used = any("SUPER" in mode.name for mode in modes)
    return bool(modes) and not used and part.startswith("p3767-") and files.has_super_table(root)


def _vague_name(board: str, chip: str, part: str) -> str:
    if board or not chip:
        return f"{board.removeprefix('NVIDIA ') or 'Jetson'}{f' with module {part}' if part else ''}"
    return f"Jetson {CHIPS[chip].family if chip in CHIPS else f'with the chip {chip}'}"


def _jetpack_version(l4t: str, debs: dict[str, str]) -> str:
    """By L4T where that is known, else that of the package nvidia-jetpack, such as "7.2" of "7.2-b187"."""
    jetpack = find_jetpack(l4t)
    if jetpack and l4t in jetpack.l4t:
        return jetpack.version
    return _upstream(debs.get("nvidia-jetpack", ""))


def _tensorrt_version(root: Path, debs: dict[str, str]) -> str:
    deb = _upstream(_newest(debs, "libnvinfer"))
    library = files.tensorrt_library(root)
    return deb or (library.name.removeprefix("libnvinfer.so.") if library else "")


def _newest(debs: dict[str, str], prefix: str) -> str:
    names = sorted((name for name in debs if name.startswith(prefix)), key=lambda name: (len(name), name))
    return debs[names[-1]] if names else ""


def _upstream(version: str) -> str:
    """A Debian version without the epoch, the revision and the build, "10.3.0.30" of "10.3.0.30-1+cuda12.5"."""
    return re.split(r"[-+]", version.rpartition(":")[2])[0]


# ---- findings -------------------------------------------------------------------------------------------------------

_MOUNTS = {
    "the device tree": "-v /proc/device-tree/model:/run/host/device-tree/model:ro "
    "-v /proc/device-tree/compatible:/run/host/device-tree/compatible:ro",
    "the version of L4T": "-v /etc/nv_tegra_release:/etc/nv_tegra_release:ro",
    "the power mode": "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro",
}
"""What a container hides, and the options that show it. The device tree's serial number stays hidden."""


def findings(jetson: Jetson) -> Iterator[Finding]:
    """What works on this Jetson and what does not, each with the command that mends it."""
    yield _identity(jetson)
    yield _tensorrt(jetson)
    if jetson.container:
        yield from _container(jetson)
    yield from _power(jetson)
    if jetson.clocks.pinned is not None:
        yield _clocks(jetson)
    if jetson.available_bytes is not None and jetson.memory_bytes is not None:
        yield _memory(jetson)


def _identity(jetson: Jetson) -> Finding:
    jetpack = f"JetPack {jetson.jetpack}" if jetson.jetpack else "an unknown JetPack"
    release = f"{jetpack} (L4T {jetson.l4t})" if jetson.l4t else f"{jetpack}, whose version of L4T cannot be told"
    detail = f"{jetson.name}{', Super' if jetson.super_kit else ''}; {release}"
    if jetson.chip in CHIPS or (jetson.chip == "" and jetson.gpu):
        return Finding("Jetson", True, detail)
    known = " and ".join(chip.family for chip in CHIPS.values())
    return Finding("Jetson", False, f"{detail}; VAE Edge knows {known} (JetPack 6 and 7), and not this chip")


def _tensorrt(jetson: Jetson) -> Finding:
    """Whether JetPack's TensorRT can be imported by this Python, and if not, the first reason."""
    subject, python = "JetPack's TensorRT", jetson.interpreter
    install = f"{'' if jetson.container else 'sudo '}apt-get install"
    there = f"TensorRT {jetson.tensorrt} is installed"
    if not jetson.tensorrt:
        if python.sees_tensorrt:
            return Finding(subject, True, "it is not installed, but this Python has a TensorRT of its own")
        command = f"sudo apt-get update && {install} tensorrt python3-libnvinfer"
        image = "take an image that has it: docs/jetson.md, In a container"
        return Finding(subject, False, "it is not installed", image if jetson.container else command)
    if jetson.dla_compiler is False:
        return _dla_compiler(jetson, subject)
    if python.sees_tensorrt:
        return Finding(subject, True, f"{jetson.tensorrt}, found by Python {python.version}")

    if not jetson.tensorrt_pythons:
        detail = f"{there}, but not its Python files (python3-libnvinfer)"
        return Finding(subject, False, detail, f"{install} python3-libnvinfer")
    newest = jetson.tensorrt_pythons[-1]
    if not {python.version, "3"} & set(jetson.tensorrt_pythons):
        detail = f"{there} for Python {newest}, the one of {_this_jetpack(jetson)}, but this is Python {python.version}"
        return Finding(subject, False, detail, f"python{newest} -m venv --system-site-packages .venv")
    if python.venv and not python.system_site_packages:
        detail = f"{there}, but the virtual environment {python.venv} does not see the packages of the system"
        command = f"python{python.version} -m venv --system-site-packages {shlex.quote(python.venv)}"
        return Finding(subject, False, detail, command)
    detail = f"{there} for Python {newest}, but this Python {python.version} is not the system's and does not find it"
    return Finding(subject, False, detail, "/usr/bin/python3 -m venv --system-site-packages .venv")


def _dla_compiler(jetson: Jetson, subject: str) -> Finding:
    """The sentence for `ImportError: libnvdla_compiler.so: cannot open shared object file`.

    In the libraries of JetPack 6 this one belongs to the driver, and the container runtime mounts the host's. JetPack 7
    has none, neither on the host nor as a package, and its own TensorRT does not need it.
    """
    jetpack = find_jetpack(jetson.l4t)
    detail = f"TensorRT {jetson.tensorrt} is installed but cannot be loaded, since libnvdla_compiler.so is missing"
    if jetpack is None or (jetson.l4t not in jetpack.l4t and not jetpack.dla):  # a later JetPack may have it again
        return Finding(subject, False, detail, "docs/jetson.md, DLA")
    if not jetpack.dla:
        reason = f"{_this_jetpack(jetson)} has no such library, so this TensorRT was made for JetPack 6"
        mend = "sudo apt-get install --reinstall tensorrt python3-libnvinfer"
        image = "take an image without -igpu in its name, such as nvcr.io/nvidia/tensorrt:26.04-py3: docs/jetson.md"
        return Finding(subject, False, f"{detail}: {reason}", image if jetson.container else mend)
    mend = "sudo apt-get install nvidia-l4t-dla-compiler"
    if jetson.container:
        run = f"on the host: {mend}; then {_run_command(jetson)} IMAGE"
        return Finding(subject, False, f"{detail}: the container runtime mounts it from the host", run)
    return Finding(subject, False, detail, mend)


def _this_jetpack(jetson: Jetson) -> str:
    return f"JetPack {jetson.jetpack}" if jetson.jetpack else f"L4T {jetson.l4t}" if jetson.l4t else "this system"


def _run_command(jetson: Jetson) -> str:
    if jetson.container in ("podman", "libpod"):
        return "podman run --device nvidia.com/gpu=all"
    return "docker run --runtime nvidia"


def _container(jetson: Jetson) -> Iterator[Finding]:
    """What the container hides, with the options of `docker run` that show it."""
    if not jetson.gpu:
        yield Finding(
            "GPU in the container", False, "it was started without the driver", f"{_run_command(jetson)} IMAGE"
        )
    told = {
        "the device tree": bool(jetson.part),
        "the version of L4T": bool(jetson.l4t),
        "the power mode": bool(jetson.power_mode and jetson.power_modes),
    }
    hidden = [name for name, known in told.items() if not known]
    if hidden:
        words = " and ".join(filter(None, (", ".join(hidden[:-1]), hidden[-1])))
        options = " ".join(_MOUNTS[name] for name in hidden)
        yield Finding("Container", False, f"it hides {words}", f"{_run_command(jetson)} {options} IMAGE")


def _power(jetson: Jetson) -> Iterator[Finding]:
    mode, strongest = jetson.power_mode, jetson.strongest_mode
    if mode is None or strongest is None:
        if not jetson.container:  # where a container hides it, that is a finding of its own
            detail = "it cannot be told: /etc/nvpmodel.conf or /var/lib/nvpmodel/status is missing"
            yield Finding("Power mode", False, detail, "sudo apt-get install nvidia-l4t-nvpmodel")
    elif mode.number == strongest.number:
        yield Finding("Power mode", True, f"{mode.name}, the strongest of {len(jetson.power_modes)}")
    else:
        detail = f"{mode.name}, while {strongest.name} (number {strongest.number}) is the strongest"
        yield Finding("Power mode", False, detail, f"{_on_host(jetson)}sudo nvpmodel -m {strongest.number}")
    if jetson.super_modes_unused:
        detail = "this module has stronger ones (MAXN_SUPER), but the board was flashed without them"
        yield Finding("Super modes", False, detail, "docs/jetson.md, Power modes and clocks")


def _clocks(jetson: Jetson) -> Finding:
    if jetson.clocks.pinned:
        return Finding("Clocks", True, "pinned")
    parts = {
        "GPU": jetson.clocks.gpu_pinned,
        "processors": jetson.clocks.cpu_pinned,
        "memory": jetson.clocks.memory_pinned,
    }
    loose = ", ".join(name for name, pinned in parts.items() if pinned is False)
    detail = f"not pinned ({loose}), so a measurement depends on what ran before it"
    return Finding("Clocks", False, detail, f"{_on_host(jetson)}sudo jetson_clocks")


def _on_host(jetson: Jetson) -> str:
    return "on the host: " if jetson.container else ""


def _memory(jetson: Jetson) -> Finding:
    available, total = jetson.available_bytes or 0, jetson.memory_bytes or 0
    detail = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB are available"
    if available >= MIN_FREE_BYTES:
        return Finding("Memory", True, detail)
    return Finding("Memory", False, detail, f"{_on_host(jetson)}sudo systemctl isolate multi-user.target")
