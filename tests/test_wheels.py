"""The wheels with the native library in them: tags, records, symbols, and that the library is found and runs.

The aarch64 library is built with Debian's cross compiler, and its C tests run under qemu-user; both are skipped with a
sentence where these are missing.
"""

from __future__ import annotations

import base64
import csv
import ctypes
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import vae_edge

ROOT = Path(__file__).parents[1]
LIBRARY = "vae_edge/_native/libvae_edge_kernels.so"
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of ELF
CROSS = "aarch64-linux-gnu-gcc"
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
OLDEST_GLIBC = (2, 17)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs CMake and a C compiler"
    ),
]


def processors() -> list[str]:
    here = platform.machine()
    return [here, *(["aarch64"] if here != "aarch64" and shutil.which(CROSS) else [])]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels by processor; `any` is the pure one."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [ROOT / "kernels/native/make_wheels.sh", sys.executable, folder, *processors()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and re.search("No matching distribution|Could not find a version|Connection", done.stderr):
        pytest.skip("pip cannot get hatchling here, which builds wheels")
    assert done.returncode == 0, done.stderr
    names = {"any": "any", **{name: f"manylinux_2_17_{name}" for name in processors()}}
    found = {name: folder / f"vae_edge-{vae_edge.__version__}-py3-none-{tag}.whl" for name, tag in names.items()}
    assert set(folder.iterdir()) == set(found.values())
    return found


def test_each_wheel_has_its_tag_and_a_record_of_every_file(wheels: dict[str, Path]) -> None:
    for name, path in wheels.items():
        with zipfile.ZipFile(path) as archive:
            files = {member: archive.read(member) for member in archive.namelist()}
        (info,) = {member.split("/")[0] for member in files if ".dist-info/" in member}
        about = files[f"{info}/WHEEL"].decode()
        assert f"Tag: {path.stem.split('-', 2)[2]}\n" in about
        assert f"Root-Is-Purelib: {'true' if name == 'any' else 'false'}\n" in about
        record = {row[0]: row[1] for row in csv.reader(files[f"{info}/RECORD"].decode().splitlines())}
        assert set(record) == set(files)
        for member, content in files.items():
            if not member.endswith("/RECORD"):
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert record[member] == f"sha256={digest}", member
        assert (LIBRARY in files) == (name != "any")


def test_the_pure_files_of_all_wheels_are_the_same(wheels: dict[str, Path]) -> None:
    contents = []
    for path in wheels.values():
        with zipfile.ZipFile(path) as archive:
            contents.append({m: archive.read(m) for m in archive.namelist() if m != LIBRARY and ".dist-info" not in m})
    assert all(content == contents[0] for content in contents)
    assert "vae_edge/runtime/native.py" in contents[0] and not any("hatch" in name for name in contents[0])


def extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(LIBRARY, folder))


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_each_library_is_of_its_processor_and_needs_glibc_2_17_alone(wheels: dict[str, Path], tmp_path: Path) -> None:
    for name in processors():
        library = extract(wheels[name], tmp_path / name)
        assert struct.unpack_from("<H", library.read_bytes(), 18) == (MACHINES[name],)
        symbols = subprocess.run(["readelf", "-W", "--dyn-syms", library], capture_output=True, text=True, check=True)
        needed = {tuple(map(int, version.split("."))) for version in re.findall(r"@GLIBC_([\d.]+)", symbols.stdout)}
        assert needed and max(needed) <= OLDEST_GLIBC, needed
        dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        libraries = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
        assert libraries <= {
            "libc.so.6",
            "libdl.so.2",
            "libpthread.so.0",
            "ld-linux-x86-64.so.2",
            "ld-linux-aarch64.so.1",
        }
        assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_the_library_of_this_processor_loads_and_has_no_kernels_of_its_own(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    library = ctypes.CDLL(str(extract(wheels[platform.machine()], tmp_path)))
    library.ve_version.restype = library.ve_last_error.restype = ctypes.c_char_p
    assert library.ve_version().decode() == vae_edge.__version__
    assert library.ve_kernel_count() == 0
    assert library.ve_launch(b"rotate_u8_fp16", (ctypes.c_uint * 3)(1, 1, 1), None, 0, None) == 6
    assert b"rotate_u8_fp16" in library.ve_last_error()
    assert library.ve_kernel_info(0, ctypes.create_string_buffer(256)) == 6


def test_a_fresh_environment_finds_the_library_and_runs_a_bundle_with_it(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    sys.path.insert(0, str(ROOT / "tests/runtime"))
    try:
        from native_double import build_native
    finally:
        sys.path.pop(0)
    from vae_edge.exporting.network_file import build_bundle_network

    (tmp_path / "native").mkdir()
    native = build_native(tmp_path / "native")
    assert native is not None
    bundle = Path(shutil.copytree(ROOT / "tests/fixtures/schema1/bundle", tmp_path / "bundle"))
    build_bundle_network(bundle, ["orin"])
    python = fresh_environment(tmp_path / "venv", wheels[platform.machine()])

    code = f"""
import sys
from native_double import probe_kernel, run_with
from pathlib import Path
import vae_edge
from vae_edge.runtime.native_library import find_library, library_version
print(find_library(), library_version())
bundle = Path({str(bundle)!r})
run_with(probe_kernel(bundle, "int8"))
with vae_edge.load(bundle, "native") as classify:
    print(classify.backend, classify.precision, classify.session.device)
print(any(name in sys.modules for name in ("torch", "triton")))
"""
    environment = native.environment(PYTHONPATH=f"{ROOT / 'tests/runtime'}:{ROOT / 'tests'}")
    del environment["VAE_EDGE_NATIVE"]
    command = [python, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(str(tmp_path / "venv")) and lines[0].endswith(f"{LIBRARY} {vae_edge.__version__}")
    assert lines[1:] == ["native int8 0: Orin (sm_87)", "False"]


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel; what it depends on is this environment's."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    install = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A folder in a .pth file comes behind the environment's own, and its own .pth files are not read.
    folders = {sysconfig.get_path("purelib"), str(Path(np.__file__).parents[1])}
    (Path(site) / "others.pth").write_text("".join(f"{other}\n" for other in folders))
    return python


@pytest.mark.skipif(platform.machine() != "x86_64", reason="cross-compiles from x86-64")
@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"needs {CROSS} (Debian's gcc-aarch64-linux-gnu)")
@pytest.mark.skipif(QEMU is None, reason="needs qemu-user")
def test_the_c_tests_pass_on_aarch64_under_qemu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    options = ["-DVAE_EDGE_ARCHITECTURES=87", "-DVAE_EDGE_PORTABLE=ON", "-DVAE_EDGE_WERROR=ON"]
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'kernels/native/aarch64.cmake'}"
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, toolchain, f"-DPython3_EXECUTABLE={sys.executable}", *options]
    for command in (configure, ["cmake", "--build", tmp_path]):
        subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        ["ctest", "--test-dir", tmp_path, "--output-on-failure"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "100% tests passed" in done.stdout, done.stdout
    for name in ("listing", "double_launch_sm_87", "double_network", "double_multi_cta", "broken_driver", "exports"):
        assert re.search(rf" {name} \.+ +Passed", done.stdout), done.stdout


@pytest.mark.skipif(
    not os.environ.get("VAE_EDGE_AARCH64_ROOT"), reason="VAE_EDGE_AARCH64_ROOT names no root of aarch64's Python"
)
@pytest.mark.skipif(shutil.which(CROSS) is None or QEMU is None, reason=f"needs {CROSS} and qemu-user")
def test_pip_installs_the_wheel_on_aarch64_and_the_bundle_runs(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Under qemu, from the index: NumPy, Pillow and rich of aarch64. The driver is the double."""
    root = Path(os.environ["VAE_EDGE_AARCH64_ROOT"])
    (pip,) = (root / "usr/share/python-wheels").glob("pip-*.whl")
    python: list[str | Path] = [str(QEMU), "-L", root, root / "usr/bin/python3"]
    site, here = tmp_path / "site", {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [f"{pip}/pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile", "--target", site]
    command = [*python, *install, "--find-links", wheels["aarch64"].parent, "vae-edge"]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    if done.returncode != 0 and re.search("No matching distribution|Could not find a version|Connection", done.stderr):
        pytest.skip("pip cannot get NumPy for aarch64 here")
    assert done.returncode == 0, done.stderr
    assert "manylinux_2_17_aarch64" in next(site.glob("vae_edge-*.dist-info/WHEEL")).read_text()

    from vae_edge.exporting.network_file import build_bundle_network

    bundle = Path(shutil.copytree(ROOT / "tests/fixtures/schema1/bundle", tmp_path / "bundle"))
    build_bundle_network(bundle, ["orin"])
    (tmp_path / "driver").mkdir()
    double, options = (
        (ROOT / "tests/doubles/cuda").glob("*.c"),
        ["-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden"],
    )
    compile_double = [CROSS, *options, *double, "-o", tmp_path / "driver/libcuda.so.1", "-pthread"]
    subprocess.run(compile_double, check=True, capture_output=True)
    code = f"""
import platform
from pathlib import Path
from native_double import probe_kernel, run_with
import vae_edge
bundle = Path({str(bundle)!r})
run_with(probe_kernel(bundle, "int8"))
with vae_edge.load(bundle, "native") as classify:
    print(platform.machine(), classify.backend, classify.precision, classify.session.device)
"""
    paths = {
        "PYTHONPATH": f"{site}:{ROOT / 'tests/runtime'}:{ROOT / 'tests'}",
        "LD_LIBRARY_PATH": str(tmp_path / "driver"),
    }
    command = [*python, "-c", code]
    here |= paths
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "aarch64 native int8 0: Orin (sm_87)\n", done.stderr
