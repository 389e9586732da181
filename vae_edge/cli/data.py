"""The commands on data sets, fetch and show; and how every command opens one and says what of it is not used."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vae_edge.cli.console import emit, say

NAMED = 20  # broken images that are named on the console, each with what is wrong
LISTED = 1000  # files of each reason that are listed in JSON


def open_data(arguments: argparse.Namespace, prepared_as: Any = None) -> Any:
    """The data set that `--data` names, read as the options say, or as a run's or bundle's input `prepared_as`.

    What is left out of it is said on standard error. Its notes are said too where it is not trained on, which says them
    itself.

    Raises:
        DataError: as `load_dataset`; something is left out, with `--strict`.
    """
    from vae_edge.data import load_dataset

    chosen = {name: value for name in ("size", "channels", "fit") if (value := getattr(arguments, name, None))}
    if prepared_as is not None:
        chosen = {"prepared_as": prepared_as}
    dataset = load_dataset(arguments.data, strict=arguments.strict, **chosen)
    for line in (*(dataset.notes if prepared_as is not None else ()), *left_out_lines(dataset)):
        say(line)
    return dataset


def left_out_lines(dataset: Any) -> Iterator[str]:
    """What is left out of a data set, by reason, with the first names; of broken images what is wrong with each."""
    from vae_edge.data.folder import BROKEN, summarize

    if not dataset.left_out:
        return
    yield f"left out of {dataset.source} (with --strict this is an error):"
    for phrase in summarize(dataset.left_out):
        yield f"  {phrase}"
        if phrase.startswith(BROKEN):
            broken = [entry.error for entry in dataset.left_out if entry.reason == BROKEN]
            yield from (f"    {error}" for error in broken[:NAMED])
            if len(broken) > NAMED:
                yield f"    and {len(broken) - NAMED} more (vae-edge data show --json lists up to {LISTED})"


def left_out_json(dataset: Any) -> list[dict[str, Any]]:
    """The same for JSON: a list of reasons, each with its count and files; broken ones with what is wrong."""
    by_reason: dict[str, list[Any]] = {}
    for entry in dataset.left_out:
        by_reason.setdefault(entry.reason, []).append(entry)
    return [
        {
            "reason": reason,
            "count": len(entries),
            "files": [
                {"file": entry.path, **({"error": entry.error} if entry.error else {})} for entry in entries[:LISTED]
            ],
        }
        for reason, entries in by_reason.items()
    ]


def fetch(arguments: argparse.Namespace) -> None:
    """`vae-edge data fetch`."""
    from vae_edge.data import fetch_dataset

    folder = arguments.out or os.environ.get("VAE_EDGE_DATA") or "data"
    path = fetch_dataset(arguments.name, folder, base_url=arguments.base_url)
    result = {"data": arguments.name, "path": str(path)}
    emit(result, arguments.json, lambda: iter([f"{arguments.name} is in {path}: vae-edge train --data {path} …"]))


def show(arguments: argparse.Namespace) -> None:
    """`vae-edge data show`."""
    from vae_edge.data import count_duplicates, load_dataset
    from vae_edge.data.splits import duplicates_of
    from vae_edge.data.transforms import contact_sheet
    from vae_edge.files import atomic_path

    dataset = load_dataset(arguments.data, arguments.size, arguments.channels, arguments.fit, strict=arguments.strict)
    splits = {name: split for name, split in (("train", dataset.train), ("test", dataset.test)) if split is not None}
    result: dict[str, Any] = {"name": dataset.name, "source": dataset.source, "classes": list(dataset.classes)}
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(split.classes))
        result[name] = {
            "images": len(split),
            "shape": list(split.images.shape[1:]),
            "by_class": dict(zip(split.classes, counts.tolist(), strict=True)),
            "duplicates": count_duplicates(split),
        }
    if dataset.unlabelled is not None:
        result["unlabelled"] = {"images": len(dataset.unlabelled)}
    if dataset.train is not None and dataset.test is not None:
        result["test"]["also_in_train"] = int(duplicates_of(dataset.test.images, dataset.train.images).sum())
    if dataset.input is not None:
        result["prepared"] = {"fit": dataset.input.fit, "depth": dataset.input.depth, "notes": list(dataset.notes)}
    result["left_out"] = left_out_json(dataset)
    if arguments.contact_sheet:
        with atomic_path(arguments.contact_sheet) as temporary:
            contact_sheet(next(iter(splits.values()))).save(temporary, "PNG")
        result["contact_sheet"] = arguments.contact_sheet

    def lines() -> Iterator[str]:
        yield f"{dataset.name} ({dataset.source})"
        yield from (f"  {note}" for note in dataset.notes)
        for name in splits:
            part = result[name]
            yield f"  {name}: {part['images']} images of {'×'.join(map(str, part['shape']))}"
            yield "    " + ", ".join(f"{label} {count}" for label, count in part["by_class"].items())
            if part["duplicates"]:
                yield f"    {part['duplicates']} of them repeat another one pixel by pixel"
            if part.get("also_in_train"):
                yield f"    {part['also_in_train']} of them are training images too: figures on them are too good"
        if "unlabelled" in result:
            yield f"  unlabelled: {result['unlabelled']['images']} images"
        yield from (f"  {line}" for line in left_out_lines(dataset))

    emit(result, arguments.json, lines)
