"""Trials: how each kind of model is trained once, the records of finished trials, and figures over the seeds.

A record is a JSON object with all that was measured, and with the settings and the data's fingerprint that it depends
on. A trial whose record is there is never trained again; so an experiment that was stopped goes on where it was.
Records of schema 1 are read too: `upgrade` is the one place that knows their words.

A difference between two models is taken seed by seed, on the same images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vae_edge.data import Dataset, LabelledImages
from vae_edge.errors import CheckpointError, ConfigError
from vae_edge.experiments import baselines
from vae_edge.experiments.setup import CONTROL, ESTIMATORS, IMAGE_KINDS, MODELS, OURS, RECIPE, Trial
from vae_edge.files import read_json
from vae_edge.model import ModelConfig
from vae_edge.training.checkpoint import MODEL, Checkpoint, RunConfig, load_checkpoint
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import make_splits
from vae_edge.training.evaluate import predict
from vae_edge.training.trainer import Progress, train

T = TypeVar("T")
Record = dict[str, Any]
Classify = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
ProgressBar = Callable[[str], AbstractContextManager[Progress | None]]
"""A trial's name to a progress bar that is open while the trial is trained."""

# ---------------------------------------------------------------------------------------------- training a model


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, and what its training took.

    Attributes:
        model: a network or an estimator of scikit-learn.
        classify: images uint8 [N, S, S, C] to classes [N].
        seconds: `wall_seconds` and `processor_seconds` of training.
        images_seen: images shown in training, each as often as it was shown.
        macs_per_image: multiply-accumulates of training on one image; None where they are not counted.
        checkpoint: of our models.
    """

    model: Any
    classify: Classify
    seconds: dict[str, float]
    images_seen: int
    macs_per_image: float | None
    details: dict[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates of all training."""
        return None if self.macs_per_image is None else self.macs_per_image * self.images_seen


class Stopwatch:
    """Wall and processor seconds since it was made. Processor seconds are those of all threads of this process."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """`wall_seconds` and `processor_seconds`, to a thousandth."""
        wall, processor = time.perf_counter() - self._wall, time.process_time() - self._processor
        return {"wall_seconds": round(wall, 3), "processor_seconds": round(processor, 3)}


def train_vae(
    dataset: Dataset,
    config: RunConfig,
    folder: Path,
    images: int,
    macs_per_image: float | None = None,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train our model as `vae-edge train --resume` does; a finished run in `folder` is taken as it is.

    Args:
        images: how many the run trains on, which fixes the batch size.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM; the state is in `folder`.
    """
    stopwatch = Stopwatch()
    if not (folder / MODEL).is_file():
        train(make_splits(dataset, config.training), config, folder, resume=True, progress=progress)
    seconds = stopwatch.read()
    checkpoint = load_checkpoint(folder)

    def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return predict(checkpoint.model, pixels).probabilities.argmax(1)

    steps = int(checkpoint.result.step)
    seen = steps * config.training.batch_for(images)
    details = {"steps": steps}
    return TrainedModel(checkpoint.model, classify, seconds, seen, macs_per_image, details, checkpoint)


def train_network(
    network: nn.Module,
    images: LabelledImages,
    config: RunConfig,
    steps: int,
    macs_per_image: float,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a baseline network by the recipe of `config`, for a number of steps."""
    settings = config.training
    stopwatch = Stopwatch()
    fitted = baselines.fit_network(network, images, settings, steps, config.model.fill, progress)
    seconds = stopwatch.read()

    def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return baselines.network_probabilities(fitted, pixels).argmax(1)

    seen = steps * settings.batch_for(len(images))
    return TrainedModel(fitted, classify, seconds, seen, macs_per_image, {"steps": steps})


def train_estimator(name: str, images: LabelledImages) -> TrainedModel:
    """Fit an estimator of scikit-learn (`ESTIMATORS`), which sees each image once."""
    stopwatch = Stopwatch()
    estimator = ESTIMATORS[name](images)
    seconds = stopwatch.read()
    vectors = getattr(estimator, "support_vectors_", None)

    def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.asarray(estimator.predict(baselines.flatten(pixels)), np.int64)

    details = {} if vectors is None else {"support_vectors": len(vectors)}
    return TrainedModel(estimator, classify, seconds, len(images), None, details)


# ------------------------------------------------------------------------------------------------ run or load


class Trials(Generic[T]):
    """The trials of an experiment. `load`, `run` and `save` say what a trial is and where its record is stored."""

    def load(self, trial: T) -> Record | None:
        """The stored record of a finished trial, if it holds for today's settings and data."""
        raise NotImplementedError

    def run(self, trial: T, progress_bar: ProgressBar) -> Record:
        """Train and evaluate; the record."""
        raise NotImplementedError

    def save(self, trial: T, record: Record) -> None:
        """Store the record of a finished trial."""
        raise NotImplementedError

    def required(self, trial: T) -> Iterable[T]:
        """Trials that must be finished before this one."""
        return ()

    def pending(self, trials: Iterable[T]) -> list[T]:
        """The trials that are still to be trained, each after the ones that it requires."""
        found: dict[T, None] = {}
        for trial in trials:
            if self.load(trial) is None:
                for one in (*self.required(trial), trial):
                    if self.load(one) is None:
                        found[one] = None
        return list(found)

    def run_or_load(self, trial: T, progress_bar: ProgressBar | None = None) -> Record:
        """The trial's record; trained and evaluated unless that is done."""
        record = self.load(trial)
        if record is None:
            record = self.run(trial, progress_bar or _no_progress)
            self.save(trial, record)
        return record


def _no_progress(name: str) -> AbstractContextManager[Progress | None]:
    return nullcontext()


# ---------------------------------------------------------------------------------------------- stored records

SCHEMA = 2
RENAMED = {
    "cell": "trial",
    "cells": "trials",
    "judged_on": "tested_on",
    "drawn": "generated",
    "drawing": "sampling",
    "whole": "full",
    "light": "fast",
    "auroc_light": "auroc_fast",
    "accepted_light": "accepted_fast",
    "light_us": "fast_us",
    "light_bytes": "fast_bytes",
    "light_over_none": "fast_over_none",
    "training_macs_of_ours": "training_macs_of_vae",
    "turned": "rotated",
}
"""Keys of schema 1 that have other names now."""


def read_record(path: Path) -> Record:
    """A file of records, of this schema or of schema 1, in today's words.

    Raises:
        CheckpointError: if it is damaged, or of another version.
    """
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError(f"it holds a {type(stored).__name__}, not an object")
        if stored.get("schema") not in (1, SCHEMA):
            raise CheckpointError(
                f"{path} has schema {stored.get('schema')!r}; this version reads 1 and {SCHEMA}: "
                "remove it, or choose another folder"
            )
        record: Record = upgrade(stored) if stored["schema"] == 1 else stored
    except (OSError, ValueError, ConfigError) as error:
        raise damaged(path, error) from error
    return record


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error of a file that is not what it should be."""
    return CheckpointError(f"{path} is damaged ({error}): remove it, and what is missing is trained again")


def upgrade(stored: Any, key: str = "") -> Any:
    """JSON of schema 1 in the words of schema 2."""
    if isinstance(stored, list):
        return [upgrade(value, key) for value in stored]
    if isinstance(stored, dict):
        upgraded = {RENAMED.get(name) or name: upgrade(value, name) for name, value in stored.items()}
        return upgrade_settings(upgraded) if key == "settings" else upgraded
    if isinstance(stored, str) and key in ("images", "control_of", "cell"):
        return stored.replace("turned", "rotated", 1) if stored.startswith("turned") else stored
    return stored


def upgrade_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of schema 1: what they say of the model and its training, read as a run of schema 1 is."""
    training, model = settings.get("training"), settings.get("model")
    if isinstance(training, dict):
        now = TrainConfig.from_dict(training).to_dict()
        settings = {**settings, "training": now if "seed" in training else {name: now[name] for name in RECIPE}}
    if isinstance(model, dict):
        fields = asdict(ModelConfig.from_dict(model))
        now = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        settings = {**settings, "model": now}
    return settings


Form = Mapping[str, Any]
"""The fields that are read of a record: each a type, several types, or the form of an object."""

NUMBER = (int, float)


def check_form(values: Any, form: Form, where: str = "") -> None:
    """Refuse an object that lacks a field, or has one of another type (ValueError)."""
    if not isinstance(values, dict):
        raise ValueError(f"its field {where.rstrip('.') or 'all'} is no object")
    for name, kind in form.items():
        value = values.get(name)
        if isinstance(kind, Mapping):
            check_form(value, kind, f"{where}{name}.")
        elif name not in values or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"its field {where}{name} is missing or of another type")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two objects say differently, in words."""
    return [
        f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


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
    """A `compare.json`, also of schema 1, for `vae_edge.report.page`.

    Raises:
        CheckpointError: if it is damaged, or of another version.
    """
    result = read_record(path)
    return {**result, "sentence": sentence(result["gains"])}
