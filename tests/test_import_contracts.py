"""The import contracts refuse what they are there to refuse: each fault is planted in a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the Python sources and of pyproject.toml."""
    for package in ("vae_edge", "kernels/vae_edge_kernels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree), str(tree / "kernels")))}
    command = [sys.executable, "-c", LINT_IMPORTS, "--no-cache"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def plant(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_the_tree_as_it_is_keeps_every_contract(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("kernels/vae_edge_kernels/__init__.py", "import vae_edge.text", "The kernels import nothing of vae_edge"),
        ("vae_edge/kit/measure.py", "from vae_edge.data import load_dataset", "The kit runs on a device"),
        ("vae_edge/kit/device.py", "import rich", "The kit runs on a device"),
        ("vae_edge/errors.py", "import vae_edge.data", "No cycle among modules"),  # of two layers
        ("vae_edge/ops/registration.py", "import vae_edge.ops.conv", "No cycle among modules"),  # in a package
        ("kernels/vae_edge_kernels/implicit_gemm.py", "import vae_edge_kernels.conv", "No cycle among modules"),
    ],
)
def test_a_planted_import_is_refused(tree: Path, module: str, line: str, contract: str) -> None:
    plant(tree / module, line)
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(text.startswith(contract) and "BROKEN" in text for text in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize(
    "line", ["from vae_edge.cli.console import say", "import vae_edge.cli", "from vae_edge import cli"]
)
def test_a_benchmark_may_not_import_the_command_line(tree: Path, line: str) -> None:
    pytest.importorskip("ruff")
    script = tree / "bench" / "planted.py"
    script.parent.mkdir()
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", str(script)]
    script.write_text("import vae_edge\n", encoding="utf-8")
    assert subprocess.run(command, cwd=tree, capture_output=True, check=False).returncode == 0

    script.write_text(f"{line}\n", encoding="utf-8")
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "TID251" in done.stdout, done.stdout + done.stderr
