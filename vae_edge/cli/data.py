"""The commands on data sets: fetch and show."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vae_edge.cli.console import emit
from vae_edge.data.load import left_out_json, left_out_lines


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
    result["left_out"] = left_out_json(dataset.left_out)
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
                yield f"    {part['duplicates']} of them are exact duplicates of another one"
            if part.get("also_in_train"):
                yield f"    {part['also_in_train']} of them are training images too: figures on them are too good"
        if "unlabelled" in result:
            yield f"  unlabelled: {result['unlabelled']['images']} images"
        yield from (f"  {line}" for line in left_out_lines(dataset))

    emit(result, arguments.json, lines)
