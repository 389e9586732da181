"""Accuracy of the preset `small`: the built-in digits, and MNIST where VAE_EDGE_DATA has it; fp32, fp16 and int8.

    python bench/accuracy.py [--runs runs/accuracy] [--only digits]

Finished training runs under --runs are taken as they are, so that the script can be stopped and started again.
Writes bench/results/accuracy.json. Figures of MNIST are on held-out images of its training half.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from vae_edge.benchmark import describe_machine
from vae_edge.cli.deploy import export_run
from vae_edge.cli.parser import build_parser
from vae_edge.cli.train import measure
from vae_edge.data import load_dataset
from vae_edge.export import quantize_with
from vae_edge.files import write_json

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
ROWS = {
    "digits, turned": ("digits", "full"),
    "digits, upright": ("digits", "none"),
    "MNIST, turned": ("mnist", "full"),
    "MNIST, upright": ("mnist", "none"),
}


def run_command(*arguments: str) -> None:
    parsed = build_parser().parse_args(list(arguments))
    parsed.run(parsed)


def evaluated(*arguments: str) -> dict[str, Any]:
    figures = measure(build_parser().parse_args(["evaluate", *arguments]))
    for name in ("confusion", "model"):  # the folder is of no interest to others
        figures.pop(name)
    figures.get("upright", {}).pop("confusion", None)
    return figures


def one_row(data: str, rotation: str, folder: Path) -> dict[str, Any]:
    """Train unless that is done, export, quantize, and measure every precision through the runtime."""
    run, bundle = folder / f"{data}-{rotation}", folder / f"{data}-{rotation}-bundle"
    began = time.monotonic()
    if not (run / "model.safetensors").is_file():
        run_command("train", "--data", data, "--preset", "small", "--rotation", rotation, "--out", str(run), "--resume")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    export_run(run, str(bundle))
    for precision in ("fp16", "int8"):
        quantize_with(bundle, precision, load_dataset(data))
    figures = {"checkpoint": evaluated(str(run), "--data", data)}
    for precision in ("fp32", "fp16", "int8"):
        figures[precision] = evaluated(
            str(bundle), "--data", data, "--precision", precision, "--backend", "onnxruntime"
        )
    print(f"{data} {rotation}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return {"training_seconds": log[-1]["seconds"], "epochs": len(log), **figures}


def main() -> int:
    """Measure every row and write the results; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs/accuracy", type=Path)
    parser.add_argument("--only", choices=("digits", "mnist"))
    arguments = parser.parse_args()
    have_mnist = (Path(os.environ.get("VAE_EDGE_DATA", "")) / "mnist").is_dir() and "VAE_EDGE_DATA" in os.environ
    rows = {}
    for name, (data, rotation) in ROWS.items():
        if (arguments.only and data != arguments.only) or (data == "mnist" and not have_mnist):
            print(f"{name}: left out", file=sys.stderr)
            continue
        rows[name] = one_row(data, rotation, arguments.runs)
    write_json(RESULTS, {"schema": 1, "preset": "small", "seed": 0, "machine": describe_machine(2), "rows": rows})
    print(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
