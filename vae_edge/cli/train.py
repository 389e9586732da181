"""The commands that need PyTorch, and those on data sets: quickstart, data, train, evaluate, generate, compare."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge import api
from vae_edge.cli.console import emit, fraction_progress, percent, say
from vae_edge.data.load import left_out_json, left_out_lines, open_data
from vae_edge.errors import ConfigError
from vae_edge.files import check_folder
from vae_edge.progress import counting_progress, start_torch, training_progress

if TYPE_CHECKING:
    from vae_edge.experiments.comparison import ComparisonResult
    from vae_edge.pipeline import QuickstartResult

MAX_CLASSES_PRINTED = 20  # the worst ones


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
    start_torch()
    from vae_edge.training.run_file import run_arguments
    from vae_edge.training.trainer import Interrupted

    given = dict(vars(arguments))
    parser, as_json = given.pop("parser"), given.pop("json", False)
    given.pop("run")
    resume, path = given.pop("resume", False), given.pop("config", None)
    options = run_arguments(path, **given)
    missing = [f"--{name}" for name in ("data", "out") if name not in options]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    try:
        with training_progress("training") as progress:
            result = api.train(**options, resume=resume, progress=progress)
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with --resume") from error
    emit(result.to_json(), as_json, lambda: _training_lines(result))


def _training_lines(trained: api.TrainedRun) -> Iterator[str]:
    result = trained.result
    rotated, upright = result.validation, result.validation_upright
    yield f"validation, {rotated['n']} held-out images, rotation {rotated['rotation']}: {percent(rotated['accuracy'])}"
    yield from _class_lines(rotated)
    if "angle_error_deg" in rotated:
        yield f"  angle error: {_angle_words(rotated['angle_error_deg'])}"
        yield f"  the same images upright: {percent(upright['accuracy'])}"
    yield f"  anomaly score: accepted up to {result.threshold:.3f} ({percent(result.reject_rate)} rejected)"
    yield f"next: vae-edge export {trained.path} --out BUNDLE"


def evaluate(arguments: argparse.Namespace) -> None:
    """`vae-edge evaluate`."""
    with counting_progress("evaluating") as progress:
        result = api.evaluate(
            arguments.model,
            arguments.data,
            split=arguments.split,
            rotation=None if arguments.rotation is None else str(arguments.rotation),
            backend=arguments.backend,
            precision=arguments.precision,
            threads=arguments.threads,
            device=arguments.device,
            trusted=arguments.trusted,
            seed=arguments.seed,
            strict=arguments.strict,
            progress=progress,
        )
    emit(result.to_json(), arguments.json, lambda: _evaluation_lines(result.to_json()))


def generate(arguments: argparse.Namespace) -> int:
    """`vae-edge generate`: 1 where images are missing."""
    with counting_progress("generating", "classes") as progress:
        result = api.generate(
            arguments.model,
            arguments.out,
            per_class=arguments.per_class,
            classes=arguments.classes or (),
            angles_deg=arguments.angles or (0.0,),
            method=arguments.method,
            temperature=arguments.temperature,
            confidence=arguments.confidence,
            top_up=arguments.top_up,
            seed=arguments.seed,
            progress=progress,
        )
    emit(result.to_json(), arguments.json, lambda: _generated_lines(result))
    return 1 if result.missing else 0


def _generated_lines(result: api.Generated) -> Iterator[str]:
    yield f"{result.images} images in {result.path}; all on one page: {result.contact_sheet}"
    if result.unrecognized:
        yield f"  {result.unrecognized} of them are not recognized by the model (--top-up)"
    for why in dict.fromkeys(result.missing.values()):
        names = [name for name, other in result.missing.items() if other == why]
        yield f"  missing of {'class' if len(names) == 1 else 'classes'} {', '.join(names)}: {why}"
    if result.missing:
        yield "  --top-up adds the most confident of the others, --confidence 0 takes all as they come"


def _class_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Balanced accuracy and the accuracy of each class, the worst first, where the accuracy of all hides something."""
    from vae_edge.metrics import hides_classes

    if "images_by_class" not in figures or not hides_classes(figures):  # a run of an earlier version has no counts
        return
    yield f"  balanced     {percent(figures['balanced_accuracy'])}, the mean over the classes"
    fractions = sorted(figures["accuracy_by_class"].items(), key=lambda item: item[1])
    counts = figures["images_by_class"]
    words = [f"{name} {percent(fraction)} of {counts[name]}" for name, fraction in fractions[:MAX_CLASSES_PRINTED]]
    if len(fractions) > MAX_CLASSES_PRINTED:
        words.append(
            f"{len(fractions) - MAX_CLASSES_PRINTED} more at {percent(fractions[MAX_CLASSES_PRINTED][1])} or above"
        )
    yield f"  by class     {', '.join(words)}"


def _angle_words(error: Mapping[str, Any]) -> str:
    return f"median {error['median']}°, mean {error['mean']}°, {percent(error['beyond_90'])} beyond 90°"


def _evaluation_lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{result['model']} ({result['kind']}, {result['backend']}, {result['precision']}) on {result['n']} images of "
        f"{result['data']} ({result['split']}), rotation {result['rotation']}"
    )
    yield f"  accuracy     {percent(result['accuracy'])}"
    yield from _class_lines(result)
    yield f"  calibration  {percent(result['expected_calibration_error'])} expected calibration error"
    if "angle_error_deg" in result:
        error = result["angle_error_deg"]
        yield f"  angle error  {_angle_words(error)}"
        if "without_ambiguous" in error:
            clear = error["without_ambiguous"]
            names = ", ".join(clear["ambiguous_classes"])
            yield f"    without {names}: median {clear['median']}°, mean {clear['mean']}°"
        if "either_of_two" in error:
            yield f"    the better of the two best angles: {_angle_words(error['either_of_two'])}"
        if "by_angle_confidence" in error:
            halves = " and ".join(f"{median}°" for median in error["by_angle_confidence"].values())
            yield f"    medians of the half with the highest angle confidence, and of the rest: {halves}"
    yield f"  accepted     {percent(result['accepted'])} by the anomaly score"
    if "upright" in result:
        yield f"  upright      {percent(result['upright']['accuracy'])}"


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

    dataset = load_dataset(arguments.data, arguments.size, arguments.channels, arguments.fit, strict=arguments.strict)
    splits = {name: split for name, split in (("train", dataset.train), ("test", dataset.test)) if split is not None}
    result: dict[str, Any] = {"name": dataset.name, "source": dataset.source, "classes": list(dataset.classes)}
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(split.classes))
        result[name] = {
            "images": len(split),
            "shape": list(split.images.shape[1:]),
            "by_class": dict(zip(split.classes, counts.tolist(), strict=True)),
            "duplicates": count_duplicates(split),
        }
    if dataset.unlabelled is not None:
        result["unlabelled"] = {"images": len(dataset.unlabelled)}
    if dataset.train is not None and dataset.test is not None:
        result["test"]["also_in_train"] = int(duplicates_of(dataset.test.images, dataset.train.images).sum())
    if dataset.input is not None:
        result["prepared"] = {"fit": dataset.input.fit, "depth": dataset.input.depth, "notes": list(dataset.notes)}
    result["left_out"] = left_out_json(dataset.left_out)
    if arguments.contact_sheet:
        with atomic_path(arguments.contact_sheet) as temporary:
            contact_sheet(next(iter(splits.values()))).save(temporary, "PNG")
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
        strict=arguments.strict,
    )
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
