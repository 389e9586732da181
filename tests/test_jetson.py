"""Copies of real Jetsons' files are read right, each planted fault is found, and no damage makes anything raise."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jetson_trees import FOLDER, TREES, read_tree

from vae_edge.cli.device import jetson_table
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
from vae_edge.text import json_text

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


def test_super_modes_that_the_board_does_not_use_are_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(FOLDER / NANO, root)
    assert "Super modes" not in faults(ask(root))
    change("etc/nvpmodel.conf", "< POWER_MODEL ID=2 NAME=MAXN_SUPER >", "< PARAM TYPE=FILE NAME=X >")(root)
    assert "MAXN_SUPER" in faults(ask(root))["Super modes"].detail
    remove("etc/nvpmodel")(root)
    assert "Super modes" not in faults(ask(root))


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


# ---- nothing personal, and no damage -------------------------------------------------------------------------------

WATCH = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from pathlib import Path
from vae_edge.environment import cpu_model
from vae_edge.jetson import findings, read_jetson
root = Path(sys.argv[1])
jetson = read_jetson(root, "Orin", (8, 7))
words = repr((jetson, list(findings(jetson)), jetson.to_json(), cpu_model(root)))
if sys.argv[2:]:
    (root / sys.argv[2]).open("rb")
print(sum(str(root) in name for name in opened), sum("serial" in name for name in opened), "POISON" in words)
"""
SERIALS = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/devices/soc0/serial_number",
)


def watch(root: Path, *extra: str) -> list[str]:
    top = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(top), str(top / "kernels")))}
    command = [sys.executable, "-c", WATCH, str(root), *extra]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_nothing_opens_a_file_with_a_serial_number(tree: Path) -> None:
    """Every opened file is watched by an audit hook of the interpreter; the files are poisoned besides."""
    for name in SERIALS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("POISON")
    opened, serials, poisoned = watch(tree)
    assert int(opened) > 15 and serials == "0" and poisoned == "False"
    assert watch(tree, SERIALS[0])[1] == "1"  # the hook sees who does open one


def binary(path: Path) -> None:
    path.write_bytes(random.Random(str(path.name)).randbytes(4096))


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 34)


def endless(path: Path) -> None:
    path.write_bytes(b"A" * (3 << 20))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def digits(path: Path) -> None:
    path.write_bytes(b"9" * 100_000)


def nested(path: Path) -> None:
    path.write_bytes(b'{"cuda":' + b"[" * 100_000)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "binary": binary,
    "huge": huge,
    "one endless line": endless,
    "missing": Path.unlink,
    "cut": cut,
    "a pipe": pipe,
    "a folder": folder,
    "a link to itself": loop,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x80 MAXN \xc3" + path.read_bytes()),
    "digits": digits,
    "nested": nested,
    "NUL": lambda path: path.write_bytes(b"\0" * 100),
    "control characters": lambda path: path.write_bytes(path.read_bytes().replace(b"N", b"\x1b[31m\r")),
}


def everything(root: Path) -> None:
    """All that the doctor does with a Jetson; it must not raise, and must print."""
    jetson = read_jetson(root, "Orin", (8, 7), SYSTEM_PYTHON)
    assert jetson is not None
    text = json_text(jetson.to_json())
    assert json.loads(text)["chip"] and json_text(jetson.summary())
    assert all(finding.subject and finding.detail for finding in findings(jetson))
    from rich.console import Console

    page = io.StringIO()
    Console(file=page, width=140).print(jetson_table(jetson))
    assert "\x1b" not in page.getvalue() and "JetPack" in page.getvalue()


def files_of(name: str) -> list[str]:
    return sorted(path.relative_to(FOLDER / name).as_posix() for path in (FOLDER / name).rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_makes_it_raise_wait_or_grow(tmp_path: Path, damage: str) -> None:
    """Each file of the Orin Nano's tree in its turn, then all of them at once."""
    names = files_of(NANO)
    assert len(names) > 25
    tracemalloc.start()
    begun = time.monotonic()
    try:
        for name in names:
            root = tmp_path / "root"
            shutil.copytree(FOLDER / NANO, root)
            DAMAGES[damage](root / name)
            everything(root)
            shutil.rmtree(root)
        shutil.copytree(FOLDER / NANO, tmp_path / "all")
        for name in names:
            DAMAGES[damage](tmp_path / "all" / name)
        everything(tmp_path / "all")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begun < 60 and peak < 64 << 20


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def as_a_plain_user() -> Iterator[None]:
    """Without root's right to read everything, in the block."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("closed", ["files", "folders"])
def test_what_may_not_be_read_is_left_out(open_folder: Path, closed: str) -> None:
    root = open_folder / "root"
    shutil.copytree(FOLDER / NANO, root)
    everything(root)  # imports what is needed
    for name in files_of(NANO):
        (root / name if closed == "files" else (root / name).parent).chmod(0)
    with as_a_plain_user():
        with pytest.raises(PermissionError):
            (root / "etc/nvpmodel.conf").read_bytes()
        everything(root)
        jetson = ask(root)
    assert (jetson.part, jetson.l4t, jetson.cuda, jetson.power_modes, jetson.power_mode) == ("", "", "", (), None)
    assert jetson.clocks.pinned is None and jetson.memory_bytes is None


def test_a_mode_of_hostile_names_is_shown_as_it_is(tree: Path) -> None:
    change("etc/nvpmodel.conf", "NAME=MAXN", "NAME=MAXN\x1b[31m" + "A" * 5000)(tree)
    jetson = ask(tree)
    assert jetson.power_mode is not None and len(jetson.power_mode.name) <= 64
    everything(tree)


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
