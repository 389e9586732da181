"""The commands that need PyTorch: quickstart, train, evaluate, generate."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vae_edge import api
from vae_edge.cli.console import counting_progress, emit, fraction_progress, percent, training_progress

if TYPE_CHECKING:
    from vae_edge.pipeline import QuickstartResult
    from vae_edge.training.config import TrainConfig

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
                strict=arguments.strict,
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
            seed=arguments.seed,
            strict=arguments.strict,
            progress=progress,
        )
    emit(result.to_json(), arguments.json, lambda: _evaluation_lines(result.to_json()))


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
