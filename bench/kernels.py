"""Benchmark the kernels against eager PyTorch, `torch.compile` and cuDNN, after checking their results.

    python bench/kernels.py [--only 'conv_*'] [--no-large] [--seconds 420] [--out bench/results]
    python bench/kernels.py --check [--most 32]
    python bench/kernels.py --plot bench/results/kernels-nvidia-h100.csv

Shapes are the presets' layers at batch 1, 32 and 256, and some large ones. The baselines of int8 and fp8 convolutions,
and of networks in int8, are in float16. Times are medians of `triton.testing.do_bench_cudagraph`: GPU time, launched
from a CUDA graph, for ours and for the baselines. Writes `kernels-<device>.csv`. After --seconds nothing more is
compiled by `torch.compile`, and its column stays empty. With --check only the results are checked, which Triton's
interpreter can do too (TRITON_INTERPRET=1).
Exit codes: 0 done; 1 a kernel computes something else; 2 no GPU.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark_case import DEVICE, Case, Run
from kernel_cases import cases

from vae_edge.errors import KernelError
from vae_edge.files import write_text

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    *(
        "kernel",
        "layer",
        "batch",
        "error",
        "ours_us",
        "eager_us",
        "compiled_us",
        "cudnn_us",
        "cudnn_fp16_us",
        "layers_us",
    ),
    *("gb_per_s", "tflop_per_s"),
)
BASELINES = {"eager": "eager_us", "cudnn": "cudnn_us", "cudnn fp16": "cudnn_fp16_us", "layer by layer": "layers_us"}
TIMES = tuple(name for name in FIELDS if name.endswith("_us") and name != "ours_us")


def median_us(function: Callable[[], object]) -> float:
    """Median microseconds of a call on the GPU, launched from a CUDA graph."""
    from triton.testing import do_bench_cudagraph

    with torch.cuda.stream(torch.cuda.Stream()):
        return 1000.0 * float(do_bench_cudagraph(function, return_mode="median"))


def measure(case: Case, compile_until: float, show: Callable[[str], object]) -> dict[str, Any]:
    """A line of results. A baseline that fails has no time, and its error is shown: this is about ours.

    Raises:
        KernelError: if the kernel's result is too far from what it should be.
    """
    run = case.make()
    error = checked(case, run)
    ours = median_us(run.ours)
    line: dict[str, Any] = {"kernel": case.kernel, "layer": case.layer, "batch": case.batch, "error": error}
    line |= {
        "ours_us": ours,
        "gb_per_s": run.bytes_moved / ours / 1e3,
        "tflop_per_s": 2 * run.macs / ours / 1e6,
    }
    baselines = {BASELINES[name]: lambda baseline=baseline: baseline for name, baseline in run.baselines.items()}
    if run.compile is not None and time.monotonic() < compile_until:
        baselines["compiled_us"] = lambda: compiled(run, case)
    for name, made in baselines.items():
        try:
            line[name] = median_us(made())
        except Exception as error:  # noqa: PERF203 - whatever PyTorch raises, shown
            show(f"{case.kernel}, {case.layer}, {case.batch}: {name} failed: {str(error).splitlines()[:1]}")
            torch.cuda.synchronize()
    return line


def checked(case: Case, run: Run) -> float:
    """How far a kernel's result is from what it should be.

    Raises:
        KernelError: if that is too far.
    """
    error = run.check()
    if not error <= run.tolerance:
        raise KernelError(f"{case.kernel}, {case.layer}, {case.batch}: off by {error:.3g}; {run.tolerance} allowed")
    return error


def compiled(run: Run, case: Case) -> Callable[[], Any]:
    """The baseline after `torch.compile`; whole networks with autotuning. CUDA graphs are recorded around it."""
    torch._dynamo.reset()
    mode = "max-autotune-no-cudagraphs" if case.kernel.startswith("network") else "default"
    function: Callable[[], Any] = torch.compile(run.compile, mode=mode, dynamic=False)
    function()
    return function


def measure_all(
    chosen: Iterable[Case], seconds: float, path: Path, show: Callable[[str], object] = print
) -> list[dict[str, Any]]:
    """Lines of results, each said and written as it is there."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    compile_until, lines = time.monotonic() + seconds, []
    for case in chosen:
        line = measure(case, compile_until, show)
        lines.append(line)
        write_csv(path, lines)
        told = ", ".join(f"{name[:-3]} {line[name]:.1f}" for name in FIELDS if name.endswith("_us") and name in line)
        show(f"{case.kernel}, {case.layer}, {case.batch}: {told} us")
        torch.cuda.empty_cache()
    return lines


def ratio(lines: Iterable[dict[str, Any]], kernel: str, baseline: str) -> float | None:
    """Geometric mean of how many times as long the baseline takes, over the lines of a kernel that have it."""
    logs = [
        math.log(float(line[baseline]) / float(line["ours_us"]))
        for line in lines
        if fnmatch.fnmatchcase(line["kernel"], kernel) and line.get(baseline)
    ]
    return math.exp(sum(logs) / len(logs)) if logs else None


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """How many times as fast as others, by kernel and baseline; None where nothing was measured."""
    kernels = sorted({line["kernel"] for line in lines})
    found = {
        f"{kernel} against {baseline[:-3]}": ratio(lines, kernel, baseline) for kernel in kernels for baseline in TIMES
    }
    found = {name: value for name, value in found.items() if value is not None}
    halves = {(line["layer"], line["batch"]): line["ours_us"] for line in lines if line["kernel"] == "conv_fp16"}
    paired = [
        {**line, "half_us": halves[line["layer"], line["batch"]]}
        for line in lines
        if line["kernel"] == "conv_int8" and (line["layer"], line["batch"]) in halves
    ]
    return {**found, "conv_int8 against our fp16": ratio(paired, "*", "half_us")}


def slug(name: str) -> str:
    """A device's name for the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_csv(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write lines of results, numbers with four digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in line.items()})
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Lines as `write_csv` wrote them; numbers as floats, what is missing left out."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: value if key in ("kernel", "layer") else float(value) for key, value in line.items() if value != ""}
            for line in csv.DictReader(file)
        ]


def plot(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """How many times as fast as others: a bar for each kernel, baseline and batch (geometric means over the layers)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kernels = sorted({line["kernel"] for line in lines if not line["kernel"].startswith("network")})
    kernels += sorted({line["kernel"] for line in lines if re.fullmatch(r"network_(fp16|int8)", line["kernel"])})
    baselines = {"eager_us": "eager PyTorch", "compiled_us": "torch.compile", "cudnn_us": "cuDNN, bias and ReLU fused"}
    baselines["cudnn_fp16_us"] = "the same of cuDNN in float16"
    figure, axis = plt.subplots(figsize=(10, 0.6 * len(kernels) + 1.5), layout="constrained")
    for number, (baseline, name) in enumerate(baselines.items()):
        values = [ratio(lines, kernel, baseline) or 0.0 for kernel in kernels]
        places = [place + 0.2 * (number - 1.5) for place in range(len(kernels))]
        bars = axis.barh(places, values, height=0.18, label=f"against {name}")
        axis.bar_label(bars, [f"{value:.2f}" if value else "not measured" for value in values], padding=3, fontsize=7)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(kernels)), kernels)
    axis.invert_yaxis()
    axis.set_xscale("log", base=2)
    axis.set_xlabel("times as fast (geometric mean over layers and batches)")
    axis.set_title(title)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or plot what was written; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="kernels whose names fit this pattern")
    parser.add_argument("--no-large", action="store_true", help="the presets' shapes alone")
    parser.add_argument("--most", type=int, default=1 << 30, help="batches of at most so many")
    parser.add_argument("--check", action="store_true", help="no times")
    parser.add_argument("--seconds", type=float, default=1e9, help="after so many, nothing more by torch.compile")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table")
    parser.add_argument("--plot", type=Path, metavar="CSV", help="only draw what is in this table, beside it")
    options = parser.parse_args(arguments)
    if options.plot is not None:
        picture = options.plot.with_suffix(".png")
        plot(read_csv(options.plot), picture, options.plot.stem)
        print(picture)
        return 0
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("No CUDA GPU is available to PyTorch on this machine; run this where one is.", file=sys.stderr)
        return 2
    chosen = [
        case
        for case in cases(not options.no_large)
        if fnmatch.fnmatchcase(case.kernel, options.only) and case.batch <= options.most
    ]
    path = options.out / f"kernels-{slug(torch.cuda.get_device_name() if DEVICE == 'cuda' else DEVICE)}.csv"
    try:
        if options.check:
            errors = {case: checked(case, case.make()) for case in chosen}
            print(f"{len(errors)} cases of {len({case.kernel for case in chosen})} kernels are right")
            return 0
        lines = measure_all(chosen, options.seconds, path)
    except KernelError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in summary(lines).items():
        print(f"{name}: {'not measured' if value is None else f'{value:.2f}'}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
