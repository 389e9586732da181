"""Arguments of the commands for the device."""

from __future__ import annotations

from vae_edge.cli.arguments import listed, positive
from vae_edge.cli.commands import Commands, add_command
from vae_edge.cli.options import add_backend, add_gpu, add_json, add_some, add_threads


def add_device_commands(commands: Commands) -> None:
    """Add these commands, in the order of the help."""
    _predict(commands)
    _verify(commands)
    _bench(commands)
    _doctor(commands)


def _predict(commands: Commands) -> None:
    parser = add_command(commands, "predict", "predict")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "images",
        metavar="PATH",
        nargs="+",
        help="image files (PNG, JPEG, BMP, WebP, GIF, TIFF, …), or folders, whose images at any depth are taken",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="write a table, a row for each image, to this file, or to standard output if it is - (columns: file, "
        "class, probability, accepted, score, angle_deg, angle_confidence, second_angle_deg, "
        "second_angle_probability, error)",
    )
    parser.add_argument(
        "--invert",
        default="never",
        choices=("never", "always", "auto"),
        help="exchange dark and bright; auto: when the image's border is unlike training's",
    )
    parser.add_argument(
        "--fit",
        default="auto",
        choices=("auto", "pad", "foreground"),
        help="auto (default): as training prepared its files; pad: the whole picture, padded to a square; "
        "foreground: crop to the drawing, with training's margin",
    )
    add_backend(parser)
    add_threads(parser)
    add_json(parser)


def _verify(commands: Commands) -> None:
    parser = add_command(commands, "verify", "device")
    parser.add_argument("bundle", metavar="BUNDLE")
    add_some(parser, "backend")
    add_gpu(parser)
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="processor threads (default: 1)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where verification.json and verification.md are written (default: the bundle)"
    )
    add_json(parser)


def _bench(commands: Commands) -> None:
    parser = add_command(commands, "bench", "device")
    parser.add_argument("bundle", metavar="BUNDLE")
    add_some(parser, "backend")
    add_some(parser, "precision")
    add_gpu(parser)
    parser.add_argument(
        "--batch", action="extend", type=listed(positive), metavar="N,N", help="images a call (default: 1,8,64)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="time for all of it, memory included; what does not fit in is left out and named (default: 20)",
    )
    parser.add_argument("--out", metavar="JSON", help="write the result to this file as well")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="processor threads (default: 1)")
    add_json(parser)


def _doctor(commands: Commands) -> None:
    parser = add_command(commands, "doctor", "device")
    add_json(parser)
