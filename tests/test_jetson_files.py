"""Each reader of a Jetson's files: known texts, real libraries, and texts that are damaged, huge or hostile."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from elf_file import shared_library
from jetson_trees import FOLDER

from vae_edge import jetson_files as files

NANO = FOLDER / "orin-nano-super-jetpack-6.2"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: …", "36.4.3"),
        ("# R38 (release), REVISION: 4.0, GCID: 43443517", "38.4.0"),
        ("# R39 (release), REVISION: 2.0", "39.2.0"),
        ("# R39 (release), REVISION: 2", "39.2.0"),
        ("# R36 (release), REVISION: , GCID", ""),
        ("# R36", ""),
        ("", ""),
        ("# R" + "9" * 5000 + " (release), REVISION: 1.0", ""),
    ],
)
def test_the_version_of_l4t_is_that_of_the_release_file(tmp_path: Path, text: str, version: str) -> None:
    write(tmp_path / "etc/nv_tegra_release", text)
    assert files.l4t_release(tmp_path) == version


def test_a_package_counts_only_where_it_is_installed() -> None:
    found = files.debian_packages(NANO, r"libnvinfer\d+|nvidia-jetpack|zlib1g")
    assert found == {
        "libnvinfer10": "10.3.0.30-1+cuda12.5",
        "nvidia-jetpack": "6.2+b77",
        "zlib1g": "1:1.2.11.dfsg-2ubuntu9.2",
    }


def test_packages_without_a_version_or_a_name_are_left_out(tmp_path: Path) -> None:
    ok = "Status: install ok installed"
    stanzas = (f"{ok}\nVersion: 3", f"Package: a\n{ok}", f"Package: b\n{ok}\nVersion: 2", f"{ok}\nVersion: 4")
    text = "\n\n".join((*stanzas, "Package: c\nVersion: 1\n"))
    write(tmp_path / "var/lib/dpkg/status", text)
    assert files.debian_packages(tmp_path, ".*") == {"b": "2"}


MODES = "< POWER_MODEL ID={} NAME={} >\n"


@pytest.mark.parametrize(
    ("modes", "strongest"),
    [
        # the names of an Orin Nano Super, an AGX Orin, an Orin NX Super, a Thor, and a Xavier NX without MAXN
        ([(0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W")], 2),
        ([(0, "MAXN"), (1, "MODE_15W"), (2, "MODE_30W"), (3, "MODE_50W")], 0),
        ([(0, "MAXN_SUPER"), (1, "10W"), (2, "15W"), (3, "25W"), (4, "40W")], 0),
        ([(0, "MAXN"), (1, "120W"), (2, "MAXN_SUPER")], 2),
        ([(0, "MODE_15W_2CORE"), (5, "MODE_10W_DESKTOP"), (8, "MODE_20W_6CORE")], 8),
    ],
)
def test_the_strongest_mode_is_found_by_its_name(modes: list[tuple[int, str]], strongest: int) -> None:
    read = files.power_modes("".join(MODES.format(*each) for each in modes))
    assert [(mode.number, mode.name) for mode in read] == modes
    best = files.strongest_mode(read)
    assert best is not None and best.number == strongest


def mode(number: int, name: str, gpu: int, mask: int = 0, cores: int = 4, cpu: int = 1_000_000) -> str:
    online = "".join(f"CPU_ONLINE CORE_{k} {int(k < cores)}\n" for k in range(8))
    return (
        f"{MODES.format(number, name)}{online}TPC_POWER_GATING TPC_PG_MASK {mask}\nCPU_A78_0 MAX_FREQ {cpu}\n"
        f"GPU MIN_FREQ 0\nGPU MAX_FREQ {gpu}\n"
    )


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (mode(0, "A", 612_000_000), mode(1, "B", 918_000_000)),
        (mode(0, "A", 918_000_000), mode(1, "B", -1)),  # -1 is no limit
        (mode(0, "A", -1, mask=240), mode(1, "B", -1, mask=0)),  # fewer units
        (mode(0, "A", -1, cores=4), mode(1, "B", -1, cores=8)),
        (mode(0, "A", -1, cpu=1_000_000), mode(1, "B", -1, cpu=-1)),
        (mode(0, "A_10W", 1), mode(1, "B_20W", 1)),
    ],
)
def test_without_maxn_the_highest_limits_win_whatever_the_number(weak: str, strong: str) -> None:
    for text in (weak + strong, strong + weak):
        best = files.strongest_mode(files.power_modes(text))
        assert best is not None and best.number == 1
    exchanged = weak.replace("ID=0", "ID=7") + strong
    best = files.strongest_mode(files.power_modes(exchanged))
    assert best is not None and best.number == 1


def test_a_super_mode_is_stronger_than_maxn_whatever_limits_it_states() -> None:
    best = files.strongest_mode(files.power_modes(mode(0, "MAXN", -1) + mode(4, "MAXN_SUPER", 1_020_000_000)))
    assert best is not None and best.number == 4


def test_words_that_are_no_mode_are_left_out() -> None:
    text = (
        "# < POWER_MODEL ID=9 NAME=COMMENT >\n< PARAM TYPE=FILE NAME=X >\n< POWER_MODEL NAME=MAXN ID=3 >\n"
        "<POWER_MODEL ID=4 NAME=A>\n< POWER_MODEL ID=x NAME=B >\n< POWER_MODEL ID=5 >\n< PM_CONFIG DEFAULT=3 >\n"
    )
    assert [(each.number, each.name) for each in files.power_modes(text)] == [(3, "MAXN"), (4, "A")]
    assert files.strongest_mode(()) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("pmode:0002 fmode:fan_mode_quiet\n", 2), ("pmode:0000", 0), ("fmode:quiet", None), ("pmode:", None), ("", None)],
)
def test_the_mode_now_is_that_of_the_status_file(tmp_path: Path, text: str, number: int | None) -> None:
    write(tmp_path / "var/lib/nvpmodel/status", text)
    assert files.power_mode_number(tmp_path) == number


@pytest.mark.parametrize("node", ["17000000.gpu", "17000000.ga10b", "gpu-gpc-0"])
def test_clocks_are_pinned_where_minimum_and_maximum_are_equal(tmp_path: Path, node: str) -> None:
    gpu, cpu = tmp_path / "sys/class/devfreq" / node, tmp_path / "sys/devices/system/cpu"
    assert files.clocks(tmp_path).pinned is None
    for kind, value in (("cur", 1), ("min", 5), ("max", 5)):
        write(gpu / f"{kind}_freq", f"{value}\n")
    write(tmp_path / "sys/class/devfreq/15340000.vic/min_freq", "1")  # not the GPU
    assert files.clocks(tmp_path).pinned is True and files.clocks(tmp_path).cpu_pinned is None
    for core in (0, 1):
        for kind in ("min", "max"):
            write(cpu / f"cpu{core}/cpufreq/scaling_{kind}_freq", "7")
    write(cpu / "cpufreq/boost", "0")
    assert files.clocks(tmp_path) == files.Clocks(1, 5, True, True, None)
    write(cpu / "cpu1/cpufreq/scaling_min_freq", "6")
    assert files.clocks(tmp_path).cpu_pinned is False and files.clocks(tmp_path).pinned is False
    write(cpu / "cpu1/cpufreq/scaling_min_freq", "7")
    write(gpu / "min_freq", "4")
    assert files.clocks(tmp_path).gpu_pinned is False and files.clocks(tmp_path).pinned is False
    memory = tmp_path / "sys/kernel/debug/bpmp/debug/clk/emc"
    write(memory / "rate", "204000000")
    write(memory / "max_rate", "3199000000")
    assert files.clocks(tmp_path).memory_pinned is False


def test_a_zone_that_is_asleep_or_absurd_has_no_temperature(tmp_path: Path) -> None:
    zones = {"cpu-thermal": "48937", "cv0-thermal": "", "bad": "-256000", "words": "hot", "tj-thermal": "-1500"}
    for k, (name, value) in enumerate(zones.items()):
        write(tmp_path / f"sys/class/thermal/thermal_zone{k}/type", f"{name}\n")
        write(tmp_path / f"sys/class/thermal/thermal_zone{k}/temp", value)
    assert files.temperatures(tmp_path) == {"cpu-thermal": 48.937, "tj-thermal": -1.5}


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", 'engine="podman-5"', "podman"),
        ("run/secrets/kubernetes.io/serviceaccount/token", "", "kubernetes"),
        ("proc/1/cgroup", "0::/kubepods/besteffort/pod1/abc\n", "kubepods"),
        ("proc/1/cgroup", "12:cpu:/docker/abc\n", "docker"),
        ("proc/1/cgroup", "0::/init.scope\n", ""),
        ("proc/1/cgroup", "0::/system.slice/dockerd.service\n", ""),
    ],
)
def test_a_container_is_told_by_its_marks(tmp_path: Path, name: str, content: str, kind: str) -> None:
    write(tmp_path / name, content)
    assert files.container(tmp_path) == kind


def test_an_empty_library_is_a_place_holder(tmp_path: Path) -> None:
    path = write(tmp_path / files.LIBRARY_FOLDER / "nvidia/libnvdla_compiler.so", "")
    assert not files.dla_compiler(tmp_path)
    path.write_text("something")
    assert files.dla_compiler(tmp_path)


# ---- ELF ----------------------------------------------------------------------------------------------------------


def readelf(path: Path) -> tuple[str, ...]:
    tool = shutil.which("readelf")
    if tool is None:
        pytest.skip("readelf, the reference, is not installed")
    told = subprocess.run([tool, "-d", path], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    return tuple(line.split("[")[1].rstrip("]") for line in told.splitlines() if "(NEEDED)" in line)


def test_needed_libraries_are_those_that_readelf_names(tmp_path: Path) -> None:
    """Real libraries of this machine, and those of the trees."""
    real = sorted(Path(np.__file__).parent.parent.glob("numpy*/**/*.so*"))[:12]
    written = sorted(FOLDER.glob("*/usr/lib/aarch64-linux-gnu/libnvinfer.so.*"))
    assert len(real) >= 3 and len(written) == 5
    for path in (*real, *written):
        assert files.needed_libraries(path) == readelf(path), path
    assert "libnvdla_compiler.so" in files.needed_libraries(NANO / files.LIBRARY_FOLDER / "libnvinfer.so.10.3.0")


def test_what_is_no_library_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "libnvinfer.so.10"
    assert files.needed_libraries(path) == ()
    assert files.needed_libraries(tmp_path) == ()
    whole = shared_library(("libnvdla_compiler.so", "libc.so.6"))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        cut = files.needed_libraries(path)
        assert all("libnvdla_compiler.so".startswith(name) or "libc.so.6".startswith(name) for name in cut)
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        assert isinstance(files.needed_libraries(path), tuple)
    os.mkfifo(tmp_path / "pipe")
    assert files.needed_libraries(tmp_path / "pipe") == ()
