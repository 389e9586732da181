"""Arguments of the commands of the training machine: data, training, generation, comparison."""

from __future__ import annotations

import argparse

from vae_edge.cli.arguments import listed, number, only_what_is_given, positive
from vae_edge.cli.commands import Commands, add_command, add_command_group
from vae_edge.cli.options import (
    DATA_HELP,
    add_held_out,
    add_image_form,
    add_json,
    add_list,
    add_seed,
    add_strict,
    add_threads,
)


def add_train_commands(commands: Commands) -> None:
    """Add these commands, in the order of the help."""
    _quickstart(commands)
    _data(commands)
    _train(commands)
    _generate(commands)
    _compare(commands)


def _quickstart(commands: Commands) -> None:
    parser = add_command(commands, "quickstart", "train")
    parser.add_argument("--data", default="digits", help=DATA_HELP)
    parser.add_argument("--preset", default="small", help="tiny, small (default), base or large")
    parser.add_argument("--epochs", type=positive, help="passes over the training images")
    add_strict(parser)
    parser.add_argument("--out", default="runs/quickstart", help="folder of the results (default: runs/quickstart)")
    add_seed(parser)
    add_json(parser)


def _data(commands: Commands) -> None:
    parts = add_command_group(commands, "data")
    fetch = add_command(parts, "data fetch", "train")
    fetch.add_argument("name", choices=("mnist", "fashion-mnist"))
    fetch.add_argument("--out", help="folder that gets a sub-folder of that name (default: $VAE_EDGE_DATA, or data)")
    fetch.add_argument("--base-url", help="another server that holds the files")
    add_json(fetch)
    show = add_command(parts, "data show", "train")
    show.add_argument("data", metavar="DATA", help=DATA_HELP)
    add_image_form(show)
    add_strict(show)
    add_held_out(show)
    show.add_argument(
        "--contact-sheet",
        metavar="PNG",
        help="write a contact sheet of some images of each class, evenly over its groups, sub-folders and file names",
    )
    add_seed(show)
    add_json(show)


def _train(commands: Commands) -> None:
    parser = add_command(commands, "train", "train")
    parser.add_argument("--data", help=DATA_HELP)
    parser.add_argument("--preset", help="tiny, small (default), base or large")
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="a pretrained network as encoder, for photographs: timm/MODEL or torchvision/MODEL",
    )
    parser.add_argument(
        "--backbone-weights",
        metavar="FILE",
        help="its weights, safetensors or a PyTorch state dict (default: its library downloads them)",
    )
    parser.add_argument("--rotation", help="none, full (default), or the largest angle in degrees")
    parser.add_argument("--out", metavar="RUN", help="folder of the training run")
    parser.add_argument(
        "--config",
        metavar="TOML",
        help="file of options, such as the run.toml that each run has, which repeats it; options given here win",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    add_image_form(parser)
    add_strict(parser)
    parser.add_argument(
        "--epochs",
        type=positive,
        help="passes over the images (default: about 700,000 images in all, or what takes about 10 minutes for sets "
        "under 10,000)",
    )
    parser.add_argument("--minutes", type=number, metavar="M", help="time for training, in place of --epochs")
    parser.add_argument("--batch", type=positive, help="images a step (default: 256; 16 to 128 for sets under 10,000)")
    parser.add_argument(
        "--augment",
        default="auto",
        choices=("auto", "none", "light", "medium", "strong", "photo"),
        help="random changes of the images",
    )
    parser.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, help="mirror half of the images, left to right"
    )
    parser.add_argument(
        "--class-balance",
        type=float,
        metavar="B",
        help="0 to 1: let rare classes count more; 0: all labels count the same (default), 1: all classes do",
    )
    parser.add_argument(
        "--labels-per-class",
        type=positive,
        metavar="N",
        help="use N labels a class; the other images count as unlabelled",
    )
    parser.add_argument(
        "--labels-only", action=argparse.BooleanOptionalAction, help="leave the images without labels out"
    )
    parser.add_argument(
        "--synthetic-ratio",
        type=float,
        metavar="RATIO",
        help="train, generate images, then train on both; their fraction of the labelled images",
    )
    parser.add_argument(
        "--patience", type=positive, metavar="EPOCHS", help="stop early when a validation tenth gets no better"
    )
    parser.add_argument("--learning-rate", type=float, help="peak of the one-cycle schedule (default: 0.004)")
    parser.add_argument("--beta", type=float, help="weight of the KL divergence (default: 1)")
    parser.add_argument("--gamma", type=float, help="weight of the cross-entropy (default: 100)")
    parser.add_argument("--delta", type=float, help="weight of the angle's term (default: 50)")
    add_held_out(parser)
    parser.add_argument("--holdout", type=float, help="fraction of the training images held out (default: 0.1)")
    parser.add_argument("--reject-rate", type=float, help="fraction of known images to reject (default: 0.01)")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 arithmetic (default: where the hardware has it)"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="train through torch.compile")
    parser.add_argument(
        "--tensorboard", action=argparse.BooleanOptionalAction, help="write a log for TensorBoard into RUN/tensorboard"
    )
    add_threads(parser)
    add_seed(parser)
    add_json(parser)
    only_what_is_given(parser)


def _generate(commands: Commands) -> None:
    parser = add_command(commands, "generate", "train")
    parser.add_argument("model", metavar="RUN", help="folder of a training run")
    parser.add_argument("--out", required=True, help="folder of PNG files, or a file .npz")
    parser.add_argument("--per-class", type=positive, default=12, help="images of each class (default: 12)")
    parser.add_argument(
        "--class", dest="classes", action="append", metavar="NAME", help="may be repeated (default: all)"
    )
    parser.add_argument(
        "--angles",
        action="extend",
        type=listed(number),
        metavar="A,B",
        help="degrees counter-clockwise, such as -90,0 (default: 0)",
    )
    parser.add_argument(
        "--method",
        choices=("interpolate", "gaussian"),
        help="interpolate: mix two training codes of the class (default where the run keeps codes); gaussian: sample "
        "around its mean code",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        metavar="P",
        help="keep only images to which the model gives their class at least this (default: interpolate 0.9, "
        "gaussian 0, which keeps all)",
    )
    parser.add_argument(
        "--top-up",
        action="store_true",
        help="where the model recognizes too few images of a class, add the most confident of those that it does not",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="method gaussian at this temperature; 0: each class's mean; 1: as wide as training's codes (default: 0.7)",
    )
    add_seed(parser)
    add_json(parser)


def _compare(commands: Commands) -> None:
    parser = add_command(commands, "compare", "train")
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="how often, each time anew (default: 3)")
    add_list(parser, "--models", "A,B", "some of svm, logistic, mlp, cnn, cnn-equal, vae, angle-vae (default: all)")
    parser.add_argument("--only", choices=("upright", "rotated"), help="only images of this kind (default: both)")
    parser.add_argument("--generated", type=float, default=0.3, help="fraction of generated images (default: 0.3)")
    parser.add_argument("--no-generated", action="store_true", help="leave out training with generated images")
    parser.add_argument("--train-images", metavar="N", help="images to train on, or all (default: 12000)")
    parser.add_argument(
        "--images-seen", type=positive, default=240_000, metavar="N", help="images shown in training (default: 240000)"
    )
    parser.add_argument("--preset", default="small", help="of ours: tiny, small (default), base or large")
    add_image_form(parser)
    add_strict(parser)
    parser.add_argument("--seconds", type=float, default=30.0, help="time for all latencies (default: 30)")
    parser.add_argument("--out", default="runs/compare", help="folder of the results; goes on with what is there")
    add_threads(parser, "all that a container's quota allows")
    add_seed(parser)
    add_json(parser)
