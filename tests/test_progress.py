"""A long call is not silent: what is heard by whom, how often, and in which words."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae_edge import progress
from vae_edge.errors import ConfigError
from vae_edge.progress import (
    TrainingLines,
    counting_progress,
    duration_words,
    phase,
    reporting,
    terms_words,
    training_progress,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines_of(clock: list[float], caplog: pytest.LogCaptureFixture, steps: int, per_epoch: int, step_s: float) -> list:
    """(time, line) of a training."""
    caplog.set_level(logging.INFO, "vae_edge")
    lines, found = TrainingLines("training"), []
    for step in range(1, steps + 1):
        caplog.clear()
        terms = {"total": 2.0, "accuracy": 0.5, "epoch": step / per_epoch}
        lines(step, steps, {**terms, "val_accuracy": 0.75} if step % per_epoch == 0 else terms)
        found += [(clock[0] - 100.0, record.getMessage()) for record in caplog.records]
        clock[0] += step_s
    return found


def test_short_epochs_give_a_line_every_ten_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    found = lines_of(clock, caplog, steps=600, per_epoch=20, step_s=0.1)
    times = [when for when, _ in found]
    assert len(found) == 5 and all(
        10 <= later - earlier <= 12.1 for earlier, later in zip([0, *times], times, strict=False)
    )
    assert found[-1][1].startswith("training: epoch 25.") or found[-1][1].startswith(
        "training: epoch 26 of 30: loss 2.000"
    )
    assert "accuracy 50.0%, validation 75.0%" in found[-1][1]


def test_long_runs_give_about_a_hundred_lines_and_one_an_epoch(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    found = lines_of(clock, caplog, steps=2_000, per_epoch=200, step_s=2.0)  # more than an hour
    assert 90 < len(found) <= 111
    assert sum("epoch 3 of 10" in line for _, line in found) == 1


def test_the_time_left_is_that_of_this_runs_steps(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    lines = TrainingLines("training")
    caplog.set_level(logging.INFO, "vae_edge")
    for step in range(901, 1000):  # resumed: the first 900 steps took no time of this process
        lines(step, 1000, {"total": 1.0})
        clock[0] += 1.0
    assert caplog.records[0].getMessage() == "training: step 911 of 1,000: loss 1.000, 89 s left"


def test_what_takes_long_is_said_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.05)
    caplog.set_level(logging.INFO, "vae_edge")
    with phase("counting sheep"):
        assert caplog.records[0].getMessage() == "counting sheep"
        deadline = time.monotonic() + 20
        while len(caplog.records) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "counting sheep: 0 s so far" in caplog.messages
    count = len(caplog.records)
    time.sleep(0.2)
    assert len(caplog.records) == count


SCRIPT = """
import logging, sys
from vae_edge.progress import phase, reporting, training_progress
if "set-up" in sys.argv:
    logging.basicConfig(level=logging.INFO, format="mine: %(message)s")
with reporting(None if "none" in sys.argv else "auto", training_progress("training")) as show:
    with phase("counting sheep"):
        pass
print(logging.getLogger("vae_edge").handlers, logging.getLogger("vae_edge").level)
"""


@pytest.mark.parametrize(
    ("words", "heard"),
    [((), "counting sheep\n"), (("set-up",), "mine: counting sheep\n"), (("none",), "")],
    ids=["no logging", "logging set up", "None"],
)
def test_a_script_without_logging_hears_it_and_one_with_hears_it_once(words: tuple[str, ...], heard: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True)
    assert done.stderr == heard and done.stdout == "[] 0\n"


def test_other_processes_than_the_first_say_nothing() -> None:
    environment = {**os.environ, "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""


def test_another_word_is_refused() -> None:
    shown = training_progress("training")
    with pytest.raises(ConfigError, match='expected "auto"'), reporting("loud", shown):  # type: ignore[arg-type]
        pass


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with training_progress("training") as show:
        for step in range(1, 4):
            show(step, 40, {"total": 0.5, "accuracy": 0.875, "val_accuracy": 0.25, "epoch": step / 4})
    assert "3/40" in stream.getvalue() and "loss 0.500, accuracy 87.5%, validation 25.0%" in stream.getvalue()


def test_counted_work_gives_a_line_every_ten_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vae_edge")
    with counting_progress("generating", "classes") as show:
        for done in range(1, 37):
            clock[0] += 1.0
            show(done, 36)
    assert caplog.messages == [
        "generating: 10 of 36 classes, 26 s left",
        "generating: 20 of 36 classes, 16 s left",
        "generating: 30 of 36 classes, 6 s left",
    ]


def test_words_for_a_person() -> None:
    assert [duration_words(s) for s in (0.4, 99, 150, 5999, 9000)] == [
        "0 s",
        "99 s",
        "2 minutes",
        "100 minutes",
        "2.5 hours",
    ]
    assert terms_words({"total": 1.0}) == "loss 1.000" and terms_words({}) == ""


def test_training_in_python_is_not_silent(tmp_path: Path) -> None:
    """A script sets up no logging: the first sentence comes before the images are read."""
    pytest.importorskip("torch")
    code = (
        "import vae_edge; vae_edge.train('digits', 'run', vae_edge.TrainConfig(epochs=1, holdout=0.8), preset='tiny')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    said = done.stderr.splitlines()
    assert said[0] == "reading the images of digits"  # PyTorch came with `TrainConfig`
    assert any(line.startswith("training tiny on 800") for line in said)
    assert done.stdout == ""
