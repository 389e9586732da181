"""From the cells' records to rows, differences and one sentence. Differences are paired: one seed on both sides."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vae_edge.training.compare_settings import KINDS, MODELS, Cell

OURS, CONTROL = "angle-vae", "cnn-equal"
Record = Mapping[str, Any]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "by_seed": list(values)}


def summarize_cells(records: Sequence[Record], latency_us: Mapping[str, float]) -> dict[str, Any]:
    """What the table, the plot and the closing sentence show.

    Args:
        records: of finished cells.
        latency_us: median time of one call by the name of the ONNX file.

    Returns:
        `rows` (one for each kind of image, mixture and model: `accuracy` over the seeds, means of what training cost,
        and what a decision costs), `gains` of the angle VAE over the control, `generated_helps` by model, in points of
        a hundred, and `sentence`.
    """
    groups: dict[tuple[str, bool, str], dict[int, Record]] = {}
    for record in records:
        cell = Cell(**record["cell"])
        groups.setdefault((cell.images, cell.generated, cell.model), {})[cell.seed] = record
    order = [key for kind in KINDS for mix in (False, True) for key in [(kind, mix, name) for name in MODELS]]
    rows = [_row(key, groups[key], latency_us) for key in order if key in groups]
    gains, helps = [], []
    for kind in KINDS:
        for mix in (False, True):
            points = _points(groups.get((kind, mix, OURS)), groups.get((kind, mix, CONTROL)))
            if points is not None:
                gains.append({"images": kind, "generated": mix, "of": OURS, "over": CONTROL, "points": points})
        for name in MODELS:
            points = _points(groups.get((kind, True, name)), groups.get((kind, False, name)))
            if points is not None:
                helps.append({"images": kind, "model": name, "points": points})
    return {"rows": rows, "gains": gains, "generated_helps": helps, "sentence": sentence(gains)}


def _row(key: tuple[str, bool, str], by_seed: Mapping[int, Record], latency_us: Mapping[str, float]) -> dict[str, Any]:
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
        "accuracy": spread([record["accuracy"] for record in records]),
        "judged_on": records[0]["images"]["judged_on"],
        "trained_on": records[0]["images"]["trained_on"],
        "images_seen": _mean([record["training"]["images_seen"] for record in records]),
        "wall_seconds": _mean([record["training"]["wall_seconds"] for record in records]),
        "processor_seconds": _mean([record["training"]["processor_seconds"] for record in records]),
        "training_macs": None if None in macs else _mean(macs),
        **costs,
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 3)


def _points(ours: Mapping[int, Record] | None, others: Mapping[int, Record] | None) -> dict[str, Any] | None:
    """Differences of the accuracy in points, seed by seed; None where there is nothing to take them of."""
    seeds = sorted(set(ours or ()) & set(others or ()))
    if ours is None or others is None or not seeds:
        return None
    return spread([100 * (ours[seed]["accuracy"] - others[seed]["accuracy"]) for seed in seeds])


def sentence(gains: Sequence[Mapping[str, Any]]) -> str:
    """What the angle encoder is worth: on turned images over the network of equal size and compute, without others."""
    found = [gain for gain in gains if gain["images"] == "turned" and not gain["generated"]]
    if not found:
        return f"What the angle encoder is worth is not known: that takes {OURS} and {CONTROL} on turned images."
    points = found[0]["points"]
    each = ", ".join(f"{value:+.2f}" for value in points["by_seed"])
    count = len(points["by_seed"])
    what = f"{OURS} over {CONTROL} (as many parameters, as many multiply-accumulates in training)"
    if points["std"] is None:
        return f"On turned images the gain of {what} is {points['mean']:+.2f} points, with a single seed."
    size = (
        f"{points['mean']:+.2f} ± {points['std']:.2f} points (mean and standard deviation over {count} seeds: {each})"
    )
    if min(points["by_seed"]) <= 0 <= max(points["by_seed"]):
        return f"On turned images there is no clear gain of {what}: {size}."
    word = "gain" if points["mean"] > 0 else "loss"
    return f"On turned images the {word} of {what} is {size}."
