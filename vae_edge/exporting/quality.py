"""What a model loses in another precision, and whether the given images are like those it was trained on.

The model is evaluated in both precisions on the same images: accuracy, angle error, acceptance, and the AUROC of the
score on out-of-distribution (OOD) images. Rounding moves scores, so each file gets a threshold of its own, with which
it accepts the same fraction of images as fp32. A loss beyond the limits below is refused, or warned about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.bundle import Bundle
from vae_edge.data import LabelledImages
from vae_edge.data.transforms import OOD_KINDS, make_ood_images
from vae_edge.exporting.onnx_file import run
from vae_edge.metrics import auroc, summarize, wilson_interval

MAX_OOD_IMAGES = 200  # of each kind
MIN_IMAGES = 50  # held-out images; on fewer only a certain loss of accuracy is refused
MIN_CALIBRATION_IMAGES = 100  # fewer are warned about


@dataclass(frozen=True)
class Limit:
    """How much of a figure may be lost before it is warned about, and before it is refused."""

    warn: float
    refuse: float


ACCURACY = Limit(0.005, 0.02)  # fractions of images; refused only where chance does not explain the loss
ACCEPTED = Limit(0.02, 0.10)
AUROC = Limit(0.02, 0.10)  # mean over the kinds of OOD images
ANGLE_DEG = Limit(1.0, 5.0)  # of the median error
MAX_ACCURACY_GAP = 0.10  # below the fp32 accuracy recorded at export: the images are of another kind
MAX_ACCEPTED_GAP = 0.20
MIN_CLASS_FRACTION = 0.5  # of the classes, that the images must cover
BRIGHTNESS_MARGIN = 8  # grey levels beyond the recorded percentiles


@dataclass(frozen=True)
class Quality:
    """How good a model is on held-out images.

    Attributes:
        figures: JSON: those of `summarize`, `accuracy_interval` (95%), and `auroc` by kind of OOD images.
        predicted: labels of the held-out images, int64 [N].
        scores: of the held-out images, then of the calibration images.
        threshold: images with a score up to this are accepted.
    """

    figures: dict[str, Any]
    predicted: NDArray[np.int64]
    scores: NDArray[np.floating]
    threshold: float


@dataclass(frozen=True)
class QualityFindings:
    """Sentences: why a model or the images are refused, and what is only warned about."""

    refused: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    def __add__(self, other: QualityFindings) -> QualityFindings:
        return QualityFindings(self.refused + other.refused, self.warned + other.warned)


def measure_quality(
    model: onnx.ModelProto,
    bundle: Bundle,
    held_out: LabelledImages,
    calibration: NDArray[np.uint8],
    fp32: Quality | None = None,
) -> Quality:
    """Run a model on labelled held-out images, on OOD images made of them, and on calibration images.

    Args:
        fp32: quality of the fp32 model: the threshold is chosen to accept as many images. None for the bundle's own.
    """
    outputs = run(model, held_out.images)
    others = run(model, calibration)["score"] if len(calibration) else np.zeros(0, np.float32)
    scores = np.concatenate([outputs["score"], others])
    threshold = bundle.threshold if fp32 is None else matching_threshold(fp32.scores, fp32.threshold, scores)

    rotated = held_out.angles_deg is not None and bundle.rotation != "none"
    figures = summarize(
        outputs["probabilities"],
        held_out.labels,
        bundle.classes,
        np.rad2deg(outputs["angle"]) if rotated else None,
        held_out.angles_deg if rotated else None,
        outputs["score"],
        threshold,
        bundle.ambiguous,
        np.rad2deg(outputs["second_angle"]) if rotated and "second_angle" in outputs else None,
        outputs.get("angle_confidence") if rotated else None,
    )

    some = held_out.images[:MAX_OOD_IMAGES]
    areas = {kind: auroc(outputs["score"], run(model, make_ood_images(some, kind))["score"]) for kind in OOD_KINDS}
    figures["auroc"] = {kind: round(area, 4) for kind, area in areas.items()}
    predicted = outputs["probabilities"].argmax(1)
    right = int((predicted == held_out.labels).sum())
    figures["accuracy_interval"] = [round(end, 5) for end in wilson_interval(right, len(held_out))]
    return Quality(figures, predicted, scores, threshold)


def matching_threshold(scores: NDArray[np.floating], threshold: float, others: NDArray[np.floating]) -> float:
    """The threshold that accepts as many of `others` as `threshold` accepts of `scores`; both [N], of the same images.

    It lies between the scores of the last image accepted and the first one rejected, as far as `threshold` does.
    """
    known, other = np.sort(scores.astype(np.float64)), np.sort(others.astype(np.float64))
    accepted = int((known <= threshold).sum())
    if accepted in (0, len(known)):
        end = 0 if accepted == 0 else -1
        return float(other[end] + (threshold - known[end]))
    gap = known[accepted] - known[accepted - 1]
    fraction = (threshold - known[accepted - 1]) / gap if gap > 0 else 0.0
    return float(other[accepted - 1] + fraction * (other[accepted] - other[accepted - 1]))


def compare_quality(precision: str, before: Quality, after: Quality, labels: NDArray[np.int64]) -> QualityFindings:
    """What the model lost, as sentences, by the limits above. `labels` are those of the held-out images, int64 [N].

    On fewer than 50 images only a loss of accuracy that chance does not explain is refused.
    """
    n, refused, warned = len(labels), list[str](), list[str]()

    def check(allowed: str, lost: float, limit: Limit, sentence: str, certain: bool = True) -> None:
        if lost > limit.refuse and certain:
            refused.append(f"{sentence} (more than {allowed} may be lost)")
        elif lost > limit.warn:
            warned.append(sentence)

    was_right, is_right = before.predicted == labels, after.predicted == labels
    worse, better = int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    old, new = before.figures, after.figures
    check(
        f"{100 * ACCURACY.refuse:g} points",
        old["accuracy"] - new["accuracy"],
        ACCURACY,
        f"accuracy falls from {old['accuracy']:.2%} to {new['accuracy']:.2%} in {precision} ({n} images)",
        sign_test(worse, better) < 0.05,
    )
    check(
        f"{100 * ACCEPTED.refuse:g} points",
        old["accepted"] - new["accepted"],
        ACCEPTED,
        f"the fraction of known images accepted falls from {old['accepted']:.2%} to {new['accepted']:.2%} in "
        f"{precision}",
        n >= MIN_IMAGES,
    )
    areas = [float(np.mean(list(figures["auroc"].values()))) for figures in (old, new)]
    check(
        f"{AUROC.refuse:g}",
        areas[0] - areas[1],
        AUROC,
        f"the score's AUROC on OOD images falls from {areas[0]:.3f} to {areas[1]:.3f} in {precision}",
        n >= MIN_IMAGES,
    )
    if "angle_error_deg" in new:
        medians = [figures["angle_error_deg"]["median"] for figures in (old, new)]
        check(
            f"{ANGLE_DEG.refuse:g}°",
            medians[1] - medians[0],
            ANGLE_DEG,
            f"the median angle error grows from {medians[0]:.1f}° to {medians[1]:.1f}° in {precision}",
            n >= MIN_IMAGES,
        )
    return QualityFindings(tuple(refused), tuple(warned))


def sign_test(worse: int, better: int) -> float:
    """Probability of at least `worse` changes for the worse among all changes, if both directions were as likely."""
    n = worse + better
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / 2**n if n else 1.0


def brightness(images: NDArray[np.uint8]) -> dict[str, list[float]]:
    """Brightness of images uint8 [N, H, W, C]: 10th, 50th and 90th percentile of their means and of their maxima."""
    flat = images.reshape(len(images), -1)
    return {
        name: [round(float(q), 2) for q in np.quantile(values, [0.1, 0.5, 0.9])]
        for name, values in (("mean", flat.mean(1)), ("largest", flat.max(1)))
    }


def check_images(bundle: Bundle, images: LabelledImages, before: Quality, calibration_count: int) -> QualityFindings:
    """Whether images are like those the model was trained on, by the figures recorded at export.

    Args:
        images: the held-out and the calibration images together.
        before: the fp32 model's figures on the held-out images, and its scores on all.
        calibration_count: 0 where none are needed.
    """
    recorded = bundle.find("classifier", "onnx", "fp32").accuracy
    refused, warned = list[str](), list[str]()
    n, figures = len(before.predicted), before.figures
    _, upper = wilson_interval(round(figures["accuracy"] * n), n)
    if isinstance(recorded.get("accuracy"), (int, float)) and upper < recorded["accuracy"] - MAX_ACCURACY_GAP:
        refused.append(
            f"the fp32 model gets {figures['accuracy']:.1%} of these images right, but got "
            f"{recorded['accuracy']:.1%} of its own at export"
        )
    accepted = int((before.scores <= before.threshold).sum())
    _, upper = wilson_interval(accepted, len(before.scores))
    if isinstance(recorded.get("accepted"), (int, float)) and upper < recorded["accepted"] - MAX_ACCEPTED_GAP:
        refused.append(
            f"it accepts {accepted / len(before.scores):.1%} of them as known, but accepted {recorded['accepted']:.1%} "
            "of its own"
        )

    # Another brightness alone refuses nothing; where the model fails on the images too, it says why.
    unlike = _unlike_brightness(bundle.manifest["data"].get("brightness"), images.images)
    (refused if refused else warned).extend(unlike)

    missing = _missing_classes(images, bundle)
    if missing and len(missing) > (1 - MIN_CLASS_FRACTION) * len(bundle.classes):
        refused.append(f"they cover {len(bundle.classes) - len(missing)} of {len(bundle.classes)} classes")
    elif missing:
        warned.append(f"no image is of the class {', '.join(missing)}")
    if 0 < calibration_count < MIN_CALIBRATION_IMAGES:
        warned.append(
            f"ranges are measured on only {calibration_count} images; {MIN_CALIBRATION_IMAGES} or more are better"
        )
    if n < MIN_IMAGES:
        low, high = figures["accuracy_interval"]
        warned.append(
            f"accuracy is measured on only {n} images (95% interval {low:.1%} to {high:.1%}), so `auto` will not "
            f"trust it; {MIN_IMAGES} or more held-out images are needed"
        )
    return QualityFindings(tuple(refused), tuple(warned))


def _unlike_brightness(recorded: Mapping[str, Sequence[float]] | None, images: NDArray[np.uint8]) -> list[str]:
    """A sentence where the median image is darker or brighter than the recorded 10th to 90th percentile."""
    if recorded is None:
        return []
    found = brightness(images)
    sentences = []
    for name in ("mean", "largest"):
        low, high = recorded[name][0], recorded[name][2]
        median = found[name][1]
        if not low - BRIGHTNESS_MARGIN <= median <= high + BRIGHTNESS_MARGIN:
            sentences.append(
                f"their {name} pixel is {median:.0f} in the median, training's was {low:.0f} to {high:.0f} in four of "
                "five images"
            )
    return sentences


def _missing_classes(images: LabelledImages, bundle: Bundle) -> list[str]:
    absent = set(bundle.manifest["data"].get("absent", ()))
    counts = np.bincount(images.labels, minlength=len(bundle.classes))
    return [name for k, name in enumerate(bundle.classes) if not counts[k] and name not in absent]
