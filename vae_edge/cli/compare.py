"""The command that compares our networks with what a user would use instead: cells, latencies, table and plot."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from vae_edge.api import check_folder, open_data
from vae_edge.cli.console import emit, percent, say, training_progress
from vae_edge.errors import ConfigError

TRAIN_IMAGES = 12_000  # by default, or all where there are fewer
LATENCY_THREADS = 1
WARM_CALLS = 3
PACKAGES = ("torch", "scikit-learn", "skl2onnx", "onnx")
LATE, ESTIMATING = ("onnxruntime", "onnxscript", "matplotlib"), ("sklearn", "skl2onnx")  # modules used after training


def compare(arguments: argparse.Namespace) -> None:
    """`vae-edge compare`."""
    import torch

    from vae_edge.experiments.setup import ESTIMATORS, KINDS, MODELS, Settings, list_cells, summarize_cells
    from vae_edge.experiments.trials import Comparison, Exporter
    from vae_edge.export.onnx_file import ClassifierGraph
    from vae_edge.files import write_json
    from vae_edge.model import create_config
    from vae_edge.report.comparison import write_comparison
    from vae_edge.training.distributed import use_threads

    use_threads(arguments.threads)
    if arguments.seconds <= 0:
        raise ConfigError(f"--seconds {arguments.seconds}: expected a time above 0")
    models = arguments.models or list(MODELS)
    kinds = [arguments.only] if arguments.only else list(KINDS)
    seeds = list(range(arguments.seed, arguments.seed + arguments.seeds))
    cells = list_cells(models, kinds, not arguments.no_generated, seeds)
    out = check_folder(arguments.out)
    create_config(arguments.preset)
    for package in (*LATE, *(ESTIMATING if set(models) & set(ESTIMATORS) else ())):
        import_module(package)  # what is missing is said before the training, not after
    dataset = open_data(
        arguments.data,
        size=arguments.size,
        channels=arguments.channels,
        fit=arguments.fit,
        strict=arguments.strict,
    )
    for note in dataset.notes:
        say(note)
    settings = Settings(
        arguments.preset, _train_images(arguments.train_images, dataset), arguments.images_seen, arguments.generated
    )
    place = _where(torch.get_num_threads())
    where = {name: place["machine"][name] for name in ("cpu", "threads", "code")}
    comparison = Comparison(dataset, settings, out, seeds[0], Exporter(to_files, ClassifierGraph), where)
    records = _finish_all(comparison, cells)
    say("timing one decision of each model, in turns")
    latency = time_files(out / "cells", records, arguments.seconds)
    result: dict[str, Any] = {
        "schema": 1,
        "data": {"name": dataset.name, "fingerprint": comparison.fingerprint, "classes": len(dataset.classes)},
        "settings": settings.of(cells[0]) | {"generated": None if arguments.no_generated else settings.generated},
        "seeds": seeds,
        "models": {name: MODELS[name] for name in MODELS if name in models},
        **place,
        **summarize_cells(records, latency),
        "generators": _generators(records),
        "cells": records,
    }
    write_json(out / "compare.json", result)
    files = write_comparison(result, out)
    emit(result, arguments.json, lambda: _lines(result, files))


def _train_images(asked: str | None, dataset: Any) -> int | None:
    """The number asked for; by default 12,000, or all where there are fewer; None is all."""
    from vae_edge.experiments.setup import HELD, INNER

    if asked == "all" or dataset.train is None:
        return None
    if asked is None:
        return TRAIN_IMAGES if len(dataset.train) * (1 - HELD) * (1 - INNER) > TRAIN_IMAGES * 1.01 else None
    if not asked.isdecimal():
        raise ConfigError(f"--train-images {asked}: expected a whole number, or all")
    return int(asked)


def _finish_all(comparison: Any, cells: Sequence[Any]) -> list[dict[str, Any]]:
    from vae_edge.experiments.trials import estimate
    from vae_edge.training.trainer import Interrupted

    needed = comparison.needed(cells)
    say(f"{len(cells)} cells; {len(needed)} are to be trained (generators included), the others are done already")
    if needed:
        seconds = estimate(comparison.ground, needed)
        parts = ", ".join(f"{name} {_minutes(value)}" for name, value in seconds.items())
        say(f"this takes about {_minutes(sum(seconds.values()))} on this machine ({parts})")
    for number, cell in enumerate(needed, 1):
        try:
            record = comparison.finish(cell, training_progress)
        except Interrupted as error:
            raise Interrupted(f"{error}; the same command goes on with the cells that are not done") from error
        took = record["training"]
        say(
            f"[{number}/{len(needed)}] {cell.name}: {percent(record['accuracy'])}, trained in "
            f"{took['wall_seconds']:.1f} s ({took['processor_seconds']:.1f} s of processor time)"
        )
    return [comparison.finish(cell) for cell in cells]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def to_files(model: Any, size: int, channels: int) -> dict[str, bytes]:
    """A fitted model's ONNX files: `decision` gives one number for each class; of ours also `whole`, as exported."""
    import torch

    from vae_edge.experiments.baselines import decision_onnx, estimator_onnx
    from vae_edge.export.onnx_file import ClassifierGraph, to_onnx
    from vae_edge.model import AngleVAE

    about = {"role": "comparison"}
    if not isinstance(model, torch.nn.Module):
        return {"decision": estimator_onnx(model, size, channels, about).SerializeToString()}
    files = {"decision": decision_onnx(model, size, channels, about).SerializeToString()}
    if isinstance(model, AngleVAE):
        graph = ClassifierGraph(model)
        files["whole"] = to_onnx(graph, size, channels, graph.outputs, about).SerializeToString()
    return files


def time_files(folder: Path, records: Sequence[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Median microseconds of one call for one image, by the name of the ONNX file; in turns, on one thread."""
    import numpy as np

    from vae_edge.benchmark import time_in_turns
    from vae_edge.bundle import ModelEntry
    from vae_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend

    names = [file["file"] for record in records for file in record["files"].values()]
    with contextlib.ExitStack() as stack:
        calls = []
        for name in names:
            backend = OnnxRuntimeBackend(folder / name, ModelEntry("classifier", "fp32"), LATENCY_THREADS)
            stack.callback(backend.close)
            shape = [1, *backend.inputs[0].shape[1:]]
            image = np.random.default_rng(0).integers(0, 256, [int(side or 1) for side in shape], dtype=np.uint8)
            for _ in range(WARM_CALLS):
                backend.infer(image)
            calls.append(partial(backend.infer, image))
        times = time_in_turns(calls, seconds)
        return {name: round(float(np.median(taken)) / 1e3, 2) for name, taken in zip(names, times, strict=True)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _where(threads: int) -> dict[str, Any]:
    """The machine and the versions of what was compared."""
    from vae_edge.benchmark import describe_machine

    machine = describe_machine(threads)
    return {
        "machine": machine,
        "latency_threads": LATENCY_THREADS,
        "versions": {**machine["versions"], **{name: _version(name) for name in PACKAGES}},
    }


def _generators(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What drew the generated images, each once."""
    found = {record["generator"]["cell"]: record["generator"] for record in records if record["generator"]}
    return list(found.values())


def _lines(result: dict[str, Any], files: Sequence[Path]) -> Iterator[str]:
    for row in result["rows"]:
        accuracy = row["accuracy"]
        deviation = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
        mixture = " with generated images" if row["generated"] else ""
        latency = row["decision"]["latency_us"]
        yield (
            f"{row['images']:<8} {row['model']:<10} {percent(accuracy['mean'])}{deviation}{mixture}, "
            f"{row['wall_seconds']:,.1f} s, {row['decision']['parameters']:,} parameters"
            f"{'' if latency is None else f', {latency:,.0f} µs'}"
        )
    yield result["sentence"]
    yield "written: " + ", ".join(str(path) for path in files)
