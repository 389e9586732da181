"""The comparison of our models with what a user would take instead: `vae-edge compare`.

A folder holds it. `trials/NAME.json` is the record of a finished trial, with the ONNX files of the first seed beside
it; `runs/NAME` is the training run of one of our models; `compare.json`, `.md`, `.png` and `.svg` are the result.
Folders of schema 1 (`cells`, with "turned" in the names) go on too: their records are read where they are.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_edge.benchmarking import describe_machine
from vae_edge.data import Dataset, LabelledImages, holdout, rotate_dataset
from vae_edge.data.dataset import join
from vae_edge.errors import ConfigError, DataError
from vae_edge.experiments import baselines
from vae_edge.experiments.baselines import loss_of
from vae_edge.experiments.evaluation import LATENCY_THREADS, time_onnx
from vae_edge.experiments.setup import (
    CONTROL,
    ESTIMATORS,
    IMAGE_KINDS,
    MODELS,
    TEST_FRACTION,
    THRESHOLD_FRACTION,
    VAES,
    ExperimentConfig,
    ExperimentSetup,
    Trial,
    list_trials,
)
from vae_edge.experiments.trials import (
    NUMBER,
    SCHEMA,
    ProgressBar,
    Record,
    Stopwatch,
    TrainedModel,
    Trials,
    check_form,
    damaged,
    differences,
    read_record,
    summarize_trials,
    train_estimator,
    train_network,
    train_vae,
)
from vae_edge.exporting.onnx_file import ClassifierGraph
from vae_edge.files import sha256, write_bytes, write_json
from vae_edge.model import AngleVAE, create_config
from vae_edge.report.comparison import write_comparison
from vae_edge.training.checkpoint import MODEL, load_checkpoint
from vae_edge.training.evaluate import predict
from vae_edge.training.generate import CONFIDENCE, generate
from vae_edge.training.trainer import Interrupted, Progress, fast_bf16

TEST_ROTATION_SEED = 1000  # added to the seed, for the angles of the test set
SINGLE_ROTATION_SEED = 2000  # the same, for the training images of estimators, which are rotated once
DEFAULT_TRAIN_IMAGES = 12_000
ALL_IMAGES = -1  # `ComparisonConfig.train_images`
PACKAGES = ("torch", "scikit-learn", "skl2onnx", "onnx")  # whose versions the result names
USED_LATER = ("onnxruntime", "onnxscript", "matplotlib")  # modules that are used after training
USED_BY_ESTIMATORS = ("sklearn", "skl2onnx")

PROBE_IMAGES = 1000  # for fits whose time is then scaled: by the square of the number of images for a kernel machine
PROBE_STEPS = 3
STEP_OVERHEAD = 1.3  # augmentation, optimizer and EMA, relative to the forward and backward pass
TRIAL_OVERHEAD_S = 6.0  # tracing, ONNX export, evaluation

_FORM: dict[str, Any] = {
    "settings": dict,
    "fingerprint": str,
    "accuracy": NUMBER,
    "training": {
        "macs": (*NUMBER, type(None)),
        "images_seen": NUMBER,
        "wall_seconds": NUMBER,
        "processor_seconds": NUMBER,
    },
    "inference": dict,
    "images": {"tested_on": NUMBER, "trained_on": NUMBER},
    "files": dict,
    "trial": {"model": str, "images": str, "generated": bool, "seed": int},
}
"""The fields of a record that are read, and their types."""

# ------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class ComparisonConfig:
    """What `compare` trains, and how long it times.

    Attributes:
        models: some of `MODELS`; images: some of `IMAGE_KINDS`.
        with_generated: train each model with and without generated images; otherwise without alone.
        preset: of our models.
        train_images: real images to train on; None: 12,000, or all where there are fewer; `ALL_IMAGES`: all.
        images_seen: images shown to a network in training.
        generated: fraction of the training images that is generated.
        latency_seconds: time for all latencies together.

    Raises:
        ConfigError: if a value is out of range, or a name unknown.
    """

    models: Sequence[str] = tuple(MODELS)
    images: Sequence[str] = IMAGE_KINDS
    seeds: Sequence[int] = (0, 1, 2)
    with_generated: bool = True
    preset: str = "small"
    train_images: int | None = None
    images_seen: int = 240_000
    generated: float = 0.3
    latency_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.latency_seconds <= 0:
            raise ConfigError(f"--seconds {self.latency_seconds}: expected a time above 0")
        self.trials()
        create_config(self.preset)

    def trials(self) -> list[Trial]:
        """All trials, seed by seed."""
        return list_trials(self.models, self.images, self.with_generated, self.seeds)

    def experiment(self, dataset: Dataset) -> ExperimentConfig:
        """What all trials on this data set have in common."""
        count = None if self.train_images == ALL_IMAGES else self.train_images
        if self.train_images is None and dataset.train is not None:
            available = len(dataset.train) * (1 - TEST_FRACTION) * (1 - THRESHOLD_FRACTION)
            count = DEFAULT_TRAIN_IMAGES if available > DEFAULT_TRAIN_IMAGES * 1.01 else None
        return ExperimentConfig(self.preset, count, self.images_seen, self.generated)


@dataclass(frozen=True)
class ComparisonResult:
    """`result` is what `compare.json` holds; `files` are the table and the plots."""

    result: dict[str, Any]
    files: tuple[Path, ...] = field(default=())


def import_packages(config: ComparisonConfig) -> None:
    """Import what is used after training, so that a missing package is noticed before it.

    Raises:
        ImportError: of the first package that is not installed.
    """
    for package in (*USED_LATER, *(USED_BY_ESTIMATORS if set(config.models) & set(ESTIMATORS) else ())):
        import_module(package)


def compare(
    dataset: Dataset,
    config: ComparisonConfig,
    out: Path,
    log: Callable[[str], None],
    progress_bar: ProgressBar | None = None,
) -> ComparisonResult:
    """Train and evaluate what is not done yet, time the ONNX files, and write the result into `out`.

    Args:
        log: takes a sentence on what goes on.

    Raises:
        ConfigError: if `out` holds another comparison.
        DataError: if there are too few images.
        Interrupted: after Ctrl-C or SIGTERM; finished trials stay.
    """
    machine = describe_machine(torch.get_num_threads())
    where = {name: machine[name] for name in ("cpu", "threads", "code")}
    comparison = Comparison(dataset, config.experiment(dataset), out, config.seeds[0], with_onnx=True, where=where)
    trials = config.trials()
    records = _run_all(comparison, trials, log, progress_bar)

    log("timing one decision of each model, in turns")
    latency_us = time_files(comparison.onnx_files(trials), config.latency_seconds)
    settings = comparison.setup.config.settings(trials[0])
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "data": {"name": dataset.name, "fingerprint": comparison.fingerprint, "classes": len(dataset.classes)},
        "settings": settings | {"generated": config.generated if config.with_generated else None},
        "seeds": list(config.seeds),
        "models": {name: MODELS[name] for name in MODELS if name in config.models},
        "machine": machine,
        "latency_threads": LATENCY_THREADS,
        "versions": {**machine["versions"], **{name: _version(name) for name in PACKAGES}},
        **summarize_trials(records, latency_us),
        "generators": _generators(records),
        "trials": records,
    }
    write_json(out / "compare.json", result)
    return ComparisonResult(result, tuple(write_comparison(result, out)))


def _run_all(
    comparison: Comparison, trials: Sequence[Trial], log: Callable[[str], None], progress_bar: ProgressBar | None
) -> list[Record]:
    pending = comparison.pending(trials)
    log(f"{len(trials)} trials; {len(pending)} are to be trained (generators included), the others are done already")
    if pending:
        seconds = estimate(comparison.setup, pending)
        parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
        log(f"this takes about {_duration(sum(seconds.values()))} on this machine ({parts})")
    for number, trial in enumerate(pending, 1):
        try:
            record = comparison.run_or_load(trial, progress_bar)
        except Interrupted as error:
            raise Interrupted(f"{error}; the same command goes on with the trials that are not done") from error
        took = record["training"]
        log(
            f"[{number}/{len(pending)}] {trial.name}: {100 * record['accuracy']:.2f}%, trained in "
            f"{took['wall_seconds']:.1f} s ({took['processor_seconds']:.1f} s of processor time)"
        )
    return [comparison.run_or_load(trial) for trial in trials]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _generators(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What generated the images, each model once."""
    found = {record["generator"]["trial"]: record["generator"] for record in records if record["generator"]}
    return list(found.values())


def time_files(files: Sequence[Path], seconds: float) -> dict[str, float]:
    """Median microseconds of one call for one image, by the name of the ONNX file."""
    times = time_onnx(files, seconds)
    return {file.name: round(float(np.median(taken)) / 1e3, 2) for file, taken in zip(files, times, strict=True)}


# -------------------------------------------------------------------------------------------------- its trials


class Comparison(Trials[Trial]):
    """The trials of a comparison in a folder.

    Args:
        first_seed: the seed whose models are kept as ONNX files; those of another would differ in the weights alone.
        with_onnx: whether there are ONNX files at all.
        where: processor, threads and version of the code, which a record names.

    Raises:
        ConfigError: if the folder holds trials of another comparison.
        DataError: if there are too few images.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: ExperimentConfig,
        out: Path,
        first_seed: int = 0,
        with_onnx: bool = False,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        self.setup, self.out, self.where = ExperimentSetup(dataset, config), out, dict(where or {})
        self.first_seed, self.with_onnx = first_seed, with_onnx
        self.fingerprint = dataset.fingerprint()
        self._generated: dict[Trial, tuple[LabelledImages, dict[str, Any]]] = {}  # of the last generator alone
        self._check_folder()
        self.setup.splits(first_seed)

    # ------------------------------------------------------------------------------------------------- storage

    def run_folder(self, trial: Trial) -> Path:
        """The training run of one of our models."""
        before = self.out / "runs" / _name_of_schema_1(trial)
        return before if before.is_dir() else self.out / "runs" / trial.name

    def record_file(self, trial: Trial) -> Path:
        """The record of a trial: the file that says that it is finished."""
        before = self.out / "cells" / f"{_name_of_schema_1(trial)}.json"
        return before if before.is_file() else self.out / "trials" / f"{trial.name}.json"

    def onnx_files(self, trials: Iterable[Trial]) -> list[Path]:
        """The ONNX files of finished trials, in their order."""
        records = [(self.record_file(trial), self.load(trial)) for trial in trials]
        return [path.parent / file["file"] for path, record in records if record for file in record["files"].values()]

    def load(self, trial: Trial) -> Record | None:
        """The record of a trial, if it is finished and all its files are there."""
        path = self.record_file(trial)
        if not path.is_file() or (trial.model in VAES and not (self.run_folder(trial) / MODEL).is_file()):
            return None
        record = read_trial(path)
        if trial.seed == self.first_seed and self.with_onnx:
            files = record["files"].values()
            if not files or any(_sha256_or_empty(path.parent / file["file"]) != file["sha256"] for file in files):
                return None
        return record

    def save(self, trial: Trial, record: Record) -> None:
        """Write the record."""
        write_json(self.record_file(trial), record)

    def required(self, trial: Trial) -> Iterable[Trial]:
        """The trial whose model generates images for this one."""
        return (trial.generator,) if trial.generated else ()

    def _check_folder(self) -> None:
        """Refuse a folder with a trial of other settings or other images."""
        for path in sorted(path for name in ("cells", "trials") for path in (self.out / name).glob("*.json")):
            record = read_trial(path)
            settings = self.setup.config.settings(Trial(**record["trial"]))
            odd = differences(
                {**record["settings"], "images": record["fingerprint"][:12]},
                {**settings, "images": self.fingerprint[:12]},
            )
            if odd:
                raise ConfigError(
                    f"{self.out} holds another comparison ({'; '.join(odd)}); use the same settings, or another --out"
                )

    # ------------------------------------------------------------------------------------------------ training

    def run(self, trial: Trial, progress_bar: ProgressBar) -> Record:
        """Train and evaluate a trial, and the generator that it needs; the record."""
        setup = self.setup
        pool, test = setup.splits(trial.seed)
        images, generator = self._add_generated(trial, pool, progress_bar) if trial.generated else (pool, None)
        kept, _ = holdout(images, THRESHOLD_FRACTION, trial.seed)
        if trial.model in ESTIMATORS:
            baselines.import_estimators()
        with progress_bar(trial.name) as progress:
            trained = self._train(trial, images, kept, progress)
        if trial.images == "rotated":
            test = rotate_dataset(test, 180.0, TEST_ROTATION_SEED + trial.seed, setup.fill)
        correct = trained.classify(test.images) == test.labels
        return {
            "schema": SCHEMA,
            "trial": asdict(trial),
            "settings": setup.config.settings(trial),
            "fingerprint": self.fingerprint,
            "images": {"trained_on": len(kept), "generated": len(images) - len(pool), "tested_on": len(test)},
            "accuracy": float(correct.mean()),
            "training": {**trained.seconds, "images_seen": trained.images_seen, "macs": trained.macs},
            "inference": self._inference(trial, trained),
            "generator": generator,
            "files": self._write_onnx(trial, trained),
            "details": trained.details,
            "where": self.where,
        }

    def _add_generated(
        self, trial: Trial, pool: LabelledImages, progress_bar: ProgressBar
    ) -> tuple[LabelledImages, dict[str, Any]]:
        """The pool with generated images, upright and as many of each class; and how they were made."""
        generator = trial.generator
        if generator not in self._generated:
            training = self.run_or_load(generator, progress_bar)["training"]
            stopwatch = Stopwatch()
            checkpoint = load_checkpoint(self.run_folder(generator))
            fraction, absent = self.setup.config.generated, checkpoint.config.data.absent
            per_class = max(1, round(fraction / (1 - fraction) * len(pool) / (len(pool.classes) - len(absent))))
            known, _ = holdout(pool, THRESHOLD_FRACTION, trial.seed)
            images, confidence = generate_upright(checkpoint.model, known, per_class, trial.seed, absent)
            about = {
                "trial": generator.name,
                "training": training,
                "sampling": stopwatch.read(),
                "confidence": confidence,
            }
            self._generated = {generator: (images, about)}
        images, about = self._generated[generator]
        return join([pool, images]), about

    def _train(
        self, trial: Trial, images: LabelledImages, kept: LabelledImages, progress: Progress | None
    ) -> TrainedModel:
        """Train the trial's model on `kept`; ours gets `images`, and sets the threshold's aside by itself."""
        setup = self.setup
        if trial.model in ESTIMATORS:
            if trial.images == "rotated":
                kept = rotate_dataset(kept, 180.0, SINGLE_ROTATION_SEED + trial.seed, setup.fill)
            return train_estimator(trial.model, kept)
        if trial.model in VAES:
            folder = self.run_folder(trial)
            shutil.rmtree(folder, ignore_errors=True)  # an unfinished run of an earlier attempt
            dataset = Dataset(setup.dataset.name, setup.dataset.source, images, None)
            config = setup.run_config(trial, images, len(kept))
            macs = setup.training_macs(AngleVAE(config.model))
            return train_vae(dataset, config, folder, len(kept), macs, progress)
        network = setup.network(trial.model, trial.seed)
        steps, macs = setup.baseline_steps(trial, len(kept), network)
        return train_network(network, kept, setup.run_config(trial, images, len(kept)), steps, macs, progress)

    def _inference(self, trial: Trial, trained: TrainedModel) -> dict[str, Any]:
        """What a `decision` costs; of our models also what all outputs of the exported graph cost, `full`."""
        if trial.model in ESTIMATORS:
            parameters, macs = baselines.estimator_cost(trained.model)
            return {"decision": {"parameters": parameters, "macs": macs}}
        costs = {"decision": asdict(self.setup.inference_cost(trial.model, trained.model))}
        if trial.model in VAES and self.with_onnx:
            costs["full"] = asdict(self.setup.graph_cost(trial.model, ClassifierGraph(trained.model)))
        return costs

    def _write_onnx(self, trial: Trial, trained: TrainedModel) -> dict[str, dict[str, Any]]:
        """Write the ONNX files of the first seed's models; what the record says of them."""
        if trial.seed != self.first_seed or not self.with_onnx:
            return {}
        config = self.setup.model_config()
        files = {}
        for name, content in baselines.onnx_files(trained.model, config.size, config.channels).items():
            path = self.record_file(trial).with_suffix(f".{name}.onnx")
            write_bytes(path, content)
            files[name] = {"file": path.name, "bytes": len(content), "sha256": sha256(path)}
        return files


def read_trial(path: Path) -> Record:
    """The record of a finished trial.

    Raises:
        CheckpointError: if it is damaged, or of another version.
    """
    record = read_record(path)
    try:
        check_form(record, _FORM)
        trial = record["trial"]
        if set(trial) != set(_FORM["trial"]) or trial["model"] not in MODELS or trial["images"] not in IMAGE_KINDS:
            raise ValueError("its trial is none of this version's")
        if not all(isinstance(part, dict) for part in record["inference"].values()):
            raise ValueError("its field inference is of another form")
        for file in record["files"].values():
            check_form(file, {"file": str, "sha256": str, "bytes": int}, "files.")
            if Path(file["file"]).name != file["file"] or not file["file"].isprintable():
                raise ValueError(f"one of its files, {file['file'][:80]!r}, lies elsewhere")
        if record.get("generator", "") is not None:
            check_form(record.get("generator", ""), {"trial": str}, "generator.")
    except ValueError as error:
        raise damaged(path, error) from error
    return record


def generate_upright(
    model: AngleVAE, known: LabelledImages, per_class: int, seed: int, absent: Sequence[str] = ()
) -> tuple[LabelledImages, float]:
    """Upright images decoded between the codes of known images of a class, and the confidence that all of them reach.

    The confidence is 0.9; it is 0, and every image is kept, where the model recognizes too few of its images.
    """
    codes = predict(model, known.images).codes

    def generated(confidence: float) -> LabelledImages:
        return generate(
            model,
            known.classes,
            per_class,
            seed=seed,
            absent=absent,
            codes=codes,
            code_labels=known.labels,
            confidence=confidence,
        )

    try:
        return generated(CONFIDENCE), CONFIDENCE
    except DataError:
        return generated(0.0), 0.0


def _name_of_schema_1(trial: Trial) -> str:
    return trial.name.replace("rotated", "turned", 1)


def _sha256_or_empty(path: Path) -> str:
    return sha256(path) if path.is_file() else ""


# --------------------------------------------------------------------------------------------- how long it takes


def estimate(setup: ExperimentSetup, trials: Sequence[Trial]) -> dict[str, float]:
    """Seconds that these trials will take on this machine, by model: rough, so that a person can decide to wait."""
    seconds: dict[str, float] = {}
    probes: dict[str, Callable[[int, int], float]] = {}
    for trial in trials:
        if trial.model not in probes:
            probe = _probe_estimator if trial.model in ESTIMATORS else _probe_network
            probes[trial.model] = probe(setup, trial)
        pool, test = setup.splits(trials[0].seed)
        generated = setup.config.generated if trial.generated else 0.0
        images = round((1 - THRESHOLD_FRACTION) * len(pool) / (1 - generated))
        steps = setup.steps(Trial(trial.model, trial.images, trial.generated, trials[0].seed), images)
        took = probes[trial.model](images if trial.model in ESTIMATORS else steps, len(test))
        seconds[trial.model] = seconds.get(trial.model, 0.0) + took
    return seconds


def _probe_network(setup: ExperimentSetup, trial: Trial) -> Callable[[int, int], float]:
    """From a few timed steps of this network: seconds for a number of steps of the angle VAE."""
    config = setup.model_config(orientation=VAES.get(trial.model, True))
    network = AngleVAE(config) if trial.model in VAES else setup.network(trial.model, 0)
    settings = setup.training_config(trial, round((1 - THRESHOLD_FRACTION) * len(setup.splits(trial.seed)[0])))
    device = baselines.training_device()
    images = torch.zeros(settings.batch or 1, config.channels, config.height, config.width, device=device)
    bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(device)
    longer = setup.angle_vae_macs / setup.training_macs(network) if trial.model == CONTROL else 1.0

    loss = loss_of(network)
    network.to(device).train()
    times = []
    for _ in range(PROBE_STEPS):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = loss(network, images)
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return lambda steps, tested: TRIAL_OVERHEAD_S + STEP_OVERHEAD * min(times) * steps * longer


def _probe_estimator(setup: ExperimentSetup, trial: Trial) -> Callable[[int, int], float]:
    """From a fit on at most a thousand images: seconds for a number of training images and of test images."""
    pool, test = setup.splits(trial.seed)
    baselines.import_estimators()
    fitted, tested = _subsample(pool, PROBE_IMAGES), _subsample(test, PROBE_IMAGES // 2)
    start = time.perf_counter()
    estimator = ESTIMATORS[trial.model](fitted)
    middle = time.perf_counter()
    estimator.predict(baselines.flatten(tested.images))
    fit_s, predict_s = middle - start, time.perf_counter() - middle
    power = 2 if trial.model == "svm" else 1

    def scaled(train_images: int, test_images: int) -> float:
        ratio = train_images / len(fitted)
        return fit_s * ratio**power + predict_s * test_images / len(tested) * ratio ** (power - 1)

    return scaled


def _subsample(data: LabelledImages, count: int) -> LabelledImages:
    """At most `count` images, evenly spaced."""
    return data.take(torch.linspace(0, len(data) - 1, min(count, len(data))).long().unique().numpy())
