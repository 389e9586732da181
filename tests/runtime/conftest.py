from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engines import CAPABILITY
from native_double import NativeBuild, build_native
from small_models import make_bundle

from vae_edge.bundle import Bundle


@pytest.fixture(scope="session")
def session_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One grey bundle that no test changes: fp32, fp16, int8 and a reconstruction."""
    folder = tmp_path_factory.mktemp("runtime")
    return make_bundle(folder / "bundle", folder / "work", proving=find_spec("torch") is not None)


@pytest.fixture
def own_bundle(tmp_path: Path) -> Bundle:
    """A bundle of the test's own."""
    return make_bundle(tmp_path / "bundle", tmp_path / "work", widths=(16, 32))


@pytest.fixture
def gpu(cuda: Any, use_tensorrt: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make this process one with a GPU and a version of TensorRT, both doubles; give the double of TensorRT."""

    def do(version: str, integrated: bool = False) -> Any:
        double = use_tensorrt(version)
        monkeypatch.setenv("DOUBLE_CC", str(CAPABILITY[double.kind]))
        monkeypatch.setenv("DOUBLE_INTEGRATED", str(int(integrated)))
        monkeypatch.setattr("vae_edge.engine.cuda.LIBRARY", str(cuda.library))
        monkeypatch.setattr("vae_edge.engine.cuda._contexts", {})
        return double

    return do


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeBuild:
    """The native library and doubles of the driver."""
    built = build_native(tmp_path_factory.mktemp("native"))
    if built is None:
        pytest.skip("needs CMake and a C compiler")
    return built


@pytest.fixture(scope="session")
def native_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained network's bundle with network files for an Orin, in int8 and fp16. No test changes it."""
    pytest.importorskip("triton")
    pytest.importorskip("torch")
    from vae_edge.exporting.network_file import build_bundle_network

    folder = tmp_path_factory.mktemp("native") / "bundle"
    shutil.copytree(Path(__file__).parents[1] / "fixtures/schema1/bundle", folder)
    for precision in ("int8", "fp16"):
        build_bundle_network(folder, ["orin"], precision)
    return folder
