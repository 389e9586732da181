"""A report on a training run or a bundle, for one's own images: one HTML page, and what it says in a few sentences.

vae_edge.write_report("photos.bundle", "photos", "report.html", unknown=["other-things"])
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_edge.errors import VaeEdgeError
from vae_edge.evaluation.findings import summary_sentences, tried_words
from vae_edge.files import check_file
from vae_edge.metrics import wrap_degrees
from vae_edge.report import Calibration, ReportData, SampleSet
from vae_edge.report import write_report as write_page
from vae_edge.trained import Evaluated, Evaluation, OpenedModel, evaluate_opened, open_model

if TYPE_CHECKING:
    from vae_edge.evaluation.figures import Measured
    from vae_edge.trained import Data, Progress

log = logging.getLogger(__name__)

SAMPLES, MISTAKES = 12, 60  # images shown
MISTAKES_PER_CONFUSION = 6  # of the same two classes, so that one confusion does not fill the gallery


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk.

    Attributes:
        path: of the page.
        evaluation: its figures.
        precisions: figures by precision, of a bundle.
        sentences: what they say; `evaluation.warnings` come first.
    """

    path: Path
    evaluation: Evaluation
    precisions: Sequence[Mapping[str, Any]]
    sentences: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        more = {"precisions": [dict(row) for row in self.precisions], "sentences": list(self.sentences)}
        return {"report": str(self.path), **self.evaluation.to_json(), **more}


def write_report(
    model: str | os.PathLike[str],
    data: Data,
    out: str | os.PathLike[str] = "report.html",
    *,
    unknown: Sequence[Data] = (),
    split: str = "auto",
    rotation: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    device: int = 0,
    trusted: bool = False,
    seed: int = 0,
    strict: bool = False,
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> WrittenReport:
    """Measure a training run or a bundle, and write one HTML page on it.

    The page has the confusion matrix with names, the worst classes, wrong images, calibration, angles, rejection of
    known and unknown images, each precision of a bundle, and the learning curves of a run. It loads nothing.

    Args:
        out: the page.
        model, data, unknown, split, rotation, backend, precision, threads, device, trusted, seed, strict, group_by,
            val, cache, progress: as `vae_edge.evaluate`.

    Raises:
        as `vae_edge.evaluate`.
        ConfigError: `out` cannot be written.
    """
    from vae_edge.data import rotation_range

    path = check_file(out)
    if rotation is not None:
        rotation_range(rotation)
    options: dict[str, Any] = {"device": device, "trusted": trusted}
    opened = open_model(model, backend, precision, threads, **options)
    reading: dict[str, Any] = {"strict": strict, "group_by": group_by, "val": val, "cache": cache}
    with opened.close:
        evaluated = evaluate_opened(opened, data, unknown, split, rotation, seed, progress, **reading)
        content = report_data(evaluated, seed, threads=threads, **options)
    write_page(content, path)
    return WrittenReport(path, evaluated.evaluation, content.precisions, content.sentences)


def report_data(evaluated: Evaluated, seed: int = 0, **options: Any) -> ReportData:
    """What the page shows of an evaluation; the model must still be open. `options` are those of `vae_edge.load`."""
    opened, evaluation = evaluated.opened, evaluated.evaluation
    measured, figures = evaluated.measured, evaluation.to_json()
    precisions = precision_rows(opened, evaluated, **options) if opened.kind == "bundle" else []
    labels = measured.labels
    errors = None
    if opened.has_angle:
        true_deg = measured.images.angles_deg
        errors = np.abs(wrap_degrees(measured.predicted[1] - (0 if true_deg is None else true_deg)))
    wrong = np.flatnonzero(labels != measured.images.labels)
    chosen = np.random.default_rng(seed).permutation(len(labels))[:SAMPLES]
    return ReportData(
        title=f"{opened.path.resolve().name}: what this classifier can do",
        classes=opened.classes,
        evaluation=figures,
        samples=sample_set(opened, measured, chosen),
        mistakes=sample_set(opened, measured, _shown_mistakes(measured, wrong)),
        calibration=Calibration(measured.predicted[0], None, measured.images.labels, None),
        angle_errors_deg=errors,
        known_scores=measured.scores,
        unknown_scores=evaluated.unknown,
        auroc={name: found["auroc"] for name, found in figures["rejection"]["unknown"].items()},
        threshold=opened.threshold,
        precisions=precisions,
        training=_training_log(opened),
        facts=_facts(opened),
        sentences=summary_sentences(figures, precisions),
        warnings=evaluation.warnings,
        tried=tried_words(figures),
        unseen=evaluation.split == "test" or "near_copies" in figures,
    )


def _shown_mistakes(measured: Measured, wrong: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most confident mistakes, not too many of the same confusion."""
    probabilities, truth, predicted = measured.predicted[0], measured.images.labels, measured.labels
    shown: list[int] = []
    counts: dict[tuple[int, int], int] = {}
    for k in wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")].tolist():
        pair = int(truth[k]), int(predicted[k])
        counts[pair] = counts.get(pair, 0) + 1
        if counts[pair] <= MISTAKES_PER_CONFUSION and len(shown) < MISTAKES:
            shown.append(k)
    return np.array(shown, np.int64)


def sample_set(opened: OpenedModel, measured: Measured, chosen: NDArray[np.int64]) -> SampleSet:
    """Some of the measured images, reconstructed and derotated, with what was predicted for them."""
    probabilities, angles_deg, scores = (np.asarray(values)[chosen] for values in measured.predicted[:3])
    images, true_deg = measured.images.take(chosen), measured.images.angles_deg
    return SampleSet(
        images=images.images,
        reconstructions=None if opened.reconstruct is None else opened.reconstruct(images.images),
        truth=[opened.classes[k] for k in images.labels],
        names=[opened.classes[k] for k in probabilities.argmax(1)],
        probabilities=probabilities.max(1),
        true_deg=np.zeros(len(chosen), np.float32) if true_deg is None else true_deg[chosen],
        angles_deg=angles_deg,
        scores=scores,
        accepted=scores <= np.float32(opened.threshold),
        derotated=rotate_by(images.images, -angles_deg, opened.input.fill) if opened.has_angle else None,
        files=None if images.files is None else images.files.tolist(),
    )


def rotate_by(images: NDArray[np.uint8], angles_deg: NDArray[np.floating], fill: int) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, C], each rotated counter-clockwise by its angle in degrees, bilinear."""
    rotated = np.empty_like(images)
    grey = images.shape[-1] == 1
    for row, image, angle in zip(rotated, images, angles_deg, strict=True):
        pixels = Image.fromarray(image[..., 0] if grey else image)
        turned = pixels.rotate(float(angle), Image.Resampling.BILINEAR, fillcolor=fill if grey else (fill,) * 3)
        row[:] = np.asarray(turned).reshape(row.shape)
    return rotated


def precision_rows(opened: OpenedModel, evaluated: Evaluated, **options: Any) -> list[dict[str, Any]]:
    """Accuracy and acceptance of each ONNX precision of a bundle through the runtime, on the images that were measured.

    A precision that cannot be run here is left out, with a remark.
    """
    from vae_edge.bundle import load_bundle
    from vae_edge.runtime import load

    bundle = load_bundle(opened.path)
    measured = evaluated.measured
    upright = measured.upright or measured
    rows = []
    for precision in dict.fromkeys(entry.precision for entry in bundle.select("classifier", "onnx")):
        try:
            classifier = load(opened.path, precision=precision, **options)
        except VaeEdgeError as error:
            log.info("%s is not in the report: %s", precision, error)
            continue
        with classifier:
            predicted = classifier(measured.images.images, color="rgb")
            labels = predicted.labels
            if measured.upright is not None:
                upright_labels = classifier(upright.images.images, color="rgb").labels
            else:
                upright_labels = labels
        rows.append(
            {
                "precision": precision,
                "bytes": classifier.entry.bytes,
                "accuracy": round(float((labels == measured.images.labels).mean()), 5),
                "upright_accuracy": round(float((upright_labels == upright.images.labels).mean()), 5),
                "accepted": round(float(predicted.accepted.mean()), 5),
            }
        )
    return rows


def _training_log(opened: OpenedModel) -> list[dict[str, Any]]:
    """The log of a run that has one."""
    if opened.kind == "bundle":
        return []
    from vae_edge.training.checkpoint import LOG, read_log

    return read_log(opened.path) if (opened.path / LOG).is_file() else []


def _facts(opened: OpenedModel) -> dict[str, Any]:
    import datetime
    import platform

    from vae_edge import __version__
    from vae_edge.environment import cpu_model

    data = opened.data
    trained_on = f"{data['trained_on']:,} images" if "trained_on" in data else "unknown"
    return {
        "model": f"{opened.path.resolve().name} ({opened.kind}), {opened.backend} {opened.precision}",
        "trained on": f"{trained_on} of {data.get('name') or 'unknown data'}, rotation {opened.rotation}",
        "machine": cpu_model(),
        "versions": f"vae-edge {__version__}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
