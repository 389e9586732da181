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

from vae_edge.environment import (
    ShadowedError,
    available_cpus,
    board_model,
    cpu_model,
    cpu_quota,
    import_package,
    is_installed,
    limit_libraries,
    read_text,
    shadow,
    shadows,
)

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


def test_the_text_of_a_file_is_bounded_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_text(path) == "" and read_text(tmp_path) == "" and read_text(Path("a\0b")) == ""
    path.write_bytes(b"model\xff\n")
    assert read_text(path) == "model\ufffd\n" and read_text(path, 3) == "mod"
    os.truncate(path, 1 << 34)
    assert len(read_text(path)) == 1 << 20
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "pipe") == "" and read_text(Path("/dev/zero")) == ""


def test_a_board_is_named_before_its_processor(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n")
    assert cpu_model(tmp_path) == "ARMv8 Processor rev 1 (v8l)"
    tree = tmp_path / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert board_model(tmp_path) == "NVIDIA Jetson AGX Orin Developer Kit"
    assert cpu_model(tmp_path) == "NVIDIA Jetson AGX Orin Developer Kit ARMv8 Processor rev 1 (v8l)"


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
        "from vae_edge.environment import available_cpus, cpu_quota\n"
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
    kernels = {
        "kernels/vae_edge_kernels/aot/__init__.py",
        "kernels/vae_edge_kernels/analysis/sass.py",
    }  # jobs are passed
    ours = {"vae_edge/environment.py", "vae_edge/benchmarking/measure.py", "vae_edge/training/distributed.py"}
    assert found == kernels | ours


def test_the_machines_description_and_the_benchmarks_title_say_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_edge.benchmarking.measure import describe_machine
    from vae_edge.benchmarking.run import BenchmarkResult, BenchmarkSettings, format_table

    monkeypatch.setattr("vae_edge.benchmarking.measure.cpu_quota", lambda: 0.5)
    machine = describe_machine(1)
    assert machine["cpu_quota"] == 0.5
    bundle: Any = SimpleNamespace(name="b")
    result = BenchmarkResult(machine, bundle, BenchmarkSettings((1,), 1, 1.0, "given", 1.0), None, (), (), ())
    assert str(format_table(result).title).endswith("1 thread(s), quota of 0.5 processors")


NAME = "jinja2"  # any package with a mark; each test gives it a place of its own


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder that comes first in the path of a Python that has no installed package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "-packages" not in p)])
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]  # of the test; those of before come back


def test_a_bare_folder_is_no_package(absent: Path) -> None:
    assert not is_installed(NAME) and shadow(NAME) == ""
    (absent / NAME).mkdir()
    assert not is_installed(NAME)
    assert shadow(NAME) == (
        f"the folder {absent / NAME} is taken for the package {NAME}, which is not installed: rename the folder, or "
        "start Python elsewhere"
    )
    with pytest.raises(ShadowedError, match=f"The folder {absent / NAME} is taken for"):
        import_package(NAME)


@pytest.mark.parametrize("place", [f"{NAME}/__init__.py", f"{NAME}.py"])
@pytest.mark.parametrize("content", ["x = 1", "raise RuntimeError('mine')", "import nothing_of_this_name"])
def test_a_users_own_module_is_no_package(absent: Path, place: str, content: str) -> None:
    (absent / place).parent.mkdir(exist_ok=True)
    (absent / place).write_text(content)
    assert not is_installed(NAME)
    what = "file" if place.endswith(f"{NAME}.py") else "folder"
    assert f"the {what} {(absent / place) if what == 'file' else absent / NAME} is taken for" in shadow(NAME)


def test_a_real_package_counts_wherever_it_lies(absent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (absent / NAME).mkdir()
    (absent / NAME / "__init__.py").write_text("class Environment: ...")
    assert is_installed(NAME) and import_package(NAME).Environment


def test_an_installed_package_is_not_imported_to_be_found() -> None:
    code = (
        "import sys; from vae_edge.environment import is_installed\n"
        "assert is_installed('onnxruntime') and 'onnxruntime' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert shadows(("onnxruntime", "openvino", "numpy")) == {}


def run(folder: Path, code: str, *missing: str) -> subprocess.CompletedProcess[str]:
    """Run a user's script in a folder, in a Python whose installed packages lack the missing ones."""
    hide = (
        "import sys, importlib.machinery as m\n"
        "class Hidden(m.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name in {missing!r} and path is None:\n"
        "            path = [p for p in sys.path if '-packages' not in p]\n"
        "        return super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Hidden if f is m.PathFinder else f for f in sys.meta_path]\n"
    )
    (folder / "mine.py").write_text(hide + code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "mine.py"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


PREDICT = (
    "import numpy as np, vae_edge\n"
    "c = vae_edge.load({bundle!r}, {backend!r}, 'fp32')\n"
    "print(c.backend, len(c(np.zeros((2, 28, 28, 1), np.uint8)).labels))\n"
)


def test_auto_goes_on_with_the_other_backends_and_says_why(tmp_path: Path, few_layers: str) -> None:
    (tmp_path / "openvino").mkdir()
    done = run(tmp_path, PREDICT.format(bundle=few_layers, backend="auto"), "openvino")
    assert done.stdout.split() == ["onnxruntime", "2"], done.stderr
    assert f"openvino is left out: the folder {tmp_path / 'openvino'} is taken for" in done.stderr
    named = run(tmp_path, PREDICT.format(bundle=few_layers, backend="openvino"), "openvino")
    assert re.search(
        r"BackendError: The backend 'openvino' cannot be imported \(installed: onnxruntime.*\): the folder",
        named.stderr,
    )


def test_doctor_and_training_name_the_folder(tmp_path: Path) -> None:
    for name in ("openvino", "torch", "tensorrt"):
        (tmp_path / name).mkdir()
    code = "from vae_edge.cli import main\nsys.exit(main({arguments!r}))\n"
    done = run(tmp_path, code.format(arguments=["doctor"]), "openvino", "torch", "tensorrt")
    assert done.returncode == 0, done.stderr
    for name in ("openvino", "torch", "tensorrt"):
        assert f"older {tmp_path / name} is taken for the package {name}" in done.stdout
    train = run(tmp_path, code.format(arguments=["train", "--data", "digits", "--out", "run"]), "torch")
    assert train.returncode == 2 and "Traceback" not in train.stderr
    assert f"the folder {tmp_path / 'torch'} is taken for the package torch" in train.stderr


@pytest.fixture(scope="module")
def few_layers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small bundle."""
    sys.path.insert(0, str(Path(__file__).parent / "runtime"))
    try:
        from small_models import make_bundle
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("shadow")
    return str(make_bundle(folder / "bundle", folder / "work", widths=(16,), precisions=("fp32",)).path)


def test_doctor_warns_of_two_distributions_of_one_package(tmp_path: Path) -> None:
    about = tmp_path / "onnxruntime_gpu-1.23.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.23.0\n")
    (about / "top_level.txt").write_text("onnxruntime\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])}
    command = [sys.executable, "-m", "vae_edge", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files" in done.stdout
    assert "pip uninstall onnxruntime onnxruntime-gpu" in done.stdout
    plain = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "both installed" not in plain.stdout


def test_another_distribution_of_a_backend_is_taken(few_layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where onnxruntime-gpu alone is installed: no distribution is called onnxruntime."""
    from importlib import metadata

    import numpy as np
    import onnxruntime

    import vae_edge
    from vae_edge.runtime import backend_version

    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert backend_version("onnxruntime") == onnxruntime.__version__
    with vae_edge.load(few_layers, "onnxruntime", "fp32") as classify:
        assert classify(np.zeros((1, 28, 28, 1), np.uint8)).probabilities.shape == (1, 10)
