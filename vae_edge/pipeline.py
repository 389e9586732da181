"""From a data set to a verified bundle and a report in one call: train, export, quantize, benchmark, report.

It can be called again after it was stopped: training goes on where it was, and a finished result is not made again.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge import api
from vae_edge.files import read_json
from vae_edge.report import Calibration, ReportData, SampleSet

if TYPE_CHECKING:
    from vae_edge.bundle import Bundle
    from vae_edge.data import Dataset, LabelledImages
    from vae_edge.runtime import Classifier
    from vae_edge.training.checkpoint import Checkpoint

TrainingBar = Callable[[], AbstractContextManager[Any]]
BenchmarkBar = Callable[[], AbstractContextManager[Any]]

log = logging.getLogger(__name__)

MAX_IMAGES_SHOWN = 170_000  # shown in training, where there is the time
MIN_IMAGES_SHOWN = 60_000  # and where there is not
TRAINING_S = 110.0  # seconds that training may take, if fewer images do
MIN_EPOCHS, MAX_EPOCHS = 3, 80
BENCHMARK_S = 15.0
PRECISIONS = ("fp32", "fp16", "int8")
RESULT = "quickstart.json"
CHOICE = "epochs.json"  # how many epochs were chosen, and why
SAMPLES, MISTAKES, GENERATED, UNKNOWN = 24, 12, 16, 1000


@dataclass(frozen=True)
class QuickstartResult:
    """What a quickstart made, and how good it is."""

    report: Path
    bundle: Path
    run: Path
    asked: Mapping[str, Any]
    """Preset, epochs, seed, version and fingerprint of the data: the same call is not done twice."""
    trained_for: str
    accuracy: float
    """On held-out images, rotated by any angle; fp32."""
    upright_accuracy: float
    angle_error_deg: Mapping[str, Any]
    precisions: Sequence[Mapping[str, Any]]
    """`precision`, `bytes`, `accuracy`, `upright_accuracy`, `accepted` of each."""
    auroc: Mapping[str, float]
    """Of the anomaly score, by kind of synthetic OOD images."""
    seconds: float
    """Of all calls together."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "report": str(self.report), "bundle": str(self.bundle), "run": str(self.run)}


def quickstart(
    data: api.Data = "digits",
    out: str | os.PathLike[str] = "runs/quickstart",
    *,
    preset: str = "small",
    epochs: int | None = None,
    seed: int = 0,
    strict: bool = False,
    cache: bool = True,
    training_progress: TrainingBar = nullcontext,
    benchmark_progress: BenchmarkBar = nullcontext,
) -> QuickstartResult:
    """Train, export, quantize, benchmark and report; the result of an earlier call of the same kind is taken as it is.

    Args:
        data: as `vae_edge.train`.
        out: folder that gets `run`, `bundle`, `report.html`, `bench.json`, `evaluation.json` and `quickstart.json`.
        preset: `tiny`, `small`, `base` or `large`.
        epochs: passes over the training images; None is what shows about 170,000 images, or as many as this machine
            trains on in about two minutes.
        seed: fixes every random number.
        strict: refuse a folder of which anything is left out.
        cache: as `vae_edge.train`.
        training_progress: gives a context whose value is called with (step, steps, loss terms), or is None.
        benchmark_progress: the same with (what is going on, fraction done).

    Raises:
        CheckpointError: `out` holds a run of other settings.
        and what `train`, `export`, `quantize` and `benchmark` raise.
    """
    from vae_edge import __version__
    from vae_edge.files import write_json
    from vae_edge.model import create_config
    from vae_edge.training.distributed import use_threads

    out = api.check_folder(out)
    create_config(preset)  # or refuse, before the images are read
    use_threads()
    began = time.monotonic()
    dataset = api.open_data(data, strict=strict, cache=cache)
    asked = {"preset": preset, "epochs": epochs, "seed": seed, "version": __version__, "data": dataset.fingerprint()}
    before = _load_result(out)
    if before is not None and before.asked == asked and _is_bundle_whole(out / "bundle"):
        log.info("%s holds the result of the same run already; remove the folder to do it again", out)
        return before

    earlier_s = _seconds_trained(out / "run")
    _train(dataset, out, preset, epochs, seed, training_progress)
    _export(dataset, out, seed)
    log.info("measuring latency and memory")
    with benchmark_progress() as progress:
        benchmark = _benchmark(out, progress)
    data_of_report = _report(dataset, out, benchmark, seed)

    evaluation = data_of_report.evaluation
    result = QuickstartResult(
        report=out / "report.html",
        bundle=out / "bundle",
        run=out / "run",
        asked=asked,
        trained_for=_describe_training(out),
        accuracy=evaluation["accuracy"],
        upright_accuracy=evaluation["upright"]["accuracy"],
        angle_error_deg=evaluation["angle_error_deg"],
        precisions=list(data_of_report.precisions),
        auroc=dict(data_of_report.auroc),
        seconds=round(earlier_s + time.monotonic() - began, 1),
    )
    write_json(out / RESULT, result.to_json())
    return result


def _load_result(out: Path) -> QuickstartResult | None:
    """The result of an earlier call whose report is still there; None where there is none, or it is damaged."""
    if not (out / RESULT).is_file() or not (out / "report.html").is_file():
        return None
    try:
        stored: dict[str, Any] = dict(read_json(out / RESULT))
        stored |= {name: Path(stored[name]) for name in ("report", "bundle", "run")}
        return QuickstartResult(**stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("%s is damaged (%s); everything but the training is done again", out / RESULT, error)
        return None


def _is_bundle_whole(path: Path) -> bool:
    from vae_edge.bundle import load_bundle
    from vae_edge.errors import BundleError

    try:
        present = {model.precision for model in load_bundle(path).models}
    except BundleError as error:
        log.info("the bundle is made again: %s", error)
        return False
    return set(PRECISIONS) <= present


def _seconds_trained(run: Path) -> float:
    """Seconds of training that an earlier call, which was stopped, has put into the run."""
    from vae_edge.training.checkpoint import LOG, read_log

    lines = read_log(run) if (run / LOG).exists() else []
    return float(lines[-1]["seconds"]) if lines else 0.0


# ------------------------------------------------------------------------------------------------------- steps


def _train(
    dataset: Dataset, out: Path, preset: str, epochs: int | None, seed: int, training_progress: TrainingBar
) -> None:
    from vae_edge.errors import CheckpointError
    from vae_edge.training.checkpoint import CONFIG, MODEL, load_checkpoint, read_config
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.trainer import Interrupted

    run = out / "run"
    began = (run / CONFIG).is_file()
    if epochs is None and dataset.train is not None:  # what an earlier call chose is kept
        epochs = read_config(run).training.epochs if began else _choose_epochs(dataset, out, preset, seed)
    if (run / MODEL).is_file():
        config = load_checkpoint(run).config
        wanted = (preset, epochs, seed, dataset.fingerprint())
        if (config.model.preset, config.training.epochs, config.training.seed, config.data.fingerprint) == wanted:
            log.info("%s holds the trained model already", run)
            return
        raise CheckpointError(f"{run} holds a model that was trained with other settings; choose another --out")
    training = TrainConfig(rotation="full", seed=seed, epochs=epochs)
    try:
        with training_progress() as progress:
            api.train(dataset, run, training, preset=preset, resume=began, progress=progress)
    except Interrupted as error:
        raise Interrupted(f"{error}; run the same command again to go on") from error


def _choose_epochs(dataset: Dataset, out: Path, preset: str, seed: int) -> int:
    """So many that about 170,000 images are shown, or as many as this machine trains on in the time there is."""
    from vae_edge.files import write_json
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.data import make_run_config, make_splits
    from vae_edge.training.duration import measure_step

    training = TrainConfig(rotation="full", epochs=1, seed=seed)
    splits = make_splits(dataset, training)
    config = make_run_config(dataset, splits, preset, training)
    images = config.data.trained_on + config.data.unlabelled
    seconds = measure_step(splits, config)
    affordable = TRAINING_S / seconds * training.batch_for(images)
    shown = min(MAX_IMAGES_SHOWN, max(MIN_IMAGES_SHOWN, affordable))
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, round(shown / images)))

    step = f"a training step takes {1000 * seconds:.0f} ms here"
    reasons = {
        MAX_IMAGES_SHOWN: "all that are meant to",
        MIN_IMAGES_SHOWN: f"the fewest that make sense; {step}",
    }
    why = reasons.get(int(shown), f"so that training takes about {TRAINING_S:.0f} s; {step}")
    write_json(out / CHOICE, {"epochs": epochs, "step_s": round(seconds, 4), "why": why})
    log.info("%s epochs, %s images shown: %s", epochs, f"{epochs * images:,}", why)
    return epochs


def _export(dataset: Dataset, out: Path, seed: int) -> None:
    log.info("exporting to ONNX, and comparing it with PyTorch")
    api.export(out / "run", out / "bundle", name="quickstart", force=True)
    for precision in PRECISIONS[1:]:
        log.info("quantizing to %s", precision)
        api.quantize(out / "bundle", precision, dataset, seed=seed)


def _benchmark(out: Path, progress: Callable[[str, float], None] | None) -> dict[str, Any]:
    from vae_edge.benchmarking import run_benchmark
    from vae_edge.files import write_json

    benchmark = run_benchmark(out / "bundle", seconds=BENCHMARK_S, progress=progress).to_json()
    write_json(out / "bench.json", benchmark)
    return benchmark


def _report(dataset: Dataset, out: Path, benchmark: dict[str, Any], seed: int) -> ReportData:
    from vae_edge.data import select_split
    from vae_edge.files import write_json
    from vae_edge.report import write_report

    log.info("measuring accuracy on images that were not trained on, and writing the report")
    held_out = select_split(dataset, "auto", 0.1, seed).in_memory()
    split = "test" if dataset.test is not None else "validation"
    facts = {"trained for": _describe_training(out)}
    content = collect(out / "run", out / "bundle", held_out, dataset.name, split, benchmark, seed, facts)
    write_report(content, out / "report.html")
    evaluation = {key: value for key, value in content.evaluation.items() if key != "confusion"}
    write_json(
        out / "evaluation.json", {**evaluation, "precisions": list(content.precisions), "auroc": dict(content.auroc)}
    )
    return content


def _describe_training(out: Path) -> str:
    """Epochs and images shown, and why they are so many where that was chosen, for the report."""
    from vae_edge.training.checkpoint import read_config

    config = read_config(out / "run")
    epochs, images = config.training.epochs, config.data.trained_on + config.data.unlabelled
    assert epochs is not None
    words = f"{epochs} epochs, {epochs * images:,} images shown"
    try:
        chosen = read_json(out / CHOICE)
        return f"{words} ({chosen['why']})" if chosen["epochs"] == epochs else words
    except (OSError, ValueError, KeyError, TypeError):  # the epochs were asked for
        return words


# ------------------------------------------------------------------------------------- what the report shows


def collect(
    run: Path,
    bundle: Path,
    held_out: LabelledImages,
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
    from vae_edge.training.checkpoint import load_checkpoint, load_samples, read_log
    from vae_edge.training.generate import derotate, sample_per_class

    checkpoint = load_checkpoint(run)
    opened = load_bundle(bundle)
    rotated = rotate_dataset(held_out, rotation_range(str(opened.rotation)), seed + 1, opened.input.fill)
    assert rotated.angles_deg is not None
    there = dict.fromkeys(entry.precision for entry in opened.select("classifier", "onnx"))
    by_precision = [_row(bundle, precision, rotated, held_out, opened) for precision in there]
    with load(bundle, precision="fp32") as classifier:
        predictions = classifier(rotated.images, color="rgb")
        reconstructions = classifier.reconstruct(rotated.images)
        unknown = _unknown(classifier, rotated.images[:UNKNOWN], seed)
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
        rotated.images,
        reconstructions,
        [held_out.classes[k] for k in rotated.labels],
        list(predictions.names),
        predictions.probabilities.max(1),
        rotated.angles_deg,
        predictions.angles_deg,
        predictions.scores,
        predictions.accepted,
        derotate(checkpoint.model, rotated.images, predictions.angles_deg) if has_angle else None,
        predictions.second_angles_deg,
        predictions.second_angle_probabilities,
    )
    rng = np.random.default_rng(seed)
    wrong = np.flatnonzero(predicted != rotated.labels)
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
            rotated.labels,
            temperature,
        ),
        angle_errors_deg=np.abs(wrap_degrees(predictions.angles_deg - rotated.angles_deg)),
        known_scores=predictions.scores,
        unknown_scores=unknown,
        auroc=_areas(predictions.scores, unknown),
        threshold=opened.threshold,
        precisions=[{key: value for key, value in row.items() if key != "evaluation"} for row in by_precision],
        benchmark=benchmark,
        training=read_log(run),
        facts={**_facts(checkpoint, benchmark), **(more_facts or {})},
    )


def _row(
    bundle: Path, precision: str, rotated: LabelledImages, upright: LabelledImages, opened: Bundle
) -> dict[str, Any]:
    """Accuracy of one precision, through the runtime, on the rotated and on the upright images."""
    from vae_edge.evaluation.figures import arrays, evaluate
    from vae_edge.runtime import load

    with load(bundle, precision=precision) as classifier:

        def run(images: Any) -> Any:
            return arrays(classifier(images, color="rgb"))

        about = (opened.classes, classifier.threshold, 0.0)
        figures = evaluate(run, rotated, *about, ambiguous=opened.ambiguous)
        figures["upright"] = evaluate(run, upright, *about)
    return {
        "precision": precision,
        "bytes": classifier.entry.bytes,
        "accuracy": figures["accuracy"],
        "upright_accuracy": figures["upright"]["accuracy"],
        "accepted": figures["accepted"],
        "evaluation": figures,
    }


def _unknown(classifier: Classifier, images: np.ndarray, seed: int) -> dict[str, Any]:
    from vae_edge.data.transforms import OOD_KINDS, make_ood_images

    return {kind: classifier(make_ood_images(images, kind, seed), color="rgb").scores for kind in OOD_KINDS}


def _without_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """What the softmax of the raw logits gives: p ∝ exp(z / T), so that p^T ∝ exp(z)."""
    raw = np.asarray(probabilities, np.float64) ** temperature
    return raw / raw.sum(1, keepdims=True)


def _areas(known: np.ndarray, unknown: dict[str, Any]) -> dict[str, float]:
    from vae_edge.metrics import auroc

    return {kind: round(auroc(known, scores), 4) for kind, scores in unknown.items()}


def _pick(samples: SampleSet, chosen: np.ndarray) -> SampleSet:
    picked: dict[str, Any] = {
        name: [value[k] for k in chosen] if isinstance(value, list) else None if value is None else value[chosen]
        for name, value in vars(samples).items()
    }
    return SampleSet(**picked)


def _facts(checkpoint: Checkpoint, benchmark: dict[str, Any]) -> dict[str, Any]:
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
