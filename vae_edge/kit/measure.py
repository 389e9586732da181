"""What a kit measures of an engine on its device: accuracy on the kit's images, latency; and tables in plain ASCII."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle
from vae_edge.errors import DataError
from vae_edge.kit.description import HeldOut
from vae_edge.metrics import summarize, wilson_interval
from vae_edge.runtime import Classifier

BATCH = 64


def evaluate(classifier: Classifier, held_out: HeldOut, bundle: Bundle) -> dict[str, Any]:
    """Accuracy, angle error and acceptance of a classifier on labelled images, as `vae_edge.metrics.summarize`.

    Raises:
        DataError: the images or labels are not the model's.
    """
    spec = bundle.input
    if held_out.images.shape[1:] != spec.shape or held_out.labels.max() >= len(bundle.classes):
        raise DataError(
            f"The kit's images are {list(held_out.images.shape)} with labels up to {held_out.labels.max()}, but the "
            f"model takes [N, {', '.join(map(str, spec.shape))}] and has {len(bundle.classes)} classes."
        )
    parts = [
        classifier(held_out.images[start : start + BATCH], color="rgb") for start in range(0, len(held_out), BATCH)
    ]

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    has_angle = bundle.rotation != "none"
    true_deg = held_out.angles_deg
    if true_deg is None and has_angle:
        true_deg = np.zeros(len(held_out), np.float32)
    return summarize(
        joined("probabilities"),
        held_out.labels,
        bundle.classes,
        joined("angles_deg") if has_angle else None,
        true_deg if has_angle else None,
        joined("scores"),
        classifier.threshold,
        bundle.ambiguous,
        *((joined("second_angles_deg"), joined("angle_confidences")) if has_angle else ()),
    )


def compared(figures: Mapping[str, Any], at_home: Mapping[str, Any] | None) -> bool | None:
    """Whether an accuracy on the device lies within the 95% interval of that at home, on the same images; None if
    there is none to compare with."""
    if at_home is None:
        return None
    n = int(at_home["n"])
    low, high = wilson_interval(round(at_home["accuracy"] * n), n)
    return bool(low <= figures["accuracy"] <= high)


def accuracy_rows(figures: Mapping[str, Mapping[str, Any]], at_home: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of accuracy, angle error and acceptance, under their headings: the device's, and those at home."""
    rows: list[tuple[str, ...]] = [("precision", "where", "images", "accuracy", "angle error, median", "accepted")]
    for precision, found in figures.items():
        rows.append((precision, "here", *_figures(found)))
        if precision in at_home:
            rows.append((precision, "at home", *_figures(at_home[precision])))
    return rows


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    angle = found.get("angle_error_deg")
    return (
        str(found.get("n", "?")),
        f"{100 * found['accuracy']:.2f}%" if "accuracy" in found else "?",
        f"{angle['median']:.1f} deg" if angle else "-",
        f"{100 * found['accepted']:.1f}%" if "accepted" in found else "-",
    )


def latency_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of latencies under their headings, from a benchmark's `results`."""
    rows: list[tuple[str, ...]] = [("precision", "batch", "p50 us", "p90 us", "p99 us", "images/s")]
    for each in sorted(results, key=lambda row: (row["precision"], row["batch"])):
        times = (f"{each[name]:.1f}" for name in ("p50_us", "p90_us", "p99_us"))
        rows.append((each["precision"], str(each["batch"]), *times, f"{each['images_per_s']:.0f}"))
    return rows


def ascii_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in plain ASCII; the first row is its heading."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield line.encode("ascii", "replace").decode()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
