import math
import re
import statistics

import pytest

from vae_edge.experiments.trials import over_seeds, summarize_trials


def fake(model: str, seed: int, accuracy: float, generated: bool = False) -> dict:
    trial = {"model": model, "images": "rotated", "generated": generated, "seed": seed}
    training = {"wall_seconds": 2.0 + seed, "processor_seconds": 3.0, "images_seen": 10, "macs": 5.0}
    decision = {"parameters": 3, "macs": 4}
    images = {"tested_on": 100, "trained_on": 50}
    files = {"decision": {"file": f"{model}.onnx", "bytes": 2048}} if seed == 0 else {}
    common = {"images": images, "training": training, "inference": {"decision": decision}, "files": files}
    return {"trial": trial, "accuracy": accuracy, **common}


def test_the_gain_is_paired_by_seed():
    ours, theirs = [0.98, 0.99, 0.985], [0.97, 0.985, 0.97]
    records = [fake("angle-vae", k, a) for k, a in enumerate(ours)]
    records += [fake("cnn-equal", k, a) for k, a in enumerate(theirs)]
    result = summarize_trials(records[::-1], {"angle-vae.onnx": 12.5})
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    (gain,) = result["gains"]
    assert gain["points"]["by_seed"] == pytest.approx(points)
    assert gain["points"]["std"] == pytest.approx(statistics.stdev(points))
    row = next(row for row in result["rows"] if row["model"] == "angle-vae")
    assert row["accuracy"]["std"] == pytest.approx(statistics.stdev(ours)) and row["wall_seconds"] == 3.0
    assert row["decision"] == {"parameters": 3, "macs": 4, "bytes": 2048, "latency_us": 12.5}
    mean, deviation = statistics.fmean(points), statistics.stdev(points)
    assert "the gain of angle-vae over cnn-equal" in result["sentence"]
    assert f"{mean:+.2f} ± {deviation:.2f} points" in result["sentence"] and "3 seeds" in result["sentence"]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [((0.99, 0.97), "no clear gain"), ((0.99, 0.995), "the loss of"), ((0.9,), r"\+8\.00 points, with a single seed")],
)
def test_the_sentence_claims_no_more_than_the_figures_do(theirs: tuple[float, ...], words: str):
    records = [fake("cnn-equal", k, a) for k, a in enumerate(theirs)]
    records += [fake("angle-vae", k, 0.98) for k in range(len(theirs))]
    assert re.search(words, summarize_trials(records, {})["sentence"])
    assert "not known" in summarize_trials(records[:1], {})["sentence"]


def test_what_generated_images_change_is_paired_too():
    records = [fake("cnn", 0, 0.9), fake("cnn", 1, 0.8), fake("cnn", 0, 0.91, True), fake("cnn", 1, 0.82, True)]
    (helps,) = summarize_trials(records, {})["generated_helps"]
    assert helps["points"]["by_seed"] == pytest.approx([1.0, 2.0])


def test_figures_over_seeds_are_means_and_sample_deviations() -> None:
    trees = [{"a": {"b": 1.0, "only here": 3}, "name": "x", "list": [1]}, {"a": {"b": 2.0}, "name": "y", "list": []}]
    (trees[0]["flag"], trees[1]["flag"]) = True, False
    assert over_seeds(trees) == {"a": {"b": {"mean": 1.5, "std": pytest.approx(math.sqrt(0.5)), "by_seed": [1, 2]}}}
    assert over_seeds(trees[:1])["a"]["b"] == {"mean": 1.0, "std": None, "by_seed": [1.0]}
