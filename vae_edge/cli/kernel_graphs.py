"""`vae-edge kernels onnx`: graphs of the toolkit's own operators, which plugins or ONNX Runtime's functions compute."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vae_edge.cli.console import emit, kibibytes, working
from vae_edge.errors import ConfigError


def onnx(arguments: argparse.Namespace) -> None:
    """`vae-edge kernels onnx`."""
    classify = arguments.graph == "classify"
    if not classify and (arguments.precision or arguments.form or arguments.image_type):
        raise ConfigError(
            f"--graph {arguments.graph} is float32, and takes none of --precision, --form and --image-type"
        )
    if arguments.machine_code and (not classify or arguments.form == "operators" or arguments.image_type):
        raise ConfigError("--machine-code is for --graph classify in the form network, and takes no --image-type")
    if arguments.inline and arguments.graph in ("sample", "resample"):
        raise ConfigError(
            f"--inline --graph {arguments.graph}: OpenVINO, for which files are inlined, computes 64-bit numbers in 32 "
            "bits and would draw other noise. Leave --inline out and run the file with ONNX Runtime, or write --graph "
            "decode and draw the codes yourself"
        )
    if Path(arguments.out).is_dir():
        raise ConfigError(f"--out {arguments.out} is a folder: expected the name of a file, such as classifier.onnx")
    with working(f"making the graph {arguments.graph}"):
        model, result = (_classifier if classify else _of_run)(arguments)
        from vae_edge.exporting.kernel_file import inline, without_functions, write_kernel_graph

        if arguments.inline:
            model = inline(model)
        if arguments.no_functions:
            model = without_functions(model)
        if arguments.machine_code:
            from vae_edge.exporting.plugin_code import make_plugin_model

            model = make_plugin_model(without_functions(model), arguments.machine_code)
        result["operators"] = sorted({node.op_type for node in model.graph.node if node.domain})
        result["inputs"] = [value.name for value in model.graph.input]
        result["outputs"] = [value.name for value in model.graph.output]
        result["bytes"] = write_kernel_graph(model, arguments.out)
    emit(result, arguments.json, lambda: _lines(result))


def _classifier(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The classifier of a bundle."""
    from vae_edge.exporting.kernel_file import bundle_kernel_graph
    from vae_edge.exporting.onnx_file import get_metadata

    form: Any = arguments.form or "network"
    image_type: Any = arguments.image_type or "uint8"
    model, differences = bundle_kernel_graph(arguments.model, arguments.precision, form, image_type)
    precision = get_metadata(model)["kernel_graph"]["precision"]
    return model, {**_about(arguments), "precision": precision, "form": form, "differences": differences}


def _of_run(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Another graph, of a training run."""
    if (Path(arguments.model) / "manifest.json").is_file():
        raise ConfigError(
            f"{arguments.model} is a bundle, which has no decoder of codes: give --graph {arguments.graph} the folder "
            "of the training run"
        )
    from vae_edge.exporting.kernel_sampling import sampling_graph
    from vae_edge.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(arguments.model)
    config = checkpoint.config
    metadata = {
        "classes": list(config.classes),
        "input": asdict(config.input),
        "rotation": config.training.rotation,
        **({} if config.model.backbone is None else {"backbone": config.model.backbone}),
    }
    return sampling_graph(checkpoint.model, arguments.graph, metadata), {**_about(arguments), "precision": "fp32"}


def _about(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "file": str(arguments.out),
        "graph": arguments.graph,
        "inlined": arguments.inline,
        "functions": not (arguments.inline or arguments.no_functions or arguments.machine_code),
        "machine_code": arguments.machine_code or [],
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    form = f", form {result['form']}" if "form" in result else ""
    yield f"{result['file']}: {result['graph']}, {result['precision']}{form}, {kibibytes(result['bytes'])}"
    yield f"  {', '.join(result['inputs'])} to {', '.join(result['outputs'])}"
    own = ", ".join(result["operators"])
    yield f"  operators of ours: {own or 'none'}" + (
        "" if not own else f"; {'ONNX Runtime runs their functions, ' * result['functions']}TensorRT takes plugins"
    )
    if result.get("differences"):
        yield "  differences from the exact answers to the probe images, in the mean and at most (allowed):"
        for name, apart in result["differences"].items():
            yield (
                f"    {name}: {apart['mean']:.2g} and {apart['largest']:.2g} "
                f"({apart['allowed_mean']:.2g} and {apart['allowed_largest']:.2g})"
            )
    elif result["graph"] == "classify":
        yield "  not compared: the bundle has no probe images with exact answers of its ONNX file"
