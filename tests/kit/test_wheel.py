"""The wheel in a kit: Python imports from it, pip installs it, and it is what is running here."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vae_edge
from vae_edge.kit import wheel
from vae_edge.kit.wheel import wheel_name, write_wheel

PACKAGE = Path(vae_edge.__file__).parent
# What a device lacks: importing any of these fails.
BLOCKED = ("rich", "PIL", "onnx", "onnxruntime", "openvino", "torch", "triton", "safetensors", "jinja2", "matplotlib")
BLOCK = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a wheel") / wheel_name()
    write_wheel(path)
    return path


def run(code: str, path: Path) -> str:
    """What `code` prints in a process that has the wheel and NumPy, and no folder of ours on its path."""
    environment = {"PYTHONPATH": str(path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_holds_every_python_file_of_both_packages_and_nothing_else(made: Path) -> None:
    names = zipfile.ZipFile(made).namelist()
    ours = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert ours <= set(names)
    assert "vae_edge_kernels/__init__.py" in names
    records = f"vae_edge-{vae_edge.__version__}.dist-info/"
    assert all(name.startswith(("vae_edge/", "vae_edge_kernels/", records)) for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".so", ".pyc"))]


def test_its_record_has_the_sum_of_each_file(made: Path) -> None:
    archive = zipfile.ZipFile(made)
    record = next(name for name in archive.namelist() if name.endswith("/RECORD"))
    rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    assert {row[0] for row in rows} == set(archive.namelist())
    for name, digest, size in rows:
        if name != record:
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(content)))


def test_the_same_sources_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "again.whl")
    assert (tmp_path / "again.whl").read_bytes() == made.read_bytes()


def test_python_imports_what_a_device_runs_from_the_file_itself_without_other_packages(made: Path) -> None:
    code = BLOCK + (
        "import vae_edge.kit.device, vae_edge.benchmarking.run, vae_edge.engine.worker, vae_edge.runtime.verification\n"
        "from vae_edge.benchmarking import describe_machine\n"
        "from vae_edge.engine.build import build_bundle_engine\n"
        "assert len(describe_machine()['code']) == 12\n"
        "print(vae_edge.kit.device.__file__)"
    )
    assert run(code, made) == f"{made}/vae_edge/kit/device.py"


def test_the_code_digest_is_the_same_from_the_file_and_from_the_folder(made: Path) -> None:
    from vae_edge.benchmarking.measure import code_digest

    assert run("from vae_edge.benchmarking.measure import code_digest; print(code_digest())", made) == code_digest()


def test_a_wheel_made_from_a_wheel_is_the_same(made: Path, tmp_path: Path) -> None:
    run(f"from vae_edge.kit.wheel import write_wheel; write_wheel({str(tmp_path / 'third.whl')!r})", made)
    first, third = (zipfile.ZipFile(path) for path in (made, tmp_path / "third.whl"))
    for name in first.namelist():
        if ".dist-info/" not in name:
            assert third.read(name) == first.read(name), name


@pytest.mark.slow
def test_pip_installs_it_without_a_network(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(made)]
    subprocess.run(command, check=True, capture_output=True)
    assert run("import vae_edge; print(vae_edge.__file__)", target) == f"{target}/vae_edge/__init__.py"
    assert (target / "bin" / "vae-edge").is_file()


def test_without_an_installation_there_is_a_short_metadata(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise wheel.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wheel.importlib.metadata, "distribution", missing)
    text = wheel._metadata()
    assert f"\nVersion: {vae_edge.__version__}\n" in text and "Requires-Dist: numpy" in text
