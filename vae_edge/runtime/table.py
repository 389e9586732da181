"""Predictions as a table in CSV: a row for each image, in UTF-8.

| column | value |
|---|---|
| `file` | the image's path, as it was given or found |
| `class` | the name of the most probable class |
| `probability` | its probability, 0 to 1 |
| `accepted` | `true` or `false`: whether the score is at most the threshold |
| `score` | the anomaly score; higher is more anomalous |
| `angle_deg` | degrees counter-clockwise as displayed, upright is 0; empty if the model was not trained on rotated images, like the next three |
| `angle_confidence` | 0 any angle, 1 certain |
| `second_angle_deg` | the second most probable angle |
| `second_angle_probability` | its probability |
| `error` | why the image could not be read; then all but `file` is empty |

Numbers are the shortest that read back as the same float32. Values with commas, quotes or line breaks stand in quotes
(RFC 4180); lines end in a line feed. A byte of a name that is not UTF-8 is written as `\\xe9`.
"""  # noqa: E501

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from vae_edge.files import atomic_path
from vae_edge.runtime.predictions import Predictions
from vae_edge.text import encodable

COLUMNS = (
    *("file", "class", "probability", "accepted", "score"),
    *("angle_deg", "angle_confidence", "second_angle_deg", "second_angle_probability", "error"),
)


class CsvTable:
    """Writes the table, batch by batch."""

    def __init__(self, file: TextIO) -> None:
        """Write the line of column names. `file` is opened with `newline=""`."""
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, files: Sequence[Any], predictions: Predictions) -> None:
        """Add a row for each prediction; `files` names their images."""
        self._rows.writerows(_row(str(name), predictions, k) for k, name in enumerate(files))

    def write_unread(self, file: str, error: str) -> None:
        """Add the row of an image that was not tried."""
        self._rows.writerow((encodable(file), *[""] * (len(COLUMNS) - 2), encodable(error)))


def write_csv(path: str | os.PathLike[str], stream: Iterable[tuple[Sequence[Any], Predictions]]) -> int:
    """Write what `Classifier.stream` gives as a table, as it comes.

        vae_edge.write_csv("photographs.csv", classifier.stream("photographs"))

    Returns:
        the number of rows.

    Raises:
        OSError: the file cannot be written.
        BackendError: as of the stream.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = CsvTable(file)
        for files, predictions in stream:
            table.write(files, predictions)
            count += len(predictions)
    return count


def _row(name: str, predictions: Predictions, k: int) -> tuple[str, ...]:
    if k in predictions.errors:
        return (encodable(name), *[""] * (len(COLUMNS) - 2), encodable(str(predictions.errors[k])))
    label = int(predictions.labels[k])
    angle = predictions.angles_deg if predictions.has_angle else None
    uncertainty = predictions.angle_confidences, predictions.second_angles_deg, predictions.second_angle_probabilities
    return (
        encodable(name),
        encodable(predictions.classes[label]),
        str(predictions.probabilities[k, label]),
        "true" if predictions.accepted[k] else "false",
        str(predictions.scores[k]),
        *("" if values is None or angle is None else str(values[k]) for values in (angle, *uncertainty)),
        "",
    )
