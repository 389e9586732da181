"""The shared contract: its shapes, the names of schema 1, and that it costs nothing to import."""

from __future__ import annotations

import subprocess
import sys

from vae_edge import spec


def test_shapes_are_those_of_the_model() -> None:
    sizes = {"size": 28, "channels": 3, "classes": 10}
    assert spec.INPUTS["image"].shape(**sizes) == (28, 28, 3)
    assert [output.shape(**sizes) for output in spec.CLASSIFIER_OUTPUTS.values()] == [(10,), (), ()]
    assert [output.shape(**sizes) for output in spec.UNCERTAINTY_OUTPUTS.values()] == [(), (), ()]
    assert spec.RECONSTRUCTION_OUTPUTS["reconstruction"].shape(**sizes) == (28, 28, 3)


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
