"""A user's folder or file with the name of a package: told apart from the package, and named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vae_edge.environment import ShadowedError, import_package, is_installed, shadow, shadows

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
    assert (
        "BackendError: The backend 'openvino' cannot be imported (installed: onnxruntime): the folder" in named.stderr
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
