"""`vae-edge predict`: classify image files and folders of any size, as text, JSON or CSV, batch by batch."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vae_edge.cli.console import emit, json_writer, percent, say
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import atomic_path, check_file
from vae_edge.listing import LeftOut, find_images, left_out_json, summarize
from vae_edge.progress import counting_progress
from vae_edge.text import json_text

if TYPE_CHECKING:
    from vae_edge.runtime import Classifier, Predictions

MIN_SECOND_PROBABILITY = 0.2  # the probability from which a second angle is printed
MAX_ERRORS_NAMED = 20  # images that are named where none can be read
VAGUE_BELOW = 0.5  # an angle confidence below it is called vague: that of a uniform distribution over 217°
STANDARD_OUTPUT = "-"


@dataclass
class _Found:
    """What the arguments name."""

    files: list[str] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    """Files of folders that are meant to be images and cannot be read, each with the reason."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Everything else in the folders, with whole paths."""


def predict(arguments: argparse.Namespace) -> int:
    """`vae-edge predict`: 0 where all images were read, 1 where some were not, 2 where none was."""
    from vae_edge.runtime import load

    if arguments.csv == STANDARD_OUTPUT and arguments.json:
        raise ConfigError("--csv - and --json both take standard output: name a file for one of them")
    if arguments.csv not in (None, STANDARD_OUTPUT):
        check_file(arguments.csv)
    found = _find(arguments.images)
    with load(
        arguments.bundle,
        arguments.backend,
        arguments.precision,
        arguments.threads,
        device=arguments.device,
        trusted=arguments.trusted,
    ) as classifier:
        read, errors = _run(arguments, classifier, found)
        has_angle, told = classifier.bundle.rotation != "none", classifier.bundle.angle_is_reliable
    if read and has_angle and not told:
        say("angles are left out of the text: held-out images showed that this model's are not to be relied on")
    unread = len(errors) + len(found.lost)
    if found.left_out:
        say(f"left out: {'; '.join(summarize(found.left_out))}")
    if not read:
        every = [*errors, *(error for _, error in found.lost)]
        raise DataError("; ".join(every[:MAX_ERRORS_NAMED]) + ("; …" if unread > MAX_ERRORS_NAMED else ""))
    if unread:
        say(f"{unread} of {read + unread} images cannot be read")
    return 1 if unread else 0


def _find(arguments: Sequence[str]) -> _Found:
    """The files that the arguments name: a folder stands for the images in it."""
    found = _Found()
    for argument in arguments:
        if not os.path.isdir(argument):  # noqa: PTH112 (a Path's raises for a name that is too long)
            found.files.append(argument)
            continue
        inside = find_images(argument)
        found.files += map(str, inside.files)
        lost = set(inside.lost)
        for entry in inside.left_out:
            path = str(Path(argument) / entry.path)
            if entry in lost:
                found.lost.append((path, entry.error or f"{path} is not read: {entry.reason}."))
            else:
                found.left_out.append(LeftOut(path, entry.reason, entry.error))
    return found


def _run(arguments: argparse.Namespace, classifier: Classifier, found: _Found) -> tuple[int, list[str]]:
    """Predict and write. Returns the number of images read, and why others were not."""
    read, errors = 0, list[str]()
    classes: Counter[str] = Counter()
    rejected = 0
    with _writers(arguments, classifier, found) as writers, _progress(arguments) as progress:
        stream = classifier.stream(found.files, arguments.invert, arguments.fit)
        done = 0
        for files, predictions in stream:
            for writer in writers:
                writer.write(files, predictions)
            errors += [str(error) for error in predictions.errors.values()]
            done, read = done + len(files), read + len(files) - len(predictions.errors)
            classes.update(name for name in predictions.names if name)
            rejected += int((~predictions.accepted).sum()) - len(predictions.errors)
            if progress is not None:
                progress(done, len(found.files))
        for writer in writers:
            writer.finish(found)
    if read and arguments.csv not in (None, STANDARD_OUTPUT) and not arguments.json:
        counts = ", ".join(f"{name} {count}" for name, count in classes.most_common())
        line = f"{read} images: {counts}; {rejected} of them UNKNOWN; written to {arguments.csv}"
        emit(None, False, lambda: iter([line]))
    return read, errors


def _progress(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """A bar, unless lines are printed to the same terminal."""
    printed = arguments.csv in (None, STANDARD_OUTPUT) and sys.stdout.isatty()
    return nullcontext() if printed else counting_progress("predicting")


@contextmanager
def _writers(arguments: argparse.Namespace, classifier: Classifier, found: _Found) -> Iterator[list[_Writer]]:
    writers: list[_Writer] = []
    if arguments.json:
        writers.append(_Json(arguments.bundle, classifier, len(found.files)))
    elif arguments.csv is None:
        writers.append(_Lines(classifier.bundle.angle_is_reliable))
    if arguments.csv == STANDARD_OUTPUT:
        with _standard_output() as file:
            yield [*writers, _Csv(file)]
    elif arguments.csv is not None:
        with atomic_path(arguments.csv) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            yield [*writers, _Csv(file)]
    else:
        yield writers


@contextmanager
def _standard_output() -> Iterator[TextIO]:
    """Standard output in UTF-8; a terminal, or what has no bytes behind it, gets printable text."""
    import io

    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None or sys.stdout.isatty():
        yield sys.stdout
        return
    sys.stdout.flush()
    file = io.TextIOWrapper(buffer, encoding="utf-8", newline="", write_through=True)
    try:
        yield file
    finally:
        file.detach()


class _Writer:
    """One form of the output."""

    def write(self, files: Sequence[str], predictions: Predictions) -> None:
        """Add some predictions."""
        raise NotImplementedError

    def finish(self, found: _Found) -> None:
        """Add what was not predicted, and end."""
        raise NotImplementedError


class _Csv(_Writer):
    def __init__(self, file: TextIO) -> None:
        from vae_edge.runtime.table import CsvTable

        self._table = CsvTable(file)

    def write(self, files: Sequence[str], predictions: Predictions) -> None:
        self._table.write(files, predictions)

    def finish(self, found: _Found) -> None:
        for path, error in found.lost:
            self._table.write_unread(path, error)


class _Json(_Writer):
    """One JSON object, whose predictions are written as they come; nothing before the first of them."""

    def __init__(self, bundle: str, classifier: Classifier, count: int) -> None:
        from vae_edge.runtime.classifier import STREAM_BATCH

        backend, precision = classifier.chosen_for(min(count, STREAM_BATCH))
        self._put = json_writer()
        about = {"bundle": bundle, "backend": backend, "precision": precision}
        reliable = {"angle_is_reliable": classifier.bundle.angle_is_reliable}
        head = json_text({**about, **reliable}).removesuffix("\n}")
        self._before = f'{head},\n  "predictions": ['

    def write(self, files: Sequence[str], predictions: Predictions) -> None:
        for path, row in zip(files, predictions.to_dicts(), strict=True):
            if "error" not in row and not predictions.has_angle:  # there is no orientation encoder: 0 would be a claim
                row["angle_deg"] = None
            self._add(path, row)

    def _add(self, path: str, row: dict[str, Any]) -> None:
        text = json_text({"file": path, "image": path, **row}).replace("\n", "\n    ")
        self._put(f"{self._before}\n    {text}")
        self._before = ","

    def finish(self, found: _Found) -> None:
        for path, error in found.lost:
            self._add(path, {"error": error})
        left_out = json_text(left_out_json(found.left_out)).replace("\n", "\n  ")
        self._put(f'{"" if self._before == "," else self._before}\n  ],\n  "left_out": {left_out}\n}}\n')


class _Lines(_Writer):
    """Sentences. Those about unreadable images wait until one is read: without any they are the command's error."""

    def __init__(self, with_angle: bool) -> None:
        self._with_angle = with_angle
        self._waiting: list[str] = []
        self._any_read = False

    def write(self, files: Sequence[str], predictions: Predictions) -> None:
        self._any_read = self._any_read or len(predictions.errors) < len(files)
        self._waiting += _prediction_lines(files, predictions, self._with_angle)
        self._flush()

    def _flush(self) -> None:
        if self._any_read:
            lines, self._waiting = self._waiting, []
            emit(None, False, lambda: iter(lines))

    def finish(self, found: _Found) -> None:
        self._waiting += [f"{path}: ERROR: {error}" for path, error in found.lost]
        self._flush()


def _prediction_lines(images: Sequence[str], predictions: Predictions, with_angle: bool) -> Iterator[str]:
    for k, path in enumerate(images):
        if k in predictions.errors:
            yield f"{path}: ERROR: {predictions.errors[k]}"
            continue
        name, probability = predictions.names[k], float(predictions.probabilities[k].max())
        accepted = "known" if predictions.accepted[k] else "UNKNOWN: unlike anything it was trained on"
        yield (
            f"{path}: {name} ({percent(probability)}), "
            f"{f'rotated {angle_words(predictions, k)}, ' if with_angle else ''}"
            f"score {predictions.scores[k]:.2f} ({accepted})"
        )
        yield f"  {predictions.preprocess_info[k].sentence()}"


def angle_words(predictions: Any, k: int) -> str:
    """The angle, and where it is in doubt the second-best one, or that it is vague."""
    words = f"{round(float(predictions.angles_deg[k])):+d}°"
    if predictions.second_angle_probabilities is None:
        return words
    probability = float(predictions.second_angle_probabilities[k])
    if probability >= MIN_SECOND_PROBABILITY:
        return f"{words} (or {round(float(predictions.second_angles_deg[k])):+d}°, {probability:.0%})"
    return f"{words} (vague)" if predictions.angle_confidences[k] < VAGUE_BELOW else words
