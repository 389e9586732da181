"""What commands print depends on no terminal, and sends it nothing but text."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_edge.benchmarking.run import BenchmarkResult, BenchmarkRow, BenchmarkSettings, format_table
from vae_edge.cli import main
from vae_edge.cli.console import print_table, safe_streams
from vae_edge.cli.evaluate import MAX_CLASSES_PRINTED, class_lines
from vae_edge.metrics import hides_classes, summarize
from vae_edge.text import terminal

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENVIRONMENTS = {
    "UTF-8": {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
    "C": PLAIN,
    "POSIX": {**PLAIN, "LC_ALL": "POSIX"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
}
HOSTILE = "esc\x1b[2J\x1b]0;title\x07\nline\rback\x9b1m\u202eRTL"


def vae_edge(environment: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vae_edge", *map(os.fsencode, map(str, arguments))],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENTS[environment]},
        capture_output=True,
        check=False,
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with names of all kinds; of each image that is broken the name is printed."""
    folder = tmp_path_factory.mktemp("output") / "bilder für ☃"
    rng = np.random.default_rng(0)
    for name in ("crêpe", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / name / f"{index}.png")
    for name in (HOSTILE, "caf\udce9", "schön"):
        (folder / "dog" / f"{name}.png").write_text("no image")
    return folder


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_json_is_the_same_in_every_locale(pictures: Path, environment: str) -> None:
    done = vae_edge(environment, "data", "show", pictures.name, "--json", cwd=pictures.parent)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.decode("utf-8"))
    assert told["name"] == "bilder für ☃" and told["train"]["by_class"] == {"crêpe": 12, "dog": 12}
    (broken,) = told["left_out"]
    assert broken["reason"] == "broken images" and broken["count"] == 3
    assert [entry["file"] for entry in broken["files"]] == ["dog/caf\\xe9.png", f"dog/{HOSTILE}.png", "dog/schön.png"]
    if environment != "UTF-8":
        assert done.stdout.isascii()


@pytest.mark.parametrize("environment", ["UTF-8", "C", "ascii"])
def test_text_is_printed_in_every_locale_without_a_control_character(pictures: Path, environment: str) -> None:
    done = vae_edge(environment, "data", "show", pictures.name, cwd=pictures.parent)
    assert done.returncode == 0 and done.stderr == b""
    text = done.stdout.decode("utf-8" if environment == "UTF-8" else "ascii")
    assert "dog/caf\\xe9.png" in text and "esc\\x1b[2J\\x1b]0;title\\x07\\nline\\rback\\x9b1m\\u202eRTL.png" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert ("28×28" if environment == "UTF-8" else "28x28") in text


def test_errors_and_usage_print_no_control_character_either(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    for arguments in (
        ("data", "show", HOSTILE),
        ("data", "show", "."),
        ("data", "show", ".", "--strict"),
        ("predict", HOSTILE, "x.png"),
        ("inspect", HOSTILE),
        ("evaluate", HOSTILE, "--data", "."),
        ("inspect", HOSTILE, HOSTILE),  # argparse's own complaint
        ("data", "show", ".", "--fit", HOSTILE),
        ("data", "show", ".", "--size", HOSTILE),
    ):
        try:
            main(arguments)
        except SystemExit as stopped:
            assert stopped.code == 2
        out, err = capsys.readouterr()
        assert "esc" in out + err and "Traceback" not in err
        assert all(letter.isprintable() or letter == "\n" for letter in out + err), (arguments, out, err)
        assert not any(line.startswith("line") for line in (out + err).splitlines())


def test_progress_bars_alone_reach_the_terminal_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", stream)
    with safe_streams():
        print("\x1b[31m é 12°", file=sys.stderr)
        terminal().write("\x1b[2K")
    assert sys.stderr is stream and stream.errors == "strict"
    stream.flush()
    assert stream.buffer.getvalue() == b"\\x1b[31m \\xe9 12 deg\n\x1b[2K"


def test_a_table_takes_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    machine = {"cpu": "[red]CPU", "threads": 1}
    row = BenchmarkRow("openvino", "fp32", 1, 1.0, 1.0, 1.0, 1.0, 1.0, 3, None)
    bundle: Any = SimpleNamespace(name="a\x1b[2J[bold]")
    settings = BenchmarkSettings((1,), 1, 1.0, "given", 1.0)
    result = BenchmarkResult(machine, bundle, settings, None, (row,), (), ())
    with safe_streams():
        print_table(format_table(result))
    out = capsys.readouterr().out
    assert "a\\x1b[2J[bold] on [red]CPU" in out and "\x1b" not in out


def test_closed_standard_output_is_no_traceback(pictures: Path) -> None:
    command = f"{sys.executable} -m vae_edge data show . >&-"
    done = subprocess.run(["bash", "-c", command], cwd=pictures, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# What is printed of classes


def figures(right: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """What `summarize` says where of each class so many of so many images are found."""
    names = list(right)
    labels = np.repeat(np.arange(len(names)), [count for _, count in right.values()])
    hit = np.concatenate([np.arange(count) < found for found, count in right.values()])
    predicted = np.where(hit, labels, (labels + 1) % len(names))
    return summarize(np.eye(len(names))[predicted], labels, names)


def test_a_class_that_is_found_half_the_time_is_printed() -> None:
    told = figures({"common": (400, 400), "rare": (20, 40)})
    assert told["accuracy"] == pytest.approx(0.95455, abs=1e-5) and told["balanced_accuracy"] == 0.75
    assert list(class_lines(told)) == [
        "  balanced     75.00%, the mean over the classes",
        "  by class     rare 50.00% of 40, common 100.00% of 400",
    ]


@pytest.mark.parametrize(
    ("right", "hides"),
    [
        ({"a": (95, 100), "b": (99, 100)}, False),
        ({"a": (95, 100), "b": (145, 150)}, False),
        ({"a": (100, 100), "b": (151, 151)}, True),  # unequal
        ({"a": (75, 100), "b": (95, 100)}, True),  # 10 points below all
        ({"a": (76, 100), "b": (95, 100)}, False),
    ],
)
def test_classes_are_printed_where_they_are_unequal_or_one_is_worse(
    right: dict[str, tuple[int, int]], hides: bool
) -> None:
    assert hides_classes(figures(right)) == bool(list(class_lines(figures(right)))) == hides


def test_of_many_classes_the_worst_are_printed() -> None:
    told = figures({f"c{index:02}": (index + 50, 100) for index in range(50)})
    (_, line) = class_lines(told)
    assert line.count("% of 100") == MAX_CLASSES_PRINTED == 20 and "c00 50.00% of 100" in line
    assert line.endswith("30 more at 70.00% or above")


def test_train_and_evaluate_say_it_and_what_was_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    settings = ("--preset", "tiny", "--epochs", "1", "--rotation", "none", "--holdout", "0.3")
    run = "run\udce9"  # a name that is not UTF-8
    assert main(["train", "--data", str(pictures), *settings, "--out", run, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["run"] == "run\\xe9" and told["left_out"][0]["count"] == 3
    assert {"balanced_accuracy", "accuracy_by_class", "images_by_class"} <= told["validation"].keys()
    assert "broken images: 3 (dog/caf\\xe9.png, dog/esc\\x1b" in err and "\x1b" not in err
    assert main(["evaluate", run, "--data", str(pictures), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["left_out"] == told["left_out"]
    assert measured["balanced_accuracy"] == told["validation"]["balanced_accuracy"]
    for command in ("train", "evaluate"):
        rest = ("--out", "another") if command == "train" else ()
        assert (
            main([command, *([run] if command == "evaluate" else []), "--data", str(pictures), "--strict", *rest]) == 2
        )
        assert "3 files or folders are left out" in capsys.readouterr().err
