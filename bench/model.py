"""What the model reaches: trains and measures every row of the table in docs/model.md from the data folder.

    python bench/model.py [--row NAME ...] [--seed N ...] [--runs runs/model] [--results bench/results]
    python bench/model.py --list | --table

The rows and their settings are in bench/model_rows.py. MNIST and Fashion-MNIST come from the folder that VAE_EDGE_DATA
names, photographs from bench/photographs.py. Judged is on images held out of the training half, of which nothing was
trained on. Each row and seed is trained alone and written to bench/results/model-ROW.json when it is done; stopped
anywhere, the same command (without --again) goes on from there; a plain network is trained anew. What was measured with
the same settings on the same images is kept; --again measures it anew (measure), or trains it anew as well (train).
--quick runs every line on a few built-in digits, without generated images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from model_figures import measure_control, measure_ours
from model_results import (
    CONTROL,
    OURS,
    Entry,
    read_entries,
    results_file,
    rounded,
    table,
    write_entries,
    write_gain,
)
from model_rows import ROWS, Row
from model_training import fit_control, fit_ours, load_data, prepare, quickened, run_folder, settings_of

from vae_edge.benchmark import describe_machine
from vae_edge.cli.console import say, training_progress
from vae_edge.cli.parser import positive
from vae_edge.cli.parser import seed as any_seed
from vae_edge.data import Dataset, LabelledImages, load_dataset
from vae_edge.errors import ConfigError, DataError, VaeEdgeError
from vae_edge.training.trainer import Interrupted, fast_bf16

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "accelerate", "onnx", "onnxscript", "pillow")
CLOTHES = "fashion-mnist"
QUICK_SECONDS = 0.2


class Bench:
    """The data, the folders and the results; `finish` brings a row's entry for a seed about."""

    def __init__(self, runs: Path, results: Path, quick: bool, again: str | None, seconds: float) -> None:
        self.runs, self.results, self.quick, self.again, self.seconds = runs, results, quick, again, seconds
        self._data: dict[str, tuple[Dataset, str]] = {}

    def data(self, name: str) -> tuple[Dataset, str]:
        """A data set and its fingerprint, loaded once."""
        if name not in self._data:
            dataset = load_data(name, self.runs)
            self._data[name] = dataset, dataset.fingerprint()
        return self._data[name]

    @cached_property
    def clothes(self) -> tuple[LabelledImages | None, str | None]:
        """Unknown images that cannot be made out of known ones, and their data set's fingerprint; None without it."""
        try:
            dataset = load_dataset(CLOTHES)
        except DataError as error:
            say(f"nothing is measured against clothes: {error}")
            return None, None
        return dataset.train, dataset.fingerprint()

    def entries(self, row: Row) -> dict[int, Entry]:
        """A row's entries that hold for its settings and the data as they are now."""
        _, fingerprint = self.data(row.data)
        clothes = self.clothes[1] if row.rejection else None

        def expected(entry: Entry) -> dict[str, Any]:
            known = entry["data"]["clothes"] if row.rejection and clothes is None else clothes
            data = {"name": row.data, "fingerprint": fingerprint, "clothes": known}
            return {"settings": settings_of(row, int(entry["seed"])), "data": data}

        return read_entries(results_file(self.results, row.name), expected)

    def row(self, name: str) -> Row:
        """The row of that name, as it is run."""
        return quickened(ROWS[name]) if self.quick else ROWS[name]

    def finish(self, name: str, seed: int) -> None:
        """Train and measure, unless that is done, and write the row's file."""
        row = self.row(name)
        before = self.entries(row)
        if seed in before and self.again is None:
            say(f"{row.name}, seed {seed}: done already")
            entry = before[seed]
        else:
            began = time.monotonic()
            entry = self.made(row, seed)
            say(
                f"{row.name}, seed {seed}: accuracy {100 * entry['figures']['accuracy']:.2f}%, "
                f"{time.monotonic() - began:.0f} s, {entry['figures']['training_seconds']:.0f} s of them for training"
            )
        path = results_file(self.results, row.name)
        write_entries(path, row.name, row.what, row.goals, {**self.entries(row), seed: entry})
        if row.name in (OURS, CONTROL):
            write_gain(self.results, *(self.entries(self.row(name)) for name in (OURS, CONTROL)))

    def made(self, row: Row, seed: int) -> Entry:
        """The entry of a row and a seed."""
        dataset, fingerprint = self.data(row.data)
        clothes, clothes_fingerprint = self.clothes if row.rejection else (None, None)
        run = run_folder(row, seed, fingerprint, self.runs)
        if self.again == "train":
            shutil.rmtree(run, ignore_errors=True)
        ground = prepare(row, dataset, seed)
        with training_progress(f"{row.name}, seed {seed}") as progress:
            if row.control_of is None:
                took = fit_ours(ground, run, progress)
            else:
                network, took = fit_control(ground, run, progress)
        began = time.monotonic()
        if row.control_of is None:
            figures = measure_ours(row, ground, run, clothes, self.seconds)
        else:
            figures = measure_control(network, ground)
        machine = describe_machine(torch.get_num_threads())
        return {
            "seed": seed,
            "settings": settings_of(row, seed),
            "data": {"name": row.data, "fingerprint": fingerprint, "clothes": clothes_fingerprint},
            "images": {
                "trained_on": len(ground.material.train),
                "unlabelled": len(ground.material.unlabelled),
                "held_out": len(ground.material.held_out),
                "judged_on": len(ground.judges),
            },
            "figures": rounded({**figures, **took}),
            "measuring_seconds": round(time.monotonic() - began, 2),
            "machine": machine,
            "versions": {**machine["versions"], **{name: metadata.version(name) for name in PACKAGES}},
            "bf16": fast_bf16() if ground.config.training.bf16 is None else ground.config.training.bf16,
            "date": machine["date"],
        }


def describe(row: Row) -> str:
    """A line of `--list`."""
    told = ", ".join(f"{name} {value}" for name, value in row.training.items())
    return f"{row.name:<24} {row.what}; {row.preset}, {told}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        ConfigError: quick results are to go where the real ones are.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", nargs="+", choices=tuple(ROWS), metavar="NAME", help="default: all; see --list")
    parser.add_argument("--seed", nargs="+", type=any_seed, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
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


def run(arguments: argparse.Namespace) -> None:
    """Every row that was asked for, seed by seed; by default those are left out whose data is not there.

    Raises:
        DataError: the data of a row that was asked for by name is not there, or of all rows.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    bench = Bench(arguments.runs, arguments.results, arguments.quick, arguments.again, seconds)
    missing: set[str] = set()
    for number in arguments.seed:
        for name in arguments.row or ROWS:
            try:
                bench.data(bench.row(name).data)
            except DataError as error:
                if arguments.row:
                    raise
                if name not in missing:
                    say(f"{name}: left out: {error}")
                missing.add(name)
                if missing == set(ROWS):
                    raise
                continue
            bench.finish(name, number)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    try:
        arguments = parse(argv)
        if arguments.list:
            print("\n".join(describe(row) for row in ROWS.values()))
        elif arguments.table:
            rows = {name: quickened(row) if arguments.quick else row for name, row in ROWS.items()}
            print(table(arguments.results, rows))
        else:
            run(arguments)
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
