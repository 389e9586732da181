"""The commands that need PyTorch, and those on data sets: quickstart, data, train, generate, compare."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge import api
from vae_edge.cli.console import emit, fraction_progress, percent, say, training_progress
from vae_edge.cli.evaluate import held_out_lines
from vae_edge.data.load import left_out_lines, open_data
from vae_edge.errors import ConfigError
from vae_edge.files import check_folder
from vae_edge.listing import left_out_json

if TYPE_CHECKING:
    from vae_edge.experiments.comparison import ComparisonResult
    from vae_edge.pipeline import QuickstartResult
    from vae_edge.training.config import TrainConfig


def quickstart(arguments: argparse.Namespace) -> None:
    """`vae-edge quickstart`."""
    from vae_edge.pipeline import quickstart

    result = quickstart(
        arguments.data,
        arguments.out,
        preset=arguments.preset,
        epochs=arguments.epochs,
        seed=arguments.seed,
        strict=arguments.strict,
        cache=arguments.cache,
        training_progress=lambda: training_progress("training"),
        benchmark_progress=fraction_progress,
    )
    emit(result.to_json(), arguments.json, lambda: _quickstart_lines(result))


def _quickstart_lines(result: QuickstartResult) -> Iterator[str]:
    error = result.angle_error_deg
    yield f"rotated by any angle {percent(result.accuracy)}, upright {percent(result.upright_accuracy)}"
    yield f"angle error: median {error['median']}°, mean {error['mean']}°"
    for row in result.precisions:
        yield f"  {row['precision']}: {percent(row['accuracy'])}, {row['bytes'] / 1024:,.0f} KiB"
    yield f"trained for {result.trained_for}"
    yield f"{result.seconds} s in all"
    yield f"bundle: {result.bundle}"
    yield f"report: {result.report}"


def train(arguments: argparse.Namespace) -> None:
    """`vae-edge train`."""
    from vae_edge.training.trainer import Interrupted

    config = train_config(arguments)
    try:
        with training_progress("training") as progress:
            result = api.train(
                arguments.data,
                arguments.out,
                config,
                preset=arguments.preset,
                size=arguments.size,
                channels=arguments.channels,
                fit=arguments.fit,
                alpha_background=arguments.alpha_background,
                val=arguments.val,
                strict=arguments.strict,
                cache=arguments.cache,
                resume=arguments.resume,
                tensorboard=arguments.tensorboard,
                threads=arguments.threads,
                progress=progress,
            )
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with --resume") from error
    emit(result.to_json(), arguments.json, lambda: _training_lines(result))


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    """The training options; those that were not given keep their defaults.

    Raises:
        ConfigError: for an option out of range.
    """
    from vae_edge.model import LossWeights
    from vae_edge.training.config import TrainConfig

    def given(*names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(arguments, name)) is not None}

    return TrainConfig(
        rotation=str(arguments.rotation),
        weights=LossWeights(**given("beta", "gamma", "delta")),
        seed=arguments.seed,
        **given(
            "epochs",
            "batch",
            "learning_rate",
            "holdout",
            "group_by",
            "reject_rate",
            "augment",
            "mirror",
            "labels_per_class",
            "labels_only",
            "synthetic_ratio",
            "patience",
            "bf16",
            "compile",
        ),
    )


def _training_lines(trained: api.TrainedRun) -> Iterator[str]:
    yield from held_out_lines(trained.result)
    yield f"next: vae-edge export {trained.path} --out BUNDLE"


def generate(arguments: argparse.Namespace) -> None:
    """`vae-edge generate`."""
    result = api.generate(
        arguments.model,
        arguments.out,
        per_class=arguments.per_class,
        classes=arguments.classes or (),
        angles_deg=arguments.angles or (0.0,),
        method=arguments.method,
        temperature=arguments.temperature,
        confidence=arguments.confidence,
        seed=arguments.seed,
    )
    line = f"{result.images} images in {result.path}; all on one page: {result.contact_sheet}"
    emit(result.to_json(), arguments.json, lambda: iter([line]))


def fetch(arguments: argparse.Namespace) -> None:
    """`vae-edge data fetch`."""
    from vae_edge.data import fetch_dataset

    folder = arguments.out or os.environ.get("VAE_EDGE_DATA") or "data"
    path = fetch_dataset(arguments.name, folder, base_url=arguments.base_url)
    result = {"data": arguments.name, "path": str(path)}
    emit(result, arguments.json, lambda: iter([f"{arguments.name} is in {path}: vae-edge train --data {path} …"]))


def show(arguments: argparse.Namespace) -> None:
    """`vae-edge data show`."""
    from vae_edge.data import count_duplicates, load_dataset
    from vae_edge.data.splits import duplicates_of
    from vae_edge.data.transforms import contact_sheet
    from vae_edge.files import atomic_path

    dataset = load_dataset(
        arguments.data,
        arguments.size,
        arguments.channels,
        arguments.fit,
        strict=arguments.strict,
        cache=arguments.cache,
        alpha_background=arguments.alpha_background,
        group_by=arguments.group_by,
        val=arguments.val,
    )
    splits = dataset.splits
    result: dict[str, Any] = {"name": dataset.name, "source": dataset.source, "classes": list(dataset.classes)}
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(split.classes))
        result[name] = {
            "images": len(split),
            "shape": list(split.images.shape[1:]),
            "by_class": dict(zip(split.classes, counts.tolist(), strict=True)),
            "duplicates": count_duplicates(split),
        }
        if split.groups is not None:
            groups, images = np.unique(split.groups.astype(str), return_counts=True)
            result[name]["by_group"] = dict(zip(groups.tolist(), images.tolist(), strict=True))
        if name != "train" and dataset.train is not None:
            result[name]["also_in_train"] = int(duplicates_of(split.images, dataset.train.images).sum())
    if dataset.unlabelled is not None:
        result["unlabelled"] = {"images": len(dataset.unlabelled)}
    if dataset.input is not None:
        form = {name: getattr(dataset.input, name) for name in ("fit", "depth", "alpha_background")}
        result["prepared"] = {**form, "notes": list(dataset.notes)}
    result["left_out"] = left_out_json(dataset.left_out)
    if arguments.contact_sheet:
        with atomic_path(arguments.contact_sheet) as temporary:
            contact_sheet(next(iter(splits.values())), seed=arguments.seed).save(temporary, "PNG")
        result["contact_sheet"] = arguments.contact_sheet

    def lines() -> Iterator[str]:
        yield f"{dataset.name} ({dataset.source})"
        yield from (f"  {note}" for note in dataset.notes)
        for name in splits:
            part = result[name]
            yield f"  {name}: {part['images']} images of {'×'.join(map(str, part['shape']))}"
            yield "    " + ", ".join(f"{label} {count}" for label, count in part["by_class"].items())
            if part["duplicates"]:
                yield f"    {part['duplicates']} of them are exact duplicates of another one"
            if part.get("also_in_train"):
                yield f"    {part['also_in_train']} of them are training images too: figures on them are too good"
        if "unlabelled" in result:
            yield f"  unlabelled: {result['unlabelled']['images']} images"
        yield from (f"  {line}" for line in left_out_lines(dataset))

    emit(result, arguments.json, lines)


def compare(arguments: argparse.Namespace) -> None:
    """`vae-edge compare`."""
    from vae_edge.experiments import comparison
    from vae_edge.experiments.setup import IMAGE_KINDS, MODELS
    from vae_edge.training.distributed import use_threads

    use_threads(arguments.threads)
    config = comparison.ComparisonConfig(
        models=arguments.models or tuple(MODELS),
        images=(arguments.only,) if arguments.only else IMAGE_KINDS,
        seeds=tuple(range(arguments.seed, arguments.seed + arguments.seeds)),
        with_generated=not arguments.no_generated,
        preset=arguments.preset,
        train_images=_train_images(arguments.train_images),
        images_seen=arguments.images_seen,
        generated=arguments.generated,
        latency_seconds=arguments.seconds,
    )
    out = check_folder(arguments.out)
    comparison.import_packages(config)
    dataset = open_data(
        arguments.data,
        size=arguments.size,
        channels=arguments.channels,
        fit=arguments.fit,
        alpha_background=arguments.alpha_background,
        strict=arguments.strict,
        cache=arguments.cache,
    )
    dataset = dataset.in_memory()
    for note in dataset.notes:
        say(note)
    found = comparison.compare(dataset, config, out, say, training_progress)
    emit(found.result, arguments.json, lambda: _lines(found))


def _train_images(text: str | None) -> int | None:
    """`--train-images`: a whole number, or all."""
    from vae_edge.experiments.comparison import ALL_IMAGES

    if text is None:
        return None
    if text == "all":
        return ALL_IMAGES
    if not text.isdecimal():
        raise ConfigError(f"--train-images {text}: expected a whole number, or all")
    return int(text)


def _lines(found: ComparisonResult) -> Iterator[str]:
    for row in found.result["rows"]:
        accuracy = row["accuracy"]
        deviation = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
        mixture = " with generated images" if row["generated"] else ""
        latency = row["decision"]["latency_us"]
        yield (
            f"{row['images']:<8} {row['model']:<10} {percent(accuracy['mean'])}{deviation}{mixture}, "
            f"{row['wall_seconds']:,.1f} s, {row['decision']['parameters']:,} parameters"
            f"{'' if latency is None else f', {latency:,.0f} µs'}"
        )
    yield found.result["sentence"]
    yield "written: " + ", ".join(str(path) for path in found.files)
