"""From records to figures: means over the seeds, differences paired by seed, and one sentence.

A difference between two models is taken seed by seed, on the same images.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_edge.experiments.setup import CONTROL, IMAGE_KINDS, MODELS, OURS, Trial
from vae_edge.experiments.trials import Record, read_record

Key = tuple[str, bool, str]  # kind of images, with generated images, model


def mean_std(values: Sequence[float]) -> dict[str, Any]:
    """`mean`, sample standard deviation `std` (None of a single value) and the values, `by_seed`."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "by_seed": list(values)}


def over_seeds(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`mean_std` of every number that all trees have, in a tree of the same form."""
    result: dict[str, Any] = {}
    for name, first in trees[0].items():
        values = [tree[name] for tree in trees if name in tree]
        if len(values) < len(trees):
            continue
        if isinstance(first, dict):
            result[name] = over_seeds(values)
        elif isinstance(first, (int, float)) and not isinstance(first, bool):
            result[name] = mean_std(values)
    return result


def summarize_trials(records: Sequence[Record], latency_us: Mapping[str, float]) -> dict[str, Any]:
    """What the table, the plot and the closing sentence show.

    Args:
        records: of finished trials.
        latency_us: median time of one call, by the name of the ONNX file.

    Returns:
        `rows`, one for each kind of images, mixture and model: `accuracy` over the seeds, means of what training cost,
        and what a decision costs; `gains` of the angle VAE over the control and `generated_helps` by model, both in
        percentage points; and `sentence`.
    """
    groups: dict[Key, dict[int, Record]] = {}
    for record in records:
        trial = Trial(**record["trial"])
        groups.setdefault((trial.images, trial.generated, trial.model), {})[trial.seed] = record
    order = [(kind, mix, name) for kind in IMAGE_KINDS for mix in (False, True) for name in MODELS]
    rows = [_row(key, groups[key], latency_us) for key in order if key in groups]

    gains, helps = [], []
    for kind in IMAGE_KINDS:
        for mix in (False, True):
            points = _delta_pp(groups.get((kind, mix, OURS)), groups.get((kind, mix, CONTROL)))
            if points is not None:
                gains.append({"images": kind, "generated": mix, "of": OURS, "over": CONTROL, "points": points})
        for name in MODELS:
            points = _delta_pp(groups.get((kind, True, name)), groups.get((kind, False, name)))
            if points is not None:
                helps.append({"images": kind, "model": name, "points": points})
    return {"rows": rows, "gains": gains, "generated_helps": helps, "sentence": sentence(gains)}


def _row(key: Key, by_seed: Mapping[int, Record], latency_us: Mapping[str, float]) -> dict[str, Any]:
    records = [by_seed[seed] for seed in sorted(by_seed)]
    files: dict[str, Any] = next((record["files"] for record in records if record["files"]), {})
    inference = records[0]["inference"]
    costs = {
        part: {
            **inference[part],
            "bytes": files[part]["bytes"] if part in files else None,
            "latency_us": latency_us.get(files[part]["file"]) if part in files else None,
        }
        for part in inference
    }
    macs = [record["training"]["macs"] for record in records]
    return {
        "images": key[0],
        "generated": key[1],
        "model": key[2],
        "seeds": sorted(by_seed),
        "accuracy": mean_std([record["accuracy"] for record in records]),
        "tested_on": records[0]["images"]["tested_on"],
        "trained_on": records[0]["images"]["trained_on"],
        "images_seen": _mean([record["training"]["images_seen"] for record in records]),
        "wall_seconds": _mean([record["training"]["wall_seconds"] for record in records]),
        "processor_seconds": _mean([record["training"]["processor_seconds"] for record in records]),
        "training_macs": None if None in macs else _mean(macs),
        **costs,
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 3)


def _delta_pp(ours: Mapping[int, Record] | None, others: Mapping[int, Record] | None) -> dict[str, Any] | None:
    """Differences of the accuracy in percentage points, seed by seed; None where no seed is in both."""
    seeds = sorted(set(ours or ()) & set(others or ()))
    if ours is None or others is None or not seeds:
        return None
    return mean_std([100 * (ours[seed]["accuracy"] - others[seed]["accuracy"]) for seed in seeds])


def sentence(gains: Sequence[Mapping[str, Any]]) -> str:
    """The gain of the angle encoder: on rotated images, over the control, without generated images."""
    found = [gain for gain in gains if gain["images"] == "rotated" and not gain["generated"]]
    if not found:
        return f"The gain of the angle encoder is not known: that takes {OURS} and {CONTROL} on rotated images."
    points = found[0]["points"]
    each = ", ".join(f"{value:+.2f}" for value in points["by_seed"])
    count = len(points["by_seed"])
    what = f"{OURS} over {CONTROL} (as many parameters, as many multiply-accumulates in training)"
    if points["std"] is None:
        return f"On rotated images the gain of {what} is {points['mean']:+.2f} points, with a single seed."
    size = (
        f"{points['mean']:+.2f} ± {points['std']:.2f} points (mean and standard deviation over {count} seeds: {each})"
    )
    if min(points["by_seed"]) <= 0 <= max(points["by_seed"]):
        return f"On rotated images there is no clear gain of {what}: {size}."
    word = "gain" if points["mean"] > 0 else "loss"
    return f"On rotated images the {word} of {what} is {size}."


def read_comparison(path: Path) -> dict[str, Any]:
    """A `compare.json`, also of schema 1, for `vae_edge.report.comparison`.

    Raises:
        CheckpointError: if it is damaged, or of another version.
    """
    result = read_record(path)
    return {**result, "sentence": sentence(result["gains"])}
