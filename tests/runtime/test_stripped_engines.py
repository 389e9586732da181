"""An engine without weights gets those of its ONNX file when it is loaded, before it runs; or is refused.

The double of TensorRT has no refitter: a stand-in with the calls of the real ones (tests/engine/test_tensorrt_api.py
holds these against the real bindings) keeps what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import engine_bundle
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.errors import BundleError

given: list[tuple[Any, bytes]] = []


class Refitter:
    def __init__(self, engine: Any, logger: Any) -> None:
        self.engine = engine
        self.weights = b""

    def refit_cuda_engine(self) -> bool:
        given.append((self.engine, self.weights))
        return True

    def get_missing_weights(self) -> list[str]:
        return []


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, model: bytes) -> bool:
        self.refitter.weights = model
        return True


@pytest.fixture
def stripped(gpu: Callable[..., Any], session_bundle: Bundle, tmp_path: Path) -> tuple[Any, Bundle]:
    double = gpu("10.3")
    return double, engine_bundle(session_bundle, tmp_path / "bundle", double, settings={"strip_weights": True})


def test_the_weights_are_those_of_the_bundles_onnx_file(
    stripped: tuple[Any, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    double, bundle = stripped
    for each in (Refitter, OnnxParserRefitter):
        monkeypatch.setattr(double.module, each.__name__, each, raising=False)
    given.clear()
    source = bundle.find()
    with vae_edge.load(bundle.path, "tensorrt", "fp32") as classifier:
        ((engine, weights),) = given
        assert weights == bundle.file(source).read_bytes()
        assert isinstance(engine, double.module.ICudaEngine)
        images = noise(2, bundle.input.size, bundle.input.channels)
        with vae_edge.load(bundle.path, "onnxruntime", "fp32") as reference:
            found, expected = classifier(images, color="rgb"), reference(images, color="rgb")
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    given.clear()


def test_a_tensorrt_that_cannot_put_them_in_refuses_the_engine(stripped: tuple[Any, Bundle]) -> None:
    _, bundle = stripped
    with pytest.raises(BundleError, match=r"has no weights, and this TensorRT cannot put them in"):
        vae_edge.load(bundle.path, "tensorrt", "fp32")
