"""The commands that make and look at what travels: export, quantize, build, inspect."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_edge.cli.console import (
    check_bundle_place,
    check_bundle_writable,
    emit,
    kibibytes,
    percent,
    say,
    sharing_progress,
    working,
)
from vae_edge.cli.data import left_out_json, open_data
from vae_edge.errors import BundleError, ConfigError
from vae_edge.text import system_name

PARITY_IMAGES = 256


def export(arguments: argparse.Namespace) -> None:
    """`vae-edge export`."""
    check_bundle_place(arguments.out, arguments.force)
    name = system_name(arguments.name) if arguments.name else None
    with working("exporting, and comparing with PyTorch"):
        result = export_run(Path(arguments.model), arguments.out, name, arguments.score, not arguments.no_probes)

    def lines() -> Iterator[str]:
        yield f"{result['bundle']}: {', '.join(result['files'])}"
        apart = result["parity"]["largest_difference"]
        worst = ", ".join(f"{name} {difference:.1e}" for name, difference in apart.items())
        if result["probe_images"]:
            yield f"  {result['probe_images']} probe images, held-out ones among them, are inside (see --no-probes)"
        yield f"  equal to PyTorch on {result['parity']['images']} real images (largest difference: {worst})"
        yield f"next: vae-edge quantize {result['bundle']} --precision int8 --data DATA"

    emit(result, arguments.json, lines)


def export_run(
    run: Path, out: str, name: str | None = None, score: str = "full", probes: bool = True
) -> dict[str, Any]:
    """Export a training run's model into a bundle, with the `full` anomaly score or the `fast` one."""
    from vae_edge.export import BundleMetadata, export_bundle
    from vae_edge.files import sha256
    from vae_edge.probes import load as load_probes
    from vae_edge.training.checkpoint import MODEL, load_checkpoint, load_samples
    from vae_edge.training.distributed import use_threads

    use_threads()
    checkpoint = load_checkpoint(run)
    config, result = checkpoint.config, checkpoint.result
    about = BundleMetadata(
        name=name or run.resolve().name,
        classes=config.classes,
        input=config.input,
        rotation=config.training.rotation,
        threshold=result["threshold" if score == "full" else "threshold_light"],
        reject_rate=result["reject_rate"],
        score_mode=score,
        data=config.data,
    )
    provenance = {
        "checkpoint_sha256": sha256(run / MODEL),
        "preset": config.model.preset,
        "steps": result.step,
        "seed": config.training.seed,
    }
    images = load_samples(run).images.numpy()[:PARITY_IMAGES]
    accuracy = {**result.validation, "measured_on": "validation"}
    bundle = export_bundle(checkpoint.model, about, out, images, accuracy, provenance, probes)
    return {
        "probe_images": 0 if bundle.probes is None else len(load_probes(bundle.file(bundle.probes)).images),
        "bundle": str(bundle.path),
        "files": [model.file for model in bundle.models],
        "parity": dict(bundle.find("classifier").provenance["parity"]),
    }


def quantize(arguments: argparse.Namespace) -> None:
    """`vae-edge quantize`."""
    from vae_edge.bundle import load_bundle
    from vae_edge.export.bundle import quantize_bundle_from_dataset

    bundle = load_bundle(arguments.bundle)
    bundle.find("classifier", "onnx", "fp32")  # or refuse, before the images are read
    check_bundle_writable(arguments.bundle)
    dataset = open_data(arguments, bundle.input)
    with working(f"quantizing to {arguments.precision}"):
        added = quantize_bundle_from_dataset(
            arguments.bundle, arguments.precision, dataset, arguments.seed, arguments.force
        )
    result = {**added.to_json(), "left_out": left_out_json(dataset)}
    for sentence in added.warnings:
        say(f"warning: {sentence}")
    emit(result, arguments.json, lambda: _quantization_lines(result))


def _quantization_lines(result: dict[str, Any]) -> Iterator[str]:
    before = result["before"]
    low, high = before["accuracy_interval"]
    interval = f"95% interval of fp32's accuracy {percent(low)} to {percent(high)}"
    yield f"{before['n']} images ({result['measured_on']}); {interval}"
    rows = {"fp32": before, **{part["file"]: part["figures"] for part in result["files"].values()}}
    sizes = {part["file"]: f", {kibibytes(part['bytes'])}" for part in result["files"].values()}
    for name, figures in rows.items():
        area = sum(figures["auroc"].values()) / len(figures["auroc"])
        angle = f", angle {figures['angle_error_deg']['median']}° median" if "angle_error_deg" in figures else ""
        yield (
            f"  {name}: accuracy {percent(figures['accuracy'])}, accepted {percent(figures['accepted'])}, "
            f"AUROC of the score {area:.3f}{angle}{sizes.get(name, '')}"
        )


def build(arguments: argparse.Namespace) -> None:
    """`vae-edge build`."""
    from vae_edge.engine.build import BuildConfig, build_bundle_engine
    from vae_edge.engine.tensorrt import DEFAULT_BATCH, DEFAULT_WORKSPACE_BYTES

    batch = arguments.batch or DEFAULT_BATCH
    if len(batch) != 3:
        raise ConfigError(f"--batch {','.join(map(str, batch))}: expected three whole numbers such as 1,8,64")
    check_bundle_writable(arguments.bundle)
    with sharing_progress() as show:
        config = BuildConfig(
            precision=arguments.precision,
            batch=tuple(batch),
            targets=arguments.target or (),
            kind=arguments.kind,
            workspace_bytes=arguments.workspace * 2**20 if arguments.workspace else DEFAULT_WORKSPACE_BYTES,
        )
        result = build_bundle_engine(
            arguments.bundle,
            config,
            progress=None if show is None else lambda phase, step, steps: show(phase, step / max(1, steps)),
        ).to_json()
    emit(result, arguments.json, lambda: _build_lines(result))


def _build_lines(result: dict[str, Any]) -> Iterator[str]:
    yield result["summary"]
    yield from (f"  {reason}" for reason in (*result["reasons"], *result["warnings"]))
    yield f"in the bundle: {result['bundle']}/{result['file']}"


def inspect(arguments: argparse.Namespace) -> None:
    """`vae-edge inspect`."""
    path = Path(arguments.path)
    if not path.exists():
        raise BundleError(f"{path} is not there: expected a training run, a bundle, an ONNX file or an engine")
    if (path / "manifest.json").exists():
        result = _inspect_bundle(path)
    elif path.is_dir():
        result = _inspect_run(path)
    elif path.suffix == ".onnx":
        result = _inspect_onnx(path)
    else:
        from vae_edge.engine.inspection import inspect_engine

        result = {"kind": "engine", **inspect_engine(path).to_json()}
    emit(result, arguments.json, lambda: _tree(result))


def _tree(value: Any, indent: int = 0) -> Iterator[str]:
    pad = "  " * indent
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{pad}{key}:"
            yield from _tree(item, indent + 1)
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for number, part in enumerate(item):
                yield f"{pad}{key}[{number}]:"
                yield from _tree(part, indent + 1)
        else:
            yield f"{pad}{key}: {', '.join(map(str, item)) if isinstance(item, list) else item}"


def _inspect_bundle(path: Path) -> dict[str, Any]:
    from vae_edge.bundle import load_bundle
    from vae_edge.probes import load as load_probes
    from vae_edge.runtime.backends import read_model

    bundle = load_bundle(path)
    for entry in bundle.select(format="onnx"):
        read_model(bundle.file(entry), entry)
    if bundle.probes is not None:
        load_probes(bundle.file(bundle.probes))
    return {"kind": "bundle", "path": str(path), "verified": True, **dict(bundle.manifest)}


def _inspect_run(path: Path) -> dict[str, Any]:
    from vae_edge.training.checkpoint import MODEL, load_checkpoint, read_config

    if not (path / MODEL).is_file():
        return {"kind": "training run", "path": str(path), "finished": False, **read_config(path).to_dict()}
    checkpoint = load_checkpoint(path)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in checkpoint.model.named_children()}
    return {
        "kind": "training run",
        "path": str(path),
        "finished": True,
        "parameters": {**parts, "all": sum(parts.values())},
        **checkpoint.config.to_dict(),
        "result": checkpoint.result.to_dict(),
    }


def _inspect_onnx(path: Path) -> dict[str, Any]:
    from collections import Counter

    from vae_edge.export.bundle import load_onnx
    from vae_edge.export.onnx_file import get_metadata

    model = load_onnx(path)

    def shape(value: Any) -> str:
        tensor = value.type.tensor_type
        sides = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
        import onnx

        known = tensor.elem_type in onnx.TensorProto.DataType.values()
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if known else f"type {tensor.elem_type}"
        return f"{kind} [{', '.join(sides)}]"

    return {
        "kind": "onnx",
        "path": str(path),
        "bytes": path.stat().st_size,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": {value.name: shape(value) for value in model.graph.input},
        "outputs": {value.name: shape(value) for value in model.graph.output},
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "metadata": get_metadata(model, path),
    }
