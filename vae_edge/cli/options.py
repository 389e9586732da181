"""Options that several commands have."""

from __future__ import annotations

import argparse

from vae_edge.cli.arguments import listed, positive, seed, whole

DATA_HELP = (
    "digits (built in), a folder of images with one sub-folder a class, a folder of IDX files, an .npz file, "
    "or the name of a folder under $VAE_EDGE_DATA"
)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Print JSON."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")


def add_threads(
    parser: argparse.ArgumentParser, default: str = "in training all that a container's quota allows, 1 on a device"
) -> None:
    """Processor threads."""
    parser.add_argument("--threads", type=positive, metavar="N", help=f"processor threads (default: {default})")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The seed of every random number."""
    parser.add_argument("--seed", type=seed, default=0, help="fixes every random number (default: 0)")


def add_strict(parser: argparse.ArgumentParser) -> None:
    """How files of a data set are read: refuse a folder of which anything is left out; use no cache."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse a folder of which anything is left out, such as a broken image"
    )
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="neither look decoded images up in the cache, nor keep them there ($VAE_EDGE_CACHE, else "
        "~/.cache/vae-edge)",
    )


def add_held_out(parser: argparse._ActionsContainer, after_training: bool = False) -> None:
    """Which images are held out: of a data set of their own, or whole groups."""
    again = ", as training had it, where the model does not know" if after_training else ""
    parser.add_argument(
        "--val",
        metavar="DATA",
        help=f"a data set whose images are the validation split, in place of held-out ones{again}",
    )
    parser.add_argument(
        "--group-by",
        metavar="RULE",
        help="hold whole groups out (makers, fonts, cameras, days): `folder`, the sub-folders of the class folders; "
        "FILE.csv, a table with the columns file and group; or a pattern of the file's name such as {group}__*" + again,
    )


def add_image_form(parser: argparse.ArgumentParser) -> None:
    """How files become images: size, channels, fit, the colour under transparency."""
    parser.add_argument("--size", type=positive, help="resize images to this many pixels (28 to 64)")
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="1: grey, 3: colour (default: grey where no picture has any colour to speak of)",
    )
    parser.add_argument(
        "--fit",
        default="auto",
        choices=("auto", "pad", "foreground"),
        help="how files become square, here and in all later steps; pad: the full picture, padded; foreground: cropped "
        "to the drawing; auto (default): foreground where that hardly changes the pictures, else pad",
    )
    parser.add_argument(
        "--alpha-background",
        default="auto",
        choices=("auto", "white", "black"),
        help="the colour that transparency is laid on, here and in all later steps; auto (default): the one on which "
        "the training images are seen better, white where both are about equal",
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Backend, precision, and which GPU."""
    parser.add_argument(
        "--backend",
        default="auto",
        help="onnxruntime, openvino, tensorrt, tensorrt_rtx, native, onnxruntime-cuda, onnxruntime-tensorrt, or auto "
        "(default): the fastest of those that are here and right",
    )
    parser.add_argument("--precision", default="auto", help="fp32, fp16, int8 or auto (default)")
    add_gpu(parser)


def add_gpu(parser: argparse.ArgumentParser) -> None:
    """Which GPU, and whether its engines are trusted."""
    parser.add_argument(
        "--device", type=whole, default=0, metavar="N", help="number of the GPU, for backends that use one (default: 0)"
    )
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="load engines that carry code for the processor (version-compatible ones): of bundles that you trust",
    )


def add_list(parser: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    """A list of words."""
    parser.add_argument(option, action="extend", type=listed(str), metavar=metavar, help=text)


def add_some(parser: argparse.ArgumentParser, name: str) -> None:
    """A list of names out of all."""
    add_list(parser, f"--{name}", "A,B", f"only these {name}s (default: all)")
