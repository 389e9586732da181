"""The commands that make a bundle and look at what travels: export, quantize, build, kit, devices, inspect."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge import api
from vae_edge.cli.console import emit, fraction_progress, kibibytes, percent, say, working
from vae_edge.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from vae_edge.deployment import BuildPlan
    from vae_edge.engine.build import BundleEngine
    from vae_edge.exporting.network_file import BundleNetwork
    from vae_edge.kit.result import AddedResult
    from vae_edge.kit.write import Kit


def export(arguments: argparse.Namespace) -> None:
    """`vae-edge export`."""
    with working("exporting, and comparing with PyTorch"):
        result = api.export(
            arguments.model,
            arguments.out,
            name=arguments.name,
            score_mode=arguments.score_mode,
            probes=not arguments.no_probes,
            force=arguments.force,
        )
    emit(result.to_json(), arguments.json, lambda: _export_lines(result))


def _export_lines(result: api.Exported) -> Iterator[str]:
    yield f"{result.path}: {', '.join(result.files)}"
    differences = result.parity["largest_difference"]
    worst = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    if result.probe_images:
        yield f"  {result.probe_images} probe images, held-out ones among them, are inside (see --no-probes)"
    yield f"  equal to PyTorch on {result.parity['images']} real images (largest difference: {worst})"
    yield f"next: vae-edge quantize {result.path} --precision int8 --data DATA"


def quantize(arguments: argparse.Namespace) -> None:
    """`vae-edge quantize`."""
    with working(f"quantizing to {arguments.precision}"):
        result = api.quantize(
            arguments.bundle,
            arguments.precision,
            arguments.data,
            seed=arguments.seed,
            force=arguments.force,
            strict=arguments.strict,
            cache=arguments.cache,
            group_by=arguments.group_by,
            val=arguments.val,
        )
    emit(result.to_json(), arguments.json, lambda: _quantization_lines(result.to_json()))


def _quantization_lines(result: Mapping[str, Any]) -> Iterator[str]:
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
    """`vae-edge build`: engines here for what can be built here, and a kit for a device that must build itself."""
    from vae_edge import deployment
    from vae_edge.engine.devices import find_targets
    from vae_edge.kit.write import kit_device

    options = build_options(arguments)
    precisions = list(dict.fromkeys(arguments.precision or [_default_precision(arguments)]))
    targets = find_targets(arguments.target or ())
    plan = deployment.plan_build(targets, arguments.kind, arguments.device)
    if arguments.kit is not None and not plan.on_device:
        plan = deployment.BuildPlan((), (kit_device(",".join(arguments.target or ())),))
    _check_kit_options(arguments, plan)
    if arguments.kernels != "tensorrt":
        _check_kernels(arguments, plan)
    made: list[BundleEngine | BundleNetwork] = []
    for device in plan.on_device:
        with fraction_progress() as show:
            made += deployment.add_network_files(arguments.bundle, device, precisions, _steps(show))
    kits = [
        deployment.write_kit(
            arguments.bundle,
            device.name,
            precisions,
            arguments.kit,
            data=arguments.data,
            group_by=arguments.group_by,
            val=arguments.val,
            mark_outputs=arguments.mark_outputs,
            **options,
        )
        for device in plan.on_device
    ]
    here = {**options, "targets": plan.here, "kind": arguments.kind, "device": arguments.device}
    if arguments.kernels != "tensorrt":
        here["kernels"] = arguments.kernels
    for precision in precisions if plan.builds_here else ():
        with fraction_progress() as show:
            made.append(
                deployment.build_engine(
                    arguments.bundle,
                    precision=precision,
                    mark_outputs=arguments.mark_outputs,
                    progress=_steps(show),
                    notice=say,
                    **here,
                )
            )
    results = [each.to_json() for each in made] + [kit.to_json() for kit in kits]
    emit(results[0] if len(results) == 1 else results, arguments.json, lambda: _build_lines(made, kits))


def _steps(show: Callable[[str, float], None] | None) -> Callable[[str, int, int], None] | None:
    """A progress bar that is told steps."""
    return None if show is None else lambda phase, step, steps: show(phase, step / max(1, steps))


def _check_kit_options(arguments: argparse.Namespace, plan: BuildPlan) -> None:
    """Refuse what belongs to a kit where none is written, and one place for several kits.

    Raises:
        ConfigError: with what to do instead.
    """
    if not plan.on_device and arguments.data is not None:
        raise ConfigError("--data travels in a kit, and these engines are built here: leave it out")
    if len(plan.on_device) > 1 and arguments.kit is not None:
        names = ", ".join(device.name for device in plan.on_device)
        raise ConfigError(f"--kit {arguments.kit}: a kit is for one device, but {names} were named; name one of them")


def _check_kernels(arguments: argparse.Namespace, plan: BuildPlan) -> None:
    """Refuse kernels of the toolkit where no engine of TensorRT is built here.

    Raises:
        ConfigError: with what to do instead.
    """
    if arguments.kind == "native":
        raise ConfigError("--kernels is for engines of TensorRT; a network file has the toolkit's kernels always")
    if plan.on_device:
        names = ", ".join(device.name for device in plan.on_device)
        raise ConfigError(
            f"--kernels {arguments.kernels}: the kernels are compiled with Triton where the engine is built, and a kit "
            f"for {names} brings none: run `vae-edge build` there, or make a network file here (--kind native)"
        )


def _default_precision(arguments: argparse.Namespace) -> str:
    if arguments.kind != "native" and arguments.kernels == "tensorrt":
        return "fp32"
    from vae_edge.bundle import load_bundle
    from vae_edge.exporting.network_file import default_precision

    return default_precision(load_bundle(arguments.bundle))


def build_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a build, by the names of a `BuildConfig`; those that were not given are left out.

    Raises:
        ConfigError: `--batch` has neither one nor three numbers, or is given for a network file, which takes any batch.
    """
    batch = tuple(arguments.batch or ())
    if len(batch) not in (0, 1, 3):
        raise ConfigError(
            f"--batch {','.join(map(str, batch))}: expected three whole numbers such as 1,8,64 (min, opt, max), or one"
        )
    if arguments.kind == "native" and (batch or arguments.workspace):
        raise ConfigError("--kind native takes neither --batch nor --workspace: a network file runs any batch.")
    if not batch and arguments.dla is not None:
        batch = (1,)
    options = {
        "batch": batch * 3 if len(batch) == 1 else batch or None,
        "workspace_bytes": arguments.workspace * 2**20 if arguments.workspace else None,
        "optimization_level": arguments.optimization_level,
        "tf32": arguments.tf32,
        "version_compatible": arguments.version_compatible or None,
        "hardware_compatibility": arguments.hardware_compatibility,
        "dla_core": arguments.dla,
        "timing_cache": arguments.timing_cache,
        "refit": arguments.refit or None,
        "strip_weights": arguments.strip_weights or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _build_lines(engines: Sequence[BundleEngine | BundleNetwork], kits: Sequence[Kit]) -> Iterator[str]:
    for result in engines:
        if not hasattr(result, "build"):
            yield from _network_lines(result.to_json())
            continue
        yield result.build.summary()
        dla = [] if result.build.dla is None else result.build.dla.sentences()
        yield from (f"  {line}" for line in (*result.build.reasons, *dla, *result.build.warnings))
        yield f"in the bundle: {result.bundle}/{result.file}"
    for kit in kits:
        holds = " and ".join(kit.precisions) + (f", {kit.images} held-out images" if kit.images else "")
        yield f"{kit.path}: a kit for {kit.device.product} ({kit.device.target}), {holds}, {kibibytes(kit.bytes)}"
        yield "  TensorRT builds for this device only on the device itself"
        unpack = "" if kit.path.is_dir() else f" and unpack it (tar xzf {kit.path.name})"
        yield f"next: copy it there{unpack}, and run `sh build.sh` in its folder"


def _network_lines(network: Mapping[str, Any]) -> Iterator[str]:
    yield network["summary"]
    yield "  differences from the exact answers to the probe images, in the mean and at most (allowed):"
    for name, apart in network["differences"].items():
        yield (
            f"  {name}: {apart['mean']:.2g} and {apart['largest']:.2g} "
            f"({apart['allowed_mean']:.2g} and {apart['allowed_largest']:.2g})"
        )
    yield f"in the bundle: {network['bundle']}/{network['file']}"


def devices(arguments: argparse.Namespace) -> None:
    """`vae-edge devices`."""
    from vae_edge.engine.devices import HEADINGS, TARGET_DEVICES, table_rows

    result = [device.to_json() for device in TARGET_DEVICES]
    emit(result, arguments.json, lambda: _table([HEADINGS, *table_rows()]))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def kit(arguments: argparse.Namespace) -> int:
    """`vae-edge kit`: 0 where the device did all that it was asked for, 1 where it added only a part."""
    from vae_edge import deployment

    added = deployment.add_result(arguments.result, arguments.into)
    emit(added.to_json(), arguments.json, lambda: _kit_lines(added))
    return 1 if added.failed or added.problems else 0


def _kit_lines(added: AddedResult) -> Iterator[str]:
    from vae_edge.kit.measure import accuracy_rows, ascii_table, latency_rows

    for precision, file in added.files.items():
        how = "built and verified" if added.verified.get(precision) else "built, but not verified,"
        yield f"{added.bundle}/{file}: {how} on {added.device} ({added.date})"
        yield f"  run it there: vae_edge.load(BUNDLE, backend='tensorrt', precision='{precision}')"
    if added.latency:
        yield from (f"  {line}" for line in ascii_table(latency_rows(added.latency)))
    if added.accuracy:
        yield from (f"  {line}" for line in ascii_table(accuracy_rows(added.accuracy, {})))
    yield from (f"{precision} was not built: {why}" for precision, why in added.failed.items())
    yield from added.problems


def inspect(arguments: argparse.Namespace) -> None:
    """`vae-edge inspect`."""
    path = Path(arguments.path)
    if not path.exists():
        raise BundleError(
            f"{path} is not there: expected a training run, a bundle, an ONNX file, an engine or a network file"
        )
    if (path / "manifest.json").exists():
        result = _inspect_bundle(path)
    elif path.is_dir():
        result = _inspect_run(path)
    elif path.suffix == ".onnx":
        result = _inspect_onnx(path)
    elif path.suffix == ".ve":
        from vae_edge.engine.network_file import read_network_file

        result = {"kind": "network file", **read_network_file(path).to_json()}
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
    from vae_edge.engine.network_file import read_network_file
    from vae_edge.probes import load as load_probes
    from vae_edge.runtime.backends import read_model

    bundle = load_bundle(path)
    for entry in bundle.select(format="onnx"):
        read_model(bundle.file(entry), entry)
    if bundle.probes is not None:
        load_probes(bundle.file(bundle.probes))
    networks = [read_network_file(bundle.file(entry)).to_json() for entry in bundle.select(format="native")]
    found = {"kind": "bundle", "path": str(path), "verified": True, **dict(bundle.manifest)}
    return {**found, "network_files": networks} if networks else found


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

    from vae_edge.exporting.bundle import load_onnx
    from vae_edge.exporting.onnx_file import get_metadata

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
