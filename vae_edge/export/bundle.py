"""Models into a bundle: the fp32 pair at export, another precision at quantization, with their figures and probes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.bundle import Bundle, ModelEntry, add_models, create_bundle, load_bundle
from vae_edge.data import LabelledImages
from vae_edge.data.dataset import Dataset, join
from vae_edge.data.splits import align_classes, select_split
from vae_edge.data.transforms import rotated, rotation_range
from vae_edge.errors import BundleError, DataError, ExportError
from vae_edge.export.onnx_file import (
    OPSET,
    ClassifierGraph,
    ReconstructionGraph,
    check_parity,
    replace_metadata,
    to_onnx,
)
from vae_edge.export.probes import choose_probes, write_probes
from vae_edge.export.quality import Measured, brightness, check_images, compare, measure
from vae_edge.export.quantize import CALIBRATION_IMAGES, convert, for_calibration
from vae_edge.files import naming, read_bytes
from vae_edge.limits import MAX_MODEL_BYTES
from vae_edge.model import AngleVAE
from vae_edge.onnx_graph import read_graph
from vae_edge.preprocess import InputSpec
from vae_edge.probes import load as load_probes
from vae_edge.runtime.backends import read_model
from vae_edge.spec import EXPORTED_PRECISIONS, RECONSTRUCTION_OUTPUTS


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
    score_mode: str = "full"


def export_bundle(
    model: AngleVAE,
    about: Description,
    out: str | os.PathLike[str],
    images: NDArray[np.uint8],
    accuracy: Mapping[str, Any],
    provenance: Mapping[str, Any],
    probes: bool = True,
) -> Bundle:
    """Write a bundle with the fp32 classifier and reconstruction graphs.

    Args:
        images: real images, uint8 [N, S, S, C], on which the graphs are compared with PyTorch, and of which the probe
            images are chosen.
        accuracy: the figures of the model on held-out images.
        provenance: where the weights come from.
        probes: whether the bundle carries probe images, some of which are of `images`.

    Raises:
        ExportError: if a graph does not compute what PyTorch does; nothing is written then.
        BundleError: if `out` is something else than a bundle or an empty folder.
    """
    models: list[tuple[Path, ModelEntry]] = []
    classifier = ClassifierGraph(model, about.score_mode)
    with tempfile.TemporaryDirectory(prefix="vae-edge-export-") as folder:
        for role, graph, names in (
            ("classifier", classifier, classifier.outputs),
            ("reconstruction", ReconstructionGraph(model), tuple(RECONSTRUCTION_OUTPUTS)),
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
            with naming(path):
                onnx.save(proto, path)
            models.append((path, entry))
        file = Path(folder) / "probes.npz" if probes else None
        if file is not None:
            chosen = choose_probes(onnx.load(models[0][0]), images)
            write_probes(file, chosen, [(path, entry.precision) for path, entry in models])
        return create_bundle(
            out,
            name=about.name,
            classes=about.classes,
            input=about.input,
            threshold=about.threshold,
            reject_rate=about.reject_rate,
            score_mode=about.score_mode,
            rotation=about.rotation if about.rotation in ("none", "full") else float(about.rotation),
            data={**about.data, "brightness": brightness(images), "probe_images": probes},
            models=models,
            probes=file,
        )


def quantize_bundle(
    path: str | os.PathLike[str],
    precision: str,
    calibration: LabelledImages,
    held: LabelledImages,
    measured_on: str,
    force: bool = False,
) -> dict[str, Any]:
    """Add the classifier in another precision to a bundle.

    Args:
        precision: `fp16` or `int8`.
        calibration: training images, as the device will see them (turned, where it was trained so); none for fp16.
        held: images that were not trained on; figures before and after are measured on them.
        measured_on: what these images are, for the manifest.
        force: add it although the images are not the model's kind, or too much is lost.

    Returns:
        `precision`, `measured_on`, `warnings` (sentences), the figures `before` (fp32) and `after` (of the first file),
        its `file` and `bytes`, and `files`: for each target `file`, `bytes`, `threshold` and figures.

    Raises:
        ExportError: if the images do not fit, are not the model's kind, or too much is lost; nothing is written then.
    """
    bundle = load_bundle(path)
    source = bundle.find("classifier", "onnx", "fp32")
    read_model(bundle.file(source), source)
    model = load_onnx(bundle.file(source))
    for images in (calibration, held):
        _check_fit(images, bundle)
    before = measure(model, bundle, held, calibration.images)
    everything = join([held, calibration]) if len(calibration) else held
    findings = check_images(bundle, everything, before, len(calibration))
    if findings.refused and not force:
        raise ExportError(
            f"these are not the images that {bundle.path} was trained for: {'; '.join(findings.refused)}. Nothing was "
            "changed; give images like those in training, or insist with --force (force=True)"
        )
    converted = convert(model, precision, calibration.images)
    measured = {target: measure(made, bundle, held, calibration.images, before) for target, made in converted.items()}
    lost = {
        target: compare(precision if target == "any" else f"{precision} ({target})", before, after, held.labels)
        for target, after in measured.items()
    }
    for each in lost.values():
        findings += each
    if findings.refused and not force:
        raise ExportError(
            f"{precision} loses too much: {'; '.join(dict.fromkeys(findings.refused))}. Nothing was changed; calibrate "
            "on more images, keep fp32 or fp16, or insist with --force (force=True)"
        )
    used = len(for_calibration(calibration.images))
    about = {"from": source.file, "from_sha256": source.sha256, "calibration_images": used}
    with tempfile.TemporaryDirectory(prefix="vae-edge-quantize-") as folder:
        models = []
        for target, model in converted.items():
            file, after = Path(folder) / f"{precision}.{target}.onnx", measured[target]
            replace_metadata(model, "threshold", after.threshold)
            with naming(file):
                onnx.save(model, file)
            figures = {**after.figures, "fp32_accuracy": before.figures["accuracy"], "measured_on": measured_on}
            if findings.refused:
                figures["refused"] = list(findings.refused)
            if lost[target].warned:
                figures["lost"] = list(lost[target].warned)
            entry = ModelEntry("classifier", precision, target=target, opset=OPSET, accuracy=figures, provenance=about)
            models.append((file, replace(entry, threshold=after.threshold)))
        probes = Path(folder) / "probes.npz" if bundle.manifest["data"].get("probe_images", True) else None
        if probes is not None:
            _write_probes(probes, bundle, models, everything.images)
        added = add_models(path, models, probes)
    warnings = list(dict.fromkeys((*findings.refused, *findings.warned)))
    figures_before = {"measured_on": measured_on, "warnings": warnings, "before": before.figures}
    return {**figures_before, **_added_files(added, precision, measured)}


def _added_files(bundle: Bundle, precision: str, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """What `quantize_bundle` returns of the files: the first one's, and each one's by target."""
    files = {}
    for target, after in measured.items():
        entry = bundle.find("classifier", "onnx", precision, target)
        about = {"file": entry.file, "bytes": entry.bytes, "threshold": entry.threshold}
        files[target] = {**about, "figures": after.figures}
    first = files["any"]
    one = {"precision": precision, "file": first["file"], "bytes": first["bytes"], "after": first["figures"]}
    return {**one, "files": files}


def _check_fit(images: LabelledImages, bundle: Bundle) -> None:
    size, channels = bundle.input.size, bundle.input.channels
    if images.images.shape[1:] != (size, size, channels):
        raise ExportError(
            f"the images are {'×'.join(map(str, images.images.shape[1:]))}, the model takes {size}×{size}×{channels}"
        )
    if tuple(images.classes) != bundle.classes:
        raise ExportError(
            f"the images have the classes {', '.join(images.classes)}; the bundle has {', '.join(bundle.classes)}"
        )


def _write_probes(
    path: Path, bundle: Bundle, added: Sequence[tuple[Path, ModelEntry]], images: NDArray[np.uint8]
) -> None:
    """The bundle's probe images with the answers of all its ONNX files after some were added.

    A bundle without probe images, of an earlier version, gets some of `images`.
    """
    replaced = {entry.key for _, entry in added}
    kept = [
        (bundle.file(m), m.precision)
        for m in bundle.select(format="onnx")
        if m.key not in replaced and m.precision in EXPORTED_PRECISIONS
    ]
    models = [*kept, *((file, entry.precision) for file, entry in added)]
    if bundle.probes is not None:
        before = load_probes(bundle.file(bundle.probes))
        write_probes(path, before.images, models, before.models)
    else:
        fp32 = load_onnx(bundle.file(bundle.find("classifier", "onnx", "fp32")))
        write_probes(path, choose_probes(fp32, images), models)


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without what lies outside it.

    Raises:
        BundleError: it is no regular file, too large, damaged, or refused by `vae_edge.onnx_graph`.
    """
    try:
        content = read_bytes(path, MAX_MODEL_BYTES)
        read_graph(content, str(path))
        return onnx.load_model_from_string(content)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not a readable ONNX file: {error}") from error
    except BundleError:
        raise
    except Exception as error:
        if type(error).__name__ == "DecodeError":  # protobuf's, whose module is not ours to import
            raise BundleError(f"{path} is not a readable ONNX file: {error}") from error
        raise


def _metadata(about: Description, role: str) -> dict[str, Any]:
    return {
        "role": role,
        "classes": list(about.classes),
        "threshold": about.threshold,
        "score_mode": about.score_mode,
        "input": asdict(about.input),
        "rotation": about.rotation,
    }


def training_data(bundle: Bundle) -> dict[str, Any]:
    """What the manifest says of the training data, with defaults for a bundle that says nothing."""
    return {"holdout_fraction": 0.1, "seed": 0, "fingerprint": None, **bundle.manifest["data"]}


def quantize_with(
    path: str | os.PathLike[str], precision: str, dataset: Dataset, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Add a precision to a bundle: calibrated on training images, measured on images that were held out.

    Both are turned as training turned them. Images are held out as training did where these are its images; else the
    test half is measured where there is one, else a part that calibration leaves out.

    Args:
        precision: `fp16` or `int8`.
        dataset: images of the bundle's size and channels.
        force: see `quantize_bundle`.

    Returns:
        as `quantize_bundle`.

    Raises:
        DataError: there are no training images (for int8), or the classes are others than the bundle's.
        ExportError: as `quantize_bundle`.
    """
    bundle = load_bundle(path)
    known = training_data(bundle)
    own = known["fingerprint"] == dataset.fingerprint()
    split = "test" if dataset.test is not None and not own else "validation"
    held = _turned(select_split(dataset, split, known["holdout_fraction"], known["seed"]), bundle, known["seed"] + 1)
    held = align_classes(held, bundle.classes)
    if precision == "fp16":
        calibration = held.take(np.arange(0))
    elif dataset.train is None:
        raise DataError(f"{dataset.source} has no training half: {precision} needs training images for its ranges")
    else:
        kept = select_split(dataset, "train", known["holdout_fraction"], known["seed"])
        chosen = np.random.default_rng(seed).permutation(len(kept))[:CALIBRATION_IMAGES]
        calibration = align_classes(_turned(kept.take(chosen), bundle, seed + 3), bundle.classes)
    return quantize_bundle(path, precision, calibration, held, f"{split} of {dataset.name}", force)


def _turned(images: LabelledImages, bundle: Bundle, seed: int) -> LabelledImages:
    range_deg = rotation_range(str(bundle.rotation))
    return rotated(images, range_deg, seed, bundle.input.fill) if range_deg and len(images) else images
