"""Arguments of the commands that make a bundle and what belongs to it."""

from __future__ import annotations

import argparse

from vae_edge.cli.arguments import listed, positive, precision, whole
from vae_edge.cli.commands import Commands, add_command
from vae_edge.cli.options import DATA_HELP, add_held_out, add_json, add_list, add_seed, add_strict


def add_deploy_commands(commands: Commands) -> None:
    """Add these commands, in the order of the help."""
    _export(commands)
    _quantize(commands)
    _build(commands)
    _kit(commands)
    _devices(commands)
    _inspect(commands)


def _export(commands: Commands) -> None:
    parser = add_command(commands, "export", "deploy")
    parser.add_argument("model", metavar="RUN", help="folder of a training run")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: the run's)")
    parser.add_argument(
        "--score-mode",
        default="full",
        choices=("full", "fast"),
        help="the anomaly score; fast: without the reconstruction error and so without the decoder, less sharp",
    )
    parser.add_argument(
        "--no-probes",
        action="store_true",
        help="leave out the probe images, some of which are held-out images; devices cannot verify the bundle then",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace a bundle together with the int8, fp16 and engine files that were made of its old model",
    )
    add_json(parser)


def _quantize(commands: Commands) -> None:
    parser = add_command(commands, "quantize", "deploy")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--precision", default="int8", choices=("int8", "fp16"))
    parser.add_argument("--data", required=True, help="for calibration and to measure the accuracy: " + DATA_HELP)
    add_held_out(parser, after_training=True)
    add_strict(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="add it although the images are unlike training's, or it loses more than is allowed",
    )
    add_seed(parser)
    add_json(parser)


def _build(commands: Commands) -> None:
    parser = add_command(commands, "build", "deploy")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--precision",
        action="extend",
        type=listed(precision),
        metavar="A,B",
        help="which models to build from: fp32 (default), fp16, int8 or fp8; a network file is int8 or fp16",
    )
    add_list(
        parser,
        "--target",
        "NAME,NAME",
        "devices such as orin-nano or rtx-4090 (`vae-edge devices` lists them), architectures such as sm_86, or this "
        "(default: this machine's GPU). RTX cards are built for here; a device that must build itself gets a kit",
    )
    parser.add_argument(
        "--kind",
        default="auto",
        choices=("auto", "tensorrt", "tensorrt_rtx", "native"),
        help="which TensorRT, or native: a network file, which any machine can make for any GPU",
    )
    parser.add_argument(
        "--kernels",
        default="tensorrt",
        choices=("tensorrt", "network", "operators", "auto"),
        help="whose kernels the engine runs: TensorRT's own (default), network: the toolkit's one for the whole "
        "network, operators: one for each operator, or auto: TensorRT's and the network's are built and measured on "
        "this machine's GPU",
    )
    parser.add_argument(
        "--batch",
        action="extend",
        type=listed(positive),
        metavar="N,N,N",
        help="min, opt and max batch of the optimization profile, or one fixed batch (default: 1,8,64; with --dla: 1)",
    )
    kit = parser.add_argument_group("for a device that must build itself")
    kit.add_argument(
        "--kit",
        metavar="OUT",
        help="where the kit is written: a folder, or a file .tar.gz (default: BUNDLE-DEVICE.tar.gz beside the bundle)",
    )
    kit.add_argument(
        "--data",
        metavar="DATA",
        help="put up to 1,000 held-out images into the kit, so that the device measures accuracy: " + DATA_HELP,
    )
    add_held_out(kit, after_training=True)
    options = parser.add_argument_group("options of TensorRT's builder")
    options.add_argument(
        "--device", type=whole, default=0, metavar="N", help="number of the GPU to build on (default: 0)"
    )
    options.add_argument("--workspace", type=positive, metavar="MIB", help="memory for the builder's tactics")
    options.add_argument(
        "--optimization-level", type=int, choices=range(6), metavar="N", help="0 (fast build) to 5 (TensorRT's own: 3)"
    )
    options.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        help="fp32 products may round their inputs to 10 bits (default: not in fp32 engines)",
    )
    options.add_argument("--timing-cache", metavar="FILE", help="keep measured kernel times in this file; needs a GPU")
    options.add_argument("--dla", type=whole, metavar="CORE", help="build for a Jetson's DLA, the rest for its GPU")
    options.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere_plus", "same_compute_capability"),
        help="GPUs that the engine shall run on beside this one",
    )
    options.add_argument(
        "--version-compatible", action="store_true", help="later versions of TensorRT shall run the engine too"
    )
    options.add_argument("--refit", action="store_true", help="the engine can be given new weights")
    options.add_argument(
        "--strip-weights", action="store_true", help="leave the weights out; they come from the ONNX file at loading"
    )
    options.add_argument(
        "--mark-outputs",
        action="store_true",
        help="make the tensors that the probes know outputs too, so that verify compares layer by layer; slower",
    )
    add_json(parser)


def _kit(commands: Commands) -> None:
    parser = add_command(commands, "kit", "deploy")
    parser.add_argument("result", metavar="RESULT", help="the file result-DEVICE-DATE.tar.gz that the kit wrote")
    parser.add_argument("--into", required=True, metavar="BUNDLE", help="the bundle that the kit was written from")
    add_json(parser)


def _devices(commands: Commands) -> None:
    add_json(add_command(commands, "devices", "deploy"))


def _inspect(commands: Commands) -> None:
    parser = add_command(commands, "inspect", "deploy")
    parser.add_argument("path", metavar="PATH")
    add_json(parser)
