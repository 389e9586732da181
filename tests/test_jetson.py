"""Copies of real Jetsons' files are read right, each planted fault is found, and no damage makes anything raise."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jetson_trees import FOLDER, TREES, read_tree

from vae_edge.engine.gpus import DEVICES
from vae_edge.environment import Finding
from vae_edge.jetson import (
    CHIPS,
    JETPACKS,
    MODULES,
    Interpreter,
    Jetson,
    find_jetpack,
    findings,
    read_jetson,
    running_interpreter,
)

NANO, AGX6, AGX7 = "orin-nano-super-jetpack-6.2", "agx-orin-jetpack-6.1", "agx-orin-jetpack-7.2"
THOR, CONTAINER = "thor-jetpack-7.1", "container-jetpack-7.2"
SYSTEM_PYTHON = Interpreter("3.12", sees_tensorrt=True)

FACTS: dict[str, dict[str, Any]] = {
    NANO: {
        "name": "Jetson Orin Nano 8 GB",
        "part": "p3767-0005",
        "capability": (8, 7),
        "super_kit": True,
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "cuda": "12.6.68",
        "cudnn": "9.3.0.75",
        "tensorrt": "10.3.0.30",
        "tensorrt_pythons": ("3.10",),
        "dla_cores": 0,
        "dla_compiler": True,
        "container": "",
        "memory_bytes": 7802040 * 1024,
    },
    AGX6: {
        "name": "Jetson AGX Orin 64 GB",
        "super_kit": False,
        "l4t": "36.4.0",
        "jetpack": "6.1",
        "cuda": "12.6.11",
        "tensorrt": "10.3.0.30",
        "tensorrt_pythons": (),
        "dla_cores": 2,
    },
    AGX7: {
        "name": "Jetson AGX Orin 64 GB",
        "l4t": "39.2.0",
        "jetpack": "7.2",
        "cuda": "13.2.75",
        "cudnn": "9.20.0.46",
        "tensorrt": "10.16.2.10",
        "tensorrt_pythons": ("3.12",),
        "dla_compiler": None,  # this TensorRT does not need it
        "dla_cores": 2,
    },
    THOR: {
        "name": "Jetson T5000 128 GB",
        "part": "p3834-0008",
        "chip": "tegra264",
        "capability": (11, 0),
        "l4t": "38.4.0",
        "jetpack": "7.1",
        "tensorrt": "10.13.3.9",
        "dla_cores": 0,
    },
    CONTAINER: {
        "name": "Jetson Orin",
        "part": "",
        "capability": (8, 7),
        "l4t": "39.2.0",
        "jetpack": "7.2",
        "tensorrt": "10.11.0",  # of the library's name
        "dla_compiler": False,
        "dla_cores": None,
        "container": "docker",
        "power_mode": None,
    },
}
MODES_NOW = {NANO: (0, "15W", 2), AGX6: (2, "MODE_30W", 0), AGX7: (0, "MAXN", 0), THOR: (1, "120W", 0)}
PINNED = {NANO: False, AGX6: False, AGX7: True, THOR: False, CONTAINER: False}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_read_as_the_machine_was_reported(name: str) -> None:
    jetson = read_tree(name)
    assert {key: getattr(jetson, key) for key in FACTS[name]} == FACTS[name]
    assert jetson.clocks.pinned is PINNED[name]
    assert jetson.temperatures["tj-thermal"] > 30 and "cv0-thermal" not in jetson.temperatures
    if name in MODES_NOW:
        mode, strongest = jetson.power_mode, jetson.strongest_mode
        assert mode is not None and strongest is not None
        assert (mode.number, mode.name, strongest.number) == MODES_NOW[name]


FAULTS = {
    NANO: {"Power mode": "sudo nvpmodel -m 2", "Clocks": "sudo jetson_clocks"},
    AGX6: {
        "JetPack's TensorRT": "sudo apt-get install python3-libnvinfer",
        "Power mode": "sudo nvpmodel -m 0",
        "Clocks": "sudo jetson_clocks",
    },
    AGX7: {"JetPack's TensorRT": "python3.12 -m venv --system-site-packages '/home/user/my venv'"},
    THOR: {
        "JetPack's TensorRT": "python3.12 -m venv --system-site-packages .venv",
        "Power mode": "sudo nvpmodel -m 0",
        "Clocks": "sudo jetson_clocks",
    },
    CONTAINER: {
        "JetPack's TensorRT": "take an image without -igpu in its name, such as nvcr.io/nvidia/tensorrt:26.04-py3: "
        "docs/jetson.md",
        "Container": "docker run --runtime nvidia -v /proc/device-tree/model:/run/host/device-tree/model:ro "
        "-v /proc/device-tree/compatible:/run/host/device-tree/compatible:ro "
        "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro IMAGE",
        "Clocks": "on the host: sudo jetson_clocks",
        "Memory": "on the host: sudo systemctl isolate multi-user.target",
    },
}


def faults(jetson: Jetson) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings(jetson) if not finding.works}


@pytest.mark.parametrize("name", TREES)
def test_what_is_wrong_on_a_tree_is_found_with_the_command_that_mends_it(name: str) -> None:
    assert {subject: finding.remedy for subject, finding in faults(read_tree(name)).items()} == FAULTS[name]


def test_a_container_without_the_dla_compiler_is_told_so_and_not_that_tensorrt_is_missing() -> None:
    assert faults(read_tree(CONTAINER))["JetPack's TensorRT"].detail == (
        "TensorRT 10.11.0 is installed but cannot be loaded, since libnvdla_compiler.so is missing: JetPack 7.2 has no "
        "such library, so this TensorRT was made for JetPack 6"
    )


# ---- one fault at a time, on a copy of the tree that has none ------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The AGX Orin on JetPack 7.2, on which only the Python was wrong."""
    shutil.copytree(FOLDER / AGX7, tmp_path / "root")
    return tmp_path / "root"


def ask(root: Path, interpreter: Interpreter = SYSTEM_PYTHON, gpu: str = "Orin") -> Jetson:
    jetson = read_jetson(root, gpu, (8, 7) if gpu else None, interpreter)
    assert jetson is not None
    return jetson


def test_nothing_is_wrong_where_all_is_right(tree: Path) -> None:
    assert faults(ask(tree)) == {}
    assert {finding.subject for finding in findings(ask(tree))} == {
        "Jetson", TENSORRT, "Power mode", "Clocks", "Memory"
    }  # fmt: skip


def remove(*names: str) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return plant


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return plant


LIBRARY = "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.2"
PYTHON_FILES = "usr/lib/python3.12/dist-packages/tensorrt"
INSTALL = "sudo apt-get update && sudo apt-get install tensorrt python3-libnvinfer"
HIDDEN = Interpreter("3.12")
TENSORRT = "JetPack's TensorRT"
MAKE_VENV = "python3.12 -m venv --system-site-packages"
PLANTED: dict[str, tuple[Callable[[Path], None], Interpreter, str, str, str]] = {
    "no TensorRT": (remove(LIBRARY, "var/lib/dpkg/status", PYTHON_FILES), HIDDEN, TENSORRT, "not installed", INSTALL),
    "no Python files": (
        remove(PYTHON_FILES),
        HIDDEN,
        TENSORRT,
        "but not its Python files",
        "sudo apt-get install python3-libnvinfer",
    ),
    "another Python": (
        remove(),
        Interpreter("3.10"),
        TENSORRT,
        "for Python 3.12, the one of JetPack 7.2, but this is Python 3.10",
        f"{MAKE_VENV} .venv",
    ),
    "a closed venv": (
        remove(),
        Interpreter("3.12", "/v", False),
        TENSORRT,
        "/v does not see the packages of the system",
        f"{MAKE_VENV} /v",
    ),
    "a Python that is not the system's": (
        remove(),
        HIDDEN,
        TENSORRT,
        "is not the system's",
        "/usr/bin/python3 -m venv --system-site-packages .venv",
    ),
    "a weak mode": (
        change("var/lib/nvpmodel/status", "0000", "0001"),
        SYSTEM_PYTHON,
        "Power mode",
        "MODE_15W, while MAXN (number 0)",
        "sudo nvpmodel -m 0",
    ),
    "a mode without a name": (
        change("var/lib/nvpmodel/status", "0000", "0009"),
        SYSTEM_PYTHON,
        "Power mode",
        "number 9, while MAXN",
        "sudo nvpmodel -m 0",
    ),
    "no table of modes": (
        remove("etc/nvpmodel.conf"),
        SYSTEM_PYTHON,
        "Power mode",
        "cannot be told",
        "sudo apt-get install nvidia-l4t-nvpmodel",
    ),
    "a loose GPU": (
        change("sys/class/devfreq/17000000.gpu/min_freq", "1300500000", "306000000"),
        SYSTEM_PYTHON,
        "Clocks",
        "(GPU)",
        "sudo jetson_clocks",
    ),
    "a loose processor": (
        change("sys/devices/system/cpu/cpu1/cpufreq/scaling_min_freq", "2201600", "729600"),
        SYSTEM_PYTHON,
        "Clocks",
        "(processors)",
        "sudo jetson_clocks",
    ),
    "loose memory": (
        change("sys/kernel/debug/bpmp/debug/clk/emc/rate", "3199000000", "2133000000"),
        SYSTEM_PYTHON,
        "Clocks",
        "(memory)",
        "sudo jetson_clocks",
    ),
    "little memory": (
        change("proc/meminfo", "43186176", "904000"),
        SYSTEM_PYTHON,
        "Memory",
        "0.9 of 61.3 GiB",
        "sudo systemctl isolate multi-user.target",
    ),
    "an old chip": (
        change("proc/device-tree/compatible", "tegra234", "tegra194"),
        SYSTEM_PYTHON,
        "Jetson",
        "not this chip",
        "",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_the_only_one_found(tree: Path, fault: str) -> None:
    plant, interpreter, subject, words, remedy = PLANTED[fault]
    plant(tree)
    found = faults(ask(tree, interpreter))
    assert list(found) == [subject]
    assert words in found[subject].detail and found[subject].remedy == remedy


@pytest.mark.parametrize(
    ("container", "l4t", "words", "remedy"),
    [
        (False, "36.4.3", "is missing", "sudo apt-get install nvidia-l4t-dla-compiler"),
        (True, "36.4.3", "mounts it from the host", "on the host: sudo apt-get install nvidia-l4t-dla-compiler; then"),
        (False, "39.2.0", "JetPack 7.2 has no such library", "apt-get install --reinstall tensorrt python3-libnvinfer"),
        (True, "39.2.0", "JetPack 7.2 has no such library", "an image without -igpu"),
        (True, "39.9.0", "is missing", "docs/jetson.md, DLA"),  # a later JetPack may have it again
    ],
)
def test_a_missing_dla_compiler_is_mended_as_the_jetpack_asks(
    tmp_path: Path, container: bool, l4t: str, words: str, remedy: str
) -> None:
    root = tmp_path / "root"
    shutil.copytree(FOLDER / NANO, root)
    (root / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so").write_bytes(b"")
    major, _, revision = l4t.partition(".")
    (root / "etc/nv_tegra_release").write_text(f"# R{major} (release), REVISION: {revision}")
    if container:
        (root / ".dockerenv").touch()
    found = faults(ask(root, Interpreter("3.10", sees_tensorrt=True)))["JetPack's TensorRT"]
    assert words in found.detail and remedy in found.remedy


def test_python_files_for_any_python_3_and_those_in_a_container(tree: Path) -> None:
    (tree / PYTHON_FILES).parent.parent.rename(tree / "usr/lib/python3")
    assert ask(tree).tensorrt_pythons == ("3",)
    closed = Interpreter("3.11", "/v", False)
    assert "/v does not see the packages" in faults(ask(tree, closed))[TENSORRT].detail
    remove("usr/lib/python3")(tree)
    (tree / ".dockerenv").touch()  # where root needs no sudo
    assert faults(ask(tree, HIDDEN))[TENSORRT].remedy == "apt-get install python3-libnvinfer"


def test_super_modes_that_the_board_does_not_use_are_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(FOLDER / NANO, root)
    assert "Super modes" not in faults(ask(root))
    change("etc/nvpmodel.conf", "< POWER_MODEL ID=2 NAME=MAXN_SUPER >", "< PARAM TYPE=FILE NAME=X >")(root)
    assert "MAXN_SUPER" in faults(ask(root))["Super modes"].detail
    super_tables = root / "etc/nvpmodel"
    super_tables.rename(tmp_path / "nvpmodel")
    assert "Super modes" not in faults(ask(root))
    agx = tmp_path / "agx"  # whose system may carry the tables of other modules
    shutil.copytree(FOLDER / AGX7, agx)
    (tmp_path / "nvpmodel").rename(agx / "etc/nvpmodel")
    assert faults(ask(agx)) == {}


# ---- containers ----------------------------------------------------------------------------------------------------


def masked(root: Path) -> None:
    """As Docker does it: /sys/firmware is empty, and /proc/device-tree a link to nowhere."""
    shutil.rmtree(root / "proc/device-tree")
    (root / "sys/firmware").mkdir(parents=True)
    (root / "proc/device-tree").symlink_to("../sys/firmware/devicetree/base")
    (root / ".dockerenv").touch()


def test_where_the_device_tree_is_masked_the_gpu_tells_a_jetson(tree: Path) -> None:
    masked(tree)
    remove("etc/nv_tegra_release")(tree)
    jetson = ask(tree)
    assert (jetson.name, jetson.chip, jetson.capability, jetson.dla_cores) == ("Jetson Orin", "tegra234", (8, 7), None)
    assert jetson.l4t == "39.2.0"  # of the package nvidia-l4t-core
    thor = read_jetson(tree, "NVIDIA Thor", (10, 1), SYSTEM_PYTHON)  # as CUDA 12 called it
    assert thor is not None and (thor.name, thor.capability) == ("Jetson Thor", (11, 0))
    assert "it hides the device tree" in faults(jetson)["Container"].detail
    for name in ("", "NVIDIA GeForce RTX 4090", "Orinoco"):
        assert read_jetson(tree, name, (8, 9), SYSTEM_PYTHON) is None


def test_the_options_that_the_finding_names_show_what_was_hidden(tree: Path, tmp_path: Path) -> None:
    """Each `-v SOURCE:TARGET:ro` of the remedy is done by a copy from the host's files; then nothing is hidden."""
    host = tmp_path / "host"
    shutil.copytree(tree, host)
    masked(tree)
    remove("etc/nv_tegra_release", "etc/nvpmodel.conf", "var/lib/nvpmodel", "var/lib/dpkg/status")(tree)
    words = shlex.split(faults(ask(tree))["Container"].remedy)
    mounts = [words[k + 1].split(":") for k, word in enumerate(words) if word == "-v"]
    assert len(mounts) == 5
    for source, target, access in mounts:
        assert access == "ro" and "serial" not in source
        place = tree / target[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (host / source[1:]).is_dir() else shutil.copy
        copy(host / source[1:], place)
    jetson = ask(tree)
    assert faults(jetson) == {}
    assert (jetson.part, jetson.jetpack) == ("p3701-0005", "7.2")


def test_a_container_without_the_driver_is_told_how_to_start(tree: Path) -> None:
    (tree / ".dockerenv").touch()
    assert faults(ask(tree, gpu=""))["GPU in the container"].remedy == "docker run --runtime nvidia IMAGE"
    (tree / ".dockerenv").unlink()
    (tree / "run").mkdir()
    (tree / "run/.containerenv").touch()
    assert faults(ask(tree, gpu=""))["GPU in the container"].remedy == "podman run --device nvidia.com/gpu=all IMAGE"


# ---- which machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compatible", "part", "name"),
    [
        ("nvidia,p3768-0000+p3767-0000-super\0nvidia,tegra234\0", "p3767-0000", "Jetson Orin NX 16 GB"),
        ("nvidia,p3768-0000+p3767-0001\0nvidia,p3767-0001\0nvidia,tegra234\0", "p3767-0001", "Jetson Orin NX 8 GB"),
        ("nvidia,p3768-0000+p3767-0004\0nvidia,p3767-0004\0nvidia,tegra234", "p3767-0004", "Jetson Orin Nano 4 GB"),
        ("nvidia,p3737-0000+p3701-0004\0nvidia,tegra234\0", "p3701-0004", "Jetson AGX Orin 32 GB"),
        ("nvidia,p4071-0000+p3834-0000\0nvidia,p3834-0000\0nvidia,tegra264\0", "p3834-0000", "Jetson T4000 64 GB"),
        ("nvidia,p9999-0000+p8888-0001\0nvidia,tegra234\0", "p8888-0001", "Some Board with module p8888-0001"),
        ("nvidia,tegra234\0", "", "Some Board"),
    ],
)
def test_the_module_is_told_by_its_part_number(tmp_path: Path, compatible: str, part: str, name: str) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_text(compatible)
    (tmp_path / "proc/device-tree/model").write_text("Some Board\0")
    jetson = ask(tmp_path)
    assert (jetson.part, jetson.name) == (part, name)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B\0",
            "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
        },
        {"proc/device-tree/model": "x", "proc/device-tree/compatible": "nvidia,tegraX\0nvidia,dgx-spark"},
        {"etc/nv_tegra_release": "nonsense", "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >"},
    ],
)
def test_another_machine_is_no_jetson(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert read_jetson(tmp_path) is None
    assert read_jetson(tmp_path, "NVIDIA H100", (9, 0)) is None


def test_an_unknown_l4t_is_named_by_the_package_and_expects_the_newest_of_its_kind(tree: Path) -> None:
    change("etc/nv_tegra_release", "REVISION: 2.0", "REVISION: 7.1")(tree)
    assert ask(tree).l4t == "39.7.1" and ask(tree).jetpack == "7.2"  # of nvidia-jetpack 7.2-b187
    remove("var/lib/dpkg/status")(tree)
    assert ask(tree).jetpack == "" and "an unknown JetPack (L4T 39.7.1)" in next(findings(ask(tree))).detail
    unknown = find_jetpack("39.7.1")
    assert (
        unknown is not None and unknown.python == "3.12" and find_jetpack("35.4.1") is None and find_jetpack("") is None
    )


def test_the_tables_agree_with_each_other_and_with_the_engines() -> None:
    numbers = [l4t for jetpack in JETPACKS for l4t in jetpack.l4t]
    assert len(numbers) == len(set(numbers)) and all(find_jetpack(l4t).version for l4t in numbers)  # type: ignore[union-attr]
    for part, module in MODULES.items():
        assert module.part == part and module.chip in CHIPS
        major, minor = module.capability
        assert DEVICES[f"sm_{major}{minor}"] == f"Jetson {CHIPS[module.chip].family}"
        assert any(module.chip in jetpack.chips for jetpack in JETPACKS)
    for jetpack in JETPACKS:
        assert jetpack.python == {"22.04": "3.10", "24.04": "3.12"}[jetpack.ubuntu]
        assert jetpack.dla == (jetpack.version[0] == "6") and set(jetpack.chips) <= set(CHIPS)


def test_the_running_interpreter_is_described(tmp_path: Path) -> None:
    here = running_interpreter()
    assert here.version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    base = getattr(sys, "_base_executable", sys.executable)
    code = "from vae_edge.jetson import running_interpreter as r; i = r(); print(i.venv, i.system_site_packages)"
    root = str(Path(__file__).parents[1])
    for options, sees in ((["--system-site-packages"], True), ([], False)):
        venv = tmp_path / f"venv{sees}"
        subprocess.run([base, "-m", "venv", "--without-pip", *options, venv], check=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((root, f"{root}/kernels"))}
        told = subprocess.run(
            [venv / "bin/python", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert told.stdout.split() == [str(venv), str(sees)]


def test_a_summary_says_what_a_measurement_depends_on() -> None:
    assert read_tree(NANO).summary() == {
        "module": "Jetson Orin Nano 8 GB",
        "super": True,
        "jetpack": "6.2",
        "l4t": "36.4.3",
        "power_mode": "15W",
        "strongest_power_mode": "MAXN_SUPER",
        "clocks_pinned": False,
    }
    nothing = replace(read_tree(NANO), jetpack="", l4t="", power_mode=None, power_modes=())
    assert {nothing.summary()[key] for key in ("jetpack", "l4t", "power_mode", "strongest_power_mode")} == {None}
