"""The whole way in one command: train, export, quantize, measure, report; training is not done twice."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_edge.cli.console import check_folder, emit, percent, say, sharing_progress
from vae_edge.cli.data import open_data
from vae_edge.files import read_json

SEEN_MOST = 170_000  # images shown in training, where there is the time
SEEN_LEAST = 60_000  # and where there is not
TRAINING_S = 110.0  # seconds that training may take, if fewer images do
EPOCHS_LEAST, EPOCHS_MOST = 3, 80
PRECISIONS = ("fp32", "fp16", "int8")
RESULT = "quickstart.json"
CHOICE = "epochs.json"  # how many epochs were chosen, and why


def quickstart(arguments: argparse.Namespace) -> None:
    """`vae-edge quickstart`."""
    from vae_edge import __version__
    from vae_edge.files import write_json
    from vae_edge.model import create_config
    from vae_edge.training.distributed import use_threads

    out = check_folder("--out", arguments.out)
    create_config(arguments.preset)  # or refuse, before the images are read
    use_threads()
    began = time.monotonic()
    dataset = open_data(arguments)
    asked = {"preset": arguments.preset, "epochs": arguments.epochs, "seed": arguments.seed, "version": __version__}
    asked["data"] = dataset.fingerprint()
    before = _done_before(out)
    if before.get("asked") == asked and _bundle_is_whole(out / "bundle"):
        say(f"{out} holds the result of the same run already; remove the folder to do it again")
        emit(before, arguments.json, lambda: _lines(before))
        return
    earlier = _trained_before(out / "run")
    result = {"asked": asked, **_run(dataset, arguments, out)}
    result["seconds"] = round(earlier + time.monotonic() - began, 1)
    write_json(out / RESULT, result)
    emit(result, arguments.json, lambda: _lines(result))


def _trained_before(run: Path) -> float:
    """Seconds of training that an earlier call, which was stopped, has put into the run."""
    from vae_edge.training.checkpoint import LOG, read_log

    lines = read_log(run) if (run / LOG).exists() else []
    return float(lines[-1]["seconds"]) if lines else 0.0


def _done_before(out: Path) -> dict[str, Any]:
    """The result of an earlier run whose report is still there; empty where there is none, or it is damaged."""
    if not (out / RESULT).is_file() or not (out / "report.html").is_file():
        return {}
    try:
        result = read_json(out / RESULT)
    except (OSError, ValueError) as error:
        say(f"{out / RESULT} is damaged ({error}); everything but the training is done again")
        return {}
    return result if isinstance(result, dict) else {}


def _bundle_is_whole(path: Path) -> bool:
    from vae_edge.bundle import load_bundle
    from vae_edge.errors import BundleError

    try:
        present = {model.precision for model in load_bundle(path).models}
    except BundleError as error:
        say(f"the bundle is made again: {error}")
        return False
    return set(PRECISIONS) <= present


def _run(dataset: Any, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    from vae_edge.benchmark import run_benchmark
    from vae_edge.cli.deploy import export_run
    from vae_edge.data import select_split
    from vae_edge.export import quantize_bundle_from_dataset
    from vae_edge.files import write_json

    run, bundle = out / "run", out / "bundle"
    _train(dataset, arguments, run)
    say("exporting to ONNX, and comparing it with PyTorch")
    export_run(run, str(bundle), "quickstart")
    for precision in PRECISIONS[1:]:
        say(f"quantizing to {precision}")
        quantize_bundle_from_dataset(bundle, precision, dataset, arguments.seed)
    say("measuring latency and memory")
    with sharing_progress() as progress:
        benchmark = run_benchmark(bundle, seconds=15.0, progress=progress).to_json()
    write_json(out / "bench.json", benchmark)
    say("measuring accuracy on images that were not trained on, and writing the report")
    held = select_split(dataset, "auto", 0.1, arguments.seed)
    split = "test" if dataset.test is not None else "validation"
    from vae_edge.cli.findings import collect

    trained = _what_was_trained(run, out / CHOICE)
    findings = collect(run, bundle, held, dataset.name, split, benchmark, arguments.seed, {"trained for": trained})
    from vae_edge.report import write_report

    report = write_report(findings, out / "report.html")
    evaluation = dict(findings.evaluation)
    evaluation.pop("confusion")
    write_json(
        out / "evaluation.json", {**evaluation, "precisions": list(findings.precisions), "auroc": dict(findings.auroc)}
    )
    return {
        "report": str(report),
        "bundle": str(bundle),
        "run": str(run),
        "trained_for": trained,
        "accuracy": evaluation["accuracy"],
        "upright_accuracy": evaluation["upright"]["accuracy"],
        "angle_error_deg": evaluation["angle_error_deg"],
        "precisions": list(findings.precisions),
        "auroc": dict(findings.auroc),
    }


def _train(dataset: Any, arguments: argparse.Namespace, run: Path) -> None:
    from vae_edge.cli.train import fit
    from vae_edge.errors import CheckpointError
    from vae_edge.training.checkpoint import CONFIG, MODEL, load_checkpoint, read_config

    began = (run / CONFIG).is_file()
    epochs = arguments.epochs
    if epochs is None and dataset.train is not None:  # what an earlier call chose is kept
        epochs = read_config(run).training.epochs if began else _choose_epochs(dataset, arguments)
    if (run / MODEL).is_file():
        config = load_checkpoint(run).config
        wanted = (arguments.preset, epochs, arguments.seed, dataset.fingerprint())
        if (config.model.preset, config.training.epochs, config.training.seed, config.data.fingerprint) == wanted:
            say(f"{run} holds the trained model already")
            return
        raise CheckpointError(f"{run} holds a model that was trained with other settings; choose another --out")
    options = argparse.Namespace(
        rotation="full", preset=arguments.preset, epochs=epochs, seed=arguments.seed, out=str(run), resume=began
    )
    fit(dataset, options, "run the same command again to go on")


def _choose_epochs(dataset: Any, arguments: argparse.Namespace) -> int:
    """So many that about 170,000 images are shown, or as many as this machine trains on in the time there is."""
    from vae_edge.files import write_json
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.data import make_run_config, make_splits
    from vae_edge.training.trainer import measure_step

    settings = TrainConfig(rotation="full", epochs=1, seed=arguments.seed)
    splits = make_splits(dataset, settings)
    config = make_run_config(dataset, splits, arguments.preset, settings)
    images = config.data.trained_on + config.data.unlabelled
    seconds = measure_step(splits, config)
    affordable = TRAINING_S / seconds * settings.batch_for(images)
    shown = min(SEEN_MOST, max(SEEN_LEAST, affordable))
    epochs = max(EPOCHS_LEAST, min(EPOCHS_MOST, round(shown / images)))
    step = f"a training step takes {1000 * seconds:.0f} ms here"
    reasons = {SEEN_MOST: "all that are meant to", SEEN_LEAST: f"the fewest that make sense; {step}"}
    why = reasons.get(int(shown), f"so that training takes about {TRAINING_S:.0f} s; {step}")
    write_json(Path(arguments.out) / CHOICE, {"epochs": epochs, "step_s": round(seconds, 4), "why": why})
    say(f"{epochs} epochs, {epochs * images:,} images shown: {why}")
    return epochs


def _what_was_trained(run: Path, choice: Path) -> str:
    """Epochs and images shown, and why they are so many where that was chosen, for the report."""
    from vae_edge.training.checkpoint import read_config

    config = read_config(run)
    epochs, images = config.training.epochs, config.data.trained_on + config.data.unlabelled
    assert epochs is not None
    words = f"{epochs} epochs, {epochs * images:,} images shown"
    try:
        chosen = read_json(choice)
        return f"{words} ({chosen['why']})" if chosen["epochs"] == epochs else words
    except (OSError, ValueError, KeyError, TypeError):  # the epochs were asked for
        return words


def _lines(result: dict[str, Any]) -> Iterator[str]:
    error = result["angle_error_deg"]
    yield f"turned by any angle {percent(result['accuracy'])}, upright {percent(result['upright_accuracy'])}"
    yield f"angle error: median {error['median']}°, mean {error['mean']}°"
    for row in result["precisions"]:
        yield f"  {row['precision']}: {percent(row['accuracy'])}, {row['bytes'] / 1024:,.0f} KiB"
    yield f"trained for {result['trained_for']}"
    yield f"{result['seconds']} s in all"
    yield f"bundle: {result['bundle']}"
    yield f"report: {result['report']}"
