"""The shared contract: its shapes, the names of schema 1, and that it costs nothing to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vae_edge import spec


def test_shapes_are_those_of_the_model() -> None:
    sizes = {"size": 28, "channels": 3, "classes": 10}
    assert spec.INPUTS["image"].shape(**sizes) == (28, 28, 3)
    assert [output.shape(**sizes) for output in spec.CLASSIFIER_OUTPUTS.values()] == [(10,), (), ()]
    assert [output.shape(**sizes) for output in spec.UNCERTAINTY_OUTPUTS.values()] == [(), (), ()]
    assert spec.RECONSTRUCTION_OUTPUTS["reconstruction"].shape(**sizes) == (28, 28, 3)


def test_a_size_is_the_side_of_a_square_or_height_and_width() -> None:
    assert spec.INPUTS["image"].shape(size=(96, 64), channels=3) == (96, 64, 3)
    assert [spec.parse_size(text) for text in ("96", "96x64", "96X64", "64×64")] == [96, (96, 64), (96, 64), 64]
    assert spec.size_text(64) == "64×64" and spec.size_text((96, 64)) == "96×64 (height × width)"
    for text in ("", "0", "x96", "96x", "96x0", "-96", "96x64x3", "9.5", "٩٦", "96\n", "1000000"):
        with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
            spec.parse_size(text)


def test_every_name_of_schema_1_has_a_name_of_today() -> None:
    assert set(spec.SCHEMA_1_OUTPUTS.values()) <= set(spec.UNCERTAINTY_OUTPUTS)
    assert not set(spec.SCHEMA_1_OUTPUTS) & {*spec.CLASSIFIER_OUTPUTS, *spec.UNCERTAINTY_OUTPUTS}
    assert spec.output_name("concentration") == "angle_confidence" and spec.output_name("score") == "score"
    assert set(spec.SCHEMA_1_SCORE_MODES.values()) <= set(spec.SCORE_MODES)
    assert set(spec.ANGLE_OUTPUTS) <= {*spec.CLASSIFIER_OUTPUTS, *spec.UNCERTAINTY_OUTPUTS}


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, vae_edge.spec; print([m for m in ('numpy', 'torch', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
