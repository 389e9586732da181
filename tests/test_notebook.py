"""The notebook of the documents runs as it stands, in an empty folder and without Jupyter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/notebooks/folder_to_bundle.ipynb"


def cells(kind: str) -> list[str]:
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_outputs_so_that_none_can_be_out_of_date() -> None:
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert stored["nbformat"] == 4 and len({cell["id"] for cell in stored["cells"]}) == len(stored["cells"]) > 10
    for cell in stored["cells"]:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    for source in cells("code"):
        ast.parse(source)
        assert all(len(line) <= 120 for line in source.splitlines())


@pytest.mark.slow
def test_every_cell_runs_from_a_folder_to_predictions(tmp_path: Path) -> None:
    """It ends with an assertion on the accuracy; here 100 files that were not trained on are counted too."""
    pytest.importorskip("torch")
    code = "\n".join(cells("code"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if "new images are right" in line]
    right, _, total = line.split()[:3]
    assert int(total) == 100 and int(right) > 60, line
    assert "reading the images of photos" in done.stderr and (tmp_path / "photos.bundle/manifest.json").is_file()
