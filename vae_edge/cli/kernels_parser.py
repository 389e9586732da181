"""Arguments of `vae-edge kernels`."""

from __future__ import annotations

import argparse

from vae_edge.cli.arguments import listed, positive, seed, tolerance, whole
from vae_edge.cli.commands import Commands, add_command, add_command_group
from vae_edge.cli.options import add_json, add_list

FILE_HELP = (
    "Python file with Triton kernels and functions check_...() that launch them and return a pair of tensors: what was "
    "written, and what is right; FILE::check_name takes one of them"
)
MODELS = ("orin", "thor", "h100")


def add_kernel_commands(commands: Commands) -> None:
    """Add `kernels` with its sub-commands."""
    parts = add_command_group(commands, "kernels")
    _check(parts)
    _run(parts)
    _profile(parts)
    _roofline(parts)
    _onnx(parts)


def _check(parts: Commands) -> None:
    parser = add_command(parts, "kernels check", "kernels")
    parser.add_argument("file", metavar="FILE", nargs="?", help=f"{FILE_HELP} (default: the kernels of VAE Edge)")
    add_list(parser, "--arch", "N,N", "architectures: 87 is Jetson Orin (default: 87,90)")
    _add_timeout(parser)
    parser.add_argument("--only", metavar="PATTERN", help="kernels whose names fit, such as 'conv_int8*'")
    add_list(
        parser,
        "--networks",
        "A,B",
        "presets whose network is compiled, such as small or small@96x64, or none (default: small)",
    )
    add_json(parser)


def _run(parts: Commands) -> None:
    parser = add_command(parts, "kernels run", "kernels")
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    add_list(parser, "--arch", "N,N", "architectures (default: 87, Jetson Orin)")
    _add_timeout(parser)
    parser.add_argument(
        "--seed", type=seed, metavar="N", help="let warps and programs take turns at random (default: in lock step)"
    )
    parser.add_argument("--rtol", type=tolerance, metavar="X", help="relative tolerance (default: PyTorch's)")
    parser.add_argument(
        "--atol",
        type=tolerance,
        metavar="X",
        help="absolute tolerance (default: PyTorch's); where one of the two is given, the other is 0",
    )
    add_json(parser)


def _profile(parts: Commands) -> None:
    parser = add_command(parts, "kernels profile", "kernels")
    parser.add_argument("file", metavar="FILE", nargs="?", help=FILE_HELP)
    add_list(parser, "--networks", "A,B", "in place of a file: whole networks of presets, such as small or small@96x64")
    parser.add_argument(
        "--operators", metavar="PRESET", help="in place of a file: the single operators on the shapes of a preset"
    )
    parser.add_argument(
        "--only", metavar="PATTERN", help="with --operators: those whose names fit, such as 'conv_int8*'"
    )
    parser.add_argument(
        "--programs", type=positive, metavar="N", help="with --networks: CTAs that work on one image (default: 1)"
    )
    parser.add_argument("--device", default="orin", choices=MODELS, help="whose time is modelled (default: orin)")
    _add_timeout(parser)
    parser.add_argument("--lines", type=whole, default=12, metavar="N", help="source lines to show (default: 12)")
    add_json(parser)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="of FILE: give a launch up after this time (default: 300)",
    )


def _roofline(parts: Commands) -> None:
    parser: argparse.ArgumentParser = add_command(parts, "kernels roofline", "kernels")
    add_list(parser, "--networks", "A,B", "presets, such as small or small@96x64 (default: tiny, small, base)")
    add_json(parser)


def _onnx(parts: Commands) -> None:
    parser = add_command(parts, "kernels onnx", "kernel_graphs")
    parser.add_argument("model", metavar="BUNDLE", help="folder of a bundle; for the other graphs, of a training run")
    parser.add_argument("--out", required=True, metavar="FILE", help="the ONNX file; one that is there is replaced")
    parser.add_argument(
        "--graph",
        default="classify",
        choices=("classify", "encode", "decode", "sample", "resample"),
        help="classify (default): image to class, angle and score; encode: image to code; decode: code to image; "
        "sample: new images of classes; resample: new images like one image",
    )
    parser.add_argument(
        "--precision", choices=("fp16", "int8"), help="of classify (default: int8 if the bundle has it, else fp16)"
    )
    parser.add_argument(
        "--form",
        choices=("network", "operators"),
        help="of classify: one node for the whole network (default), or a node for each operator",
    )
    parser.add_argument(
        "--image-type",
        choices=("uint8", "float16"),
        help="what our nodes read of classify's image (default: uint8); float16: TensorRT gives no plugin bytes",
    )
    functions = parser.add_mutually_exclusive_group()
    functions.add_argument(
        "--inline",
        action="store_true",
        help="write standard operators alone, for runtimes that expand no functions, such as OpenVINO",
    )
    functions.add_argument(
        "--no-functions",
        action="store_true",
        help="leave the functions out: TensorRT before 10.7 runs them even where it has plugins",
    )
    functions.add_argument(
        "--machine-code",
        action="extend",
        type=listed(str),
        metavar="NAME,NAME",
        help="of classify's form network: for the plugin in C++, with machine code for these devices or architectures, "
        "as `vae-edge build --target` takes them; the image is int8 then, with the bytes of uint8",
    )
    add_json(parser)
