"""Several files to predict, some of which cannot be read: in Python and on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.cli import main
from vae_edge.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two good images, and between them one that is cut off."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("good.png", "truncated.jpg", "good2.jpg")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    return paths


def test_one_bad_file_costs_the_others_nothing(session_bundle: Bundle, files: list[Path], tmp_path: Path) -> None:
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        alone = classifier([files[0], files[2]])
        found = classifier([*files, "", tmp_path, 7], errors="coerce")
        with pytest.raises(DataError, match=r"truncated\.jpg is damaged"):
            classifier(files)
        with pytest.raises(ConfigError, match="errors is one of raise, coerce, but 'ignore' came"):
            classifier(files, errors="ignore")
        assert len(classifier(["nothing.png"], errors="coerce").errors) == 1
    np.testing.assert_array_equal(found.probabilities[[0, 2]], alone.probabilities)
    assert sorted(found.errors) == [1, 3, 4, 5] and all(isinstance(e, DataError) for e in found.errors.values())
    assert found.labels.tolist() == [alone.labels[0], -1, alone.labels[1], -1, -1, -1]
    assert found.names == [alone.names[0], "", alone.names[1], "", "", ""]
    assert np.isnan(found.scores[[1, 3]]).all() and np.isnan(found.angles_deg[1]) and not found.accepted[1]
    rows = found.to_dicts()
    assert rows[1] == {"error": str(found.errors[1])} and rows[2] == alone.to_dicts()[1]
    assert "4 unreadable" in repr(found) and "not read" in found.preprocess_info[1].sentence()


def test_the_error_stands_in_its_place_and_the_exit_code_is_1(
    session_bundle: Bundle, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(session_bundle.path), *map(str, files), "--backend", "onnxruntime"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    heads = [line for line in out.splitlines() if not line.startswith("  ")]
    assert [line.partition(": ")[0] for line in heads] == list(map(str, files))
    assert "ERROR" in heads[1] and "damaged or truncated" in heads[1] and "score" in heads[2]
    assert err == "1 of 3 images cannot be read\n"
    assert main([*arguments, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["file"] for row in rows] == [row["image"] for row in rows] == list(map(str, files))
    assert ["error" in row for row in rows] == [False, True, False] and "name" not in rows[1]
    assert main(["predict", str(session_bundle.path), str(files[0]), "--backend", "onnxruntime"]) == 0


def test_where_none_can_be_read_the_exit_code_is_2(
    session_bundle: Bundle, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    bad = [str(files[1]), str(tmp_path / "pipe.png"), str(tmp_path / "missing.png")]
    for options in ((), ("--json",)):
        assert main(["predict", str(session_bundle.path), *bad, "--backend", "onnxruntime", *options]) == 2
        out, err = capsys.readouterr()
        assert (
            err.startswith("vae-edge: ")
            and err.count("\n") == 1
            and "pipe.png cannot be read as an image: it is a named pipe" in err
        )
        if options:
            assert [row["file"] for row in json.loads(out)["predictions"] if row["error"]] == bad
        else:
            assert out == ""


def test_names_that_are_no_utf8_are_predicted_too(
    session_bundle: Bundle, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = files[0].rename(tmp_path / os.fsdecode(b"caf\xe9\x1b[2J.png"))
    arguments = ["predict", str(session_bundle.path), str(odd), "--backend", "onnxruntime"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "caf\\xe9\\x1b[2J.png: " in text and "\x1b" not in text and "°" in text
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    assert row["file"] == f"{tmp_path}/caf\\xe9\x1b[2J.png"  # JSON's own escape brings the control character back
