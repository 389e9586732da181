"""ONNX Runtime's providers for GPUs: found by their libraries, and never silently replaced by the processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.errors import BackendError
from vae_edge.runtime import backends
from vae_edge.runtime.backends import SPECS, LoadOptions, check_installed, installed_backends

PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_a_package_without_the_provider_is_told_from_one_that_is_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name not in installed_backends()
    with pytest.raises(BackendError, match=rf"'{name}' is not installed .*`pip install onnxruntime-gpu`"):
        check_installed(name)
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / SPECS[name].provider).write_bytes(b"")
    monkeypatch.setattr(backends, "package_folder", lambda package: tmp_path)
    check_installed(name)
    assert name in installed_backends() and name in installed_backends(gpu=True)
    assert name not in installed_backends(gpu=False)


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_a_provider_that_does_not_load_is_not_replaced_by_the_processor(
    name: str, gpu: Callable[..., Any], session_bundle: Bundle
) -> None:
    """This ONNX Runtime has no such provider, and takes the processor's with no more than a line on the terminal."""
    gpu("10.3")
    with pytest.raises(BackendError, match=rf"cannot use its {PROVIDERS[name]} here and took CPUExecutionProvider"):
        backends.open_model(session_bundle, name, session_bundle.find(), LoadOptions())


def test_without_a_gpu_they_are_no_candidates(session_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_is_there", lambda spec: True)
    with pytest.raises(BackendError, match="'onnxruntime-cuda' needs an NVIDIA GPU, and there is none here"):
        vae_edge.load(session_bundle.path, "onnxruntime-cuda", "fp32")
