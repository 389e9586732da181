"""The command that compares our models with baselines: options to a comparison, and its rows to lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vae_edge.cli.console import emit, percent, say, training_progress
from vae_edge.data.load import open_data
from vae_edge.errors import ConfigError
from vae_edge.files import check_folder

if TYPE_CHECKING:
    from vae_edge.experiments.comparison import ComparisonResult


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
