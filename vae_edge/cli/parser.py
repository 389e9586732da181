"""Every command and option, with its help; imports next to nothing, so that `--help` answers in a blink."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

from vae_edge import __version__
from vae_edge.cli.arguments import Parser, listed, number, positive, precision, seed, whole

Commands = Any  # argparse keeps the type of its sub-parsers private

DATA_HELP = (
    "digits (built in), a folder of images with one sub-folder a class, a folder of IDX files, an .npz file, "
    "or the name of a folder under $VAE_EDGE_DATA"
)


def command(module: str, function: str) -> Callable[[argparse.Namespace], int | None]:
    """A command that imports its module when it is run."""

    def run(arguments: argparse.Namespace) -> int | None:
        return getattr(import_module(f"vae_edge.cli.{module}"), function)(arguments)

    return run


GROUPS = {
    "Train": ("quickstart", "data", "train", "evaluate", "generate", "compare"),
    "Deploy": ("export", "quantize", "build", "kit", "devices", "inspect", "kernels"),
    "On the device": ("predict", "verify", "bench", "doctor"),
}
SUMMARIES = {
    "quickstart": "train, export, quantize and benchmark in one go, and write a report",
    "data": "show a data set, or fetch a public one",
    "train": "train a VAE classifier on labelled images",
    "evaluate": "measure a training run or a bundle on labelled images",
    "generate": "generate labelled images of chosen classes at chosen angles",
    "compare": "train baselines on the same images, and compare them with ours",
    "export": "write a bundle with the fp32 model of a training run",
    "quantize": "add fp16 or int8 models to a bundle",
    "build": "build TensorRT engines or network files for named devices, or a kit",
    "kit": "add what a kit built and measured on a device to its bundle",
    "devices": "list the devices that `vae-edge build --target` knows",
    "inspect": "show what a run, a bundle, an ONNX file, an engine or a network file holds",
    "kernels": "compile the GPU kernels, and check what the compiler made of them",
    "predict": "classify image files",
    "verify": "check each backend's answers on this machine",
    "bench": "measure latency, throughput and memory of a bundle on this machine",
    "doctor": "list what this machine has, what is missing, and what to install",
    "data fetch": "download mnist or fashion-mnist, checked by their SHA-256",
    "data show": "show what a data set holds, as training would see it",
    "kernels check": "compare each kernel's machine code with its budget; needs no GPU",
    "kernels roofline": "print a lower bound of each launch's time, from published rates; needs no GPU",
}
EXAMPLES = {
    "quickstart": ("vae-edge quickstart", "vae-edge quickstart --preset tiny --epochs 5 --out runs/tiny"),
    "data fetch": ("vae-edge data fetch mnist --out data",),
    "data show": ("vae-edge data show digits --contact-sheet digits.png",),
    "train": ("vae-edge train --data digits --preset tiny --epochs 8 --out runs/digits",),
    "evaluate": ("vae-edge evaluate runs/digits --data digits",),
    "generate": ("vae-edge generate runs/digits --class 3 --angles -90,0,90 --method gaussian --out generated",),
    "compare": ("vae-edge compare --data digits --models logistic,mlp --no-generated --seeds 1 --out runs/compare",),
    "export": ("vae-edge export runs/digits --out digits.bundle",),
    "quantize": ("vae-edge quantize digits.bundle --precision int8 --data digits",),
    "build": (
        "vae-edge build digits.bundle --kind native --target orin",
        "vae-edge build digits.bundle --precision int8 --target rtx-4090",
        "vae-edge build digits.bundle --precision int8 --target orin-nano --data digits",
    ),
    "kit": ("vae-edge kit result-orin-nano-2026-11-26.tar.gz --into digits.bundle",),
    "devices": ("vae-edge devices",),
    "inspect": ("vae-edge inspect digits.bundle",),
    "kernels check": ("vae-edge kernels check --arch 87 --only 'rotate*' --networks none",),
    "kernels roofline": ("vae-edge kernels roofline --networks small",),
    "predict": ("vae-edge predict digits.bundle generated/3/*.png",),
    "verify": ("vae-edge verify digits.bundle",),
    "bench": ("vae-edge bench digits.bundle --batch 1,8 --seconds 10",),
    "doctor": ("vae-edge doctor",),
}
"""Examples of each command, in an order in which they can be run: what one needs, an earlier one has written."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    lines = []
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<11} {SUMMARIES[name]}" for name in names), ""]
    parser = Parser(
        prog="vae-edge",
        usage="vae-edge [--version] COMMAND ...",
        description="From labelled images to a classifier for the edge that tells the orientation, and says when it\n"
        "does not know. Each command reads files and writes files; a bundle is what travels to the device.\n\n"
        + "\n".join(lines),
        epilog="`vae-edge COMMAND --help` has the options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vae-edge {__version__}")
    commands = parser.add_subparsers(prog="vae-edge", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    _quickstart(commands)
    _data(commands)
    _train(commands)
    _evaluate(commands)
    _generate(commands)
    _compare(commands)
    _export(commands)
    _quantize(commands)
    _build(commands)
    _kit(commands)
    _devices(commands)
    _inspect(commands)
    _kernels(commands)
    _predict(commands)
    _verify(commands)
    _bench(commands)
    _doctor(commands)
    return parser


def _add(commands: Commands, name: str, module: str) -> argparse.ArgumentParser:
    """A command with its summary and examples; `name` may have two words, the second of which is a sub-command."""
    word = name.rpartition(" ")[2]
    examples = "".join(f"  {line}\n" for line in EXAMPLES[name])
    parser: argparse.ArgumentParser = commands.add_parser(
        word,
        help=SUMMARIES[name],
        description=_sentence(name),
        epilog=f"example{'s' if len(EXAMPLES[name]) > 1 else ''}:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=command(module, word), parser=parser)
    return parser


def _sentence(name: str) -> str:
    return f"{SUMMARIES[name][0].upper()}{SUMMARIES[name][1:]}."


def _add_group(commands: Commands, name: str) -> Commands:
    """A command that has sub-commands only."""
    parser: argparse.ArgumentParser = commands.add_parser(name, description=_sentence(name))
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")


def _threads(
    parser: argparse.ArgumentParser, default: str = "in training all that a container's quota allows, 1 on a device"
) -> None:
    parser.add_argument("--threads", type=positive, metavar="N", help=f"processor threads (default: {default})")


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=0, help="fixes every random number (default: 0)")


def _strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strict", action="store_true", help="refuse a folder of which anything is left out, such as a broken image"
    )


def _form(parser: argparse.ArgumentParser) -> None:
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


def _backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        default="auto",
        help="onnxruntime, openvino, tensorrt, tensorrt_rtx, native, onnxruntime-cuda, onnxruntime-tensorrt, or auto "
        "(default): the fastest of those that are here and right",
    )
    parser.add_argument("--precision", default="auto", help="fp32, fp16, int8 or auto (default)")
    _gpu(parser)


def _gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=whole, default=0, metavar="N", help="number of the GPU, for backends that use one (default: 0)"
    )
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="load engines that carry code for the processor (version-compatible ones): of bundles that you trust",
    )


def _list(parser: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    parser.add_argument(option, action="extend", type=listed(str), metavar=metavar, help=text)


def _some(parser: argparse.ArgumentParser, name: str) -> None:
    _list(parser, f"--{name}", "A,B", f"only these {name}s (default: all)")


def _quickstart(commands: Commands) -> None:
    parser = _add(commands, "quickstart", "train")
    parser.add_argument("--data", default="digits", help=DATA_HELP)
    parser.add_argument("--preset", default="small", help="tiny, small (default) or base")
    parser.add_argument("--epochs", type=positive, help="passes over the training images")
    _strict(parser)
    parser.add_argument("--out", default="runs/quickstart", help="folder of the results (default: runs/quickstart)")
    _seed(parser)
    _json(parser)


def _data(commands: Commands) -> None:
    parts = _add_group(commands, "data")
    fetch = _add(parts, "data fetch", "train")
    fetch.add_argument("name", choices=("mnist", "fashion-mnist"))
    fetch.add_argument("--out", help="folder that gets a sub-folder of that name (default: $VAE_EDGE_DATA, or data)")
    fetch.add_argument("--base-url", help="another server that holds the files")
    _json(fetch)
    show = _add(parts, "data show", "train")
    show.add_argument("data", metavar="DATA", help=DATA_HELP)
    _form(show)
    _strict(show)
    show.add_argument("--contact-sheet", metavar="PNG", help="write a contact sheet of some images")
    _json(show)


def _train(commands: Commands) -> None:
    parser = _add(commands, "train", "train")
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument("--preset", default="small", help="tiny, small (default) or base")
    parser.add_argument("--rotation", default="full", help="none, full (default), or the largest angle in degrees")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the training run")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    _form(parser)
    _strict(parser)
    parser.add_argument("--epochs", type=positive, help="passes over the images (default: about 700,000 images in all)")
    parser.add_argument("--batch", type=positive, help="images a step (default: 256; 16 to 128 for sets under 10,000)")
    parser.add_argument(
        "--augment",
        default="auto",
        choices=("auto", "none", "light", "medium", "strong"),
        help="random changes of the images",
    )
    parser.add_argument("--mirror", action="store_true", help="mirror half of the images, left to right")
    parser.add_argument(
        "--labels-per-class",
        type=positive,
        metavar="N",
        help="use N labels a class; the other images count as unlabelled",
    )
    parser.add_argument("--labels-only", action="store_true", help="leave the images without labels out")
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
    parser.add_argument("--holdout", type=float, help="fraction of the training images held out (default: 0.1)")
    parser.add_argument("--reject-rate", type=float, help="fraction of known images to reject (default: 0.01)")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 arithmetic (default: where the hardware has it)"
    )
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="write a log for TensorBoard into RUN/tensorboard")
    _threads(parser)
    _seed(parser)
    _json(parser)


def _evaluate(commands: Commands) -> None:
    parser = _add(commands, "evaluate", "train")
    parser.add_argument("model", metavar="MODEL", help="folder of a training run, or a bundle")
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument(
        "--split",
        default="auto",
        choices=("auto", "train", "validation", "test", "all"),
        help="which images; auto: the test split where there is one, else what training held out",
    )
    parser.add_argument("--rotation", help="turn the images: none, full, or degrees (default: as trained)")
    _strict(parser)
    _backend(parser)
    _threads(parser)
    _seed(parser)
    _json(parser)


def _generate(commands: Commands) -> None:
    parser = _add(commands, "generate", "train")
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
        "gaussian 0)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="method gaussian at this temperature; 0: each class's mean; 1: as wide as training's codes (default: 0.7)",
    )
    _seed(parser)
    _json(parser)


def _compare(commands: Commands) -> None:
    parser = _add(commands, "compare", "train")
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="how often, each time anew (default: 3)")
    _list(parser, "--models", "A,B", "some of svm, logistic, mlp, cnn, cnn-equal, vae, angle-vae (default: all)")
    parser.add_argument("--only", choices=("upright", "rotated"), help="only images of this kind (default: both)")
    parser.add_argument("--generated", type=float, default=0.3, help="fraction of generated images (default: 0.3)")
    parser.add_argument("--no-generated", action="store_true", help="leave out training with generated images")
    parser.add_argument("--train-images", metavar="N", help="images to train on, or all (default: 12000)")
    parser.add_argument(
        "--images-seen", type=positive, default=240_000, metavar="N", help="images shown in training (default: 240000)"
    )
    parser.add_argument("--preset", default="small", help="of ours: tiny, small (default) or base")
    _form(parser)
    _strict(parser)
    parser.add_argument("--seconds", type=float, default=30.0, help="time for all latencies (default: 30)")
    parser.add_argument("--out", default="runs/compare", help="folder of the results; goes on with what is there")
    _threads(parser, "all that a container's quota allows")
    _seed(parser)
    _json(parser)


def _export(commands: Commands) -> None:
    parser = _add(commands, "export", "deploy")
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
    _json(parser)


def _quantize(commands: Commands) -> None:
    parser = _add(commands, "quantize", "deploy")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--precision", default="int8", choices=("int8", "fp16"))
    parser.add_argument("--data", required=True, help="for calibration and to measure the accuracy: " + DATA_HELP)
    _strict(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="add it although the images are unlike training's, or it loses more than is allowed",
    )
    _seed(parser)
    _json(parser)


def _build(commands: Commands) -> None:
    parser = _add(commands, "build", "deploy")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--precision",
        action="extend",
        type=listed(precision),
        metavar="A,B",
        help="which models to build from: fp32 (default), fp16, int8 or fp8; a network file is int8 or fp16",
    )
    _list(
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
    _json(parser)


def _kit(commands: Commands) -> None:
    parser = _add(commands, "kit", "deploy")
    parser.add_argument("result", metavar="RESULT", help="the file result-DEVICE-DATE.tar.gz that the kit wrote")
    parser.add_argument("--into", required=True, metavar="BUNDLE", help="the bundle that the kit was written from")
    _json(parser)


def _devices(commands: Commands) -> None:
    _json(_add(commands, "devices", "deploy"))


def _predict(commands: Commands) -> None:
    parser = _add(commands, "predict", "device")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files: PNG, JPEG, BMP, WebP, GIF, TIFF, …")
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
    _backend(parser)
    _threads(parser)
    _json(parser)


def _verify(commands: Commands) -> None:
    parser = _add(commands, "verify", "device")
    parser.add_argument("bundle", metavar="BUNDLE")
    _some(parser, "backend")
    _gpu(parser)
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="processor threads (default: 1)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where verification.json and verification.md are written (default: the bundle)"
    )
    _json(parser)


def _bench(commands: Commands) -> None:
    parser = _add(commands, "bench", "device")
    parser.add_argument("bundle", metavar="BUNDLE")
    _some(parser, "backend")
    _some(parser, "precision")
    _gpu(parser)
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
    _json(parser)


def _inspect(commands: Commands) -> None:
    parser = _add(commands, "inspect", "deploy")
    parser.add_argument("path", metavar="PATH")
    _json(parser)


def _doctor(commands: Commands) -> None:
    parser = _add(commands, "doctor", "device")
    _json(parser)


def _kernels(commands: Commands) -> None:
    parts = _add_group(commands, "kernels")
    check = _add(parts, "kernels check", "deploy")
    _list(check, "--arch", "N,N", "architectures: 87 is Jetson Orin (default: 87,90)")
    check.add_argument("--only", default="*", help="kernels whose names fit this pattern")
    _list(check, "--networks", "A,B", "presets whose network is compiled, or none (default: small)")
    _json(check)
    roofline = _add(parts, "kernels roofline", "deploy")
    _list(roofline, "--networks", "A,B", "presets (default: all three)")
    _json(roofline)
