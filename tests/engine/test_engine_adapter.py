"""Finding TensorRT: what the sentences say where it is missing or broken. Nothing here needs one to be installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vae_edge.engine.build import build_engine
from vae_edge.engine.tensorrt import BuildConfig, discover, open_adapter, usable
from vae_edge.errors import EngineError

MODULES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)  # as Python marks a module that must not be imported


def test_where_none_is_installed_each_sentence_says_what_to_install(nothing_installed: None) -> None:
    assert discover() == []
    with pytest.raises(EngineError) as error:
        open_adapter()
    said = str(error.value)
    assert said.startswith("Neither TensorRT nor TensorRT-RTX is installed.")
    assert "JetPack" in said
    assert "python3 -m venv --system-site-packages" in said
    assert "pip install tensorrt" in said
    assert 'pip install "vae-edge[rtx]"' in said
    with pytest.raises(EngineError) as error:
        open_adapter("tensorrt")
    assert "JetPack" in str(error.value)
    assert "vae-edge[rtx]" not in str(error.value)
    with pytest.raises(EngineError) as error:
        open_adapter("tensorrt_rtx")
    assert "JetPack" not in str(error.value)
    assert 'pip install "vae-edge[rtx]"' in str(error.value)


def test_a_build_without_tensorrt_says_what_to_install(nothing_installed: None, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"anything")
    with pytest.raises(EngineError, match=r"Neither TensorRT nor TensorRT-RTX is installed.*vae-edge\[rtx\]"):
        build_engine(model, BuildConfig("fp32", targets=("sm_86",)))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(EngineError, match="'trt' is unknown: choose auto, tensorrt or tensorrt_rtx"):
        open_adapter("trt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10: cannot open"),
        ("raise OSError('undefined symbol: cudaFoo')", "OSError: undefined symbol: cudaFoo"),
        ("__version__ = '10.3.0'", "it has no Builder"),
    ],
)
def test_a_broken_installation_is_told_from_a_missing_one(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
for name in ("tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
    sys.modules[name] = None
from vae_edge.engine.tensorrt import open_adapter, usable
from vae_edge.errors import EngineError
assert usable() == []
try:
    open_adapter()
except EngineError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("The module tensorrt cannot be used: ")
    assert words in run.stdout


def test_what_is_available_imports_and_has_a_version() -> None:
    for installation in usable():
        assert installation.module in MODULES
        assert installation.version[0].isdigit()
        assert not installation.problem
