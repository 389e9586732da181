"""Gathers what the report shows: the bundle's own predictions on held-out images, through the runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.report import Calibration, ReportData, SampleSet

SAMPLES, MISTAKES, GENERATED, UNKNOWN = 24, 12, 16, 1000


def collect(
    run: Path,
    bundle: Path,
    held: Any,
    data_name: str,
    split: str,
    benchmark: dict[str, Any],
    seed: int,
    more_facts: dict[str, str] | None = None,
) -> ReportData:
    """Everything on the page, measured with the bundle's fp32 model but for the rows by precision.

    `more_facts` are shown beside the model's and the machine's.
    """
    from vae_edge.bundle import load_bundle
    from vae_edge.data import rotate_dataset, rotation_range
    from vae_edge.metrics import wrap_degrees
    from vae_edge.runtime import load
    from vae_edge.training.checkpoint import load_checkpoint, load_samples
    from vae_edge.training.visualize import derotate, sample_per_class

    checkpoint = load_checkpoint(run)
    opened = load_bundle(bundle)
    turned = rotate_dataset(held, rotation_range(str(opened.rotation)), seed + 1, opened.input.fill)
    assert turned.angles_deg is not None
    there = dict.fromkeys(entry.precision for entry in opened.select("classifier", "onnx"))
    by_precision = [_row(bundle, precision, turned, held, opened) for precision in there]
    with load(bundle, precision="fp32") as classifier:
        predictions = classifier(turned.images, color="rgb")
        reconstructions = classifier.reconstruct(turned.images)
        unknown = _unknown(classifier, turned.images[:UNKNOWN], seed)
    predicted = np.asarray(predictions.labels)
    has_angle = predictions.second_angles_deg is not None
    drawn = sample_per_class(
        checkpoint.model,
        opened.classes,
        GENERATED,
        load_samples(run),
        checkpoint.config.data.absent,
        seed=seed,
    )
    temperature = float(checkpoint.model.temperature)
    everything = SampleSet(
        turned.images,
        reconstructions,
        [held.classes[k] for k in turned.labels],
        list(predictions.names),
        predictions.probabilities.max(1),
        turned.angles_deg,
        predictions.angles_deg,
        predictions.scores,
        predictions.accepted,
        derotate(checkpoint.model, turned.images, predictions.angles_deg) if has_angle else None,
        predictions.second_angles_deg,
        predictions.second_angle_probabilities,
    )
    rng = np.random.default_rng(seed)
    wrong = np.flatnonzero(predicted != turned.labels)
    worst = wrong[np.argsort(-everything.probabilities[wrong])][:MISTAKES]
    fp32 = next(row for row in by_precision if row["precision"] == "fp32")
    return ReportData(
        title="VAE Edge: what this classifier can do",
        classes=opened.classes,
        evaluation={**fp32["evaluation"], "data": data_name, "split": split, "rotation": str(opened.rotation)},
        samples=_pick(everything, rng.permutation(len(predicted))[:SAMPLES]),
        mistakes=_pick(everything, worst),
        generated=drawn.images,
        not_generated=drawn.missing,
        calibration=Calibration(
            predictions.probabilities,
            _without_temperature(predictions.probabilities, temperature),
            turned.labels,
            temperature,
        ),
        angle_errors_deg=np.abs(wrap_degrees(predictions.angles_deg - turned.angles_deg)),
        known_scores=predictions.scores,
        unknown_scores=unknown,
        auroc=_areas(predictions.scores, unknown),
        threshold=opened.threshold,
        precisions=[{key: value for key, value in row.items() if key != "evaluation"} for row in by_precision],
        benchmark=benchmark,
        training=_log(run),
        facts={**_facts(checkpoint, benchmark), **(more_facts or {})},
    )


def _row(bundle: Path, precision: str, turned: Any, upright: Any, opened: Any) -> dict[str, Any]:
    """Accuracy of one precision, through the runtime, on the turned and on the upright images."""
    from vae_edge.runtime import load
    from vae_edge.training.evaluate import arrays, evaluate

    with load(bundle, precision=precision) as classifier:

        def run(images: Any) -> Any:
            return arrays(classifier(images, color="rgb"))

        about = (opened.classes, classifier.threshold, 0.0)
        ambiguous = opened.manifest["data"].get("ambiguous", ())
        figures = evaluate(run, turned, *about, ambiguous=ambiguous)
        figures["upright"] = evaluate(run, upright, *about)
    return {
        "precision": precision,
        "bytes": classifier.entry.bytes,
        "accuracy": figures["accuracy"],
        "upright_accuracy": figures["upright"]["accuracy"],
        "accepted": figures["accepted"],
        "evaluation": figures,
    }


def _unknown(classifier: Any, images: Any, seed: int) -> dict[str, Any]:
    from vae_edge.data.transforms import OOD_KINDS, make_ood_images

    return {kind: classifier(make_ood_images(images, kind, seed), color="rgb").scores for kind in OOD_KINDS}


def _without_temperature(probabilities: Any, temperature: float) -> Any:
    """What the softmax of the raw logits gives: p ∝ exp(z / T), so that p^T ∝ exp(z)."""
    raw = np.asarray(probabilities, np.float64) ** temperature
    return raw / raw.sum(1, keepdims=True)


def _areas(known: Any, unknown: dict[str, Any]) -> dict[str, float]:
    from vae_edge.metrics import auroc

    return {kind: round(auroc(known, scores), 4) for kind, scores in unknown.items()}


def _pick(samples: SampleSet, chosen: Any) -> SampleSet:
    picked: dict[str, Any] = {
        name: [value[k] for k in chosen] if isinstance(value, list) else None if value is None else value[chosen]
        for name, value in vars(samples).items()
    }
    return SampleSet(**picked)


def _log(run: Path) -> list[dict[str, float]]:
    from vae_edge.training.checkpoint import read_log

    return read_log(run)


def _facts(checkpoint: Any, benchmark: dict[str, Any]) -> dict[str, Any]:
    from vae_edge import __version__

    config = checkpoint.config
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    return {
        "model": f"{config.model.preset}, {parameters:,} parameters with the decoder",
        "trained on": f"{config.data.trained_on:,} images",
        "steps": f"{checkpoint.result.step:,}, seed {config.training.seed}",
        "machine": f"{benchmark['machine']['cpu']}, {benchmark['machine']['available_cpus']} cores",
        "versions": f"vae-edge {__version__}, Python {sys.version.split()[0]}, "
        + ", ".join(f"{name} {version}" for name, version in benchmark["machine"]["versions"].items() if version),
        "date": benchmark["machine"]["date"],
    }
