"""Models into a bundle: the fp32 pair at export, another precision at quantization, each with its figures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.bundle import Bundle, ModelEntry, add_model, create_bundle, load_bundle
from vae_edge.data import LabelledImages
from vae_edge.errors import BundleError, ExportError
from vae_edge.export.graph import RECONSTRUCTION, ClassifierGraph, ReconstructionGraph
from vae_edge.export.onnx_file import OPSET, check_parity, run, to_onnx
from vae_edge.export.precision import convert, for_calibration
from vae_edge.images import InputSpec
from vae_edge.metrics import summarize
from vae_edge.model import AngleVAE


@dataclass(frozen=True)
class Description:
    """What a bundle says of its model: all that is neither a weight nor a file."""

    name: str
    classes: tuple[str, ...]
    input: InputSpec
    rotation: str
    threshold: float
    reject_rate: float
    data: Mapping[str, Any]
    score_kind: str = "full"


def export_bundle(
    model: AngleVAE,
    about: Description,
    out: str | os.PathLike[str],
    images: NDArray[np.uint8],
    accuracy: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Bundle:
    """Write a bundle with the fp32 classifier and reconstruction graphs.

    Args:
        images: real images, uint8 [N, S, S, C], on which the graphs are compared with PyTorch.
        accuracy: the figures of the model on held-out images.
        provenance: where the weights come from.

    Raises:
        ExportError: if a graph does not compute what PyTorch does; nothing is written then.
        BundleError: if `out` is something else than a bundle or an empty folder.
    """
    models = []
    classifier = ClassifierGraph(model, light=about.score_kind == "light")
    with tempfile.TemporaryDirectory(prefix="vae-edge-export-") as folder:
        for role, graph, names in (
            ("classifier", classifier, classifier.outputs),
            ("reconstruction", ReconstructionGraph(model), RECONSTRUCTION),
        ):
            proto = to_onnx(graph, about.input.size, about.input.channels, names, _metadata(about, role))
            parity = check_parity(graph, proto, images)
            entry = ModelEntry(
                role=role,
                precision="fp32",
                opset=OPSET,
                accuracy=accuracy if role == "classifier" else {},
                provenance={**provenance, "parity": {"images": len(images), "largest_difference": parity}},
            )
            path = Path(folder) / f"{role}.onnx"
            onnx.save(proto, path)
            models.append((path, entry))
        return create_bundle(
            out,
            name=about.name,
            classes=about.classes,
            input=about.input,
            threshold=about.threshold,
            reject_rate=about.reject_rate,
            score_kind=about.score_kind,
            rotation=about.rotation if about.rotation in ("none", "full") else float(about.rotation),
            data=about.data,
            models=models,
        )


def quantize_bundle(
    path: str | os.PathLike[str],
    precision: str,
    calibration: NDArray[np.uint8],
    held: LabelledImages,
    measured_on: str,
) -> dict[str, Any]:
    """Add the classifier in another precision to a bundle.

    Args:
        precision: `fp16` or `int8`.
        calibration: training images, uint8 [N, S, S, C], as the device will see them (turned, where it was trained so).
        held: images that were not trained on; accuracy before and after is measured on them.
        measured_on: what these images are, for the manifest.

    Returns:
        `precision`, `file`, `bytes`, `measured_on`, and the figures `before` (fp32) and `after`.
    """
    bundle = load_bundle(path)
    source = bundle.find("classifier", "onnx", "fp32")
    model = load_onnx(bundle.file(source))
    size, channels = bundle.input.size, bundle.input.channels
    for images in (calibration, held.images):
        if images.shape[1:] != (size, size, channels):
            raise ExportError(
                f"the images are {'×'.join(map(str, images.shape[1:]))}, the model takes {size}×{size}×{channels}"
            )
    if tuple(held.classes) != bundle.classes:
        raise ExportError(
            f"the images have the classes {', '.join(held.classes)}; the bundle has {', '.join(bundle.classes)}"
        )
    converted = convert(model, precision, calibration)
    before, after = measure(model, bundle, held), measure(converted, bundle, held)
    after_entry = {**after, "fp32_accuracy": before["accuracy"], "measured_on": measured_on}
    used = len(for_calibration(calibration))
    provenance = {"from": source.file, "from_sha256": source.sha256, "calibration_images": used}
    with tempfile.TemporaryDirectory(prefix="vae-edge-quantize-") as folder:
        file = Path(folder) / f"{precision}.onnx"
        onnx.save(converted, file)
        entry = ModelEntry(
            role="classifier", precision=precision, opset=OPSET, accuracy=after_entry, provenance=provenance
        )
        added = add_model(path, file, entry).find("classifier", "onnx", precision)
    figures = {"measured_on": measured_on, "before": before, "after": after}
    return {"precision": precision, "file": added.file, "bytes": added.bytes, **figures}


def measure(model: onnx.ModelProto, bundle: Bundle, held: LabelledImages) -> dict[str, Any]:
    """Accuracy, angle error and share accepted of a model on labelled images, by ONNX Runtime."""
    outputs = run(model, held.images)
    turned = held.angles_deg is not None
    return summarize(
        outputs["probabilities"],
        held.labels,
        bundle.classes,
        np.rad2deg(outputs["angle"]) if turned else None,
        held.angles_deg,
        outputs["score"],
        bundle.threshold,
        bundle.manifest["data"].get("ambiguous", ()),
        np.rad2deg(outputs["second_angle"]) if turned and "second_angle" in outputs else None,
        outputs.get("concentration"),
    )


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; a damaged one is a BundleError."""
    try:
        return onnx.load(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not a readable ONNX file: {error}") from error
    except Exception as error:
        if type(error).__name__ == "DecodeError":  # protobuf's, whose module is not ours to import
            raise BundleError(f"{path} is not a readable ONNX file: {error}") from error
        raise


def _metadata(about: Description, role: str) -> dict[str, Any]:
    return {
        "role": role,
        "classes": list(about.classes),
        "threshold": about.threshold,
        "score": about.score_kind,
        "input": asdict(about.input),
        "rotation": about.rotation,
    }
