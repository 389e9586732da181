"""Models into a bundle: fp32 at export, other precisions at quantization, with their figures and probe images."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.bundle import Bundle, ModelEntry, add_models, create_bundle, load_bundle
from vae_edge.data import LabelledImages
from vae_edge.data.dataset import Dataset, join
from vae_edge.data.splits import align_classes, select_trained_split
from vae_edge.data.transforms import rotate_dataset, rotation_range
from vae_edge.errors import BundleError, DataError, ExportError
from vae_edge.exporting.onnx_file import (
    OPSET,
    ClassifierGraph,
    ReconstructionGraph,
    check_parity,
    replace_metadata,
    to_onnx,
)
from vae_edge.exporting.probes import choose_probes, write_probes
from vae_edge.exporting.quality import (
    Quality,
    QualityFindings,
    brightness,
    check_images,
    compare_quality,
    measure_quality,
)
from vae_edge.exporting.quantize import CALIBRATION_IMAGES, calibration_subset, convert
from vae_edge.files import naming, read_bytes
from vae_edge.model import AngleVAE
from vae_edge.onnx_graph import read_graph
from vae_edge.preprocess import InputSpec
from vae_edge.probes import load as load_probes
from vae_edge.runtime.backends import read_model
from vae_edge.spec import EXPORTED_PRECISIONS, MAX_MODEL_BYTES, RECONSTRUCTION_OUTPUTS

HOLDOUT_ROTATION_SEED, CALIBRATION_ROTATION_SEED = 1, 3  # added to the seed

# fp32


@dataclass(frozen=True)
class BundleMetadata:
    """What a bundle says of its model, apart from weights and files."""

    name: str
    classes: tuple[str, ...]
    input: InputSpec
    rotation: str
    threshold: float
    reject_rate: float
    data: Mapping[str, Any]
    score_mode: str = "full"
    backbone: str | None = None


def export_bundle(
    model: AngleVAE,
    about: BundleMetadata,
    out: str | os.PathLike[str],
    images: NDArray[np.uint8],
    accuracy: Mapping[str, Any],
    provenance: Mapping[str, Any],
    probes: bool = True,
) -> Bundle:
    """Write a bundle with the fp32 classifier and reconstruction graphs.

    Args:
        images: real images, uint8 [N, S, S, C]: the graphs are compared with PyTorch on them, and the probe images are
            chosen from them.
        accuracy: the model's figures on held-out images.
        provenance: where the weights come from.
        probes: whether the bundle carries probe images, some of which are of `images`.

    Raises:
        ExportError: a graph does not compute what PyTorch does; nothing is written then.
        BundleError: `out` is something other than a bundle or an empty folder.
    """
    models: list[tuple[Path, ModelEntry]] = []
    classifier = ClassifierGraph(model, about.score_mode)
    with tempfile.TemporaryDirectory(prefix="vae-edge-export-") as folder:
        for role, graph, outputs in (
            ("classifier", classifier, classifier.outputs),
            ("reconstruction", ReconstructionGraph(model), tuple(RECONSTRUCTION_OUTPUTS)),
        ):
            proto = to_onnx(graph, about.input.size, about.input.channels, outputs, _metadata(about, role))
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


def _metadata(about: BundleMetadata, role: str) -> dict[str, Any]:
    return {
        "role": role,
        "classes": list(about.classes),
        "threshold": about.threshold,
        "score_mode": about.score_mode,
        "input": asdict(about.input),
        "rotation": about.rotation,
        **({} if about.backbone is None else {"backbone": about.backbone}),
    }


# Other precisions


@dataclass(frozen=True)
class QuantizedFile:
    """A model file that `quantize_bundle` added: its name in the bundle, its threshold, and its figures (JSON)."""

    file: str
    bytes: int
    threshold: float
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge quantize` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Quantization:
    """What `quantize_bundle` did.

    Attributes:
        measured_on: the images that the figures are of.
        warnings: sentences.
        before: figures of the fp32 model (JSON).
        files: the added files by target; `any` is the first.
    """

    precision: str
    measured_on: str
    warnings: tuple[str, ...]
    before: dict[str, Any]
    files: Mapping[str, QuantizedFile]

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge quantize` prints it; `file`, `bytes` and `after` are those of the first file."""
        first = self.files["any"]
        return {
            "measured_on": self.measured_on,
            "warnings": list(self.warnings),
            "before": self.before,
            "precision": self.precision,
            "file": first.file,
            "bytes": first.bytes,
            "after": first.figures,
            "files": {target: file.to_json() for target, file in self.files.items()},
        }


def quantize_bundle(
    path: str | os.PathLike[str],
    precision: str,
    calibration: LabelledImages,
    held_out: LabelledImages,
    measured_on: str,
    force: bool = False,
) -> Quantization:
    """Add the classifier in another precision to a bundle.

    Args:
        precision: `fp16` or `int8`.
        calibration: training images, rotated as the device will see them; none for fp16.
        held_out: images that were not trained on; the figures before and after are measured on them.
        measured_on: what these images are, for the manifest.
        force: add it although the images are of another kind than the model's, or too much is lost.

    Raises:
        ExportError: the images do not fit, are of another kind than the model's, or too much is lost; nothing is
            written then.
    """
    bundle = load_bundle(path)
    source = bundle.find("classifier", "onnx", "fp32")
    read_model(bundle.file(source), source)
    model = load_onnx(bundle.file(source))
    for images in (calibration, held_out):
        _check_fit(images, bundle)

    before = measure_quality(model, bundle, held_out, calibration.images)
    all_images = join([held_out, calibration]) if len(calibration) else held_out
    findings = check_images(bundle, all_images, before, len(calibration))
    if findings.refused and not force:
        raise ExportError(
            f"these are not the images that {bundle.path} was trained for: {'; '.join(findings.refused)}. Nothing was "
            "changed; give images like those in training, or insist with --force (force=True)"
        )

    converted = convert(model, precision, calibration.images)
    after = {
        target: measure_quality(each, bundle, held_out, calibration.images, before)
        for target, each in converted.items()
    }
    lost = {}
    for target, each in after.items():
        name = precision if target == "any" else f"{precision} ({target})"
        lost[target] = compare_quality(name, before, each, held_out.labels)
        findings += lost[target]
    if findings.refused and not force:
        raise ExportError(
            f"{precision} loses too much: {'; '.join(dict.fromkeys(findings.refused))}. Nothing was changed; calibrate "
            "on more images, keep fp32 or fp16, or insist with --force (force=True)"
        )

    used = len(calibration_subset(calibration.images))
    provenance = {"from": source.file, "from_sha256": source.sha256, "calibration_images": used}
    entries = {
        target: ModelEntry(
            "classifier",
            precision,
            target=target,
            opset=OPSET,
            accuracy=_figures(each, before, measured_on, findings, lost[target]),
            provenance=provenance,
            threshold=each.threshold,
        )
        for target, each in after.items()
    }
    added = _add_models(bundle, converted, entries, all_images.images)
    warnings = tuple(dict.fromkeys((*findings.refused, *findings.warned)))
    files = {target: _quantized_file(added, precision, target, each) for target, each in after.items()}
    return Quantization(precision, measured_on, warnings, before.figures, files)


def _check_fit(images: LabelledImages, bundle: Bundle) -> None:
    if images.images.shape[1:] != bundle.input.shape:
        raise ExportError(
            f"the images are {'×'.join(map(str, images.images.shape[1:]))}, "
            f"the model takes {'×'.join(map(str, bundle.input.shape))} (height × width × channels)"
        )
    if tuple(images.classes) != bundle.classes:
        raise ExportError(
            f"the images have the classes {', '.join(images.classes)}; the bundle has {', '.join(bundle.classes)}"
        )


def _figures(
    after: Quality, before: Quality, measured_on: str, findings: QualityFindings, lost: QualityFindings
) -> dict[str, Any]:
    """What the manifest keeps of a file's quality."""
    figures = {**after.figures, "fp32_accuracy": before.figures["accuracy"], "measured_on": measured_on}
    if findings.refused:
        figures["refused"] = list(findings.refused)
    if lost.warned:
        figures["lost"] = list(lost.warned)
    return figures


def _add_models(
    bundle: Bundle,
    models: Mapping[str, onnx.ModelProto],
    entries: Mapping[str, ModelEntry],
    images: NDArray[np.uint8],
) -> Bundle:
    """Add model files, by target, and their answers to the probe images; `images` are for a bundle without probes."""
    with tempfile.TemporaryDirectory(prefix="vae-edge-quantize-") as folder:
        added = []
        for target, model in models.items():
            entry = entries[target]
            file = Path(folder) / f"{entry.precision}.{target}.onnx"
            replace_metadata(model, "threshold", entry.threshold)
            with naming(file):
                onnx.save(model, file)
            added.append((file, entry))
        probes = Path(folder) / "probes.npz" if bundle.manifest["data"].get("probe_images", True) else None
        if probes is not None:
            _write_probes(probes, bundle, added, images)
        return add_models(bundle.path, added, probes)


def _quantized_file(bundle: Bundle, precision: str, target: str, quality: Quality) -> QuantizedFile:
    entry = bundle.find("classifier", "onnx", precision, target)
    return QuantizedFile(entry.file, entry.bytes, quality.threshold, quality.figures)


def _write_probes(
    path: Path, bundle: Bundle, added: Sequence[tuple[Path, ModelEntry]], images: NDArray[np.uint8]
) -> None:
    """The bundle's probe images with the answers of all its ONNX files after some were added.

    A bundle without probe images, of an earlier version, gets some of `images`.
    """
    replaced = {entry.key for _, entry in added}
    kept = [
        (bundle.file(entry), entry.precision)
        for entry in bundle.select(format="onnx")
        if entry.key not in replaced and entry.precision in EXPORTED_PRECISIONS
    ]
    models = [*kept, *((file, entry.precision) for file, entry in added)]
    if bundle.probes is not None:
        before = load_probes(bundle.file(bundle.probes))
        write_probes(path, before.images, models, before.models)
    else:
        fp32 = load_onnx(bundle.file(bundle.find("classifier", "onnx", "fp32")))
        write_probes(path, choose_probes(fp32, images), models)


def load_onnx(path: Path, digest: str = "") -> onnx.ModelProto:
    """Read an ONNX file, without data outside it.

    Args:
        digest: the SHA-256 that its bytes must have; empty for any.

    Raises:
        BundleError: it is not a regular file, too large, damaged, another one, or refused by `vae_edge.onnx_graph`.
    """
    try:
        content = read_bytes(path, MAX_MODEL_BYTES)
        if digest and hashlib.sha256(content).hexdigest() != digest:
            raise BundleError(f"{path} was changed while it was read: run the command again.")
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


# The images of a data set that quantization needs


def quantize_bundle_from_dataset(
    path: str | os.PathLike[str], precision: str, dataset: Dataset, seed: int = 0, force: bool = False
) -> Quantization:
    """Add a precision to a bundle: calibrated on training images, measured on held-out images.

    Both are rotated as in training. Where these are the bundle's own images, the held-out ones are those of training.
    Else they are the test split, or without one a validation split that calibration leaves out.

    Args:
        precision: `fp16` or `int8`.
        dataset: images of the bundle's size and channels.
        force: see `quantize_bundle`.

    Raises:
        DataError: there are no training images (for int8), or the classes are not the bundle's.
        ExportError: as `quantize_bundle`.
    """
    bundle = load_bundle(path)
    trained_on = bundle.training_data
    training_seed = trained_on["seed"]
    own = trained_on["fingerprint"] == dataset.fingerprint()
    split = "test" if dataset.test is not None and not own else "validation"
    held_out = select_trained_split(dataset, split, trained_on)
    held_out = _rotate_like_training(held_out, bundle, training_seed + HOLDOUT_ROTATION_SEED)
    held_out = align_classes(held_out, bundle.classes).in_memory()

    if precision == "fp16":
        calibration = held_out.take(np.arange(0))
    elif dataset.train is None:
        raise DataError(f"{dataset.source} has no training split: {precision} needs training images for its ranges")
    else:
        train = select_trained_split(dataset, "train", trained_on)
        chosen = np.random.default_rng(seed).permutation(len(train))[:CALIBRATION_IMAGES]
        calibration = _rotate_like_training(train.take(chosen), bundle, seed + CALIBRATION_ROTATION_SEED)
        calibration = align_classes(calibration, bundle.classes).in_memory()
    return quantize_bundle(path, precision, calibration, held_out, f"{split} of {dataset.name}", force)


def _rotate_like_training(images: LabelledImages, bundle: Bundle, seed: int) -> LabelledImages:
    range_deg = rotation_range(str(bundle.rotation))
    return rotate_dataset(images, range_deg, seed, bundle.input.fill) if range_deg and len(images) else images
