"""The commands: their groups, summaries and examples, and how a parser gets one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

Commands = Any  # argparse keeps the type of its sub-parsers private


def command(module: str, function: str) -> Callable[[argparse.Namespace], int | None]:
    """A command that imports its module when it is run."""

    def run(arguments: argparse.Namespace) -> int | None:
        return getattr(import_module(f"vae_edge.cli.{module}"), function)(arguments)

    return run


GROUPS = {
    "Train": ("quickstart", "data", "train", "evaluate", "report", "generate", "compare"),
    "Deploy": ("export", "quantize", "threshold", "build", "kit", "devices", "inspect", "kernels"),
    "On the device": ("predict", "verify", "bench", "doctor"),
}
SUMMARIES = {
    "quickstart": "train, export, quantize and benchmark in one go, and write a report",
    "data": "show a data set, or fetch a public one",
    "train": "train a VAE classifier on labelled images",
    "evaluate": "measure a training run or a bundle on labelled images",
    "report": "write a page on a run or a bundle: confusions, mistakes, calibration, rejection",
    "generate": "generate labelled images of chosen classes at chosen angles",
    "compare": "train baselines on the same images, and compare them with ours",
    "export": "write a bundle with the fp32 model of a training run",
    "quantize": "add fp16 or int8 models to a bundle",
    "threshold": "set what a bundle rejects, on images of your own",
    "build": "build TensorRT engines or network files for named devices, or a kit",
    "kit": "add what a kit built and measured on a device to its bundle",
    "devices": "list the devices that `vae-edge build --target` knows",
    "inspect": "show what a run, a bundle, an ONNX file, an engine or a network file holds",
    "kernels": "compile GPU kernels, run them without a GPU, and see what they cost",
    "predict": "classify image files, and folders of them",
    "verify": "check each backend's answers on this machine",
    "bench": "measure latency, throughput and memory of a bundle on this machine",
    "doctor": "list what this machine has, what is missing, and what to install",
    "data fetch": "download mnist or fashion-mnist, checked by their SHA-256",
    "data show": "show what a data set holds, as training would see it",
    "kernels check": "compare each kernel's machine code with its budget; needs no GPU",
    "kernels run": "run kernels on an emulated GPU against the right answers; needs no GPU",
    "kernels profile": "count what kernels cost, by source line, and model their time; needs no GPU",
    "kernels roofline": "print a lower bound of each launch's time, from published rates; needs no GPU",
    "kernels onnx": "write ONNX graphs of our own operators, for TensorRT plugins and ONNX Runtime",
}
EXAMPLES = {
    "quickstart": ("vae-edge quickstart", "vae-edge quickstart --preset tiny --epochs 5 --out runs/tiny"),
    "data fetch": ("vae-edge data fetch mnist --out data",),
    "data show": ("vae-edge data show digits --contact-sheet digits.png",),
    "train": ("vae-edge train --data digits --preset tiny --epochs 8 --out runs/digits",),
    "evaluate": ("vae-edge evaluate runs/digits --data digits",),
    "report": ("vae-edge report runs/digits --data digits --out report.html",),
    "generate": ("vae-edge generate runs/digits --class 3 --angles -90,0,90 --method gaussian --out generated",),
    "compare": ("vae-edge compare --data digits --models logistic,mlp --no-generated --seeds 1 --out runs/compare",),
    "export": ("vae-edge export runs/digits --out digits.bundle",),
    "quantize": ("vae-edge quantize digits.bundle --precision int8 --data digits",),
    "threshold": ("vae-edge threshold digits.bundle --data digits --reject-rate 0.02 --unknown generated --dry-run",),
    "build": (
        "vae-edge build digits.bundle --kind native --target orin",
        "vae-edge build digits.bundle --precision int8 --target rtx-4090",
        "vae-edge build digits.bundle --precision int8 --target orin-nano --data digits",
    ),
    "kit": ("vae-edge kit result-orin-nano-2026-11-26.tar.gz --into digits.bundle",),
    "devices": ("vae-edge devices",),
    "inspect": ("vae-edge inspect digits.bundle",),
    "kernels check": ("vae-edge kernels check --arch 87 --only 'rotate*' --networks none",),
    "kernels run": ("vae-edge kernels run softmax.py --arch 87,90",),
    "kernels profile": (
        "vae-edge kernels profile softmax.py --device h100",
        "vae-edge kernels profile --networks small --programs 8",
    ),
    "kernels roofline": ("vae-edge kernels roofline --networks small",),
    "kernels onnx": (
        "vae-edge kernels onnx digits.bundle --out classifier.onnx",
        "vae-edge kernels onnx runs/digits --graph sample --out sampler.onnx",
    ),
    "predict": (
        "vae-edge predict digits.bundle generated/3/*.png",
        "vae-edge predict digits.bundle generated --csv predictions.csv",
    ),
    "verify": ("vae-edge verify digits.bundle",),
    "bench": ("vae-edge bench digits.bundle --batch 1,8 --seconds 10",),
    "doctor": ("vae-edge doctor",),
}
"""Examples of each command, in an order in which they can be run: what one needs, an earlier one has written."""


def add_command(commands: Commands, name: str, module: str) -> argparse.ArgumentParser:
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


def add_command_group(commands: Commands, name: str) -> Commands:
    """A command that has sub-commands only."""
    parser: argparse.ArgumentParser = commands.add_parser(name, description=_sentence(name))
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
