"""The Python API: `vae_edge.train`, `export`, ... are typed, documented, lazy, and what the command line calls."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import vae_edge
from vae_edge import api
from vae_edge.errors import BundleError, CheckpointError, ConfigError
from vae_edge.trained import Evaluation

FUNCTIONS = (
    "load",
    "verify",
    "train",
    "evaluate",
    "write_report",
    "set_threshold",
    "generate",
    "export",
    "quantize",
    "build_engine",
    "write_kit",
    "add_result",
    "benchmark",
    "quickstart",
)
PACKAGE = Path(vae_edge.__file__).parent


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_documented_and_typed(name: str) -> None:
    function = getattr(vae_edge, name)
    assert callable(function) and name in vae_edge.__all__
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    assert "Args:" in text and "Raises:" in text
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert parameter.name in text, parameter
    assert signature.return_annotation is not inspect.Signature.empty


def test_functions_are_not_hidden_by_packages_of_nearly_the_same_name() -> None:
    import vae_edge.benchmarking.run
    import vae_edge.exporting.bundle
    import vae_edge.training.trainer

    assert all(inspect.isfunction(getattr(vae_edge, name)) for name in FUNCTIONS)
    assert not {path.stem for path in PACKAGE.iterdir()} & set(FUNCTIONS)


def test_importing_the_api_imports_nothing_heavy() -> None:
    code = "import sys, vae_edge.api; print([m for m in ('torch', 'onnx', 'triton', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_results_are_frozen_dataclasses_that_become_json(tmp_path: Path) -> None:
    generated = api.Generated(tmp_path / "new", 3, tmp_path / "new" / "contact_sheet.png")
    assert json.loads(json.dumps(generated.to_json()))["images"] == 3
    for result in (api.TrainedRun, Evaluation, api.Generated, api.Exported, api.Quantized):
        assert dataclasses.is_dataclass(result) and result.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert get_type_hints(result.to_json)["return"] is not None


def test_what_can_be_refused_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file: give a folder"):
        vae_edge.train("digits", tmp_path / "file")
    with pytest.raises(ConfigError, match="tiny, small, base"):
        vae_edge.train("digits", tmp_path / "run", preset="huge")
    with pytest.raises(CheckpointError):
        vae_edge.generate(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(BundleError):
        vae_edge.quantize(tmp_path / "nowhere", "int8", "digits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_no_namespace_travels_below_the_command_line() -> None:
    """`argparse` is for the command line, and for modules that are programs of their own."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "argparse" in {getattr(node, "module", None), *(alias.name for alias in node.names)}
    }
    assert users <= {"benchmarking/measure.py", "kit/device.py"}
