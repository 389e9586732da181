"""How many threads a container's quota leaves: doubles of the kernel's files, and a real control group."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vae_edge.processors import available_cpus, cpu_quota, limit_libraries

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
CPU = "sys/fs/cgroup/cpu,cpuacct"


def machine(root: Path, groups: str, mounts: str | None, files: dict[str, str]) -> Path:
    """A double of the files: /proc/self/cgroup, /proc/self/mountinfo (None: missing), and those of the groups."""
    own = root / "proc/self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(groups)
    if mounts is not None:
        (own / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n" + mounts)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


CASES: dict[str, tuple[str, str | None, dict[str, str], float | None]] = {
    "version 2, a namespace of its own": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
    "version 2, no limit": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "version 2, the group above is stricter": (
        "0::/pod/box\n",
        V2,
        {"sys/fs/cgroup/pod/box/cpu.max": "400000 100000", "sys/fs/cgroup/pod/cpu.max": "150000 100000"},
        1.5,
    ),
    "version 2, another group's limit is not ours": (
        "0::/a\n",
        V2,
        {"sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/b/cpu.max": "1000 100000"},
        None,
    ),
    "version 2, the container's own group is mounted": (
        "0::/docker/abc/inner\n",
        "29 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
        {"sys/fs/cgroup/inner/cpu.max": "max 100000", "sys/fs/cgroup/cpu.max": "300000 100000"},
        3.0,
    ),
    "version 2, a group elsewhere is mounted": (
        "0::/docker/abc\n",
        "29 23 0:26 /docker/xyz /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
        {"sys/fs/cgroup/cpu.max": "50000 100000"},
        None,
    ),
    "version 2, mounted from outside of the namespace": (
        "0::/\n",
        "29 23 0:26 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
        {"sys/fs/cgroup/cpu.max": "250000 100000"},
        2.5,
    ),
    "version 2, a path with blanks": (
        "0::/my box\n",
        "29 23 0:26 / /mnt/control\\040groups rw - cgroup2 cgroup rw\n",
        {"mnt/control groups/my box/cpu.max": "100000 100000"},
        1.0,
    ),
    "version 1": ("4:memory:/x\n3:cpu,cpuacct:/x\n", V1 + V1_MEMORY, v1(f"{CPU}/x", 50_000), 0.5),
    "version 1, no limit": ("3:cpu,cpuacct:/x\n", V1, v1(f"{CPU}/x", -1), None),
    "version 1, nested": ("3:cpuacct,cpu:/x/y\n", V1, v1(f"{CPU}/x/y", -1) | v1(f"{CPU}/x", 20_000, 50_000), 0.4),
    "version 1, without a namespace": (
        "3:cpu,cpuacct:/docker/abc\n",
        "31 30 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
        v1(CPU, 200_000),
        2.0,
    ),
    "both versions, cpu in 1": ("3:cpu,cpuacct:/x\n0::/\n", V1 + V2, v1(f"{CPU}/x", 75_000), 0.75),
    "both versions, cpu in 2": (
        "4:memory:/x\n0::/x\n",
        "29 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" + V1_MEMORY,
        {"sys/fs/cgroup/unified/x/cpu.max": "60000 100000"},
        0.6,
    ),
    "mountinfo is missing": ("0::/x\n", None, {"sys/fs/cgroup/x/cpu.max": "50000 100000"}, 0.5),
    "no control groups": ("", "", {}, None),
    "nonsense": ("0::/\nx\n1:cpu\n", V2 + "odd line - cgroup2\n", {"sys/fs/cgroup/cpu.max": "many 0\n"}, None),
    "a period of nothing": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 0"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_least_quota_of_the_own_group_and_those_above_is_found(tmp_path: Path, case: str) -> None:
    groups, mounts, files, expected = CASES[case]
    assert cpu_quota(machine(tmp_path, groups, mounts, files)) == expected


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_sets_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 100000"})
    (root / "sys/fs/cgroup/cpu.max").chmod(0)
    assert cpu_quota(root) is None


def test_a_folder_in_a_files_place_sets_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max/x": ""})
    assert cpu_quota(root) is None


@pytest.mark.parametrize(
    ("quota", "threads"), [(1000, 1), (50_000, 1), (150_000, 1), (174_000, 1), (175_000, 2), (200_000, 2), (400_000, 4)]
)
def test_threads_are_the_quota_rounded_down_and_one_at_least(
    tmp_path: Path, quota: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert available_cpus(root) == threads
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)
    assert available_cpus(root) == 1


def test_libraries_are_told_of_a_quota_and_keep_what_the_user_set(tmp_path: Path) -> None:
    root = machine(tmp_path / "a", "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 100000"})
    environment = {"MKL_NUM_THREADS": "3"}
    limit_libraries(environment, root)
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["MKL_NUM_THREADS"] == "3"
    free: dict[str, str] = {}
    limit_libraries(free, machine(tmp_path / "b", "0::/\n", V2, {}))
    assert free == {}


@pytest.fixture
def half_a_processor() -> Iterator[Path]:
    """A real control group of version 1 with half a processor, where one can be made."""
    group = Path(f"/sys/fs/cgroup/cpu/vae-edge-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def test_a_process_in_a_real_control_group_takes_one_thread_everywhere(half_a_processor: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from vae_edge.processors import available_cpus, cpu_quota\n"
        "import torch\n"
        "from vae_edge.training.distributed import use_threads\n"
        "print(cpu_quota(), available_cpus(), use_threads(), use_threads(2), use_threads())\n"
    )
    pytest.importorskip("torch")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", code, str(half_a_processor)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["0.5", "1", "1", "2", "2"]


def test_no_other_module_counts_processors() -> None:
    """Whoever asks the machine itself overlooks the quota; the description of the machine may tell both."""
    root = Path(__file__).parents[1]
    asked = re.compile(r"cpu_count\(|sched_getaffinity|set_num_threads|n_jobs=-1")
    found = {
        path.relative_to(root).as_posix()
        for folder in ("vae_edge", "kernels/vae_edge_kernels")
        for path in (root / folder).rglob("*.py")
        if asked.search(path.read_text())
    }
    assert found == {"vae_edge/processors.py", "vae_edge/benchmark/measure.py"}


def test_the_machines_description_and_the_benchmarks_title_say_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_edge.benchmark.measure import describe_machine
    from vae_edge.benchmark.run import BenchmarkResult, BenchmarkSettings, format_table

    monkeypatch.setattr("vae_edge.benchmark.measure.cpu_quota", lambda: 0.5)
    machine = describe_machine(1)
    assert machine["cpu_quota"] == 0.5
    bundle: Any = SimpleNamespace(name="b")
    result = BenchmarkResult(machine, bundle, BenchmarkSettings((1,), 1, 1.0, "given", 1.0), None, (), (), ())
    assert str(format_table(result).title).endswith("1 thread(s), quota of 0.5 processors")
