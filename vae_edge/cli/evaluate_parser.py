"""Arguments of the commands that say what a trained model is worth: evaluate, threshold, report."""

from __future__ import annotations

import argparse

from vae_edge.cli.commands import Commands, add_command
from vae_edge.cli.options import (
    DATA_HELP,
    add_backend,
    add_gpu,
    add_held_out,
    add_json,
    add_seed,
    add_strict,
    add_threads,
)

SPLITS = ("auto", "train", "validation", "test", "all")


def add_evaluate_commands(commands: Commands) -> None:
    """Add these commands, in the order of the help."""
    evaluate = add_command(commands, "evaluate", "evaluate")
    _add_model(evaluate)
    add_backend(evaluate)
    _add_rest(evaluate)

    report = add_command(commands, "report", "evaluate")
    _add_model(report)
    report.add_argument("--out", metavar="HTML", help="the page (default: report.html)")
    add_backend(report)
    _add_rest(report)

    threshold = add_command(commands, "threshold", "evaluate")
    threshold.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle, whose threshold is set")
    _add_images(
        threshold,
        "which images; auto: the test split or what was held out of the training's own data set, all of another one",
    )
    threshold.add_argument(
        "--reject-rate",
        type=float,
        metavar="RATE",
        help="fraction of known images to reject, such as 0.01 (default: the bundle's own)",
    )
    threshold.add_argument(
        "--balance",
        action="store_true",
        help="instead: reject as many known images as unknown ones are accepted (takes --unknown)",
    )
    threshold.add_argument(
        "--force", action="store_true", help="take the largest score where there are too few images for the rate"
    )
    threshold.add_argument("--dry-run", action="store_true", help="say what would be set, and write nothing")
    add_gpu(threshold)
    _add_rest(threshold)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a training run, or a bundle")
    _add_images(
        parser,
        "which images; validation: the validation split, or else what training held out; auto (default): the test "
        "split where there is one, else validation",
    )


def _add_images(parser: argparse.ArgumentParser, splits_help: str) -> None:
    """Known and unknown images, and how they are rotated."""
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument(
        "--unknown",
        action="append",
        metavar="DIR",
        help="a folder of images of other things, in sub-folders or not: how many are accepted; may be repeated",
    )
    parser.add_argument("--split", default="auto", choices=SPLITS, help=splits_help)
    add_held_out(parser, after_training=True)
    parser.add_argument("--rotation", help="rotate the images: none, full, or degrees (default: as trained)")
    add_strict(parser)


def _add_rest(parser: argparse.ArgumentParser) -> None:
    add_threads(parser)
    add_seed(parser)
    add_json(parser)
