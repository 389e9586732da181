"""What the model reaches: trains and measures every row of the table in docs/model_tables.md.

    python bench/model.py [--row NAME ...] [--seed N ...] [--runs runs/model] [--results bench/results]
    python bench/model.py --list | --table

The rows and their settings are in bench/model_rows.py. MNIST and Fashion-MNIST come from the folder that VAE_EDGE_DATA
names, photographs from bench/photographs.py. Test images are held out of the training split, and nothing is trained on
them. A row and seed that is finished is written to bench/results/model-ROW.json. Stopped anywhere, the same command
goes on from there; a plain network is trained anew. What was measured with the same settings on the same images is
kept; --again measure measures it anew, --again train trains it anew as well. --quick runs every row on a few built-in
digits, without generated images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import photographs
import torch
from command_line import log, natural, positive, progress_lines
from model_rows import GAIN, ROWS

from vae_edge.data import Dataset, LabelledImages, load_dataset
from vae_edge.errors import ConfigError, DataError, VaeEdgeError
from vae_edge.experiments.model_benchmark import ModelBenchmark, Row, RowTrial, table
from vae_edge.training.trainer import Interrupted

RESULTS = Path(__file__).parent / "results"
CLOTHES = "fashion-mnist"
PHOTOGRAPHS, FEW_PHOTOGRAPHS, FEW_DIGITS = "photographs", "few photographs", "few digits"
PHOTOGRAPHS_PER_CLASS = {PHOTOGRAPHS: (300, 100), FEW_PHOTOGRAPHS: (10, 4)}  # to train on, and to test
QUICK_DIGITS_PER_CLASS, QUICK_TAKE, QUICK_SECONDS = 40, (200, 150), 0.2


def quickened(row: Row) -> Row:
    """The same row on a few images for one epoch: all of its code runs, and its figures say nothing."""
    data = FEW_PHOTOGRAPHS if row.data == PHOTOGRAPHS else FEW_DIGITS
    labels = row.training.get("labels_per_class")
    fewer = {} if labels is None else {"labels_per_class": min(labels, 10)}
    return replace(
        row,
        what=f"{data} in place of: {row.what}",
        data=data,
        training={**row.training, **fewer, "epochs": 1, "batch": 32, "synthetic_ratio": 0.0},
        take=None if row.take is None else QUICK_TAKE,
    )


def load_data(runs: Path, name: str) -> Dataset:
    """A data set by the name that a row gives it; the folder of photographs is made in `runs` where it is missing.

    Raises:
        DataError: it is not there, and cannot be made.
    """
    if name in PHOTOGRAPHS_PER_CLASS:
        folder = runs / name.replace(" ", "-")
        if not folder.is_dir():
            photographs.write(folder, *PHOTOGRAPHS_PER_CLASS[name], seed=0)
        return load_dataset(folder)
    if name == FEW_DIGITS:
        train = load_dataset("digits").train
        assert train is not None
        chosen = [np.flatnonzero(train.labels == k)[:QUICK_DIGITS_PER_CLASS] for k in range(len(train.classes))]
        return Dataset(name, "the built-in digits", train.take(np.concatenate(chosen)), None)
    return load_dataset(name)


def load_clothes() -> tuple[LabelledImages | None, str | None]:
    """Fashion-MNIST as OOD images, and its fingerprint; None without it."""
    try:
        dataset = load_dataset(CLOTHES)
    except DataError as error:
        log(f"nothing is measured against clothes: {error}")
        return None, None
    return dataset.train, dataset.fingerprint()


def describe(row: Row) -> str:
    """A line of `--list`."""
    settings = ", ".join(f"{name} {value}" for name, value in row.training.items())
    return f"{row.name:<24} {row.what}; {row.preset}, {settings}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        ConfigError: quick results are to go where the measured ones are.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", nargs="+", choices=tuple(ROWS), metavar="NAME", help="default: all; see --list")
    parser.add_argument("--seed", nargs="+", type=natural, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--runs", type=Path, help="folder of the training runs (default: runs/model)")
    parser.add_argument("--results", type=Path, help="folder of the results (default: bench/results)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for the latencies of a row (default: 20)")
    parser.add_argument("--threads", type=positive, help="of training (default: all)")
    parser.add_argument("--again", choices=("measure", "train"), help="do anew what is there already")
    parser.add_argument("--quick", action="store_true", help="a few digits and one epoch: figures that say nothing")
    parser.add_argument("--list", action="store_true", help="list the rows and do nothing")
    parser.add_argument("--table", action="store_true", help="print the table of the results that there are")
    arguments = parser.parse_args(argv)
    suffix = "-quick" if arguments.quick else ""
    arguments.runs = arguments.runs or Path(f"runs/model{suffix}")
    arguments.results = arguments.results or (arguments.runs / "results" if arguments.quick else RESULTS)
    if arguments.quick and arguments.results.resolve() == RESULTS.resolve():
        raise ConfigError(f"--quick does not write to {RESULTS}, where measured results are: give another --results")
    return arguments


def run(arguments: argparse.Namespace, rows: dict[str, Row]) -> None:
    """Every row that was asked for, seed by seed. By default, rows whose data is missing are left out.

    Raises:
        DataError: the data of a row that was asked for by name is missing, or that of all rows.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    benchmark = ModelBenchmark(
        rows,
        partial(load_data, arguments.runs),
        load_clothes,
        arguments.runs,
        arguments.results,
        seconds,
        arguments.again,
        GAIN,
    )
    missing: set[str] = set()
    for seed in arguments.seed:
        for name in arguments.row or rows:
            try:
                benchmark.data(name)
            except DataError as error:
                if arguments.row:
                    raise
                if name not in missing:
                    log(f"{name}: left out: {error}")
                missing.add(name)
                if missing == set(rows):
                    raise
                continue
            run_trial(benchmark, RowTrial(name, seed))


def run_trial(benchmark: ModelBenchmark, trial: RowTrial) -> None:
    """Train and measure, unless that is done."""
    if benchmark.load(trial) is not None:
        log(f"{trial.row}, seed {trial.seed}: done already")
        return
    start = time.monotonic()
    figures = benchmark.run_or_load(trial, progress_lines)["figures"]
    log(
        f"{trial.row}, seed {trial.seed}: accuracy {100 * figures['accuracy']:.2f}%, "
        f"{time.monotonic() - start:.0f} s, {figures['training_seconds']:.0f} s of them for training"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    try:
        arguments = parse(argv)
        rows = {name: quickened(row) if arguments.quick else row for name, row in ROWS.items()}
        if arguments.list:
            print("\n".join(describe(row) for row in ROWS.values()))
        elif arguments.table:
            print(table(arguments.results, rows, GAIN))
        else:
            run(arguments, rows)
    except KeyboardInterrupt:
        print("model: stopped; the same command goes on", file=sys.stderr)
        return 130
    except Interrupted as error:
        print(f"model: {error}; the same command goes on", file=sys.stderr)
        return 130
    except VaeEdgeError as error:
        print(f"model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
