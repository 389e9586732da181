"""Bundles with engines that the double of TensorRT runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vae_edge.bundle import Bundle, ModelEntry, add_models, load_bundle

KINDS = {"10.3": "tensorrt", "10.13": "tensorrt", "11.4": "tensorrt", "rtx": "tensorrt_rtx"}
CAPABILITY = {"tensorrt": 87, "tensorrt_rtx": 89}
BATCH = (1, 8, 64)


def engine_bundle(
    source: Bundle,
    folder: Path,
    double: Any,
    *,
    precisions: tuple[str, ...] = ("fp32",),
    plant: str = "",
    settings: dict[str, Any] | None = None,
    capability: int | None = None,
    **options: Any,
) -> Bundle:
    """A copy of a bundle with engines of its ONNX files.

    Args:
        double: of TensorRT.
        plant: a fault that the engines get.
        settings: what the manifest says of the build.
        options: of `make_engine`.
    """
    capability = capability or CAPABILITY[double.kind]
    shutil.copytree(source.path, folder)
    models = []
    for precision in precisions:
        onnx = source.find(precision=precision)
        plan = double.make_engine(
            source.file(onnx).read_bytes(), **{"batch": BATCH, "capabilities": (capability,), **options}
        )
        file = folder.parent / f"{precision}.plan"
        file.write_bytes(double.plant(plan, plant) if plant else plan)
        entry = ModelEntry(
            "classifier",
            precision,
            double.kind,
            f"sm_{capability}",
            provenance={
                "onnx": {"file": onnx.file, "sha256": onnx.sha256, "accuracy": dict(onnx.accuracy)},
                "settings": {"batch": list(BATCH), **(settings or {})},
            },
            threshold=onnx.threshold,
        )
        models.append((file, entry))
    add_models(folder, models)
    return load_bundle(folder)
