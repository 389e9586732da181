"""The benchmark of the model: rows of a table, each trained and measured for some seeds, with what is to be reached.

`bench/model.py` defines the rows and runs them. `model-ROW.json` in the folder of results holds a row's records, one
for each seed, and their means. Results of schema 1 are read too (`vae_edge.experiments.trials.upgrade`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vae_edge.benchmarking import describe_machine
from vae_edge.data import Dataset, LabelledImages, check_no_leakage, rotate_dataset
from vae_edge.data.random_numbers import permutation
from vae_edge.errors import DataError
from vae_edge.experiments import baselines
from vae_edge.experiments.baselines import LogitsOnly, cross_entropy_loss, inference_cost, training_macs, vae_loss
from vae_edge.experiments.evaluation import evaluate_network, evaluate_vae
from vae_edge.experiments.trials import (
    SCHEMA,
    ProgressBar,
    Record,
    TrainedModel,
    Trials,
    check_form,
    damaged,
    over_seeds,
    read_record,
    train_network,
    train_vae,
)
from vae_edge.files import write_json
from vae_edge.model import AngleVAE, create_config
from vae_edge.preprocess import measure_input
from vae_edge.training.checkpoint import LOG, RunConfig, load_state, read_tensors, write_tensors
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import DataSplits, make_run_config, make_splits
from vae_edge.training.evaluate import rotate_like_training
from vae_edge.training.trainer import Progress, Schedule, fast_bf16

DIGITS = 6  # decimals that are kept of a figure
GAIN_FILE = "gain"
NETWORK = "network.safetensors"  # a baseline's run holds it
FIXED_ROTATION_STREAM = 1 << 33  # the stream that images with fixed angles are chosen from
FIXED_ROTATION_SEED = 5000  # added to the seed, for their angles
PACKAGES = ("torch", "accelerate", "onnx", "onnxscript", "pillow")  # whose versions a record names

# -------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Goal:
    """A line of the table.

    Attributes:
        figure: the path of the number in a record's figures.
        reach, aim: what is required and what is hoped for, in `unit`; None where nothing is.
        scale: turns the figure into one of `unit`.
        lower: whether less is better.
    """

    what: str
    figure: tuple[str, ...]
    reach: float | None = None
    aim: float | None = None
    unit: str = "%"
    scale: float = 100.0
    lower: bool = False
    decimals: int = 2


@dataclass(frozen=True)
class Row:
    """What is trained on what, and the lines of the table that it fills.

    Attributes:
        training: what differs from `TrainConfig`'s defaults. The seed is the trial's.
        model: what differs from the preset, as `create_config` takes it.
        take: (training images, test images) chosen from the training split, each rotated once by a fixed random angle;
            None: the whole training split as it is, of which the run holds its test images out.
        ood: show OOD images, and time what the anomaly score costs.
        control_of: the row whose images, recipe and training compute a plain CNN of equal size gets.
    """

    name: str
    what: str
    data: str
    preset: str
    training: Mapping[str, Any]
    goals: tuple[Goal, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    take: tuple[int, int] | None = None
    ood: bool = False
    control_of: str | None = None

    def settings(self, seed: int) -> dict[str, Any]:
        """Everything that the figures depend on but the images, as JSON gives it back."""
        settings = {
            "data": self.data,
            "preset": self.preset,
            "model": asdict(create_config(self.preset, **self.model)),
            "training": TrainConfig(**{**self.training, "seed": seed}).to_dict(),
            "take": self.take,
            "control_of": self.control_of,
        }
        stored: dict[str, Any] = json.loads(json.dumps(settings))
        return stored


@dataclass(frozen=True)
class RowTrial:
    """A row, trained with one seed."""

    row: str
    seed: int


@dataclass(frozen=True)
class RowImages:
    """The images of a trial, split, and its run configuration.

    `upright` is the test set before it was rotated; None where it is upright, or was rotated beforehand.
    """

    dataset: Dataset
    config: RunConfig
    splits: DataSplits
    test: LabelledImages
    upright: LabelledImages | None


def prepare(row: Row, dataset: Dataset, seed: int) -> RowImages:
    """Split the images of a trial.

    Raises:
        DataError: if there are too few.
    """
    settings = TrainConfig(**{**row.training, "seed": seed})
    fixed_test = None
    if row.take is not None:
        dataset, fixed_test = rotate_by_fixed_angles(dataset, row.take, seed)
    splits = make_splits(dataset, settings)
    config = make_run_config(dataset, splits, row.preset, settings, **row.model)
    if fixed_test is not None:
        return RowImages(dataset, config, splits, fixed_test, None)
    test = rotate_like_training(splits.held_out, config, seed + 1)  # by the angles of the run's own validation
    return RowImages(dataset, config, splits, test, splits.held_out if config.model.orientation else None)


def rotate_by_fixed_angles(dataset: Dataset, take: tuple[int, int], seed: int) -> tuple[Dataset, LabelledImages]:
    """(training images, test images) of the training split, each rotated once by a random angle that is stored.

    Raises:
        DataError: if there are fewer, or if a test image is a copy of a training image.
    """
    split = dataset.train
    if split is None or len(split) < sum(take):
        have = 0 if split is None else len(split)
        raise DataError(f"{dataset.source}: {sum(take)} training images are needed, but there are {have}.")
    order = permutation(len(split), seed, stream=FIXED_ROTATION_STREAM)
    fill = measure_input(split.images).fill
    train, test = split.take(order[: take[0]]), split.take(order[take[0] : sum(take)])
    check_no_leakage(train, test)

    name = f"{take[0]} of {dataset.name}, rotated"
    train = rotate_dataset(train, 180.0, seed + FIXED_ROTATION_SEED, fill)
    test = rotate_dataset(test, 180.0, seed + FIXED_ROTATION_SEED + 1, fill)
    return Dataset(name, dataset.source, train, None), test


# ----------------------------------------------------------------------------------------------------- training


def train_row(images: RowImages, folder: Path, progress: Progress | None = None) -> tuple[TrainedModel, dict[str, Any]]:
    """Train our model, or take the finished run in the folder.

    Returns:
        the model; and `training_seconds`, over all parts of a run that was stopped, and `epochs`.
    """
    trained = train_vae(images.dataset, images.config, folder, len(images.splits.train), progress=progress)
    log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return trained, {"training_seconds": log[-1]["seconds"], "epochs": len(log)}


def train_control(
    images: RowImages, folder: Path, progress: Progress | None = None
) -> tuple[TrainedModel, dict[str, Any]]:
    """Train a plain CNN of our model's size and training compute on the same images, or take the folder's.

    It has as many parameters as the class depends on in our model, and our recipe but for the number of steps.

    Returns:
        the model, and what its training took.
    """
    config, settings, kept = images.config.model, images.config.training, images.splits.train
    ours = AngleVAE(config)
    pixels = torch.zeros(1, config.channels, config.height, config.width)
    parameters = inference_cost(LogitsOnly(ours), pixels).parameters
    torch.manual_seed(settings.seed)
    network = baselines.cnn_of_size(config, parameters)
    if (folder / NETWORK).is_file():
        return _load_control(network, folder)

    macs = training_macs(network, cross_entropy_loss, config.size, config.channels)
    our_macs = training_macs(ours, vae_loss, config.size, config.channels)
    schedule = Schedule.from_config(settings, len(kept) + len(images.splits.unlabelled))
    steps = baselines.equal_compute_steps(schedule.steps, our_macs, macs)
    trained = train_network(network, kept, images.config, steps, macs, progress)
    about = {
        "training_seconds": round(trained.seconds["wall_seconds"], 2),
        "epochs": round(steps * schedule.batch / len(kept), 2),
        "training_macs": macs * steps * schedule.batch,
        "training_macs_of_vae": our_macs * schedule.steps * schedule.batch,
    }
    write_tensors(folder / NETWORK, trained.model.state_dict(), about)
    return trained, about


def _load_control(network: nn.Module, folder: Path) -> tuple[TrainedModel, dict[str, Any]]:
    tensors, about = read_tensors(folder / NETWORK)
    load_state(network, tensors, folder / NETWORK)
    network.eval()

    def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return baselines.network_probabilities(network, pixels).argmax(1)

    return TrainedModel(network, classify, {}, 0, None), about


# ------------------------------------------------------------------------------------------------------- trials


class ModelBenchmark(Trials[RowTrial]):
    """The trials of the rows, in a folder of runs and a folder of results.

    Args:
        load_data: gives a data set by the name that a row has for it.
        load_clothes: gives images of another data set as OOD images, and its fingerprint; None, None: there are none.
        again: `measure` or `train`: do anew what is there already.
        seconds: for the latencies of a trial.
        gain: two rows whose difference is written as well.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        load_data: Callable[[str], Dataset],
        load_clothes: Callable[[], tuple[LabelledImages | None, str | None]],
        runs: Path,
        results: Path,
        seconds: float,
        again: str | None = None,
        gain: Gain | None = None,
    ) -> None:
        self.rows, self.runs, self.results, self.seconds, self.again = rows, runs, results, seconds, again
        self.gain = gain
        self._load_data, self._load_clothes = load_data, load_clothes
        self._data: dict[str, tuple[Dataset, str]] = {}

    def data(self, row: str) -> tuple[Dataset, str]:
        """A row's data set and its fingerprint; each is loaded once.

        Raises:
            DataError: if it is not there.
        """
        name = self.rows[row].data
        if name not in self._data:
            dataset = self._load_data(name)
            self._data[name] = dataset, dataset.fingerprint()
        return self._data[name]

    @cached_property
    def clothes(self) -> tuple[LabelledImages | None, str | None]:
        """OOD images that cannot be made out of known ones, and the fingerprint of their data set."""
        return self._load_clothes()

    def run_folder(self, trial: RowTrial) -> Path:
        """A trial's run. Other settings or other images have another folder."""
        row, (_, fingerprint) = self.rows[trial.row], self.data(trial.row)
        text = json.dumps([row.settings(trial.seed), fingerprint], sort_keys=True)
        return self.runs / f"{row.name}-{trial.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    # ------------------------------------------------------------------------------------------------- storage

    def load(self, trial: RowTrial) -> Record | None:
        """The stored record, unless the trial is to be done again."""
        return None if self.again else self.records(trial.row).get(trial.seed)

    def records(self, row: str) -> dict[int, Record]:
        """A row's records by seed: those of today's settings and data."""
        stored = read_results(result_file(self.results, row))
        return {seed: record for seed, record in stored.items() if identity(record) == self._identity(row, record)}

    def _identity(self, name: str, record: Record) -> dict[str, Any]:
        """What the identity of a record is today. Without clothes, a record that has them is taken as it is."""
        row, (_, fingerprint) = self.rows[name], self.data(name)
        clothes = self.clothes[1] if row.ood else None
        if row.ood and clothes is None:
            clothes = record["data"]["clothes"]
        data = {"name": row.data, "fingerprint": fingerprint, "clothes": clothes}
        return {"settings": row.settings(int(record["seed"])), "data": data}

    def save(self, trial: RowTrial, record: Record) -> None:
        """Write the row's file, and that of the gain where the row is one of its two."""
        row = self.rows[trial.row]
        records = {**self.records(trial.row), trial.seed: record}
        write_results(result_file(self.results, row.name), row.name, row.what, row.goals, records)
        if self.gain is not None and trial.row in (self.gain.of, self.gain.over):
            of, over = self.gain.of, self.gain.over
            write_gain(self.results, self.gain, self.rows[of].what, self.records(of), self.records(over))

    # ------------------------------------------------------------------------------------------------ training

    def run(self, trial: RowTrial, progress_bar: ProgressBar) -> Record:
        """Train and evaluate; the record."""
        row, (dataset, fingerprint) = self.rows[trial.row], self.data(trial.row)
        clothes, clothes_fingerprint = self.clothes if row.ood else (None, None)
        folder = self.run_folder(trial)
        if self.again == "train":
            shutil.rmtree(folder, ignore_errors=True)
        images = prepare(row, dataset, trial.seed)
        train = train_row if row.control_of is None else train_control
        with progress_bar(f"{row.name}, seed {trial.seed}") as progress:
            trained, took = train(images, folder, progress)

        start = time.monotonic()
        if row.control_of is None:
            bundle = folder.with_name(f"{folder.name}-bundle")
            figures = evaluate_vae(
                trained,
                images.test,
                images.upright,
                images.dataset.test,
                calibration_data(images),
                bundle,
                clothes,
                row.ood,
                self.seconds,
            )
        else:
            figures = evaluate_network(trained, images.test, images.upright, images.config)
        machine = describe_machine(torch.get_num_threads())
        bf16 = images.config.training.bf16
        return {
            "seed": trial.seed,
            "settings": row.settings(trial.seed),
            "data": {"name": row.data, "fingerprint": fingerprint, "clothes": clothes_fingerprint},
            "images": {
                "trained_on": len(images.splits.train),
                "unlabelled": len(images.splits.unlabelled),
                "held_out": len(images.splits.held_out),
                "tested_on": len(images.test),
            },
            "figures": rounded({**figures, **took}),
            "measuring_seconds": round(time.monotonic() - start, 2),
            "machine": machine,
            "versions": {**machine["versions"], **{name: metadata.version(name) for name in PACKAGES}},
            "bf16": fast_bf16() if bf16 is None else bf16,
            "date": machine["date"],
        }


def calibration_data(images: RowImages) -> Dataset:
    """What int8 is calibrated on: the run's data, or the labelled images alone where training had no others."""
    training = images.config.training
    if not training.labels_only or training.labels_per_class is None:
        return images.dataset
    return Dataset(images.dataset.name, images.dataset.source, images.splits.train, images.splits.held_out)


# ------------------------------------------------------------------------------------------------ files, table


@dataclass(frozen=True)
class Gain:
    """What one row gains over another in accuracy, seed by seed."""

    of: str
    over: str
    goal: Goal


def result_file(results: Path, row: str) -> Path:
    """The file of a row's records."""
    return results / f"model-{row}.json"


def read_results(path: Path) -> dict[int, Record]:
    """A file's records by seed; none where there is no file.

    Raises:
        CheckpointError: if the file is damaged, or of another version.
    """
    if not path.is_file():
        return {}
    stored = read_record(path)
    try:
        records = stored.get("seeds")
        if not isinstance(records, list):
            raise ValueError("its field seeds is missing or of another type")
        for record in records:
            check_form(record, {"seed": int, "settings": dict, "data": dict, "figures": dict})
        return {record["seed"]: record for record in records}
    except ValueError as error:
        raise damaged(path, error) from error


def identity(record: Record) -> dict[str, Any]:
    """What a record's figures depend on."""
    return {"settings": record["settings"], "data": record["data"]}


def write_results(path: Path, row: str, what: str, goals: Sequence[Goal], records: Mapping[int, Record]) -> None:
    """Write a row's file. All records have the same settings but for the seed."""
    seeds = [records[seed] for seed in sorted(records)]
    figures = rounded(over_seeds([record["figures"] for record in seeds]))
    write_json(
        path,
        {
            "schema": SCHEMA,
            "row": row,
            "what": what,
            "goals": rounded([goal_line(goal, figures) for goal in goals]),
            "figures": figures,
            "seeds": seeds,
        },
    )


def goal_line(goal: Goal, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What is wanted and, in the same unit, what was reached; `n` is 0 where nothing was measured."""
    found: Any = figures
    for name in goal.figure:
        found = found.get(name, {})
    wanted = {"what": goal.what, "unit": goal.unit, "reach": goal.reach, "aim": goal.aim}
    form = {"lower": goal.lower, "decimals": goal.decimals}
    if not found:
        return {**wanted, "mean": None, "std": None, "n": 0, **form}
    deviation = None if found["std"] is None else goal.scale * found["std"]
    return {**wanted, "mean": goal.scale * found["mean"], "std": deviation, "n": len(found["by_seed"]), **form}


def rounded(value: Any) -> Any:
    """The same tree with floats of six decimals."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def write_gain(results: Path, gain: Gain, what: str, of: Mapping[int, Record], over: Mapping[int, Record]) -> None:
    """Write the gain of the seeds whose two records have the same recipe and images.

    Where there are none, a file of an earlier recipe is removed.
    """
    path = result_file(results, GAIN_FILE)
    pairs = {}
    for seed in sorted(set(of) & set(over)):
        one, other = of[seed], over[seed]
        same_recipe = {**one["settings"], "control_of": None} == {**other["settings"], "control_of": None}
        if same_recipe and one["data"]["fingerprint"] == other["data"]["fingerprint"]:
            first, second = one["figures"]["accuracy"], other["figures"]["accuracy"]
            figures = {gain.of: first, gain.over: second, "gain": first - second}
            pairs[seed] = {"seed": seed, **identity(one), "figures": figures, "date": other["date"]}
    if pairs:
        write_results(path, GAIN_FILE, what, (gain.goal,), pairs)
    else:
        path.unlink(missing_ok=True)


def table(results: Path, rows: Mapping[str, Row], gain: Gain) -> str:
    """The Markdown table of the rows that have a file. It says which were measured with other settings."""
    lines = ["| what | images | reach | aim for | reached |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        lines += _table_lines(result_file(results, name), row, row.goals)
        if name == gain.over:
            lines += _table_lines(result_file(results, GAIN_FILE), rows[gain.of], (gain.goal,))
    return "\n".join(lines)


def _table_lines(path: Path, row: Row, goals: Iterable[Goal]) -> Iterator[str]:
    records = read_results(path)
    if not records:
        return
    figures = rounded(over_seeds([records[seed]["figures"] for seed in sorted(records)]))
    current = all(record["settings"] == row.settings(seed) for seed, record in records.items())
    for goal in goals:
        line = rounded(goal_line(goal, figures))
        reached = _reached(line) + ("" if current else ", with other settings")
        yield f"| {' | '.join((line['what'], row.what, _wanted(line, 'reach'), _wanted(line, 'aim'), reached))} |"


def _wanted(line: Mapping[str, Any], which: str) -> str:
    if line[which] is None:
        return "–"
    return f"{'≤' if line['lower'] else '≥'} {line[which]:,.10g}{line['unit']}"


def _reached(line: Mapping[str, Any]) -> str:
    if not line["n"]:
        return "not measured"
    decimals = line["decimals"]
    deviation = "" if line["std"] is None else f" ± {line['std']:,.{decimals}f}"
    mean = round(line["mean"], decimals) + 0.0  # a small negative number would be -0
    return f"{mean:,.{decimals}f}{line['unit']}{deviation}, {line['n']} seed{'s' if line['n'] > 1 else ''}"
